"""Prompts with an answer, for SFT, as the columns of a row or its conversation give them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlhf_jax.data.answers import last_answers, read_answer
from rlhf_jax.data.chat import Conversation, Message
from rlhf_jax.data.columns import ANSWERING, CONVERSATIONS, LABELS, RANKED, note_unread
from rlhf_jax.data.files import type_name
from rlhf_jax.data.messages import WEIGHTS, is_filled, is_messages, read_messages, read_text
from rlhf_jax.data.prompts import (
    askable,
    asked_in,
    check_conversation,
    conversation_of,
    holds,
    is_exact,
    missing,
    until_answer,
)
from rlhf_jax.data.rows import UNANSWERED, Demonstration, NotLearnt, RowError

EARLIER = "earlier answers of a conversation are its prompt, and learnt with --target turns alone"


def every_answer(rows: Iterable[Demonstration]) -> Iterator[Demonstration]:
    """Each earlier answer of a conversation after the turns before it, then the last one.

    Each is a demonstration of its own: a template may write earlier turns otherwise than the last,
    and a text without a template ends only once, so that what is taught would not be what is
    sampled if all were learnt in one row.
    """
    for row in rows:
        for number in row.turns:
            prompt, answer = row.prompt[:number], row.prompt[number]
            assert isinstance(prompt, tuple) and isinstance(answer, Message), "turns of messages"
            yield Demonstration(prompt, (answer,), origin=row.origin)
        yield row._replace(turns=())


def demonstration_row(row: dict, notes: Counter[str]) -> Demonstration:
    """The demonstration of a row of any format. Raises RowError, or NotLearnt."""
    note_unread(row, ("text", *RANKED), notes)
    key, messages, prompt = _answering(row), conversation_of(row), asked_in(row)
    answered = messages is not None and messages[-1].role == "assistant"
    if answered and prompt is None and key == "answer":
        # The result of a worked answer, in sets of mathematics.
        notes.update(["column answer is not read"] * is_filled(row[key]))
    elif answered and key is not None:
        _check_same(row[key], key, messages, whole=prompt is None)
    if messages is not None and (key is None or prompt is None or not is_filled(row[key])):
        _check_label(row)
        conversations = [row[name] for name in CONVERSATIONS if name in row]
        _check_weights(conversations)
        return _last_answer(messages, notes, _without_weight(messages, conversations))
    if prompt is None or key is None:
        check_conversation(row)
        expected = "prompt and completion, instruction and output, question and answer, or messages"
        raise missing(row, expected)
    _check_label(row)
    _check_weights([row[key]])
    prompt = askable(prompt)
    answer = read_answer(row[key], key, prompt, notes, exact=is_exact(row, prompt))
    given = 1 if isinstance(prompt, str) else len(prompt)
    prompt, (answer,) = last_answers(prompt, [answer], notes, EARLIER)
    # Messages that a row calls its prompt are no answers to learn.
    turns = () if isinstance(prompt, str) else _answers_among(prompt)
    return Demonstration(prompt, answer, tuple(number for number in turns if number >= given))


def _answering(row: dict) -> str | None:
    """The column of the answer: one with something in it, if there is one."""
    names = [name for name in ANSWERING if name in row]
    filled = [name for name in names if is_filled(row[name])]
    if len(filled) > 1 and any(row[name] != row[filled[0]] for name in filled):
        raise RowError(f"found both {filled[0]} and {filled[1]}, expected one answer")
    return next(iter((*filled, *names)), None)


def _check_same(value: Any, key: str, messages: Conversation, *, whole: bool) -> None:
    """Raise RowError for an answer that is not in the conversation, or not the last of a whole."""
    if not is_filled(value):
        return
    said = read_messages(value) if is_messages(value) else read_text(value, key)
    if not holds(messages[-1:] if whole else messages, said):
        raise RowError(f"found both {key} and messages that end otherwise, expected one answer")


def _without_weight(messages: Conversation, conversations: Sequence[Any]) -> set[int]:
    """Numbers of the messages that a conversation marks as not to be learnt."""
    marked = set()
    for turns in conversations:
        if isinstance(turns, list):
            # From the end: a system message of another column may stand before them.
            before = len(messages) - len(turns)
            marked |= {before + n for n, turn in enumerate(turns) if not _has_weight(turn)}
    return marked


def _answers_among(messages: Conversation) -> tuple[int, ...]:
    """Numbers of the assistant's messages that answer one before them, and end before another."""
    roles = [None, *(message.role for message in messages), None]
    beside = enumerate(zip(roles, roles[1:], roles[2:], strict=False))
    return tuple(
        number
        for number, (before, role, after) in beside
        if role == "assistant" and before is not None and "assistant" not in (before, after)
    )


def _last_answer(messages: Conversation, notes: Counter[str], marked: set[int]) -> Demonstration:
    before = until_answer(messages)
    if len(before) == len(messages):
        raise NotLearnt(UNANSWERED)
    if not before:
        raise NotLearnt("an answer to nothing")
    if before[-1].role == "assistant":
        raise NotLearnt("two answers in a row")
    if any(message.role == "assistant" for message in before):
        notes[EARLIER] += 1
    turns = tuple(number for number in _answers_among(before) if number not in marked)
    return Demonstration(askable(before), messages[-1:], turns)


def _check_weights(conversations: Sequence[Any]) -> None:
    """Leave out a conversation whose last message is marked as not to be learnt."""
    last = [turns[-1] for turns in conversations if isinstance(turns, list) and is_messages(turns)]
    if not all(map(_has_weight, last)):
        raise NotLearnt("the last message has no weight")


def _has_weight(message: dict) -> bool:
    return all(message.get(mark, 1) not in (0, False) for mark in WEIGHTS)


def _check_label(row: dict) -> None:
    """Leave out an answer that is labelled false: 0 and 1 are labels too, other numbers none."""
    for name in LABELS:
        label = row.get(name, True)
        if not isinstance(label, bool | int | float) or label not in (0, 1):
            found = label if isinstance(label, int | float) else type_name(label)
            raise RowError(f"{name} is {found}, expected true or false")
        if not label:
            raise NotLearnt("label false")
