"""Prompts with an answer, for SFT, as the columns of a row or its conversation give them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.answers import EARLIER, last_answers, read_answer
from rlhf_jax.data.chat import Conversation
from rlhf_jax.data.columns import ANSWERING, CONVERSATIONS, LABELS, RANKED, note_unread
from rlhf_jax.data.files import type_name
from rlhf_jax.data.messages import (
    WEIGHTS,
    RowError,
    is_filled,
    is_messages,
    read_messages,
    read_text,
)
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
from rlhf_jax.data.rows import UNANSWERED, Demonstration, NotLearnt


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
        _check_weights([row[name] for name in CONVERSATIONS if name in row])
        return _last_answer(messages, notes)
    check_conversation(row)
    if prompt is None or key is None:
        expected = "prompt and completion, instruction and output, question and answer, or messages"
        raise missing(row, expected)
    _check_label(row)
    _check_weights([row[key]])
    prompt = askable(prompt)
    answer = read_answer(row[key], key, prompt, notes, exact=is_exact(row, prompt))
    prompt, (answer,) = last_answers(prompt, [answer], notes)
    return Demonstration(prompt, answer)


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


def _last_answer(messages: Conversation, notes: Counter[str]) -> Demonstration:
    before = until_answer(messages)
    if len(before) == len(messages):
        raise NotLearnt(UNANSWERED)
    if not before:
        raise NotLearnt("an answer to nothing")
    if before[-1].role == "assistant":
        raise NotLearnt("two answers in a row")
    if any(message.role == "assistant" for message in before):
        notes[EARLIER] += 1
    return Demonstration(askable(before), messages[-1:])


def _check_weights(conversations: Sequence[Any]) -> None:
    """Leave out a conversation whose last message is marked as not to be learnt."""
    last = [turns[-1] for turns in conversations if isinstance(turns, list) and is_messages(turns)]
    if any(message.get(mark, 1) in (0, False) for message in last for mark in WEIGHTS):
        raise NotLearnt("the last message has no weight")


def _check_label(row: dict) -> None:
    """Leave out an answer that is labelled false: 0 and 1 are labels too, other numbers none."""
    for name in LABELS:
        label = row.get(name, True)
        if not isinstance(label, bool | int | float) or label not in (0, 1):
            found = label if isinstance(label, int | float) else type_name(label)
            raise RowError(f"{name} is {found}, expected true or false")
        if not label:
            raise NotLearnt("label false")
