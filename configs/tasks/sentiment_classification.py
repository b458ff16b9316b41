"""Sentiment read from a review, as one word.

Command:  python -m experiments.instructgpt --task sentiment_classification
Expected: not yet run to the end; docs/tasks.md has what answers without a model reach.
"""

from dataclasses import replace

from configs.tasks import PROGRAM, fit
from rlhf_jax.config import InstructGPTConfig

LABELER = replace(PROGRAM, tie_width=2.0)
"""Answers of one word are mostly equal: three quarters of such pairs tie."""


def get_config() -> InstructGPTConfig:
    return fit(
        "sentiment_classification",
        corpora={"reviews": 0.7, "gutenberg": 0.3},
        prompt_length=60,
        response_length=4,
        comparisons=1100,
        heldout=160,
        episodes=128,
        labeler=LABELER,
        sft_epochs=3,
    )
