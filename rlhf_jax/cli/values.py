"""What may stand behind a flag, as the annotation of its field says, and what is wrong with a text.

Texts that pass are those that tyro reads; a slip is one line here, a box of several there.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.config.bounds import number_in


def takes_several(hint: Any) -> bool:
    """Whether any number of texts may follow: the field is a tuple."""
    return tuple in leaf_types(hint)


def expected(hint: Any) -> str:
    """What one text must be: ``a number over 0``, ``cosine, linear or constant``."""
    number, choices, leaves = number_in(hint), choices_in(hint), list(leaf_types(hint))
    if number is not None:
        what = [number.expected]
    else:
        what = list(choices) or ["a path" if Path in leaves else "a text"]
    return either([*what, *["None"] * (types.NoneType in leaves)])


def problem_of(text: str, hint: Any) -> str:
    """What is wrong with ``text``, as the end of a sentence; empty if nothing is."""
    number, choices, leaves = number_in(hint), choices_in(hint), list(leaf_types(hint))
    if text == "None" and types.NoneType in leaves:
        return ""
    if number is not None:
        return number.problem(parsed(text, number.kind))
    if choices and text not in choices:
        return f"expected {expected(hint)}{suggestion(text, choices)}"
    return ""


def choices_in(hint: Any) -> tuple[str, ...]:
    """The words of an annotation that allows some only: a Literal's, or True and False."""
    if hint is bool:
        return ("True", "False")
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return tuple(map(str, arguments))
    # Of Annotated only the first argument is a type, the others are its bounds.
    inner = map(choices_in, arguments[:1] if hasattr(hint, "__metadata__") else arguments)
    return next(filter(None, inner), ())


def suggestion(text: str, choices: Sequence[str]) -> str:
    """``; did you mean cosine?`` where one of the choices is near, whatever its case."""
    lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(text.lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]}?" if near else ""


def either(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


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
