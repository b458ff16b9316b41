"""Figures of an evaluation, each with its uncertainty. NumPy and SciPy only.

An interval is a dict {"mean", "ci"}: ``mean ± ci`` is the 95 % interval. The unit that is drawn at
random is the prompt (or the seed), so responses to one prompt must be averaged before.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float, Int, Num

from rlhf_jax.evaluation.pairs import ordered_pairs, right

CONFIDENCE = 0.95
BINS = 10
"""Of the reliability diagram, between P = 1/2 and 1."""

Values = Num[np.ndarray, "P"] | Sequence[float | int]
Interval = dict[str, float]
"""mean, ci (half-width of the 95 % interval) and n."""


# --- means, wins, differences ---------------------------------------------------------------------


def mean_ci(values: Values) -> Interval:
    """Mean ± t₀.₉₇₅,ₙ₋₁ s / √n: over prompts, or over seeds. ``ci`` is NaN for a single value."""
    values = np.asarray(values, float)
    n = len(values)
    half = float("nan")
    if n > 1:
        half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return {"mean": float(values.mean()), "ci": float(half), "n": n}


def ratio_ci(numerators: Values, denominators: Values) -> Interval:
    """R = Σ a / Σ b, ± t₀.₉₇₅,ₙ₋₁ √(Σ (aᵢ − R bᵢ)² n / (n − 1)) / Σ b: a ratio of means.

    Of things drawn at random that are of different sizes b, such as batches of text with their
    numbers of tokens. Where all sizes are equal it is ``mean_ci`` of a / b.
    """
    a, b = _same_length(numerators, denominators)
    n, ratio = len(a), a.sum() / b.sum()
    half = float("nan")
    if n > 1:
        spread = np.sqrt(((a - ratio * b) ** 2).sum() * n / (n - 1)) / b.sum()
        half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * spread
    return {"mean": float(ratio), "ci": float(half), "n": n}


def perplexity_ci(logprobs: Values, lengths: Values) -> Interval:
    """exp(−Σ log π / Σ tokens) of answers, ± the half-width of the exponent's interval times it.

    The exponent is ``ratio_ci`` over answers; its interval is carried over by the delta method.
    """
    nats = ratio_ci(-np.asarray(logprobs, float), lengths)
    perplexity = float(np.exp(nats["mean"]))
    return nats | {"mean": perplexity, "ci": perplexity * nats["ci"]}


def win_rate(scores: Values, baseline: Values) -> Interval:
    """Share of prompts on which ``scores`` beats ``baseline``, ties counting 1/2.

    Also ``low`` and ``high``, Wilson's score interval (1927), which stays within [0, 1] and does
    not shrink to nothing at 0 or 1; ``ci`` is half its width. Ties make it conservative.
    """
    scores, baseline = _same_length(scores, baseline)
    n = len(scores)
    rate = float(((1 + np.sign(scores - baseline)) / 2).mean())
    z = scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)
    # Centred between the rate and 1/2, the more so the fewer prompts there are.
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = float(centre - half), float(centre + half)
    return {"mean": rate, "ci": float(half), "low": low, "high": high, "n": n}


def length_controlled_win_rate(wins: Values, lengths: Values, baseline_lengths: Values) -> Interval:
    """Win rate at equal length: σ(a) of P(win) = σ(a + b · log(length / baseline length)).

    A logistic regression of the wins (1, 1/2, 0) on the ratio of lengths, read where the ratio is 1
    (as the length-controlled comparison of Stiennon et al. 2020, §4.1, and Dubois et al. 2024).
    ``length_effect`` is b: positive if the longer answer tends to win. A weak prior, N(0, 10²) on
    a and b, keeps both finite when one side wins every time. ``ci`` by the delta method.
    """
    wins = np.asarray(wins, float)
    # The logarithm of the ratio: twice and half as long are equally far. + 1 for empty answers.
    x = np.log((np.asarray(lengths, float) + 1) / (np.asarray(baseline_lengths, float) + 1))
    design = np.stack([np.ones_like(x), x], axis=1)
    beta = np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + np.eye(2) / 100
        step = np.linalg.solve(hessian, design.T @ (wins - p) - beta / 100)
        # Damped: a full Newton step may overshoot where wins are nearly separable.
        beta = beta + step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-10:
            break
    rate = 1 / (1 + np.exp(-beta[0]))
    deviation = np.sqrt(np.linalg.inv(hessian)[0, 0])
    ci = scipy.stats.norm.ppf(0.975) * rate * (1 - rate) * deviation
    return {"mean": float(rate), "ci": float(ci), "length_effect": float(beta[1]), "n": len(wins)}


def _same_length(first, second) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape:
        raise ValueError(f"paired values of shapes {first.shape} and {second.shape}")
    return first, second


# --- text -----------------------------------------------------------------------------------------


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float:
    """Distinct n-grams of all texts together, per n-gram (Li et al. 2016, §5.4); NaN if none.

    Falls with the amount of text: compare equal numbers of texts only.
    """
    # Of all texts together: each text alone may be varied and all of them the same.
    grams = [gram for words in texts for gram in _ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repeated_ngram_rate(words: Sequence[str], n: int) -> float:
    """Share of a text's n-grams that occurred before in it; 0 if it has none."""
    grams = _ngrams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repeated_word_rate(words: Sequence[str]) -> float:
    """Share of a text's words that occurred before in it; 0 for an empty text."""
    return repeated_ngram_rate(words, 1)


def non_word_rate(words: Sequence[str], known: frozenset[str]) -> float:
    """Share of a text's words that are neither known nor numbers; 0 for an empty text."""
    unknown = sum(word not in known and not word.isnumeric() for word in words)
    return unknown / len(words) if words else 0.0


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Σ nats / ln 2 / Σ bytes: loss that does not depend on the tokenizer."""
    return nats / np.log(2) / num_bytes


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


# --- reward models on ranked comparisons ----------------------------------------------------------


class PairAccuracy(NamedTuple):
    """How a reward model orders pairs; equal scores count 1/2."""

    overall: float
    margin: float
    """Mean score of the better one − score of the other."""
    pairs: int


def pair_accuracy(scores: Float[np.ndarray, "P K"], ranks: Int[np.ndarray, "P K"]) -> PairAccuracy:
    """Over all pairs with different ranks; −1 marks an absent response. NaN where no pair is."""
    margins = ordered_pairs(ranks).margins(scores)
    return PairAccuracy(_mean(right(margins)), _mean(margins), len(margins))


def spread_within_prompts(scores: Float[np.ndarray, "P K"]) -> float:
    """√ of the mean over prompts of the variance of their responses' scores; NaN is absent."""
    return float(np.nanmean(np.nanvar(scores, axis=1)) ** 0.5)


class Calibration(NamedTuple):
    """Reliability of P(i above j) = σ(s_i − s_j), from the side that the model prefers."""

    ece: float
    """Expected calibration error Σ_b n_b / n |accuracy_b − confidence_b| (Guo et al. 2017)."""
    confidence: list[float]
    """Mean predicted probability per bin between 1/2 and 1; NaN in an empty bin."""
    accuracy: list[float]
    count: list[int]


def calibration(scores: Float[np.ndarray, "P K"], ranks: Int[np.ndarray, "P K"]) -> Calibration:
    """Predicted against actual shares of rightly ordered pairs; equal scores are right by half."""
    margins = ordered_pairs(ranks).margins(scores)
    predicted = scipy.special.expit(np.abs(margins))
    # P = 1 belongs to the last bin and not to one behind it.
    index = np.minimum((2 * (predicted - 0.5) * BINS).astype(int), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    sums = [np.bincount(index, x, BINS) for x in (predicted, right(margins))]
    # Sums and not means: bins weigh by how many pairs they hold.
    gap = np.abs(sums[0] - sums[1]).sum()
    confidence, accuracy = (
        np.divide(s, count, np.full(BINS, np.nan), where=count > 0) for s in sums
    )
    ece = float(gap / count.sum()) if len(margins) else float("nan")
    return Calibration(ece, confidence.tolist(), accuracy.tolist(), count.tolist())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


# --- several answers to a prompt ------------------------------------------------------------------


def pass_at_k(right: Num[np.ndarray, "P n"], k: int) -> Float[np.ndarray, "P"]:
    """Chance that one of k answers to a prompt is right, from n ≥ k of which c are: unbiased.

    1 − C(n − c, k) / C(n, k) (Chen et al. 2021, eq. 1), as 1 − Πᵢ₌ₙ₋꜀₊₁ⁿ (1 − k / i), whose factors
    are small where the binomials would overflow. ``right`` is 1 for a right answer and 0 for
    another. 1 − (1 − c / n)ᵏ would be too low on average.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} answers")
    missed = np.cumprod(1 - k / np.arange(n, 0, -1))  # exactly 0 from i = k on
    return 1 - np.concatenate([[1.0], missed])[right.sum(axis=1).astype(int)]


def best_of_n_mean(
    scores: Float[np.ndarray, "P N"], values: Float[np.ndarray, "P N"], n: int
) -> Float[np.ndarray, "P"]:
    """Expected value of the best of n answers to a prompt by score, from N ≥ n answers: unbiased.

    Σᵢ C(i − 1, n − 1) / C(N, n) v₍ᵢ₎, v₍ᵢ₎ the value of the answer with the i-th lowest score
    (Nakano et al. 2021, appendix I): the mean over all subsets of n, each of which has the i-th as
    its best in C(i − 1, n − 1) of them. Answers of equal score are as likely to be taken.
    """
    N = scores.shape[1]
    if not 1 <= n <= N:
        raise ValueError(f"best of {n} among {N} answers")
    # wᵢ₋₁ / wᵢ = (i − n) / (i − 1) from w_N = n / N down: the binomials would overflow.
    ranks = np.arange(N, 1, -1)
    weights = n / N * np.cumprod([1.0, *(np.maximum(ranks - n, 0) / (ranks - 1))])[::-1]
    order = np.argsort(scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    ranked_values = np.take_along_axis(np.asarray(values, float), order, axis=1)
    expected = np.empty(len(scores))
    for row, (s, v) in enumerate(zip(ranked, ranked_values, strict=True)):
        starts = np.flatnonzero(np.concatenate([[True], s[1:] != s[:-1]]))
        sizes = np.diff([*starts, N])
        tied = np.add.reduceat(v, starts) / sizes
        expected[row] = np.add.reduceat(weights, starts) @ tied
    return expected


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n ‖ policy) = ln n − (n − 1)/n nats.

    Exact for scores without ties, an upper bound with them.
    """
    return float(np.log(n) - (n - 1) / n)
