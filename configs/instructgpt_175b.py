"""InstructGPT 175B with the paper's hyper-parameters; reward and value models are the 6B ones.

Paper:    Ouyang et al. 2022, appendix C. The 6B run must exist: its SFT model starts the reward
          model here.
Command:  python -m experiments.instructgpt --config configs/instructgpt_175b.py
Hardware: not yet run. Planned for 512 chips of v5p (docs/plans).
Expected: not yet run.
"""

from dataclasses import replace
from pathlib import Path

from configs import instructgpt_6b
from rlhf_jax.config import InstructGPTConfig


def get_config() -> InstructGPTConfig:
    base = instructgpt_6b.get_config()
    model = replace(base.pretrain.model, n_layers=96, d_model=12288, n_heads=96)
    return replace(
        base,
        dir=Path("runs/instructgpt_175b"),
        reward_init=Path("runs/instructgpt_6b/sft"),
        pretrain=replace(
            base.pretrain, model=model, optim=instructgpt_6b.adam(6e-5, warmup_steps=117)
        ),
        sft=replace(base.sft, optim=instructgpt_6b.adam(2.45e-6), batch_size=8, pretrain_mix=0.125),
        ppo=replace(
            base.ppo,
            optim=replace(base.ppo.optim, lr=3.74e-6),
            value_optim=instructgpt_6b.adam(5e-6, schedule="constant"),
        ),
    )
