"""Pure update steps: gradients summed over micro-batches and devices, then one optimizer update.

A loss function here is ``(params, batch, key, count) -> (loss, metrics)`` where ``count`` is the
number of counted elements (tokens, prompts) in the *global* batch. The loss and metrics of a part
of the batch are then shares of the global mean, and shares add: over micro-batches and devices
alike. ``axis_name`` names the mapped device axis under ``pmap``; None is the global view.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from rlhf_jax.config import OptimConfig
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.models.lora import combine
from rlhf_jax.models.packing import Packing, sum_over_blocks
from rlhf_jax.objectives.language_losses import lm_loss_of_logprobs
from rlhf_jax.training.optimizers import update_ema
from rlhf_jax.training.sharding import laid_out
from rlhf_jax.types import LMBatch, Metrics, Params, TrainState

LossFn = Callable[[Params, Any, Any, Any], tuple[Float[Array, ""], Metrics]]
UpdateStep = Callable[..., tuple[TrainState, Metrics]]
Pack = Callable[[Any], Packing]
"""The real tokens of a batch in blocks of rows (models/packing.py)."""


def psum(tree: Any, axis_name: str | None) -> Any:
    """Σ over the devices of a mapped axis; under None the tree itself, which is global already."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def accumulated_gradients(
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    key: Key[Array, ""],
    count: Any,
    *,
    accumulate: int,
    pack: Pack | None = None,
) -> tuple[Params, Metrics]:
    """Sum of the gradients (and metrics) of ``accumulate`` micro-batches of equal row number.

    Micro-batch i takes rows i, i + accumulate, ... so that each is spread over all devices. With
    ``pack`` its real tokens are worked off in blocks, and the loss is of (micro-batch, block).
    """
    # Gradients are added up, not averaged: with the count of the whole batch each part is a share.
    gradient = jax.grad(loss_fn, has_aux=True)
    if pack is not None:
        gradient = in_blocks(gradient, pack)
    if accumulate == 1:
        return gradient(params, batch, key, count)
    # Every accumulate-th row, not a block of them: rows of a block would all lie on one device.
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total, inputs):
        rows, i = inputs
        # A key of its own for each part, or dropout would fall on the same places in all of them.
        share = gradient(params, rows, jax.random.fold_in(key, i), count)
        return jax.tree.map(jnp.add, total, share), None

    # From zero, so that the program holds the model once.
    share = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro), key, count)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), share)
    total, _ = jax.lax.scan(add, zero, (micro, jnp.arange(accumulate)))
    return total


def in_blocks(gradient: Callable[..., Any], pack: Pack) -> Callable[..., Any]:
    """``gradient`` of (batch, block), summed over the blocks into which ``pack`` puts a batch.

    No dropout: a block has no key of its own.
    """

    def total(params, batch, key, count):
        packing = pack(batch)
        return sum_over_blocks(lambda block: gradient(params, (batch, block), key, count), packing)

    return total


def on_trainable(loss_fn: LossFn, frozen: Params | None) -> LossFn:
    """``loss_fn`` as a function of what trains: no gradient of the frozen part is computed."""
    return lambda params, *rest: loss_fn(combine(frozen, laid_out(params)), *rest)


def apply_gradients(
    state: TrainState, grads: Params, tx: optax.GradientTransformation, *, ema_decay: float
) -> TrainState:
    """One optimizer update, and one of the averaged weights."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = update_ema(state.ema_params, params, decay=ema_decay)
    return TrainState(state.step + 1, params, opt_state, average)


def update_step_of(
    optim: OptimConfig,
    loss_fn: LossFn,
    count_fn: Callable[[Any], Any],
    tx: optax.GradientTransformation,
) -> UpdateStep:
    """``make_update_step`` with the micro-batches and the average that ``optim`` asks for."""
    return make_update_step(
        loss_fn, count_fn, tx, accumulate=optim.accumulate, ema_decay=optim.ema_decay
    )


def make_update_step(
    loss_fn: LossFn,
    count_fn: Callable[[Any], Any],
    tx: optax.GradientTransformation,
    *,
    accumulate: int,
    ema_decay: float,
) -> UpdateStep:
    """``(state, batch, key, frozen) -> (state, metrics)``: pretraining, SFT, reward modelling.

    ``frozen`` are the parameters that do not train (those without adapters); the loss sees all.
    """

    def step(
        state: TrainState,
        batch: Any,
        key: Key[Array, ""],
        frozen: Params | None = None,
        *,
        axis_name: str | None = None,
    ):
        # Under pmap every device runs this with one key: its number makes their dropout differ.
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        # Counted over all devices before the loss divides by it, so that shares add up exactly.
        count = psum(count_fn(batch), axis_name)
        shares = accumulated_gradients(
            on_trainable(loss_fn, frozen), state.params, batch, key, count, accumulate=accumulate
        )
        grads, metrics = psum(shares, axis_name)
        # Of the summed gradient, before the optimizer clips it.
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return apply_gradients(state, grads, tx, ema_decay=ema_decay), metrics

    return step


def make_lm_loss(lm: LanguageModel, *, training: bool) -> LossFn:
    """The language-model loss of an LMBatch; dropout acts only when ``training``."""

    def loss_fn(params, batch: LMBatch, key, count):
        logprobs = lm.packed_logprobs(params, batch, key if training else None)
        return lm_loss_of_logprobs(logprobs, batch, count=count)

    return loss_fn
