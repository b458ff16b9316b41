"""What people and models wrote, in the store's JSON: texts, conversations, whole characters.

A prompt or an answer is a string, or a list of messages with role and content. Half a character (a
surrogate without its other half, as a cut emoji leaves it) cannot be written as UTF-8: it is
refused where texts come in, and replaced where an older store holds one.
"""

import json
from collections.abc import Callable
from typing import Any

from rlhf_jax.data.chat import Conversation, Message
from rlhf_jax.data.files import HALF
from rlhf_jax.errors import InputError

HALF_ESCAPED = "\\ud"
"""How the JSON of the store, which is ASCII, begins to write a surrogate."""


def parse_body(body: str) -> dict[str, Any]:
    """The JSON of a row, with U+FFFD in place of half a character."""
    parsed = json.loads(body)
    return whole(parsed) if HALF_ESCAPED in body else parsed


def opinion(task: str, account: str, kind: str, body: dict[str, Any]) -> tuple[Any, ...]:
    """What a label is about: of several with the same only the newest stands."""
    return task, account, kind, body.get("response"), body.get("corrects")


def has_half(body: str) -> bool:
    """Whether the JSON of a row holds half a character."""
    return HALF_ESCAPED in body and parse_body(body) != json.loads(body)


def whole(value: Any) -> Any:
    """``value`` with U+FFFD in place of half a character, in every string of it."""
    if isinstance(value, str):
        pairs = value.encode("utf-16-le", "surrogatepass")
        return pairs.decode("utf-16-le", "replace") if HALF.search(value) else value
    if isinstance(value, dict):
        return {whole(key): whole(part) for key, part in value.items()}
    return [whole(part) for part in value] if isinstance(value, list) else value


def check_whole(name: str, text: str) -> None:
    """Raise InputError if ``text`` holds half a character."""
    if HALF.search(text):
        raise InputError(f"{name}: holds half a surrogate pair, expected whole characters")


def from_json(value: str | list[dict[str, Any]]) -> str | Conversation:
    """A prompt or an answer as ``rlhf_jax.data.chat.as_json`` wrote it."""
    if isinstance(value, str):
        return value
    return tuple(map(Message.from_dict, value))


def map_text(change: Callable[[str], str], value: str | Conversation) -> str | Conversation:
    """``change`` of a text, or of what each message of a conversation says."""
    if isinstance(value, str):
        return change(value)
    return tuple(message._replace(content=change(message.content)) for message in value)
