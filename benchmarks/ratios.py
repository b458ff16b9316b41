"""Ratios of runs that were taken in turns."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Ratio(NamedTuple):
    """The median of the ratios of neighbouring repetitions, with their quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def pairwise_ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """theirs / ours of each turn: over 1, ours is quicker."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Ratio(statistics.median(ratios), low, high)


def spread(values: Sequence[float]) -> float:
    """Half the distance of the quartiles over the median: the noise of one side."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle
