"""Forks of experiments: their own configs, whose runs are whose, and that the shipped ones run."""

import difflib
import importlib
import json
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from precision import SAME

from configs import quickstart
from experiments import ppo
from experiments.proj.high_entropy.ppo import HighEntropyConfig, high_entropy_loss
from experiments.proj.rloo.ppo import leave_one_out
from rlhf_jax import cli
from rlhf_jax.config import KLConfig, PPOConfig
from rlhf_jax.config.bounds import Count
from rlhf_jax.config.forks import class_named, name_of
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import InputError
from rlhf_jax.objectives.advantages import rloo
from rlhf_jax.objectives.policy_losses import ppo_loss
from rlhf_jax.runs.checkpoints import params_sha256
from rlhf_jax.runs.folder import open_run
from rlhf_jax.runs.identity import fork_of
from rlhf_jax.runs.trained import load_trained, load_value
from rlhf_jax.types import PPOBatch

PRESET = "configs/quickstart.py"
FORK = "experiments.proj.high_entropy.ppo:HighEntropyConfig"


@dataclass(frozen=True)
class ManyConfig(PPOConfig):
    samples_per_prompt: Count = 4


@dataclass(frozen=True)
class UntypedConfig(PPOConfig):
    samples_per_prompt = 4


# --- a config of its own --------------------------------------------------------------------------


def test_a_preset_of_the_parent_widens_to_the_forks_config(capsys):
    flags = ["--top-entropy", "0.4", "--kl.coef", "0.3"]
    config = cli.load(HighEntropyConfig, ["--config", PRESET, *flags])
    expected = quickstart.get_config().resolve().ppo
    values = vars(replace(expected, kl=replace(expected.kl, coef=0.3)))
    assert vars(config) == {**values, "top_entropy": 0.4}
    with pytest.raises(InputError, match=r"--top-entropy 2: expected a number in \[0, 1\]"):
        cli.load(HighEntropyConfig, ["--top-entropy", "2"])


def test_a_default_that_the_fork_declares_anew_is_its_own_and_is_said(capsys):
    config = cli.load(ManyConfig, ["--config", PRESET])
    assert config.samples_per_prompt == 4
    said = "note: ManyConfig has samples_per_prompt=4, where the preset has 1\n"
    assert said in capsys.readouterr().err
    assert cli.load(ManyConfig, ["--samples-per-prompt", "2"]).samples_per_prompt == 2


def test_a_default_without_a_type_would_be_ignored_and_is_refused():
    message = r"UntypedConfig\.samples_per_prompt has no type.*write samples_per_prompt: int = "
    with pytest.raises(InputError, match=message):
        cli.load(UntypedConfig, [])


def test_a_saved_config_of_a_fork_is_read_again(tmp_path, monkeypatch):
    config = HighEntropyConfig(top_entropy=0.4)
    path = tmp_path / "config.json"
    saved = {"config_class": name_of(type(config)), "config": cli.to_dict(config)}
    assert saved["config_class"] == FORK and name_of(PPOConfig) == "PPOConfig"
    path.write_text(json.dumps(saved))
    assert cli.read_json(path) == config
    assert cli.load(HighEntropyConfig, ["--config", str(path)]) == config
    (tmp_path / "broken_fork.py").write_text("def run(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, why in (
        ("gone.fork:X", "cannot be read .ModuleNotFoundError: No module named 'gone'"),
        ("broken_fork:X", "cannot be read .SyntaxError"),
        ("json:loads", "json:loads is no config class"),
    ):
        path.write_text(json.dumps(saved | {"config_class": name}))
        with pytest.raises(InputError, match=why):
            cli.read_json(path)


def test_a_fork_that_is_being_run_is_the_module_by_its_name(monkeypatch):
    """python -m runs it as __main__; imported again its class would be another."""
    module = importlib.import_module("experiments.proj.high_entropy.ppo")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(HighEntropyConfig, "__module__", "__main__")
    assert name_of(HighEntropyConfig) == FORK
    assert class_named(FORK, "config.json") is HighEntropyConfig


def test_classes_are_found_where_nothing_is_run_from_a_file(monkeypatch):
    """A notebook, python -c, a worker of a test runner."""
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert class_named(FORK, "config.json") is HighEntropyConfig


# --- whose run it is ------------------------------------------------------------------------------


def write_fork(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(text)
    return fork_of(str(folder / "mine.py"), PPOConfig())


def test_original_fork_and_edited_fork_take_no_folder_of_one_another(tmp_path):
    first = write_fork(tmp_path / "fork", "EPS = 0.2\n")
    commented = write_fork(tmp_path / "fork", "# another comment\nEPS = (\n    0.2\n)\n")
    edited = write_fork(tmp_path / "fork", "EPS = 0.3\n")
    other = write_fork(tmp_path / "other", "EPS = 0.2\n")
    assert first == commented != edited and first["name"] == "fork/mine.py"
    assert fork_of(ppo.__file__, PPOConfig()) is None

    def start(fork, into):
        frame = dict(stage="ppo", config={"x": 1}, config_class="PPOConfig", ignore=())
        open_run(tmp_path / into, **frame, fork=fork).close()

    for fork, into in ((None, "base"), (first, "first")):
        start(fork, into)
        start(fork, into)
    start(commented, "first")
    for fork, into, message in (
        (first, "base", "was started by no fork, and this is the fork fork/mine.py: choose"),
        (None, "first", "was started by the fork fork/mine.py, and this is no fork: choose"),
        (other, "first", "the fork fork/mine.py, and this is the fork other/mine.py: choose"),
        (edited, "first", "the fork fork/mine.py, whose code has changed since: choose"),
    ):
        with pytest.raises(InputError, match=message):
            start(fork, into)


def test_a_forks_own_modules_are_part_of_it(tmp_path, monkeypatch):
    fork = tmp_path / "fork"
    alone = write_fork(fork, "EPS = 0.2\n")
    (fork / "my_losses.py").write_text("A = 1\n")
    below = fork / "venv" / "lib"
    below.mkdir(parents=True)
    (below / "installed.py").write_text("")
    monkeypatch.syspath_prepend(str(fork))
    importlib.import_module("my_losses")
    monkeypatch.syspath_prepend(str(below))
    both = write_fork(fork, "EPS = 0.2\n")
    importlib.import_module("installed")
    assert write_fork(fork, "EPS = 0.2\n") == both, "what lies below is none of the fork's"
    (fork / "my_losses.py").write_text("A = 2\n")
    edited = write_fork(fork, "EPS = 0.2\n")
    monkeypatch.delitem(sys.modules, "my_losses")
    monkeypatch.delitem(sys.modules, "installed")
    assert len({each["source"] for each in (alone, both, edited)}) == 3


def test_an_experiment_refuses_a_forks_config_in_place_of_its_own():
    with pytest.raises(InputError, match=r"ppo\.py knows nothing of .*HighEntropyConfig: start"):
        ppo.run(HighEntropyConfig())


# --- the shipped ones -----------------------------------------------------------------------------


@pytest.mark.parametrize("fork,most", [("high_entropy", 32), ("rloo", 12), ("median", 8)])
def test_a_fork_is_a_small_diff(fork, most):
    """Lines added and removed, but for the module's docstring."""
    files = ("ppo.py", f"proj/{fork}/ppo.py")
    texts = [(tiny.ROOT / "experiments" / name).read_text(encoding="utf-8") for name in files]
    code = [text.split('"""', 2)[2].splitlines() for text in texts]
    changed = [line for line in difflib.ndiff(*code) if line[0] in "+-"]
    assert 0 < len(changed) <= most


def test_high_entropy_learns_from_the_least_sure_tokens():
    rng = np.random.default_rng(0)
    normal = lambda: jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    mask = jnp.asarray(rng.random((4, 6)) < 0.8)
    ids = jnp.zeros((4, 6), jnp.int32)
    batch = PPOBatch(ids, mask, ids, mask, *(normal() for _ in range(5)))
    new = (batch.logprobs + 0.3 * normal(), normal())
    entropies = jnp.where(mask, normal() ** 2, jnp.nan)
    loss = lambda share: high_entropy_loss(
        *new, entropies, batch, config=HighEntropyConfig(top_entropy=share), count=None
    )
    clips = dict(clip_eps=0.2, value_clip_eps=0.2, vf_coef=1.0, entropy_coef=0.0)
    assert float(loss(1.0)[0]) == float(ppo_loss(*new, entropies, batch, **clips)[0])
    tokens = [row for row in np.argwhere(mask)]
    tokens = sorted(map(tuple, tokens), key=lambda at: -float(entropies[at]))
    kept = tokens[: 1 + int(0.3 * (len(tokens) - 1))]
    ratio = np.exp(np.asarray(new[0] - batch.logprobs))
    clipped = np.clip(ratio, 0.8, 1.2)
    gains = np.minimum(ratio * batch.advantages, clipped * batch.advantages)
    expected = -sum(gains[at] for at in kept) / len(tokens)
    np.testing.assert_allclose(loss(0.3)[1]["loss/policy_avg"], expected, rtol=1e-5)


def test_rloo_compares_an_answer_with_the_others_to_its_prompt(float64):
    rng = np.random.default_rng(0)
    rewards, mask = rng.normal(size=(6, 4)), rng.random((6, 4)) < 0.7
    rewards = np.where(mask, rewards, 0.0)
    advantages, returns = leave_one_out(jnp.asarray(rewards), None, jnp.asarray(mask), K=3)
    total = rewards.sum(axis=1)
    for n in range(6):
        others = [m for m in range(n // 3 * 3, n // 3 * 3 + 3) if m != n]
        expected = np.where(mask[n], total[n] - total[others].mean(), 0.0)
        np.testing.assert_allclose(advantages[n], expected, rtol=0, atol=SAME)
    assert returns is None
    flag, _ = rloo(jnp.asarray(rewards), None, jnp.asarray(mask), group_size=3)
    there = mask.any(axis=1).reshape(2, 3).all(axis=1).repeat(3)
    np.testing.assert_allclose(flag[there], advantages[there], rtol=0, atol=SAME)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """PPO of two iterations from made-up models."""
    folder = tmp_path_factory.mktemp("forks")
    task = tiny.make_task(folder)
    chain = tiny.shrink(quickstart.get_config(), folder / "chain", task, d_model=16)
    tiny.write_data(chain)
    c = chain.resolve().ppo
    tokenizer = load_tokenizer(task.tokenizer)
    lm = tiny.save_model(folder / "lm", tokenizer)
    scalar = tiny.save_model(folder / "scalar", tokenizer, kind="scalar")
    config = replace(
        c, init=lm, reward=(scalar,), iterations=2, ptx_coef=0.0, kl=KLConfig(coef=0.1)
    )
    return lambda name: replace(config, run=replace(config.run, dir=folder / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["high_entropy", "rloo", "median"])
def test_a_fork_runs_and_its_run_is_its_own(name, base):
    module = importlib.import_module(f"experiments.proj.{name}.ppo")
    config = base(name)
    if name == "rloo":
        config = replace(config, value_trunk="none", samples_per_prompt=2)
    elif name == "median":
        config = replace(config, reward=3 * config.reward, missing_eos_penalty=None)
    else:
        config = HighEntropyConfig(**vars(config))
    done = module.run(config)
    rows = [json.loads(line) for line in (config.run.dir / "metrics.jsonl").open()]
    assert len(rows) == 2 and all(np.isfinite(row["loss/policy_avg"]) for row in rows)
    assert ("val/var_explained" in rows[0]) == (name != "rloo")
    if name == "median":  # of one model three times
        each = [rows[0][f"objective/scalar_{n}_scores"] for n in (1, 2, 3)]
        assert {*each, rows[0]["objective/scores"]} == {each[0]}
    kept = load_trained(Path(f"{config.run.dir}@latest"), flag="init")
    assert params_sha256(kept.params) == done["params_sha256"]
    if name == "rloo":
        with pytest.raises(InputError, match="has no value network"):
            load_value(config.run.dir)
    assert module.run(config) == done
    with pytest.raises(InputError, match=f"the fork {name}/ppo.py, and this is no fork"):
        ppo.run(PPOConfig(**{k: v for k, v in vars(config).items() if k != "top_entropy"}))
