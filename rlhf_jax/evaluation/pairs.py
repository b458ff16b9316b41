"""Pairs (better, worse) that people ordered among the responses to a prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Pairs(NamedTuple):
    """Ordered pairs of all prompts; ``better`` and ``worse`` index the flattened responses."""

    prompt: Int[np.ndarray, "N"]
    group: Int[np.ndarray, "N"]
    better: Int[np.ndarray, "N"]
    worse: Int[np.ndarray, "N"]

    def margins(self, values: Float[np.ndarray, "P K"]) -> Float[np.ndarray, "N"]:
        """Value of the better response less that of the worse one, for each pair."""
        flat = np.asarray(values, float).reshape(-1)
        return flat[self.better] - flat[self.worse]


def ordered_pairs(ranks: Int[np.ndarray, "P K"], groups: Sequence[str] | None = None) -> Pairs:
    """All pairs with different ranks; −1 marks an absent response."""
    ranks = np.asarray(ranks)
    here = ranks >= 0
    better = (ranks[:, :, None] < ranks[:, None, :]) & here[:, :, None] & here[:, None, :]
    prompt, i, j = np.nonzero(better)
    K = ranks.shape[1]
    group_ids = range(len(ranks)) if groups is None else groups
    group = np.unique(np.asarray(group_ids), return_inverse=True)[1][prompt]
    return Pairs(prompt, group, prompt * K + i, prompt * K + j)


def right(margins: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """1 where the better one has the higher score, 0 where the lower, 1/2 where they are equal."""
    return (1 + np.sign(margins)) / 2
