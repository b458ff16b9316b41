"""Who attends to whom, and the ways of computing it: two products, or a kernel of the accelerator.

    attention(q, k, v)ᵢ = Σⱼ softmaxⱼ(qᵢ · kⱼ / √Dh) vⱼ        over the keys j that query i sees

Queries and keys carry the number of their segment. A query sees the keys of its own segment up to
itself: documents packed into one row do not see each other, and nothing real sees padding.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.errors import check
from rlhf_jax.models.layers import accumulator, longer

NEGATIVE = -1e30
"""A masked score or logit: finite, so that a row which sees nothing stays finite too."""


class Segments(NamedTuple):
    """The segment of each query and key; 0 is padding and empty slots of a cache.

    The queries are the last T of the S keys, or one query stands before slots that are empty.
    """

    queries: Int[Array, "B T"]
    keys: Int[Array, "B S"]


def in_segments(ids: Int[Array, "B T"]) -> Segments:
    """Rows that see themselves only, cut into the segments ``ids``."""
    return Segments(ids, ids)


def segments_from_mask(mask: Bool[Array, "B T"]) -> Segments:
    """Real tokens see the real ones up to themselves; padding sees padding, and nobody reads it."""
    return in_segments(mask.astype(jnp.int32))


def visible(segments: Segments) -> Bool[Array, "B 1 T S"]:
    """Whether query t sees key s."""
    queries, keys = segments
    T, S = queries.shape[1], keys.shape[1]
    # Shifted by S − T: the last query sees all keys, whether or not others came before in a cache.
    until_itself = jnp.tril(jnp.ones((1, T, S), bool), S - T)
    return ((queries[:, :, None] == keys[:, None, :]) & until_itself)[:, None]


def attention(
    q: Float[Array, "B H T Dh"],
    k: Float[Array, "B G S Dh"],
    v: Float[Array, "B G S Dh"],
    segments: Segments,
    drop: Callable[[Array], Array] | None,
    *,
    fused: bool,
) -> Float[Array, "B H T Dh"]:
    """What each query reads; H / G queries share a key and value. ``drop`` is dropout of weights.

    A kernel drops no weights; and one query per row (decoding) reads the cache once either way. So
    ``fused`` concerns the rest: splash attention on TPUs, cuDNN on GPUs, two products elsewhere.
    """
    plain = partial(plain_attention, drop=drop)
    if not fused or drop is not None or q.shape[2] == 1:
        return plain(q, k, v, segments)
    if jax.default_backend() == "gpu":  # JAX asks for cuDNN when the call is traced
        return cudnn_attention(q, k, v, segments)
    # Not at the top: importing Pallas takes a third of a second.
    from rlhf_jax.models.splash import splash_attention

    return jax.lax.platform_dependent(q, k, v, segments, tpu=splash_attention, default=plain)


def plain_attention(q, k, v, segments, drop=None) -> Float[Array, "B H T Dh"]:
    """softmax(q kᵀ / √Dh) v under the mask of ``segments``, all scores in memory.

    ``drop`` is dropout of the attention weights.
    """
    (B, H, T, Dh), G = q.shape, k.shape[1]
    sums = accumulator(q.dtype)
    # A group's queries stand in the rows of one product with their common keys.
    q = q.reshape(B, G, H // G * T, Dh)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=sums)
    scores = scores.reshape(B, G, H // G, T, -1) / jnp.sqrt(Dh)
    seen = visible(segments)[:, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, NEGATIVE), axis=-1)
    weights = weights if drop is None else drop(weights)
    weights = weights.reshape(B, G, H // G * T, -1).astype(q.dtype)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v, preferred_element_type=sums)
    return out.reshape(B, H, T, Dh)


def cudnn_attention(q, k, v, segments) -> Float[Array, "B H T Dh"]:
    """cuDNN's flash attention, which takes half precision and, with a mask, even lengths."""
    check(
        q.dtype == jnp.bfloat16,
        f"model.attention=fused on a GPU needs model.dtype=bfloat16, not {q.dtype}",
    )
    # An added query sees what the last one sees, and is cut off again; an added key is seen by
    # none.
    T = q.shape[2]
    q, k, v = (longer(x, axis=2, multiple=2).transpose(0, 2, 1, 3) for x in (q, k, v))
    seen = jnp.pad(visible(segments), [(0, 0), (0, 0), (0, -T % 2), (0, 0)], mode="edge")
    seen = longer(seen, axis=3, multiple=2)
    out = jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="cudnn")
    return out[:, :T].transpose(0, 2, 1, 3).astype(accumulator(q.dtype))
