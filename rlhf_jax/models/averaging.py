"""Averages of the weights of several models of one shape."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.types import Params


class Spherical(NamedTuple):
    """An average on the sphere."""

    params: Params
    straight: int
    """Of the arrays, in how many a step went along the straight line."""


def weighted_average(trees: Iterable[Params], weights: Sequence[float]) -> Params:
    """Σₘ wₘ θₘ, each parameter for itself, summed in float32 or what is wider.

    WARM (Ramé et al. 2024a) of reward models; of policies the interpolation of Lin et al. 2023 and
    WARP (Ramé et al. 2024b). The parameters keep the type that the first tree has them in. Of an
    iterator there are never more than one tree and the sum in memory.
    """
    total, types = None, None
    for tree, w in zip(trees, weights, strict=True):
        part = jax.tree.map(lambda x, w=w: w * _wide(x), tree)
        if total is None:
            total, types = part, jax.tree.map(lambda x: jnp.asarray(x).dtype, tree)
        else:
            total = jax.tree.map(jnp.add, total, part)
    assert total is not None, "there is no average of nothing"
    return jax.tree.map(lambda x, dtype: x.astype(dtype), total, types)


def spherical_average(init: Params, trees: Iterable[Params], weights: Sequence[float]) -> Spherical:
    """SLERP of the task vectors δₘ = θₘ − θ_init, each parameter array for itself.

    θ_init + sin((1−λ)Ω)/sin Ω · δ₁ + sin(λΩ)/sin Ω · δ₂ of two, Ω the angle between them and λ the
    second's weight (WARP, Ramé et al. 2024b, arXiv 2406.16768, §3.2, "layer by layer"). Task
    vectors of policies stand almost at right angles, so that their linear mean is shorter than
    either, and this one is not.

    Of more than two models one after the other comes in with λ = wₘ / (w₁ + … + wₘ), as in the
    paper, where all weigh 1/M: for three and more the result depends a little on their order. The
    weights are 0 or more. Arrays are computed in float32 or what is wider and keep their type.
    """
    params, total, straight = None, 0.0, None
    types = jax.tree.map(lambda x: jnp.asarray(x).dtype, init)
    init = jax.tree.map(_wide, init)
    for tree, w in zip(trees, weights, strict=True):
        tree, total = jax.tree.map(_wide, tree), total + w
        if params is None:
            params, straight = tree, jax.tree.map(lambda x: False, tree)
            continue
        share = w / total if total else 0.0
        points = jax.tree.map(lambda i, a, b, s=share: slerp(i, a, b, share=s), init, params, tree)
        pairs = jax.tree.transpose(jax.tree.structure(init), jax.tree.structure((0, 0)), points)
        params, lines = pairs
        straight = jax.tree.map(lambda was, now: was or bool(now), straight, lines)
    assert params is not None, "there is no average of nothing"
    cast = jax.tree.map(lambda x, dtype: x.astype(dtype), params, types)
    return Spherical(cast, sum(jax.tree.leaves(straight)))


def slerp(
    init: Float[Array, "..."],
    first: Float[Array, "..."],
    second: Float[Array, "..."],
    *,
    share: float,
) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """(``spherical_average`` of one array and two models, 1 where it is the straight line, else 0).

    Where sin Ω is below √ε of the array's type there is no sphere to go along: one task vector is
    0, or they point the same way, where the straight line is the limit, or opposite ways, where
    every direction is as good. Then it is (1−λ) θ₁ + λ θ₂. At λ of 0 and of 1 it is θ₁ and θ₂ to
    the bit.
    """
    a, b = first - init, second - init
    lengths = jnp.sqrt((a**2).sum()), jnp.sqrt((b**2).sum())
    u, v = (x / jnp.where(n > 0, n, 1.0) for x, n in zip((a, b), lengths, strict=True))
    # Exact near 0 and π too, where arccos of a product loses half of the digits.
    omega = 2 * jnp.arctan2(jnp.sqrt(((u - v) ** 2).sum()), jnp.sqrt(((u + v) ** 2).sum()))
    least = jnp.sqrt(jnp.finfo(init.dtype).eps)
    line = (jnp.sin(omega) < least) | (lengths[0] == 0) | (lengths[1] == 0)
    sine = jnp.where(line, 1.0, jnp.sin(omega))
    of_first = jnp.where(line, 1 - share, jnp.sin((1 - share) * omega) / sine)
    of_second = jnp.where(line, share, jnp.sin(share * omega) / sine)
    mixed = (1 - of_first - of_second) * init + of_first * first + of_second * second
    return mixed, line.astype(init.dtype)


def _wide(x: Array) -> Array:
    """In float32, or in its own type if that is wider."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
