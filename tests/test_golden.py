"""One update of each stage gives the numbers it gave before.

When may golden.json change? Only with a change that is meant to change numerics: mark its entry in
CHANGELOG.md [numerics], measure the results table again, and write the file anew with

    python tests/test_golden.py

A refactoring that fails here has changed what is computed: find out where.
"""

import json
import pathlib

import jax
import pytest
from parallel_worker import update

from rlhf_jax.config import ParallelConfig
from rlhf_jax.training.parallel import make_parallel

GOLDEN = pathlib.Path(__file__).with_name("golden.json")
STAGES = ("lm", "reward", "ppo")


def measure(stage: str) -> dict[str, float]:
    """Metrics of one update, and the size of the parameters after it."""
    state, metrics = update(stage, make_parallel(ParallelConfig(devices=1)), 1)
    sizes = [abs(leaf).sum() for leaf in jax.tree.leaves(state.params)]
    return {name: float(value) for name, value in metrics.items()} | {"params": float(sum(sizes))}


@pytest.mark.parametrize("stage", STAGES)
def test_golden_step(stage):
    assert measure(stage) == pytest.approx(
        json.loads(GOLDEN.read_text())[stage], rel=1e-5, abs=1e-5
    )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({stage: measure(stage) for stage in STAGES}, indent=1) + "\n")
