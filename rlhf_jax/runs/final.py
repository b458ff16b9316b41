"""The parameters that a finished stage leaves for the stages to come, in ``final`` of its run."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.errors import InputError
from rlhf_jax.runs.checkpoint_files import list_steps, remove_step
from rlhf_jax.runs.checkpoints import Checkpoints, params_sha256
from rlhf_jax.types import Params, TrainState, as_leaf


def save_final(run: Path, params: Params, *, step: int, otherwise: str) -> dict[str, Any]:
    """Save them; their number and digest, for the summary.

    Of a run that is made longer the old model stays until ``DONE`` tells of the new one. What is
    kept if the disk is full is said by ``otherwise``.
    """
    folder = run / "final"
    with Checkpoints(
        folder,
        # The shorter run's model too: until DONE is written it is what the folder is for.
        keep_latest=1 + len(list_steps(folder)),
        keep_best=0,
        best_metric=None,
        best_mode="max",
        otherwise=otherwise,
    ) as final:
        state = TrainState(as_leaf(np.asarray(step, np.int32)), params, (), None)
        final.save(step, state, data={}, extra={}, metrics={})
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "params_sha256": params_sha256(params),
    }


def remove_older_final(run: Path) -> None:
    """Remove the models of the shorter runs that this one goes on from, if there are any."""
    folder = run / "final"
    for step in list_steps(folder)[:-1]:
        remove_step(folder / str(step))


def check_final(run: Path, summary: dict[str, Any]) -> None:
    """Raise InputError if a finished run has lost what it is for."""
    if "params_sha256" in summary and not list_steps(run / "final"):
        raise InputError(
            f"{run} is finished, but its parameters are gone from {run / 'final'}: "
            f"remove {run / 'DONE'}, and the same command makes them from what is kept"
        )
