"""What the report reads of run folders: stages, facts, the recipe, rounds of feedback."""

import importlib.metadata
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rlhf_jax.config
from rlhf_jax.cli import to_dict
from rlhf_jax.errors import InputError, RunError, check
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.figures import agreement, read_rounds
from rlhf_jax.feedback.labels import read_labels
from rlhf_jax.feedback.standing import read_refusals
from rlhf_jax.report.page import (
    TITLES,
    Feedback,
    Recipe,
    RunRecord,
    StageRecord,
    is_brought_in,
)
from rlhf_jax.runs.logs import read_rows
from rlhf_jax.runs.records import dotted_fields, read_object

CHAIN = ("pretrain", "sft", "comparisons", "reward", "ppo", "evaluate")
"""Stages that a whole chain has."""


def stage_folders(folder: Path) -> dict[str, Path]:
    """Stage → its folder, of a whole chain or of a single stage."""
    if (folder / "config.json").is_file():
        return {read_object(folder / "config.json")["stage"]: folder}
    stages = {stage: folder / stage for stage in TITLES}
    folders = {s: path for s, path in stages.items() if (path / "config.json").is_file()}
    check(
        bool(folders),
        f"{folder}: expected a run folder (config.json) or a folder of stages "
        f"({', '.join(CHAIN)}), found neither",
    )
    return folders


def read_chain(folder: Path, stages: Mapping[str, Path]) -> RunRecord:
    """What the folders of a chain, or of one stage, say."""
    records = {stage: read_stage(path) for stage, path in stages.items()}
    single = folder in stages.values()
    # A chain whose model was there already has not pretrained it.
    expected = CHAIN[1:] if is_brought_in(records) else CHAIN
    absent = [stage for stage in expected if stage not in stages and not single]
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
    feedback, why = read_feedback(folder)
    return RunRecord(
        folder.resolve().name,
        facts(folder, stages),
        [*missing, *why],
        records,
        read_recipe(stages),
        feedback,
    )


def read_stage(folder: Path) -> StageRecord:
    """A stage's records; figures of the final parameters join the curves as a last row.

    What people said of an evaluation's policies (``experiments.feedback verdict``) joins the rest.
    """
    done = read_object(folder / "DONE") if (folder / "DONE").is_file() else None
    # Written later, by another command: DONE stays as the evaluation left it.
    if done and (people := folder / "people.json").is_file():
        for policy, figures in read_object(people)["policies"].items():
            done["policies"][policy]["win_rate_by_people"] = figures["win_rate"]
    metrics = read_rows(folder / "metrics.jsonl")
    if done and done.get("heldout"):
        # Measured after the last step, so that it is in no row of the log.
        metrics.append({"step": done["steps"], **done["heldout"]})
    return StageRecord(done, metrics, read_rows(folder / "samples.jsonl"))


def facts(folder: Path, stages: Mapping[str, Path]) -> dict[str, str]:
    """What identifies a run: from summary.json, or else from the newest stage's config.json."""
    summary = folder / "summary.json"
    last = list(stages.values())[-1]
    saved = read_object(last / "config.json")
    record = read_object(summary) if summary.is_file() else saved
    ends = [path / name for path in stages.values() for name in ("DONE", "metrics.jsonl")]
    # By the files, as an interrupted run has no end of its own.
    newest = max((path.stat().st_mtime for path in ends if path.is_file()), default=None)
    git, versions = record.get("git") or {}, record.get("versions") or {}
    facts_of_run = {
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
    return {name: str(value) for name, value in facts_of_run.items() if value not in (None, "", {})}


def hardware(devices: Sequence[str]) -> str:
    """Devices by number and kind: "8 × TPU v4" of ["tpu:0 TPU v4", ...]."""
    kinds = [device.partition(" ")[2] for device in devices]
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))


# --- how it was made ------------------------------------------------------------------------------


def read_recipe(stages: Mapping[str, Path]) -> Recipe:
    """Commands in the order of the stages; one that ran several stages is there once."""
    saved = {stage: read_object(path / "config.json") for stage, path in stages.items()}
    git = next((record["git"] for record in reversed(saved.values()) if record.get("git")), {})
    # A chain's stages all have the chain's command, which is shown once.
    commands = [typed(record["argv"]) for record in saved.values() if record.get("argv")]
    tasks = [record["config"].get("task") for record in saved.values()]
    return Recipe(
        commands=list(dict.fromkeys(commands)),
        commit=git.get("sha", ""),
        local_changes=bool(git.get("dirty")),
        task=next((task for task in reversed(tasks) if isinstance(task, str)), ""),
        version=package_version(),
        configs={stage: config_lines(record) for stage, record in saved.items()},
    )


def typed(argv: Sequence[str]) -> str:
    """The command as it is typed: a file of this project as the module that it is."""
    program, *arguments = argv
    parts = Path(program).with_suffix("").parts
    if "experiments" in parts:
        module = ".".join(parts[parts.index("experiments") :])
        return shlex.join(["python", "-m", module, *arguments])
    return shlex.join(argv)


def config_lines(record: Mapping[str, Any]) -> str:
    """Every field, those that differ from their defaults first.

    All are in one list where the class of the config is not known any more.
    """

    def line(name: str, value: Any) -> str:
        return f"{name} = {json.dumps(value, ensure_ascii=False)}"

    fields = dotted_fields(record["config"])
    known = getattr(rlhf_jax.config, record.get("config_class", ""), None)
    if known is None:
        return "\n".join(line(*item) for item in fields.items())
    # Through JSON, as the record went: a tuple became a list.
    defaults = json.loads(json.dumps(dotted_fields(to_dict(known()))))
    usual = {name for name, value in fields.items() if defaults.get(name, ...) == value}
    own = [line(*item) for item in fields.items() if item[0] not in usual]
    rest = [line(*item) for item in fields.items() if item[0] in usual]
    return "\n".join([*own, "", "# As by default:", *rest] if rest else own)


def package_version() -> str:
    """Of the installed package; empty where it is not installed."""
    try:
        return importlib.metadata.version("rlhf_jax")
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- rounds of feedback ---------------------------------------------------------------------------


def read_feedback(folder: Path) -> tuple[Feedback | None, list[str]]:
    """The rounds in the store of the run's labelling page, and what is missing, in words.

    A store elsewhere (PostgreSQL) is not known here.
    """
    path = folder / "feedback" / "store.sqlite"
    if not path.is_file():
        return None, []
    try:
        database = open_database(path, create=False)
        rounds, labels = read_rounds(database), read_labels(database)
        refusals = [refusal._asdict() for refusal in read_refusals(database)]
    except (InputError, RunError) as error:
        return None, [f"the rounds of feedback ({error})"]
    if not rounds:
        return None, ["the first round of feedback"] if labels else []
    alike = agreement(labels)[0]
    share = {"mean": alike.share, "ci": alike.half_width, "n": alike.pairs} if alike.pairs else None
    return Feedback(rounds, len({label.account for label in labels}), share, refusals), []
