"""Learning what people prefer, from rankings of K responses."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.types import Metrics

PairLoss = Literal["sigmoid", "ipo", "hinge", "robust"]
"""Losses of one pair (``pair_loss``), by TRL's names."""


def ranked_above(ranks: Int[Array, "B K"]) -> Bool[Array, "B K K"]:
    """[b, i, j] is True where response i is ranked better than j; not for ties or absent ones."""
    # Strictly less: 0 is the best rank, and a tie is a pair in neither order.
    better = ranks[:, :, None] < ranks[:, None, :]
    return better & (ranks >= 0)[:, :, None] & (ranks >= 0)[:, None, :]


def count_ranked(ranks: Int[Array, "B K"]) -> Float[Array, ""]:
    """Number of queries with at least one pair that is not tied."""
    return ranked_above(ranks).any(axis=(1, 2)).sum().astype(jnp.float32)


def mean_over_pairs(
    x: Float[Array, "B K K"], ranks: Int[Array, "B K"], count: Float[Array, ""] | float | None
) -> Float[Array, ""]:
    """The mean of x[b, w, l] over the pairs of a query (w ranked above l), then over queries.

    Ties are no pairs, and queries without any pair are no queries: a query weighs the same whatever
    its K. ``count`` is the number of queries with a pair in the whole batch.
    """
    pairs = ranked_above(ranks)
    # Divided per query first: a query of K = 9 has 36 pairs and would outweigh 36 queries of two.
    number = jnp.maximum(pairs.sum(axis=(1, 2)), 1)
    count = count_ranked(ranks) if count is None else count
    per_query = jnp.where(pairs, x, 0.0).sum(axis=(1, 2)) / number
    return per_query.sum() / jnp.maximum(count, 1)


def score_margins(scores: Float[Array, "B K"], ranks: Int[Array, "B K"]) -> Float[Array, "B K K"]:
    """[b, i, j] is score i less score j; an absent response's may be anything, and counts as 0."""
    # An absent response has a score too, of no answer: it reaches neither value nor gradient.
    scores = jnp.where(ranks >= 0, scores, 0.0)
    return scores[:, :, None] - scores[:, None, :]


def ranking_loss(
    scores: Float[Array, "B K"],
    ranks: Int[Array, "B K"],
    *,
    count: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """−1/C(K,2) Σ log σ(r(x, y_w) − r(x, y_l)), all pairs of a query (Ouyang et al. 2022, eq. 1).

    Ties are dropped and the pairs that remain are averaged within each query, then queries that
    have any are averaged (``mean_over_pairs``).
    """
    margin = score_margins(scores, ranks)
    loss = mean_over_pairs(-jax.nn.log_sigmoid(margin), ranks, count)
    return loss, {"loss": loss, **order_metrics(margin, ranks, count)}


def order_metrics(
    margin: Float[Array, "B K K"], ranks: Int[Array, "B K"], count: Float[Array, ""] | float | None
) -> Metrics:
    """How many pairs are ordered as ranked, and by how much."""
    right = (margin > 0).astype(margin.dtype)
    return {
        "accuracy": mean_over_pairs(right, ranks, count),
        "margin": mean_over_pairs(margin, ranks, count),
    }


def dpo_loss(
    logprobs: Float[Array, "B K"],
    ref_logprobs: Float[Array, "B K"],
    ranks: Int[Array, "B K"],
    lengths: Int[Array, "B K"] | None = None,
    *,
    beta: float,
    loss: PairLoss = "sigmoid",
    label_smoothing: float = 0.0,
    per_token: bool = False,
    sft_coef: float = 0.0,
    count: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """A ``pair_loss`` of the implicit reward r = β log π(y|x)/π_ref(y|x) (Rafailov et al. 2023).

    All pairs of a query are one element, as in ``ranking_loss``; with K = 2 it is the papers' loss.
    Log-probs are sums over the response, its end of text included. ``per_token`` divides each
    log-ratio in the loss by its response's number of tokens, ``lengths``; accuracy and margin are
    of r all the same.

    ``sft_coef`` α adds α · ``best_nll``, per token of the best-ranked response (RPO, Pang et al.
    2024, §2). TRL's term is a mean over all tokens of a batch, in which long answers weigh more.
    """
    rewards = beta * (logprobs - ref_logprobs)
    margin = score_margins(rewards, ranks)
    metrics = order_metrics(margin, ranks, count)
    # Of whole answers, before ``per_token`` divides them: probability mass has no length.
    metrics |= displacement(logprobs, ref_logprobs, ranks, count=count)
    if per_token:
        margin = score_margins(rewards / jnp.maximum(known_lengths(lengths), 1), ranks)
    pair_losses = pair_loss(margin, loss=loss, beta=beta, label_smoothing=label_smoothing)
    total = mean_over_pairs(pair_losses, ranks, count)
    if sft_coef:
        nll = best_nll(logprobs, known_lengths(lengths), ranks, count=count)
        total, metrics = total + sft_coef * nll, metrics | {"sft_loss": nll}
    return total, {"loss": total, **metrics}


def pair_loss(
    margin: Float[Array, "..."], *, loss: PairLoss, beta: float, label_smoothing: float
) -> Float[Array, "..."]:
    """The loss of one pair, of its margin m = β h, h = log π(y_w)/π_ref(y_w) − the same of y_l.

    sigmoid   −(1 − ε) log σ(m) − ε log σ(−m)                  Rafailov et al. 2023, eq. 7
    robust    (−(1 − ε) log σ(m) + ε log σ(−m)) / (1 − 2ε)     Chowdhury et al. 2024
    ipo       (h − 1/(2β))²                                    Azar et al. 2023, eq. 17, β their τ
    hinge     max(0, 1 − m)                                    SLiC: Zhao et al. 2023

    ε is the share of labels taken to be wrong. Sigmoid with ε is conservative DPO; the mean of
    robust over labels of which ε are flipped is the mean of sigmoid over the true ones.
    """
    if loss == "ipo":
        # h − 1/(2β) written with m = β h.
        return ((margin - 0.5) / beta) ** 2
    if loss == "hinge":
        return jnp.maximum(0.0, 1.0 - margin)
    # log σ(−m) = log σ(m) − m
    if loss == "robust":
        return -jax.nn.log_sigmoid(margin) - label_smoothing / (1 - 2 * label_smoothing) * margin
    return -jax.nn.log_sigmoid(margin) + label_smoothing * margin


def best_nll(
    logprobs: Float[Array, "B K"],
    lengths: Int[Array, "B K"],
    ranks: Int[Array, "B K"],
    *,
    count: Float[Array, ""] | float | None,
) -> Float[Array, ""]:
    """−log π(y|x) / |y| of each query's best-ranked response, a mean over queries with a pair.

    Where several share the first rank it is their mean.
    """
    present, ranked = ranks >= 0, ranked_above(ranks).any(axis=(1, 2))
    # An absent response is ranked −1, which must not be the lowest.
    lowest = jnp.where(present, ranks, jnp.iinfo(ranks.dtype).max).min(axis=1, keepdims=True)
    best = present & (ranks == lowest)
    per_token = jnp.where(best, -logprobs / jnp.maximum(lengths, 1), 0.0)
    per_query = per_token.sum(axis=1) / jnp.maximum(best.sum(axis=1), 1)
    count = count_ranked(ranks) if count is None else count
    return jnp.where(ranked, per_query, 0.0).sum() / jnp.maximum(count, 1)


def displacement(
    logprobs: Float[Array, "B K"],
    ref_logprobs: Float[Array, "B K"],
    ranks: Int[Array, "B K"],
    *,
    count: Float[Array, ""] | float | None,
) -> Metrics:
    """Where the probability went: a margin can grow while every ranked answer grows less likely.

    (Pal et al. 2024; Razin et al. 2024, "likelihood displacement".) Log-probs of whole responses in
    nats, of the better and of the worse one of each pair, under policy and reference; what the
    policy changed of both; and ``change_either``, log Σₖ π(yₖ|x) − log Σₖ π_ref(yₖ|x) over all K
    ranked responses: below 0 their mass went to texts that nobody ranked.
    """
    # Only looked at: what DPO trains is the margin, and this says what the margin hides.
    logprobs, ref_logprobs = map(jax.lax.stop_gradient, (logprobs, ref_logprobs))

    def of_pairs(x):
        x = jnp.where(ranks >= 0, x, 0.0)
        shape = (*x.shape, x.shape[1])
        better, worse = jnp.broadcast_to(x[:, :, None], shape), jnp.broadcast_to(x[:, None], shape)
        return {
            "chosen": mean_over_pairs(better, ranks, count),
            "rejected": mean_over_pairs(worse, ranks, count),
        }

    metrics = {f"logprob_{name}": mean for name, mean in of_pairs(logprobs).items()}
    metrics |= {f"ref_logprob_{name}": mean for name, mean in of_pairs(ref_logprobs).items()}
    for name in ("chosen", "rejected"):
        metrics[f"change_{name}"] = metrics[f"logprob_{name}"] - metrics[f"ref_logprob_{name}"]
    ranked = ranked_above(ranks).any(axis=(1, 2))
    present = (ranks >= 0) | ~ranked[:, None]  # a query without a pair may have no response at all
    count = count_ranked(ranks) if count is None else count
    either = jax.nn.logsumexp(logprobs, axis=1, where=present)
    either -= jax.nn.logsumexp(ref_logprobs, axis=1, where=present)
    metrics["change_either"] = jnp.where(ranked, either, 0.0).sum() / jnp.maximum(count, 1)
    return metrics


def known_lengths(lengths: Int[Array, "B K"] | None) -> Int[Array, "B K"]:
    """``lengths``, which some losses cannot do without."""
    assert lengths is not None, "per_token and sft_coef need the lengths of the responses"
    return lengths
