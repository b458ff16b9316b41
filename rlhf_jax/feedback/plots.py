"""Coordinates of small plots; a template draws them as SVG, so no script and no style is inline."""

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 420.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 12.0, 26.0


class Point(NamedTuple):
    x: float
    y: float
    low: float
    """Ends of the error bar."""
    high: float
    text: str


class Tick(NamedTuple):
    at: float
    text: str


class Plot(NamedTuple):
    points: list[list[Point]]
    """Of each series."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    band: tuple[float, float] | None
    """Top and height of a horizontal band."""

    def path(self, series: int) -> str:
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points[series])


Series = Sequence[tuple[float, float, float]]
"""(x, y, half-width of y's interval); a point whose y is NaN is left out."""


def plot(
    *series: Series, band: tuple[float, float] | None = None, zero: bool = False
) -> Plot | None:
    """Scaled to the data, with round tick marks; None if there is nothing to draw."""
    shown = [[point for point in each if math.isfinite(point[1])] for each in series]
    points = [point for each in shown for point in each]
    if not points:
        return None
    half = lambda point: point[2] if math.isfinite(point[2]) else 0.0
    lows = [y - half((x, y, h)) for x, y, h in points] + ([band[0]] if band else [])
    highs = [y + half((x, y, h)) for x, y, h in points] + ([band[1]] if band else [])
    y_ticks = round_ticks(min(lows + ([0.0] if zero else [])), max(highs))
    xs = [x for x, _, _ in points]
    # Rounds are whole numbers.
    ticks = round_ticks(min(xs), max(xs))
    x_ticks = [x for x in ticks if min(xs) <= x <= max(xs) and x == round(x)]
    x_of = _scale(min(xs), max(xs), LEFT + 8, WIDTH - RIGHT - 8)
    y_of = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    return Plot(
        [
            [
                Point(
                    x_of(x),
                    y_of(y),
                    y_of(y - half((x, y, h))),
                    y_of(y + half((x, y, h))),
                    f"{y:.3g}",
                )
                for x, y, h in each
            ]
            for each in shown
        ],
        [Tick(x_of(x), f"{x:g}") for x in x_ticks],
        [Tick(y_of(y), f"{y:g}") for y in y_ticks],
        (y_of(band[1]), y_of(band[0]) - y_of(band[1])) if band else None,
    )


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
