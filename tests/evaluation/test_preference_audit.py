"""The audit of reward models: against counting by hand and known truths."""

import numpy as np
import pytest

from rlhf_jax.evaluation.metrics import mean_ci, pair_accuracy
from rlhf_jax.evaluation.preference_audit import (
    accuracy,
    advantage,
    audit,
    clustered_mean,
    length_bias,
    length_coefficient,
    ordered_pairs,
    score_variance,
    tie_margins,
)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 4, (60, 5))
    ranks[::3, 4] = -1
    scores = np.where(ranks >= 0, rng.normal(size=ranks.shape) - 0.5 * ranks, 0.0)
    lengths = rng.integers(1, 50, ranks.shape).astype(float)
    return scores, lengths, ranks


def test_accuracy_is_that_of_the_metrics(data):
    scores, _, ranks = data
    assert accuracy(scores, ranks)["mean"] == pytest.approx(pair_accuracy(scores, ranks).overall)
    assert accuracy(scores, ranks)["n"] == pair_accuracy(scores, ranks).pairs


def test_pairs_by_hand():
    pairs = ordered_pairs(np.array([[1, 0, -1], [0, 0, 1]]))
    assert list(zip(*pairs, strict=True)) == [(0, 0, 1, 0), (1, 1, 3, 5), (1, 1, 4, 5)]
    assert pairs.margins(np.arange(6.0).reshape(2, 3)).tolist() == [1, -2, -1]


def test_intervals_are_clustered_by_prompt():
    values = np.random.default_rng(0).random(200)
    alone = clustered_mean(values, np.arange(200))
    assert alone["ci"] == pytest.approx(mean_ci(values)["ci"])
    # The same prompts asked ten times over say nothing new.
    again = clustered_mean(np.repeat(values, 10), np.repeat(np.arange(200), 10))
    assert again["mean"] == pytest.approx(alone["mean"])
    assert again["ci"] == pytest.approx(alone["ci"])
    pretended = clustered_mean(np.repeat(values, 10), np.arange(2000))
    assert pretended["ci"] < alone["ci"] / 3


def test_rows_of_one_group_are_one_cluster(data):
    """An instruction with ten pairs in ten rows says no more than ten pairs of one prompt."""

    def figures(scores, lengths, ranks, groups):
        found = audit(scores, lengths, ranks, ["all"] * len(ranks), groups)
        return [
            found["accuracy"],
            found["always_longer"],
            found["by_length"]["preferred is longer"],
            found["by_subset"]["all"],
            found["length_bias"]["excess"],
            accuracy(scores, ranks, groups),
            advantage(scores, lengths, ranks, groups),
        ]

    names = [f"instruction {n}" for n in range(len(data[0]))]
    again = (np.repeat(values, 10, axis=0) for values in data)
    ten_rows = figures(*again, [name for name in names for _ in range(10)])
    for one, ten in zip(figures(*data, names), ten_rows, strict=True):
        assert ten["n"] == 10 * one["n"]
        assert ten["mean"] == pytest.approx(one["mean"]) and ten["ci"] == pytest.approx(one["ci"])


def test_advantage_is_paired(data):
    """Two models that err on the same pairs are told apart where two intervals overlap."""
    scores, _, ranks = data
    better = np.where(np.arange(len(ranks))[:, None] < 4, -ranks, scores)
    mine, other = accuracy(better, ranks), accuracy(scores, ranks)
    found = advantage(better, scores, ranks)
    assert found["mean"] == pytest.approx(mine["mean"] - other["mean"])
    assert found["mean"] > 0 and found["n"] == mine["n"]
    assert found["ci"] < 0.7 * mine["ci"] and mine["mean"] - mine["ci"] < other["mean"]
    assert advantage(scores, scores, ranks) == {"mean": 0, "ci": 0, "n": mine["n"]}


def test_coverage_of_the_clustered_interval():
    """It holds the truth 95 times of 100 although pairs of a prompt are alike."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        prompt = np.repeat(np.arange(40), 15)
        p = rng.beta(2, 1, 40)[prompt]
        found = clustered_mean((rng.random(len(p)) < p).astype(float), prompt)
        inside += abs(found["mean"] - 2 / 3) < found["ci"]
    assert 0.92 < inside / 400 < 0.98


def test_parts_add_up(data):
    scores, lengths, ranks = data
    found = audit(scores, lengths, ranks, ["a", "b"] * 30)
    total = found["accuracy"]
    for part in ("by_margin", "by_length_difference"):
        rows = found[part]
        assert sum(row["n"] for row in rows) == total["n"]
        weighted = sum(row["n"] * row["mean"] for row in rows) / total["n"]
        assert weighted == pytest.approx(total["mean"])
        assert [row["from"] for row in rows] == sorted(row["from"] for row in rows)
    for part in ("by_length", "by_subset"):
        rows = [row for row in found[part].values() if row["n"]]
        assert sum(row["n"] * row["mean"] for row in rows) / total["n"] == pytest.approx(
            total["mean"]
        )
    assert sum(row["count"] for row in found["calibration"]) == total["n"]


def test_a_surer_model_is_right_more_often_where_it_should_be():
    rng = np.random.default_rng(2)
    margins = rng.normal(size=4000) * 2
    wins = rng.random(4000) < 1 / (1 + np.exp(-margins))
    scores = np.stack([margins, np.zeros(4000)], axis=1)
    ranks = np.where(wins[:, None], [[0, 1]], [[1, 0]])
    found = audit(scores, np.ones((4000, 2)), ranks, ["all"] * 4000)
    steps = [row["mean"] for row in found["by_margin"]]
    assert steps == sorted(steps) and steps[-1] > 0.9 > 0.6 > steps[0]
    assert found["ece"] < 0.03
    assert found["by_length"]["as long"]["n"] == 4000


def test_length_bias_is_seen():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 60, (500, 2)).astype(float)
    people = np.argsort(-rng.normal(size=(500, 2)), axis=1)
    by_length = length_bias(lengths, lengths, people)
    assert by_length["model_takes_longer"]["mean"] == 1
    assert by_length["excess"]["mean"] > 0.4 and by_length["correlation"] > 0.9
    fair = length_bias(rng.normal(size=(500, 2)), lengths, people)
    assert abs(fair["excess"]["mean"]) < 2 * fair["excess"]["ci"]
    follows = length_bias(-people.astype(float), lengths, people)
    assert follows["excess"]["mean"] == 0


def test_variance_within_and_between_by_hand():
    """Prompts' s² are 2 and 1; their means 2 and 5, whose s² 4.5 holds 2/2 and 1/3 of the noise."""
    scores = np.array([[1.0, 3.0, 77.0], [4.0, 5.0, 6.0], [9.0, 77.0, 77.0]])
    ranks = np.array([[0, 1, -1], [0, 1, 2], [0, -1, -1]])  # one answer has no spread
    found = score_variance(scores, ranks)
    assert found["within"]["mean"] == pytest.approx(1.5) and found["within"]["n"] == 2
    assert found["between"] == pytest.approx(4.5 - (2 / 2 + 1 / 3) / 2)
    assert found["share"] == pytest.approx(1.5 / (1.5 + found["between"]))


def test_variances_are_found_whatever_the_number_of_answers():
    rng = np.random.default_rng(7)
    for K in (2, 6):
        scores = 0.5 * rng.normal(size=(4000, 1)) + 2.0 * rng.normal(size=(4000, K))
        found = score_variance(scores, np.tile(np.arange(K), (4000, 1)))
        assert abs(found["within"]["mean"] - 4.0) < 2 * found["within"]["ci"]
        assert found["between"] == pytest.approx(0.25, abs=0.15)


def test_length_coefficient_finds_the_truth_and_weighs_prompts_alike():
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 60, (4000, 3)).astype(float)
    noise = rng.gumbel(size=lengths.shape)
    ranks = np.argsort(np.argsort(-(1.5 * np.log1p(lengths) + noise), axis=1), axis=1)
    assert length_coefficient(lengths, ranks) == pytest.approx(1.5, abs=0.1)
    padded = np.concatenate([ranks, np.full((4000, 2), -1)], axis=1)
    more = np.concatenate([lengths, rng.random((4000, 2))], axis=1)
    assert length_coefficient(more, padded) == pytest.approx(length_coefficient(lengths, ranks))


def test_ties_are_less_sure():
    rng = np.random.default_rng(5)
    found = tie_margins(rng.normal(size=300) * 0.2, rng.normal(size=300) * 2)
    assert found["pairs_above_ties"] > 0.8
    assert found["confidence_on_pairs"] > found["confidence_on_ties"] > 0.5
    same = tie_margins(rng.normal(size=2000), rng.normal(size=2000))
    assert same["pairs_above_ties"] == pytest.approx(0.5, abs=0.03)
