"""The transformer below any head, as functions of parameters and arrays."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import check
from rlhf_jax.models import layout
from rlhf_jax.models.attention import Segments, in_segments, segments_from_mask
from rlhf_jax.models.packing import TokenRows
from rlhf_jax.models.transformer import (
    KeyValues,
    Transformer,
    as_layout,
    positions_of,
    stack_blocks,
)
from rlhf_jax.types import Params


class Trunk(NamedTuple):
    """The transformer below any head, as functions."""

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., tuple[Float[Array, "B T D"], tuple[KeyValues, ...] | KeyValues]]
    applied: Callable[[Key[Array, ""] | None], Callable[..., Any]]
    """``apply`` with the dropout of a key, or without for None."""
    apply_unrolled: Callable[..., tuple[Float[Array, "B T D"], tuple[KeyValues, ...]]]
    """``apply`` with no scan over layers, which would copy the whole cache for every token."""


def make_trunk(config: ModelConfig, vocab_size: int) -> Trunk:
    """The transformer as functions. Both layouts of layers start from the same parameters."""
    check(
        config.dtype != "float64" or jax.config.jax_enable_x64,  # ty: ignore[missing-attribute] - JAX sets it
        "model.dtype=float64 needs the environment variable JAX_ENABLE_X64=1",
    )
    # Drawn layer by layer and stacked afterwards: under a scan Flax would draw other numbers.
    unrolled = Transformer(replace(config, scan_layers=False, remat="none"), vocab_size)
    module = Transformer(config, vocab_size)
    training = Transformer(config, vocab_size, dropout=config.dropout)

    @jax.jit  # one program, not one for each shape of parameter
    def init(key):
        tokens = jnp.zeros((1, 1), jnp.int32)
        params = unrolled.init(key, tokens, tokens, segments_from_mask(tokens == 0))["params"]
        return stack_blocks(params, config.n_layers) if config.scan_layers else params

    def apply(params, *inputs):
        return module.apply({"params": params}, *inputs)

    def applied(dropout_key):
        if dropout_key is None:
            return apply
        rngs = {"dropout": dropout_key}
        return lambda params, *inputs: training.apply({"params": params}, *inputs, rngs=rngs)

    def apply_unrolled(params, *inputs):
        return unrolled.apply({"params": as_layout(params, unrolled.config)}, *inputs)

    return Trunk(init, apply, applied, apply_unrolled)


def padded_rows(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], *, start: int) -> TokenRows:
    """A row for each example as it stands, read from column ``start`` on."""
    return TokenRows(tokens, positions_of(mask), mask.astype(jnp.int32), start)


def read_rows(trunk: Trunk, params: Params, rows: TokenRows) -> Float[Array, "N M D"]:
    """Hidden states at the columns of ``rows``."""
    segments = in_segments(rows.segments)
    hidden, _ = trunk.apply(params, rows.tokens, rows.positions, segments)
    if isinstance(rows.columns, int):
        return hidden[:, rows.columns :]
    return jnp.take_along_axis(hidden, rows.columns[..., None], axis=1)


def read_answers(
    trunk: Trunk,
    params: Params,
    queries: Int[Array, "B Q"],
    query_mask: Bool[Array, "B Q"],
    responses: Int[Array, "B K R"],
    mask: Bool[Array, "B K R"],
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B Q D"], Float[Array, "A R D"]]:
    """Hidden states of queries, and of the A = B · K responses: the trunk reads a query once."""
    Q, (B, K, R) = queries.shape[1], mask.shape
    # Query and answers are read in two passes, each with dropout of its own.
    k_query, k_response = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    read, go_on = trunk.applied(k_query), trunk.applied(k_response)
    seen, layers = read(params, queries, positions_of(query_mask), segments_from_mask(query_mask))

    def per_response(x, axis=0):
        return jnp.repeat(x, K, axis=axis)

    # The rows of keys and values are the fourth axis from the end: scanned layers have one more in
    # front, that of the layers.
    cache = jax.tree.map(lambda x: with_room(per_response(x, x.ndim - 4), length=R), layers)
    mask = mask.reshape(B * K, R)
    keys = jnp.concatenate([per_response(query_mask), mask], axis=1)
    written, _ = go_on(
        params,
        responses.reshape(B * K, R),
        # An answer goes on counting where its query's real tokens end.
        per_response(query_mask.sum(axis=1))[:, None] + positions_of(mask),
        Segments(mask.astype(jnp.int32), keys.astype(jnp.int32)),
        cache,
        jnp.int32(Q),
    )
    return seen, written


def with_room(x: Float[Array, "*N B H T Dh"], *, length: int) -> Float[Array, "*N B H S Dh"]:
    """Keys or values with ``length`` empty slots behind them."""
    return layout.heads(jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, length), (0, 0)]))
