"""Functions that a model may call: which there are, and calls of them, as files write both.

    {"tools": [{"type": "function", "function": {"name": "add", "parameters": {...}}}],
     "messages": [{"role": "user", "content": "2 + 2?"},
                  {"role": "assistant", "tool_calls": [{"type": "function", "function":
                       {"name": "add", "arguments": {"a": 2, "b": 2}}}]},
                  {"role": "tool", "content": "4"}, ...]}

A chat template writes them, as its family does it; nothing is read of them here but their names.
"""

import json
from typing import Any

from rlhf_jax.data.chat import Message
from rlhf_jax.data.files import type_name
from rlhf_jax.data.json_text import parse_json
from rlhf_jax.data.rows import RowError
from rlhf_jax.errors import InputError


def functions_message(value: Any, name: str) -> Message:
    """A list of functions, or the JSON of one, as the message that begins a conversation.

    Raises RowError for anything else.
    """
    listed = _from_json(value, name)
    if not isinstance(listed, list) or not listed:
        found = "an empty list" if listed == [] else type_name(listed)
        raise RowError(f"{name} is {found}, expected a list of functions")
    for number, function in enumerate(listed):
        _check_function(function, f"{name}[{number}]")
    # In the order of the file: a template writes it in that order.
    return Message("tools", json.dumps(listed, ensure_ascii=False))


def read_calls(value: Any) -> list[dict[str, Any]]:
    """The calls of a message, whose arguments are an object or the JSON of one.

    Raises RowError for what is no call.
    """
    calls = _from_json(value, "tool_calls")
    if not isinstance(calls, list):
        raise RowError(f"tool_calls is {type_name(calls)}, expected a list of calls")
    return [_call(call, f"tool_calls[{number}]") for number, call in enumerate(calls)]


def _call(call: Any, name: str) -> dict[str, Any]:
    _check_function(call, name)
    inside = call.get("function", call)
    # Services write them as text, templates expect the object and would write text in quotes.
    arguments = _from_json(inside.get("arguments", {}), f"the arguments of {name}")
    if not isinstance(arguments, dict):
        raise RowError(f"the arguments of {name} are {type_name(arguments)}, expected an object")
    called = inside | {"arguments": arguments}
    return call | {"function": called} if "function" in call else called


def _check_function(value: Any, name: str) -> None:
    inside = value.get("function", value) if isinstance(value, dict) else None
    named = inside.get("name") if isinstance(inside, dict) else None
    if not (isinstance(named, str) and named.strip()):
        raise RowError(f"{name} has no name of a function, expected an object with one")


def _from_json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, name) if value.strip() else None
    except InputError as error:
        raise RowError(str(error)) from None
