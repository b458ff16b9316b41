"""InstructGPT end to end on a laptop: sentiment-steered movie reviews with a 1.3M-parameter GPT.

Paper:    Ouyang et al. 2022, every stage of it, at 1/130,000 of the size.
Command:  python -m experiments.instructgpt --config configs/quickstart.py
Hardware: 2 CPU cores, about 1.9 GB of memory, 8 to 10 minutes with compilation.
          With --ablations True (the alignment tax) about two more.
Expected: the results table of README.md.
"""

from pathlib import Path

from rlhf_jax.config import (
    CompareConfig,
    EvaluateConfig,
    InstructGPTConfig,
    KLConfig,
    ModelConfig,
    OptimConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TextDataConfig,
)

MIX = (0.3, 0.55, 0.15)
"""Shares of gutenberg, reviews and polarity in pretraining text."""

LENGTHS = dict(prompt_length=20, response_length=28)


def muon(lr: float, *, adam_lr: float, warmup_steps: int) -> OptimConfig:
    """Muon as the quickstart's stages have it, with Adam's rate for what is no matrix."""
    return OptimConfig(
        optimizer="muon", lr=lr, adam_lr=adam_lr, warmup_steps=warmup_steps, warmup_init=0.02
    )


def linear(lr: float) -> OptimConfig:
    """Adam as PPO has it here: three iterations of warm-up, then linearly to a tenth."""
    return OptimConfig(
        lr=lr,
        schedule="linear",
        warmup_steps=3,
        warmup_init=0.1,
        final_lr=0.1,
        weight_decay=0.0,
        eps=1e-5,
    )


def get_config() -> InstructGPTConfig:
    text = TextDataConfig(weights=MIX, block_size=64)
    return InstructGPTConfig(
        dir=Path("runs/quickstart"),
        pretrain=PretrainConfig(
            run=RunConfig(save_every=250, eval_every=500),
            data=text,
            model=ModelConfig(n_layers=4, d_model=128, n_heads=4, context=64),
            optim=muon(2e-2, adam_lr=1.6e-2, warmup_steps=50),
            batch_size=16,
            steps=1000,
        ),
        sft=SFTConfig(
            **LENGTHS,
            block_size=64,
            allow_cut=True,  # 15 % of the demonstrations are longer than an answer may be
            pretrain_data=text,
            optim=muon(5e-3, adam_lr=1e-3, warmup_steps=10),
            batch_size=20,
            epochs=2,
        ),
        compare=CompareConfig(
            **LENGTHS, num_prompts=4300, heldout_prompts=300, responses_per_prompt=6
        ),
        reward=RewardConfig(
            **LENGTHS,
            optim=muon(5e-3, adam_lr=3e-3, warmup_steps=20),
            batch_size=8,
            epochs=1,
            unit_std=True,
            normalise_rows=500,
        ),
        ppo=PPOConfig(
            **LENGTHS,
            run=RunConfig(save_every=8, eval_every=4, log_every=1),
            iterations=32,
            batch_size=128,
            ppo_epochs=1,
            num_minibatches=4,
            kl=KLConfig(coef=0.28, target=3.2, horizon=2000.0),
            value_clip_eps=0.5,
            missing_eos_penalty=-1.0,
            ptx_coef=0.3,
            ptx_batch_size=16,
            ptx_data=TextDataConfig(weights=MIX, block_size=48),
            optim=linear(5e-4),
            value_optim=linear(1e-3),
        ),
        evaluate=EvaluateConfig(**LENGTHS, sampling=SamplingConfig(temperature=0.7), text=text),
    )
