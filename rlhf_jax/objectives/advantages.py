"""How much better a token was than expected."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
        reward, value, real = column
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * lam * next_advantage
        carry = (
            jnp.where(real, advantage, next_advantage),
            jnp.where(real, value, next_value),
        )
        return carry, jnp.where(real, advantage, 0.0)

    rewards, values = (jnp.where(mask, x, jnp.zeros((), x.dtype)) for x in (rewards, values))
    end = jnp.zeros_like(rewards[:, 0])
    _, advantages = jax.lax.scan(step, (end, end), (rewards.T, values.T, mask.T), reverse=True)
    return advantages.T, jnp.where(mask, advantages.T + values, 0.0)
