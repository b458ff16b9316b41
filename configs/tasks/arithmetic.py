"""Sums, differences and products below 100: a program is the only reward, and pass@k the measure.

Command:  python -m experiments.instructgpt --task arithmetic
Expected: pass@1 0.11 ± 0.02, pass@16 0.59 ± 0.06 after SFT; PPO gains nothing yet; docs/tasks.md.
"""

from dataclasses import replace
from pathlib import Path

from configs.quickstart import linear
from configs.tasks import PROGRAM, fit
from rlhf_jax.config import (
    InstructGPTConfig,
    KLConfig,
    PPOConfig,
    RunConfig,
    SamplingConfig,
    TokenizerConfig,
)

LENGTHS = dict(prompt_length=40, response_length=16)
"""In bytes, which are the tokens here."""


def get_config() -> InstructGPTConfig:
    c = fit(
        "arithmetic",
        corpora={"equations": 1.0},
        **LENGTHS,
        # Of use with a reward model alone: --ppo.reward runs/reward trains one.
        compare=dict(num_prompts=2300, heldout_prompts=200, labeler=PROGRAM),
        ppo={},
    )
    return replace(
        c,
        # A number is a row of digits.
        pretrain=replace(c.pretrain, tokenizer=TokenizerConfig(vocab_size=258)),
        ppo=PPOConfig(
            **LENGTHS,
            run=RunConfig(save_every=8, eval_every=4, log_every=1),
            reward=(Path("gold:arithmetic"),),
            value_trunk="none",
            advantage="rloo",
            whiten_advantages=False,
            iterations=16,
            batch_size=256,
            samples_per_prompt=8,
            num_minibatches=2,
            kl=KLConfig(coef=0.02, target=0.0),
            optim=linear(2e-4),
        ),
        evaluate=replace(c.evaluate, sampling=SamplingConfig(), pass_k=(1, 4, 16)),
    )
