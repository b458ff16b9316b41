"""The fields of a config, as Python and as the command line spell them."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, annotation) of every field that is no config itself."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name]


def flag_of(dotted: str) -> str:
    """A field as it is spelled on the command line, without the --."""
    return dotted.replace("_", "-").rstrip("-")  # as_, for --as, which Python has taken


def flag_names(config: Any) -> list[str]:
    """Every flag of ``config``, without the --."""
    return [flag_of(field) for field, _ in fields_of(config)]
