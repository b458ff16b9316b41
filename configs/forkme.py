"""A copy of the quickstart to change: derive, replace what your ablation is about, run.

Here: a fixed KL coefficient, where the quickstart has one that holds a number of nats.

Paper:    yours.
Command:  python -m experiments.instructgpt --config configs/forkme.py:kl_coef=0.1
Hardware: as the quickstart.
Expected: not yet run.
"""

from dataclasses import replace
from pathlib import Path

from configs import quickstart
from rlhf_jax.config import InstructGPTConfig, KLConfig


def get_config(kl_coef: str = "0.1") -> InstructGPTConfig:
    base = quickstart.get_config()
    return replace(
        base,
        dir=Path(f"runs/forkme_kl_{kl_coef}"),
        ppo=replace(base.ppo, kl=KLConfig(coef=float(kl_coef))),
    )
