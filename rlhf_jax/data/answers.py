"""Answers to a prompt, as text and as messages, without the prompt where they repeat it.

A conversation that answers begins with the assistant's message, or with the whole prompt. A text
may begin with its prompt by chance, so texts lose it only where every row of a file repeats it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.chat import Conversation, Message, as_text
from rlhf_jax.data.messages import is_messages, read_messages, read_text
from rlhf_jax.data.rows import RowError

REMOVED = "prompt removed from the answer"
EARLIER = "earlier answers of a conversation are its prompt: only the last is learnt"
REPEATED = "an answer begins with its prompt, and is kept so: not all rows of the file do that"


def read_answer(
    value: Any, key: str, prompt: str | Conversation, notes: Counter[str], *, exact: bool = False
) -> str | Conversation:
    """An answer as it follows ``prompt``.

    A text that answers a conversation is the assistant's message, and its leading space the one
    that joins them; ``exact`` keeps a text without one as it stands.
    """
    if is_messages(value):
        return _after_prompt(read_messages(value), key, prompt, notes)
    return joined(read_text(value, key), prompt, exact=exact)


def joined(text: str, prompt: str | Conversation, *, exact: bool = False) -> str | Conversation:
    """The assistant's message of this text, if its prompt is a conversation that asks for one."""
    if not asks_for_message(prompt) or (exact and not text.startswith(" ")):
        return text
    return (Message("assistant", text.removeprefix(" ")),)


def asks_for_message(prompt: str | Conversation) -> bool:
    """Whether the assistant's turn comes next: neither a text nor its words to be continued."""
    return not isinstance(prompt, str) and prompt[-1].role != "assistant"


def _after_prompt(
    messages: Conversation, key: str, prompt: str | Conversation, notes: Counter[str]
) -> str | Conversation:
    continued = not isinstance(prompt, str) and prompt[-1].role == "assistant"
    if messages[0].role != "assistant":
        messages = _without(messages, prompt, key)
        notes[REMOVED] += 1
    if not messages:
        return ""
    if messages[0].role != "assistant" or messages[-1].role != "assistant":
        raise RowError(f"{key} does not begin and end with the assistant's messages")
    if not continued:
        return messages
    if len(messages) > 1:
        raise RowError(f"{key} continues the assistant's message: expected no message after it")
    if messages[0].more:
        raise RowError(f"{key} continues the assistant's message: expected no calls in it")
    return messages[0].content


def _without(messages: Conversation, prompt: str | Conversation, key: str) -> Conversation:
    """What a conversation goes on with after ``prompt``; a system message may be the prompt's."""
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    for role in ("tools", "system"):
        if turns and turns[0].role == role != messages[0].role:
            turns = turns[1:]
    end = len(turns)
    partial = turns[-1].content if turns[-1].role == "assistant" else None
    same = len(messages) >= end and all(map(_alike, messages[: end - (partial is not None)], turns))
    if same and partial is not None:
        last = messages[end - 1]
        same = last.role == "assistant" and last.content.startswith(partial)
        rest = last._replace(content=last.content.removeprefix(partial))
        return _checked((rest, *messages[end:]), same, key)
    return _checked(messages[end:], same, key)


def _checked(rest: Conversation, same: bool, key: str) -> Conversation:
    if not same:
        raise RowError(f"{key} is a conversation that does not begin with the prompt")
    return rest


def _alike(a: Message, b: Message) -> bool:
    return a.role == b.role and a.more == b.more and a.content.strip() == b.content.strip()


def last_answers(
    prompt: str | Conversation,
    answers: Sequence[str | Conversation],
    notes: Counter[str],
    note: str = EARLIER,
) -> tuple[str | Conversation, tuple[str | Conversation, ...]]:
    """Prompt and answers, the turns that all of several messages begin with being the prompt's."""
    messages = [answer for answer in answers if not isinstance(answer, str)]
    if len(messages) < len(answers):
        return prompt, tuple(answers)
    shared = next(
        (
            n
            for n, turns in enumerate(zip(*(a[:-1] for a in messages), strict=False))
            if set(turns[1:]) - {turns[0]}
        ),
        min(map(len, messages)) - 1,
    )
    while shared and not all(_asks(answer, shared) for answer in messages):
        shared -= 1
    if not shared:
        return prompt, tuple(answers)
    notes[note] += 1
    asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return (*asked, *messages[0][:shared]), tuple(answer[shared:] for answer in messages)


def _asks(answer: Conversation, turn: int) -> bool:
    """Whether the assistant's message ``turn`` answers the one before it, and does not go on."""
    return answer[turn].role == "assistant" != answer[turn - 1].role


# --- texts that begin with their prompts ----------------------------------------------------------


def repeated(prompt: str | Conversation, answers: Sequence[str | Conversation]) -> str | None:
    """The text of the prompt that every answer begins with, or None."""
    contents = [content for answer in answers if (content := content_of(answer)).strip()]
    for lead in _leads(prompt):
        if contents and all(content.startswith(lead) for content in contents):
            return lead
    return None


def _leads(prompt: str | Conversation) -> list[str]:
    """How a text might repeat a prompt: all of it, its last message, or as one of the user's."""
    texts = [as_text(prompt)]
    if isinstance(prompt, str):
        turn = as_text((Message("user", prompt.strip()),))
        texts += [turn, turn.lstrip(), prompt.strip()]
    else:
        texts += [texts[0].lstrip(), prompt[-1].content, prompt[-1].content.strip()]
    return [text for text in texts if text.strip()]


def content_of(answer: str | Conversation) -> str:
    """The words of a text, or of the first message of an answer."""
    return answer if isinstance(answer, str) else answer[0].content


def without(
    answer: str | Conversation, lead: str, prompt: str | Conversation
) -> str | Conversation:
    """The answer without its beginning ``lead``."""
    rest = content_of(answer).removeprefix(lead)
    if not asks_for_message(prompt):
        return rest
    if isinstance(answer, str):
        return (Message("assistant", rest.lstrip()),)
    return (answer[0]._replace(content=rest.lstrip()), *answer[1:])
