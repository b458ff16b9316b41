"""A preset for each task of rlhf_jax/tasks: the quickstart's recipe at the task's lengths."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs import quickstart
from rlhf_jax.config import InstructGPTConfig, LabelerConfig, TextDataConfig

PROGRAM = LabelerConfig(agreement=0.9)
"""Labelers of scores that a program computes: there is less to disagree about than among people."""


def fit(
    name: str,
    *,
    corpora: Mapping[str, float],
    prompt_length: int,
    response_length: int,
    compare: Mapping[str, Any],
    ppo: Mapping[str, Any],
    sft: Mapping[str, Any] | None = None,
    reward: Mapping[str, Any] | None = None,
    source: str | Path = "data",
) -> InstructGPTConfig:
    """The quickstart for another task: lengths, text, and what each stage's fields say otherwise.

    ``name`` is a module of rlhf_jax/tasks or a .py file of your own, ``source`` its raw data.
    ``corpora`` are the shares of the pretraining text. Batches of text keep about the quickstart's
    1,024 tokens, so longer blocks mean fewer rows.
    """
    q = quickstart.get_config()
    block = prompt_length + response_length
    rows = max(4, 1024 // block)

    def text(config: TextDataConfig) -> TextDataConfig:
        return replace(config, weights=tuple(corpora.values()), block_size=block)

    lengths = dict(prompt_length=prompt_length, response_length=response_length)
    # The models are small: of most tasks more than 2 % of the rows do not fit, and that is said.
    cut = lengths | dict(allow_cut=True)
    return replace(
        q,
        dir=Path("runs") / Path(name).stem,
        task=name,
        source=Path(source),
        corpora=tuple(corpora),
        pretrain=replace(
            q.pretrain,
            data=text(q.pretrain.data),
            model=replace(q.pretrain.model, context=block),
            batch_size=rows,
        ),
        sft=replace(
            q.sft,
            **cut,
            pretrain_data=text(q.sft.pretrain_data),
            block_size=block,
            optim=quickstart.muon(5e-3, adam_lr=3e-3, warmup_steps=10),
            batch_size=rows + 1,
            pretrain_mix=1 / (rows + 1),
            **(sft or {}),
        ),
        compare=replace(q.compare, **cut, **compare),
        reward=replace(q.reward, **cut, **(reward or {})),
        ppo=replace(
            q.ppo,
            **cut,
            ptx_data=text(q.ppo.ptx_data),
            ptx_batch_size=max(2, rows),
            **ppo,
        ),
        evaluate=replace(q.evaluate, **lengths, text=text(q.evaluate.text)),
    )
