"""Numbers as people read them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

Figure = Mapping[str, Any] | float | int | None
"""{"mean", "ci"}, a bare number, or nothing."""


def with_unit(number: float | int) -> str:
    """Three figures and k, M or B (10³, 10⁶, 10⁹): 262k, 1.33M."""
    number = float(f"{number:.3g}")  # first, so that 999,999 is 1M
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def show(figure: Figure, *, sign: bool = False, decimals: int | None = None) -> str:
    """Mean and half-width, "0.912 ± 0.034"; a dash for what is not there.

    ``decimals`` by default are the figure's own.
    """
    mean, ci = _parts(figure)
    if mean is None or not math.isfinite(mean):
        return "–"
    digits = decimals_of([figure]) if decimals is None else decimals
    half = f" ± {ci:,.{digits}f}" if ci else ""
    text = f"{mean:{'+' if sign else ''},.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("+-")  # what rounds to zero has no sign
    return f"{text}{half}".replace("-", "−")


def decimals_of(figures: Iterable[Figure]) -> int:
    """How many decimals a column of these has.

    The narrowest interval keeps two figures, of at most three decimals; without intervals the
    largest value keeps four figures.
    """
    parts = [part for part in map(_parts, figures) if part[0] is not None]
    means = [mean for mean, _ in parts if math.isfinite(mean)]
    if all(isinstance(mean, int) for mean in means):
        return 0
    intervals = [ci for _, ci in parts if ci]
    if intervals:
        return min(max(1 - math.floor(math.log10(min(intervals))), 0), 3)
    largest = max(map(abs, means), default=0.0)
    return next((d for d, size in enumerate((1000, 100, 10)) if largest >= size), 3)


def percent(share: float) -> str:
    """A share as "88.7 %"; no decimal where it says no more: "50 %", "100 %"."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _parts(figure: Figure) -> tuple[Any, float | None]:
    """(mean, half-width); no half-width where none is known.

    Equal figures of several seeds have an interval of rounding errors only.
    """
    figure = figure if isinstance(figure, Mapping) else {"mean": figure}
    mean, ci = figure["mean"], figure.get("ci")
    known = ci is not None and math.isfinite(ci) and ci > 1e-9 * max(abs(mean or 0), 1)
    return mean, ci if known else None
