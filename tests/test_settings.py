"""Settings: every number of every config is checked, and none is dropped without a word."""

import dataclasses
import math
import typing

import jax.numpy as jnp
import numpy as np
import pytest

import rlhf_jax.config as configs
from rlhf_jax.cli import load
from rlhf_jax.config import (
    KLConfig,
    PPOConfig,
    RewardConfig,
    SFTConfig,
)
from rlhf_jax.config.bounds import Bounds, Number, numbers_of
from rlhf_jax.errors import InputError
from rlhf_jax.objectives.kl import update_kl_coef

CLASSES = {name: getattr(configs, name) for name in configs.__all__}

# --- numbers --------------------------------------------------------------------------------------

TRIED = {
    "0": (0, 0.0),
    "-1": (-1, -1.0),
    "huge": (10**12, 1e30),
    "bool": (True, True),
    "nan": (None, math.nan),
    "inf": (None, math.inf),
    "-inf": (None, -math.inf),
}
"""What is tried on each field of whole numbers (which cannot be NaN), and on each of others."""

MAY_BE = {
    "AuditConfig": {},
    "BenchmarkConfig": {"prompt": "0", "length": "0", "cores": "0"},
    "CanaryConfig": {"seed": "0"},
    "DPOConfig": {"heldout_fraction": "0", "beta": "huge", "label_smoothing": "0"},
    "EvaluateConfig": {"suite_rows": "0"},
    "FeedbackConfig": {
        **{"seed": "0", "queue": "0", "overlap": "0", "rounds": "0"},
        **{"warmup_steps": "0", "simulated": "0"},
    },
    "HarnessConfig": {"num_fewshot": "0", "limit": "0", "seed": "0"},
    "InstructGPTConfig": {"seed": "0"},
    "KLConfig": {"coef": "0 huge", "target": "0 huge", "horizon": "huge"},
    "LabelerConfig": {"tie_width": "0 huge"},
    "LoRAConfig": {"rank": "0", "alpha": "huge"},
    "ModelConfig": {
        **{"n_kv_heads": "0", "head_dim": "0", "d_ff": "0", "unused_rows": "0"},
        **{"lora_scale": "0 -1 huge", "dropout": "0", "logit_rows": "0"},
    },
    "OptimConfig": {
        # A learning rate that is too large stops the run at its first NaN, with a sentence.
        **{"lr": "huge", "adam_lr": "0 huge", "weight_decay": "0 huge", "clip_norm": "0 huge"},
        **{"warmup_steps": "0", "warmup_init": "0", "final_lr": "0", "ema_decay": "0"},
        **{"b1": "0", "b2": "0"},
    },
    "PPOConfig": {
        **{"gamma": "0", "lam": "0", "clip_eps": "huge", "value_clip_eps": "huge"},
        **{"vf_coef": "0 huge", "ptx_coef": "0 huge", "min_reward_accuracy": "0"},
        "missing_eos_penalty": "0 -1 huge",
    },
    "ParallelConfig": {"devices": "0", "data": "0", "process_id": "0"},
    "PlanConfig": {"vocab_size": "0", "effort": "0 -1"},
    "PrivacyConfig": {"epsilon": "0 huge", "clip_norm": "huge"},
    "RewardConfig": {
        **{"folds": "0", "fold": "0", "heldout_fraction": "0"},
        **{"normalise_rows": "0", "dropout": "0"},
    },
    "RotaryConfig": {
        **{"theta": "huge", "factor": "huge"},
        **{"low_frequency_factor": "huge", "high_frequency_factor": "huge"},
    },
    "RunConfig": {
        **{"seed": "0", "data_seed": "0", "keep_best": "0"},
        **{"eval_every": "0", "stop_after": "0", "profile": "0"},
    },
    "SFTConfig": {"heldout_fraction": "0", "pretrain_mix": "0", "dropout": "0"},
    "SampleConfig": {"seed": "0"},
    "SamplingConfig": {"temperature": "0 huge", "top_k": "0"},
    "SecondRewardConfig": {"weight": "0 huge", "floor": "0 -1 huge", "lr": "huge"},
    "ServeConfig": {"requests_per_second": "huge"},
    "TextDataConfig": {"weights": "huge", "heldout_fraction": "0"},
}
"""Which of ``TRIED`` each field takes; a field that is not here takes none."""


def with_numbers(hint) -> bool:
    """Whether an annotation has a number in it, bounded or not."""
    inside = [part for part in typing.get_args(hint) if not isinstance(part, str)]
    return hint in (int, float) or any(map(with_numbers, inside))


@pytest.mark.parametrize("name", CLASSES)
def test_every_number_of_every_config_has_bounds(name):
    hints = typing.get_type_hints(CLASSES[name])
    numbers = {field for field, hint in hints.items() if with_numbers(hint)}
    assert numbers == set(dict(numbers_of(CLASSES[name])))
    assert set(MAY_BE.get(name, {})) <= numbers


def test_every_config_is_known():
    """A class that a field leads to is among those that are tried."""
    found = set()
    for config_class in CLASSES.values():
        found |= set(filter(dataclasses.is_dataclass, typing.get_type_hints(config_class).values()))
    assert found <= set(CLASSES.values())


NUMBERS = [
    (name, field, number.kind)
    for name, config_class in CLASSES.items()
    for field, number in numbers_of(config_class)
]


@pytest.mark.parametrize("name,field,kind", NUMBERS)
def test_a_number_is_sane_or_refused_by_name(name, field, kind):
    config = CLASSES[name](**GIVEN.get((name, field), {}))
    for tried, values in TRIED.items():
        value = values[kind is float]
        if value is None or not isinstance(value, kind):
            continue
        if isinstance(getattr(config, field), tuple):
            value = (value,)
        if tried in MAY_BE.get(name, {}).get(field, "").split():
            assert getattr(dataclasses.replace(config, **{field: value}), field) == value
        else:
            with pytest.raises(InputError, match=rf"\b{field}=.*: expected a"):
                dataclasses.replace(config, **{field: value})


def test_a_preset_cannot_hide_another_type():
    """Types are checked in tests only, bounds always."""
    whole, real = Number(int, Bounds(1)), Number(float, Bounds(0))
    assert all(whole.problem(value) for value in ("3", None, 1.5, math.nan, math.inf))
    assert all(real.problem(value) for value in ("3", None, [1.0], 1j))
    assert not any(whole.problem(value) for value in (1, np.int64(7)))
    assert not any(real.problem(value) for value in (0, 1.5, np.float32(2)))


GIVEN = {("SecondRewardConfig", "floor"): {"model": configs.SFTConfig().data}}
"""What a field asks of others."""


@pytest.mark.parametrize(
    "config_class,flags,message",
    [
        (SFTConfig, "--run.save-every -1", "--run.save-every -1: expected a whole number, 1 or m"),
        (SFTConfig, "--optim.lr=nan", "--optim.lr nan: expected a number over 0"),
        (SFTConfig, "--epochs 1.5", "--epochs 1.5: expected a whole number, 1 or more"),
        (SFTConfig, "--epochs many", "--epochs many: expected a whole number, 1 or more"),
        (SFTConfig, "--epochs \u22122", "--epochs \u22122: expected a whole number, 1 or more"),
        (SFTConfig, "--optim.lr 1e-50", "--optim.lr 1e-50: expected a number over 0; as float32"),
        (PPOConfig, "--value-optim.eps 0", "--value-optim.eps 0: expected a number in (0, 1]"),
        (PPOConfig, "--kl.target -3", "--kl.target -3: expected a number, 0 or more"),
        (PPOConfig, "--second-reward.floor nan", "--second-reward.floor nan: expected a number"),
        (PPOConfig, "--run.seed 4294967296", "--run.seed 4294967296: expected a whole number, 0"),
        (configs.EvaluateConfig, "--best-of 1 4 0", "--best-of 0: expected a whole number, 1 or"),
        (configs.InstructGPTConfig, "--ppo.kl.coef inf", "--ppo.kl.coef inf: expected a number, 0"),
    ],
)
def test_a_number_is_refused_under_the_flag_that_was_typed(config_class, flags, message):
    with pytest.raises(InputError) as error:
        load(config_class, flags.split())
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "config_class,flags,message",
    [
        (
            PPOConfig,
            "--kl.target 3 --kl.horizon 2 --batch-size 16",
            "kl.horizon=2.0 is not over batch_size / 5 = 3.2",
        ),
        (PPOConfig, "--kl.target 3 --kl.coef 0", "kl.target=3.0 needs kl.coef over 0"),
        (SFTConfig, "--sampling.x 3", "unknown flag --sampling.x"),
        (configs.SampleConfig, "--sampling.temperature 1e-9", "sampling.temperature=1e-09: exp"),
        (SFTConfig, "--lora.targets (", "lora.targets='(' is no regular expression"),
        (configs.PretrainConfig, "--data.weights 0 0", "data.weights=[0.0, 0.0]: expected a share"),
        (RewardConfig, "--folds 1", "fold=0 of folds=1: expected"),
    ],
)
def test_settings_that_cannot_be_together(config_class, flags, message):
    """One line, not a box of tyro's that cuts it."""
    with pytest.raises(InputError) as error:
        load(config_class, flags.split())
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("batch_size", [1, 5, 128, 1000])
def test_the_kl_coefficient_stays_over_zero(batch_size):
    """At the shortest horizon that is taken, and episodes of no divergence at all."""
    horizon = math.nextafter(batch_size / 5, math.inf)
    config = PPOConfig(
        kl=KLConfig(coef=0.1, target=3.0, horizon=horizon * 1.01),
        batch_size=batch_size,
        num_minibatches=1,
    )
    assert update(config, kl=0.0) > 0
    with pytest.raises(InputError, match=r"kl\.horizon"):
        dataclasses.replace(config, kl=KLConfig(coef=0.1, target=3.0, horizon=batch_size / 5))


def update(config: PPOConfig, *, kl: float) -> float:
    rule = dict(target=config.kl.target, horizon=config.kl.horizon, batch_size=config.batch_size)
    return float(update_kl_coef(jnp.float32(config.kl.coef), jnp.float32(kl), **rule))
