"""A study's figure: one figure against another, with intervals over seeds, as PNG and SVG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlhf_jax.evaluation.metrics import mean_ci
from rlhf_jax.report.drawing import INK, STYLE, load_matplotlib
from rlhf_jax.report.figures import COLORS, MARKERS
from rlhf_jax.studies.measures import Figures
from rlhf_jax.studies.study import Study

SIZE = (7.2, 4.6)
"""Inches."""
DOTS_PER_INCH = 150


def save_figure(
    study: Study,
    figures: Mapping[str, Mapping[int, Figures]],
    path: Path,
    *,
    labels: tuple[str, str],
) -> None:
    """``path`` with .png and .svg: each arm's mean along both axes, and its 95 % intervals.

    The SFT model and best-of-n, which train nothing, are joined by a line. An arm is told from
    others by its marker as well as by its colour, which the colour-blind see apart.
    """
    matplotlib, figure_class = load_matplotlib()
    points = {arm.name: point_of(figures[arm.name], study.axes) for arm in study.arms}
    points = {name: point for name, point in points.items() if point is not None}
    untrained = {a.name: a for a in study.arms if a.policy is None and a.name in points}
    trained = [name for name in points if name not in untrained]
    with matplotlib.rc_context(STYLE):
        figure = figure_class(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        if untrained:
            ordered = sorted((points[name] for name in untrained), key=lambda point: point[0][0])
            draw(axes, ordered, INK, "o", label="SFT and best of n", line="-")
            for name, arm in untrained.items():
                (x, _), (y, _) = points[name]
                label = str(arm.best_of) if arm.best_of > 1 else name
                axes.annotate(label, (x, y), xytext=(4, -9), textcoords="offset points", color=INK)
        for n, name in enumerate(trained):
            color, marker = COLORS[n % len(COLORS)], [*MARKERS][n % len(MARKERS)]
            draw(axes, [points[name]], color, marker, label=name, line="none")
        axes.set(xlabel=labels[0], ylabel=labels[1])
        n_seeds = sorted({len(seeds) for seeds in figures.values() if seeds})
        between = "–".join(str(n) for n in dict.fromkeys((n_seeds[0], n_seeds[-1])))
        title = f"mean and 95 % interval over n = {between} seeds"
        if n_seeds[-1] == 1:
            title = "n = 1 seed, which has no interval"
        axes.set_title(title, fontsize=9, loc="left")
        figure.legend(loc="outside right upper", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The same rows give the same bytes.
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(path.with_suffix(".svg"), metadata=metadata)
        figure.savefig(path.with_suffix(".png"), dpi=DOTS_PER_INCH, metadata={"Software": None})


Point = tuple[tuple[float, float], tuple[float, float]]
"""Mean and half-width along x, and along y; the half-width of a single seed is NaN."""


def point_of(figures: Mapping[int, Figures], axes: tuple[str, str]) -> Point | None:
    """Where an arm lies; None where it has no such figures."""
    both = [[own[name] for own in figures.values() if name in own] for name in axes]
    if not all(both):
        return None
    (x, y) = (mean_ci(values) for values in both)
    return (x["mean"], x["ci"]), (y["mean"], y["ci"])


def draw(axes, points: list[Point], color: str, marker: str, *, label: str, line: str) -> None:
    """Points with bars along both axes."""
    (x, x_half), (y, y_half) = (np.array(axis).T for axis in zip(*points, strict=True))
    axes.errorbar(
        *(x, y, np.nan_to_num(y_half), np.nan_to_num(x_half)),
        color=color,
        marker=marker,
        linestyle=line,
        linewidth=1.2,
        elinewidth=0.9,
        markersize=5.5,
        label=label,
    )
