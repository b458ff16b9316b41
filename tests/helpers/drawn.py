"""Parameters for tests of models."""

import jax

from rlhf_jax.types import Params


@jax.jit
def with_noise(params: Params) -> Params:
    """``params`` away from their tiny initial values, so that every term matters."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise, strict=True)])
