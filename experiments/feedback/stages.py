"""Rounds as folders and stages: where each round keeps what it makes, and what its stages are told.

RUN/sft, RUN/data                      of the chain: read
RUN/feedback/round_001/reward_0, _1    the reward models of the first round
RUN/feedback/round_001/ppo             its policy
"""

from dataclasses import replace
from pathlib import Path

from rlhf_jax.config import (
    FeedbackUpdateConfig,
    PPOConfig,
    ProgramsConfig,
    RewardConfig,
    RunConfig,
)
from rlhf_jax.config.feedback import LoopConfig
from rlhf_jax.errors import check

# --- folders --------------------------------------------------------------------------------------


def sft(config: LoopConfig) -> Path:
    """The model that the rounds begin with, and that PPO is held to."""
    return config.run / "sft"


def check_sft(config: LoopConfig) -> None:
    """Raise InputError unless the chain has come to a finished SFT model."""
    finished = (sft(config) / "final").is_dir()
    check(finished, f"--run {config.run}: it has no finished sft/ to start from")


def data(config: LoopConfig) -> Path:
    """Prompts, demonstrations and text of the chain."""
    return config.run / "data"


def round_dir(config: LoopConfig, number: int) -> Path:
    """What a round makes."""
    return config.dir / f"round_{number:03}"


def policy(config: LoopConfig, number: int) -> Path:
    """The policy of a round; that of round 0 is the SFT model."""
    return round_dir(config, number) / "ppo" if number else sft(config)


def policy_name(config: LoopConfig, number: int) -> str:
    """What the store calls the policy of a round, wherever the run folder is."""
    return policy(config, number).relative_to(config.run).as_posix()


def reward_model(config: LoopConfig, number: int, member: int) -> Path:
    """A member of the ensemble of a round."""
    return round_dir(config, number) / f"reward_{member}"


def programs(config: LoopConfig, run: RunConfig | ProgramsConfig) -> Path:
    """Where a stage with these settings keeps its compiled programs."""
    return run.compile_cache or config.dir / "programs"


# --- stages ---------------------------------------------------------------------------------------


def first_round(config: FeedbackUpdateConfig) -> FeedbackUpdateConfig:
    """With the stages of the first round, which shows what the rounds fill in."""
    return replace(config, reward=reward_stage(config, 1, 0), ppo=ppo_stage(config, 1))


def reward_stage(config: FeedbackUpdateConfig, number: int, member: int) -> RewardConfig:
    """A member of the ensemble of round ``number``, trained on all labels so far."""
    demonstrations = data(config) / "demonstrations.jsonl"
    folder = round_dir(config, number)
    own = reward_model(config, number, member)
    return replace(
        config.reward,
        run=stage_run(config, config.reward.run, own, offset=member),
        init=sft(config),
        data=folder / "train.jsonl",
        heldout=folder / "heldout.jsonl",
        cache=folder / "cache",
        epochs=config.epochs,
        optim=replace(config.reward.optim, warmup_steps=config.warmup_steps),
        demonstrations=demonstrations if demonstrations.exists() else None,
    )


def ppo_stage(config: FeedbackUpdateConfig, number: int) -> PPOConfig:
    """From the policy of the round before, held to the SFT model."""
    text = config.ppo.ptx_data
    if config.ppo.ptx_coef:
        paths = tuple(data(config) / f"corpus_{name}.txt" for name in config.corpora)
        text = replace(text, path=paths)
    return replace(
        config.ppo,
        run=stage_run(config, config.ppo.run, policy(config, number), offset=number),
        init=policy(config, number - 1),
        reference=sft(config),
        reward=(reward_model(config, number, 0),),
        prompts=data(config) / "prompts_ppo.jsonl",
        iterations=config.iterations,
        ptx_data=text,
    )


def stage_run(
    config: FeedbackUpdateConfig, run: RunConfig, folder: Path, *, offset: int
) -> RunConfig:
    """Each stage of each round in its folder, with its own order of the data."""
    # Members of an ensemble differ in their seed alone, which orders their data and draws their
    # heads.
    seed = 1000 * config.seed + offset
    cache = programs(config, run)
    return replace(run, dir=folder, seed=seed, data_seed=seed, compile_cache=cache)
