"""Settings: every number of every config is checked, and none is dropped without a word."""

import dataclasses
import importlib
import json
import math
import pathlib
import re
import sys
import typing

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import rlhf_jax.config as configs
from benchmarks import config as benchmarks
from experiments import audit, convert, sft
from experiments.feedback.rounds import check_files
from experiments.feedback.stages import first_round
from experiments.instructgpt import check_lengths, check_models
from experiments.reward import demonstrations
from rlhf_jax.cli import flag_of, load, read_preset, say_idle, set_in, to_dict
from rlhf_jax.cli.fields import fields_of
from rlhf_jax.cli.values import choices_in, problem_of
from rlhf_jax.config import (
    DPOConfig,
    KLConfig,
    PPOConfig,
    RewardConfig,
    SFTConfig,
    TextDataConfig,
)
from rlhf_jax.config.bounds import Bounds, Number, numbers_of
from rlhf_jax.config.effect import is_positional, notes_of
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.objectives.kl import update_kl_coef
from rlhf_jax.runs.stage import Stage

ROOT = pathlib.Path(__file__).parents[2]
PRESETS = [path for path in (ROOT / "configs").rglob("*.py") if path.stem != "__init__"]
PRESETS = [path for path in PRESETS if path.parent.name != "studies"]
"""A study's are those of its runs: tests/studies/test_study_plan.py."""
CLASSES = {name: getattr(configs, name) for name in configs.__all__}
CLASSES |= {each.__name__: each for each in (benchmarks.BenchmarkConfig, benchmarks.LabelersConfig)}

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
    "AverageConfig": {"towards_init": "0"},
    "BenchmarkConfig": {"prompt": "0", "length": "0", "cores": "0"},
    "CanaryConfig": {"seed": "0"},
    "ClusterConfig": {"hours": "huge", "gpus": "0"},
    "CombineConfig": {"weights": "-1 huge", "spread_coef": "0 huge", "clip": "huge"},
    "DPOConfig": {
        **{"heldout_fraction": "0", "beta": "huge", "label_smoothing": "0"},
        "sft_coef": "0 huge",
    },
    "EvaluateConfig": {"suite_rows": "0"},
    "AddressConfig": {},
    "AnswersConfig": {},
    "FeedbackAnswerConfig": {"seed": "0", "queue": "0", "overlap": "0"},
    "FeedbackAskConfig": {"overlap": "0"},
    "FeedbackSampleConfig": {"seed": "0", "overlap": "0"},
    "FeedbackSimulateConfig": {"seed": "0", "simulated": "0"},
    "FeedbackUpdateConfig": {"seed": "0", "overlap": "0", "rounds": "0", "warmup_steps": "0"},
    "FeedbackVerdictConfig": {},
    "ScoresConfig": {},
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
        **{"windows": "0", "score_width": "0", "score_cap": "0 huge", "logit_cap": "0 huge"},
    },
    "OptimConfig": {
        # A learning rate that is too large stops the run at its first NaN, with a sentence.
        **{"lr": "huge", "adam_lr": "0 huge", "weight_decay": "0 huge", "clip_norm": "0 huge"},
        **{"warmup_steps": "0", "warmup_share": "0", "warmup_init": "0", "final_lr": "0"},
        "ema_decay": "0",
        **{"b1": "0", "b2": "0"},
    },
    "PairLossConfig": {"beta": "huge", "label_smoothing": "0", "sft_coef": "0 huge"},
    "PPOConfig": {
        **{"staleness": "0", "importance_cap": "huge", "reference_every": "0"},
        **{"gamma": "0", "lam": "0", "clip_eps": "huge", "value_clip_eps": "huge"},
        **{"baseline_decay": "0", "clip_eps_high": "huge", "dual_clip": "huge"},
        **{
            "vf_coef": "0 huge",
            "entropy_coef": "0 huge",
            "ptx_coef": "0 huge",
            "min_reward_accuracy": "0",
        },
        "missing_eos_penalty": "0 -1 huge",
    },
    "LabelersConfig": {"seconds": "huge", "cores": "0"},
    "ParallelConfig": {"devices": "0", "data": "0", "process_id": "0"},
    "PlanConfig": {"vocab_size": "0", "effort": "0 -1"},
    "PreviewConfig": {"rows": "0"},
    "PrivacyConfig": {"epsilon": "0 huge", "clip_norm": "huge"},
    "RewardConfig": {
        **{"folds": "0", "fold": "0", "heldout_fraction": "0"},
        **{"normalise_rows": "0", "dropout": "0"},
    },
    "RotaryConfig": {
        "thetas": "0 huge",
        **{"theta": "huge", "factor": "huge"},
        **{"low_frequency_factor": "huge", "high_frequency_factor": "huge"},
    },
    "RunConfig": {
        **{"seed": "0", "data_seed": "0", "keep_best": "0"},
        **{"eval_every": "0", "stop_after": "0", "profile": "0"},
        "preempted_exit_code": "0",
    },
    "SFTConfig": {"heldout_fraction": "0", "pretrain_mix": "0", "dropout": "0"},
    "SampleConfig": {"seed": "0"},
    "SamplingConfig": {"temperature": "0 huge", "top_k": "0"},
    "SecondRewardConfig": {"weight": "0 huge", "floor": "0 -1 huge", "lr": "huge"},
    "ServeConfig": {"requests_per_second": "huge"},
    "TextDataConfig": {"weights": "huge", "heldout_fraction": "0"},
}
"""Which of ``TRIED`` each field takes; a field that is not here takes none."""


def refusal(action) -> str:
    """What InputError says of it; empty if it is taken."""
    try:
        action()
    except InputError as error:
        return str(error)
    return ""


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
            said = refusal(lambda value=value: dataclasses.replace(config, **{field: value}))
            assert re.search(rf"\b{field}=.*: expected a", said)


def test_a_preset_cannot_hide_another_type():
    """Types are checked in tests only, bounds always."""
    whole, real = Number(int, Bounds(1)), Number(float, Bounds(0))
    assert all(whole.problem(value) for value in ("3", None, 1.5, math.nan, math.inf))
    assert all(real.problem(value) for value in ("3", None, [1.0], 1j))
    assert not any(whole.problem(value) for value in (1, np.int64(7)))
    assert not any(real.problem(value) for value in (0, 1.5, np.float32(2)))


GIVEN = {
    ("AverageConfig", "towards_init"): {"init": configs.SFTConfig().data, "method": "slerp"},
    ("SecondRewardConfig", "floor"): {"model": configs.SFTConfig().data},
}
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
        (PPOConfig, "--kl.place loss", "kl.place=loss needs kl.estimator k2 or k3: the gradient"),
        (
            PPOConfig,
            "--advantage rloo --value-trunk none",
            "advantage=rloo compares the answers to one prompt: samples_per_prompt=1 must be 2",
        ),
        (
            PPOConfig,
            "--advantage reinforce",
            "advantage=reinforce reads no values: value_trunk=separate must be none",
        ),
        (
            PPOConfig,
            "--advantage reinforce --value-trunk none --whiten-rewards True",
            "advantage=reinforce compares returns with those of earlier iterations: whiten_rewards",
        ),
        (PPOConfig, "--ratio sequence", "ratio=sequence weighs whole answers: advantage=gae gives"),
        (
            PPOConfig,
            "--objective imitation --value-trunk none",
            "objective=imitation compares the answers to one prompt: samples_per_prompt=1 must be",
        ),
        (
            PPOConfig,
            "--objective dpo --samples-per-prompt 2",
            "objective=dpo reads no values: value_trunk=separate must be none",
        ),
        (
            PPOConfig,
            "--objective dpo --samples-per-prompt 64 --value-trunk none",
            "objective=dpo learns from whole prompts: batch_size / samples_per_prompt = 2 is not",
        ),
        (
            PPOConfig,
            "--objective dpo --samples-per-prompt 2 --value-trunk none --dpo.loss robust",
            "dpo.loss=robust needs dpo.label_smoothing over 0",
        ),
        (
            PPOConfig,
            "--objective imitation --samples-per-prompt 2 --value-trunk none --kl.place loss "
            "--kl.estimator k2",
            "objective=imitation has a loss without a KL: kl.place=loss must be reward",
        ),
        (
            PPOConfig,
            "--reference-every 2 --lora.rank 4",
            "reference_every=2 with lora.rank=4: below the adapters reference and policy are",
        ),
        (PPOConfig, "--reference-mix 0", "--reference-mix 0: expected a number in (0, 1]"),
        (PPOConfig, "--dual-clip 1", "--dual-clip 1: expected a number over 1"),
        (SFTConfig, "--sampling.x 3", "unknown flag --sampling.x"),
        (configs.SampleConfig, "--sampling.temperature 1e-9", "sampling.temperature=1e-09: exp"),
        (SFTConfig, "--lora.targets (", "lora.targets='(' is no regular expression"),
        (configs.PretrainConfig, "--data.weights 0 0", "data.weights=[0.0, 0.0]: expected a share"),
        (RewardConfig, "--folds 1", "fold=0 of folds=1: expected"),
        (
            DPOConfig,
            "--loss hinge --label-smoothing 0.1",
            "label_smoothing=0.1 with loss=hinge: expected loss sigmoid",
        ),
        (
            configs.EvaluateConfig,
            "--suite safety --policies p --reward a b",
            "reward names 2: suite=safety takes one",
        ),
        (
            configs.EvaluateConfig,
            "--combine.how min --combine.weights 1 2 --reward a",
            "combine.weights has 2 numbers, expected one for each of the 1",
        ),
        (DPOConfig, "--loss robust", "loss=robust needs label_smoothing over 0"),
        (
            configs.PretrainConfig,
            "--model.positions rotary --model.d-model 12",
            "model.rotary.fraction=1.0 of heads of 3 dimensions rotates 3: expected an even number",
        ),
        (
            configs.PretrainConfig,
            "--model.rotary.factor 8 --model.rotary.low-frequency-factor 4",
            "model.rotary.low_frequency_factor=4.0 is not below high_frequency_factor=4.0",
        ),
        (
            SFTConfig,
            "--optim.ema-decay 0.9999999999",
            "--optim.ema-decay 0.9999999999: expected a number in [0, 1); as float32 it is 1",
        ),
    ],
)
def test_settings_that_cannot_be_together(config_class, flags, message, capsys):
    """One line, and no box of tyro's around or beside it."""
    with pytest.raises(InputError) as error:
        load(config_class, flags.split())
    assert str(error.value).startswith(message)
    assert "Value error" not in capsys.readouterr().err


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
    shortest = KLConfig(coef=0.1, target=3.0, horizon=batch_size / 5)
    assert "kl.horizon" in refusal(lambda: dataclasses.replace(config, kl=shortest))


def update(config: PPOConfig, *, kl: float) -> float:
    rule = dict(target=config.kl.target, horizon=config.kl.horizon, batch_size=config.batch_size)
    return float(update_kl_coef(jnp.float32(config.kl.coef), jnp.float32(kl), **rule))


# --- settings without effect ----------------------------------------------------------------------

IMITATION = "--objective imitation --samples-per-prompt 2 --value-trunk none"
IDLE = [
    ("PretrainConfig", "--tokenizer.path t --tokenizer.vocab-size 300", "tokenizer.path is t"),
    ("PretrainConfig", "--init m --tokenizer.path t", "init is m"),
    ("PretrainConfig", "--init m --tokenizer.multiple 8", "init is m"),
    ("PretrainConfig", "--init m --model.d-model 64", "init is m"),
    ("PretrainConfig", "--init m --model.rotary.theta 5.0", "init is m"),
    ("PretrainConfig", "--model.unused-rows 3", None),
    ("PretrainConfig", "--model.lora-scale 3", None),
    ("PretrainConfig", "--model.rotary.theta 5", "model.positions is learned"),
    ("PretrainConfig", "--model.qk-norm-over all", "model.qk-norm is False"),
    (
        "PretrainConfig",
        "--model.positions rotary --model.rotary.stretch all",
        "model.rotary.factor is 1.0",
    ),
    (
        "PretrainConfig",
        "--model.positions rotary --model.rotary.original-context 64",
        "model.rotary.factor is 1.0",
    ),
    ("PretrainConfig", "--data.heldout a b --data.heldout-fraction 0.1", "data.heldout is a b"),
    ("PretrainConfig", "--run.keep-best 2", None),
    ("SFTConfig", "--lora.alpha 8", "lora.rank is 0"),
    ("SFTConfig", "--lora.targets mlp/.*", "lora.rank is 0"),
    ("SFTConfig", "--optim.adam-lr 0.1", "optim.optimizer is adamw"),
    ("SFTConfig", "--optim.schedule constant --optim.final-lr 0", "optim.schedule is constant"),
    ("SFTConfig", "--optim.warmup-steps 3 --optim.warmup-share 0.1", "optim.warmup-steps is 3"),
    ("SFTConfig", "--optim.warmup-steps 0 --optim.warmup-init 0.1", "optim.warmup-steps is 0"),
    ("SFTConfig", "--pretrain-mix 0 --pretrain-data.path a", "pretrain-mix is 0.0"),
    ("SFTConfig", "--privacy.delta 1e-6", "privacy.epsilon is 0.0"),
    ("SFTConfig", "--privacy.clip-norm 1", "privacy.epsilon is 0.0"),
    ("CompareConfig", "--run.save-every 3", None),
    ("CompareConfig", "--run.stop-after 3", None),
    ("CompareConfig", "--run.wandb project", None),
    ("CompareConfig", "--run.trackio project", None),
    *(
        ("ClusterConfig", flag, "kind is none")
        for flag in (
            *("--hours 3", "--gpus 1", "--cpus 4", "--memory-gb 8", "--partition p"),
            "--account a",
        )
    ),
    ("ClusterConfig", "--kind local --cpus 4", "kind is local"),
    ("InstructGPTConfig", "--convert.scan-layers True", "init is not given"),
    ("InstructGPTConfig", "--init m --pretrain.steps 3", "init is m"),
    ("InstructGPTConfig", "--init m --sft.epochs 3", "init is m"),
    ("InstructGPTConfig", "--init m --ablations True", "init is m"),
    ("ConvertConfig", "from-hf m --license mit", "direction is from-hf"),
    ("ConvertConfig", "from-hf m --push o/n", "direction is from-hf"),
    ("ConvertConfig", "to-hf m --private False", "push is"),
    ("ConvertConfig", "to-hf m --part value --evaluation e", "part is value"),
    ("RewardConfig", "--heldout h --heldout-fraction 0.2", "heldout is h"),
    ("RewardConfig", "--privacy.epsilon 3 --demonstrations d", "privacy.epsilon is 3.0"),
    ("RewardConfig", "--privacy.epsilon 3 --normalise-rows 9", "privacy.epsilon is 3.0"),
    ("RewardConfig", "--data pairs.jsonl --source data", "data is pairs.jsonl"),
    ("RewardConfig", "--data pref_pandalm --heldout-fraction 0.2", "data is pref_pandalm"),
    ("AuditConfig", "--data a.jsonl b/c --source data", "data is a.jsonl b/c"),
    ("RewardConfig", "--data pref_pandalm --columns prompt=ask", "data is pref_pandalm"),
    ("EvaluateConfig", "--suite safety --columns prompt=ask", "suite is safety"),
    ("BenchmarkConfig", "--against other --torch-compile True", "against is other"),
    ("BenchmarkConfig", "--against other --baseline-python python", "against is other"),
    ("DPOConfig", "--heldout h --heldout-fraction 0.2", "heldout is h"),
    ("PPOConfig", "--kl.horizon 500", "kl.target is 0.0"),
    ("PPOConfig", "--kl.coef 0 --kl.place loss", "kl.coef is 0.0"),
    ("PPOConfig", "--kl.coef 0 --kl.estimator k3", "kl.coef is 0.0"),
    ("PPOConfig", "--second-reward.weight 2", "second-reward.model is not given"),
    (
        "PPOConfig",
        "--second-reward.model m --second-reward.lr 1",
        "second-reward.floor is not given",
    ),
    ("PPOConfig", "--ptx-batch-size 8", "ptx-coef is 0.0"),
    ("PPOConfig", "--ptx-data.path a", "ptx-coef is 0.0"),
    ("PPOConfig", "--value-optim.accumulate 2", None),
    ("PPOConfig", "--value-optim.ema-decay 0.9", None),
    ("PPOConfig", "--value-trunk shared --value-optim.lr 1", "value-trunk is shared"),
    ("PPOConfig", "--value-trunk shared --value-init m", "value-trunk is shared"),
    ("PPOConfig", "--value-trunk none --vf-coef 2", "value-trunk is none"),
    ("PPOConfig", "--value-trunk none --value-clip-eps 1", "value-trunk is none"),
    ("PPOConfig", "--value-trunk shared --value-head zero", "value-trunk is shared"),
    ("PPOConfig", "--dpo.beta 0.2", "objective is policy_gradient"),
    ("PPOConfig", "--pairs best_worst", "objective is policy_gradient"),
    ("PPOConfig", "--importance-cap 3", "staleness is 0"),
    ("PPOConfig", "--reference-mix 0.5", "reference-every is 0"),
    *(
        ("PPOConfig", f"{IMITATION} --{flag}", "objective is imitation")
        for flag in (
            *("advantage rloo", "policy-loss cispo", "ratio sequence", "clip-eps-high 0.3"),
            *("aggregation sequence_mean", "entropy-coef 0.1", "whiten-advantages False"),
            "whiten-rewards True",
        )
    ),
    ("PPOConfig", "--baseline-decay 0.5", "advantage is gae"),
    ("PPOConfig", "--advantage reinforce --value-trunk none --lam 1", "advantage is reinforce"),
    ("PPOConfig", "--advantage reinforce --value-trunk none --gamma 1", "advantage is reinforce"),
    ("PPOConfig", "--policy-loss unclipped --clip-eps 0.1", "policy-loss is unclipped"),
    ("PPOConfig", "--policy-loss cispo --dual-clip 3", "policy-loss is cispo"),
    ("PPOConfig", "--kl.coef 0 --kl.estimator k3", "kl.coef is 0.0"),
    ("PPOConfig", "--force True --min-reward-accuracy 0.7", "force is True"),
    ("PPOConfig", "--run.keep-best 2", None),
    ("EvaluateConfig", "--suite safety --best-of 4", "suite is safety"),
    ("EvaluateConfig", "--suite safety --second-reward r", "suite is safety"),
    ("EvaluateConfig", "--suite safety --text.path a", "suite is safety"),
    ("EvaluateConfig", "--suite safety --alpaca-eval True", "suite is safety"),
    ("EvaluateConfig", "--suite safety --pass-k 1", "suite is safety"),
    ("EvaluateConfig", "--suite safety --combine.clip 1", "suite is safety"),
    ("EvaluateConfig", "--reward --combine.clip 1", "reward is not given"),
    ("EvaluateConfig", "--reward --best-of 4", "reward is not given"),
    ("EvaluateConfig", "--reward --best-of-curve 1 4", "reward is not given"),
    ("EvaluateConfig", "--pass-samples 4", "pass-k is not given"),
    ("EvaluateConfig", "--suite-rows 4", "suite is task"),
    ("EvaluateConfig", "--text-batches 4", "text.path is not given"),
    ("EvaluateConfig", "--sampling.temperature 0 --best-of 4", "sampling.temperature is 0.0"),
    ("EvaluateConfig", "--sampling.temperature 0 --sampling.top-k 4", "sampling.temperature is 0"),
    ("EvaluateConfig", "--run.log-every 4", None),
    ("SampleConfig", "--chat False --system Hi", "chat is False"),
    ("AverageConfig", "a b --towards-init 0", "init is not given"),
    ("AverageConfig", "a b --columns prompt=ask", "heldout is not given"),
    ("ConvertConfig", "from-hf m --part value", "direction is from-hf"),
    ("ConvertConfig", "from-hf m --dtype float16", "direction is from-hf"),
    ("ConvertConfig", "to-hf m --part adapter --dtype float16", "part is adapter"),
    ("ConvertConfig", "to-hf m --chat-prompts True", "direction is to-hf"),
    ("ConvertConfig", "to-hf m --scan-layers True", "direction is to-hf"),
    ("FeedbackConfig", "--choice random --candidates 2", "choice is random"),
    ("CanaryConfig", "measure --data d", "what is measure"),
    ("CanaryConfig", "measure --repeat 3", "what is measure"),
    ("CanaryConfig", "measure --columns prompt=ask", "what is measure"),
    ("CanaryConfig", "plant --runs r", "what is plant"),
    ("PlanConfig", "--search True --parallel.fsdp 2", "search is True"),
    ("CombineConfig", "--how min --weights 1", "how is min"),
    ("CombineConfig", "--spread-coef 2", "how is mean"),
    ("PPOConfig", "--source elsewhere", "reward is runs/reward"),
]
"""Flags of which the last has no effect, and why; None: it never has one there."""


@pytest.mark.parametrize("name,flags,why", IDLE)
@pytest.mark.cases(40)
def test_a_flag_without_effect_is_said(name, flags, why, capsys):
    load(CLASSES[name], flags.split())
    last = [flag for flag in flags.split() if flag.startswith("--")][-1]
    reason = " here" if why is None else f": {why}"
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(said) == 1 and said[0].startswith(f"note: {last} has no effect{reason}")


def test_each_condition_is_tried():
    """Each annotation of a field that can be without effect is in the table."""
    tried = {(name, flags.split("--")[-1].split()[0]) for name, flags, _ in IDLE}
    for name, config_class in CLASSES.items():
        for field, notes in notes_of(config_class).items():
            if notes and (name, field) not in UNTRIED:
                alike = [flag for _, flag in tried if flag_of(field) in flag.split(".")]
                assert alike, f"{name}.{field}"


UNTRIED = {
    *(("EvaluateConfig", field) for field in ("task", "prompts", "num_prompts", "text_only")),
    *(("CanaryConfig", field) for field in ("out", "alternatives")),
    ("SamplingConfig", "top_p"),
    *(("RotaryConfig", f"{part}_frequency_factor") for part in ("low", "high")),
    *(("ConvertConfig", field) for field in ("compute_dtype", "attention", "remat", "sha256")),
    # Those of ConvertConfig: where a chain brings a model in they always act.
    *(("ImportConfig", field) for field in ("compute_dtype", "attention", "remat", "sha256")),
    *(("ImportConfig", field) for field in ("chat_prompts", "scan_layers")),
}
"""As others of the same condition."""


@pytest.mark.parametrize(
    "name,flags",
    [
        ("PretrainConfig", "--init m --model.dropout 0.1 --model.dtype bfloat16"),
        ("PPOConfig", "--kl.target 3 --kl.horizon 500 --ptx-coef 1 --ptx-data.path a"),
        ("SFTConfig", "--lora.rank 2 --lora.alpha 2 --optim.optimizer muon --optim.adam-lr 1"),
        ("ConvertConfig", "to-hf m --part adapter --base b"),
        ("RewardConfig", "--data pref_pandalm --source elsewhere"),
        ("AuditConfig", "--data pref_llmbar mine.jsonl --source elsewhere"),
        ("EvaluateConfig", "--run.seed 3 --best-of 4 --run.tensorboard False"),
    ],
)
def test_a_flag_with_an_effect_is_not_spoken_of(name, flags, capsys):
    load(CLASSES[name], flags.split())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_set_nothing_without_effect(path, capsys):
    say_idle(preset := read_preset(str(path)), set_in(preset), "")
    assert capsys.readouterr().err == ""


def test_a_preset_s_setting_without_effect_is_said(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from rlhf_jax.config import KLConfig, PPOConfig\n"
        "def get_config():\n    return PPOConfig(kl=KLConfig(horizon=5.0))\n"
    )
    load(PPOConfig, ["--config", str(mine)])
    assert capsys.readouterr().err == (
        f"note: {mine}: kl.horizon has no effect: kl.target is 0.0\n"
    )


@pytest.mark.parametrize(
    "name,flags,message",
    [
        ("InstructGPTConfig", "--ppo.init m", "--ppo.init has no effect"),
        ("InstructGPTConfig", "--sft.run.seed 3", "--sft.run.seed has no effect"),
        ("InstructGPTConfig", "--reward.data d", "--reward.data has no effect"),
        ("FeedbackConfig", "--reward.epochs 7", "--reward.epochs has no effect"),
        ("FeedbackConfig", "--ppo.iterations 7", "--ppo.iterations has no effect"),
        ("FeedbackConfig", "--ppo.reference m", "--ppo.reference has no effect"),
    ],
)
def test_what_stages_in_a_row_fill_in_is_refused(name, flags, message):
    with pytest.raises(InputError) as error:
        resolve = first_round if name == "FeedbackConfig" else None
        load(CLASSES[name], flags.split(), resolve=resolve)
    assert str(error.value).startswith(message) and "in a row" in str(error.value)


def test_a_chain_s_own_flags_pass(capsys):
    load(
        CLASSES["InstructGPTConfig"],
        ["--dir", "x", "--seed", "3", "--ppo.force", "True", "--ppo.iterations", "3"],
    )
    load(
        CLASSES["FeedbackConfig"],
        ["--epochs", "3", "--iterations", "4", "--reward.lora.rank", "2"],
        resolve=first_round,
    )
    assert capsys.readouterr().err == ""


# --- how flags are spelled ------------------------------------------------------------------------

HYPHENS = "flags begin with two hyphens,"


@pytest.mark.parametrize(
    "flags,message",
    [
        (["-epochs", "3"], "unknown flag -epochs: flags begin with two hyphens, --epochs"),
        (
            ["\u2013epochs", "3"],
            "unknown flag \u2013epochs: flags begin with two hyphens, --epochs",
        ),
        (
            ["\u2014epochs=3"],
            "unknown flag \u2014epochs=3: flags begin with two hyphens, --epochs=3",
        ),
        (["--init", ""], "--init is empty: expected a path"),
        (["--data="], "--data is empty: expected a path"),
        (["--run.dir", ""], "--run.dir is empty: expected a path"),
        (["--pretrain-data.path", "a", ""], "--pretrain-data.path is empty: expected a path"),
        (["--optim.lr", ""], "--optim.lr : expected a number over 0"),
    ],
)
def test_slips_of_spelling(flags, message):
    with pytest.raises(InputError) as error:
        load(SFTConfig, flags)
    assert str(error.value) == message


def test_a_flag_that_is_given_twice_is_said(capsys):
    config = load(SFTConfig, ["--epochs", "3", "--optim.lr=1e-3", "--epochs=4"])
    assert config.epochs == 4
    assert capsys.readouterr().err == "note: --epochs is given twice: the last one counts, 4\n"


@pytest.mark.parametrize(
    "config_class,flags,message",
    [
        (PPOConfig, "--optim.schedule wave", "--optim.schedule wave: expected cosine, linear or "),
        (PPOConfig, "--optim.schedule=Linear", "--optim.schedule Linear: .*; did you mean linear?"),
        (PPOConfig, "--force maybe", "--force maybe: expected True or False"),
        (PPOConfig, "--force true", "--force true: expected True or False; did you mean True?"),
        (PPOConfig, "--force", "--force has no value: expected True or False"),
        (PPOConfig, "--gamma --lam 1", "--gamma has no value: expected a number in [0, 1]"),
        (PPOConfig, "--init --lam 1", "--init has no value: expected a path"),
        (PPOConfig, "--gamma 1 0.5", "--gamma 1 0.5: found 2 values, expected one"),
        (PPOConfig, "extra --lam 1", "extra: expected a flag before it, --FIELD VALUE"),
        (configs.PreviewConfig, "--as text2", "--as text2: .*text or None; did you mean text?"),
        (configs.EvaluateConfig, "--best-of 1 x", "--best-of x: expected a whole number, 1 or mor"),
        (configs.ConvertConfig, "from-hff m", "DIRECTION from-hff: .*; did you mean from-hf?"),
        (configs.ConvertConfig, "from-hf m n", "SOURCE m n: found 2 values, expected one"),
        (
            benchmarks.BenchmarkConfig,
            "--suite sft ppp",
            "--suite ppp: expected .*did you mean ppo?",
        ),
    ],
)
def test_other_wrong_values_are_one_line_too(config_class, flags, message, capsys):
    with pytest.raises(InputError) as error:
        load(config_class, flags.split())
    pattern = re.escape(message).replace(re.escape(".*"), ".*")
    assert re.match(pattern, str(error.value)) and "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


CHOICES = [
    (config_class, field, hint)
    for config_class in CLASSES.values()
    for field, hint in fields_of(config_class())
    if "." not in field and choices_in(hint)
]


@pytest.mark.parametrize("config_class,field,hint", CHOICES)
def test_a_word_that_is_none_of_a_field_s_is_told_them(config_class, field, hint):
    """The nearest is suggested, and each that is named is taken."""
    words, shown = choices_in(hint), [] if is_positional(hint) else [f"--{flag_of(field)}"]
    assert len(words) > 1
    for word in words:
        with pytest.raises(InputError) as error:
            load(config_class, [*shown, f"{word}z"])
        name = "".join(shown) or field.upper()
        said = re.fullmatch(
            rf"{name} {word}z: expected (.+) or (.+?); did you mean {word}\?", str(error.value)
        )
        named = [*said[1].split(", "), said[2]]
        assert named == [*words, *["None"] * (said[2] == "None")]
        assert problem_of(word, hint) == ""


# --- presets and saved configs --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text,message",
    [
        ("def get_config(:\n", ", line 1: "),
        ("import rlhf_jax.config\n\n1 / 0\n", ", line 3: ZeroDivisionError: division by zero"),
        ("import not_there\n", ", line 1: ModuleNotFoundError: No module named 'not_there'"),
        ("config = 3\n", " has no function get_config"),
        ("def get_config():\n    return {}['a']\n", ", line 2: KeyError: 'a'"),
        (
            "from rlhf_jax.config import OptimConfig\n\ndef get_config():\n"
            "    return OptimConfig(\n        lr=-1.0)\n",
            ", line 4: optim.lr=-1.0: expected a number over 0",
        ),
        ("def get_config():\n    return 3\n", " gives a int"),
    ],
)
def test_a_preset_that_fails_is_one_sentence(tmp_path, text, message):
    preset = tmp_path / "mine.py"
    preset.write_text(text)
    with pytest.raises(InputError) as error:
        load(PPOConfig, ["--config", str(preset)])
    said = str(error.value)
    assert said.startswith("--config ") and message in said and "\n" not in said


@pytest.mark.parametrize(
    "saved,message",
    [
        ("[]", "not a config saved by this project"),
        ('{"config_class": "PPOConfig"}', "not a config saved by this project ("),
        ('{"config_class": "dataclass", "config": {}}', "no config of the class 'dataclass'"),
        ('{"config_class": "PPOConfig", "config": []}', "expected an object, found []"),
        ('{"config_class": "PPOConfig", "config": {"init": 3}}', "init: expected Path, found 3"),
        ('{"config_class": "PPOConfig", "config": {"kl": 3}}', "kl: expected an object, found 3"),
        (
            '{"config_class": "PPOConfig", "config": {"kl": {"target": -3.0}}}',
            "config.json: kl: kl.target=-3.0: expected a number, 0 or more",
        ),
        ('{"config_class": "PPOConfig", "config": {"kl": {"x": 1}}}', "kl: unknown field 'x'"),
    ],
)
def test_a_saved_config_that_does_not_fit(tmp_path, saved, message):
    path = tmp_path / "config.json"
    path.write_text(saved)
    with pytest.raises(InputError) as error:
        load(PPOConfig, ["--config", str(path)])
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_chain_that_an_older_version_saved_is_read(tmp_path):
    """Its feedback said which command was given, and what export and ask were told."""
    saved = to_dict(config := configs.InstructGPTConfig(seed=3))
    saved["feedback"] |= {"command": "run", "format": "native", "policies": [], "file": None}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config_class": "InstructGPTConfig", "config": saved}))
    assert load(configs.InstructGPTConfig, ["--config", str(path)]) == config
    assert load(configs.FeedbackServeConfig, ["--config", str(path)]).run == config.dir


def test_fields_that_an_older_version_did_not_save_are_said(tmp_path, capsys):
    saved = to_dict(PPOConfig(gamma=0.9))
    del saved["lam"], saved["kl"]["horizon"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config_class": "PPOConfig", "config": saved}))
    assert load(PPOConfig, ["--config", str(path)]) == PPOConfig(gamma=0.9)
    assert capsys.readouterr().err == (
        f"note: {path} is of another version: it does not say kl.horizon, lam, so defaults hold\n"
    )


# --- what a command needs at its end is checked at its start --------------------------------------


def never(*arguments, **options):
    pytest.fail("work was done before the output was checked")


COMMANDS = [
    ("audit", "load_trained", configs.AuditConfig(response_length=3, prompt_length=3)),
    ("plan", "models_of", configs.PlanConfig()),
    ("report", "group_runs", configs.ReportConfig(folders=(pathlib.Path("x"),))),
    ("canaries", "read_demonstrations", configs.CanaryConfig("plant")),
    ("clean", "read_rows", configs.CleanConfig()),
    ("convert", "load_any", configs.ConvertConfig("to-hf")),
]
"""Commands with an output of their own, and the function that would begin the work."""


@pytest.mark.parametrize("name,work,config", COMMANDS, ids=lambda value: str(value)[:9])
def test_an_output_that_cannot_be_written_is_refused_first(name, work, config, tmp_path):
    command = importlib.import_module(f"experiments.{name}")
    file = tmp_path / "notes"
    file.write_text("mine")
    for out in (file / "below", file / "deep" / "below"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError) as error:
            patch.setattr(command, work, never)
            command.run(dataclasses.replace(config, out=out))
        assert str(file) in str(error.value) and "is a file" in str(error.value)
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "name, config",
    [
        ("clean", lambda file: configs.CleanConfig(data=file, out=file)),
        ("clean", lambda file: configs.CleanConfig(data=file.parent, out=file)),
        ("canaries", lambda file: configs.CanaryConfig("plant", data=file, out=file)),
        ("audit", lambda file: configs.AuditConfig(data=(str(file),), out=file)),
    ],
)
def test_an_output_never_replaces_what_the_command_reads(name, config, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    before = file.read_bytes()
    command = importlib.import_module(f"experiments.{name}")
    with pytest.raises(InputError, match=f"{file} is read by this command"):
        command.run(config(file))
    assert file.read_bytes() == before


@pytest.mark.parametrize("logger", ["wandb", "trackio"])
def test_a_missing_logger_is_noticed_before_a_run_is_made(tmp_path, monkeypatch, logger):
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == logger else find(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", without)
    run = configs.RunConfig(dir=tmp_path / "run", **{logger: "project"})
    with pytest.raises(InputError, match=rf"--run\.{logger} project: {logger} is not installed"):
        Stage(SFTConfig(run=run), "sft", sft.__file__).__enter__()
    assert not (tmp_path / "run").exists()


def test_a_report_needs_its_package_first(tmp_path, monkeypatch):
    from experiments import report

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(report, "group_runs", never)
    with pytest.raises(InputError, match="matplotlib, which is not installed"):
        report.write([tmp_path], tmp_path / "report.html")


@pytest.mark.parametrize(
    "change,message",
    [
        (
            {"ppo": PPOConfig(prompt_length=16, response_length=300)},
            "ppo.prompt_length=16 + ppo.response_length=300",
        ),
        ({"evaluate": configs.EvaluateConfig(prompt_length=999)}, "evaluate.prompt_length=999"),
        (
            {"sft": SFTConfig(pretrain_data=TextDataConfig(block_size=512))},
            "sft.pretrain_data.block_size=512 is over model.context=256",
        ),
    ],
)
def test_a_chain_s_lengths_are_checked_before_its_first_stage(change, message):
    check_lengths(configs.InstructGPTConfig())
    with pytest.raises(InputError) as error:
        check_lengths(dataclasses.replace(configs.InstructGPTConfig(), **change))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("missing", ["prompts_ppo", "prompts_evaluation", "corpus_a", "task"])
def test_what_a_round_reads_is_there_before_it_waits_for_people(missing, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("prompts_ppo", "prompts_evaluation"):
        (tmp_path / "data" / f"{name}.jsonl").write_text('{"prompt": "Where is Lund?"}\n')
    (tmp_path / "data" / "corpus_a.txt").write_text("text")
    for file in (tmp_path / "data").glob(f"{missing}*"):
        file.unlink()
    config = configs.FeedbackConfig(
        run=tmp_path, corpora=("a",), ppo=PPOConfig(ptx_coef=1.0), gold=missing == "task", task="x"
    )
    with pytest.raises(InputError, match=missing):
        check_files(config)


@pytest.mark.parametrize(
    "flag",
    ["--reward-init", "--ppo.value-init", "--ppo.second-reward.model", "--evaluate.second-reward"],
)
@pytest.mark.cases(1)
def test_other_models_of_a_chain_are_looked_for_before_its_first_stage(flag, tmp_path):
    """A folder above a run may have an @ in its name, too."""
    folder = tmp_path / "me@home"
    for path in (folder / "none", folder / "none@best"):
        config = load(configs.InstructGPTConfig, [flag, str(path)])
        with pytest.raises(InputError, match=rf"{flag} .*none.*: nothing is there; expected"):
            check_models(config)
    tiny.save_model(folder / "run", train_bpe([""], vocab_size=258))
    config = load(configs.InstructGPTConfig, [flag, str(folder / "run")])
    check_models(config)
    (folder / "run" / "final").rename(folder / "half")
    with pytest.raises(InputError, match="expected the run folder of a finished stage"):
        check_models(config)


def test_demonstrations_are_read_before_a_reward_model_is_trained(tmp_path):
    """Not when they are scored, after it."""
    config = RewardConfig(demonstrations=tmp_path / "none.jsonl", cache=tmp_path)
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        demonstrations(config)


def test_all_sets_of_an_audit_are_found_before_it_scores(tmp_path, monkeypatch):
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    monkeypatch.setattr(audit, "load_trained", never)
    config = configs.AuditConfig(
        reward=(tmp_path,),
        data=(str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")),
        **dict(prompt_length=8, response_length=8),
    )
    with pytest.raises(InputError, match=r"two\.jsonl does not exist"):
        audit.run(config)


@pytest.mark.parametrize("coordinator", ["localhost", ":1234", "here:port", "here:"])
def test_a_coordinator_without_a_port_is_refused(coordinator):
    with pytest.raises(InputError, match="expected HOST:PORT"):
        configs.ParallelConfig(coordinator=coordinator, processes=2)


def test_a_base_without_an_adapter_is_refused(tmp_path):
    wrong = configs.ConvertConfig("from-hf", tmp_path, out=tmp_path / "out", base=tmp_path)
    with pytest.raises(InputError, match=r"is the model below an adapter, but .* is none"):
        convert.run(wrong)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="base has no effect on to-hf"):
        dataclasses.replace(wrong, direction="to-hf")
