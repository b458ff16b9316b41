"""Paired comparisons over seeds: against SciPy, against loops, and by simulation."""

import itertools

import numpy as np
import pytest
import scipy

from rlhf_jax.errors import InputError
from rlhf_jax.studies import statistics
from rlhf_jax.studies.statistics import holm, paired_difference, sign_flip_p, verdict


def by_seed(values):
    return dict(enumerate(map(float, values)))


@pytest.mark.parametrize("n", [5, 10, 23])
def test_the_interval_and_p_are_those_of_the_paired_t_test(n):
    rng = np.random.default_rng(n)
    first, second = rng.normal(0.4, 1, n), rng.normal(0, 2, n)
    d = paired_difference(by_seed(first), by_seed(second))
    expected = scipy.stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert (d.low, d.high, d.p) == pytest.approx((interval.low, interval.high, expected.pvalue))
    assert d.mean == pytest.approx((first - second).mean()) and d.n == n
    assert d.half_width == pytest.approx(d.mean - d.low)


def test_pairs_are_matched_by_seed_and_not_by_order():
    values = {3: 1.0, 1: 5.0, 2: 2.0, 7: 4.0, 9: 3.0}
    shifted = {seed: values[seed] - 1 for seed in reversed(values)}
    d = paired_difference(values, shifted)
    assert (d.mean, d.low, d.high, d.p) == (1.0, 1.0, 1.0, 0.0)
    assert paired_difference(values, values)[:6] == (0.0, 0.0, 0.0, 5, 1.0, 1.0)


@pytest.mark.parametrize("n", [5, 8])
def test_all_flips_of_signs_are_counted(n):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    sums = [abs(np.dot(s, d)) for s in itertools.product((1, -1), repeat=n)]
    assert sign_flip_p(d) == np.mean([s >= abs(d.sum()) - 1e-12 for s in sums])
    found = scipy.stats.permutation_test((d,), np.mean, permutation_type="samples")
    assert sign_flip_p(d) == pytest.approx(found.pvalue)


def test_equal_sums_count_whatever_their_rounding():
    assert sign_flip_p(np.array([0.1, 0.2, 0.3, 0.1, 0.2])) == 2 / 32
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_drawn_flips_agree_with_all_of_them(monkeypatch):
    d = np.random.default_rng(1).normal(0.4, 1, 12)
    exact = sign_flip_p(d)
    monkeypatch.setattr(statistics, "EXACT_PAIRS", 5)
    assert sign_flip_p(d) == pytest.approx(exact, abs=4 * np.sqrt(exact / statistics.FLIPS))
    assert sign_flip_p(np.full(30, 1.0)) == 1 / (statistics.FLIPS + 1)  # and not 0


def slow_holm(p):
    """Reject one after the other: the smallest at α/m, the next at α/(m − 1), until one stands."""
    order, corrected, highest = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def test_holm_is_the_step_down_procedure():
    # statsmodels 0.14, multipletests(method="holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(0)
    for m in (1, 3, 12):
        p = list(rng.uniform(0, 0.3, m))
        assert holm(p) == pytest.approx(slow_holm(p))
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held, draws, truth = 0, 1500, 0.3
    for _ in range(draws):
        shared = rng.normal(0, 3, 10)  # what a seed gives both arms
        first, second = (shared + rng.normal(mean, 1, 10) for mean in (truth, 0.0))
        d = paired_difference(by_seed(first), by_seed(second))
        held += d.low <= truth <= d.high
    assert 0.93 <= held / draws <= 0.97


def test_a_study_of_null_effects_finds_one_in_at_most_one_of_twenty():
    """Eight arms against one baseline; without Holm's correction one in five finds something."""
    rng = np.random.default_rng(1)
    found, uncorrected, studies = 0, 0, 500
    for _ in range(studies):
        base, *arms = (by_seed(rng.normal(size=6)) for _ in range(9))
        differences = [paired_difference(arm, base) for arm in arms]
        corrected = holm([d.p for d in differences])
        verdicts = [verdict(d, p) for d, p in zip(differences, corrected, strict=True)]
        found += any(each != "not shown" for each in verdicts)
        uncorrected += any(verdict(d, d.p) != "not shown" for d in differences)
    assert found / studies <= 0.05
    assert uncorrected / studies >= 0.15


def test_a_real_effect_has_a_direction():
    rng = np.random.default_rng(2)
    base = by_seed(rng.normal(size=10))
    more = {seed: value + 1 + 0.1 * rng.normal() for seed, value in base.items()}
    d = paired_difference(more, base)
    assert verdict(d, d.p) == "higher" and d.p_flips == 2 / 2**10
    d = paired_difference(base, more)
    assert verdict(d, d.p) == "lower" and verdict(d, 0.06) == "not shown"


def test_what_is_no_comparison_is_refused():
    five = by_seed(range(5))
    with pytest.raises(InputError, match="unpaired: seeds 4 are in one"):
        paired_difference(five, by_seed(range(4)))
    four = by_seed([1, 2, 4, 8])
    with pytest.raises(InputError, match="4 pairs of seeds: expected at least 5"):
        paired_difference(four, by_seed(range(4)))
    assert paired_difference(four, by_seed(range(4)), few=True).n == 4
    with pytest.raises(InputError, match=r"expected at least 2$"):
        paired_difference({0: 1.0}, {0: 2.0}, few=True)
    with pytest.raises(InputError, match="expected finite numbers"):
        paired_difference(five | {0: float("nan")}, five)
