"""A fingerprint of an array that parts of it add up to, however they are split.

    h(x) = Σᵢ bits(xᵢ) · w₀(i₀) · w₁(i₁) ···   mod 2⁶⁴

with odd pseudo-random weights w per axis. One flipped bit changes it always, any other damage but
for one chance in about 2⁶⁴. It guards against broken disks, not against people. A process that
holds or reads a part of an array computes that part's share, and shares add.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

BLOCK = 2**20
"""Elements that are widened to 64 bits at a time."""


def weights(axis: int, start: int, stop: int) -> np.ndarray:
    """Odd 64-bit numbers of the positions start..stop-1 of an axis (SplitMix64, Steele 2014)."""
    # Axes must differ, or an array and its transpose would have one fingerprint.
    x = np.arange(start + 1, stop + 1, dtype=np.uint64) + np.uint64(axis << 40)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    # Odd numbers are invertible modulo 2⁶⁴: no flipped bit is multiplied away.
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)


def partial_sum(part: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """What the elements ``x[index]`` of an array x of ``shape`` add to its fingerprint."""
    # Bits and not values: −0 is another parameter than 0, and NaN equals itself.
    bits = np.ascontiguousarray(part).view(f"u{part.dtype.itemsize}").reshape(part.shape or (1,))
    bounds = [i.indices(n)[:2] for i, n in zip(index, shape, strict=True)] or [(0, 1)]
    rows = bits.reshape(-1, bits.shape[-1])
    last = weights(len(bounds) - 1, *bounds[-1])
    sums = np.empty(len(rows), np.uint64)
    step = max(BLOCK // max(len(last), 1), 1)
    for first in range(0, len(rows), step):
        block = rows[first : first + step].astype(np.uint64)
        block *= last
        sums[first : first + step] = block.sum(axis=1, dtype=np.uint64)
    # Last axis first, so that what is left to multiply shrinks at each step.
    for axis in reversed(range(len(bounds) - 1)):
        of_axis = weights(axis, *bounds[axis])
        sums = (sums.reshape(-1, len(of_axis)) * of_axis).sum(axis=1, dtype=np.uint64)
    return int(sums.sum(dtype=np.uint64))


def own_share(leaf: Any) -> int:
    """The share of this process: of an array in parts, those that no other process counts."""
    if not isinstance(leaf, jax.Array):
        counts = jax.process_index() == 0
        return (
            partial_sum(np.asarray(leaf), (slice(None),) * np.ndim(leaf), np.shape(leaf)) * counts
        )
    if leaf.is_fully_addressable and leaf.is_fully_replicated:
        counts = jax.process_count() == 1 or jax.process_index() == 0
        return partial_sum(np.asarray(leaf), (slice(None),) * leaf.ndim, leaf.shape) * counts
    # Of copies of a part on several devices, one counts.
    parts = [part for part in leaf.addressable_shards if part.replica_id == 0]
    return sum(partial_sum(np.asarray(part.data), part.index, leaf.shape) for part in parts) % 2**64


def fingerprints(leaves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Shape, dtype and fingerprint of every leaf; all processes call it, and get the same."""
    shares = np.array([own_share(leaf) for leaf in leaves.values()], np.uint64)
    if jax.process_count() > 1:
        # In halves: without 64-bit mode JAX would cut the numbers to 32 bits.
        halves = multihost_utils.process_allgather(shares.view(np.uint32))
        shares = np.ascontiguousarray(halves).view(np.uint64).sum(axis=0, dtype=np.uint64)
    return {
        name: {
            "shape": list(np.shape(leaf)),
            "dtype": str(leaf.dtype),
            "fingerprint": f"{int(total):016x}",
        }
        for (name, leaf), total in zip(leaves.items(), shares, strict=True)
    }
