"""Attention on TPUs by a Pallas kernel of JAX: no scores in memory, no work above the diagonal."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

from rlhf_jax.models import layout
from rlhf_jax.models.layers import accumulator, longer
from rlhf_jax.models.scoring import ALL_KEYS, Scoring

BLOCKS = (512, 256, 128)
"""Lengths of the kernel's blocks; of those that divide, the longest."""


def splash_attention(
    q, k, v, segments, scoring: Scoring = ALL_KEYS, *, interpret: bool = False
) -> Float[Array, "B H T Dh"]:
    """JAX's Pallas kernel for TPUs, on each device's own rows and heads.

    Blocks that lie above the diagonal, or before every window, are left out. ``interpret`` runs it
    anywhere, slowly.
    """

    def local(q, k, v, queries, keys):
        (H, T, Dh), S = q.shape[1:], k.shape[2]
        q = q / jnp.sqrt(scoring.width or Dh).astype(q.dtype)
        q = longer(q, axis=2, multiple=BLOCKS[-1])
        # The kernel has no row that sees nothing: added queries have the segment of the last one,
        # and each a key, of that segment too. Added keys lie behind all that a query sees.
        added = q.shape[2] - T
        queries = jnp.pad(queries, [(0, 0), (0, added)], mode="edge")
        added += -(S + added) % BLOCKS[-1]
        k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, added), (0, 0)]) for x in (k, v))
        keys = jnp.pad(keys, [(0, 0), (0, added)], mode="edge")
        shape, offset, window = (q.shape[2], k.shape[2]), S - T, scoring.window
        if window:
            mask = masks.LocalMask(shape, (window - 1, 0), offset=offset)
        else:
            mask = masks.CausalMask(shape, offset=offset)
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * H),
            block_sizes=blocks(*shape),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=scoring.cap or None,
            interpret=interpret,
        )
        return jax.vmap(kernel)(q, k, v, kernels.SegmentIds(queries, keys))[:, :, :T]

    call = layout.on_own_rows_and_heads(local, kv_heads=k.shape[1], rows=len(q))
    return call(q, k, v, *segments).astype(accumulator(q.dtype))


def blocks(T: int, S: int) -> kernels.BlockSizes:
    """The kernel's block sizes for T queries and S keys: the longest that divide them."""
    q, kv = (next(b for b in BLOCKS if length % b == 0) for length in (T, S))
    return kernels.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
