"""What the report says of the runs and their stages: facts, costs, learning curves."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy

from rlhf_jax.evaluation.metrics import CONFIDENCE
from rlhf_jax.evaluation.numbers import show
from rlhf_jax.report.figures import Panel, Series, band, bounded, smooth
from rlhf_jax.report.page import (
    HUES,
    TITLES,
    Group,
    Groups,
    Row,
    Section,
    StageRecord,
    Table,
    done_figures,
    estimate,
    name_of,
)

# --- facts and costs ------------------------------------------------------------------------------


def runs_section(groups: Groups) -> Section:
    """Which code ran on what, what each stage took, and what is missing."""
    runs = [run for group in groups for run in group.runs]
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    facts = [(name, *(run.facts.get(name, "–") for run in runs)) for name in names]
    rows = [
        stage_row(stage, group, groups)
        for stage in TITLES
        for group in groups
        if any(stage in run.stages for run in group.runs)
    ]
    columns = ("stage", "seconds", "per second", "peak MiB", "result", "params sha256")
    tables = [
        Table(
            "Stages: what each took (speed is the median of what was logged) and came to.",
            columns,
            rows,
        ),
        Table(
            "Runs: what they are, and what they ran on.", ("", *(run.name for run in runs)), facts
        ),
    ]
    missing = [f"Missing in {run.name}: {'; '.join(run.missing)}." for run in runs if run.missing]
    return Section("runs", "Stages and runs", missing, (), tables)


def stage_row(stage: str, group: Group, groups: Groups) -> tuple[str, ...]:
    """A stage of a group of runs: what it took, and what came of it."""
    records = [run.stages[stage] for run in group.runs if stage in run.stages]
    figures = [key_figures(stage, record) for record in records]
    names = dict.fromkeys(name for figures_of_run in figures for name in figures_of_run)
    result = ", ".join(f"{n} {show(estimate([f.get(n) for f in figures]))}" for n in names)
    hashes = [str(sha)[:12] for sha in done_figures(group, stage, "params_sha256")]
    return (
        name_of(stage, group, groups),
        show(estimate(done_figures(group, stage, "seconds"))),
        throughput(records),
        show(estimate(done_figures(group, stage, "peak_memory_mib"))),
        result or "–",
        " ".join(hashes) or "–",
    )


def throughput(records: Sequence[StageRecord]) -> str:
    """The median of the logged rates, which leaves compilation and stops out."""
    for unit in ("episodes", "tokens"):
        name = f"{unit}_per_second"
        # A median, as a stop or a slow disk makes single rates low and never high.
        rates = [[row[name] for row in r.metrics if row.get(name)] for r in records]
        medians = [float(np.median(rates_of_run)) for rates_of_run in rates if rates_of_run]
        if medians:
            return f"{show(estimate(medians))} {unit}"
    return "–"


DPO_FIGURES = ("accuracy", "margin", "change_chosen")
"""Of its held-out figures, those that the table of stages shows."""


def key_figures(stage: str, record: StageRecord) -> dict[str, Any]:
    """The one to three figures that say how a stage went."""
    done = record.done or {}
    if stage == "comparisons":
        names = {"comparisons": "prompts", "noise_ceiling": "noise ceiling"}
        chosen = {label: done.get(name) for name, label in names.items()}
    elif stage == "evaluate":
        policies = done.get("policies", {})
        # A chain's policy by its name; of an evaluation that somebody put together, the last.
        row = policies.get("ppo", next(reversed(policies.values()), {}))
        chosen = {"PPO wins": row.get("win_rate"), "KL": row.get("kl")}
    elif stage.startswith("ppo"):
        last = record.metrics[-1] if record.metrics else {}
        chosen = {"score": last.get("objective/scores"), "KL": last.get("objective/kl")}
    else:
        heldout = done.get("heldout", {})
        bits = {n.split("/")[1]: v for n, v in heldout.items() if n.endswith("/bits_per_byte")}
        figures = {n.removeprefix("eval/"): v for n, v in heldout.items()}
        if stage == "dpo":
            figures = {n: v for n, v in figures.items() if n in DPO_FIGURES}
        chosen = {f"{corpus} bits/byte": v for corpus, v in bits.items()} or figures
    return {label: value for label, value in chosen.items() if value is not None}


# --- learning curves ------------------------------------------------------------------------------


class Curve(NamedTuple):
    """A panel of training metrics; a pattern's ``*`` stands for one name, which labels it."""

    title: str
    unit: str
    metrics: Mapping[str, Literal["line", "faint", "points"]]
    """Metric pattern → how it is drawn (``Series.kind``)."""


GRADIENT = Curve("Gradient norm", "before clipping", {"grad_norm": "line"})
CHANGES = tuple(
    Curve(title, "nats", {f"change_{name}": "faint", f"eval/change_{name}": "points"})
    for name, title in (
        ("chosen", "Change of log π: better answers"),
        ("rejected", "Change of log π: worse answers"),
        ("either", "Change of log π: either answer"),
    )
)
"""Where the probability went: below 0 in the last one, to answers that nobody ranked."""
LOGPROBS = Curve(
    "Log π of a pair's answers",
    "nats per answer",
    {"logprob_chosen": "line", "logprob_rejected": "line"},
)
PREFERENCES = (
    Curve("Pair accuracy", "share", {"accuracy": "faint", "eval/accuracy": "points"}),
    Curve("Loss", "nats per pair", {"loss": "faint"}),
    Curve("Margin", "score", {"margin": "faint", "eval/margin": "points"}),
    GRADIENT,
)
CURVES = {
    "pretrain": (
        Curve("Loss", "nats per token", {"loss": "faint", "eval/*/nats_per_token": "points"}),
        Curve("Held-out text", "bits per byte", {"eval/*/bits_per_byte": "points"}),
        GRADIENT,
    ),
    "sft": (Curve("Loss", "nats per token", {"loss": "faint", "eval/loss": "points"}), GRADIENT),
    "reward": PREFERENCES,
    "dpo": (*PREFERENCES, *CHANGES, LOGPROBS),
    "ppo": (
        Curve("Reward model's score", "score", {"objective/scores": "line"}),
        Curve("KL from SFT", "nats per episode", {"objective/kl": "line"}),
        Curve("Entropy", "nats per token", {"policy/entropy_avg": "line"}),
        Curve("Value: explained variance", "share", {"val/var_explained": "line"}),
        Curve("Approximate KL of updates", "nats per token", {"policy/approxkl_avg": "line"}),
        Curve("Clipped ratios", "share of tokens", {"policy/clipfrac*_avg": "line"}),
        Curve("Loss on pretraining text", "nats per token", {"loss/ptx_avg": "line"}),
        Curve("Value loss", "½ (score error)²", {"loss/value_avg": "line"}),
        Curve("Gradient norms", "before clipping", {"policy/*grad_norm": "line"}),
        Curve("Response length", "tokens", {"response_length": "line"}),
        # What some algorithms and options log; none of it, no panel.
        Curve("Each reward's score", "score", {"objective/*_scores": "line"}),
        Curve("KL in the loss", "nats per token", {"loss/kl_avg": "line"}),
        Curve(
            "Prompts whose answers score alike",
            "share of prompts",
            {"objective/zero_spread_groups": "line"},
        ),
        Curve(
            "Dynamic sampling: prompts",
            "prompts per iteration",
            {"sampling/prompts": "line", "sampling/missing_prompts": "line"},
        ),
        Curve(
            "Dynamic sampling: learnt from",
            "share of prompts drawn",
            {"sampling/learnt_prompts": "line"},
        ),
        Curve("Best answer to a prompt", "return", {"objective/best_reward": "line"}),
        Curve("Moving baseline", "return", {"objective/baseline": "line"}),
        Curve("Older answers: their policy", "KL, nats", {"objective/stale_kl": "line"}),
        Curve("Older answers: their weights", "share, mean", {"val/importance_*": "line"}),
        Curve("Pair accuracy", "share", {"accuracy": "line"}),
        Curve("Margin", "score", {"margin": "line"}),
        *CHANGES,
        LOGPROBS,
    ),
}
VARIANTS = {"sft": ("sft", "sft_without_mix"), "ppo": ("ppo", "ppo_without_ptx")}
"""Stages whose curves share the panels of another's; the rest stand alone."""


def curve_section(groups: Groups, stage: str) -> Section:
    """The learning curves of a stage."""
    title = TITLES[stage][0].upper() + TITLES[stage][1:]
    panels = curve_panels(groups, stage, {})
    caption = f"{title}, step by step. {curve_caption(groups, panels)}"
    return Section(stage, f"{title}: learning curves", (), panels, caption=caption)


def curve_caption(groups: Groups, panels: Sequence[Panel]) -> str:
    """What lines and shades of these panels are."""
    parts = []
    if any(series.kind == "faint" for panel in panels for series in panel.series):
        parts.append(
            "Faint lines are what training logged, the lines over them their means over a tenth of "
            "the curve; points are held out."
        )
    if any(len(group.runs) > 1 for group in groups):
        parts.append(
            "Lines are means over the seeds that reached a step, shades their 95 % intervals (cut "
            "at the panel's edge where few seeds make them wide)."
        )
    return " ".join(parts)


def curve_panels(
    groups: Groups, stage: str, references: Mapping[str, Sequence[tuple[str, Any]]]
) -> list[Panel]:
    """The panels of a stage that have data; ``references`` are lines by title of the panel."""
    panels = []
    for spec in CURVES[stage]:
        series = curve_series(groups, VARIANTS.get(stage, (stage,)), spec)
        if series:
            words = "".join(c if c.isalnum() else " " for c in spec.title.lower()).split()
            name = "_".join([stage, *words])
            lines = references.get(spec.title, ())
            panels.append(Panel(name, spec.title, "step", spec.unit, series, lines))
    return panels


def curve_series(groups: Groups, stages: Sequence[str], spec: Curve) -> list[Series]:
    """Group × stage × metric, each a curve where it was logged."""
    stages = [s for s in stages if any(logged(group, s) for group in groups)]
    # Over all groups, so that a metric has its shape and colour whichever of them logged it.
    names = sorted({name for group in groups for s in stages for name in logged(group, s)})
    metrics = [(n, k) for p, k in spec.metrics.items() for n in names if fnmatchcase(n, p)]
    solid = [name for name, kind in metrics if kind != "faint"]
    series = []
    for g, group in enumerate(groups):
        for v, stage in enumerate(stages):
            for name, kind in metrics:
                if name not in logged(group, stage):
                    continue
                label = metric_label(name) if len(metrics) > 1 else ""
                parts = (label, TITLES[stage] if len(stages) > 1 else "")
                parts = (*parts, group.label if len(groups) > 1 else "")
                m = solid.index(name) if name in solid else -1
                shape = (g * len(stages) + v) * max(len(solid), 1) + max(m, 0)
                color = curve_color(g, len(groups), stage, len(stages), m, len(solid))
                text = " · ".join(filter(None, parts)) or metric_label(name)
                x, y, low, high = bounded(*curve(group, stage, name))
                series.append(Series(text, x, y, low, high, kind, color, shape))
                if kind == "faint" and len(x) >= SMOOTHED:
                    label = f"{text}, smoothed"
                    means = smooth(y).tolist()
                    series.append(Series(label, x, means, None, None, "line", color, shape))
    return series


SMOOTHED = 10
"""Logged steps from which a noisy curve is drawn smoothed too."""


def curve_color(g: int, groups: int, stage: str, stages: int, m: int, metrics: int) -> int:
    """Colour tells groups apart, else stages, else metrics, neutral what is not held out (m < 0).

    The shape tells all apart.
    """
    if groups > 1:
        return g
    return HUES[stage] if stages > 1 or metrics < 2 else m


def logged(group: Group, stage: str) -> set[str]:
    """Names of the metrics that some run of the group logged."""
    records = [run.stages[stage] for run in group.runs if stage in run.stages]
    return {
        n for r in records for row in r.metrics for n, value in row.items() if value is not None
    }


def curve(group: Group, stage: str, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(step, mean over seeds, half-width) of a logged metric; NaN half-widths for one seed."""
    records = [run.stages[stage] for run in group.runs if stage in run.stages]
    logs = [{r["step"]: r[metric] for r in c.metrics if r.get(metric) is not None} for c in records]
    steps = np.array(sorted({step for log in logs for step in log}))
    return steps, *band(np.array([[log.get(t, np.nan) for t in steps] for log in logs if log]))


def metric_label(metric: str) -> str:
    """What a legend calls a metric: "held out", a corpus, or its own last name."""
    parts = metric.split("/")
    if parts[0] == "eval":
        return parts[1] if len(parts) == 3 else "held out"
    return parts[1].replace("_", " ") if len(parts) == 2 else "training"


# --- reward model ---------------------------------------------------------------------------------


def reward_section(groups: Groups) -> Section:
    """Calibration, accuracy against the labeler's noise, learning curves."""
    series, text, ceilings = [], [], []
    for g, group in enumerate(groups):
        bins = [b for rows in done_figures(group, "reward", "calibration") for b in rows]
        if bins:
            label = group.label if len(groups) > 1 else "held-out pairs"
            hue = g if len(groups) > 1 else HUES["reward"]
            series.append(Series(label, *reliability(bins), "dots", hue, g))
        accuracy = estimate(done_figures(group, "reward", "heldout", "eval/accuracy"))
        ceiling = estimate(done_figures(group, "comparisons", "noise_ceiling"))
        if ceiling:
            ceilings.append((name_of("noise ceiling", group, groups), ceiling["mean"]))
        if ceiling and accuracy:
            text.append(
                f"{name_of('Reward model', group, groups)}: {show(accuracy)} of held-out pairs are "
                f"ordered as labelled; the labeler's own noise allows {show(ceiling)} (gap "
                f"{show(ceiling['mean'] - accuracy['mean'])})."
            )
    panels = curve_panels(groups, "reward", {"Pair accuracy": ceilings})
    if series:
        labels = "predicted P(preferred)", "observed share"
        calibration = Panel("reward_calibration", "Calibration", *labels, series, diagonal=True)
        panels.insert(0, calibration)
    return Section("reward", "Reward model", text, panels, caption=reward_caption(groups, panels))


def reward_caption(groups: Groups, panels: Sequence[Panel]) -> str:
    """What is drawn of the reward model, calibration included."""
    parts = ["The reward model.", curve_caption(groups, panels)]
    if any(panel.diagonal for panel in panels):
        parts.append(
            "Calibration: pairs binned by how sure the model is of the one it prefers; on the "
            "dotted diagonal it is right as often as it says. Bars are 95 % Wilson intervals that "
            "take pairs as independent, so they are somewhat short (pairs share answers)."
        )
    return " ".join(filter(None, parts))


def reliability(bins: Sequence[Row]) -> tuple[list, list, list, list]:
    """predicted, observed, low, high; bins of several seeds stand side by side."""
    bins = sorted((b for b in bins if b["count"]), key=lambda b: b["predicted"])
    bounds = [
        scipy.stats.binomtest(round(b["observed"] * b["count"]), b["count"]).proportion_ci(
            CONFIDENCE, "wilson"
        )
        for b in bins
    ]
    columns = [b["predicted"] for b in bins], [b["observed"] for b in bins]
    return *columns, [b.low for b in bounds], [b.high for b in bounds]
