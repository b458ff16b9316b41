"""Every figure against a slow computation of the same thing, or against simulation."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.evaluation import metrics

RNG = np.random.default_rng


# --- means, wins, differences ---------------------------------------------------------------------


def test_mean_ci_by_hand():
    found = metrics.mean_ci([1.0, 2.0, 4.0])
    deviation = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    assert found["mean"] == pytest.approx(7 / 3) and found["n"] == 3
    assert found["ci"] == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)
    assert math.isnan(metrics.mean_ci([2.0])["ci"]) and metrics.mean_ci([2.0])["mean"] == 2


def test_intervals_cover_the_truth_95_times_in_100():
    """3,000 experiments of 8 values; the standard error of a rate is 0.004."""
    draws = RNG(0).normal(3.0, 2.0, size=(3000, 8))
    intervals = [metrics.mean_ci(row) for row in draws]
    covered = [abs(found["mean"] - 3) <= found["ci"] for found in intervals]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    wins = RNG(1).random((2000, 60)) < 0.9
    found = [metrics.win_rate(row.astype(float), np.full(60, 0.5)) for row in wins]
    assert np.mean([f["low"] <= 0.9 <= f["high"] for f in found]) == pytest.approx(0.95, abs=0.03)


def test_ratio_of_equal_sizes_is_the_mean():
    values = np.random.default_rng(0).normal(size=12)
    expected = metrics.mean_ci(values)
    assert metrics.ratio_ci(7 * values, np.full(12, 7.0)) == pytest.approx(expected)
    assert np.isnan(metrics.ratio_ci([1.0], [2.0])["ci"])


def test_ratio_of_other_sizes_has_the_jackknifes_interval():
    rng = np.random.default_rng(1)
    sizes = rng.integers(50, 150, 400)
    sums = 4.2 * sizes + rng.normal(0, 3, 400) * np.sqrt(sizes)
    found = metrics.ratio_ci(sums, sizes)
    assert found["mean"] == pytest.approx(sums.sum() / sizes.sum()) and found["n"] == 400
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    deviation = np.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    assert found["ci"] == pytest.approx(stats.t.ppf(0.975, 399) * deviation, rel=0.01)


def test_perplexity_is_of_tokens_and_its_interval_is_its_logarithms():
    rng = np.random.default_rng(2)
    lengths = rng.integers(5, 30, 300)
    nats = 2.1 * lengths + rng.normal(0, 0.5, 300) * np.sqrt(lengths)
    found, per_token = metrics.perplexity_ci(-nats, lengths), metrics.ratio_ci(nats, lengths)
    assert found["mean"] == pytest.approx(np.exp(nats.sum() / lengths.sum())) and found["n"] == 300
    ends = np.exp([per_token["mean"] - per_token["ci"], per_token["mean"] + per_token["ci"]])
    assert [found["mean"] - found["ci"], found["mean"] + found["ci"]] == pytest.approx(
        ends, rel=1e-3
    )
    # A model that is as unsure as a fair die.
    assert metrics.perplexity_ci([-3 * np.log(6), -np.log(6)], [3, 1])["mean"] == pytest.approx(6)


def test_win_rate_counts_ties_half_and_is_wilsons():
    scores, baseline = [3.0, 1.0, 2.0, 5.0, 4.0], [1.0, 1.0, 3.0, 2.0, 0.0]
    assert metrics.win_rate(scores, baseline)["mean"] == pytest.approx(3.5 / 5)
    assert metrics.win_rate(baseline, scores)["mean"] == pytest.approx(1.5 / 5)
    for wins, n in ((0, 10), (7, 10), (180, 192), (10, 10)):
        scores = np.array([1.0] * wins + [-1.0] * (n - wins))
        found = metrics.win_rate(scores, np.zeros(n))
        wilson = stats.binomtest(wins, n).proportion_ci(0.95, "wilson")
        assert (found["low"], found["high"]) == pytest.approx((wilson.low, wilson.high))
        assert found["ci"] == pytest.approx((wilson.high - wilson.low) / 2) and found["n"] == n


def test_wins_are_of_the_same_prompts():
    with pytest.raises(ValueError, match="shapes"):
        metrics.win_rate([1.0], [1.0, 2.0])


# --- text -----------------------------------------------------------------------------------------


def test_text_rates_by_hand():
    a, b = ["the", "best", "the", "best", "film"], ["the", "best", "."]
    assert metrics.distinct_n([a, b], 1) == pytest.approx(4 / 8)
    assert metrics.distinct_n([a, b], 2) == pytest.approx(4 / 6)  # per text: no pair across texts
    assert metrics.distinct_n([["one"]], 2) != metrics.distinct_n([["one"]], 2)  # NaN
    assert metrics.repeated_word_rate(a) == pytest.approx(2 / 5)
    assert metrics.repeated_ngram_rate(a, 2) == pytest.approx(1 / 4)
    assert metrics.repeated_word_rate([]) == metrics.repeated_ngram_rate(["a"], 2) == 0
    known = frozenset({"the", "film"})
    assert metrics.non_word_rate(["the", "flim", "film", "1984"], known) == pytest.approx(1 / 4)
    assert metrics.non_word_rate([], known) == 0
    assert metrics.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngram_rates_against_loops(n):
    rng = RNG(n)
    texts = [[str(w) for w in rng.integers(0, 6, size=rng.integers(0, 12))] for _ in range(40)]
    seen, total = set(), 0
    for text in texts:
        before, repeated, grams = set(), 0, 0
        for i in range(len(text) - n + 1):
            gram = " ".join(text[i : i + n])
            repeated += gram in before
            before.add(gram)
            grams += 1
        seen |= before
        total += grams
        expected = repeated / grams if grams else 0.0
        assert metrics.repeated_ngram_rate(text, n) == pytest.approx(expected)
    assert metrics.distinct_n(texts, n) == pytest.approx(len(seen) / total)


# --- reward models --------------------------------------------------------------------------------


def ragged_comparisons():
    rng = RNG(3)
    scores = np.round(rng.normal(size=(60, 5)), 1)  # rounded: some scores are equal
    ranks = rng.integers(0, 4, size=(60, 5))
    absent = np.arange(5) >= rng.integers(1, 6, size=(60, 1))
    return np.where(absent, np.nan, scores), np.where(absent, -1, ranks)


def slow_pairs(scores, ranks):
    for s, r in zip(scores, ranks, strict=True):
        for i, j in itertools.product(range(len(s)), repeat=2):
            if r[i] >= 0 and r[j] >= 0 and r[i] < r[j]:
                yield s[i] - s[j]


def test_pair_accuracy_against_loops():
    scores, ranks = ragged_comparisons()
    pairs = list(slow_pairs(scores, ranks))
    credit = lambda margin: 0.5 if margin == 0 else float(margin > 0)
    found = metrics.pair_accuracy(scores, ranks)
    assert found.pairs == len(pairs) and any(m == 0 for m in pairs)
    assert found.overall == pytest.approx(np.mean([credit(m) for m in pairs]))
    assert found.margin == pytest.approx(np.mean(pairs))


def test_pair_accuracy_of_a_perfect_a_reversed_and_no_ranking():
    scores = np.array([[3.0, 2.0, 1.0]])
    assert metrics.pair_accuracy(scores, np.array([[0, 1, 2]])).overall == 1
    assert metrics.pair_accuracy(scores, np.array([[2, 1, 0]])).overall == 0
    assert math.isnan(metrics.pair_accuracy(scores, np.array([[0, 0, -1]])).overall)
    assert math.isnan(metrics.calibration(scores, np.array([[0, 0, 0]])).ece)


def test_calibration_against_loops():
    scores, ranks = ragged_comparisons()
    bins = [[] for _ in range(10)]
    for margin in slow_pairs(scores, ranks):
        p = 1 / (1 + math.exp(-abs(margin)))
        credit = 0.5 if margin == 0 else float(margin > 0)
        bins[min(int((p - 0.5) * 20), 9)].append((p, credit))
    found = metrics.calibration(scores, ranks)
    total, ece = sum(map(len, bins)), 0.0
    for b, pairs in enumerate(bins):
        assert found.count[b] == len(pairs)
        if pairs:
            confidence, accuracy = np.mean(pairs, axis=0)
            assert found.confidence[b] == pytest.approx(confidence)
            assert found.accuracy[b] == pytest.approx(accuracy)
            ece += len(pairs) / total * abs(accuracy - confidence)
        else:
            assert math.isnan(found.confidence[b]) and math.isnan(found.accuracy[b])
    assert found.ece == pytest.approx(ece)


def test_honest_probabilities_have_no_calibration_error_and_overconfident_ones_do():
    rng = RNG(0)
    scores = 1.5 * rng.normal(size=(20_000, 2))
    first_wins = rng.random(20_000) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    ranks = np.stack([~first_wins, first_wins], axis=1).astype(int)
    assert metrics.calibration(scores, ranks).ece < 0.015
    assert metrics.calibration(3 * scores, ranks).ece > 0.1
    sure = metrics.calibration(1000 * scores, ranks)
    assert sum(sure.count) == 20_000 and sure.count[-1] > 19_000


# --- several answers to a prompt ------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    """By enumeration of all k of n answers, whichever c of them are right."""
    for n in range(1, 7):
        right = np.array(list(itertools.product((0, 1), repeat=n)))
        for k in range(1, n + 1):
            expected = [
                np.mean([max(some) for some in itertools.combinations(row, k)])
                for row in right.tolist()
            ]
            assert metrics.pass_at_k(right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased():
    """Over n answers that are right with probability p its mean is 1 − (1 − p)ᵏ."""
    n, k, p = 6, 4, 0.3
    rows = np.array([[1.0] * c + [0.0] * (n - c) for c in range(n + 1)])
    mean = stats.binom(n, p).pmf(range(n + 1)) @ metrics.pass_at_k(rows, k)
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_of_many_answers_and_of_too_few():
    """Binomials of ten thousand answers are beyond floating point; k of fewer are not defined."""
    right = np.zeros((1, 10_000))
    right[0, :3] = 1
    missed = math.exp(sum(math.log1p(-100 / i) for i in (9_998, 9_999, 10_000)))
    assert metrics.pass_at_k(right, 100)[0] == pytest.approx(1 - missed, rel=1e-9)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"pass@{k} of 4 answers"):
            metrics.pass_at_k(right[:, :4], k)


# --- best of n ------------------------------------------------------------------------------------


def test_best_of_n_kl_is_that_of_the_best_of_n_distribution():
    """∫ p log p over quantiles u, where best of n has density n uⁿ⁻¹."""
    u = (np.arange(400_000) + 0.5) / 400_000
    for n in (1, 2, 4, 16):
        density = n * u ** (n - 1)
        assert metrics.best_of_n_kl(n) == pytest.approx(
            (density * np.log(density)).mean(), abs=1e-4
        )


def test_no_jax_is_imported():
    program = "import sys, rlhf_jax.evaluation.metrics; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)


def test_best_of_n_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    for n in range(1, 8):
        subsets = np.array(list(itertools.combinations(range(7), n)))
        best = scores[:, subsets].argmax(axis=2)
        picked = subsets[np.arange(len(subsets)), best]
        expected = np.take_along_axis(values, picked, axis=1).mean(axis=1)
        np.testing.assert_allclose(metrics.best_of_n_mean(scores, values, n), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="best of 8 among 7"):
        metrics.best_of_n_mean(scores, values, 8)


def test_answers_of_equal_score_are_as_likely_to_be_the_best():
    scores, values = np.array([[1.0, 2.0, 2.0, 0.0]]), np.array([[5.0, 1.0, 3.0, 7.0]])
    assert metrics.best_of_n_mean(scores, values, 4) == pytest.approx([2.0])
    # Of two: {1,2}, {1,3}, {2,3}, {2,0}, {3,0} and {1,0}, one of the tied being the best of five.
    assert metrics.best_of_n_mean(scores, values, 2) == pytest.approx([(1 + 3 + 2 + 1 + 3 + 5) / 6])


def test_best_of_n_of_many_answers_is_a_number():
    scores = np.random.default_rng(0).normal(size=(2, 4096))
    for n in (1, 2, 512, 4096):
        found = metrics.best_of_n_mean(scores, scores, n)
        assert np.isfinite(found).all()
    np.testing.assert_allclose(found, scores.max(axis=1))
    np.testing.assert_allclose(metrics.best_of_n_mean(scores, scores, 1), scores.mean(axis=1))
