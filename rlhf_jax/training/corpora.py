"""Corpora of raw text: for pretraining, PPO-ptx and the alignment tax."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import TextDataConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.batches import Batches, text_batches
from rlhf_jax.data.datasets import Rows, load_texts, split
from rlhf_jax.data.encoding import encode_texts
from rlhf_jax.data.fates import EncodingReport
from rlhf_jax.data.rows import Text
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError, known
from rlhf_jax.evaluation.metrics import bits_per_byte
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.objectives.language_losses import count_targets
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.training.updates import make_lm_loss
from rlhf_jax.types import LMBatch, Params


class Corpora(NamedTuple):
    """Sets of raw text by name, each with what nothing learns from."""

    names: tuple[str, ...]
    train: tuple[Rows[Text], ...]
    heldout: tuple[Rows[Text], ...]


def load_corpora(config: TextDataConfig, *, flag: str) -> Corpora:
    """Each corpus of ``config``, which ``flag`` gave, with its held-out part.

    Raises InputError if there is none.
    """
    if not config.path:
        raise InputError(f"--{flag}.path is empty: give --{flag}.path FILE.txt or FILE.jsonl")
    names = tuple(path.stem.removeprefix("corpus_") for path in config.path)
    columns = column_names(config.columns)
    load = partial(load_texts, data_dir=config.cache, columns=columns)
    train = [load(path) for path in config.path]
    if config.heldout:
        heldout = [load(path) for path in config.heldout]
    else:
        pairs = [split(rows, heldout_fraction=config.heldout_fraction) for rows in train]
        train, heldout = zip(*pairs, strict=True)
    return Corpora(names, tuple(train), tuple(heldout))


def with_reading(report: EncodingReport, corpora: Corpora) -> EncodingReport:
    """``report`` with what reading has left out of the training text, or done with it."""
    left_out = [row for rows in corpora.train for row in rows.left_out]
    notes = sum((Counter(rows.notes) for rows in corpora.train), Counter())
    return report.with_reading(left_out, notes)


def with_block(config: TextDataConfig, tokens: int) -> TextDataConfig:
    """``config`` with rows of ``tokens`` where it does not say how long they are."""
    return replace(config, block_size=config.block_size or tokens)


def text_stream(
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: TextDataConfig,
    *,
    batch_size: int,
    seed: int,
    local_rows: np.ndarray,
) -> Batches[LMBatch]:
    """Endless packed batches of the training text, mixed by ``config.weights``."""
    return text_batches(
        *[encode_texts(rows, tokenizer) for rows in corpora.train],
        weights=config.weights,
        block_size=known(config.block_size),
        batch_size=batch_size,
        seed=seed,
        pad_id=tokenizer.pad_id,
        local_rows=local_rows,
    )


class TextLoss(NamedTuple):
    """A model's loss on a corpus, batch by batch."""

    nats: np.ndarray
    """Summed over the batch's target tokens."""
    tokens: np.ndarray
    bytes: np.ndarray
    """Of the target tokens; an end of text has none."""


def make_text_evaluation(
    lm: LanguageModel,
    parallel: Parallel,
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: TextDataConfig,
    *,
    batch_size: int,
    max_batches: int,
) -> Callable[[Params], dict[str, float]]:
    """Held-out loss of a model on each corpus: nats per token, and bits per byte."""
    losses = make_text_losses(
        lm, parallel, corpora, tokenizer, config, batch_size=batch_size, max_batches=max_batches
    )
    return lambda params: describe_losses(losses(params))


def describe_losses(losses: Mapping[str, TextLoss]) -> dict[str, float]:
    """Nats per token and bits per byte of each corpus.

    Bits per byte = Σ nats / ln 2 / Σ bytes of the target tokens, which does not depend on the
    tokenizer (an end of text has no bytes but its nats count).
    """
    results = {}
    for name, loss in losses.items():
        total = sum(loss.nats.tolist())
        results[f"eval/{name}/nats_per_token"] = total / sum(loss.tokens.tolist())
        results[f"eval/{name}/bits_per_byte"] = bits_per_byte(total, int(loss.bytes.sum()))
    return results


def make_text_losses(
    lm: LanguageModel,
    parallel: Parallel,
    corpora: Corpora,
    tokenizer: Tokenizer,
    config: TextDataConfig,
    *,
    batch_size: int,
    max_batches: int,
) -> Callable[[Params], dict[str, TextLoss]]:
    """``params -> loss on each corpus``, of the first ``max_batches`` of its held-out text."""
    # Bytes and not characters: a token may hold half of one.
    token_bytes = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)])
    sets = {}
    for name, rows in zip(corpora.names, corpora.heldout, strict=True):
        stream = text_batches(
            encode_texts(rows, tokenizer),
            weights=(),
            block_size=known(config.block_size),
            batch_size=batch_size,
            seed=None,
            pad_id=tokenizer.pad_id,
        )
        # Kept as a list: every evaluation of a run, and every model, is measured on the same
        # batches.
        count = min(max_batches, stream.steps_per_epoch)
        sets[name] = [next(stream) for _ in range(count)]

    losses = make_loss_sums(lm, parallel)

    def evaluate(params: Params) -> dict[str, TextLoss]:
        results = {}
        for name, batches in sets.items():
            bytes_ = [token_bytes[b.tokens][b.loss_mask].sum() for b in batches]
            results[name] = TextLoss(*losses(params, batches), np.array(bytes_))
        return results

    return evaluate


def make_loss_sums(
    lm: LanguageModel, parallel: Parallel
) -> Callable[[Params, Sequence[LMBatch]], tuple[np.ndarray, np.ndarray]]:
    """``(params, batches) -> (nats, tokens)``: of each batch the summed loss and its targets."""
    loss_fn = make_lm_loss(lm, training=False)

    @parallel.function
    def sums(params, batch):
        loss, _ = loss_fn(params, batch, None, jnp.float32(1))  # a count of 1: the sum
        return loss, count_targets(batch)

    def evaluate(params: Params, batches: Sequence[LMBatch]) -> tuple[np.ndarray, np.ndarray]:
        pairs = parallel.fetch([sums(params, parallel.shard_whole(batch)) for batch in batches])
        nats, tokens = (np.array([float(x) for x in part]) for part in zip(*pairs, strict=True))
        return nats, tokens

    return evaluate
