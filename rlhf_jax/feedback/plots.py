"""Coordinates of small plots; a template draws them as SVG, so no script and no style is inline."""

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 420.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 12.0, 26.0


class Point(NamedTuple):
    """A figure of one round, in the coordinates of the drawing."""

    x: float
    y: float
    low: float
    """Ends of the error bar."""
    high: float
    round: str
    text: str
    """The value, with its interval."""


class Tick(NamedTuple):
    """A mark of an axis."""

    at: float
    text: str


class Plot(NamedTuple):
    """What a template draws."""

    points: list[Point]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    reference: float | None
    """Height of a line to compare with."""

    @property
    def path(self) -> str:
        """The points as SVG's polyline takes them."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


Series = Sequence[tuple[int, float, float]]
"""(round, y, half-width of y's interval); a point whose y is NaN is left out."""


def plot(
    series: Series,
    *,
    limits: tuple[float, float] | None = None,
    reference: float | None = None,
) -> Plot | None:
    """Drawn with its intervals and 0, or between ``limits``; None if there is nothing to draw.

    A share has limits. Neither axis begins at the smallest value: a small difference looks small.
    """
    bars = [_bar(*point, *(limits or (-math.inf, math.inf))) for point in series]
    bars = [point for point in bars if math.isfinite(point[1])]
    if not bars:
        return None
    ends = limits or (0.0, *(end for point in bars for end in point[2:4]))
    y_ticks = round_ticks(min(ends), max(ends))
    xs = [float(point[0]) for point in bars]
    # Rounds are whole numbers.
    x_ticks = [x for x in round_ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs) and x == int(x)]
    x_of = _scale(min(xs), max(xs), LEFT + 12, WIDTH - RIGHT - 12)
    y_of = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    return Plot(
        [
            Point(x_of(x), y_of(y), y_of(low), y_of(high), f"{x:g}", text)
            for x, y, low, high, text in bars
        ],
        [Tick(x_of(x), f"{x:g}") for x in x_ticks],
        [Tick(y_of(y), f"{y:g}") for y in y_ticks],
        None if reference is None else y_of(reference),
    )


def _bar(x: int, y: float, half: float, least: float, most: float):
    """(x, y, ends of its interval as far as they can be, the figure in words)."""
    if not (math.isfinite(half) and half):
        return x, y, y, y, f"{y:.3g}"
    return x, y, max(y - half, least), min(y + half, most), f"{y:.3g} ± {half:.2g}"


def round_ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / about))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(n * step, 10) for n in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float):
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)
