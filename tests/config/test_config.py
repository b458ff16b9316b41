"""The command line: presets, overrides, hints, and saved configs that load again."""

import json
import pathlib

import pytest

from rlhf_jax.cli import from_dict, load, read_preset, to_dict
from rlhf_jax.config import (
    EvaluateConfig,
    InstructGPTConfig,
    PPOConfig,
    PretrainConfig,
    SamplingConfig,
    SFTConfig,
)
from rlhf_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
OF_A_STAGE = {"__init__", "algorithms"}
PRESETS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in OF_A_STAGE)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_survives_json(path):
    config = read_preset(str(path))
    assert config.resolve().ppo.init == config.dir / "sft"
    saved = json.loads(json.dumps(to_dict(config)))
    assert from_dict(InstructGPTConfig, saved, "x") == config


def test_dotted_overrides_and_the_other_spelling():
    preset = str(ROOT / "configs/quickstart.py")
    first = load(PPOConfig, ["--config", preset, "--kl.coef", "0.07", "--ppo-epochs", "3"])
    second = load(PPOConfig, [f"--config={preset}", "--config.kl.coef=0.07", "--ppo_epochs=3"])
    assert first == second and first.kl.coef == 0.07 and first.ppo_epochs == 3
    assert first.batch_size == read_preset(preset).ppo.batch_size


def test_a_stage_takes_its_section_of_a_whole_chain():
    config = load(SFTConfig, ["--config", str(ROOT / "configs/quickstart.py")])
    assert config.init == pathlib.Path("runs/quickstart/pretrain")


def test_preset_arguments():
    preset = str(ROOT / "configs/forkme.py")
    assert read_preset(f"{preset}:0.3").ppo.kl.coef == 0.3
    assert read_preset(f"{preset}:kl_coef=0.4").ppo.kl.coef == 0.4
    with pytest.raises(InputError, match="get_config"):
        read_preset(f"{preset}:size=3")


@pytest.mark.parametrize(
    "flag,near",
    [
        ("--lrr", "--optim.lr"),
        ("--optim.lrr=1e-3", "--optim.lr"),
        ("--kl.coeff", "--kl.coef"),
        ("--batchsize", "--batch-size"),
        ("--n_minibatches", "--num-minibatches"),
        ("--temperture", "--sampling.temperature"),
        ("--value_clip", "--value-clip-eps"),
    ],
)
def test_a_mistyped_flag_names_the_nearest(flag, near):
    with pytest.raises(InputError) as error:
        load(PPOConfig, [flag, "1"])
    assert near in str(error.value) and flag[2:5].replace("_", "-") in str(error.value)


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--model.n-heads", "3"], "model.d_model=128 is not a multiple of model.n_heads=3"),
        (["--data.block-size", "999"], "data.block_size=999 is over model.context"),
        (["--optim.accumulate", "3"], "batch_size=16 is not a multiple of optim.accumulate=3"),
        (["--optim.optimizer", "muon"], "optim.adam_lr > 0"),
    ],
)
def test_settings_that_contradict_each_other(flags, message, capsys):
    with pytest.raises((InputError, SystemExit)) as error:
        load(PretrainConfig, flags)
    text = str(error.value) + capsys.readouterr().err
    assert message in " ".join(text.replace("│", " ").split())


def test_ppo_refuses_to_score_another_density():
    with pytest.raises(InputError, match="whole distribution"):
        PPOConfig(sampling=PPOConfig().sampling.__class__(top_k=50))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"best_of": ()}, "best_of is empty: expected numbers"),
        ({"best_of": (4, 0)}, "best_of=0: expected a whole number, 1 or more"),
        ({"batch_size": 8}, "batch_size=8 holds no 16 answers"),
        ({"reward": (), "suite": "safety"}, "suite=safety needs one: give --reward"),
        ({"reward": (), "second_reward": pathlib.Path("r")}, "there is a second_reward (r)"),
        (
            {"best_of_curve": (1, 512)},
            "batch_size=256 holds no 512 answers to a prompt (best_of, best_of_curve)",
        ),
        ({"pass_k": (1, 9), "pass_samples": 4}, "pass_k=9 cannot be told from pass_samples=4"),
        ({"pass_k": (300,)}, "batch_size=256 holds no 300 answers to a prompt (pass_k, pass_sam"),
        (
            {"pass_k": (2,), "sampling": SamplingConfig(temperature=0.0)},
            "pass_k=2, but sampling.temperature=0: all answers to a prompt would be the same",
        ),
        ({"num_prompts": 0}, "num_prompts=0: expected a whole number, 1 or more"),
    ],
)
def test_evaluations_that_cannot_be(change, message):
    with pytest.raises(InputError) as error:
        EvaluateConfig(**change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"stepz": 1}, "unknown field 'stepz'; did you mean 'steps'"),
        ({"steps": "many"}, "steps: expected int, found 'many'"),
        ({"optim": {"schedule": "wave"}}, "schedule: expected one of"),
        ({"data": {"path": "x"}}, "path: expected a list"),
    ],
)
def test_a_saved_config_is_read_strictly(change, message):
    with pytest.raises(InputError) as error:
        from_dict(PretrainConfig, change, "config.json")
    assert message in str(error.value)


def test_missing_preset():
    with pytest.raises(InputError, match="no such file"):
        load(PPOConfig, ["--config", "configs/none.py"])
    with pytest.raises(InputError, match="--config needs a file"):
        load(PPOConfig, ["--config"])
