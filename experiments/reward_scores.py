"""Scores of written answers by a reward model, and where several of them disagree."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float

from experiments.reward import EVALUATION_ROWS
from experiments.trained import Trained
from rlhf_jax.data.batches import comparison_batches
from rlhf_jax.data.formats import Comparison
from rlhf_jax.models.heads import make_scalar_model
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.types import ComparisonBatch, Params


def make_scorer(
    reward: Trained, parallel: Parallel, *, prompt_length: int, response_length: int
) -> Callable[[Params, Sequence[Comparison]], Float[np.ndarray, "P K"]]:
    """``(params, comparisons) -> scores``, NaN where a prompt has fewer than K responses."""
    model = make_scalar_model(reward.model, reward.vocab_size)

    @parallel.function
    def scores_of(params, batch: ComparisonBatch):
        return model.score_responses(params, *batch[:4], None)

    def score(params: Params, comparisons: Sequence[Comparison]) -> np.ndarray:
        stream = comparison_batches(
            comparisons,
            reward.tokenizer,
            query_length=prompt_length,
            response_length=response_length,
            batch_size=EVALUATION_ROWS,
            seed=None,
        )
        rows = []
        for _ in range(stream.steps_per_epoch):
            batch = next(stream)
            scores = parallel.fetch(scores_of(params, parallel.shard_whole(batch)))
            rows.append(np.where(batch.ranks >= 0, scores, np.nan))
        return np.concatenate(rows)[: len(comparisons)]

    return score


def disagreement(scores: Float[np.ndarray, "M P K"]) -> Float[np.ndarray, "P"]:
    """How much M reward models disagree on the order of each prompt's K responses.

    Mean over pairs i < j of the variance over models of σ(s_i − s_j): 0 where all are sure of the
    same order or all say 1/2, 1/4 where half of them are sure of either.
    """
    K = scores.shape[2]
    i, j = (np.array(column) for column in zip(*combinations(range(K), 2), strict=True))
    gaps = scores[:, :, i] - scores[:, :, j]
    return np.nanmean(np.var(1 / (1 + np.exp(-gaps)), axis=0), axis=1)
