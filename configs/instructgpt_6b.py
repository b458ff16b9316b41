"""InstructGPT 6B with the paper's hyper-parameters.

Paper:    Ouyang et al. 2022, appendix C (policy learning rate and λ are not printed there: the
          rate is the largest that did not diverge without ptx, λ is that of Stiennon et al. 2020).
Command:  python -m experiments.instructgpt --config configs/instructgpt_6b.py
Hardware: not yet run.
Expected: not yet run.
"""

from pathlib import Path

from rlhf_jax.config import (
    CompareConfig,
    EvaluateConfig,
    InstructGPTConfig,
    KLConfig,
    ModelConfig,
    OptimConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TextDataConfig,
    TokenizerConfig,
)

TEXT = TextDataConfig(block_size=2048)
LENGTHS = dict(prompt_length=1024, response_length=1024)
SAMPLING = SamplingConfig(temperature=1.0)


def adam(lr: float, **changes) -> OptimConfig:
    """Adam with β₂ = 0.95, no weight decay, cosine to 10 % without warm-up."""
    return OptimConfig(lr=lr, b2=0.95, weight_decay=0.0, **{"warmup_steps": 0} | changes)


def get_config() -> InstructGPTConfig:
    model = ModelConfig(
        n_layers=32,
        d_model=4096,
        n_heads=32,
        context=2048,
        scan_layers=True,
        remat="full",
        dtype="bfloat16",
    )
    return InstructGPTConfig(
        dir=Path("runs/instructgpt_6b"),
        pretrain=PretrainConfig(
            data=TEXT,
            tokenizer=TokenizerConfig(path=Path("data/gpt2_bpe"), multiple=128),
            model=model,
            optim=adam(1.2e-4, warmup_steps=200),
            batch_size=1024,
            steps=143_000,
        ),
        # The SFT of PPO's start and KL reference: 2 epochs with 10 % pretraining text.
        sft=SFTConfig(
            pretrain_data=TEXT,
            pretrain_mix=0.1,
            block_size=2048,
            dropout=0.2,
            optim=adam(1.04e-5),
            batch_size=32,
            epochs=2,
            **LENGTHS,
        ),
        compare=CompareConfig(
            num_prompts=33_207,
            heldout_prompts=2_000,
            responses_per_prompt=9,
            sampling=SAMPLING,
            **LENGTHS,
        ),
        reward=RewardConfig(optim=adam(9e-6), batch_size=64, epochs=1, **LENGTHS),
        ppo=PPOConfig(
            run=RunConfig(save_every=25, eval_every=10, log_every=1),
            sampling=SAMPLING,
            iterations=500,
            batch_size=512,
            ppo_epochs=1,
            num_minibatches=8,
            # Where devices share the weights, each block of rows would gather them anew.
            packing=False,
            kl=KLConfig(coef=0.02),
            gamma=1.0,
            lam=0.95,
            clip_eps=0.2,
            ptx_coef=27.8,
            ptx_batch_size=512,
            ptx_data=TEXT,
            optim=adam(
                8.05e-6, schedule="constant", warmup_steps=10, warmup_init=0.1, ema_decay=0.992
            ),
            value_optim=adam(9e-6, schedule="constant"),
            **LENGTHS,
        ),
        evaluate=EvaluateConfig(sampling=SAMPLING, text=TEXT, **LENGTHS),
    )
