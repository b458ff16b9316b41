"""How much better a token, or a whole answer, was than expected.

Each is ``(rewards [B R], values [B R] | None, mask [B R]) -> (advantages, returns | None)``, and
has no returns for a value network to learn where it has no use for one. Those of a *group* compare
the answers to one prompt, ``group_size`` rows that follow one another. Rows without a real token
count nowhere.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.objectives.masked import masked_mean, masked_sum

GROUP_EPS = 1e-4
"""ε beside the standard deviation of a group, as in TRL (verl: 1e-6; Shao et al. 2024: none)."""


def gae(
    rewards: Float[Array, "B R"],
    values: Float[Array, "B R"] | None,
    mask: Bool[Array, "B R"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Generalised advantage estimation over response tokens; returns (advantages, returns).

    Âₜ = Σₗ (γλ)ˡ δₜ₊ₗ, δₜ = rₜ + γ Vₜ₊₁ − Vₜ, with V after the last real token = 0
    (Schulman et al. 2016, definition of GAE(γ, λ)). returns = Â + V. Not whitened. Masked
    positions are skipped: t + 1 is the next real token. ``values`` None is V = 0: no baseline.
    """
    values = jnp.zeros_like(rewards) if values is None else values

    def step(carry, column):
        next_advantage, next_value = carry
        # The scan goes from the last time step to the first: each δₜ needs what follows it.
        reward, value, real = column
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * lam * next_advantage
        # A masked position hands on what it was given, so that t + 1 is the next real token.
        carry = (
            jnp.where(real, advantage, next_advantage),
            jnp.where(real, value, next_value),
        )
        return carry, jnp.where(real, advantage, 0.0)

    # Padding may hold NaN, and 0 · NaN is NaN: what is masked is 0 before anything is computed.
    rewards, values = (jnp.where(mask, x, jnp.zeros((), x.dtype)) for x in (rewards, values))
    # V after the last real token is 0, also where an answer was cut at the longest length.
    end = jnp.zeros_like(rewards[:, 0])
    _, advantages = jax.lax.scan(step, (end, end), (rewards.T, values.T, mask.T), reverse=True)
    return advantages.T, jnp.where(mask, advantages.T + values, 0.0)


def rloo(
    rewards: Float[Array, "B R"],
    values: Float[Array, "B R"] | None,
    mask: Bool[Array, "B R"],
    *,
    group_size: int,
) -> tuple[Float[Array, "B R"], None]:
    """Âᵢ = Rᵢ − (1/(K−1)) Σⱼ≠ᵢ Rⱼ, Rᵢ = Σₜ rₜ: leave one out (Ahmadian et al. 2024, eq. 8).

    The whole answer is one action: all its tokens have its advantage. Computed as
    K/(K−1) (Rᵢ − mean R), with K the rows of the group that have a token; a row that is alone has
    none to be compared with, and its advantage is 0.
    """
    returns, present = grouped_returns(rewards, mask, group_size)
    centred = returns - masked_mean(returns, present, axis=1)[:, None]
    # mean R includes Rᵢ itself; K/(K−1) makes of it the mean of the others.
    count = present.sum(axis=1, keepdims=True)
    advantages = centred * count / jnp.maximum(count - 1, 1)
    return on_tokens(jnp.where(differing(returns, present), advantages, 0.0), mask), None


def grpo(
    rewards: Float[Array, "B R"],
    values: Float[Array, "B R"] | None,
    mask: Bool[Array, "B R"],
    *,
    group_size: int,
    scale: Literal["std", "none"],
) -> tuple[Float[Array, "B R"], None]:
    """Âᵢ = (Rᵢ − mean R) / (std R + ε), Rᵢ = Σₜ rₜ, for all tokens (Shao et al. 2024, §4.1.2).

    The standard deviation is the unbiased one (divided by K − 1) and ε ``GROUP_EPS``, as in TRL.
    With ``scale="none"`` Âᵢ = Rᵢ − mean R: Dr. GRPO (Liu et al. 2025, §3.2), which weighs prompts
    whose answers score almost alike no more than others.

    Where all answers score alike the advantages are exactly 0, not the rounding of a mean over ε.
    """
    returns, present = grouped_returns(rewards, mask, group_size)
    advantages = returns - masked_mean(returns, present, axis=1)[:, None]
    if scale == "std":
        squares = masked_sum(advantages**2, present, axis=1)[:, None]
        # Of a group of one the divisor would be 0; its advantage is 0 by ``differing`` anyway.
        variance = squares / jnp.maximum(present.sum(axis=1, keepdims=True) - 1, 1)
        advantages = advantages / (jnp.sqrt(variance) + GROUP_EPS)
    return on_tokens(jnp.where(differing(returns, present), advantages, 0.0), mask), None


def reinforce(
    rewards: Float[Array, "B R"],
    values: Float[Array, "B R"] | None,
    mask: Bool[Array, "B R"],
    *,
    baseline: Float[Array, ""] | float,
) -> tuple[Float[Array, "B R"], None]:
    """Âᵢ = Rᵢ − b, Rᵢ = Σₜ rₜ, for all tokens (Williams 1992), b from earlier iterations."""
    return on_tokens(masked_sum(rewards, mask, axis=1) - baseline, mask), None


def update_baseline(
    baseline: Float[Array, ""],
    weight: Float[Array, ""],
    mean_return: Float[Array, ""],
    *,
    decay: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(b, w) of the next iteration: b is the mean of past returns, older ones weighing less.

    w′ = d w + 1 − d and b′ = (d w b + (1 − d) R̄) / w′: from w = 0 the first b′ is R̄, and later it
    is the exponential moving average without the bias towards its start.
    """
    # w is how much of the mean is real so far, as in Adam's bias correction.
    new_weight = decay * weight + (1 - decay)
    return (decay * weight * baseline + (1 - decay) * mean_return) / new_weight, new_weight


def zero_spread_groups(
    rewards: Float[Array, "B R"], mask: Bool[Array, "B R"], *, group_size: int
) -> Float[Array, ""]:
    """Share of the groups whose returns are all alike: nothing is learnt by comparing them."""
    differ = differing(*grouped_returns(rewards, mask, group_size))
    return 1 - differ.mean(dtype=rewards.dtype)


def grouped_returns(
    rewards: Float[Array, "B R"], mask: Bool[Array, "B R"], group_size: int
) -> tuple[Float[Array, "G K"], Bool[Array, "G K"]]:
    """Rᵢ = Σₜ rₜ of the answers to each prompt, and whether an answer has a token at all."""
    return in_groups(masked_sum(rewards, mask, axis=1), mask, group_size)


def in_groups(
    returns: Float[Array, "B"], mask: Bool[Array, "B R"], group_size: int
) -> tuple[Float[Array, "G K"], Bool[Array, "G K"]]:
    """Returns by group, and whether an answer has a token at all."""
    return returns.reshape(-1, group_size), mask.any(axis=1).reshape(-1, group_size)


def differing(returns: Float[Array, "G K"], present: Bool[Array, "G K"]) -> Bool[Array, "G 1"]:
    """Groups in which two answers have different returns."""
    # Compared, not subtracted: equal returns must give exactly False, whatever rounding a mean has.
    highest = jnp.where(present, returns, -jnp.inf).max(axis=1, keepdims=True)
    lowest = jnp.where(present, returns, jnp.inf).min(axis=1, keepdims=True)
    return highest > lowest


def on_tokens(advantages: Float[Array, "..."], mask: Bool[Array, "B R"]) -> Float[Array, "B R"]:
    """One advantage per answer as one for each of its real tokens, 0 elsewhere."""
    return jnp.where(mask, advantages.reshape(-1, 1), jnp.zeros((), advantages.dtype))
