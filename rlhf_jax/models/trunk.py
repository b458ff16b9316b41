"""The transformer below any head, as functions of parameters and arrays."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import check
from rlhf_jax.models.attention import in_segments, segments_from_mask
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
