"""One update of each stage gives the numbers it gave before.

They are those of float64, which every processor gives to a billionth; float32 gives them too, as
far as it can. When may golden.json change? Only with a change that is meant to change numerics:
mark its entry in CHANGELOG.md [numerics], measure the results table again, and write it anew with

    PYTHONPATH=tests/helpers python tests/training/test_golden.py

A refactoring that fails here has changed what is computed: find out where.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from parallel_worker import CONFIG, Layout, T, V, update
from precision import SAME, float32_bound, network_terms

from rlhf_jax.config import ParallelConfig

GOLDEN = pathlib.Path(__file__).with_name("golden.json")
UPDATES = {"lm": 1, "reward": 1, "ppo": 4}
"""Of each stage: PPO's is two epochs of two minibatches."""


def measure(stage: str, dtype: str) -> dict[str, float]:
    """Metrics of one update, and the size of the parameters after it."""
    with jax.enable_x64(dtype == "float64"):
        state, metrics = update(stage, Layout(ParallelConfig(devices=1)), dtype)
        sizes = [np.abs(np.asarray(x, float)).sum() for x in jax.tree.leaves(state.params)]
    return {name: float(value) for name, value in metrics.items()} | {"params": float(sum(sizes))}


@pytest.mark.parametrize("stage", UPDATES)
@pytest.mark.cases(2)
def test_golden_step(stage):
    expected = json.loads(GOLDEN.read_text())[stage]
    assert measure(stage, "float64") == pytest.approx(expected, rel=SAME, abs=SAME)


@pytest.mark.parametrize("stage", UPDATES)
@pytest.mark.cases(1)
def test_golden_step_in_float32(stage):
    """Forward, and twice as much backward, once an update. Not compared are shares of what lies
    beyond a bound: a rounding may move one over it."""
    bound = float32_bound(3 * UPDATES[stage] * network_terms(CONFIG, T, V))
    numbers = lambda found: {name: x for name, x in found.items() if "clipfrac" not in name}
    expected = numbers(json.loads(GOLDEN.read_text())[stage])
    assert numbers(measure(stage, "float32")) == pytest.approx(expected, rel=bound, abs=bound)


if __name__ == "__main__":
    measured = {stage: measure(stage, "float64") for stage in UPDATES}
    GOLDEN.write_text(json.dumps(measured, indent=1) + "\n")
