"""Steps that a run has kept, as models: RUN@STEP, RUN@latest, RUN@best, RUN/checkpoints/STEP.

The run may be at work, stopped, failed or finished. What is read of a step is what the stage would
hand on: the average of the weights, where one is kept.
"""

from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import InputError
from rlhf_jax.runs.checkpoint_files import Damaged, json_sha256, list_steps, read_info
from rlhf_jax.runs.checkpoints import best_step, load_params
from rlhf_jax.runs.records import read_done, read_run
from rlhf_jax.types import Params


class Kept(NamedTuple):
    """A step that a run has kept."""

    run: Path
    step: str
    """A number, "latest" or "best"."""

    @property
    def folder(self) -> Path:
        """Where the run keeps its steps."""
        return self.run / "checkpoints"


def kept_step(path: Path) -> Kept | None:
    """The step that ``path`` names, if it names one."""
    path = Path(path)
    above = path.parent
    if path.name.isdecimal() and above.name == "checkpoints" and is_run(above.parent):
        return Kept(above.parent, path.name)
    run, at, step = path.name.rpartition("@")
    # A folder whose own name has an @ in it is meant as it stands.
    if not at or not run or path.exists() or not is_run(path.with_name(run)):
        return None
    return Kept(path.with_name(run), step)


def run_of(path: Path) -> Path:
    """The run folder that ``path`` is, or is a step of."""
    kept = kept_step(path)
    return Path(path) if kept is None else kept.run


def is_run(folder: Path) -> bool:
    """Whether this is the run folder of a model."""
    return (folder / "config.json").is_file() and (folder / "model.json").is_file()


def number_of(kept: Kept) -> int:
    """Raises InputError, with the steps that there are, if there is no such step."""
    steps = list_steps(kept.folder)
    if not steps:
        raise InputError(f"{kept.run}@{kept.step}: no step of this run was kept")
    if kept.step == "latest":
        return steps[-1]
    if kept.step == "best":
        try:
            return best_step(kept.folder, steps, measured=measured_after(kept.run))
        except Damaged as damaged:
            raise InputError(f"{kept.run}@best: {damaged}") from None
    if not kept.step.isdecimal() or int(kept.step) not in steps:
        there = ", ".join(map(str, steps))
        raise InputError(f"{kept.run}@{kept.step}: expected one of {there}, latest, best")
    return int(kept.step)


def measured_after(run: Path) -> dict[int, dict[str, float]]:
    """Figures of last steps, which are measured after they are saved.

    Of a finished run, and of the shorter ones that it was before.
    """
    done = read_done(run) or {}
    before = {int(step): figures for step, figures in done.get("shorter", {}).items()}
    measured = "steps" in done and done.get("heldout")
    return before | ({done["steps"]: done["heldout"]} if measured else {})


def load_kept(kept: Kept, **how: Any) -> Params:
    """All parameters that the step holds: of PPO both networks, with adapters these alone."""
    step = number_of(kept)
    return load_params(kept.folder, step=step, ema=_item(_info(kept, step)) == "ema", **how)


def kept_digest(kept: Kept) -> str | None:
    """What tells the step's parameters from others; None where it is not there (any more)."""
    try:
        info = _info(kept, number_of(kept))
    except InputError:
        return None
    item = f"{_item(info)}/"
    leaves = {k.removeprefix(item): v for k, v in info["leaves"].items() if k.startswith(item)}
    if any(name.endswith("lora_a") for name in leaves):  # the rest is the model below
        below = {
            name: model.digest for name, model in read_run(kept.run, stage=None).models.items()
        }
        return json_sha256([leaves, below])
    return json_sha256(leaves)


def figures_of(path: Path) -> dict[str, float]:
    """What was measured on the held-out part of a finished run, or at a step that was kept."""
    kept = kept_step(path)
    if kept is None:
        return (read_done(path) or {}).get("heldout", {})
    step = number_of(kept)
    return _info(kept, step)["metrics"] or measured_after(kept.run).get(step, {})


def score_gain(path: Path) -> float:
    """What ``--unit-std`` has multiplied a reward model's scores by; 1 where nothing says so.

    So it is of a step that was kept: only the finished model's head is scaled.
    """
    return (read_done(path) or {}).get("gain", 1.0)


def _info(kept: Kept, step: int) -> dict[str, Any]:
    try:
        return read_info(kept.folder / str(step))
    except Damaged as damaged:
        raise InputError(f"{damaged}; choose another step") from None


def _item(info: dict[str, Any]) -> str:
    # Where parameters are averaged, the average is the model: the others are there to go on from.
    return "ema" if any(name.startswith("ema/") for name in info["leaves"]) else "params"
