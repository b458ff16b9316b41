"""Averages of the weights of several models of one shape."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from rlhf_jax.types import Params


def weighted_average(trees: Iterable[Params], weights: Sequence[float]) -> Params:
    """Σₘ wₘ θₘ, each parameter for itself, summed in float32 or what is wider.

    WARM (Ramé et al. 2024a) of reward models; of policies the interpolation of Lin et al. 2023 and
    WARP (Ramé et al. 2024b). The parameters keep the type that the first tree has them in. Of an
    iterator there are never more than one tree and the sum in memory.
    """

    def scaled(x, w):
        return w * x.astype(jnp.promote_types(x.dtype, jnp.float32))

    total, types = None, None
    for tree, w in zip(trees, weights, strict=True):
        part = jax.tree.map(lambda x, w=w: scaled(jnp.asarray(x), w), tree)
        if total is None:
            total, types = part, jax.tree.map(lambda x: jnp.asarray(x).dtype, tree)
        else:
            total = jax.tree.map(jnp.add, total, part)
    assert total is not None, "there is no average of nothing"
    return jax.tree.map(lambda x, dtype: x.astype(dtype), total, types)
