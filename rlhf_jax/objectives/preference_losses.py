"""Learning what people prefer, from rankings of K responses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.types import Metrics


def ranked_above(ranks: Int[Array, "B K"]) -> Bool[Array, "B K K"]:
    """[b, i, j] is True where response i is ranked better than j; not for ties or absent ones."""
    better = ranks[:, :, None] < ranks[:, None, :]
    return better & (ranks >= 0)[:, :, None] & (ranks >= 0)[:, None, :]


def count_ranked(ranks: Int[Array, "B K"]) -> Float[Array, ""]:
    """Number of queries with at least one pair that is not tied."""
    return ranked_above(ranks).any(axis=(1, 2)).sum().astype(jnp.float32)


def ranking_loss(
    scores: Float[Array, "B K"],
    ranks: Int[Array, "B K"],
    *,
    count: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """−1/C(K,2) Σ log σ(r(x, y_w) − r(x, y_l)), all pairs of a query (Ouyang et al. 2022, eq. 1).

    Ties are dropped and the pairs that remain are averaged within each query, then queries that
    have any are averaged: a query weighs the same whatever its K. ``count`` is the number of such
    queries in the whole batch.
    """
    pairs = ranked_above(ranks)
    number = jnp.maximum(pairs.sum(axis=(1, 2)), 1)
    count = count_ranked(ranks) if count is None else count
    # Outside the pairs scores may be anything (padding): cut them off before the difference.
    scores = jnp.where((ranks >= 0), scores, 0.0)
    margin = scores[:, :, None] - scores[:, None, :]

    def mean(x):
        per_query = jnp.where(pairs, x, 0.0).sum(axis=(1, 2)) / number
        return per_query.sum() / jnp.maximum(count, 1)

    loss = mean(-jax.nn.log_sigmoid(margin))
    accuracy = mean((margin > 0).astype(margin.dtype))
    return loss, {"loss": loss, "accuracy": accuracy, "margin": mean(margin)}


def dpo_loss(
    logprobs: Float[Array, "B K"],
    ref_logprobs: Float[Array, "B K"],
    ranks: Int[Array, "B K"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    count: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``ranking_loss`` of the implicit reward r = β log π(y|x)/π_ref(y|x) (Rafailov et al. 2023).

    With K = 2 it is their eq. 7: −log σ(β h), h = log π(y_w)/π_ref(y_w) − log π(y_l)/π_ref(y_l).
    Log-probs are sums over the response, its end of text included. ``label_smoothing`` ε is the
    share of labels taken to be wrong: −(1 − ε) log σ(β h) − ε log σ(−β h) (conservative DPO).
    """
    rewards = beta * (logprobs - ref_logprobs)
    loss, metrics = ranking_loss(rewards, ranks, count=count)
    # log σ(−m) = log σ(m) − m
    loss = loss + label_smoothing * metrics["margin"]
    return loss, metrics | {"loss": loss}
