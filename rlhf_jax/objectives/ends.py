"""Where a response ends: at the first of a model's end tokens, of which there may be several."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def is_end(tokens: Int[Array, "..."], end_ids: Sequence[int]) -> Bool[Array, "..."]:
    """Whether each token is one of ``end_ids``."""
    is_one_of_them = tokens == end_ids[0]
    for i in end_ids[1:]:
        is_one_of_them = jnp.logical_or(is_one_of_them, tokens == i)
    return is_one_of_them


def has_ended(
    responses: Int[Array, "B R"], mask: Bool[Array, "B R"], end_ids: Sequence[int]
) -> Bool[Array, "B"]:
    """Whether each response holds an end: otherwise it was cut at the longest length."""
    return (is_end(responses, end_ids) & mask).any(axis=1)
