"""Whether two arms differ over seeds: paired differences, their intervals, and many at once.

NumPy and SciPy only. The unit that is drawn at random is the seed: the two arms of a pair share all
that they are made from, and differ in what is compared.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from rlhf_jax.errors import check, counted
from rlhf_jax.evaluation.metrics import CONFIDENCE

FEWEST = 5
"""Pairs below which no comparison is made unless it is asked for: at three, an interval's
half-width is 2.5 standard deviations."""
EXACT_PAIRS = 14
"""Up to so many pairs all 2ⁿ flips of signs are counted; of more, ``FLIPS`` are drawn."""
FLIPS = 20_000
SEED = 0
"""Of the flips that are drawn: the same data have the same p."""
BATCH = 2_000
"""Drawn flips in memory at a time."""


class Difference(NamedTuple):
    """Mean paired difference of two arms, with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    p: float
    """Of the paired t-test, two-sided."""
    p_flips: float
    """Of the sign-flip test, two-sided: it assumes no normal distribution."""

    @property
    def half_width(self) -> float:
        """mean ± this is the interval."""
        return (self.high - self.low) / 2


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], *, few: bool = False
) -> Difference:
    """Mean over seeds of first − second, d̄ ± t₀.₉₇₅,ₙ₋₁ s / √n, by seed.

    s is the standard deviation of the n differences (divided by n − 1). Raises InputError where a
    seed is missing in one of the two, where a figure is no number, or for fewer than ``FEWEST``
    pairs without ``few``.
    """
    alone = sorted(first.keys() ^ second.keys())
    check(
        not alone,
        f"unpaired: seeds {', '.join(map(str, alone))} are in one of the two arms only; expected "
        "the same seeds in both",
    )
    fewest = 2 if few else FEWEST
    check(
        len(first) >= fewest,
        f"{counted(len(first), 'pair')} of seeds: expected at least {fewest}"
        + ("" if few else " (--few True compares fewer)"),
    )
    # Paired by seed: what two arms share (data, SFT, reward model) drops out of the difference.
    d = np.array([first[seed] - second[seed] for seed in sorted(first)], float)
    check(bool(np.isfinite(d).all()), f"differences {d.tolist()}: expected finite numbers")
    mean, error = float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(d) - 1)) * error
    if error > 0:
        p = float(2 * scipy.stats.t.sf(abs(mean) / error, len(d) - 1))
    else:  # all differences are one number
        p = 1.0 if mean == 0 else 0.0
    return Difference(mean, mean - half, mean + half, len(d), p, sign_flip_p(d))


def sign_flip_p(differences: Float[np.ndarray, "n"]) -> float:
    """Two-sided p of |Σ d| among |Σ ± d| over flips of signs (Fisher 1935, §21).

    Under no difference the two arms of a pair could be exchanged, so that every flip is as likely.
    All 2ⁿ flips where n ≤ ``EXACT_PAIRS``; else a sample, with the data's own signs as one of it
    (Phipson and Smyth 2010), so that p is never 0. It cannot be below 2¹⁻ⁿ: 1/16 of five pairs.
    """
    n = len(differences)
    seen = abs(differences.sum())
    # Sums in another order may differ by rounding, which is no other sum.
    limit = seen - 1e-9 * np.abs(differences).sum()
    if n <= EXACT_PAIRS:
        # Row k has the bits of k: every combination of signs once.
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float((np.abs((1 - 2 * bits) @ differences) >= limit).mean())
    rng = np.random.default_rng(SEED)
    reached = 0
    for _ in range(FLIPS // BATCH):
        signs = rng.choice((-1.0, 1.0), size=(BATCH, n))
        reached += int((np.abs(signs @ differences) >= limit).sum())
    # The data's own signs count as one of the draws.
    return (reached + 1) / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, in their order (Holm 1979).

    p̃₍ₖ₎ = max over j ≤ k of min(1, (m − j + 1) p₍ⱼ₎), p₍₁₎ ≤ … ≤ p₍ₘ₎: rejecting where p̃ ≤ α, the
    chance of any false rejection is at most α, however the tests depend on each other.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(p)
    # Never smaller than that of a smaller p, or the order of the tests would turn round.
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()


def verdict(difference: Difference, p_holm: float, *, alpha: float = 1 - CONFIDENCE) -> str:
    """higher, lower, or not shown: the interval holds 0, or p after Holm is over ``alpha``."""
    holds_zero = difference.low <= 0 <= difference.high
    if holds_zero or p_holm > alpha:
        return "not shown"
    return "higher" if difference.mean > 0 else "lower"
