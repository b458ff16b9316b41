"""The flags that are typed, and what is wrong with them."""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.cli.fields import fields_of, flag_names, flag_of
from rlhf_jax.cli.notes import note
from rlhf_jax.config.bounds import number_in
from rlhf_jax.config.effect import value_of
from rlhf_jax.errors import InputError, check


class Typed(NamedTuple):
    """A flag on the command line."""

    name: str
    """As flag_of its field, whichever way it was spelled."""
    field: str
    values: tuple[str, ...]
    hint: Any
    """The field's annotation; None where there is no such field."""


def read_flags(argv: Sequence[str], default: Any) -> list[Typed]:
    """Every flag of ``argv`` with the values that follow it."""
    hints = dict(fields_of(default))
    fields = {flag_of(field): field for field in hints}
    found: list[Typed] = []
    for argument in argv:
        if not argument.startswith("--"):
            if found:
                found[-1] = found[-1]._replace(values=(*found[-1].values, argument))
        else:
            name, equals, value = argument[2:].partition("=")
            name = flag_of(name)
            field = fields.get(name, "")
            found.append(Typed(name, field, (value,) if equals else (), hints.get(field)))
    return found


ONE_HYPHEN = re.compile("(?!--)[-\u2010-\u2015\u2212]+[a-z]")
"""A flag with one hyphen, or with what word processors and web pages make of two."""


def check_flags(argv: Sequence[str], typed: Sequence[Typed], default: Any) -> None:
    """Raise InputError for a flag that does not exist, or a value that its field cannot hold.

    A flag that is given twice is said: the last counts.
    """
    for argument in argv:
        if ONE_HYPHEN.match(argument) and argument not in ("-inf", "-nan"):
            name = re.search("[a-z].*", argument)[0]
            raise InputError(f"unknown flag {argument}: flags begin with two hyphens, --{name}")
    for number, flag in enumerate(typed):
        if not flag.field:
            raise InputError(unknown_flag(flag.name, default))
        check_values(flag)
        if any(flag.name == earlier.name for earlier in typed[:number]):
            note(f"--{flag.name} is given twice: the last one counts, {' '.join(flag.values)}")


def unknown_flag(name: str, default: Any) -> str:
    """A sentence with the nearest flag, which tyro finds for some lengths only."""
    known = flag_names(default)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    if not near:
        last = {flag: flag.rpartition(".")[2] for flag in known}
        ends = difflib.get_close_matches(name.rpartition(".")[2], last.values(), n=1)
        near = [flag for flag in known if last[flag] in ends]
    hint = f"; did you mean {' or '.join('--' + flag for flag in near)}?" if near else ""
    return f"unknown flag --{name}{hint} (--help all lists them)"


def check_values(flag: Typed) -> None:
    """Raise InputError for a number out of bounds, or an empty path; tyro knows the other types."""
    number, types_ = number_in(flag.hint), list(leaf_types(flag.hint))
    for text in flag.values if tuple in types_ else flag.values[:1]:
        if number is not None and not (text == "None" and types.NoneType in types_):
            problem = number.problem(parsed(text, number.kind))
            check(not problem, f"--{flag.name} {text}: {problem}")
        empty = text == "" and Path in types_
        check(not empty, f"--{flag.name} is empty: expected a path")


def parsed(text: str, kind: type) -> int | float | None:
    """The number that tyro would read; None if it is no number of this kind."""
    try:
        return kind(text)
    except ValueError:
        return None


def leaf_types(hint: Any) -> Iterator[Any]:
    """The types in an annotation: of a union and a tuple each, and tuple itself."""
    if typing.get_origin(hint) is tuple:
        yield tuple
    arguments = typing.get_args(hint)
    for part in arguments[:1] if hasattr(hint, "__metadata__") else arguments:
        yield from leaf_types(part)
    if not arguments:
        yield hint


def check_not_filled_in(config: Any, typed: Sequence[Typed]) -> None:
    """Raise InputError for a flag of a stage that stages in a row set themselves."""
    if not hasattr(config, "resolve"):
        return
    resolved = config.resolve()
    for flag in typed:
        here, there = (value_of(each, flag.field) for each in (config, resolved))
        check(
            here == there,
            f"--{flag.name} has no effect: where stages run in a row, it is {there}",
        )
