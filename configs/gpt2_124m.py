"""The whole chain on GPT-2's 124M shape and vocabulary, for one accelerator.

Paper:    Radford et al. 2019 for the model; stages as in the quickstart, smaller rates.
Command:  python -m experiments.instructgpt --config configs/gpt2_124m.py
Hardware: not yet run.
Expected: not yet run.
"""

from dataclasses import replace
from pathlib import Path

from configs import quickstart
from rlhf_jax.config import InstructGPTConfig, ModelConfig, OptimConfig, TokenizerConfig


def get_config(seed: str = "0") -> InstructGPTConfig:
    base = quickstart.get_config()
    model = ModelConfig(n_layers=12, d_model=768, n_heads=12, context=1024, dtype="bfloat16")
    return replace(
        base,
        dir=Path("runs/gpt2_124m"),
        seed=int(seed),
        pretrain=replace(
            base.pretrain,
            data=replace(base.pretrain.data, block_size=1024),
            tokenizer=TokenizerConfig(path=Path("data/gpt2_bpe")),
            model=model,
            optim=OptimConfig(lr=6e-4, warmup_steps=100, weight_decay=0.1),
            batch_size=32,
            steps=2000,
        ),
        sft=replace(base.sft, optim=OptimConfig(lr=5e-5, warmup_steps=10)),
        reward=replace(base.reward, optim=OptimConfig(lr=3e-5, warmup_steps=20)),
        ppo=replace(
            base.ppo,
            optim=replace(base.ppo.optim, lr=1e-5),
            value_optim=replace(base.ppo.value_optim, lr=3e-5),
        ),
    )
