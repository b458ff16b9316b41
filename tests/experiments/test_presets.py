"""Every preset: the paper's numbers, the right size, and a shrunken run of all stages."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax.cli import from_dict, read_preset, to_dict
from rlhf_jax.config import InstructGPTConfig
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.checkpoint_files import load, read_info
from rlhf_jax.runs.checkpoints import load_params
from rlhf_jax.runs.records import dotted_fields

PAPER = ("instructgpt_6b", "instructgpt_1b3", "instructgpt_175b")
NAMES = ("quickstart", "forkme", "gpt2_124m", *PAPER)
STAGES = ("pretrain", "sft", "comparisons", "reward", "ppo", "evaluate")


def path_of(name):
    return tiny.ROOT / "configs" / f"{name}.py"


def preset(name):
    return read_preset(str(path_of(name)))


def test_no_preset_is_left_out():
    found = {path.stem for path in (tiny.ROOT / "configs").glob("*.py")}
    found -= {"__init__", "algorithms"}  # of PPO alone: tests/experiments/test_algorithms.py
    found -= {"smollm", "smollm_instructions"}  # tests/experiments/test_brought_in.py
    assert found == set(NAMES)


# --- the paper's numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,layers,d_model,heads,sft_lr,sft_batch,value_lr",
    [
        ("instructgpt_1b3", 24, 2048, 16, 5e-6, 32, 9e-6),
        ("instructgpt_6b", 32, 4096, 32, 1.04e-5, 32, 9e-6),
        ("instructgpt_175b", 96, 12288, 96, 2.45e-6, 8, 5e-6),
    ],
)
def test_what_depends_on_the_size(name, layers, d_model, heads, sft_lr, sft_batch, value_lr):
    """Ouyang et al. 2022, appendix C; shapes of Brown et al. 2020 (1.3B: Stiennon et al. 2020)."""
    c = preset(name)
    m = c.pretrain.model
    assert (m.n_layers, m.d_model, m.n_heads, m.context) == (layers, d_model, heads, 2048)
    assert (c.sft.optim.lr, c.sft.batch_size) == (sft_lr, sft_batch)
    assert c.ppo.value_optim.lr == value_lr
    # The policy's rate is not printed: the range that was swept, and what diverged without ptx.
    swept = {"instructgpt_175b": (2.55e-6, 3.74e-6)}.get(name, (2.55e-6, 8.05e-6))
    assert swept[0] <= c.ppo.optim.lr <= swept[1]


@pytest.mark.parametrize("name", PAPER)
def test_what_all_sizes_share(name):
    """Ouyang et al. 2022, appendix C."""
    c = preset(name)
    s, r, p = c.sft, c.reward, c.ppo
    for optim in (c.pretrain.optim, s.optim, r.optim, p.optim, p.value_optim):
        assert (optim.optimizer, optim.b1, optim.b2) == ("adamw", 0.9, 0.95)
    # The SFT model that PPO starts from and is held to
    assert (s.epochs, s.pretrain_mix, s.dropout) == (2, 0.125 if s.batch_size == 8 else 0.1, 0.2)
    for optim in (s.optim, r.optim):
        assert (optim.schedule, optim.final_lr, optim.warmup_steps) == ("cosine", 0.1, 0)
    # Reward model: all pairs of K answers, one epoch
    assert 4 <= c.compare.responses_per_prompt <= 9
    assert c.compare.num_prompts == 33_207
    assert (r.optim.lr, r.batch_size, r.epochs) == (9e-6, 64, 1)
    # PPO: 256,000 episodes in 500 iterations of 8 updates
    assert p.iterations * p.batch_size == 256_000
    assert (p.batch_size, p.batch_size // p.num_minibatches, p.ppo_epochs) == (512, 64, 1)
    assert (p.optim.schedule, p.optim.warmup_steps, p.optim.warmup_init) == ("constant", 10, 0.1)
    assert (p.value_optim.schedule, p.value_optim.warmup_steps) == ("constant", 0)
    assert (p.kl.coef, p.kl.target) == (0.02, 0)
    assert (p.clip_eps, p.gamma, p.sampling.temperature) == (0.2, 1.0, 1.0)
    assert p.value_trunk == "separate"
    assert p.optim.ema_decay == 0.992
    # PPO-ptx: eight times as many rows of text as episodes
    assert p.ptx_coef == 27.8
    assert p.ptx_batch_size == 8 * p.batch_size // p.num_minibatches


def test_reward_and_value_are_the_6b_models():
    assert preset("instructgpt_6b").reward_init is None
    for name in ("instructgpt_1b3", "instructgpt_175b"):
        assert preset(name).reward_init == preset("instructgpt_6b").dir / "sft"


def changes(first, second):
    """Fields that two presets differ in."""
    a, b = (dotted_fields(to_dict(preset(name))) for name in (first, second))
    assert a.keys() == b.keys()
    return {name for name in a if a[name] != b[name]}


def test_the_fork_changes_one_thing():
    found = changes("quickstart", "forkme")
    assert found == {"dir", "ppo.kl.coef", "ppo.kl.target", "ppo.kl.horizon"}
    assert preset("forkme").ppo.kl.target == 0


def test_the_1b3_and_the_175b_differ_in_numbers_alone():
    """So that a shrunken run of the one takes the other's paths."""
    sizes = {f"pretrain.model.{name}" for name in ("n_layers", "d_model", "n_heads")}
    rates = {f"{stage}.lr" for stage in ("pretrain.optim", "sft.optim", "ppo.optim")}
    rates |= {"ppo.value_optim.lr", "pretrain.optim.warmup_steps"}
    rows = {"sft.batch_size", "sft.pretrain_mix"}
    assert changes("instructgpt_1b3", "instructgpt_175b") == {"dir"} | sizes | rates | rows


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_survives_json(name):
    config = preset(name).resolve()
    saved = json.loads(json.dumps(to_dict(config)))
    assert from_dict(InstructGPTConfig, saved, name) == config
    changed = replace(config, ppo=replace(config.ppo, lam=0.5))
    assert from_dict(InstructGPTConfig, to_dict(changed), name) != config


# --- sizes ----------------------------------------------------------------------------------------


def count_parameters(name, vocabulary):
    lm = make_language_model(preset(name).pretrain.model, vocabulary)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_gpt2_has_exactly_its_parameters():
    """124,439,808 as OpenAI released it; our vocabulary has one row more, of padding."""
    assert count_parameters("gpt2_124m", 50_257) == 124_439_808
    vocabulary = load_tokenizer(tiny.ROOT / preset("gpt2_124m").pretrain.tokenizer.path).vocab_size
    assert count_parameters("gpt2_124m", vocabulary) == 124_439_808 + 768


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,expected",
    [("instructgpt_1b3", 1.3e9), ("instructgpt_6b", 6.7e9), ("instructgpt_175b", 175e9)],
)
def test_sizes_are_those_of_the_names(name, expected):
    assert count_parameters(name, 50_258) == pytest.approx(expected, rel=0.015)


# --- shrunken runs --------------------------------------------------------------------------------

SIZES = (
    *("dir", "source", "reward_init", "ppo.force"),
    *("pretrain.steps", "pretrain.eval_batches", "pretrain.model.n_layers"),
    *("pretrain.model.d_model", "pretrain.model.n_heads", "pretrain.model.context"),
    *("pretrain.tokenizer.vocab_size", "pretrain.tokenizer.path"),
    "sft.heldout_fraction",
    *("compare.num_prompts", "compare.heldout_prompts", "compare.prompts_per_batch"),
    *("reward.normalise_rows", "ppo.iterations", "ppo.ptx_batch_size"),
    *("evaluate.num_prompts", "evaluate.text_batches"),
)
ENDINGS = ("block_size", "batch_size", "prompt_length", "response_length", "cache", "allow_cut")
RUN = ("save_every", "log_every", "eval_every", "tensorboard")


@pytest.mark.parametrize("name", NAMES)
def test_shrinking_keeps_every_option(name, tmp_path):
    task = tiny.Task(tmp_path / "data", tmp_path / "tokenizer")
    before = dotted_fields(to_dict(preset(name)))
    after = dotted_fields(to_dict(tiny.shrink(preset(name), tmp_path / name, task)))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    is_size = lambda field: field in SIZES or field.rpartition(".")[2] in ENDINGS + RUN
    # Packed programs take longer to compile; test_chain.py and test_task_chain.py run them.
    assert {field for field in changed if not is_size(field)} <= {"ppo.packing"}
    assert {"pretrain.model.n_layers", "pretrain.steps", "ppo.iterations"} <= changed


RUN_HERE = ("gpt2_124m", "instructgpt_6b", "instructgpt_175b")
"""The 1.3B preset takes the 175B one's paths; the fork the quickstart's, as test_chain.py does."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of shrunken presets, run in a process of their own."""
    folder = tmp_path_factory.mktemp("presets")
    tiny.make_task(folder)
    command = [sys.executable, tiny.__file__, folder, *map(path_of, RUN_HERE)]
    done = subprocess.run(command, env=tiny.process_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def rows(path):
    return [json.loads(line) for line in path.open()]


def width(folder):
    return read(folder, "model.json")["model"]["d_model"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_HERE)
def test_a_shrunken_preset_runs_its_stages(runs, name):
    folder, c = runs / name, preset(name)
    done = {stage: read(folder / stage, "DONE") for stage in STAGES}
    assert [done[stage]["steps"] for stage in ("pretrain", "sft", "ppo")] == [2, 2, 2]
    assert done["ppo"]["params_sha256"] != done["sft"]["params_sha256"]
    policies = done["evaluate"]["policies"]
    assert set(policies) == {"sft", "ppo", *(f"best_of_{n}" for n in c.evaluate.best_of)}
    for stage in ("pretrain", "sft", "reward", "ppo"):
        params = load_params(folder / stage / "final")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        assert ("blocks" in params["trunk"]) == c.pretrain.model.scan_layers
        model = read(folder / stage, "model.json")["model"]
        assert model["dtype"] == c.pretrain.model.dtype
        scan = c.pretrain.model.scan_layers
        assert (model["scan_layers"], model["remat"]) == (scan, "full" if scan else "none")
    assert read(folder / "sft", "model.json")["model"]["dropout"] == c.sft.dropout


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_HERE)
def test_a_shrunken_preset_takes_its_own_options(runs, name):
    folder, c = runs / name, preset(name)
    first = {stage: rows(folder / stage / "metrics.jsonl")[0] for stage in ("pretrain", "sft")}
    first |= {stage: rows(folder / stage / "metrics.jsonl")[0] for stage in ("reward", "ppo")}
    for stage, row in first.items():
        optim = getattr(c, stage).optim
        start = optim.lr * (optim.warmup_init if optim.warmup_steps else 1.0)
        assert row["lr"] == pytest.approx(start)
    assert first["ppo"]["objective/kl_coef"] == pytest.approx(c.ppo.kl.coef)
    assert first["ppo"]["loss/ptx_avg"] > 0
    gain = read(folder / "reward", "DONE")["gain"]
    assert (gain != 1.0) == c.reward.unit_std
    K = c.compare.responses_per_prompt
    assert {len(row["responses"]) for row in rows(folder / "comparisons" / "train.jsonl")} == {K}
    # Optimizer updates: iterations x epochs x minibatches, of which the average is one
    checkpoint = folder / "ppo" / "checkpoints" / "2"
    info = read_info(checkpoint)
    train = load(checkpoint, {"train": None})["train"]
    assert train["step"] == 2 * c.ppo.ppo_epochs * c.ppo.num_minibatches
    assert any(leaf.startswith("ema/") for leaf in info["leaves"]) == (c.ppo.optim.ema_decay > 0)


@pytest.mark.slow
def test_a_policy_of_another_size_uses_the_6b_reward_model(runs):
    assert width(runs / "instructgpt_6b" / "ppo") == 48
    large = runs / "instructgpt_175b"
    assert width(large / "ppo") == 32 and width(large / "reward") == 48
