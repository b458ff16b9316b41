"""Paired bootstrap and sign test: coverage, size and power, clusters, exact counts."""

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.evaluation.metrics import mean_ci
from rlhf_jax.evaluation.significance import paired_bootstrap, wins_and_ties


def test_the_interval_is_students_for_many_prompts():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, 500), rng.normal(0, 1, 500)
    found, exact = paired_bootstrap(a, b), mean_ci(a - b)
    assert found["mean"] == pytest.approx(exact["mean"])
    assert found["ci"] == pytest.approx(exact["ci"], rel=0.05)
    assert found == paired_bootstrap(a, b)


def test_pairing_helps():
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 5, 200)
    a, b = hard + 0.3 + rng.normal(0, 0.5, 200), hard + rng.normal(0, 0.5, 200)
    assert paired_bootstrap(a, b)["p"] < 0.01
    assert paired_bootstrap(a, rng.permutation(b))["p"] > 0.05


@pytest.mark.slow
def test_no_difference_is_rarely_called_one():
    """Under no difference p is below 0.05 in about 6 of 100 comparisons (three standard errors)."""
    rng = np.random.default_rng(2)
    below = [paired_bootstrap(*rng.exponential(size=(2, 60)))["p"] < 0.05 for _ in range(200)]
    assert 0.01 < np.mean(below) < 0.11


def test_responses_of_a_prompt_are_one_cluster():
    """Ten answers alike to each of 30 prompts are no more evidence than one each."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 30))
    one = paired_bootstrap(a, b)
    ten = paired_bootstrap(np.repeat(a[:, None], 10, axis=1), np.repeat(b[:, None], 10, axis=1))
    assert ten["mean"] == pytest.approx(one["mean"]) and ten["ci"] == pytest.approx(one["ci"])


def test_wins_ties_losses():
    found = wins_and_ties(np.array([1.0, 2, 3, 3, 0]), np.array([0.0, 2, 1, 1, 1]))
    assert found == {"wins": 3, "ties": 1, "losses": 1, "p": stats.binomtest(3, 4).pvalue}
    equal = wins_and_ties(np.ones(3), np.ones(3))
    assert (equal["ties"], equal["p"]) == (3, 1.0)
    clear = wins_and_ties(np.arange(40.0) + 1, np.arange(40.0))
    assert clear["p"] == pytest.approx(2 * 0.5**40)
