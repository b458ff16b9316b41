"""Panels of curves and points: their data, how each series looks, in words and as CSV.

``drawing`` makes SVG of them. A series is told apart by dash or marker as well as by colour, so
that a page in grey, or read without seeing red and green apart, says the same.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from rlhf_jax.evaluation.metrics import CONFIDENCE

COLORS = ("#0a50c0", "#dc2f5e", "#00704a", "#6c117d", "#cf7a1f", "#27253c")
"""Light-mode colours of the series: apart by hue, by lightness, and to the colour-blind."""
DARK_COLORS = ("#6f86ff", "#f0704f", "#3fb8a4", "#f29af0", "#ecd455", "#eef4f4")
"""The same series on a dark page."""
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")
MARKERS = {
    "o": "M8 5a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M8 2h6v6h-6z",
    "^": "M11 1.5l3.5 6h-7z",
    "D": "M11 1.2l3.8 3.8-3.8 3.8-3.8-3.8z",
    "v": "M11 8.5l3.5-6h-7z",
    "P": "M9.8 2h2.4v1.8h1.8v2.4h-1.8v1.8h-2.4v-1.8h-1.8v-2.4h1.8z",
    "<": "M14 1.5v7l-6-3.5z",
    ">": "M8 1.5v7l6-3.5z",
}
"""matplotlib's name of a marker → its outline in a legend."""


class Series(NamedTuple):
    """One named curve or set of points; ``low`` and ``high`` bound its 95 % intervals."""

    label: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    low: Sequence[float | int] | None
    high: Sequence[float | int] | None
    kind: Literal["line", "faint", "points", "dots", "steps"]
    """points are joined, dots are not; steps are the outline of a histogram."""
    color: int
    """Index into the palette; -1 is neutral."""
    shape: int
    """Index of dash and marker."""


class Panel(NamedTuple):
    """One plot."""

    name: str
    """Of its CSV file; unique in a report."""
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    references: Sequence[tuple[str, float | int]] = ()
    """Named horizontal lines."""
    diagonal: bool = False
    """Draw y = x."""
    log_x: bool = False
    """Equal ratios of x are equally wide; each x is a tick."""
    whole_x: bool = False
    """Ticks of x at whole numbers only."""
    rows: Sequence[str] = ()
    """Names of rows from the top: y counts them from 0, and intervals are of x."""


# --- statistics of several seeds ------------------------------------------------------------------


def band(values: Float[np.ndarray, "S T"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and half-width t₀.₉₇₅,ₙ₋₁ s / √n of its 95 % interval, at each step.

    NaN marks a seed that did not log a step; the half-width is NaN where fewer than two did.
    """
    there = np.isfinite(values)
    n = there.sum(axis=0)
    mean = np.where(there, values, 0.0).sum(axis=0) / n
    square = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.sqrt(square / (n - 1) / n)
    return mean, half


def bounded(x: Any, y: Any, half: Any) -> tuple[list, list, list | None, list | None]:
    """x, y, low, high of a Series; without bounds when no half-width is known."""
    x, y, half = (np.asarray(values, float) for values in (x, y, half))
    if not np.isfinite(half).any():
        return x.tolist(), y.tolist(), None, None
    return x.tolist(), y.tolist(), (y - half).tolist(), (y + half).tolist()


# --- looks ----------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What tells a series from the others of its panel besides its colour."""

    dash: str
    """As in SVG's stroke-dasharray; empty is a solid line."""
    marker: str
    """A name in ``MARKERS``; empty draws none."""
    spaced: bool
    """The marker stands on some points of a line only."""


def look(series: Series) -> Look:
    """By kind and shape: lines by dash, and past the last dash by dash and marker."""
    dash, marker = DASHES[series.shape % len(DASHES)], [*MARKERS][series.shape % len(MARKERS)]
    if series.kind == "dots":
        return Look("", marker, False)
    if series.kind == "points":
        return Look(dash, marker, False)
    turn = series.shape // len(DASHES)
    spaced = series.kind == "line" and turn > 0
    return Look(dash, [*MARKERS][(turn - 1) % len(MARKERS)] if spaced else "", spaced)


def smooth(values: Sequence[float | int] | np.ndarray) -> np.ndarray:
    """Means over a window of a tenth of the curve, centred; shorter at its ends. NaN counts not."""
    values = np.asarray(values, float)
    half = max(len(values) // 20, 1)
    windows = [values[max(i - half, 0) : i + half + 1] for i in range(len(values))]
    return np.array([w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in windows])


# --- words and tables -----------------------------------------------------------------------------


def describe_panel(panel: Panel) -> str:
    """The panel in words, for those who do not see it: each series from its first to last point."""
    if panel.rows:
        return f"{panel.title}, {panel.x_label} of {len(panel.rows)} rows: {_named(panel)}."
    parts = []
    for s in panel.series:
        points = [(x, y) for x, y in zip(s.x, s.y, strict=True) if np.isfinite(y)]
        (x0, y0), (x1, y1) = points[0], points[-1]
        if s.kind == "steps":
            peak = max(points, key=lambda point: point[1])[0]
            parts.append(f"{s.label}: from {x0:.3g} to {x1:.3g}, most near {peak:.3g}")
        elif len(points) == 1:
            parts.append(f"{s.label}: {y0:.3g} at {x0:.3g}")
        else:
            parts.append(f"{s.label}: from {y0:.3g} at {x0:.3g} to {y1:.3g} at {x1:.3g}")
    parts += [f"{label}: {y:.3g}" for label, y in panel.references]
    return f"{panel.title}, {panel.y_label} against {panel.x_label}. {'; '.join(parts)}."


def _named(panel: Panel) -> str:
    """Each row's name and its value in each series."""
    values_of = {name: [] for name in panel.rows}
    for s in panel.series:
        for x, y in zip(s.x, s.y, strict=True):
            values_of[panel.rows[round(y)]].append(f"{s.label} {x:.3g}")
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in values_of.items())


def to_csv(panel: Panel) -> str:
    """Every plotted point: series, x, y, low, high."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["series", panel.x_label, panel.y_label, "low", "high"])
    for s in panel.series:
        blank = [""] * len(s.x)
        writer.writerows(
            [s.label, *map(_number, row)]
            for row in zip(s.x, s.y, s.low or blank, s.high or blank, strict=True)
        )
    writer.writerows([label, "", _number(y), "", ""] for label, y in panel.references)
    return text.getvalue()


def _number(value: Any) -> str:
    return value if value == "" else "" if not np.isfinite(value) else repr(float(value))
