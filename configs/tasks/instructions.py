"""Instructions with program-checked constraints (self-instruct, IFEval).

Command:  python -m experiments.instructgpt --task instructions
Expected: not yet run to the end; docs/tasks.md has what answers without a model reach.
"""

from configs.tasks import PROGRAM, fit
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    return fit(
        "instructions",
        corpora={"gutenberg": 0.5, "wikipedia": 0.5},
        prompt_length=128,
        response_length=64,
        comparisons=700,
        heldout=128,
        episodes=64,
        labeler=PROGRAM,
    )
