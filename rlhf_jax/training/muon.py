"""Muon (Jordan et al. 2024): momentum of a matrix, made nearly orthogonal, is the update.

The direction is that of ``optax.contrib.muon``, which takes two to three times as long on a CPU.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the quintic iteration; its steepest slope at 0 matters more than its limit at 1."""
ITERATIONS = 5
BETA = 0.95
"""Decay of the momentum."""


class MuonState(NamedTuple):
    """What Muon keeps between updates."""

    count: Int[Array, ""]
    momentum: Any


def orthogonalised(x: Float[Array, "*N In Out"]) -> Float[Array, "*N In Out"]:
    """About U Vᵀ of x = U S Vᵀ, with singular values of about 0.5 to 1.5.

    X ← a X + (b A + c A²) X with A = X Xᵀ, five times, from X = x / ‖x‖_F. Taken on the side where
    A is smaller; matrices stacked in front are taken one by one. Where X is much wider than A, the
    iterations' polynomials P(A) are multiplied with each other, A ← P A P, and meet X at the end.
    """
    if x.ndim > 2:
        return jax.vmap(orthogonalised)(x)
    if x.shape[0] > x.shape[1]:
        # X Xᵀ on the short side is the smaller product, and the singular vectors are the same.
        return orthogonalised(x.T).T
    # The iteration needs singular values of at most 1, and the Frobenius norm bounds the largest.
    x = x / (jnp.linalg.norm(x) + 1e-8)
    gram = x @ x.T
    # Nearly square: a product with X costs little more than one with A.
    if x.shape[1] < 2 * x.shape[0]:
        for _ in range(ITERATIONS - 1):
            x = polynomial(gram) @ x
            gram = x @ x.T
        return polynomial(gram) @ x
    factor = product = polynomial(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = polynomial(gram)
        product = factor @ product
    return product @ x


def polynomial(gram: Float[Array, "In In"]) -> Float[Array, "In In"]:
    """a I + b A + c A²."""
    a, b, c = COEFFICIENTS
    return a * jnp.eye(len(gram)) + b * gram + c * gram @ gram


def scale_by_muon() -> optax.GradientTransformation:
    """Nesterov momentum, bias-corrected, orthogonalised, times √max(1, Out / In)."""

    def init(params):
        return MuonState(jnp.int32(0), jax.tree.map(jnp.zeros_like, params))

    def direction(momentum, gradient, count):
        ahead = momentum / (1 - BETA ** (count + 1))
        # Bias-corrected, each by the power of β that its own step has.
        here = gradient / (1 - BETA**count)
        x = orthogonalised(BETA * ahead + (1 - BETA) * here)
        # Kernels are [in, out]: a wide one gets a larger step, as in Jordan's implementation.
        return x * math.sqrt(max(1.0, x.shape[-1] / x.shape[-2]))

    def update(updates, state, params=None):
        count = state.count + 1
        momentum = jax.tree.map(lambda m, g: BETA * m + (1 - BETA) * g, state.momentum, updates)
        directions = jax.tree.map(lambda m, g: direction(m, g, count), momentum, updates)
        return directions, MuonState(count, momentum)

    return optax.GradientTransformation(init, update)
