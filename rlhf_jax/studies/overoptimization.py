"""Over-optimisation: gold along two ways away from the SFT model, best-of-n and training.

Gao et al. 2022 drive a policy by a reward model, the proxy, and ask another scorer, the gold, what
it is worth. Along both ways the distance is d = √KL, and gold and proxy are what they are over the
SFT model's own answers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rlhf_jax.report.drawing import INK, STYLE, load_matplotlib
from rlhf_jax.report.figures import COLORS, band
from rlhf_jax.studies.laws import LAWS, Distances, fit, heldout_error, turn
from rlhf_jax.studies.measures import Curves, Measured, Result
from rlhf_jax.studies.study import Study

OWN = {"best_of_n": "quadratic", "training": "logarithmic"}
"""The law that Gao et al. found for each way."""
WAYS = {"best_of_n": "best of n", "training": "PPO"}
DASHED = (0, (4, 3))
WINDOW = 5
"""Iterations over whose mean the turn of training is looked for: one has a batch's noise."""
START = 0.01
"""Nats within which a policy's answers are the SFT model's: the first iterations, and best of 1."""
KL, PROXY = "objective/kl", "objective/scores"


def _names(way: str) -> dict[str, str]:
    """What a page calls the figures of a way."""
    title = WAYS[way]
    words = {
        "alpha": "α",
        "beta": "β",
        "peak": f"{title}: most gold over SFT",
        "peak_kl": "at nats",
        "lost": f"{title}: gold lost after",
        "end": f"{title}: gold over SFT at the end",
        "end_kl": "nats at the end",
        f"error_{OWN[way]}": f"error of {LAWS[OWN[way]].formula}",
        **{f"worse_{name}": f"more of {law.formula}" for name, law in LAWS.items()},
    }
    return {f"{way}_{figure}": text for figure, text in words.items()}


def _table(way: str, *figures: str) -> tuple[str, ...]:
    return tuple(f"{way}_{figure}" for figure in figures)


NAMES: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "held-out pairs ordered as labelled",
        **_names("best_of_n"),
        **_names("training"),
        "over_stopping": "gold over early stopping at the same KL",
    }
)
"""``Study.names`` of the figures below."""
TABLES: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "Reward models": ("accuracy",),
        "Best of n": _table("best_of_n", "alpha", "beta", "peak", "lost"),
        "PPO": (
            *_table("training", "alpha", "beta", "peak", "peak_kl", "lost", "end", "end_kl"),
            "over_stopping",
        ),
        **{
            f"Laws of {title}, beyond the distances of their fit": _table(
                way,
                f"error_{OWN[way]}",
                *(f"worse_{law}" for law in LAWS if law != OWN[way]),
            )
            for way, title in WAYS.items()
        },
    }
)
"""``Study.tables`` of them."""


class Way(NamedTuple):
    """Points of a way, in its order."""

    kl: Distances
    gold: Distances
    proxy: Distances


def gold_metric(task: str) -> str:
    """What training logs of the gold scorer where ``ppo.reward`` names gold:TASK with weight 0."""
    return f"objective/gold_{task}_scores"


def ways(curves: Curves, gold: str) -> dict[str, Way]:
    """Both ways of an arm; ``gold`` is the metric of training."""
    best, trained = curves["best_of_n"], curves["training"]
    return {
        "best_of_n": from_start(*(np.array(best[name]) for name in ("kl", "gold", "score"))),
        "training": from_start(*(np.array(trained[name]) for name in (KL, gold, PROXY))),
    }


def from_start(kl: Distances, gold: Distances, proxy: Distances) -> Way:
    """Gold and proxy over what they are at the points within ``START`` of the SFT model.

    Each way has a start of its own, as it has prompts of its own.
    """
    # An estimate of a KL that is nearly 0 may be below.
    kl = np.maximum(kl, 0.0)
    start = kl <= START
    return Way(kl, gold - gold[start].mean(), proxy - proxy[start].mean())


def accuracy(m: Measured) -> dict[str, float]:
    """``accuracy``: held-out pairs that the reward model orders as labelled."""
    return {"accuracy": m.reward["eval/accuracy"]} if "eval/accuracy" in m.reward else {}


def law_figures(curves: Curves, *, gold: str) -> dict[str, float]:
    """Coefficients, turns and errors of the laws along both ways.

    ``WAY_alpha`` and ``WAY_beta`` are those of the way's own law; ``WAY_peak`` is the most gold
    along it, at ``WAY_peak_kl`` nats, and ``WAY_lost`` what is lost until its end; there it is
    ``WAY_end``, at ``WAY_end_kl``. ``WAY_error_LAW`` is the law's error beyond the distances of its
    fit, and ``WAY_worse_LAW`` by how much it is over that of the way's own law: the two are of the
    same points, so that over seeds their difference has the smaller interval.
    """
    figures = {}
    for way, points in ways(curves, gold).items():
        d = np.sqrt(points.kl)
        alpha, beta = fit(LAWS[OWN[way]], d, points.gold)
        last = WINDOW if way == "training" else 1
        top = turn(points.kl, points.gold, window=last)
        figures |= {
            f"{way}_alpha": alpha,
            f"{way}_beta": beta,
            f"{way}_peak": top.gold,
            f"{way}_peak_kl": top.kl,
            f"{way}_lost": top.lost,
            f"{way}_end": float(points.gold[-last:].mean()),
            f"{way}_end_kl": float(points.kl[-last:].mean()),
        }
        errors = {name: heldout_error(law, d, points.gold) for name, law in LAWS.items()}
        figures |= {f"{way}_error_{name}": error for name, error in errors.items()}
        own = errors.pop(OWN[way])
        figures |= {f"{way}_worse_{name}": error - own for name, error in errors.items()}
    return figures


def derived(
    results: Mapping[str, Result], *, stopped: Mapping[str, str], gold: str
) -> dict[str, dict[str, float]]:
    """``law_figures`` of every arm; of those in ``stopped`` the end, and ``over_early_stopping``.

    A penalty holds these near the SFT model, where there is nothing to fit.
    """
    early = over_early_stopping(results, stopped=stopped, gold=gold)
    figures = {}
    for arm, result in results.items():
        own = law_figures(result.curves, gold=gold)
        if arm in stopped:
            own = {name: own[name] for name in ("training_end", "training_end_kl")}
        figures[arm] = {n: v for n, v in (own | early[arm]).items() if np.isfinite(v)}
    return figures


def over_early_stopping(
    results: Mapping[str, Result], *, stopped: Mapping[str, str], gold: str
) -> dict[str, dict[str, float]]:
    """``over_stopping``: gold at an arm's end less that of another arm's training at the same KL.

    ``stopped`` names for each arm, trained with a KL penalty, the one without that is stopped
    early. Both are means over ``WINDOW`` iterations; between two of them gold is linear in √KL. An
    arm that ends beyond the other's last KL has no such figure.
    """
    figures: dict[str, dict[str, float]] = {arm: {} for arm in results}
    for arm, other in stopped.items():
        if arm not in results or other not in results:
            continue
        own, without = (ways(results[each].curves, gold)["training"] for each in (arm, other))
        kl, end = own.kl[-WINDOW:].mean(), own.gold[-WINDOW:].mean()
        d, golds = (smoothed(values) for values in (np.sqrt(without.kl), without.gold))
        order = np.argsort(d)
        if d.min() <= np.sqrt(kl) <= d.max():
            early = np.interp(np.sqrt(kl), d[order], golds[order])
            figures[arm] = {"over_stopping": float(end - early)}
    return figures


def smoothed(values: Distances, window: int = WINDOW) -> Float[np.ndarray, "m"]:
    """Means of ``window`` neighbours."""
    return np.convolve(values, np.ones(window) / window, mode="valid")


def at_common_distances(
    seeds: Sequence[Way], *, window: int, points: int = 80
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "S n"], Float[np.ndarray, "S n"]]:
    """d, and each seed's gold and proxy at it, linear between means of ``window`` neighbours.

    Iterations of two seeds lie at different distances. d ends where the first seed does: beyond it
    the mean would be of other seeds.
    """
    d = [smoothed(np.sqrt(each.kl), window) for each in seeds]
    grid = np.linspace(max(x.min() for x in d), min(x.max() for x in d), points)
    rows = []
    for values in ([each.gold for each in seeds], [each.proxy for each in seeds]):
        ordered = [(np.argsort(x), smoothed(y, window), x) for x, y in zip(d, values, strict=True)]
        rows.append(np.stack([np.interp(grid, x[order], y[order]) for order, y, x in ordered]))
    return grid, rows[0], rows[1]


def draw_ways(
    study: Study,
    results: Mapping[str, Mapping[int, Result]],
    path: Path,
    *,
    columns: Mapping[str, Mapping[str, str]],
    gold: str,
) -> None:
    """``path`` with .svg and .png: both ways one below the other, gold solid and proxy dashed.

    A column has a title and its arms, each with a label. Lines are means over seeds at the same
    distance, and bands their 95 % intervals. Gold, and not the proxy, sets the scale.
    """
    matplotlib, figure_class = load_matplotlib()
    with matplotlib.rc_context(STYLE):
        size = (3.1 * len(columns) + 1.2, 2.7 * len(WAYS))
        figure = figure_class(figsize=size, layout="constrained")
        grid = figure.subplots(len(WAYS), len(columns), sharex="row", sharey="row", squeeze=False)
        for row, (way, name) in zip(grid, WAYS.items(), strict=True):
            golds = [0.0]
            for axes, (title, arms) in zip(row, columns.items(), strict=True):
                for n, (arm, label) in enumerate(arms.items()):
                    seeds = [ways(each.curves, gold)[way] for each in results.get(arm, {}).values()]
                    if seeds:
                        window = WINDOW if way == "training" else 1
                        draw_way(axes, seeds, COLORS[n], label, window=window)
                        golds += [value for each in seeds for value in each.gold]
                axes.axhline(0, color=INK, linewidth=0.8)
                axes.set_title(f"{name}, {title}", loc="left", fontsize=9)
            row[0].set_ylabel("over the SFT model")
            # Gold fills the panels, and a score that runs away leaves them.
            row[0].set_ylim(min(golds) - 0.1, 2.5 * max(golds) + 0.1)
        for axes in grid[-1]:
            axes.set_xlabel("√KL, √nats")
        handles, labels = grid[-1][0].get_legend_handles_labels()
        dashed = grid[-1][0].plot([], [], color=INK, linewidth=1, linestyle=DASHED)
        labels += ["the reward model's score"]
        figure.legend(handles + dashed, labels, loc="outside right upper", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(path.with_suffix(".svg"), metadata=metadata)
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})


def draw_way(axes, seeds: list[Way], color: str, label: str, *, window: int) -> None:
    """Gold with its band, and the proxy's score in units of its own."""
    d, golds, proxies = at_common_distances(seeds, window=window)
    gold, half = band(golds)
    axes.plot(d, gold, color=color, linewidth=1.5, label=f"gold, {label}")
    if len(seeds) > 1:
        axes.fill_between(d, gold - half, gold + half, color=color, alpha=0.18, linewidth=0)
    axes.plot(d, proxies.mean(axis=0), color=color, linewidth=1, linestyle=DASHED)
