"""SmolLM2-135M-Instruct on two CPU cores: instructions whose fulfilment a program checks (IFEval).

Command:  make smollm CONFIG=configs/smollm_instructions.py
Hardware: 2 CPU cores.
Expected: 25 minutes with AVX-512. That it follows instructions better is not shown
          (docs/smollm.md).
"""

from dataclasses import replace
from pathlib import Path

from configs import smollm
from rlhf_jax.config import InstructGPTConfig, KLConfig

LENGTHS = dict(prompt_length=106, response_length=64)


def get_config() -> InstructGPTConfig:
    c = smollm.get_config()
    return replace(
        c,
        dir=Path("runs/smollm_instructions"),
        task="short_instructions",
        # Of use with a reward model alone: --ppo.reward runs/reward trains one.
        compare=replace(c.compare, **LENGTHS),
        reward=replace(c.reward, **LENGTHS),
        # GRPO, and no reward model: the share of constraints that an answer keeps is the score.
        ppo=replace(
            c.ppo,
            **LENGTHS,
            reward=(Path("gold:short_instructions"),),
            advantage="grpo",
            whiten_advantages=False,
            # Each answer is learnt from once: new ones are worth more than a second look.
            ppo_epochs=1,
            iterations=16,
            samples_per_prompt=8,
            kl=KLConfig(coef=0.02, target=0.0, place="loss", estimator="k3"),
        ),
        evaluate=replace(c.evaluate, **LENGTHS, num_prompts=172, batch_size=43),
    )
