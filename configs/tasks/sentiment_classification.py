"""Sentiment read from a review, as one word.

Command:  python -m experiments.instructgpt --task sentiment_classification
Expected: accuracy 0.63 ± 0.05 (SFT), 0.67 ± 0.02 (PPO); docs/tasks.md.
"""

from configs.tasks import PROGRAM, fit
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    return fit(
        "sentiment_classification",
        corpora={"reviews": 0.7, "gutenberg": 0.3},
        prompt_length=60,
        response_length=4,
        sft=dict(epochs=3),
        compare=dict(num_prompts=2300, heldout_prompts=200, labeler=PROGRAM),
        reward=dict(epochs=3),
        ppo=dict(
            batch_size=128,
            min_reward_accuracy=0.55,  # 0.60: it has to read review and answer together
        ),
    )
