"""The report: one HTML page of run folders, finished or not, that opens offline; CSVs beside it.

    python -m experiments.report runs/quickstart
    python -m experiments.report runs/seed0 runs/seed1 runs/seed2 --out report.html

Runs whose configs are equal apart from seed and folder are a group: mean ± 95 % over its seeds.
Every plotted series is in ``<name of the page>_data/*.csv``. ``report_tables.txt`` lists them, and
the next report of that name deletes those of the list that it does not write.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.cli import main
from rlhf_jax.config import ReportConfig
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.errors import InputError, check
from rlhf_jax.evaluation import report_policies, report_stages, report_tradeoffs
from rlhf_jax.evaluation.figures import load_matplotlib
from rlhf_jax.evaluation.report import TITLES, Group, RunRecord, StageRecord, render
from rlhf_jax.training.logs import read_rows
from rlhf_jax.training.progress import say
from rlhf_jax.training.runs import flatten

CHAIN = ("pretrain", "sft", "comparisons", "reward", "ppo", "evaluate")
"""Stages that a whole chain has."""
NOT_COMPARED = ("run.", "parallel.", "cache", "data.cache", "force")
"""Config fields that do not tell groups apart (``run.data_seed`` does)."""

LIST = "report_tables.txt"
"""In the folder of the CSVs: those that a report wrote. Any other file there is somebody else's."""

LABEL_LENGTH = 40
"""Longer differences of configs are listed in the table of runs only."""


def run(config: ReportConfig) -> None:
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
        report_tradeoffs.frontier_section(groups),
        report_tradeoffs.tradeoff_section(groups),
        report_tradeoffs.size_section(groups),
        report_policies.distribution_section(groups),
        report_policies.tax_section(groups),
        report_stages.runs_section(groups),
        report_stages.reward_section(groups),
        *(report_stages.curve_section(groups, stage) for stage in ("ppo", "sft", "pretrain")),
        report_policies.samples_section(groups),
    ]
    page, tables = render(
        f"InstructGPT: {', '.join(run.name for run in runs)}",
        f"{len(runs)} run{'s' * (len(runs) > 1)}" + described(groups),
        [s for s in sections if s.panels or s.tables or s.samples],
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
    facts = groups[0].runs[0].facts
    parts = [facts.get(name, "") for name in ("finished", "commit", "devices")]
    return "".join(f" · {part}" for part in parts if part)


# --- grouping -------------------------------------------------------------------------------------


def group_runs(folders: Sequence[Path]) -> list[Group]:
    """Runs in groups that agree in the config of every stage they share, but for the seed.

    A seed counts once in a group: a second run of it is not another draw.
    """
    found: list[tuple[dict[str, Any], list[RunRecord]]] = []
    for folder in folders:
        paths = stage_folders(folder)
        configs = {stage: comparable(read_json(p / "config.json")) for stage, p in paths.items()}
        record = read_chain(folder, paths)
        for known, runs in found:
            shared = known.keys() & configs.keys()
            new = all(run.facts["seed"] != record.facts["seed"] for run in runs)
            if new and shared and all(known[stage] == configs[stage] for stage in shared):
                known |= configs
                runs.append(record)
                break
        else:
            found.append((configs, [record]))
    differences = differing_fields([known for known, _ in found])
    labels = [group_label(texts, runs) for texts, (_, runs) in zip(differences, found, strict=True)]
    return [
        Group(label, [run._replace(facts=run.facts | {"config": ", ".join(texts)}) for run in runs])
        if texts
        else Group(label, runs)
        for label, texts, (_, runs) in zip(labels, differences, found, strict=True)
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
    chain = str(Path(config["run"]["dir"]).parent) + "/"
    flat = {k: v for k, v in flatten(config).items() if not k.startswith(NOT_COMPARED)}
    flat["run.data_seed"] = config["run"]["data_seed"]
    return json.loads(json.dumps(flat).replace(json.dumps(chain)[1:-1], ""))


# --- reading --------------------------------------------------------------------------------------


def stage_folders(folder: Path) -> dict[str, Path]:
    """Stage → its folder, of a whole chain or of a single stage."""
    if (folder / "config.json").is_file():
        return {read_json(folder / "config.json")["stage"]: folder}
    stages = {stage: folder / stage for stage in TITLES}
    found = {s: path for s, path in stages.items() if (path / "config.json").is_file()}
    check(
        bool(found),
        f"{folder}: expected a run folder (config.json) or a folder of stages "
        f"({', '.join(CHAIN)}), found neither",
    )
    return found


def read_chain(folder: Path, stages: Mapping[str, Path]) -> RunRecord:
    records = {stage: read_stage(path) for stage, path in stages.items()}
    single = folder in stages.values()
    absent = [stage for stage in CHAIN if stage not in stages and not single]
    missing = [f"stages {', '.join(absent)}"] if absent else []
    for stage, path in stages.items():
        failed = path / "FAILED"
        if failed.is_file():
            missing.append(f"{stage} failed ({failed.read_text(encoding='utf-8').strip()})")
        elif records[stage].done is None:
            steps = records[stage].metrics[-1]["step"] if records[stage].metrics else 0
            missing.append(f"the end of {stage} ({steps} steps are logged)")
    if not single and not (folder / "summary.json").is_file():
        missing.append("summary.json")
    return RunRecord(folder.resolve().name, facts(folder, stages), missing, records)


def read_stage(folder: Path) -> StageRecord:
    """A stage's records; figures of the final parameters join the curves as a last row.

    What people said of an evaluation's policies (``experiments.feedback verdict``) joins the rest.
    """
    done = read_json(folder / "DONE") if (folder / "DONE").is_file() else None
    if done and (people := folder / "people.json").is_file():
        for policy, figures in read_json(people)["policies"].items():
            done["policies"][policy]["win_rate_by_people"] = figures["win_rate"]
    metrics = read_rows(folder / "metrics.jsonl")
    if done and done.get("heldout"):
        metrics.append({"step": done["steps"], **done["heldout"]})
    return StageRecord(done, metrics, read_rows(folder / "samples.jsonl"))


def facts(folder: Path, stages: Mapping[str, Path]) -> dict[str, str]:
    """What identifies a run: from summary.json, or else from the newest stage's config.json."""
    summary = folder / "summary.json"
    last = list(stages.values())[-1]
    saved = read_json(last / "config.json")
    record = read_json(summary) if summary.is_file() else saved
    ends = [path / name for path in stages.values() for name in ("DONE", "metrics.jsonl")]
    newest = max((path.stat().st_mtime for path in ends if path.is_file()), default=None)
    git, versions = record.get("git") or {}, record.get("versions") or {}
    found = {
        "finished": newest and time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(newest)),
        "seed": saved["config"]["run"]["seed"],
        "commit": git and git["sha"][:12] + (" + local changes" if git.get("dirty") else ""),
        "config digest": record.get("config_digest", "")[:12],
        "devices": hardware(record.get("devices") or []),
        "platform": record.get("platform"),
        "processes": record.get("processes"),
        "seconds": record.get("seconds"),
        "peak memory, MiB": record.get("peak_memory_mib"),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "", {})}


def hardware(devices: Sequence[str]) -> str:
    """ "8 × TPU v4" from ["tpu:0 TPU v4", ...]."""
    kinds = [device.partition(" ")[2] for device in devices]
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}), expected a record of this project") from None
    check(isinstance(found, dict), f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


if __name__ == "__main__":
    main(run, ReportConfig)
