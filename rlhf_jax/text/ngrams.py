"""A byte n-gram language model: a judge of fluency that shares nothing with the policy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt64

BYTES = 256


class NgramModel(NamedTuple):
    """P(c | h) of a byte after the last ``order − 1`` bytes, Witten-Bell interpolated.

    P_n(c | h) = (N(h c) + T(h) P_{n−1}(c | h')) / (N(h) + T(h)), T(h) = number of different bytes
    after h, h' = h without its first byte, P_0 = 1/256 (Witten and Bell 1991, method C, in the
    interpolated form of Chen and Goodman 1999, §2.5).
    """

    grams: list[UInt64[np.ndarray, "_"]]
    """Sorted codes of the n-grams that occur, by n − 1."""
    counts: list[Float[np.ndarray, "_"]]
    contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    """Sorted codes of the contexts of length n − 1, their N(h) and T(h)."""

    def bits(self, text: str, context: str = "") -> tuple[float, int]:
        """(−Σ log₂ P, number of bytes) of ``text`` after ``context``."""
        before, new = context.encode(), text.encode()
        data = np.frombuffer(before + new, np.uint8).astype(np.uint64)
        if not len(new):
            return 0.0, 0
        start = len(before)
        probability = np.full(len(new), 1 / BYTES)
        for n in range(1, len(self.grams) + 1):
            # Where the context is shorter than n − 1 bytes, the shorter model has the word.
            known = np.arange(start, len(data)) >= n - 1
            at = np.arange(start, len(data))[known]
            codes = ngram_codes(data, n)[at - (n - 1)]
            heads = codes >> np.uint64(8)
            count = look_up(self.grams[n - 1], self.counts[n - 1], codes)
            keys, totals, kinds = self.contexts[n - 1]
            total, kind = look_up(keys, totals, heads), look_up(keys, kinds, heads)
            seen = total > 0
            mixed = (count + kind * probability[known]) / np.maximum(total + kind, 1)
            probability[known] = np.where(seen, mixed, probability[known])
        return float(-np.log2(probability).sum()), len(new)

    def bits_per_byte(self, text: str, context: str = "") -> float:
        """Of ``text`` after ``context``; 8, as of unknown bytes, if it is empty."""
        bits, length = self.bits(text, context)
        return bits / length if length else 8.0


def train_ngrams(texts: Sequence[str], *, order: int) -> NgramModel:
    """Counts of all byte n-grams up to ``order`` (at most 8), none across two texts."""
    data = [np.frombuffer(text.encode(), np.uint8).astype(np.uint64) for text in texts]
    grams, counts, contexts = [], [], []
    for n in range(1, order + 1):
        codes, number = np.unique(
            np.concatenate([ngram_codes(bytes_of_text, n) for bytes_of_text in data]),
            return_counts=True,
        )
        heads, first, kinds = np.unique(
            codes >> np.uint64(8), return_index=True, return_counts=True
        )
        totals = np.add.reduceat(number, first)
        grams.append(codes)
        counts.append(number.astype(float))
        contexts.append((heads, totals.astype(float), kinds.astype(float)))
    return NgramModel(grams, counts, contexts)


def ngram_codes(data: UInt64[np.ndarray, "_"], n: int) -> UInt64[np.ndarray, "_"]:
    """Each n consecutive bytes as one number, the first byte highest."""
    length = max(len(data) - n + 1, 0)
    codes = np.zeros(length, np.uint64)
    for i in range(n):
        codes = (codes << np.uint64(8)) | data[i : i + length]
    return codes


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``values`` at the sorted ``keys``; 0 where a key does not occur."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)
