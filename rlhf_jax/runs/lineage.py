"""What the records of runs say of a model: what it was made from, and how it did."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import InputError, check
from rlhf_jax.evaluation.metrics import mean_ci
from rlhf_jax.runs.inputs import SETTINGS
from rlhf_jax.runs.kept_steps import is_run, run_of
from rlhf_jax.runs.model_digests import model_digest
from rlhf_jax.runs.records import SavedRun, read_object, read_run
from rlhf_jax.runs.trained import names_apart

PARENTS = ("init", "source", "base", "models")
"""Fields that name what a model was made from."""
SAME = ("task", "num_prompts", "sampling", "response_length")
"""Fields of evaluations whose figures may be averaged."""
LICENCE = re.compile(r"license:[ \t]*([\w.+-]+)[ \t]*")


class Link(NamedTuple):
    """A run on the way to a model."""

    run: SavedRun
    record: dict[str, Any]
    """config.json whole: command line, code, machine."""


class Figure(NamedTuple):
    """A figure of an evaluation; without an interval ``low`` and ``high`` are None."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None


class Evaluated(NamedTuple):
    """What one finished evaluation, or several that differ in their seed, say of a model."""

    seeds: tuple[int, ...]
    prompts: int
    task: str
    baseline: str
    figures: tuple[Figure, ...]


# --- What a model was made from -------------------------------------------------------------------


def runs_behind(source: Path) -> list[Link]:
    """The runs that led to a model, the last one first; none of a checkpoint of others."""
    folder, links = run_of(source), []
    while is_run(folder):
        run = read_run(folder, stage=None)
        links.append(Link(run, read_object(folder / "config.json")))
        parent = parent_of(run)
        if parent is None:
            break
        folder = run_of(parent)
    return links


def parent_of(run: SavedRun) -> Path | None:
    """The model that a run began with, if it still lies there."""
    return next((place for label in named(run, PARENTS) if (place := place_of(run, label))), None)


def rewards_of(run: SavedRun) -> list[Link]:
    """The runs of the reward models that a policy was trained against."""
    places = [place_of(run, label) for label in named(run, ("reward",))]
    folders = [run_of(place) for place in places if place is not None]
    return [
        Link(read_run(folder, stage=None), read_object(folder / "config.json"))
        for folder in folders
        if is_run(folder)
    ]


def named(run: SavedRun, fields: Sequence[str]) -> list[str]:
    """Labels of the recorded models that these fields of a config name."""
    return [
        label
        for label in run.models
        if label.partition("[")[0] in fields and not label.endswith(SETTINGS)
    ]


def place_of(run: SavedRun, label: str) -> Path | None:
    """Where a recorded model lies, unless it is gone, or another one lies there by now."""
    name, _, number = label.rstrip("]").partition("[")
    value: Any = run.config.get(name)
    with suppress(TypeError, ValueError, LookupError):
        place = Path(value[int(number)] if number else value)
        return place if model_digest(place) == run.models[label].digest else None
    return None


def licence_of(folder: Path) -> str | None:
    """What the model card beside a checkpoint says of its licence."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    first, *lines = card.read_text(encoding="utf-8", errors="replace").split("\n")
    if first != "---" or "---" not in lines:
        return None
    header = map(LICENCE.fullmatch, lines[: lines.index("---")])
    return next((found[1] for found in header if found), None)


# --- How it did -----------------------------------------------------------------------------------


def evaluated(source: Path, given: Sequence[Path]) -> list[Evaluated]:
    """What evaluations say of a model: those ``given``, as seeds of one, or all that lie beside it.

    Raises InputError for one that is not finished, or is not like the others.
    """
    digest = model_digest(source)
    if not given:
        places = sorted(done.parent for done in run_of(source).absolute().parent.glob("*/DONE"))
        runs = [read_run(place, stage=None) for place in places if is_evaluation(place)]
        return [summary([run], name) for run in runs if (name := name_in(run, digest))]
    runs = [read_run(place, stage="evaluate") for place in given]
    for run in runs:
        check(run.done is not None, f"--evaluation {run.folder} has not finished")
    name = next((found for run in runs if (found := name_in(run, digest))), None)
    check(name is not None, f"--evaluation: none of {len(runs)} has the model {source} in it")
    for run in runs[1:]:
        for field in SAME:
            ours, theirs = runs[0].config.get(field), run.config.get(field)
            check(
                ours == theirs,
                f"--evaluation {run.folder} has {field}={theirs}, but {runs[0].folder} has {ours}: "
                "expected evaluations that differ in their seed only",
            )
        check(
            str(name) in (run.done or {})["policies"],
            f"--evaluation {run.folder} has no policy {name}, expected the same names in all",
        )
    seeds = [run.config["run"]["seed"] for run in runs]
    check(len(set(seeds)) == len(seeds), f"--evaluation: seeds {seeds}, expected different ones")
    return [summary(runs, str(name))]


def is_evaluation(folder: Path) -> bool:
    """Whether this is a run of experiments.evaluate, which compares policies."""
    with suppress(InputError, OSError):
        record = read_object(folder / "config.json", "stage")
        done = read_object(folder / "DONE")
        return record["stage"] == "evaluate" and "policies" in done
    return False


def name_in(run: SavedRun, digest: str | None) -> str | None:
    """What an evaluation calls the model of this digest, if it is one of its policies."""
    places = [Path(place) for place in run.config["policies"]]
    names = names_apart([*places, *map(Path, run.config.get("text_only", ()))])
    for n, place in enumerate(places):
        model = run.models.get(f"policies[{n}]")
        if digest is not None and model is not None and model.digest == digest:
            return names[place]
    return None


def summary(runs: Sequence[SavedRun], name: str) -> Evaluated:
    """The figures of one evaluation, or their means over several, with intervals over the seeds."""
    each = [dict(figures_of(run.done or {}, name)) for run in runs]
    shared = [figure for figure in each[0] if all(figure in figures for figures in each)]
    figures = [each[0][figure] for figure in shared]
    if len(runs) > 1:
        over_seeds = {label: mean_ci([x[label].mean for x in each]) for label in shared}
        figures = [
            Figure(label, x["mean"], x["mean"] - x["ci"], x["mean"] + x["ci"])
            for label, x in over_seeds.items()
        ]
    done = runs[0].done or {}
    return Evaluated(
        tuple(run.config["run"]["seed"] for run in runs),
        done["prompts"]["kept"],
        Path(str(runs[0].config["task"])).name,
        done["baseline"],
        tuple(figures),
    )


def figures_of(done: Mapping[str, Any], name: str) -> Iterator[tuple[str, Figure]]:
    """Every number that an evaluation has recorded of a policy."""
    for label, value in flat(done["policies"][name]):
        if isinstance(value, Mapping):
            low, high = value.get("low"), value.get("high")
            if low is None and value.get("ci") is not None:
                low, high = value["mean"] - value["ci"], value["mean"] + value["ci"]
            yield label, Figure(label, value["mean"], low, high)
        else:
            yield label, Figure(label, value)
    for label, value in done.get("text", {}).get(name, {}).items():
        yield label, Figure(label, value)


def flat(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Figures by name; those of a group have its name in front."""
    for name, value in figures.items():
        label = f"{above}{name}".replace("_", " ")
        if isinstance(value, Mapping) and "mean" not in value:
            yield from flat(value, f"{above}{name}: ")
        elif isinstance(value, Mapping | int | float):
            yield label, value
