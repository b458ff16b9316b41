"""A config as the JSON of a run folder's ``config.json``, and back."""

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any

from rlhf_jax.cli.fields import fields_of
from rlhf_jax.cli.notes import note
from rlhf_jax.config.forks import class_named
from rlhf_jax.config.moved import relocated
from rlhf_jax.config.older import in_todays_form
from rlhf_jax.errors import InputError

REMOVED = {"FeedbackConfig": ("command", "format", "policies", "file")}
"""Fields that older versions saved of a class and that told nothing of a run."""


def to_dict(config: Any) -> Any:
    """A config as JSON-able data."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def read_json(path: Path) -> Any:
    """The config saved in a run folder's ``config.json``, of whichever class it was."""
    try:
        saved = in_todays_form(json.loads(path.read_text(encoding="utf-8")))
        name, values = saved["config_class"], saved["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a config saved by this project ({error!r})") from None
    config_class = class_named(name, str(path))
    moved = relocated(values, config_class, path.parent) if isinstance(values, dict) else values
    config = from_dict(config_class, moved, str(path))
    # Said, as today's default need not be what that version did.
    absent = [field for field, _ in fields_of(config) if not is_in(values, field)]
    if absent:
        note(f"{path} is of another version: it does not say {', '.join(absent)}, so defaults hold")
    return config


def is_in(saved: Any, dotted: str) -> bool:
    """Whether a saved config has this field."""
    first, _, rest = dotted.partition(".")
    if not isinstance(saved, dict) or first not in saved:
        return False
    return not rest or is_in(saved[first], rest)


def from_dict(kind: Any, value: Any, where: str) -> Any:
    """The strict inverse of ``to_dict``: an unknown field or a wrong type is an InputError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return config_from(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else from_dict(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {value!r}")
        return tuple(from_dict(arguments[0], item, where) for item in value)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where}: expected one of {arguments}, found {value!r}")
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    # JSON writes 1.0 as 1 in other programs' hands.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # The type itself: to isinstance, True is an int.
    if type(value) is not kind:
        raise InputError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value


def config_from(kind: type, value: Any, where: str) -> Any:
    """A config class with its fields from a saved object."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {value!r}")
    hints = typing.get_type_hints(kind)
    value = {k: v for k, v in value.items() if k not in REMOVED.get(kind.__name__, ())}
    unknown = [name for name in value if name not in hints]
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: unknown field {unknown[0]!r}{hint}")
    fields = {k: from_dict(hints[k], v, f"{where}: {k}") for k, v in value.items()}
    try:
        return kind(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
