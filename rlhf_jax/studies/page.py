"""The page of a study's results, made from its rows alone: tables, comparisons and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.config import StudyConfig
from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import InputError, counted
from rlhf_jax.evaluation.metrics import mean_ci
from rlhf_jax.evaluation.numbers import decimals_of, show
from rlhf_jax.studies.figure import save_figure
from rlhf_jax.studies.measures import Figures, Result
from rlhf_jax.studies.results import Row, results_of
from rlhf_jax.studies.statistics import Difference, holm, paired_difference, verdict
from rlhf_jax.studies.study import Study

NAMES = {
    "gold": "gold score",
    "gold_in_sd": "gold, SFT standard deviations over SFT",
    "gold_at_kl": "gold over best-of-n at the same KL, SFT standard deviations",
    "kl": "KL from SFT, nats",
    "win_rate": "wins against SFT",
    "win_rate_at_equal_length": "wins against SFT at equal length",
    "length": "tokens of an answer",
    "score": "reward model's score",
    "tax": "alignment tax, bits per byte over SFT",
    "seconds": "seconds of training",
}
"""Figures as a reader knows them; others go by their own name."""


class Comparison(NamedTuple):
    """An arm against the baseline in one figure."""

    arm: str
    figure: str
    difference: Difference | None
    p_holm: float
    verdict: str
    """higher, lower, not shown; or why there is no comparison."""


def write_page(study: Study, rows: Sequence[Row], config: StudyConfig) -> Path:
    """NAME.md, NAME.png and NAME.svg beside NAME.jsonl; where the page is."""
    name = config.file.stem
    figures = all_figures(study, rows)
    comparisons, left_out = compare_arms(study, rows, figures, few=config.few)
    names = names_of(study)
    x, y = study.axes
    labels = names.get(x, x), names.get(y, y)
    save_figure(study, figures, config.results / name, labels=labels)
    curves = ""
    if study.draw is not None:
        study.draw(study, by_arm(rows), config.results / f"{name}_curves")
        curves = f"![The curves of the arms, means over seeds]({name}_curves.png)"
    parts = [
        f"# {name}: {study.question}",
        f"<!-- Made of {name}.jsonl by the command below; edits are lost. -->",
        study.design,
        curves,
        f"![{labels[1]} against {labels[0]}, with 95 % intervals over seeds]({name}.png)",
        *(("## What it shows", study.findings) if study.findings else ()),
        "## Each arm",
        "Mean ± 95 % interval (Student's t) over the seeds of the whole chain; n is their number.",
        *arms_tables(study, figures),
        f"## Against {study.baseline}",
        *compared(study, comparisons),
        *(f"Left out: {why}." for why in left_out),
        "## What each arm changes",
        changes_list(study, rows),
        "## How it was made",
        made(study, rows, config),
    ]
    path = config.results / f"{name}.md"
    write_atomically(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def names_of(study: Study) -> dict[str, str]:
    """Figures as a reader knows them, those that the study names first and as it calls them."""
    return {**study.names, **NAMES, **study.names}


# --- figures and comparisons ----------------------------------------------------------------------


def all_figures(study: Study, rows: Sequence[Row]) -> dict[str, dict[int, Figures]]:
    """{arm: {seed: figures}}, derived ones and seconds of training among them."""
    found: dict[str, dict[int, Figures]] = {arm.name: {} for arm in study.arms}
    seconds = {(row["arm"], row["seed"]): row["seconds"].get("arm") for row in rows}
    for seed, arms in results_of(rows).items():
        more = study.derive(arms)
        for arm, own in arms.items():
            took = seconds[arm, seed]
            timed = {} if took is None else {"seconds": took}
            found[arm][seed] = {**own.figures, **more.get(arm, {}), **timed}
    return found


def by_arm(rows: Sequence[Row]) -> dict[str, dict[int, Result]]:
    """{arm: {seed: result}}."""
    found: dict[str, dict[int, Result]] = {}
    for seed, arms in results_of(rows).items():
        for arm, result in arms.items():
            found.setdefault(arm, {})[seed] = result
    return found


def of_figure(figures: Mapping[int, Figures], name: str) -> dict[int, float]:
    """{seed: value} of the seeds that have it."""
    return {seed: own[name] for seed, own in figures.items() if name in own}


def compare_arms(
    study: Study,
    rows: Sequence[Row],
    figures: Mapping[str, Mapping[int, Figures]],
    *,
    few: bool = False,
) -> tuple[list[Comparison], list[str]]:
    """Every arm against the baseline in every compared figure; and what was left out, in words."""
    pairs, left_out = paired_seeds(study, rows)
    differences: list[tuple[str, str, Difference | None, str]] = []
    for arm in study.arms:
        for name in study.compared if arm.name != study.baseline else ():
            own = of_figure(figures[arm.name], name)
            other = of_figure(figures[study.baseline], name)
            seeds = own.keys() & other.keys() & pairs[arm.name]
            if not seeds:
                continue
            values = ({seed: by_seed[seed] for seed in seeds} for by_seed in (own, other))
            try:
                differences.append((arm.name, name, paired_difference(*values, few=few), ""))
            except InputError as error:
                differences.append((arm.name, name, None, f"not compared: {error}"))
    # Over all comparisons of the page at once: each of them is a chance to find something.
    corrected = iter(holm([d.p for _, _, d, _ in differences if d is not None]))
    comparisons = []
    for arm, name, difference, why in differences:
        p = float("nan") if difference is None else next(corrected)
        said = why if difference is None else verdict(difference, p)
        comparisons.append(Comparison(arm, name, difference, p, said))
    return comparisons, left_out


def paired_seeds(study: Study, rows: Sequence[Row]) -> tuple[dict[str, set[int]], list[str]]:
    """The seeds in which each arm is a pair with the baseline, and in words those in which not.

    What both are made from must have come out equal: on another kind of machine the same SFT run
    ends with other parameters.
    """
    runs = {(row["arm"], row["seed"]): row["runs"] for row in rows}
    pairs: dict[str, set[int]] = {arm.name: set() for arm in study.arms}
    left_out = []
    for (arm, seed), own in sorted(runs.items()):
        other = runs.get((study.baseline, seed))
        if other is None:
            left_out.append(f"{arm} of seed {seed}, which has no {study.baseline}")
            continue
        differ = sorted(name for name in own.keys() & other.keys() if own[name] != other[name])
        if differ:
            left_out.append(
                f"{arm} of seed {seed}, whose {differ[0]} came out otherwise than that of "
                f"{study.baseline} (they were made on other machines, or by other versions)"
            )
        elif arm in pairs:
            pairs[arm].add(seed)
    return pairs, left_out


# --- tables ---------------------------------------------------------------------------------------


def arms_tables(study: Study, figures: Mapping[str, Mapping[int, Figures]]) -> list[str]:
    """The tables that the study asks for, each below its title; or one of all figures."""
    present = {name for seeds in figures.values() for own in seeds.values() for name in own}
    if not study.tables:
        known = names_of(study)
        names = [name for name in known if name in present] + sorted(present - known.keys())
        return [arms_table(study, names, figures)]
    parts = []
    for title, listed in study.tables.items():
        shown = [name for name in listed if name in present]
        parts += [f"### {title}", arms_table(study, shown, figures)]
    return parts


def arms_table(
    study: Study, names: Sequence[str], figures: Mapping[str, Mapping[int, Figures]]
) -> str:
    """A line an arm, a column a figure; behind a mean of fewer seeds stands their number."""
    known = names_of(study)
    # An arm of which none of them was measured has no line.
    arms = [
        arm.name for arm in study.arms if any(of_figure(figures[arm.name], name) for name in names)
    ]
    columns = []
    for name in names:
        values = {arm: of_figure(figures[arm], name) for arm in arms}
        means = {arm: mean_ci([*by_seed.values()]) for arm, by_seed in values.items() if by_seed}
        decimals = decimals_of(means.values())
        cells = {}
        for arm in arms:
            n = len(values[arm])
            fewer = f" (n = {n})" if 0 < n < len(figures[arm]) else ""
            cells[arm] = show(means.get(arm), decimals=decimals) + fewer
        columns.append(cells)
    lines = [
        f"| arm | n | {' | '.join(known.get(name, name) for name in names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    for arm in arms:
        cells = " | ".join(cells[arm] for cells in columns)
        lines.append(f"| {arm} | {len(figures[arm])} | {cells} |")
    return "\n".join(lines)


def compared(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    """How to read the comparisons, and a line for each; or why there are none, once."""
    if any(comparison.difference is not None for comparison in comparisons):
        return [explanation(study, comparisons), comparisons_table(study, comparisons)]
    reasons = sorted({comparison.verdict for comparison in comparisons})
    return [
        f"Nothing is compared yet ({'; '.join(reasons)})." if reasons else "Nothing to compare."
    ]


def explanation(study: Study, comparisons: Sequence[Comparison]) -> str:
    """How to read the comparisons."""
    tested = sum(comparison.difference is not None for comparison in comparisons)
    return (
        f"Mean of arm − {study.baseline} over pairs of one seed, with its 95 % interval (Student's "
        "t), p of the paired t-test, of the sign-flip test, and the first after Holm's correction "
        f"for {counted(tested, 'comparison')}. A direction is named only where the interval "
        "leaves out 0 and the corrected p is at most 0.05; else the difference is not shown, which "
        "does not show that there is none."
    )


def comparisons_table(study: Study, comparisons: Sequence[Comparison]) -> str:
    """A line a comparison."""
    lines = [
        "| arm | figure | difference | pairs | p | p, signs | p, Holm | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = names_of(study)
    for comparison in comparisons:
        d, name = comparison.difference, names.get(comparison.figure, comparison.figure)
        if d is None:
            lines.append(f"| {comparison.arm} | {name} | | | | | | {comparison.verdict} |")
            continue
        difference = show({"mean": d.mean, "ci": d.half_width}, sign=True)
        ps = " | ".join(map(show_p, (d.p, d.p_flips, comparison.p_holm)))
        lines.append(
            f"| {comparison.arm} | {name} | {difference} | {d.n} | {ps} | {comparison.verdict} |"
        )
    return "\n".join(lines)


def show_p(p: float) -> str:
    """A p-value to two figures; below 0.001 it says no more."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def changes_list(study: Study, rows: Sequence[Row]) -> str:
    """The fields in which each arm's own stage is not the base chain's."""
    changes = {row["arm"]: row["changes"] for row in rows}
    lines = []
    for arm in study.arms:
        listed = ", ".join(f"`{n}={v}`" for n, v in changes.get(arm.name, {}).items())
        picked = f"the best of {arm.best_of} answers" if arm.best_of > 1 else ""
        lines.append(f"- {arm.name}: {picked or listed or 'nothing'}")
    return "\n".join(lines)


def made(study: Study, rows: Sequence[Row], config: StudyConfig) -> str:
    """Command, seeds, machines, commits, and what all of it took."""
    seeds = sorted({row["seed"] for row in rows})
    machines = "; ".join(
        sorted({f"{row['machine']} ({', '.join(row['devices'])})" for row in rows})
    )
    commits = ", ".join(sorted({row["commit"] for row in rows if row["commit"]})) or "unknown"
    stages: dict[tuple[int, str], float] = {}
    for row in rows:
        for label, took in row["seconds"].items():
            stages[row["seed"], row["arm"] if label == "arm" else label] = took
    minutes = np.ceil(sum(stages.values()) / max(len(seeds), 1) / 60)
    missing = len(study.arms) * config.seeds - len(rows)
    lacking = f" {counted(missing, 'row')} of {config.seeds} seeds are still missing." * (
        missing > 0
    )
    return (
        f"`python -m experiments.study {config.file}`; seeds {', '.join(map(str, seeds))}; "
        f"commit {commits}; processors: {machines}. A seed takes {minutes:.0f} minutes "
        f"of stages.{lacking} Rows, each with the digests of what it was made from: "
        f"[{config.file.stem}.jsonl]({config.file.stem}.jsonl)."
    )
