"""Rounds of labels by people: what each learnt from, and what became of the policy."""

from collections.abc import Mapping

import numpy as np

from rlhf_jax.errors import counted, known
from rlhf_jax.evaluation.numbers import decimals_of, percent, show
from rlhf_jax.report.figures import Panel, Series, bounded
from rlhf_jax.report.page import (
    Answer,
    Feedback,
    Groups,
    Row,
    RunRecord,
    Section,
    SideBySide,
    Table,
)

COLUMNS = {
    "labels": "labels",
    "accuracy": "reward model's accuracy",
    "gold": "gold",
    "score": "reward model",
    "kl": "KL (nats)",
    "length": "tokens",
    "minutes": "minutes",
}
"""What of a round is shown; gold, score, KL and tokens are of its policy."""
PLOTS = {
    "gold": ("Gold score", "gold"),
    "kl": ("KL from SFT", "nats"),
    "accuracy": ("Reward model's accuracy", "share of held-out pairs"),
}


def rounds_section(groups: Groups) -> Section:
    """Nothing where no run was shown to people."""
    runs = [run for group in groups for run in group.runs if has_rounds(run)]
    several = len(runs) > 1
    panels, samples = [], []
    for name, (title, unit) in PLOTS.items():
        series = [s for n, run in enumerate(runs) for s in round_series(run, name, n)]
        if series:
            panels.append(Panel(f"rounds_{name}", title, "round", unit, series, whole_x=True))
    for run in runs:
        samples += round_samples(run, several=several)
    text = [sentence for run in runs for sentence in described(run, several=several)]
    return Section(
        "rounds",
        "Rounds of feedback",
        text,
        panels,
        [rounds_table(run, several=several) for run in runs],
        samples,
        caption="Policy and reward model after each round; round 0 is SFT. Bars are 95 % intervals "
        "over prompts.",
    )


def has_rounds(run: RunRecord) -> bool:
    """Whether people have labelled for a round that has finished."""
    return run.feedback is not None and len(run.feedback.rounds) > 0


def described(run: RunRecord, *, several: bool) -> list[str]:
    """Who labelled how much, how far they agree, and what it came to."""
    feedback = known(run.feedback)
    last = feedback.rounds[-1]
    of = f"{run.name}: " if several else ""
    rounds = last["round"]
    sentences = [
        f"{of}{counted(rounds, 'round')} of labels, {last.get('labels', 0)} labels in all by "
        f"{counted(feedback.labelers, 'labeler')}."
    ]
    if feedback.agreement:
        alike = feedback.agreement
        ci = alike.get("ci")
        half = f" ± {percent(ci)}" if ci is not None and np.isfinite(ci) else ""
        sentences.append(
            f"Where two labelers ordered the same pair, they agree on {percent(alike['mean'])}"
            f"{half} (n = {alike['n']} pairs)."
        )
    refused = [f"{of}{refusal(row)}" for row in feedback.refusals]
    return [" ".join(sentences), *refused, *outcome(feedback)]


def refusal(row: Row) -> str:
    """Why a round trained no policy."""
    ci = row["half_width"]
    half = f" ± {percent(ci)}" if np.isfinite(ci) else ""
    return (
        f"Round {row['round']} trained no policy on {row['labels']} labels: its reward model "
        f"ordered {percent(row['accuracy'])}{half} of {row['pairs']} held-out pairs as people did, "
        f"and {percent(row['gate'])} were asked for (--ppo.min-reward-accuracy)."
    )


def outcome(feedback: Feedback) -> list[str]:
    """Gold after the last round against before the first, where both were measured."""
    golds = [(r["round"], r["gold"]) for r in feedback.rounds if r.get("gold")]
    if len(golds) < 2:
        return ["The gold score of the rounds was not measured."]
    (first, before), (last, after) = golds[0], golds[-1]
    # The half-width of a difference of two means, taken as independent.
    apart = abs(after["mean"] - before["mean"]) > np.hypot(ci_of(before), ci_of(after))
    caveat = "" if apart else "; a difference is not shown"
    return [
        f"The policy's gold score was {show(before)} before (round {first}) and {show(after)} "
        f"after round {last}{caveat}."
    ]


def ci_of(figure: Row) -> float:
    """The half-width of a figure; 0 where none is known."""
    return figure.get("ci") or 0.0


def figure_of(row: Row, name: str) -> Row | float | int | None:
    """A figure of a round as the table and the plots name it; None where it was not measured."""
    if name == "minutes":
        seconds = row.get("seconds")
        return None if seconds is None else seconds / 60
    if name == "accuracy" and row.get(name) is not None:
        return {"mean": row[name], "ci": row.get("accuracy_ci")}
    return row.get(name)


def rounds_table(run: RunRecord, *, several: bool) -> Table:
    """Every round with its labels, the reward model and the policy after it."""
    rounds = known(run.feedback).rounds
    columns_with_figures = {
        n: t for n, t in COLUMNS.items() if any(figure_of(r, n) is not None for r in rounds)
    }
    columns = []
    for name in columns_with_figures:
        figures = [figure_of(row, name) for row in rounds]
        decimals = 0 if name == "labels" else decimals_of(figures)
        decimals = min(decimals, 1) if name == "minutes" else decimals
        columns.append([show(figure, decimals=decimals) for figure in figures])
    names = [f"round {row['round']}" for row in rounds]
    of = f" of {run.name}" if several else ""
    caption = (
        f"Rounds of feedback{of}. Mean ± 95 % interval over the prompts that each new policy is "
        "measured on; accuracy is the share of held-out pairs that the reward model orders as "
        "people did."
    )
    rows = list(zip(names, *columns, strict=True))
    return Table(caption, ("after", *columns_with_figures.values()), rows)


def round_series(run: RunRecord, name: str, number: int) -> list[Series]:
    """One curve over the rounds, if there are points."""
    points = []
    for row in known(run.feedback).rounds:
        value = figure_of(row, name)
        if isinstance(value, Mapping):
            ci = value.get("ci")
            points.append((row["round"], value["mean"], np.nan if ci is None else ci))
    if not points:
        return []
    return [Series(run.name, *bounded(*zip(*points, strict=True)), "points", number, number)]


def round_samples(run: RunRecord, *, several: bool) -> list[SideBySide]:
    """Answers before and after the last round that has any."""
    row = next((r for r in reversed(known(run.feedback).rounds) if r.get("samples")), None)
    if row is None:
        return []
    of = f" of {run.name}" if several else ""
    caption = f"The first prompts{of} before and after round {row['round']}, unselected."
    rows = [
        (sample["prompt"], [round_answer(sample, n) for n in range(2)]) for sample in row["samples"]
    ]
    return [SideBySide(caption, ["round before", f"round {row['round']}"], rows)]


def round_answer(sample: Row, n: int) -> Answer:
    """Before (0) or after (1) a round, with the scores that were recorded."""
    known = [name for name in ("gold", "score") if sample.get(name)]
    figures = [f"{name} {show(float(sample[name][n]), decimals=2)}" for name in known]
    return Answer(sample[("before", "after")[n]], " · ".join(figures))
