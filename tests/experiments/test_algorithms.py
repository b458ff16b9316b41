"""PPO's kin as experiments.ppo runs them: presets, values to start from, resuming."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from configs import quickstart
from configs.algorithms import ALGORITHMS, get_config, variant
from experiments import ppo
from rlhf_jax.cli import load
from rlhf_jax.cli.notes import say_idle, set_in
from rlhf_jax.config import KLConfig, PPOConfig
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import InputError
from rlhf_jax.inference.rewards import Rewards, load_value_start
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.training.coefficients import starting_coefs
from rlhf_jax.training.moving import start_moving
from rlhf_jax.training.parallel import make_parallel

PRESET = tiny.ROOT / "configs/algorithms.py"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_samples_as_much_and_sets_nothing_in_vain(name, capsys):
    config, base = get_config(name), quickstart.get_config().resolve().ppo
    say_idle(config, set_in(config), "")
    assert capsys.readouterr().err == ""
    assert config.iterations * config.batch_size == base.iterations * base.batch_size
    assert (config.init, config.reward, config.prompts) == (base.init, base.reward, base.prompts)
    assert config.run.dir.parts[-2:] == ("algorithms", name)


def test_an_algorithm_is_chosen_by_name():
    config = load(PPOConfig, ["--config", f"{PRESET}:gspo", "--clip-eps", "0.1"])
    assert (config.ratio, config.clip_eps, config.clip_eps_high) == ("sequence", 0.1, 0.04)
    assert (config.kl.place, config.kl.estimator, config.kl.target) == ("loss", "k3", 3.2)
    with pytest.raises(InputError, match=r"no algorithm 'grop', expected one of ppo, ppo_ptx, rl"):
        load(PPOConfig, ["--config", f"{PRESET}:grop"])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """PPO of two iterations from made-up models."""
    folder = tmp_path_factory.mktemp("algorithms")
    task = tiny.make_task(folder)
    chain = tiny.shrink(quickstart.get_config(), folder / "chain", task, d_model=16)
    tiny.write_data(chain)
    tokenizer = load_tokenizer(task.tokenizer)
    lm = tiny.save_model(folder / "lm", tokenizer)
    scalar = tiny.save_model(folder / "scalar", tokenizer, kind="scalar")
    c, kl = chain.resolve().ppo, KLConfig(coef=0.1)
    # At the full rate at once; scores that differ, of answers that do not end.
    optim = replace(c.optim, warmup_steps=0)
    of_models = dict(init=lm, reward=(scalar,), missing_eos_penalty=None, ptx_coef=0.0)
    return replace(c, **of_models, optim=optim, iterations=2, kl=kl)


def test_what_the_value_network_starts_from(config):
    """The reward model, its trunk with values of 0, or a language model's with values of 0."""
    policy = load_trained(config.init, flag="init")
    reward = load_trained(config.reward[0], flag="reward", kind="scalar")
    reward.params["trunk"]["wte"] = 2 * reward.params["trunk"]["wte"]  # else it is the policy's
    rewards = Rewards({"task": reward}, {}, {})

    def starts(**changes):
        value = load_value_start(
            replace(config, **changes), policy, rewards, make_parallel(config.parallel)
        )
        norm = np.abs(value.params["head"]["kernel"]).max()
        trunk = value.params["trunk"]["wte"]
        of = [(trunk == model.params["trunk"]["wte"]).all() for model in (policy, reward)]
        return value.kind, bool(norm > 0), *map(bool, of)

    assert starts() == ("scalar", True, False, True)
    assert starts(value_head="zero") == ("scalar", False, False, True)
    assert starts(value_init=config.init) == ("scalar", False, True, False)
    assert starts(value_init=config.reward[0]) == ("scalar", True, True, False)


def go(config, name, **changes):
    run = replace(config.run, dir=config.init.parent / name, **changes)
    done = ppo.run(replace(config, run=run))
    return done, [json.loads(line) for line in (run.dir / "metrics.jsonl").open()]


@pytest.mark.slow
def test_the_kl_in_the_loss_holds_the_policy_at_the_reference(config):
    """At the start its gradient is 0, and later it is not."""
    fields = ALGORITHMS["grpo"] | dict(kl=KLConfig(coef=0.1, place="loss", estimator="k3"))
    _, rows = go(replace(config, **fields, num_minibatches=1), "grpo")
    assert abs(rows[0]["loss/kl_avg"]) < 1e-6 < rows[1]["loss/kl_avg"]
    assert rows[0]["objective/rlhf_reward"] == pytest.approx(rows[0]["objective/scores"])


@pytest.mark.slow
def test_online_dpo_starts_at_ln_2_wherever_the_reference_has_moved_to(config):
    """With α = 1 the reference is the policy that samples: no KL, and log σ(0), at each iteration.

    Its memory is its own: the update before took the policy's.
    """
    fields = ALGORITHMS["online_dpo"] | dict(num_minibatches=1, reference_every=1)
    _, rows = go(replace(config, **fields), "online_dpo")
    assert [row["loss"] for row in rows] == pytest.approx([np.log(2)] * 2, rel=1e-5)
    assert [row["objective/kl"] for row in rows] == pytest.approx([0, 0], abs=1e-4)
    assert rows[0]["logprob_chosen"] != rows[1]["logprob_chosen"]
    assert all(row["objective/best_reward"] >= row["objective/scores"] for row in rows)


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """A reward of 0 or 1, so that the answers to a prompt may all score alike."""
    path = tmp_path_factory.mktemp("binary") / "odd.py"
    path.write_text("def odd(prompts, responses):\n    return [len(r) % 2 for r in responses]\n")
    return Path(f"{path}:odd")


def without_the_last_step(folder):
    """The run as it was when it was killed in its last iteration, the one before it saved."""
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for left in (last, folder / "final"):
        shutil.rmtree(left)
    (folder / "DONE").unlink()


def handed_on(name):
    """What a preset's iterations hand on, besides the policy and its optimizer."""
    c = get_config(name)
    kept = start_moving(c, {}, {}).kept(c)
    return *starting_coefs(c), *kept, c.ptx_coef > 0, c.value_trunk, c.objective


KINDS = {handed_on(name): name for name in reversed(ALGORITHMS)}
"""One preset of each kind: the first of those that hand on the same."""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS.values())
def test_every_algorithm_goes_on_where_it_was_killed(config, binary, name, tmp_path):
    """To the bit: parameters, every figure of every iteration, and what is counted of them."""
    changed = variant(replace(config, num_minibatches=1), name)
    groups = min(changed.samples_per_prompt, 2)
    changed = replace(
        changed,
        samples_per_prompt=groups,
        batch_size=2 * groups,
        kl=replace(changed.kl, target=0.5, horizon=100.0),
        run=replace(changed.run, dir=tmp_path / name),
        **(dict(reward=(binary,), max_sampling_rounds=2) if name == "dapo" else {}),
    )
    whole = ppo.run(changed)
    rows = logged(changed.run.dir)
    without_the_last_step(changed.run.dir)
    resumed = ppo.run(changed)
    assert logged(changed.run.dir) == rows and len(rows) == 2
    same = ("params_sha256", "episodes", "kl_coef", "unfilled_batches")
    assert [resumed.get(key) for key in same] == [whole.get(key) for key in same]
    if name == "dapo":
        drawn = [row["sampling/prompts"] for row in rows]
        assert 4 in drawn and whole["episodes"] == sum(drawn) * groups


def logged(folder):
    timed = ("episodes_per_second", "time")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]
