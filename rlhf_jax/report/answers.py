"""Answers side by side: where a policy gained most, where it lost most, and drawn at random."""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation.numbers import show
from rlhf_jax.report.page import (
    TITLES,
    Answer,
    Group,
    Groups,
    Row,
    RunRecord,
    Section,
    SideBySide,
    look_up,
)
from rlhf_jax.report.policies import before_and_after, evaluation_samples

EXTREMES = 8
"""Prompts in each of the tables of the largest gains and losses."""
DRAWN = 24
"""Prompts that are drawn at random."""
SEED = 0
"""The same run shows the same prompts."""
SCORES = {"gold": "gold score", "score": "reward model's score"}
"""What a gain is measured by: the first that both answers have."""

Pair = tuple[Row, ...]
"""A prompt's answer before and, if there are two policies, after."""


def samples_section(groups: Groups) -> Section:
    """Of the first run that has answers: of its evaluation, or of PPO's last logged iteration."""
    runs = [run for group in groups for run in group.runs]
    tables = next((t for run in runs if (t := evaluation_answers(run))), None)
    tables = tables or next((t for run in runs if (t := ppo_answers(run))), [])
    text = (
        "Text by models, shown as it came; marks like ⟦U+202E⟧ stand for control characters. The "
        "extremes show what a policy can do and where it fails; only the random draw says what is "
        "usual. KL is that of the answer, log π − log π of the baseline, in nats.",
    )
    return Section("answers", "Answers side by side", text, samples=tables)


def evaluation_answers(run: RunRecord) -> list[SideBySide]:
    """The first and the last policy side by side, on the prompts of an evaluation."""
    policies = before_and_after(Group("", [run]))
    rows = evaluation_samples(run)
    columns = [[row for row in rows if row["policy"] == policy] for policy in policies]
    pairs = list(zip(*columns, strict=False))
    if not pairs:
        return []
    titles = [TITLES.get(policy, policy) for policy in policies]
    return [*extremes(run, titles, pairs), random_answers(run, titles, pairs)]


def extremes(run: RunRecord, titles: Sequence[str], pairs: Sequence[Pair]) -> list[SideBySide]:
    """Largest gains and largest losses by the first score that is there; none of one policy."""
    by = next((name for name in SCORES if any(gain(pair, name) is not None for pair in pairs)), "")
    if not by:
        return []
    rated = [(change, pair) for pair in pairs if (change := gain(pair, by)) is not None]
    rated.sort(key=lambda item: -item[0])
    gains = [item for item in rated if item[0] > 0][:EXTREMES]
    losses = [item for item in reversed(rated) if item[0] < 0][:EXTREMES]
    tables = []
    for name, most, items in (("gains", "above", gains), ("losses", "below", losses)):
        if items:
            first, last = (show(abs(items[i][0]), decimals=2) for i in (0, -1))
            caption = (
                f"Largest {name}: {len(items)} of the {len(rated)} held-out prompts of {run.name}, "
                f"where {titles[-1]}'s {SCORES[by]} is furthest {most} {titles[0]}'s (by {first} "
                f"to {last})."
            )
            tables.append(side_by_side(caption, titles, [pair for _, pair in items], by))
    return tables


def random_answers(run: RunRecord, titles: Sequence[str], pairs: Sequence[Pair]) -> SideBySide:
    """Prompts drawn at random, always the same."""
    count = min(DRAWN, len(pairs))
    drawn = np.random.default_rng(SEED).choice(len(pairs), count, replace=False)
    caption = f"Random draw: {count} of the {len(pairs)} held-out prompts of {run.name}."
    return side_by_side(caption, titles, [pairs[i] for i in sorted(drawn)], "gold")


def side_by_side(caption: str, titles: Sequence[str], pairs: Sequence[Pair], by: str) -> SideBySide:
    """The answers of each pair, the second with its gain by ``by``."""
    rows = []
    for pair in pairs:
        changes = [None, gain(pair, by)]
        answers = [answer(row, by, change) for row, change in zip(pair, changes, strict=False)]
        rows.append((pair[0]["prompt"], answers))
    return SideBySide(caption, titles, rows)


def gain(pair: Pair, by: str) -> float | None:
    """Score of the second answer − the first's; None unless both are numbers."""
    values = [look_up(row, by) for row in pair]
    if len(values) < 2 or not all(v is not None and np.isfinite(v) for v in values):
        return None
    return values[-1] - values[0]


def ppo_answers(run: RunRecord) -> list[SideBySide]:
    """What PPO sampled in its last logged iteration."""
    rows = run.stages["ppo"].samples if "ppo" in run.stages else ()
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    if not last:
        return []
    step = last[0]["step"]
    caption = f"Training prompts of {run.name} at PPO iteration {step} (no evaluation yet)."
    return [
        SideBySide(caption, ["PPO"], [(row["prompt"], [answer(row, "", None)]) for row in last])
    ]


def answer(row: Row, by: str, change: float | None) -> Answer:
    """The text with its figures, and in parentheses the change of the one it is compared by."""
    formats = {"gold": "gold {}", "score": "score {}", "kl": "KL {}"}
    figures = []
    for name, text in formats.items():
        if row.get(name) is not None:
            figures.append(text.format(show(float(row[name]), decimals=2)))
            if name == by and change is not None:
                figures[-1] += f" ({show(change, sign=True, decimals=2)})"
    if row.get("length") is not None:
        figures.append(f"{row['length']} tokens")
    return Answer(row["response"], " · ".join(figures))
