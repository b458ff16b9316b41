"""From one score per response to one reward per token."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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


def penalise_missing_eos(
    scores: Float[Array, "B"],
    responses: Int[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    eos_id: int,
    penalty: float,
) -> Float[Array, "B"]:
    """The score, *replaced* by ``penalty`` where a response never ended (Ziegler et al. 2019)."""
    ended = ((responses == eos_id) & mask).any(axis=1)
    return jnp.where(ended, scores, penalty)
