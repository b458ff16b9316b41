"""The report: one HTML page of run folders, finished or not, that opens offline; CSVs beside it.

    python -m experiments.report runs/quickstart
    python -m experiments.report runs/seed0 runs/seed1 runs/seed2 --out report.html

Runs whose configs are equal apart from seed and folder are a group: mean ± 95 % over its seeds.
Every plotted series is in ``<name of the page>_data/*.csv``. ``report_tables.txt`` lists them, and
the next report of that name deletes those of the list that it does not write.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.cli import main
from rlhf_jax.config import ReportConfig
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.errors import check
from rlhf_jax.report import answers as report_answers
from rlhf_jax.report import policies as report_policies
from rlhf_jax.report import recipe as report_recipe
from rlhf_jax.report import rounds as report_rounds
from rlhf_jax.report import stages as report_stages
from rlhf_jax.report import tax as report_tax
from rlhf_jax.report import tradeoffs as report_tradeoffs
from rlhf_jax.report import verdict as report_verdict
from rlhf_jax.report.drawing import load_matplotlib
from rlhf_jax.report.page import Group, RunRecord, render
from rlhf_jax.report.records import read_chain, stage_folders
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.records import dotted_fields, read_object

NOT_COMPARED = ("run.", "parallel.", "cache", "data.cache", "force")
"""Config fields that do not tell groups apart (``run.data_seed`` does)."""

LIST = "report_tables.txt"
"""In the folder of the CSVs: those that a report wrote. Any other file there is somebody else's."""

LABEL_LENGTH = 40
"""Longer differences of configs are listed in the table of runs only."""


def run(config: ReportConfig) -> None:
    """Write the page, and say where it is."""
    check(
        len(config.folders) > 0, "no run folder given: python -m experiments.report RUN [RUN ...]"
    )
    write(config.folders, config.out)
    say(f"report: {config.out}")


def write(folders: Sequence[Path], out: Path) -> None:
    """Write the report of ``folders`` to ``out``; nothing is written on an error.

    Raises InputError for a folder that holds no run, a damaged record, or without matplotlib.
    """
    out = Path(out)
    check(not out.is_dir(), f"--out {out} is a folder, expected the name of an HTML file")
    check_writable(out)
    load_matplotlib()
    groups = group_runs([Path(folder) for folder in folders])
    runs = [run for group in groups for run in group.runs]
    sections = [
        report_policies.results_section(groups),
        report_answers.samples_section(groups),
        report_tradeoffs.frontier_section(groups),
        report_tradeoffs.tradeoff_section(groups),
        report_tradeoffs.size_section(groups),
        report_policies.distribution_section(groups),
        report_tax.tax_section(groups),
        report_rounds.rounds_section(groups),
        report_stages.reward_section(groups),
        *(report_stages.curve_section(groups, name) for name in ("ppo", "dpo", "sft", "pretrain")),
        report_stages.runs_section(groups),
        report_recipe.recipe_section(groups),
    ]
    page, tables = render(
        f"InstructGPT: {', '.join(run.name for run in runs)}",
        report_verdict.lead(groups),
        [section for section in sections if section.holds_something],
        facts=f"{len(runs)} run{'s' * (len(runs) > 1)}" + described(groups),
    )
    data = out.with_name(f"{out.stem}_data")
    data.mkdir(parents=True, exist_ok=True)
    own = (data / LIST).read_text(encoding="utf-8").split() if (data / LIST).is_file() else ()
    for table in data.glob("*.csv"):
        if table.name in own and table.name not in tables:
            table.unlink()
    write_atomically(data / LIST, "".join(f"{name}\n" for name in tables))
    for name, text in tables.items():
        write_atomically(data / name, text)
    write_atomically(out, page)


def described(groups: Sequence[Group]) -> str:
    """When, with which code and on what the first run was made."""
    facts = groups[0].runs[0].facts
    parts = [facts.get(name, "") for name in ("finished", "commit", "devices")]
    return "".join(f" · {part}" for part in parts if part)


# --- grouping -------------------------------------------------------------------------------------


def group_runs(folders: Sequence[Path]) -> list[Group]:
    """Runs in groups that agree in the config of every stage they share, but for the seed.

    A seed counts once in a group: a second run of it is not another draw.
    """
    groups: list[tuple[dict[str, Any], list[RunRecord]]] = []
    for folder in folders:
        paths = stage_folders(folder)
        configs = {stage: comparable(read_object(p / "config.json")) for stage, p in paths.items()}
        record = read_chain(folder, paths)
        for known, runs in groups:
            shared = known.keys() & configs.keys()
            new = all(run.facts["seed"] != record.facts["seed"] for run in runs)
            if new and shared and all(known[stage] == configs[stage] for stage in shared):
                known |= configs
                runs.append(record)
                break
        else:
            groups.append((configs, [record]))
    differences = differing_fields([known for known, _ in groups])
    labels = [
        group_label(texts, runs) for texts, (_, runs) in zip(differences, groups, strict=True)
    ]
    return [
        Group(
            label, [run._replace(facts={**run.facts, "config": ", ".join(texts)}) for run in runs]
        )
        if texts
        else Group(label, runs)
        for label, texts, (_, runs) in zip(labels, differences, groups, strict=True)
    ]


def differing_fields(configs: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """For each group ["kl.coef=0.1", ...]: the fields of its stages that others have otherwise."""
    texts = []
    for own in configs:
        others = [other for other in configs if other is not own]
        fields = (
            f"{name}={value}"
            for stage, config in own.items()
            for name, value in config.items()
            if any(stage in other and other[stage].get(name) != value for other in others)
        )
        texts.append(list(dict.fromkeys(fields)))
    return texts


def group_label(differences: Sequence[str], runs: Sequence[RunRecord]) -> str:
    """What sets the group apart if that is short, else the names of its runs."""
    text = ", ".join(differences)
    return text if 0 < len(text) <= LABEL_LENGTH else ", ".join(run.name for run in runs)


def comparable(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What tells groups apart: the config without seed, devices and the run's own folder."""
    config = saved["config"]
    # A model that is brought in (convert) draws nothing, and has a folder alone.
    run = config.get("run") or {"dir": config["out"]}
    chain = str(Path(run["dir"]).parent) + "/"
    flat = {k: v for k, v in dotted_fields(config).items() if not k.startswith(NOT_COMPARED)}
    flat["run.data_seed"] = run.get("data_seed")
    return json.loads(json.dumps(flat).replace(json.dumps(chain)[1:-1], ""))


if __name__ == "__main__":
    main(run, ReportConfig)
