"""How far apart two computations of the same number may lie. No bound here is a measurement.

Two programs that compute the same (two layouts, two orders, with a cache and without) are compared
in float64 and agree to ``SAME``, on every processor and from every compiler. Where float32 itself
is the subject, as in a stage that is run whole, the bound is ``float32_bound``.
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from rlhf_jax.config import ModelConfig

SAME = 1e-9
"""Relative to the larger of 1 and the number: what two float64 programs may differ by.

Between it and the roundings of float64 (1e-16 each) lie seven orders of magnitude for what the
programs amplify, and five between it and the smallest mistake that float32 lets through.
"""
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""u: one rounded operation is off by at most u times its result."""


def float32_bound(terms: int, scale: float = 1.0, *, dtype: str = "float32") -> float:
    """What a program in float32 may be off by: min(n, 8 √n) u · scale, with n ``terms``.

    A sum of n terms, in whatever order and with fused multiply-adds or without, is off by at most
    n u Σ|x| to first order (Higham 2002, eq. 4.4), and along a chain of operations relative errors
    add up. Roundings go up as often as down, so that more than λ √n u Σ|x| comes about with a
    probability of 2 exp(−λ² / 2) (Higham & Mary 2019, theorem 2.4): 3e-14 for λ = 8. What really
    comes out is around √n u; the rest is for what the weights on the path amplify.

    ``terms`` is the number of rounded operations on the longest path from what is given to what is
    compared, and ``scale`` the largest Σ|x| on it. Two programs in float32 may be off in opposite
    directions: give twice the terms.
    """
    return min(terms, 8 * terms**0.5) * UNIT_ROUNDOFF[dtype] * scale


def network_terms(config: ModelConfig, length: int, outputs: int) -> int:
    """Rounded operations on the longest path from tokens through a transformer to ``outputs``.

    In a block: two normalisations (mean and variance of the width), queries, scores of one head,
    softmax and average over ``length`` tokens, projection, and the two products of the MLP. After
    the blocks: a normalisation, the head's product, and log Σ exp over the outputs.
    """
    width, head = config.d_model, config.d_model // config.n_heads
    norm = 2 * width
    attention = width + head + 2 * length + width
    mlp = width + config.hidden
    return config.n_layers * (2 * norm + attention + mlp) + norm + width + outputs


def log_ratio_bound(config: ModelConfig, length: int, outputs: int, *, tokens: int) -> float:
    """What float32 makes of log π(y|x) − log π_ref(y|x) = 0 where two programs run one model.

    Each of the ``tokens`` of y has a log-prob of logits near 1, as those of a model of few steps.
    """
    return float32_bound(2 * network_terms(config, length, outputs), tokens)


def in_float64(model: Any) -> Any:
    """A loaded model, of which then all processors give the same numbers and likeliest tokens."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params)
    params = jax.tree.map(jax.numpy.asarray, params)
    return model._replace(model=replace(model.model, dtype="float64"), params=params)


def assert_same(found: Any, expected: Any) -> None:
    """Arrays of float64 that two programs have computed are the same to ``SAME``."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype == np.float64, (found.dtype, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=SAME, atol=SAME)
