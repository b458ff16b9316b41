"""A reward model's score of an answer: its output at the last token, or the mean over all."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.packing import TokenRows, pack, read_in_blocks
from rlhf_jax.objectives.masked import last_index, masked_mean
from rlhf_jax.types import Params


def pooled(
    outputs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    start: int,
    pooling: Literal["last", "mean"],
) -> Float[Array, "B"]:
    """Scores of rows: the output at the last real token, as in InstructGPT, or the answer's mean.

    mean: Σ w·hₜ / n + b over the n real tokens from column ``start`` on, so that each token is
    taught by the whole answer's rank; 0 for a row without any.
    """
    if pooling == "last":
        return jnp.take_along_axis(outputs, last_index(mask)[:, None], axis=1)[:, 0]
    return masked_mean(outputs, mask & (jnp.arange(mask.shape[1])[None] >= start), axis=1)


def packed_scores(
    read: Callable[[Params, TokenRows], Float[Array, "N M"]],
    pooling: Literal["last", "mean"],
    params: Params,
    queries: Int[Array, "B Q"],
    query_mask: Bool[Array, "B Q"],
    responses: Int[Array, "B K R"],
    mask: Bool[Array, "B K R"],
) -> Float[Array, "B K"]:
    """Scores of whole answers, each behind its query, from their real tokens alone.

    ``read`` is the scalar model's. The score of an absent response is 0, and nothing of it is read.
    """
    B, K, R = mask.shape
    query_mask = query_mask[:, None] & mask.any(axis=2, keepdims=True)
    queries = jnp.broadcast_to(queries[:, None], query_mask.shape)
    tokens = jnp.concatenate([queries, responses], axis=2).reshape(B * K, -1)
    mask = jnp.concatenate([query_mask, mask], axis=2).reshape(B * K, -1)
    Q, columns = mask.shape[1] - R, jnp.arange(mask.shape[1])[None]
    wanted = columns >= Q if pooling == "mean" else columns == last_index(mask)[:, None]

    def outputs(params, block):
        return block.put(read(params, block.rows))

    found = read_in_blocks(outputs, params, pack(tokens, mask, mask & wanted, most_read=R))
    return pooled(found, mask, start=Q, pooling=pooling).reshape(B, K)
