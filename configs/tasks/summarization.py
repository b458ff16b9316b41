"""Abstracts of papers in one sentence (SciTLDR), gold score ROUGE.

Command:  python -m experiments.instructgpt --task summarization
Expected: not yet run to the end; docs/tasks.md has what answers without a model reach.
"""

from configs.tasks import PROGRAM, fit
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    return fit(
        "summarization",
        corpora={"abstracts": 0.8, "wikipedia": 0.2},
        prompt_length=192,
        response_length=40,
        comparisons=330,
        heldout=60,
        episodes=64,
        labeler=PROGRAM,
        responses=9,
    )
