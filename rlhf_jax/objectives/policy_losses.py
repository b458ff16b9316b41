"""PPO's clipped losses (Schulman et al. 2017), token by token under a mask.

Every loss is Σ / ``count``: with the count of the whole batch, the losses (and metrics) of its
parts add up to the mean over the whole.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.objectives.masked import masked_mean
from rlhf_jax.types import Metrics, PPOBatch

Count = Float[Array, ""] | float | None


def policy_loss(
    new_logprobs: Float[Array, "B R"],
    logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    clip_eps: float,
    count: Count = None,
) -> tuple[Float[Array, ""], Metrics]:
    """mean of max(−Â ρ, −Â clip(ρ, 1−ε, 1+ε)), ρ = π/π_old (Schulman et al. 2017, eq. 7).

    ``val/ratio_var`` is the mean of (ρ − 1)², the second moment about ρ's expectation, 1.
    """

    def mean(x):
        return masked_mean(x, mask, count=count)

    logprobs, advantages = jax.lax.stop_gradient((logprobs, advantages))
    log_ratio = jnp.where(mask, new_logprobs - logprobs, 0.0)
    ratio = jnp.exp(log_ratio)
    unclipped = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
    loss = mean(jnp.maximum(unclipped, clipped))
    return loss, {
        "loss/policy_avg": loss,
        "policy/approxkl_avg": 0.5 * mean(log_ratio**2),
        "policy/clipfrac_avg": mean((clipped > unclipped).astype(ratio.dtype)),
        "val/ratio": mean(ratio),
        "val/ratio_var": mean((ratio - 1) ** 2),
    }


def value_loss(
    new_values: Float[Array, "B R"],
    values: Float[Array, "B R"],
    returns: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    value_clip_eps: float,
    count: Count = None,
) -> tuple[Float[Array, ""], Metrics]:
    """½ mean of max((V − R)², (clip(V, V_old ± ε) − R)²), the larger of the two.

    From OpenAI's baselines; not in the paper of 2017.
    """

    def mean(x):
        return masked_mean(x, mask, count=count)

    values, returns = jax.lax.stop_gradient((values, returns))
    new_values, values, returns = (jnp.where(mask, x, 0.0) for x in (new_values, values, returns))
    error = (new_values - returns) ** 2
    near = jnp.clip(new_values, values - value_clip_eps, values + value_clip_eps)
    clipped_error = (near - returns) ** 2
    loss = 0.5 * mean(jnp.maximum(error, clipped_error))
    return loss, {
        "loss/value_avg": loss,
        "val/clipfrac_avg": mean((clipped_error > error).astype(error.dtype)),
        "val/error": mean(error),
    }


def ppo_loss(
    new_logprobs: Float[Array, "B R"],
    new_values: Float[Array, "B R"] | None,
    entropies: Float[Array, "B R"],
    batch: PPOBatch,
    *,
    clip_eps: float,
    value_clip_eps: float,
    vf_coef: float,
    entropy_coef: float,
    count: Count = None,
) -> tuple[Float[Array, ""], Metrics]:
    """policy loss + c_v · value loss − c_e · mean entropy (Schulman et al. 2017, eq. 9).

    c_v is ``vf_coef``; without a value network (``new_values`` None) its loss is left out. c_e is
    ``entropy_coef``: 0 in InstructGPT, and then the entropy is measured without a gradient.
    """
    b = batch
    loss, metrics = policy_loss(
        new_logprobs, b.logprobs, b.advantages, b.mask, clip_eps=clip_eps, count=count
    )
    if new_values is not None:
        assert b.values is not None and b.returns is not None, "a batch of a value network has both"
        value, value_metrics = value_loss(
            new_values, b.values, b.returns, b.mask, value_clip_eps=value_clip_eps, count=count
        )
        loss, metrics = loss + vf_coef * value, metrics | value_metrics
    mean_entropy = masked_mean(entropies, b.mask, count=count)
    if entropy_coef:
        loss = loss - entropy_coef * mean_entropy
    return loss, metrics | {"policy/entropy_avg": jax.lax.stop_gradient(mean_entropy)}
