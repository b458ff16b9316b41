"""Steps that a run has kept are models for every command: RUN@STEP, RUN@latest, RUN@best."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import convert, sft
from rlhf_jax.config import ConvertConfig, LoRAConfig, OptimConfig, PPOConfig, RunConfig, SFTConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.models.lora import combine, merge_adapters, partition
from rlhf_jax.runs.checkpoints import params_sha256
from rlhf_jax.runs.kept_steps import figures_of, is_run, score_gain
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.runs.model_digests import model_digest
from rlhf_jax.runs.records import read_run
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import (
    check_model,
    load_trained,
    load_value,
    training_config,
    with_adapters,
)
from rlhf_jax.types import TrainState

BYTES = train_bpe([""], vocab_size=258)
LOSS = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("kept") / "init", BYTES)


def at(params, step):
    return jax.tree.map(lambda x: x + step, params)


def train(config, trained, name="sft", *, params=None, value=None, ema=False, until=None):
    """Parameters at step n are those of the start plus n; returns what trains and what does not."""
    start, frozen = partition(trained.params if params is None else params)
    with Stage(config, name, sft.__file__, best=("eval/loss", "min")) as stage:
        card = dict(kind="lm", value=value)
        save_model_card(config.run.dir, trained.model, trained.vocab_size, BYTES, **card)
        average = start if ema else None
        state = stage.restore(TrainState(jnp.int32(0), start, (), average))
        for step in stage.steps(4):
            average = at(start, -step - 1) if ema else None
            state = TrainState(jnp.int32(step + 1), at(start, step + 1), (), average)
            stage.log({"loss": 1.0}, tokens=1, show=())
            if stage.due(config.run.eval_every):
                stage.log_evaluation({"eval/loss": LOSS[step + 1]})
            if until == step + 1:
                raise KeyError("the run fails here")
            stage.checkpoint(state)
        final = combine(frozen, average if ema else state.params)
        stage.finish(final, heldout={"eval/loss": LOSS[4]})
    return start, frozen


def frame(folder, **changes):
    plain = dict(save_every=2, keep_latest=1, eval_every=1, log_every=1, tensorboard=False)
    return RunConfig(dir=folder, compile_cache=None, tune_malloc=False, **plain | changes)


def same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.cases(1)
def test_steps_of_a_finished_run(init, tmp_path, ema):
    config = SFTConfig(run=frame(tmp_path / "run", keep_latest=2), init=init)
    trained = load_trained(init, flag="init")
    start, _ = train(config, trained, ema=ema)
    sign = -1 if ema else 1  # what a stage hands on is the average, where there is one
    run = tmp_path / "run"
    for name, step in {"run@2": 2, "run@latest": 4, "run@best": 2, "run/checkpoints/2": 2}.items():
        found = load_trained(tmp_path / name, flag="init")
        same(found.params, at(start, sign * step))
        assert model_digest(tmp_path / name) == params_sha256(found.params)
    assert model_digest(tmp_path / "run@latest") == model_digest(run)
    assert figures_of(tmp_path / "run@2") == {"eval/loss": 1.0}
    assert figures_of(tmp_path / "run@4") == figures_of(run) == {"eval/loss": 4.0}
    assert training_config(tmp_path / "run@2") == training_config(run)
    check_model(tmp_path / "run@2", flag="init")
    for wrong in ("run@3", "run@worst"):
        for read in (load_trained, check_model):
            with pytest.raises(InputError, match=f"{wrong}: expected one of 2, 4, latest, best"):
                read(tmp_path / wrong, flag="init")
        assert model_digest(tmp_path / wrong) is None


def test_the_last_step_is_best_though_it_is_measured_after_its_save(init, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSS, 4, 0.5)
    config = SFTConfig(run=frame(tmp_path / "run"), init=init)
    start, _ = train(config, load_trained(init, flag="init"))
    same(load_trained(tmp_path / "run@best", flag="init").params, at(start, 4))


def test_best_of_every_measured_step_saved_for_it(init, tmp_path):
    """Evaluations fall between the saves; a failed run's steps are models too."""
    config = SFTConfig(run=frame(tmp_path / "run", save_every=3, keep_latest=1), init=init)
    with pytest.raises(KeyError):
        train(config, load_trained(init, flag="init"), until=4)
    assert (tmp_path / "run" / "FAILED").exists()
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == ["2", "3"]
    best = load_trained(tmp_path / "run@best", flag="init")
    assert model_digest(tmp_path / "run@2") == params_sha256(best.params)
    for read in (load_trained, check_model):
        with pytest.raises(InputError, match=r"finished stage.* given as .*run@latest or .*run@2"):
            read(tmp_path / "run", flag="init")
    out = tmp_path / "exported"
    convert.run(ConvertConfig("to-hf", tmp_path / "run" / "checkpoints" / "2", out=out))
    same(load_trained(out, flag="init").params, best.params)


def test_no_figures_no_best(init, tmp_path):
    config = SFTConfig(run=frame(tmp_path / "run", eval_every=9), init=init)
    with pytest.raises(KeyError):
        train(config, load_trained(init, flag="init"), until=4)
    with pytest.raises(InputError, match="of the steps 2 none has a held-out figure"):
        load_trained(tmp_path / "run@best", flag="init")


def test_a_step_of_adapters_stands_on_the_model_below(init, tmp_path):
    """Also where both were moved."""
    lora = LoRAConfig(rank=2, alpha=4.0)
    optim = OptimConfig(schedule="constant")
    below = shutil.copytree(init, tmp_path / "was" / "init")
    folder = tmp_path / "was" / "run"
    config = SFTConfig(run=frame(folder), init=below, lora=lora, optim=optim)
    trained = with_adapters(load_trained(below, flag="init"), lora, seed=config.run.seed)
    start, frozen = train(config, trained)
    whole = merge_adapters(combine(frozen, at(start, 2)), 2.0)
    for name in ("was", "moved"):
        same(load_trained(tmp_path / name / "run@2", flag="init").params, whole)
        if name == "was":
            (tmp_path / "was").rename(tmp_path / "moved")
    folder = tmp_path / "moved" / "run"
    assert model_digest(folder.with_name("run@2")) != model_digest(folder.with_name("run@4"))
    assert read_run(folder, stage="sft").config["init"] == str(tmp_path / "moved" / "init")
    (tmp_path / "moved" / "init").rename(tmp_path / "gone")
    with pytest.raises(InputError, match=r"adapters stand on .*init.* is not there"):
        load_trained(folder.with_name("run@2"), flag="init")


def test_ppo_keeps_both_networks(init, tmp_path):
    policy = load_trained(init, flag="init")
    reward = tiny.save_model(tmp_path / "reward", BYTES, kind="scalar")
    critic = load_trained(reward, flag="reward", kind="scalar")
    config = PPOConfig(run=frame(tmp_path / "run"), init=init, reward=(reward,))
    both = {"policy": policy.params, "value": critic.params}
    with pytest.raises(KeyError):
        train(config, policy, "ppo", params=both, value=critic.model, until=3)
    step = tmp_path / "run@2"
    same(load_trained(step, flag="init").params, at(policy.params, 2))
    found = load_trained(step, flag="value-init", kind="scalar")
    same(found.params, at(critic.params, 2))
    same(load_value(step).params, found.params)


def test_a_folder_may_have_such_a_name(init, tmp_path):
    folder = tmp_path / "run@2"
    tiny.save_model(folder, BYTES)
    assert load_trained(folder, flag="init").kind == "lm"
    assert model_digest(Path(tmp_path / "nothing@2")) is None
    with pytest.raises(InputError, match="nothing@2: nothing is there; expected the run folder"):
        load_trained(tmp_path / "nothing@2", flag="init")


def test_only_the_finished_reward_model_is_scaled(tmp_path):
    """A step that was kept has the scores of training, whatever ``--unit-std`` did at the end."""
    run = tmp_path / "reward"
    tiny.save_model(run, BYTES, kind="scalar")
    (run / "DONE").write_text('{"gain": 3.0}')
    (run / "config.json").write_text("{}")
    assert is_run(run) and score_gain(run) == 3.0
    assert score_gain(tmp_path / "reward@2") == score_gain(run / "checkpoints" / "2") == 1.0
