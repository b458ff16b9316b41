"""The only masked arithmetic in the project: sums, means, variance, whitening, the last real token.

A masked-out entry may hold anything, not-a-numbers included: it reaches neither value nor gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Axis = int | tuple[int, ...] | None


def masked_sum(x: Float[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None) -> Array:
    """Σ x over real entries."""
    # ``where`` and not a product: 0 · NaN is NaN.
    return jnp.where(mask, x, jnp.zeros((), x.dtype)).sum(axis=axis)


def masked_mean(
    x: Float[Array, "..."],
    mask: Bool[Array, "..."],
    *,
    count: Float[Array, ""] | float | None = None,
    axis: Axis = None,
) -> Array:
    """Σ x / count over real entries; 0 where there is none.

    ``count`` is the number of real entries unless given. Given the count of the whole batch, the
    result for a part of it is that part's share of the mean, and the shares of all parts add up.
    """
    count = mask.sum(axis=axis) if count is None else count
    # At least 1, so that a part without a real entry gives 0 and no NaN.
    return masked_sum(x, mask, axis) / jnp.maximum(count, 1)


def masked_var(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Biased variance of the real entries (divided by their number)."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(
    x: Float[Array, "..."], mask: Bool[Array, "..."], *, shift_mean: bool
) -> Float[Array, "..."]:
    """(x − mean) / √(var + 1e-8) over real entries, 0 elsewhere; biased variance.

    With ``shift_mean`` False the mean is added back, as lm-human-preferences does for rewards.
    """
    x = jnp.where(mask, x, jnp.zeros((), x.dtype))
    mean = masked_mean(x, mask)
    whitened = (x - mean) * jax.lax.rsqrt(masked_var(x, mask) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return jnp.where(mask, whitened, jnp.zeros((), x.dtype))


def last_index(mask: Bool[Array, "*B T"]) -> Int[Array, "*B"]:
    """Index of the last real entry along the last axis; 0 for a row without any (never −1)."""
    T = mask.shape[-1]
    # argmax finds the first True, so the mask is read from its end.
    last = T - 1 - jnp.argmax(mask[..., ::-1], axis=-1)
    return jnp.where(mask.any(axis=-1), last, 0)
