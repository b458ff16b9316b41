"""Scores of written answers by a reward model, what it has not seen, and where several disagree."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rlhf_jax.data.batches import comparison_batches
from rlhf_jax.data.fates import EncodingReport
from rlhf_jax.data.formats import Comparison
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models.heads import ScalarModel
from rlhf_jax.runs.trained import training_config
from rlhf_jax.tasks.preferences import Fold
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.types import ComparisonBatch, Params

EVALUATION_ROWS = 32
"""Prompts per batch when scoring without gradients."""


class RowScores(NamedTuple):
    """Of the responses to each comparison's prompt, in order."""

    scores: Float[np.ndarray, "P K"]
    """NaN where a prompt has fewer than K responses."""
    lengths: Int[np.ndarray, "P K"]
    """In tokens."""
    ranks: Int[np.ndarray, "P K"]
    """−1 where a response is absent."""
    report: EncodingReport
    """What was cut."""


def make_reward_scorer(
    model: ScalarModel,
    tokenizer: Tokenizer,
    parallel: Parallel,
    *,
    prompt_length: int,
    response_length: int,
    batch_size: int = EVALUATION_ROWS,
) -> Callable[[Params, Sequence[Comparison]], RowScores]:
    """``(params, comparisons) -> RowScores``, without dropout."""

    @parallel.function
    def scores_of(params, batch: ComparisonBatch):
        return model.score_responses(params, *batch[:4], None)

    def score(params: Params, comparisons: Sequence[Comparison]) -> RowScores:
        stream = comparison_batches(
            comparisons,
            tokenizer,
            query_length=prompt_length,
            response_length=response_length,
            batch_size=batch_size,
            seed=None,
            everything=True,
        )
        rows = []
        for _ in range(stream.steps_per_epoch):
            batch = next(stream)
            scores = parallel.fetch(scores_of(params, parallel.shard_whole(batch)))
            scores = np.where(batch.ranks >= 0, scores, np.nan)
            rows.append((scores, batch.mask.sum(axis=2), batch.ranks))
        scores, lengths, ranks = (
            np.concatenate(column)[: len(comparisons)] for column in zip(*rows, strict=True)
        )
        return RowScores(scores, lengths, ranks, stream.report)

    return score


def fold_held_out(path: Path, name: str) -> Fold | None:
    """The fold of the set ``name`` that the run ``path`` held out, if it was a cross-validation."""
    trained = training_config(path)
    if trained.get("folds") and trained["data"] == name:
        return Fold(trained["fold"], trained["folds"])
    return None


def disagreement(scores: Float[np.ndarray, "M P K"]) -> Float[np.ndarray, "P"]:
    """How much M reward models disagree on the order of each prompt's K responses.

    Mean over pairs i < j of the variance over models of σ(s_i − s_j): 0 where all are sure of the
    same order or all say 1/2, 1/4 where half of them are sure of either.
    """
    K = scores.shape[2]
    i, j = (np.array(column) for column in zip(*combinations(range(K), 2), strict=True))
    gaps = scores[:, :, i] - scores[:, :, j]
    return np.nanmean(np.var(1 / (1 + np.exp(-gaps)), axis=0), axis=1)
