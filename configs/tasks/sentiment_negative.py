"""Negative movie reviews: the quickstart with every prompt turned round.

Command:  python -m experiments.instructgpt --task sentiment_negative
Expected: PPO wins on 0.88 ± 0.06 against SFT, at 3.1 nats (docs/tasks.md).
"""

from configs.quickstart import LENGTHS
from configs.tasks import fit
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    return fit(
        "sentiment_negative",
        corpora={"gutenberg": 0.3, "reviews": 0.55, "polarity": 0.15},
        **LENGTHS,
        compare=dict(num_prompts=4000, heldout_prompts=300),
        ppo=dict(batch_size=128),
    )
