"""From one score per response to one reward per token."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.objectives.ends import has_ended
from rlhf_jax.objectives.kl import KL_ESTIMATORS, KLEstimator
from rlhf_jax.objectives.masked import last_index


def kl_penalised_rewards(
    scores: Float[Array, "B"],
    logprobs: Float[Array, "B R"],
    ref_logprobs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    kl_coef: Float[Array, ""] | float,
    estimator: KLEstimator = "k1",
) -> Float[Array, "B R"]:
    """rₜ = −β (log π − log π_ref), plus the score at the last real token (Ziegler et al. 2019).

    Σₜ rₜ = score − β Σₜ k1. A row without a real token gets nothing. Another ``estimator`` of the
    KL takes the place of k1 (TRL's PPO has k3 beside it).
    """
    # The KL is of the sampled tokens alone: a sum of k1 over them estimates the KL of the whole
    # answer.
    zero = jnp.zeros((), logprobs.dtype)
    kl = KL_ESTIMATORS[estimator](logprobs, ref_logprobs)
    penalty = jnp.where(mask, -kl_coef * kl, zero)
    # ``mask &``: last_index is 0 for a row without a real token, whose place 0 is not real.
    is_last = mask & (jnp.arange(mask.shape[1])[None] == last_index(mask)[:, None])
    return penalty + jnp.where(is_last, scores[:, None], zero)


def normalise_scores(scores: Float[Array, "M B"]) -> Float[Array, "M B"]:
    """Each reward's scores with mean 0 and standard deviation 1 over the B episodes.

    A reward that scores all episodes alike says nothing of them: its scores become 0.
    """
    centred = scores - scores.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    # The inner choice keeps the gradient finite where the outer one is not taken.
    return jnp.where(variance > 0, centred / jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)


def weighted_mean(scores: Float[Array, "M B"], weights: Sequence[float]) -> Float[Array, "B"]:
    """Σₘ wₘ rₘ / Σₘ |wₘ|: M rewards as one, on their scale. A negative weight is a penalty."""
    # Divided by Σ |w|: with Σ w, a penalty as large as the reward would divide by 0.
    w = jnp.asarray(weights, scores.dtype)
    return w @ scores / jnp.abs(w).sum()


def pessimistic_scores(
    scores: Float[Array, "M B"], *, coef: float, spread: Literal["std", "variance"]
) -> Float[Array, "B"]:
    """meanₘ rₘ − c · spreadₘ rₘ: what an ensemble disagrees on is worth less.

    With ``spread="variance"`` the uncertainty-weighted optimisation of Coste et al. 2023 (eq. 5);
    "std" is on the scale of the scores. Both divide by M.
    """
    apart = {"std": jnp.std, "variance": jnp.var}[spread](scores, axis=0)
    return scores.mean(axis=0) - coef * apart


def mix_scores(
    scores: Float[Array, "B"], second_scores: Float[Array, "B"], *, weight: Float[Array, ""] | float
) -> Float[Array, "B"]:
    """(r + λ h) / (1 + λ): two rewards r and h as one, on the scale of either.

    With a fixed ``weight`` λ this is a mix. With ``update_multiplier`` it is the Lagrangian of
    max E[r] subject to E[h] ≥ floor, divided by 1 + λ as in Safe RLHF (Dai et al. 2023); its
    constant −λ · floor moves no gradient.
    """
    return (scores + weight * second_scores) / (1 + weight)


def update_multiplier(
    weight: Float[Array, ""], second_score: Float[Array, ""], *, floor: float, lr: float
) -> Float[Array, ""]:
    """λ ← λ exp(η (floor − E[h])): dearer while the mean ``second_score`` is below ``floor``.

    An exponentiated-gradient step, which keeps λ positive. Dai et al. 2023 (Safe RLHF, eq. 31)
    multiply the exponent by λ besides: there a small multiplier grows slowly.
    """
    # Multiplied, so that λ cannot cross 0, where the constraint would become a wish for its
    # opposite.
    return weight * jnp.exp(lr * (floor - second_score))


def penalise_missing_eos(
    scores: Float[Array, "B"],
    responses: Int[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    end_ids: Sequence[int],
    penalty: float,
) -> Float[Array, "B"]:
    """The score, *replaced* by ``penalty`` where a response never ended (Ziegler et al. 2019)."""
    return jnp.where(has_ended(responses, mask, end_ids), scores, penalty)
