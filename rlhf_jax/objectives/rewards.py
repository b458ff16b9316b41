"""From one score per response to one reward per token."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.objectives.ends import has_ended
from rlhf_jax.objectives.kl import kl_k1
from rlhf_jax.objectives.masked import last_index


def kl_penalised_rewards(
    scores: Float[Array, "B"],
    logprobs: Float[Array, "B R"],
    ref_logprobs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    kl_coef: Float[Array, ""] | float,
) -> Float[Array, "B R"]:
    """rₜ = −β (log π − log π_ref), plus the score at the last real token (Ziegler et al. 2019).

    Σₜ rₜ = score − β Σₜ k1. A row without a real token gets nothing.
    """
    zero = jnp.zeros((), logprobs.dtype)
    penalty = jnp.where(mask, -kl_coef * kl_k1(logprobs, ref_logprobs), zero)
    is_last = mask & (jnp.arange(mask.shape[1])[None] == last_index(mask)[:, None])
    return penalty + jnp.where(is_last, scores[:, None], zero)


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
