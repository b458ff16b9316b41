"""Everyday Chinese sentences into English (Tatoeba), gold score chrF.

Command:  python -m experiments.instructgpt --task translation
Expected: PPO wins on 0.60 ± 0.04 against SFT, at equal length on 0.51 (docs/tasks.md).
"""

from configs.tasks import PROGRAM, fit
from rlhf_jax.config import InstructGPTConfig, KLConfig


def get_config() -> InstructGPTConfig:
    return fit(
        "translation",
        corpora={"english": 0.45, "chinese": 0.35, "novel": 0.2},
        prompt_length=48,
        response_length=32,
        compare=dict(num_prompts=2000, heldout_prompts=300, labeler=PROGRAM),
        ppo=dict(
            batch_size=128,
            kl=KLConfig(coef=0.2, target=6.0, horizon=2000.0),
            min_reward_accuracy=0.55,  # 0.59 to 0.64: so small a model hardly sees what is nearer
        ),
    )
