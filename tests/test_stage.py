"""The life of a run: what a stage resumes, refuses, logs and leaves, without training anything."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.stage import Stage
from rlhf_jax.config import RunConfig, SFTConfig
from rlhf_jax.training.logs import read_rows
from rlhf_jax.types import TrainState


def make_config(folder, *, epochs=2, optim=None, **run):
    frame = dict(dir=folder, log_every=1, tensorboard=False, compile_cache=None, tune_malloc=False)
    more = {} if optim is None else {"optim": optim}
    return SFTConfig(run=RunConfig(**frame | run), epochs=epochs, **more)


def train(config, *, total, kill_at=None):
    """A stage whose parameter counts its steps; ``kill_at`` ends it in that step."""
    with Stage(config, "sft", best=("eval/loss", "min")) as stage:
        if stage.summary is not None:
            return stage.summary
        state = stage.restore(TrainState(jnp.int32(0), {"w": jnp.zeros(2)}, (), None))
        for step in stage.steps(total):
            if step + 1 == kill_at:
                raise KeyboardInterrupt
            state = TrainState(state.step + 1, {"w": state.params["w"] + step + 1}, (), None)
            stage.log({"loss": jnp.float32(step), "lr": 0.1}, tokens=1, show=())
            stage.log_samples([{"prompt": f"{step + 1}"}])
            if stage.due(config.run.eval_every):
                stage.log_evaluation({"eval/loss": float(np.abs(stage.done - 4))})
            stage.checkpoint(state)
        return stage.finish(state.params)


def logged(folder, name="metrics"):
    return [row["step"] for row in read_rows(folder / f"{name}.jsonl")]


@pytest.mark.parametrize("save_every, kept", [(9, 0), (2, 4)])
def test_every_row_once_after_a_kill(tmp_path, save_every, kept):
    """Before the first checkpoint nothing is kept, and the rows of before are dropped."""
    config = make_config(tmp_path, save_every=save_every)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config, total=6, kill_at=6)
        assert logged(tmp_path)[-1] >= 4
    train(config, total=6)
    assert logged(tmp_path) == logged(tmp_path, "samples") == [1, 2, 3, 4, 5, 6]
