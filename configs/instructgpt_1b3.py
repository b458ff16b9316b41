"""InstructGPT 1.3B with the paper's hyper-parameters; reward and value models are the 6B ones.

Paper:    Ouyang et al. 2022, appendix C. The 6B run must exist: its SFT model starts the reward
          model here.
Command:  python -m experiments.instructgpt --config configs/instructgpt_1b3.py
Hardware: not yet run.
Expected: not yet run.
"""

from dataclasses import replace
from pathlib import Path

from configs import instructgpt_6b
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    base = instructgpt_6b.get_config()
    model = replace(base.pretrain.model, n_layers=24, d_model=2048, n_heads=16)
    return replace(
        base,
        dir=Path("runs/instructgpt_1b3"),
        reward_init=Path("runs/instructgpt_6b/sft"),
        pretrain=replace(
            base.pretrain, model=model, optim=instructgpt_6b.adam(2e-4, warmup_steps=375)
        ),
        sft=replace(base.sft, optim=instructgpt_6b.adam(5e-6)),
    )
