"""How a prompt and its answers are set for reading: what goes on from what, what is code."""

import re
from typing import NamedTuple

from rlhf_jax.data.chat import Conversation, as_text

LONG = 400
"""Characters, and lines, from which on a prompt stands beside the answers on a wide screen."""
LONG_LINES = 6
LINE = 200
"""Characters of the prompt's last line that are looked at, and of which at most ``TAIL`` shown."""
TAIL = 60
CLOSING = "\"'”’»)]}」』》）】"
SENTENCE_ENDS = ".!?:;。！？：；…\n"
BREAK = re.compile(r"[.!?:;…][\"'”’»)\]]* +|[。！？：；…][”’」』》）】]*")
INDENT = "  "


class Asked(NamedTuple):
    """A turn of the prompt as the page shows it."""

    role: str
    """Of the message; "" for a prompt that is a text."""
    text: str


def asked(prompt: str | Conversation) -> list[Asked]:
    """Each turn by itself: what a person wrote inside one looks like no other."""
    if isinstance(prompt, str):
        return [Asked("", prompt)]
    return [Asked(message.role, message.shown) for message in prompt]


def is_long(prompt: str | Conversation) -> bool:
    """Whether a prompt is folded at first: by its characters, or by its lines."""
    text = as_text(prompt)
    return len(text) > LONG or text.strip().count("\n") >= LONG_LINES


class Continued(NamedTuple):
    """An answer, and the end of the prompt that it goes on from."""

    before: str
    """As it stands in the prompt, spaces included; "" for an answer that stands alone."""
    text: str


def continued(prompt: str | Conversation, answer: str | Conversation) -> Continued:
    """An answer after the prompt's last words, if the prompt ends inside a sentence.

    A prompt that ends with a full stop, a question mark, a colon or a line break is answered, not
    continued; so is a conversation.
    """
    text = as_text(answer).rstrip()
    end = prompt.rstrip(" ").rstrip(CLOSING)[-1:] if isinstance(prompt, str) else ""
    if not isinstance(prompt, str) or not end or end in SENTENCE_ENDS or text.startswith("\n"):
        return Continued("", alone(text))
    return Continued(tail(prompt), text)


def alone(text: str) -> str:
    """Without the blank lines and the one space that sampled answers begin with.

    Not without all space: the first line of code may be indented.
    """
    lines = text.rstrip().split("\n")
    while len(lines) > 1 and not lines[0].strip():
        del lines[0]
    first = lines[0]
    lines[0] = first[1:] if first[:1] == " " and first[1:2] != " " else first
    return "\n".join(lines)


def tail(prompt: str) -> str:
    """The prompt's last clause, or as much of its end as can be read at a glance."""
    line = prompt.rpartition("\n")[2][-LINE:]
    breaks = [match.end() for match in BREAK.finditer(line.rstrip())]
    clause = line[breaks[-1] :] if breaks else line
    if len(clause) <= TAIL:
        return clause
    end = clause[-TAIL:]
    words = end.partition(" ")[2]
    return "… " + (words if words.strip() else end)


def is_code(text: str) -> bool:
    """Whether the columns of a text mean something: tabs, fences, or indented lines."""
    lines = text.split("\n")
    indented = sum(line.startswith(INDENT) and bool(line.strip()) for line in lines)
    return "\t" in text or "```" in text or indented >= 2
