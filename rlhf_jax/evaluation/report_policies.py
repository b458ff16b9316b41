"""What the report says of the policies: results, score distributions, tax, answers."""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation.figures import Panel, Series
from rlhf_jax.evaluation.report import (
    HUES,
    TITLES,
    Answer,
    Group,
    Groups,
    Row,
    RunRecord,
    Section,
    SideBySide,
    Table,
    done_figures,
    estimate,
    look_up,
    name_of,
    show,
)

SHOWN_PROMPTS = 64
BINS = 30
"""Of the histograms."""
FIGURES = {
    "win_rate": "win rate",
    "win_rate_by_people": "win rate by people",
    "gold": "gold",
    "gold_gain_in_sd": "gold gain (SDs)",
    "score": "reward model",
    "second_score": "second reward model",
    "kl": "KL (nats)",
    "length": "tokens",
    "ended": "ended",
    "distinct_2": "distinct‑2",
    "repeated_words": "repeated words",
}
"""Columns of the results."""


def policies_of(group: Group) -> list[str]:
    """Every evaluated policy, best-of-n among them, in the order of the first evaluation."""
    found = done_figures(group, "evaluate", "policies")
    return list(dict.fromkeys(policy for policies in found for policy in policies))


# --- results --------------------------------------------------------------------------------------


def results_section(groups: Groups) -> Section:
    rows = [(group, policy) for group in groups for policy in policies_of(group)]
    figures = lambda kind, row: done_figures(row[0], "evaluate", "policies", row[1], kind)
    names = lambda kind: list(
        dict.fromkeys(n for row in rows for f in figures(kind, row) for n in f)
    )
    judges, metrics = names("judges"), names("metrics")
    shown = {name: title for name, title in FIGURES.items() if any(figures(name, r) for r in rows)}
    paths = [*((name,) for name in shown), *(("judges", judge) for judge in judges)]
    paths += [("metrics", metric) for metric in metrics]
    cells = lambda group, policy: (
        show(estimate(done_figures(group, "evaluate", "policies", policy, *path))) for path in paths
    )
    table = Table(
        interval_caption(groups),
        ("policy", *shown.values(), *(f"judge: {judge}" for judge in judges), *metrics),
        [(name_of(policy, group, groups), *cells(group, policy)) for group, policy in rows],
    )
    text = (
        "Every policy answers the same held-out prompts. The gold scorer stands for people and is "
        "never the reward model; the judges labelled nothing. The first policy is the baseline: "
        "win rate (by gold, ties half; by people, where they judged on the labelling page) and "
        "gold gain (in standard deviations of its gold) are against it, and best of n is the one "
        "of n of its answers that the reward model likes best.",
    )
    return Section("results", "Results", text, (), [table] if rows else [])


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
            (g, policy): found
            for g, group in enumerate(groups)
            for policy in before_and_after(group)
            if (found := sampled(group, policy, figure))
        }
        if values:
            series = histograms(groups, values)
            panels.append(
                Panel(f"distribution_{figure}", title, figure, "share of answers", series)
            )
    text = ("One answer per held-out prompt and policy, before and after reinforcement learning.",)
    return Section("distributions", "Score distributions", text, panels)


def histograms(groups: Groups, values: dict[tuple[int, str], list[float]]) -> list[Series]:
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=BINS)
    series = []
    for i, ((g, policy), found) in enumerate(values.items()):
        share = np.histogram(found, edges)[0] / len(found)
        color = g if len(groups) > 1 else HUES.get(policy, 3 + i)
        shape = int(policy != "sft") if len(groups) > 1 else 0
        outline = [edges[0], *edges], [0.0, *share, 0.0], None, None
        label = name_of(policy, groups[g], groups)
        series.append(Series(label, *outline, "steps", color, shape))
    return series


def evaluation_samples(run: RunRecord) -> Sequence[Row]:
    return run.stages["evaluate"].samples if "evaluate" in run.stages else ()


def sampled(group: Group, policy: str, figure: str) -> list[float]:
    rows = [row for run in group.runs for row in evaluation_samples(run)]
    return [row[figure] for row in rows if row["policy"] == policy and row.get(figure) is not None]


def before_and_after(group: Group) -> list[str]:
    """The baseline, and PPO or else the last policy."""
    rows = [row for run in group.runs for row in evaluation_samples(run)]
    names = list(dict.fromkeys(row["policy"] for row in rows))
    return [*names[:1], *(["ppo"] if "ppo" in names[1:] else names[1:][-1:])]


# --- alignment tax --------------------------------------------------------------------------------

TAX_ORDER = ("pretrain", "sft_without_mix", "sft", "ppo_without_ptx", "ppo")


def tax_section(groups: Groups) -> Section:
    """What alignment cost on held-out text."""
    tables = [tax_table(groups, unit) for unit in ("nats_per_token", "bits_per_byte")]
    references = dict.fromkeys(name_of(reference(g), g, [g]) for g in groups if reference(g))
    text = [
        "Loss of each model on held-out text, and in parentheses its change from "
        f"{' or '.join(references)}.",
        *filter(None, (given_back(group, groups) for group in groups)),
    ]
    return Section("tax", "Alignment tax", text, (), [table for table in tables if table.rows])


def tax_table(groups: Groups, unit: str) -> Table:
    rows = []
    corpora = list(dict.fromkeys(c for group in groups for c in corpora_of(group, unit)))
    for group in groups:
        models = measured(group)
        models = [m for m in TAX_ORDER if m in models] + [m for m in models if m not in TAX_ORDER]
        for model in models if corpora else ():
            cells = [tax_cell(group, model, f"eval/{c}/{unit}") for c in corpora]
            rows.append((name_of(model, group, groups), *cells))
    return Table(f"Held-out text, {unit.replace('_', ' ')}", ("model", *corpora), rows)


def measured(group: Group) -> list[str]:
    """Models whose loss on text was measured."""
    return list(dict.fromkeys(m for text in done_figures(group, "evaluate", "text") for m in text))


def reference(group: Group) -> str:
    """The pretrained model if it was measured, else the evaluation's baseline."""
    baselines = done_figures(group, "evaluate", "baseline")
    return "pretrain" if "pretrain" in measured(group) else next(iter(baselines), "")


def corpora_of(group: Group, unit: str) -> list[str]:
    texts = done_figures(group, "evaluate", "text")
    names = dict.fromkeys(n for text in texts for losses in text.values() for n in losses)
    return [name.split("/")[1] for name in names if name.endswith(f"/{unit}")]


def tax_cell(group: Group, model: str, key: str) -> str:
    first = reference(group)
    texts = done_figures(group, "evaluate", "text")
    pairs = [(look_up(text, model, key), look_up(text, first, key)) for text in texts]
    value = show(estimate([loss for loss, _ in pairs]))
    change = estimate([a - b for a, b in pairs if a is not None and b is not None])
    return value if model == first or not change else f"{value} ({show(change, sign=True)})"


def given_back(group: Group, groups: Groups) -> str:
    """How much of the loss that plain PPO added the ptx term gives back, by corpus."""
    shares = []
    for corpus in corpora_of(group, "nats_per_token"):
        key, found = f"eval/{corpus}/nats_per_token", []
        for text in done_figures(group, "evaluate", "text"):
            sft, plain, ptx = (look_up(text, m, key) for m in ("sft", "ppo_without_ptx", "ppo"))
            if None not in (sft, plain, ptx) and plain > sft:
                found.append((plain - ptx) / (plain - sft))
        if found:
            shares.append(f"{show(estimate(found))} on {corpus}")
    head = name_of("Share of plain PPO's added loss that PPO-ptx gives back", group, groups)
    return f"{head}: {', '.join(shares)}." if shares else ""


# --- answers --------------------------------------------------------------------------------------


def samples_section(groups: Groups) -> Section:
    """Unselected answers: of the evaluation, or else of PPO's last logged iteration."""
    runs = [run for group in groups for run in group.runs]
    table = next((t for run in runs if (t := answers_of(run))), None)
    table = table or next((t for run in runs if (t := ppo_answers(run))), None)
    text = ("Text by models, shown as it came; marks like ⟦U+202E⟧ stand for control characters.",)
    return Section("answers", "Answers side by side", text, samples=table)


def answers_of(run: RunRecord) -> SideBySide | None:
    policies = before_and_after(Group("", [run]))
    rows = evaluation_samples(run)
    columns = [[row for row in rows if row["policy"] == policy] for policy in policies]
    shown = list(zip(*columns, strict=False))[:SHOWN_PROMPTS]
    if not shown:
        return None
    caption = f"The first {len(shown)} held-out prompts of {run.name}, unselected."
    titles = [TITLES.get(policy, policy) for policy in policies]
    return SideBySide(caption, titles, [(r[0]["prompt"], [*map(answer, r)]) for r in shown])


def ppo_answers(run: RunRecord) -> SideBySide | None:
    rows = run.stages["ppo"].samples if "ppo" in run.stages else ()
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    if not last:
        return None
    step = last[0]["step"]
    caption = f"Training prompts of {run.name} at PPO iteration {step} (no evaluation yet)."
    return SideBySide(caption, ["PPO"], [(row["prompt"], [answer(row)]) for row in last])


def answer(row: Row) -> Answer:
    formats = {
        "gold": "gold {:.2f}",
        "score": "score {:.2f}",
        "kl": "KL {:.2f}",
        "length": "{} tokens",
    }
    found = [text.format(row[name]) for name, text in formats.items() if row.get(name) is not None]
    return Answer(row["response"], " · ".join(found).replace("-", "−"))
