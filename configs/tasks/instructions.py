"""Instructions with program-checked constraints (self-instruct, IFEval).

Command:  python -m experiments.instructgpt --task instructions
Expected: PPO wins on 0.79 ± 0.09 against SFT; docs/tasks.md.
"""

from configs.tasks import PROGRAM, fit
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    return fit(
        "instructions",
        corpora={"gutenberg": 0.5, "wikipedia": 0.5},
        prompt_length=128,
        response_length=64,
        compare=dict(num_prompts=700, heldout_prompts=128, labeler=PROGRAM),
        ppo=dict(batch_size=64),
    )
