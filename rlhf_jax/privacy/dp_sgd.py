"""DP-SGD: one vmapped pass gives every example's gradient, clipped; noise goes on their sum.

    g̃ = (Σ_i g_i · min(1, C / ‖g_i‖) + σ C z) / (q N),   z ~ N(0, I)

(Abadi et al. 2016, algorithm 1). The divisor is the *expected* batch q N: the real one is private.
What follows (Adam, schedules, averages) only processes g̃ and costs no privacy.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from rlhf_jax.training.updates import LossFn, UpdateStep, apply_gradients, on_trainable
from rlhf_jax.types import Metrics, Params, TrainState


def clipped_gradients(
    loss_fn: LossFn, params: Params, batch: Any, key: Key[Array, ""], *, clip_norm: float
) -> tuple[Params, Metrics]:
    """Σ_i clip(∇ loss of example i, C), and metrics summed over examples.

    An example is one row of ``batch``. An empty row (no target, nothing ranked) has gradient 0.
    """

    def one(row, number):
        alone = jax.tree.map(lambda x: x[None], row)
        gradient = jax.grad(loss_fn, has_aux=True)
        grads, metrics = gradient(params, alone, jax.random.fold_in(key, number), 1.0)
        norm = optax.tree.norm(grads)
        # Of the whole gradient, all parameters together: what one example can move is bounded as a
        # whole.
        scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12))
        clipped = jax.tree.map(lambda g: g * scale, grads)
        return clipped, metrics | {"clipped_share": (norm > clip_norm).astype(jnp.float32)}

    # vmapped: each example's gradient exists by itself, at the memory's cost.
    rows = jax.tree.leaves(batch)[0].shape[0]
    grads, metrics = jax.vmap(one)(batch, jnp.arange(rows))
    return jax.tree.map(lambda x: x.sum(axis=0), (grads, metrics))


def add_noise(grads: Params, key: Key[Array, ""], *, stddev: float | Float[Array, ""]) -> Params:
    """Each number plus an independent draw of N(0, stddev²)."""
    leaves, tree = jax.tree.flatten(grads)
    # A key for each leaf: one key would give equal noise to leaves of equal shape.
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + stddev * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def make_private_update_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    clip_norm: float,
    noise_multiplier: float,
    expected_rows: float,
    ema_decay: float,
) -> UpdateStep:
    """``make_update_step`` with DP-SGD's gradient; the metrics are means over the expected batch.

    ``loss_fn`` gives one example's mean loss when ``count`` is the number of its targets; here it
    is called with ``count`` 1 on one row at a time, so it must average within the row itself.
    """

    def step(
        state: TrainState,
        batch: Any,
        key: Key[Array, ""],
        frozen: Params | None = None,
        *,
        axis_name: str | None = None,
    ):
        k_loss, k_noise = jax.random.split(key)
        # Only what trains is clipped and noised; frozen weights have seen none of these data.
        loss = on_trainable(loss_fn, frozen)
        summed, metrics = clipped_gradients(loss, state.params, batch, k_loss, clip_norm=clip_norm)
        noisy = add_noise(summed, k_noise, stddev=noise_multiplier * clip_norm)
        # Divided last: noise is added to a sum whose sensitivity is the clip norm.
        grads = jax.tree.map(lambda g: g / expected_rows, noisy)
        metrics = jax.tree.map(lambda x: x / expected_rows, metrics)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return apply_gradients(state, grads, tx, ema_decay=ema_decay), metrics

    return step
