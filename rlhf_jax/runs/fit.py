"""How a run fits its data and its model: lengths in tokens, what they cut, and enough steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlhf_jax.config import (
    AuditConfig,
    CompareConfig,
    DPOConfig,
    EvaluateConfig,
    OptimConfig,
    PPOConfig,
    PreviewConfig,
    RewardConfig,
    SFTConfig,
)
from rlhf_jax.config.bounds import LARGEST_WHOLE
from rlhf_jax.config.data import ANSWER_LENGTH
from rlhf_jax.config.feedback import AnswersConfig
from rlhf_jax.data.demonstrations import every_answer
from rlhf_jax.data.fates import (
    EncodingReport,
    Fate,
    full_lengths,
    of_comparisons,
    of_demonstrations,
    of_prompts,
)
from rlhf_jax.data.formats import Comparison, Demonstration, Prompt
from rlhf_jax.data.lengths import choose_lengths
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError, check, counted, known
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.trained import trained_lengths
from rlhf_jax.training.corpora import with_block
from rlhf_jax.training.optimizers import check_warmup
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.types import ComparisonBatch

Fitted = (
    SFTConfig
    | CompareConfig
    | RewardConfig
    | DPOConfig
    | PPOConfig
    | EvaluateConfig
    | PreviewConfig
    | AuditConfig
    | AnswersConfig
)
C = TypeVar("C", bound=Fitted)

CUT_AT_MOST = 0.02
"""Share of rows that may be cut, or left out for their length, without being asked for."""


def fit_lengths(config: C, rows: Iterable[Fate], *, context: int, stage: str) -> C:
    """``config`` with what ``rows`` (uncut) need for a prompt_length or response_length of None."""
    asked = {name: getattr(config, name) for name in ("prompt_length", "response_length")}
    if None in asked.values():
        full = [full_lengths(fate) for fate in rows]
        tokens = {
            part: np.array([lengths_of_row[part] for lengths_of_row in full], int) for part in PARTS
        }
        chosen = choose_lengths(tokens["prompt"], tokens["response"], context=context, **asked)
        config = replace(config, **chosen._asdict())
        say(
            f"{stage}: prompts of {chosen.prompt_length} and answers of {chosen.response_length} "
            f"tokens, of a context of {context}"
        )
        if isinstance(config, SFTConfig | RewardConfig) and config.privacy.epsilon > 0:
            say(
                f"{stage}: these lengths are those of the data, which ε does not cover: to keep "
                "them private give --prompt-length and --response-length"
            )
    return config


def fit_pairs(
    config: C, rows: Iterable[Comparison], tokenizer: Tokenizer, *, context: int, stage: str
) -> C:
    """``fit_lengths`` to comparisons."""
    uncut = of_comparisons(rows, tokenizer, prompt_length=None, response_length=None)
    return fit_lengths(config, uncut, context=context, stage=stage)


def fit_prompts(
    config: C,
    prompts: Iterable[Prompt],
    tokenizer: Tokenizer,
    *,
    trained: Sequence[Path],
    context: int,
    stage: str,
) -> C:
    """``fit_lengths`` to prompts; answers as the first of the runs ``trained`` knows them."""
    uncut = of_prompts(prompts, tokenizer, prompt_length=None)
    return fit_lengths(fit_answers(config, *trained), uncut, context=context, stage=stage)


def fit_demonstrations(
    config: SFTConfig, rows: Iterable[Demonstration], tokenizer: Tokenizer, *, context: int
) -> SFTConfig:
    """``fit_lengths``, and rows of the same length for the text beside the demonstrations."""
    if config.target == "turns":
        rows = list(rows)
        earlier = [len(row.turns) for row in rows if row.turns]
        say(
            f"sft: {counted(sum(earlier), 'earlier answer')} of {counted(len(earlier), 'row')} "
            f"{'are' if sum(earlier) != 1 else 'is'} learnt too (--target turns)"
        )
        rows = every_answer(rows)
    uncut = of_demonstrations(rows, tokenizer, prompt_length=None, response_length=None)
    config = fit_lengths(config, uncut, context=config.block_size or context, stage="sft")
    block = config.block_size or episode_length(config)
    return replace(config, block_size=block, pretrain_data=with_block(config.pretrain_data, block))


def fit_answers(config: C, *trained: Path) -> C:
    """``config`` with a response_length of None as the first of the runs ``trained`` that knows."""
    if config.response_length is not None:
        return config
    known = [lengths["response_length"] for lengths in map(trained_lengths, trained) if lengths]
    return replace(config, response_length=(*known, ANSWER_LENGTH)[0])


def fit_context(config: C, context: int) -> C:
    """Before there are data: answers of ``ANSWER_LENGTH``, and prompts that fill the context."""
    response = config.response_length or ANSWER_LENGTH
    prompt = config.prompt_length or max(context - response, 1)
    return replace(config, prompt_length=prompt, response_length=response)


def episode_length(config: Fitted) -> int:
    """Tokens of a prompt and its response together."""
    return known(config.prompt_length) + known(config.response_length)


def row_lengths(config: Fitted) -> dict[str, int]:
    """prompt_length and response_length of a config that was fitted to its data."""
    prompt, response = known(config.prompt_length), known(config.response_length)
    return {"prompt_length": prompt, "response_length": response}


def lengths_of(config: Any) -> dict[str, int]:
    """prompt_length, response_length and block_size, as far as ``config`` has them."""
    names = ("prompt_length", "response_length", "block_size")
    lengths = {name: getattr(config, name, None) for name in names}
    return {name: length for name, length in lengths.items() if length is not None}


def check_cut(report: EncodingReport, config: Any, *, context: int, stage: str) -> None:
    """Raise InputError if more than 2 % of the rows do not fit, unless ``config.allow_cut``."""
    rows = report.kept + sum(report.left_out.values())
    # A few long rows are no mistake; many mean that the lengths were set for other data.
    if config.allow_cut or report.over <= CUT_AT_MOST * rows:
        return
    raise InputError(
        f"{report.over} of {rows} rows do not fit: {report.lost()}; "
        f"{_remedy(report.longest, lengths_of(config), context)}, or go on with --allow-cut True "
        f"(in a chain --{stage}.allow-cut True)"
    )


def _remedy(longest: Mapping[str, int], lengths: Mapping[str, int], context: int) -> str:
    """Which flags keep every row, or why none can."""
    prompt, answer = longest["prompt"], longest["response"]
    room = {"prompt_length": prompt, "response_length": answer, "block_size": 0}
    room["block_size"] = sum(max(room[n], lengths[n]) for n in ("prompt_length", "response_length"))
    answers = f"the longest answer {answer}" if answer else f"answers {lengths['response_length']}"
    if prompt + (answer or lengths["response_length"]) > context:
        return (
            f"the longest prompt has {prompt} tokens and {answers}, the model's context {context}: "
            "take a model of a longer context"
        )
    flags = [
        f"--{name.replace('_', '-')} {room[name]}"
        for name, length in lengths.items()
        if room[name] > length
    ]
    return f"{' '.join(flags)} keeps them all"


def choose_packing(
    packing: bool | None,
    data: ComparisonBatch,
    parallel: Parallel,
    *,
    stage: str,
) -> bool:
    """Whether an update reads answers packed: ``packing``, or for None what is less work.

    With padding a query is read once for all its answers, packed it stands before each; what is
    packed is read forward twice, and a tenth of the rows is empty (models/packing.py). Where
    devices share the weights (fsdp) each block would gather them anew: None is padding there.
    """
    queries, K, R = data.queries.shape[1], *np.shape(data.mask)[1:]
    lengths = np.asarray(data.mask).sum(axis=2)
    real = lengths + np.asarray(data.query_mask).sum(axis=1, keepdims=True)
    packed = float(real[lengths > 0].sum()) * (4 / 3) / 0.9
    padded = len(lengths) * (queries + K * R)
    whole = parallel.mesh.shape["fsdp"] == 1
    chosen = whole and packed < padded if packing is None else packing
    if chosen:
        say(f"{stage}: answers are packed: {packed / padded:.2f} of the work of padded rows")
    return chosen


def check_pace(
    stage: str,
    total: int,
    *,
    rows: int = 0,
    batch_size: int = 0,
    of: str = "rows",
    **optims: OptimConfig,
) -> None:
    """Say what a run of ``total`` steps is too short for, or refuse one that cannot learn.

    ``of`` says what a batch is made of.
    """
    check(
        total <= LARGEST_WHOLE,
        f"{stage}: so many epochs are {total} steps, at most {LARGEST_WHOLE} can be counted",
    )
    if rows < batch_size:
        say(f"{stage}: {rows} {of} are fewer than a batch of {batch_size}: each step sees all")
    for flag, optim in optims.items():
        advice = check_warmup(optim, total, flag=flag)
        if advice:
            say(f"{stage}: {advice}")


PARTS = ("prompt", "response")
