"""What the report says of the policies: the table of results, and how scores are distributed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation.numbers import decimals_of, show
from rlhf_jax.report.figures import Panel, Series
from rlhf_jax.report.page import (
    HUES,
    Group,
    Groups,
    Row,
    RunRecord,
    Section,
    Table,
    done_figures,
    estimate,
    look_up,
    name_of,
)

BINS = 30
"""Of the histograms."""
FIGURES = {
    "win_rate": "win rate",
    "win_rate_by_people": "win rate by people",
    "gold": "gold",
    "gold_difference": "gold gain",
    "score": "reward model",
    "kl": "KL (nats)",
    "second_score": "second reward model",
    "length": "tokens",
}
"""Columns of the results, the most important first; the task's own metrics come after KL."""
OTHERS = {
    "gold_gain_in_sd": "gold gain (SDs)",
    "win_rate_at_equal_length": "win rate at equal length",
    "win_rate_by_reward_model": "win rate by reward model",
    "ended": "ended",
    "distinct_2": "distinct‑2",
    "repeated_words": "repeated words",
    "perplexity_by_baseline": "perplexity by the baseline",
}
"""Columns of the folded table, with the judges after them."""
AGAINST_BASELINE = ("win_rate", "gold_difference", "gold_gain_in_sd")
"""How the names of figures begin that say nothing of the baseline itself."""
MOST_COLUMNS = 8
"""Of a table, so that it fits; further ones are folded."""


def policies_of(group: Group) -> list[str]:
    """Every evaluated policy, best-of-n among them, in the order of the first evaluation."""
    tables = done_figures(group, "evaluate", "policies")
    return list(dict.fromkeys(policy for policies in tables for policy in policies))


def baseline_of(group: Group) -> str:
    """The policy that the others are compared with; empty where nothing was evaluated."""
    return next(iter([*done_figures(group, "evaluate", "baseline"), *policies_of(group)]), "")


# --- results --------------------------------------------------------------------------------------


class Rated(NamedTuple):
    """One row of the results."""

    group: Group
    kind: str
    """policies, or baselines: answers that no model of ours gave."""
    name: str

    def figures(self, *path: str) -> list:
        """What the finished evaluations say under a path of names."""
        return done_figures(self.group, "evaluate", self.kind, self.name, *path)

    def figure(self, path: Sequence[str]) -> Row | None:
        """One figure over all runs; without interval where it is compared with itself."""
        value = estimate(self.figures(*path))
        compared = path[0].startswith(AGAINST_BASELINE)
        if value and compared and self.name == baseline_of(self.group):
            return {"mean": value["mean"]}  # an interval of something compared with itself
        return value


def results_section(groups: Groups) -> Section:
    """The table of all policies, and folded tables of further measures."""
    rows = [Rated(group, "policies", policy) for group in groups for policy in policies_of(group)]
    rows += [
        Rated(group, "baselines", name)
        for group in groups
        for name in dict.fromkeys(
            name for baselines in done_figures(group, "evaluate", "baselines") for name in baselines
        )
    ]
    columns = main_columns(rows)
    main, others = columns[:MOST_COLUMNS], [*columns[MOST_COLUMNS:], *other_columns(rows)]
    caption = f"Results on {prompts_of(rows)}held-out prompts. {interval_caption(groups)}"
    tables = [results_table(caption, main, rows, groups, folded=False)]
    for start in range(0, len(others), MOST_COLUMNS):
        part = others[start : start + MOST_COLUMNS]
        named = ", ".join(title for title, _ in part)
        tables.append(
            results_table(f"More measures of them: {named}.", part, rows, groups, folded=True)
        )
    text = (
        "Every policy answers the same held-out prompts. The gold scorer stands for people and is "
        "never the reward model; the judges labelled nothing. The first policy is the baseline: "
        "win rate (by gold, ties half; by people, where they judged on the labelling page) and "
        "gold gain are against it, and best of n is the one of n of its answers that the reward "
        "model likes best.",
    )
    return Section("results", "Results", text, (), tables if rows else [])


Column = tuple[str, tuple[str, ...]]
"""Title, and where the figure is in a policy's record."""


def main_columns(rows: Sequence[Rated]) -> list[Column]:
    """pass@k first, then measures that all tasks have, and after KL those of the task itself."""
    columns = [(title, (name,)) for name, title in FIGURES.items() if measured(rows, name)]
    at = next((n for n, (_, path) in enumerate(columns, 1) if path == ("kl",)), len(columns))
    passes = nested_columns(rows, "pass_at", "pass@{}")
    return [*passes, *columns[:at], *nested_columns(rows, "metrics", "{}"), *columns[at:]]


def other_columns(rows: Sequence[Rated]) -> list[Column]:
    """Further measures, then the judges."""
    columns = [(title, (name,)) for name, title in OTHERS.items() if measured(rows, name)]
    return [*columns, *nested_columns(rows, "judges", "judge: {}")]


def measured(rows: Sequence[Rated], name: str) -> bool:
    """Whether any of the rows has a figure of this name."""
    return any(row.figures(name) for row in rows)


def nested_columns(rows: Sequence[Rated], kind: str, title: str) -> list[Column]:
    """Columns of figures that stand in a group, such as the task's metrics."""
    names = dict.fromkeys(n for row in rows for figures in row.figures(kind) for n in figures)
    return [(title.format(name), (kind, name)) for name in names]


def results_table(
    caption: str, columns: Sequence[Column], rows: Sequence[Rated], groups: Groups, *, folded: bool
) -> Table:
    """A column's figures have the same decimals."""
    figures = [[row.figure(path) for row in rows] for _, path in columns]
    cells = [[show(f, decimals=decimals_of(column)) for f in column] for column in figures]
    names = [
        name_of(row.name, row.group, groups) + " (no model)" * (row.kind == "baselines")
        for row in rows
    ]
    titles = ("policy", *(title for title, _ in columns))
    return Table(caption, titles, list(zip(names, *cells, strict=True)), folded)


def prompts_of(rows: Sequence[Rated]) -> str:
    """How many prompts, if all rows say the same."""
    counts = {n for row in rows for f in row.figures("gold") if (n := look_up(f, "n"))}
    return f"{counts.pop()} " if len(counts) == 1 else ""


def interval_caption(groups: Groups) -> str:
    """What ± means here."""
    evaluated = [(g, n) for g in groups if (n := len(done_figures(g, "evaluate", "policies")))]
    if all(n == 1 for _, n in evaluated):
        return "Mean ± 95 % interval over prompts; what another seed would change is not in it."
    counts = ", ".join(name_of(f"n = {n}", group, groups) for group, n in evaluated)
    alone = "; over prompts where n = 1" if any(n == 1 for _, n in evaluated) else ""
    return f"Mean ± 95 % interval over runs that differ in their seed only ({counts}{alone})."


# --- distributions --------------------------------------------------------------------------------


def distribution_section(groups: Groups) -> Section:
    """Histograms of gold and score, over all prompts (and seeds) of a group."""
    panels = []
    for figure, title in (("gold", "Gold score"), ("score", "Reward model's score")):
        values = {
            (g, policy): drawn
            for g, group in enumerate(groups)
            for policy in before_and_after(group)
            if (drawn := sampled(group, policy, figure))
        }
        if values:
            series = histograms(groups, values)
            panels.append(
                Panel(f"distribution_{figure}", title, figure, "share of answers", series)
            )
    caption = (
        "How the scores of the answers are distributed: one answer per held-out prompt and "
        "policy, before and after reinforcement learning."
    )
    return Section("distributions", "Score distributions", (), panels, caption=caption)


def histograms(groups: Groups, values: dict[tuple[int, str], list[float]]) -> list[Series]:
    """How the scores of each policy are distributed, in the same bins."""
    # Of all together: bins of their own would make equal policies look different.
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=BINS)
    series = []
    for i, ((g, policy), drawn) in enumerate(values.items()):
        share = np.histogram(drawn, edges)[0] / len(drawn)
        color = g if len(groups) > 1 else HUES.get(policy, 3 + i)
        outline = [edges[0], *edges], [0.0, *share, 0.0], None, None
        label = name_of(policy, groups[g], groups)
        series.append(Series(label, *outline, "steps", color, i))
    return series


def evaluation_samples(run: RunRecord) -> Sequence[Row]:
    """Rows of prompts with answers, of an evaluation that has logged any."""
    return run.stages["evaluate"].samples if "evaluate" in run.stages else ()


def sampled(group: Group, policy: str, figure: str) -> list[float]:
    """The finite values of a figure over all answers of a policy."""
    rows = [row for run in group.runs for row in evaluation_samples(run)]
    drawn = [row.get(figure) for row in rows if row["policy"] == policy]
    return [value for value in drawn if value is not None and np.isfinite(value)]


def before_and_after(group: Group) -> list[str]:
    """The baseline, and PPO or else the last policy."""
    rows = [row for run in group.runs for row in evaluation_samples(run)]
    names = list(dict.fromkeys(row["policy"] for row in rows))
    return [*names[:1], *(["ppo"] if "ppo" in names[1:] else names[1:][-1:])]
