"""What the report draws policies against: KL from the baseline, model size, a second reward."""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.report.figures import Panel, Series, bounded
from rlhf_jax.report.page import (
    HUES,
    TITLES,
    Group,
    Groups,
    Section,
    done_figures,
    estimate,
    name_of,
)
from rlhf_jax.report.policies import policies_of
from rlhf_jax.report.stages import curve, logged

# --- reward against KL ----------------------------------------------------------------------------


def frontier_section(groups: Groups) -> Section:
    """Score and gold against KL: training, evaluated policies, best of n."""
    panels = []
    for figure, title in (("gold", "Gold score"), ("score", "Reward model's score")):
        for kl, unit, axis in (("√KL", "√nats", root), ("KL", "nats", np.asarray)):
            series = [
                s for g in range(len(groups)) for s in frontier_series(groups, g, figure, axis)
            ]
            if series:
                name = f"frontier_{figure}_{'sqrt_kl' if axis is root else 'kl'}"
                x = f"{kl} from SFT ({unit})"
                panels.append(Panel(name, f"{title} against {kl}", x, figure, series))
    caption = (
        "What each nat of KL from SFT buys. The faint path is training, iteration by iteration; "
        "where gold falls while the reward model's score rises, the policy exploits its errors. "
        "Bars are 95 % intervals."
    )
    return Section("frontier", "Reward against KL", (), panels, caption=caption)


def root(kl) -> np.ndarray:
    """√KL; estimates just below 0 count as 0."""
    return np.sqrt(np.maximum(kl, 0))


def frontier_series(groups: Groups, g: int, figure: str, axis) -> list[Series]:
    """The points of a group: PPO while it trained, each policy, and best-of-n joined."""
    group = groups[g]

    def hue(policy: str, default: int) -> int:
        return g if len(groups) > 1 else HUES.get(policy, default)

    series = []
    if figure == "score" and {"objective/kl", "objective/scores"} <= logged(group, "ppo"):
        kl, scores = (curve(group, "ppo", f"objective/{name}")[1] for name in ("kl", "scores"))
        label = name_of("PPO in training", group, groups)
        path = (list(axis(kl)), list(scores), None, None)
        series.append(Series(label, *path, "faint", hue("ppo", 1), 0))
    policies = policies_of(group)
    best = [policy for policy in policies if policy.startswith("best_of_")]
    # Best-of-n is one sampler at several n, so its points are one curve.
    rows = [[policy] for policy in policies if policy not in best]
    for i, members in enumerate([*rows, best]):
        points = [p for policy in members if (p := frontier_point(group, policy, figure))]
        if points:
            x, y, ci = np.array(points).T
            several = "best of " + ", ".join(policy.removeprefix("best_of_") for policy in best)
            label = name_of(several if members is best else members[0], group, groups)
            kind = "points" if members is best else "dots"
            shape = g * (len(rows) + 1) + i
            series.append(Series(label, *bounded(axis(x), y, ci), kind, hue(members[0], 3), shape))
    return series


def frontier_point(
    group: Group, policy: str, figure: str, against: str = "kl"
) -> tuple[float, float, float] | None:
    """A policy's (KL, figure, half-width), or None where one was not measured."""
    x, y = (
        estimate(done_figures(group, "evaluate", "policies", policy, f)) for f in (against, figure)
    )
    return (x["mean"], y["mean"], y.get("ci", np.nan)) if x and y else None


# --- size -----------------------------------------------------------------------------------------


def size_section(groups: Groups) -> Section:
    """Gold, the task's own metrics and its judges against the number of parameters, by policy."""
    counted = [(n, group) for group in groups if (n := parameters_of(group))]
    of_size = sorted(counted, key=lambda pair: pair[0])
    if len({n for n, _ in of_size}) < 2:
        return Section("size", "Quality and size", ())
    policies = list(dict.fromkeys(policy for _, group in of_size for policy in policies_of(group)))
    others = dict.fromkeys(
        (kind, name)
        for kind in ("metrics", "judges")
        for _, group in of_size
        for policy in policies
        for measured in done_figures(group, "evaluate", "policies", policy, kind)
        for name in measured
    )
    panels = []
    for path in [("gold",), *others]:
        name = path[-1]
        series = [s for n, p in enumerate(policies) for s in size_series(of_size, p, path, n)]
        labels = (f"{name} against size".replace("_", " "), "parameters of the policy", name)
        panels.append(Panel(f"size_{name}", *labels, series, log_x=True))
    caption = (
        "Each point is one size of model, with everything else in its recipe; intervals as in the "
        "results."
    )
    return Section("size", "Quality and size", (), panels, caption=caption)


def parameters_of(group: Group) -> int | None:
    """Of the baseline's stage, else of any that counted them."""
    stages = [*done_figures(group, "evaluate", "baseline"), *TITLES]
    counts = [n for stage in stages for n in done_figures(group, stage, "parameters")]
    return counts[0] if counts else None


def size_series(
    of_size: Sequence[tuple[int, Group]], policy: str, path: tuple[str, ...], shape: int
) -> list[Series]:
    """One curve, or none if nobody measured it."""
    by_size = [
        (n, estimate(done_figures(group, "evaluate", "policies", policy, *path)))
        for n, group in of_size
    ]
    points = [(n, f["mean"], f.get("ci", np.nan)) for n, f in by_size if f]
    if not points:
        return []
    label = name_of(policy, of_size[0][1], [])
    x_y_bounds = bounded(*zip(*points, strict=True))
    return [Series(label, *x_y_bounds, "points", HUES.get(policy, 3), shape)]


# --- two rewards ----------------------------------------------------------------------------------


def tradeoff_section(groups: Groups) -> Section:
    """The task's gold score against a second reward, policy by policy."""
    series = []
    for g, group in enumerate(groups):
        for i, policy in enumerate(policies_of(group)):
            point = frontier_point(group, policy, "gold", against="second_score")
            if point:
                x, y, ci = np.array([point]).T
                label = name_of(policy, group, groups)
                hue = g if len(groups) > 1 else i
                shape = len(series)
                series.append(Series(label, *bounded(x, y, ci), "dots", hue, shape))
    caption = (
        "What more of the second reward costs in gold: policies trained on other mixes of the two, "
        "or with other floors, lie along a curve."
    )
    x = "mean score of the second reward model"
    panels = [Panel("tradeoff", "Gold score against second reward", x, "gold", series)]
    return Section("tradeoff", "Two rewards", (), panels if series else (), caption=caption)
