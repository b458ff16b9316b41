"""Messages as files write them: ``role`` and ``content``, or ``from`` and ``value``."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_jax.data.chat import Conversation, Message
from rlhf_jax.data.files import HALF, type_name
from rlhf_jax.data.functions import functions_message, read_calls
from rlhf_jax.data.rows import RowError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "prompter": "user",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tools": "tools",
}
"""Who speaks, by the names that public data sets use; tools is how this project writes them."""
NOT_LEARNT = (
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "images",
    "audio",
)
"""Parts of a message that its text would be without."""
WEIGHTS = ("weight", "train", "loss")
"""Whether a message is to be learnt."""
FOR_TEMPLATES = {"assistant": ("tool_calls",), "tool": ("name", "tool_call_id")}
"""Parts of a message that its text is without, and that a chat template is given."""
PARTS_READ = frozenset(("role", "content", *NOT_LEARNT))
PARTS_HARMLESS = frozenset(("id", "message_id", "timestamp", "created", "model", "tool_call_id"))


def is_messages(value: Any) -> bool:
    """Whether this is a list of messages, or a single one."""
    if isinstance(value, dict):
        contents = {"content", "tool_calls"} & value.keys()
        return ("role" in value and bool(contents)) or {"from", "value"} <= value.keys()
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def read_messages(value: list | dict) -> Conversation:
    """The conversation of a list of messages, or of a single one. Raises RowError."""
    conversation = tuple(map(_message, value if isinstance(value, list) else [value]))
    if any(message.role == "tools" for message in conversation[1:]) or (
        len(conversation) == 1 and conversation[0].role == "tools"
    ):
        raise RowError("a message of the role tools is not the first of several, expected it there")
    return conversation


def _message(value: Any) -> Message:
    if not (isinstance(value, dict) and is_messages(value)):
        raise RowError("expected every message to have role and content, or from and value")
    lost = [key for key in NOT_LEARNT if is_filled(value.get(key))]
    if lost:
        raise RowError(f"a message has {lost[0]}, which is not learnt: expected text alone")
    role, content = ("role", "content") if "role" in value else ("from", "value")
    speaker = ROLES.get(value[role].lower()) if isinstance(value[role], str) else None
    if speaker is None:
        raise RowError(
            f"{role} is {value[role]!r}, expected system, user, assistant or tool (or human, gpt)"
        )
    text = read_text(value.get(content), content)
    if speaker == "tools":
        return functions_message(text, "the message of the role tools")
    return Message(speaker, text, _more(value, speaker))


def _more(value: dict, speaker: str) -> str:
    """What a template is given of a message beside its text."""
    if speaker != "assistant" and is_filled(value.get("tool_calls")):
        raise RowError(f"the {speaker}'s message has tool_calls, expected them of the assistant")
    names = FOR_TEMPLATES.get(speaker, ())
    given = {name: value[name] for name in names if is_filled(value.get(name))}
    if "tool_calls" in given:
        given["tool_calls"] = read_calls(value["tool_calls"])
    return json.dumps(given, ensure_ascii=False) if given else ""


def has_developer(row: dict) -> bool:
    """Whether a developer speaks in a row's messages, which is read as the system's message."""
    roles = (message.get("role") for message in _messages_in(list(row.values())))
    return any(isinstance(role, str) and role.lower() == "developer" for role in roles)


def unknown_parts(row: dict) -> set[str]:
    """Parts of a row's messages that are not read, and weights other than all or nothing."""
    return {
        name
        for message in _messages_in(list(row.values()))
        for name, value in message.items()
        if is_filled(value) and not _is_read(name, value, message)
    }


def _messages_in(value: Any) -> Iterator[dict]:
    """All messages of a column, be it one, a list of them, or lists of several answers."""
    if isinstance(value, list):
        for part in value:
            yield from _messages_in(part)
    elif is_messages(value):
        yield value


def _is_read(part: str, value: Any, message: dict) -> bool:
    if part in WEIGHTS:
        return value in (0, 1)
    if part in ("from", "value"):
        return "role" not in message
    speaker = ROLES.get(str(message.get("role")).lower())
    return part in PARTS_READ | PARTS_HARMLESS or part in FOR_TEMPLATES.get(str(speaker), ())


def read_text(value: Any, key: str) -> str:
    """A string, or the parts of type text that it is given in; empty of null. Raises RowError."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(_part(part, key) for part in value)
    if not isinstance(value, str):
        raise RowError(f"{key} is {type_name(value)}, expected a string")
    if HALF.search(value):
        raise RowError(f"{key} holds half a surrogate pair, expected whole characters")
    return value


def _part(part: Any, key: str) -> str:
    if not isinstance(part, Mapping):
        raise RowError(f"{key} is a list with {type_name(part)}, expected a string")
    if part.get("type") != "text":
        raise RowError(f"{key} has a part of type {part.get('type')!r}, expected only text")
    if not isinstance(part.get("text"), str):
        raise RowError(f"text of {key} is {type_name(part.get('text'))}, expected a string")
    return read_text(part.get("text"), f"text of {key}")


def is_filled(value: Any) -> bool:
    """Whether a column says anything: not null, empty or blank."""
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [], {}, False)
