"""Panels of curves and points as small SVGs for a web page, and as CSV.

One SVG per panel, so that a phone can stack them. Titles and legends are left to the page, which
can wrap, escape and set them in any script; colours are CSS variables, so that the page chooses
light or dark.
"""

import csv
import io
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float
from markupsafe import escape

from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.metrics import CONFIDENCE
from rlhf_jax.evaluation.numbers import with_unit

COLORS = ("#0b62a8", "#c2410c", "#0f766e", "#9d2f7f", "#a16207", "#4d5b8c")
"""Light-mode colours of the series; in the SVG they become ``var(--c0)`` ..."""
INK, GRID, PAPER = "#5c6370", "#e3e5e8", "#fefefe"
VARIABLES = {
    INK: "var(--soft)",
    GRID: "var(--line)",
    PAPER: "var(--paper)",
    **{color: f"var(--c{i})" for i, color in enumerate(COLORS)},
}
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")
MARKERS = {
    "o": "M8 5a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M8 2h6v6h-6z",
    "^": "M11 1.5l3.5 6h-7z",
    "D": "M11 1.2l3.8 3.8-3.8 3.8-3.8-3.8z",
    "v": "M11 8.5l3.5-6h-7z",
}
"""matplotlib's name of a marker → its outline in a legend."""
DRAWN_POINTS = 400
"""Longer curves are thinned to so many points for drawing; the CSV holds all."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf_jax",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


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


# --- drawing --------------------------------------------------------------------------------------


def draw(panel: Panel) -> str:
    """The panel as an ``<svg>`` element, the same text each time. InputError if not installed."""
    matplotlib, figure_class = load_matplotlib()
    with matplotlib.rc_context(STYLE):
        size = (7.0, 0.8 + 0.28 * len(panel.rows)) if panel.rows else (3.8, 2.5)
        figure = figure_class(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for series in panel.series:
            _draw_series(axes, series, across=bool(panel.rows))
        for _, y in panel.references:
            axes.axhline(y, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.log_x:
            axes.set_xscale("log")
            ticks = sorted({x for series in panel.series for x in series.x})
            # matplotlib's own labels, powers of ten, would be TeX in the SVG.
            axes.set_xticks(ticks, [with_unit(x) for x in ticks])
            axes.minorticks_off()
        if panel.rows:
            axes.set_yticks(range(len(panel.rows)), panel.rows)
            axes.set_ylim(len(panel.rows) - 0.4, -0.6)
        else:
            _set_limits(axes, panel)
        text = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    return _for_page(text.getvalue(), panel)


def load_matplotlib() -> tuple[Any, Any]:
    """The package and its Figure. Imported late: training needs none of it, and it is an extra."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "the report draws with matplotlib, which is not installed: "
            'pip install "rlhf_jax[report]"'
        ) from None
    return matplotlib, Figure


def _draw_series(axes, s: Series, *, across: bool) -> None:
    kept = np.unique(np.linspace(0, len(s.x) - 1, min(len(s.x), DRAWN_POINTS)).astype(int))
    pick = lambda values: None if values is None else np.asarray(values, float)[kept]
    x, y, low, high = map(pick, (s.x, s.y, s.low, s.high))
    color = INK if s.color < 0 else COLORS[s.color % len(COLORS)]
    dash = DASHES[s.shape % len(DASHES)]
    line = {
        "color": color,
        "linewidth": 1.6,
        "linestyle": (0, [*map(float, dash.split())]) if dash else "-",
    }
    marker = {"marker": [*MARKERS][s.shape % len(MARKERS)], "markersize": 4.5}
    if s.kind == "steps":
        axes.fill_between(x, y, step="post", color=color, alpha=0.12, linewidth=0)
        axes.step(x, y, where="post", **line)
        return
    if s.kind == "dots":
        axes.plot(x, y, color=color, linestyle="none", **marker)
    elif s.kind == "points":
        axes.plot(x, y, **line, **marker, markeredgecolor=PAPER, markeredgewidth=0.7)
    else:
        axes.plot(x, y, **line, alpha=0.45 if s.kind == "faint" else 1.0)
    if low is not None and s.kind in ("dots", "points"):
        bars = partial(axes.hlines, y) if across else partial(axes.vlines, x)
        bars(low, high, color=color, linewidth=1.1)
    elif low is not None:
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)


def _set_limits(axes, panel: Panel) -> None:
    """Fit y to curves and error bars; a band over few seeds may be so wide that it is cut."""
    finite = lambda values: [v for v in values if np.isfinite(v)]
    values = [y for s in panel.series for y in finite(s.y)] + [y for _, y in panel.references]
    bars = [s for s in panel.series if s.low is not None and s.kind in ("dots", "points")]
    values += [y for s in bars for y in finite([*s.low, *s.high])]
    bottom, top = min(values), max(values)
    room = (top - bottom) * 0.07 or abs(top) * 0.1 or 1.0
    if any(s.kind == "steps" for s in panel.series):
        axes.set_ylim(0, top + room)
    else:
        axes.set_ylim(bottom - room, top + room)
    if panel.diagonal:
        axes.axline((0.5, 0.5), slope=1, color=INK, linewidth=1, linestyle=(0, (2, 2)))


def _for_page(svg: str, panel: Panel) -> str:
    """Drop the prolog, name the image, take colours from the page, keep ids apart from others',
    round coordinates to 1/100 pt."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    linked = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
    keep = lambda m: f' id="{panel.name}-{m[1]}"' if m[1] in linked else ""
    svg = re.sub(r' id="([^"]*)"', keep, svg)
    svg = re.sub(r"(url\(|href=\")#", rf"\1#{panel.name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    box = re.search(r'viewBox="([^"]*)"', svg)[1]
    image = f'<svg viewBox="{box}" role="img" aria-label="{escape(describe(panel))}">'
    return image + svg[svg.index(">") + 1 :]


def legend(panel: Panel) -> list[tuple[str, str]]:
    """(swatch as ``<svg>``, label) of each series and reference; none for a single series."""
    entries = [(_swatch(s), s.label) for s in panel.series]
    entries += [(DOTTED, label) for label, _ in panel.references]
    return entries if len(entries) > 1 else []


def _swatch(s: Series) -> str:
    color = "var(--soft)" if s.color < 0 else f"var(--c{s.color % len(COLORS)})"
    dash, outline = DASHES[s.shape % len(DASHES)], [*MARKERS.values()][s.shape % len(MARKERS)]
    line = f'<path d="M0 5h22" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>'
    mark = f'<path d="{outline}" fill="{color}"/>'
    drawn = {"dots": mark, "points": line + mark}.get(s.kind, line)
    opacity = ' opacity=".5"' if s.kind == "faint" else ""
    return f'<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"{opacity}>{drawn}</svg>'


DOTTED = (
    '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true">'
    '<path d="M0 5h22" stroke="var(--soft)" stroke-width="1.5" stroke-dasharray="2 2"/></svg>'
)


def describe(panel: Panel) -> str:
    """The panel in words, for those who do not see it: each series from its first to last point."""
    if panel.rows:
        return f"{panel.title}, {panel.x_label} of {len(panel.rows)} rows: {_named(panel)}."
    parts = []
    for s in panel.series:
        shown = [(x, y) for x, y in zip(s.x, s.y, strict=True) if np.isfinite(y)]
        (x0, y0), (x1, y1) = shown[0], shown[-1]
        if s.kind == "steps":
            peak = max(shown, key=lambda point: point[1])[0]
            parts.append(f"{s.label}: from {x0:.3g} to {x1:.3g}, most near {peak:.3g}")
        elif len(shown) == 1:
            parts.append(f"{s.label}: {y0:.3g} at {x0:.3g}")
        else:
            parts.append(f"{s.label}: from {y0:.3g} at {x0:.3g} to {y1:.3g} at {x1:.3g}")
    parts += [f"{label}: {y:.3g}" for label, y in panel.references]
    return f"{panel.title}, {panel.y_label} against {panel.x_label}. {'; '.join(parts)}."


def _named(panel: Panel) -> str:
    """Each row's name and its value in each series."""
    found = {name: [] for name in panel.rows}
    for s in panel.series:
        for x, y in zip(s.x, s.y, strict=True):
            found[panel.rows[round(y)]].append(f"{s.label} {x:.3g}")
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in found.items())


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
