"""Language modelling on five kinds of text, and going on with a sentence of them.

Command:  python -m experiments.instructgpt --task language
Expected: PPO wins on 0.84 ± 0.06 against SFT, for at most 0.016 bits per byte; docs/tasks.md.
"""

from configs.tasks import fit
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    return fit(
        "language",
        corpora={
            "gutenberg": 0.3,
            "wikipedia": 0.2,
            "shakespeare": 0.15,
            "novel": 0.15,
            "wikitext2": 0.2,
        },
        prompt_length=24,
        response_length=40,
        compare=dict(num_prompts=3000, heldout_prompts=300),
        ppo=dict(batch_size=128),
    )
