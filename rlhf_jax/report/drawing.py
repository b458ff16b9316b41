"""Panels as small SVGs: for a web page, and as files of their own.

One SVG per panel, so that a phone can stack them. On the page, titles and legends are left to the
page, which can wrap, escape and set them in any script; colours are CSS variables, so that the page
chooses light or dark. A saved file has title, legend and colours in it.
"""

import base64
import io
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from markupsafe import escape

from rlhf_jax.errors import InputError, known
from rlhf_jax.evaluation.numbers import with_unit
from rlhf_jax.report.figures import (
    COLORS,
    MARKERS,
    Panel,
    Series,
    describe_panel,
    look,
)

INK, GRID, PAPER = "#5c6370", "#e3e5e8", "#fefefe"
VARIABLES = {
    INK: "var(--soft)",
    GRID: "var(--line)",
    PAPER: "var(--paper)",
    **{color: f"var(--c{i})" for i, color in enumerate(COLORS)},
}
SVG = "http://www.w3.org/2000/svg"
DRAWN_POINTS = 400
"""Longer curves are thinned to so many points for drawing; the CSV holds all."""
SIZES = {1: (4.6, 2.6), 2: (4.6, 2.6), 3: (3.8, 2.5)}
"""Panels beside each other in the page → width and height of one in inches."""
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


def draw(panel: Panel, columns: int = 3) -> str:
    """The panel as an ``<svg>`` element, the same text each time. InputError if not installed."""
    matplotlib, figure_class = load_matplotlib()
    with matplotlib.rc_context(STYLE):
        size = (7.0, 0.8 + 0.28 * len(panel.rows)) if panel.rows else SIZES[columns]
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


def _draw_series(axes, s: Series, *, across: bool) -> None:
    # More points than a panel can show would only make the page large.
    kept = np.unique(np.linspace(0, len(s.x) - 1, min(len(s.x), DRAWN_POINTS)).astype(int))

    def pick(values: Any) -> np.ndarray | None:
        return None if values is None else np.asarray(values, float)[kept]

    x, y, low, high = map(pick, (s.x, s.y, s.low, s.high))
    color = INK if s.color < 0 else COLORS[s.color % len(COLORS)]
    dash, marker, spaced = look(s)
    line = {
        "color": color,
        "linewidth": 1.6,
        "linestyle": (0, [*map(float, dash.split())]) if dash else "-",
    }
    shape = {"marker": marker, "markersize": 4.5}
    if s.kind == "steps":
        axes.fill_between(x, y, step="post", color=color, alpha=0.12, linewidth=0)
        axes.step(x, y, where="post", **line)
        return
    if s.kind == "dots":
        axes.plot(x, y, color=color, linestyle="none", **shape)
    elif s.kind == "points":
        axes.plot(x, y, **line, **shape, markeredgecolor=PAPER, markeredgewidth=0.7)
    elif s.kind == "faint":
        axes.plot(x, y, color=color, linewidth=1.1, alpha=0.45)
    else:
        axes.plot(x, y, **line, **(shape | {"markevery": 0.12} if spaced else {}))
    if low is not None and s.kind in ("dots", "points"):
        bars = partial(axes.hlines, y) if across else partial(axes.vlines, x)
        bars(low, high, color=color, linewidth=1.1)
    elif low is not None:
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)


def _set_limits(axes, panel: Panel) -> None:
    """Fit y to curves and error bars; a band over few seeds may be so wide that it is cut."""

    def finite(values: Iterable[float]) -> list[float]:
        return [value for value in values if np.isfinite(value)]

    values = [y for s in panel.series for y in finite(s.y)] + [y for _, y in panel.references]
    bars = [s for s in panel.series if s.low is not None and s.kind in ("dots", "points")]
    values += [y for s in bars for y in finite([*(s.low or ()), *(s.high or ())])]
    bottom, top = min(values), max(values)
    room = (top - bottom) * 0.07 or abs(top) * 0.1 or 1.0
    if any(s.kind == "steps" for s in panel.series):
        axes.set_ylim(0, top + room)
    else:
        axes.set_ylim(bottom - room, top + room)
    if panel.whole_x:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if panel.diagonal:
        axes.axline((0.5, 0.5), slope=1, color=INK, linewidth=1, linestyle=(0, (2, 2)))


def _for_page(svg: str, panel: Panel) -> str:
    """The drawing as part of a page.

    Without its prolog, named, with colours from the page, ids apart from others' and coordinates
    rounded to 1/100 pt.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>(?:(?!<metadata>).)*?</metadata>|<!--(?:(?!<!--).)*?-->",
        "",
        svg,
        flags=re.DOTALL,
    )
    # Ids count in the whole page: those of two drawings would be taken for each other.
    linked = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))

    def keep(match: re.Match) -> str:
        return f' id="{panel.name}-{match[1]}"' if match[1] in linked else ""

    svg = re.sub(r' id="([^"]*)"', keep, svg)
    svg = re.sub(r"(url\(|href=\")#", rf"\1#{panel.name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    box = known(re.search(r'viewBox="([^"]*)"', svg))[1]
    image = f'<svg viewBox="{box}" role="img" aria-label="{escape(describe_panel(panel))}">'
    return image + svg[svg.index(">") + 1 :]


# --- legends --------------------------------------------------------------------------------------


def legend(panel: Panel) -> list[tuple[str, str]]:
    """(swatch as ``<svg>``, label) of each series and reference; none for a single series."""
    swatch = '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true">{}</svg>'
    entries = [(swatch.format(mark), label) for mark, label in _marks(panel)]
    return entries if len(entries) > 1 else []


def _marks(panel: Panel) -> list[tuple[str, str]]:
    """(drawing in a box of 22 by 10, label) of each series and reference."""
    entries = [(_mark(s), s.label) for s in panel.series]
    return entries + [(DOTTED, label) for label, _ in panel.references]


DOTTED = '<path d="M0 5h22" stroke="var(--soft)" stroke-width="1.5" stroke-dasharray="2 2"/>'


def _mark(s: Series) -> str:
    color = "var(--soft)" if s.color < 0 else f"var(--c{s.color % len(COLORS)})"
    dash, marker, _ = look(s)
    if s.kind == "faint":
        return f'<path d="M0 5h22" stroke="{color}" stroke-width="1.2" opacity=".45"/>'
    line = f'<path d="M0 5h22" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>'
    return ("" if s.kind == "dots" else line) + (
        f'<path d="{MARKERS[marker]}" fill="{color}"/>' if marker else ""
    )


# --- files ----------------------------------------------------------------------------------------

LINE = 15
"""Points from one line of a file's title and legend to the next."""


def standalone(panel: Panel, drawn: str) -> str:
    """What ``draw`` gave, as a file: title and legend above it, the light page's colours."""
    box = known(re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn))
    width, height = map(float, box.groups())
    marks = _marks(panel) if len(_marks(panel)) > 1 else []
    top = LINE * (1 + len(marks)) + 8
    lines = [
        f'<g transform="translate(8 {LINE * n + 8})"><g fill="none">{mark}</g>'
        f'<text x="28" y="8.5" font-size="9" fill="#1d2129">{escape(label)}</text></g>'
        for n, (mark, label) in enumerate(marks, start=1)
    ]
    title = f'<text x="8" y="{LINE}" font-size="10" font-weight="bold">{escape(panel.title)}</text>'
    inner = f'<svg y="{top}" width="{width}" height="{height}" ' + drawn.removeprefix("<svg ")
    text = "\n".join(
        [
            f'<svg xmlns="{SVG}" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width:g} {top + height:g}" width="{width:g}pt" '
            f'height="{top + height:g}pt" font-family="DejaVu Sans, Arial, sans-serif">',
            f'<rect width="100%" height="100%" fill="{PAPER}"/>',
            *(title, *lines, inner, "</svg>\n"),
        ]
    )
    for color, variable in VARIABLES.items():
        text = text.replace(variable, color)
    return text


def as_link(svg: str) -> str:
    """A file's text as the address of a link, so that the page needs no other file."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
