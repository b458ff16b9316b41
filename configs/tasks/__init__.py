"""A preset for each task of rlhf_jax/tasks: the quickstart's recipe at the task's lengths."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from configs import quickstart
from rlhf_jax.config import InstructGPTConfig, KLConfig, LabelerConfig

PERSON = LabelerConfig()
"""As often at odds with another as InstructGPT's labelers were."""
PROGRAM = LabelerConfig(agreement=0.9)
"""Of scores that a program computes from people's answers: there is little to disagree about."""


def fit(
    name: str,
    *,
    corpora: Mapping[str, float],
    prompt_length: int,
    response_length: int,
    comparisons: int,
    heldout: int,
    episodes: int,
    labeler: LabelerConfig = PERSON,
    responses: int = 6,
    sft_epochs: int = 2,
    reward_epochs: int = 1,
    kl: KLConfig | None = None,
    min_reward_accuracy: float = 0.6,
) -> InstructGPTConfig:
    """The quickstart for another task: lengths, text and numbers of prompts; the rest is the same.

    ``corpora`` are the shares of the pretraining text. Batches of text keep about the quickstart's
    1,024 tokens, so longer blocks mean fewer rows. ``responses`` are ranked for each prompt.
    """
    q = quickstart.get_config()
    block = prompt_length + response_length
    rows = max(4, 1024 // block)
    text = lambda config: replace(config, weights=tuple(corpora.values()), block_size=block)
    lengths = dict(prompt_length=prompt_length, response_length=response_length)
    return replace(
        q,
        dir=Path("runs") / name,
        task=name,
        corpora=tuple(corpora),
        pretrain=replace(
            q.pretrain,
            data=text(q.pretrain.data),
            model=replace(q.pretrain.model, context=block),
            batch_size=rows,
        ),
        sft=replace(
            q.sft,
            **lengths,
            pretrain_data=text(q.sft.pretrain_data),
            block_size=block,
            epochs=sft_epochs,
            optim=quickstart.muon(5e-3, adam_lr=3e-3, warmup_steps=10),
            batch_size=rows + 1,
            pretrain_mix=1 / (rows + 1),
        ),
        compare=replace(
            q.compare,
            **lengths,
            num_prompts=comparisons,
            heldout_prompts=heldout,
            responses_per_prompt=responses,
            labeler=labeler,
        ),
        reward=replace(q.reward, **lengths, epochs=reward_epochs),
        ppo=replace(
            q.ppo,
            **lengths,
            batch_size=episodes,
            kl=kl or q.ppo.kl,
            min_reward_accuracy=min_reward_accuracy,
            ptx_data=text(q.ppo.ptx_data),
            ptx_batch_size=max(2, rows),
        ),
        evaluate=replace(q.evaluate, **lengths, text=text(q.evaluate.text)),
    )
