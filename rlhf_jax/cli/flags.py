"""The flags and words that are typed, and what is wrong with them."""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.cli.fields import fields_of, flag_names, flag_of
from rlhf_jax.cli.notes import note
from rlhf_jax.cli.values import expected, leaf_types, problem_of, takes_several
from rlhf_jax.config.effect import is_positional, value_of
from rlhf_jax.errors import InputError, check, known


class Typed(NamedTuple):
    """A field that the command line sets: by a flag, or by a word in its place."""

    shown: str
    """--optim.lr, whichever way it was spelled; of a word without a flag the field in capitals."""
    field: str
    """Its dotted name; empty where there is no such field."""
    values: tuple[str, ...]
    hint: Any
    """The field's annotation; None where there is no such field."""

    def takes_more(self) -> bool:
        """Whether a text that follows is one of its values."""
        return not self.field or not self.values or takes_several(self.hint)


def read_flags(argv: Sequence[str], default: Any) -> list[Typed]:
    """Every field that ``argv`` sets, in its order, with all the values that follow a flag."""
    hints = dict(fields_of(default))
    fields = {flag_of(field): field for field in hints}
    words = [field for field, hint in hints.items() if is_positional(hint)]
    typed: list[Typed] = []
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = flag_of(name)
            field = fields.get(name, "")
            values = (value,) if equals else ()
            typed.append(Typed(f"--{name}", field, values, hints.get(field)))
        elif words and not (typed and typed[-1].takes_more()):
            field = words.pop(0)
            typed.append(Typed(field.upper(), field, (argument,), hints[field]))
        elif typed:
            typed[-1] = typed[-1]._replace(values=(*typed[-1].values, argument))
        else:
            typed.append(Typed("", "", (argument,), None))
    return typed


ONE_HYPHEN = re.compile("(?!--)[-\u2010-\u2015\u2212]+[a-z]")
"""A flag with one hyphen, or with what word processors and web pages make of two."""


def check_flags(argv: Sequence[str], typed: Sequence[Typed], default: Any) -> None:
    """Raise InputError for a flag that does not exist, or a value that its field cannot hold.

    A flag that is given twice is said: the last counts.
    """
    for argument in argv:
        if ONE_HYPHEN.match(argument) and argument not in ("-inf", "-nan"):
            name = known(re.search("[a-z].*", argument))[0]
            raise InputError(f"unknown flag {argument}: flags begin with two hyphens, --{name}")
    for number, one in enumerate(typed):
        if not one.shown:
            raise InputError(f"{' '.join(one.values)}: expected a flag before it, --FIELD VALUE")
        if not one.field:
            raise InputError(unknown_flag(one.shown.removeprefix("--"), default))
        check_values(one)
        if any(one.field == earlier.field for earlier in typed[:number]):
            note(f"{one.shown} is given twice: the last one counts, {' '.join(one.values)}")


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


def check_values(one: Typed) -> None:
    """Raise InputError for a value that the field cannot hold, none, or more than one of it."""
    if not takes_several(one.hint):
        check(bool(one.values), f"{one.shown} has no value: expected {expected(one.hint)}")
        several = (
            f"{one.shown} {' '.join(one.values)}: found {len(one.values)} values, expected one"
        )
        check(len(one.values) == 1, several)
    for text in one.values:
        problem = problem_of(text, one.hint)
        check(not problem, f"{one.shown} {text}: {problem}")
        empty = text == "" and Path in leaf_types(one.hint)
        check(not empty, f"{one.shown} is empty: expected a path")


Resolve = Callable[[Any], Any]
"""Of stages in a row: their config with folders, seeds and inputs filled in."""


def check_not_filled_in(config: Any, typed: Sequence[Typed], resolve: Resolve | None) -> None:
    """Raise InputError for a flag of a stage that stages in a row set themselves."""
    if resolve is None:
        return
    resolved = resolve(config)
    for one in typed:
        here, there = (value_of(whole, one.field) for whole in (config, resolved))
        check(
            here == there,
            f"{one.shown} has no effect: where stages run in a row, it is {there}",
        )
