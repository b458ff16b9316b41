"""What a command says beside its work: a line for each setting that has no effect."""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from rlhf_jax.cli.fields import fields_of, flag_of
from rlhf_jax.config.effect import value_of, without_effect


def note(message: str) -> None:
    """One line on standard error, of what has no effect or is read otherwise."""
    print(f"note: {message}", file=sys.stderr)


def say_idle(config: Any, fields: Sequence[str], prefix: str) -> None:
    """One line for each of these fields that is set, but has no effect."""
    for field in dict.fromkeys(fields):
        why = without_effect(config, field)
        if why is not None:
            note(f"{prefix}{flag_of(field)} has no effect{why}")


def set_in(preset: Any) -> list[str]:
    """The fields that are neither as the whole config has them by default, nor as their own."""
    default, names = default_of(type(preset)), []
    for name, _ in fields_of(preset):
        holder, _, last = name.rpartition(".")
        own = default_of(type(value_of(preset, holder) if holder else preset))
        value = value_of(preset, name)
        if value != value_of(default, name) and value != getattr(own, last):
            names.append(name)
    return names


@cache
def default_of(config_class: type) -> Any:
    """The config of a class with every field as it is by default."""
    return config_class()
