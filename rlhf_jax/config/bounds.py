"""Which numbers a field may hold, stated beside it: ``lr: Positive = 1e-3``.

Every class checks its own when it is made, so presets, saved configs and flags are checked alike.
NaN and infinity are no settings; whole numbers fit int32 and others float32, as JAX computes.
"""

import math
import struct
import typing
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Annotated, Any, NamedTuple

from rlhf_jax.errors import check

LARGEST_WHOLE = 2**31 - 1
LARGEST, SMALLEST = 3.4028234e38, 1.1754944e-38
"""Of float32; what is smaller counts as 0 there."""


class Bounds(NamedTuple):
    """From ``low`` to ``high``; ``over`` and ``below`` leave out the end itself."""

    low: float
    high: float = math.inf
    over: bool = False
    below: bool = False

    def holds(self, number: Any) -> bool:
        """Whether ``number`` lies within; NaN lies nowhere."""
        above = number > self.low if self.over else number >= self.low
        return bool(above and (number < self.high if self.below else number <= self.high))

    def __str__(self) -> str:
        if self.low == -math.inf and self.high == math.inf:
            return ""
        if self.high == math.inf:
            return f" over {self.low:g}" if self.over else f", {self.low:g} or more"
        opening, closing = "(" if self.over else "[", ")" if self.below else "]"
        return f" in {opening}{self.low:g}, {self.high:g}{closing}"


Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
BatchRows = Annotated[int, Bounds(1, 1_000_000)]
"""Rows that are computed at once; where there are fewer, empty ones fill the batch."""
Width = Annotated[int, Bounds(1, 1_000_000)]
WidthOrZero = Annotated[int, Bounds(0, 1_000_000)]
"""Of parts of a model: the product of two that are larger is more than XLA can count."""
ContextTokens = Annotated[int, Bounds(1, 16_000_000)]
"""The longest sequence that a model reads."""
BlockTokens = Annotated[int, Bounds(2, 16_000_000)]
"""Tokens of a row that is filled with texts."""
Seed = Annotated[int, Bounds(0)]
"""A larger or negative one would be cut to 32 bits, and so be another's."""
Positive = Annotated[float, Bounds(0, over=True)]
PositiveOrZero = Annotated[float, Bounds(0)]
OverOne = Annotated[float, Bounds(1, over=True)]
Finite = Annotated[float, Bounds(-math.inf)]
Share = Annotated[float, Bounds(0, 1)]
ShareOverZero = Annotated[float, Bounds(0, 1, over=True)]
ShareBelowOne = Annotated[float, Bounds(0, 1, below=True)]


class Number(NamedTuple):
    """What a field with numbers may hold."""

    kind: type
    bounds: Bounds

    @property
    def expected(self) -> str:
        """What an error asks for: "a whole number, 1 or more"."""
        return ("a whole number" if self.kind is int else "a number") + str(self.bounds)

    def problem(self, value: Any) -> str:
        """What is wrong with ``value``, as the end of a sentence; empty if nothing is."""
        whole = self.kind is int
        is_number = not isinstance(value, bool) and isinstance(value, Integral if whole else Real)
        if not is_number or not self.bounds.holds(value):
            return f"expected {self.expected}"
        size: float = abs(value)  # ty: ignore[invalid-assignment] - numbers.Real has no order there
        if size > (LARGEST_WHOLE if whole else LARGEST):
            most = LARGEST_WHOLE if whole else f"{LARGEST:.2g}"
            return f"expected {self.expected}, at most {most}"
        if not whole and 0 < size < SMALLEST:
            return f"expected {self.expected}; as float32 it is 0"
        if not whole and self.bounds.below and not self.bounds.holds(as_float32(value)):
            return f"expected {self.expected}; as float32 it is {self.bounds.high:g}"
        return ""


def as_float32(number: float) -> float:
    """The nearest float32, which is what programs compute with. OverflowError beyond its range."""
    return struct.unpack("f", struct.pack("f", number))[0]


def numbers_of(config_class: type) -> Iterator[tuple[str, Number]]:
    """The fields of ``config_class`` itself that hold numbers, be it None or several besides."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    for name, hint in hints.items():
        number = number_in(hint)
        if number is not None:
            yield name, number


def number_in(hint: Any) -> Number | None:
    """The bounded number in an annotation: alone, in a union with None, or in a tuple."""
    bounds = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Bounds)]
    if bounds:
        return Number(typing.get_args(hint)[0], bounds[0])
    inner = map(number_in, typing.get_args(hint))
    return next((number for number in inner if number is not None), None)


def check_bounds(config: Any, prefix: str = "") -> None:
    """Raise InputError for the first number of ``config`` that is none its field may hold.

    ``prefix`` is what stands before its fields on the command line ("optim.").
    """
    for name, number in numbers_of(type(config)):
        value = getattr(config, name)
        for each in value if isinstance(value, tuple) else (value,):
            problem = "" if each is None else number.problem(each)
            check(not problem, f"{prefix}{name}={each!r}: {problem}")
