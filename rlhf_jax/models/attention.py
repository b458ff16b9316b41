"""Who attends to whom, and the ways of computing it: two products, or a kernel of the accelerator.

    attention(q, k, v)ᵢ = Σⱼ softmaxⱼ(qᵢ · kⱼ / √Dh) vⱼ        over the keys j that query i sees

Queries and keys carry the number of their segment. A query sees the keys of its own segment up to
itself: documents packed into one row do not see each other, and nothing real sees padding. In a
sliding window (Beltagy et al. 2020, §3.1) it sees the nearest of them only. Tokens of a segment
follow each other without padding between them, so that the window is one of slots.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.errors import check
from rlhf_jax.models.layers import accumulator, capped, longer
from rlhf_jax.models.scoring import ALL_KEYS, Scoring

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


def visible(segments: Segments, window: int = 0) -> Bool[Array, "B 1 T S"]:
    """Whether query t sees key s. With a ``window`` the queries are the last of the keys."""
    queries, keys = segments
    T, S = queries.shape[1], keys.shape[1]
    # Shifted by S − T: the last query sees all keys, whether or not others came before in a cache.
    until_itself = jnp.tril(jnp.ones((1, T, S), bool), S - T)
    if window:
        until_itself &= jnp.triu(jnp.ones((1, T, S), bool), S - T - window + 1)
    return ((queries[:, :, None] == keys[:, None, :]) & until_itself)[:, None]


def attention(
    q: Float[Array, "B H T Dh"],
    k: Float[Array, "B G S Dh"],
    v: Float[Array, "B G S Dh"],
    segments: Segments,
    drop: Callable[[Array], Array] | None,
    *,
    fused: bool,
    scoring: Scoring = ALL_KEYS,
    index: Int[Array, ""] | None = None,
) -> Float[Array, "B H T Dh"]:
    """What each query reads; H / G queries share a key and value. ``drop`` is dropout of weights.

    ``index`` is the slot of the first query, None where nothing came before it. A kernel drops no
    weights; and one query per row (decoding) reads the cache, or its window of it, once either way.
    So ``fused`` concerns the rest: splash attention on TPUs, cuDNN on GPUs, two products elsewhere.
    """
    T, S, window = q.shape[2], k.shape[2], scoring.window
    if T == 1:
        # What is newer than the query is empty, so that its window is all of what is left.
        k, v, segments = newest(k, v, segments, index, window) if window else (k, v, segments)
        return plain_attention(q, k, v, segments, drop, scoring._replace(window=0))
    plain = partial(plain_attention, drop=drop, scoring=scoring)
    if 0 < 2 * window < S:
        plain = partial(windowed, plain, window=window)
    if not fused or drop is not None:
        return plain(q, k, v, segments)
    if jax.default_backend() == "gpu":  # JAX asks for cuDNN when the call is traced
        return cudnn_attention(q, k, v, segments, scoring)
    # Not at the top: importing Pallas takes a third of a second.
    from rlhf_jax.models.splash import splash_attention

    splash = partial(splash_attention, scoring=scoring)
    return jax.lax.platform_dependent(q, k, v, segments, tpu=splash, default=plain)


def newest(
    k: Float[Array, "B G S Dh"],
    v: Float[Array, "B G S Dh"],
    segments: Segments,
    index: Int[Array, ""] | None,
    window: int,
) -> tuple[Float[Array, "B G W Dh"], Float[Array, "B G W Dh"], Segments]:
    """Of a cache what one query at slot ``index`` sees: its ``window``, or all if there is less."""
    if window >= k.shape[2]:
        return k, v, segments
    assert index is not None, "one query of several keys comes after others"
    start = jnp.maximum(index - window + 1, 0)

    def cut(x, axis):
        return jax.lax.dynamic_slice_in_dim(x, start, window, axis)

    return cut(k, 2), cut(v, 2), segments._replace(keys=cut(segments.keys, 1))


def windowed(attend: Callable, q, k, v, segments, *, window: int) -> Float[Array, "B H T Dh"]:
    """``attend`` within a window: T · 2 window scores, not T · S.

    Queries are cut into blocks as long as the window, which stand in rows of their own, each with
    its own keys and those of the block before.
    """
    (B, H, T, Dh), S = q.shape, k.shape[2]
    blocks = -(-T // window)

    def as_rows(x, axis):
        return jnp.moveaxis(x, axis, 1).reshape(B * blocks, *x.shape[1:axis], *x.shape[axis + 1 :])

    def of_queries(x, axis, fill=0):
        x = padded(x, axis, 0, blocks * window - T, fill)
        return as_rows(x.reshape(*x.shape[:axis], blocks, window, *x.shape[axis + 1 :]), axis)

    def of_keys(x, axis, fill=0):
        last = jax.lax.slice_in_dim(x, max(S - T - window, 0), S, axis=axis)
        x = padded(last, axis, max(T + window - S, 0), blocks * window - T, fill)
        x = x.reshape(*x.shape[:axis], blocks + 1, window, *x.shape[axis + 1 :])
        before, own = (jax.lax.slice_in_dim(x, i, blocks + i, axis=axis) for i in (0, 1))
        return as_rows(jnp.concatenate([before, own], axis=axis + 1), axis)

    # What is added is of a segment that no token has.
    ids = Segments(of_queries(segments.queries, 1, -1), of_keys(segments.keys, 1, -1))
    out = attend(of_queries(q, 2), of_keys(k, 2), of_keys(v, 2), ids)
    out = jnp.moveaxis(out.reshape(B, blocks, H, window, Dh), 1, 2)
    return out.reshape(B, H, blocks * window, Dh)[:, :, :T]


def padded(x: Array, axis: int, before: int, behind: int, fill: int) -> Array:
    """``x`` with so much of ``fill`` before it and behind it along one axis."""
    widths = [(before, behind) if i == axis else (0, 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=fill)


def plain_attention(
    q, k, v, segments, drop=None, scoring: Scoring = ALL_KEYS
) -> Float[Array, "B H T Dh"]:
    """softmax(q kᵀ / √Dh) v under the mask of ``segments``, all scores in memory.

    ``drop`` is dropout of the attention weights.
    """
    (B, H, T, Dh), G = q.shape, k.shape[1]
    sums = accumulator(q.dtype)
    # A group's queries stand in the rows of one product with their common keys.
    q = q.reshape(B, G, H // G * T, Dh)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=sums)
    scores = scores.reshape(B, G, H // G, T, -1) / jnp.sqrt(scoring.width or Dh)
    seen = visible(segments, scoring.window)[:, :, None]
    weights = jax.nn.softmax(jnp.where(seen, capped(scores, scoring.cap), NEGATIVE), axis=-1)
    weights = weights if drop is None else drop(weights)
    weights = weights.reshape(B, G, H // G * T, -1).astype(q.dtype)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v, preferred_element_type=sums)
    return out.reshape(B, H, T, Dh)


def cudnn_attention(q, k, v, segments, scoring: Scoring = ALL_KEYS) -> Float[Array, "B H T Dh"]:
    """cuDNN's flash attention, which takes half precision and, with a mask, even lengths."""
    check(
        q.dtype == jnp.bfloat16,
        f"model.attention=fused on a GPU needs model.dtype=bfloat16, not {q.dtype}",
    )
    check(
        not scoring.cap,
        f"model.attention=fused on a GPU cannot cap scores (model.score_cap={scoring.cap}): "
        "expected model.attention=plain",
    )
    # An added query sees what the last one sees, and is cut off again; an added key is seen by
    # none.
    T, scale = q.shape[2], scoring.width and scoring.width**-0.5
    q, k, v = (longer(x, axis=2, multiple=2).transpose(0, 2, 1, 3) for x in (q, k, v))
    seen = visible(segments, scoring.window)
    seen = jnp.pad(seen, [(0, 0), (0, 0), (0, -T % 2), (0, 0)], mode="edge")
    seen = longer(seen, axis=3, multiple=2)
    out = jax.nn.dot_product_attention(
        q, k, v, mask=seen, scale=scale or None, implementation="cudnn"
    )
    return out[:, :T].transpose(0, 2, 1, 3).astype(accumulator(q.dtype))
