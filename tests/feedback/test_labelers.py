"""The simulated labeler: its noise is what it says, and does not depend on how it is asked."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.errors import InputError
from rlhf_jax.feedback.labelers import (
    SimulatedLabeler,
    agreement,
    calibrate_tau,
    expected_agreement,
    gumbel,
    noise_ceiling,
    order_probabilities,
    ranks_of,
    score_gaps,
)


def by_number(prompts, responses):
    """The score of a response is the number that it is."""
    return np.array([float(response) for response in responses])


def labeler(**changes):
    settings = {"score": by_number, "tau": 1.0, "tie_width": 0.0, "seed": 0} | changes
    return SimulatedLabeler(settings.pop("score"), **settings)


def tasks(scores):
    """Each row of scores as a prompt with its responses, no response text twice."""
    scores = np.asarray(scores)
    return [f"prompt {p}" for p in range(len(scores))], [
        [repr(float(s)) for s in r] for r in scores
    ]


SCORES = np.random.default_rng(0).normal(size=(4000, 4))


def gaps(scores):
    return score_gaps(np.asarray(scores), tasks(scores)[1])


# --- distribution ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "tau", "width"), [(1.0, 1.0, 0.0), (1.0, 2.0, 0.4), (0.3, 0.2, 1.0)]
)
def test_pairs_are_ordered_with_the_probability_of_the_logistic_function(gap, tau, width):
    """Frequencies over 10,000 prompts (standard error below 0.006) against σ(±gap/τ − w)."""
    prompts = [f"prompt {n}" for n in range(10_000)]
    ranks = np.array(
        labeler(tau=tau, tie_width=width).rank_many(prompts, [["0", str(gap)]] * len(prompts))
    )
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    above, below = (ranks[:, 1] < ranks[:, 0]).mean(), (ranks[:, 1] > ranks[:, 0]).mean()
    assert above == pytest.approx(sigmoid(gap / tau - width), abs=0.02)
    assert below == pytest.approx(sigmoid(-gap / tau - width), abs=0.02)
    assert (above + below < 1) == (width > 0)


def test_rankings_are_plackett_luce():
    """P(ranking) = Π_k exp(s_k / τ) / Σ of those not ranked yet, for all 6 orders of 3."""
    scores, tau = np.array([0.0, 0.5, 1.2]), 0.7
    prompts = [f"prompt {n}" for n in range(10_000)]
    ranks = labeler(tau=tau).rank_many(prompts, [["0", "0.5", "1.2"]] * len(prompts))
    orders = [tuple(np.argsort(row)) for row in ranks]
    strength = np.exp(scores / tau)
    for order in itertools.permutations(range(3)):
        left, expected = list(order), 1.0
        while left:
            expected *= strength[left[0]] / strength[left].sum()
            left.pop(0)
        assert np.mean([o == order for o in orders]) == pytest.approx(expected, abs=0.02)


def test_seeds_are_different_people():
    prompts, responses = tasks(np.tile([0.0, 1e-9], (2000, 1)))
    first, second = (labeler(seed=s).rank_many(prompts, responses) for s in (0, 1))
    assert np.mean(np.array(first) == np.array(second)) == pytest.approx(0.5, abs=0.05)
    assert (
        len({gumbel(*x) for x in ((0, "a", "b"), (0, "ab", ""), (0, "", "ab"), (1, "a", "b"))}) == 4
    )


# --- reproducibility and symmetry -----------------------------------------------------------------


def test_labels_do_not_depend_on_batch_order_or_history():
    prompts, responses = tasks(SCORES[:50])
    person = labeler(tie_width=0.1)
    together = person.rank_many(prompts, responses)
    order = np.random.default_rng(1).permutation(50)
    alone = {n: person.rank(prompts[n], responses[n]) for n in order}
    assert [alone[n] for n in range(50)] == together
    assert labeler(tie_width=0.1).rank_many(prompts[20:], responses[20:]) == together[20:]


def test_permuting_responses_permutes_their_ranks():
    prompts, responses = tasks(SCORES[:30])
    person = labeler(tie_width=0.3)
    for prompt, group in zip(prompts, responses, strict=True):
        ranks = person.rank(prompt, group)
        for order in itertools.permutations(range(4)):
            assert person.rank(prompt, [group[i] for i in order]) == [ranks[i] for i in order]


def test_labels_are_the_same_in_another_process_and_without_jax():
    program = (
        "import sys, numpy as np\n"
        "from rlhf_jax.feedback.labelers import SimulatedLabeler\n"
        "person = SimulatedLabeler(lambda p, r: np.zeros(len(r)), tau=1.0, tie_width=0.0, seed=3)\n"
        "print(person.rank('é', ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']), 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    here = labeler(score=lambda p, r: np.zeros(len(r)), seed=3).rank("é", list("abcdefgh"))
    assert done.stdout == f"{here} False\n"


def test_every_response_is_scored_with_its_own_prompt():
    seen = []

    def score(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return np.arange(len(responses)) * 100.0

    ranks = labeler(score=score).rank_many(["p", "q"], [["a", "b"], ["c", "a", "d"]])
    assert seen == [("p", "a"), ("p", "b"), ("q", "c"), ("q", "a"), ("q", "d")]
    assert ranks == [[1, 0], [2, 1, 0]]


# --- ties -----------------------------------------------------------------------------------------


def test_identical_responses_tie_and_count_once():
    prompts, responses = tasks(SCORES[:100])
    person = labeler()
    for prompt, group in zip(prompts, responses, strict=True):
        ranks = person.rank(prompt, group)
        assert person.rank(prompt, [*group, group[0], group[2]]) == [*ranks, ranks[0], ranks[2]]
    assert person.rank("p", ["1", "1", "1"]) == [0, 0, 0]
    assert person.rank_many(["p", "q"], [["1"], ["1", "1"]]) == [[0], [0, 0]]
    assert person.rank_many([], []) == []


@pytest.mark.parametrize(
    ("utilities", "width", "ranks"),
    [
        ([3.0, 1.0, 2.0], 0.0, [0, 2, 1]),
        ([1.0, 1.0, 2.0], 0.0, [1, 1, 0]),
        ([1.0, 1.5, 3.0], 0.5, [1, 1, 0]),
        ([1.0, 1.51, 3.0], 0.5, [2, 1, 0]),
        ([1.4, 1.0, 1.8, 5.0], 0.5, [1, 1, 1, 0]),  # ties join up
        ([7.0], 0.5, [0]),
    ],
)
def test_ranks_by_hand(utilities, width, ranks):
    assert ranks_of(np.array(utilities), tie_width=width) == ranks


# --- ceiling and calibration ----------------------------------------------------------------------


@pytest.mark.parametrize(("tau", "width"), [(0.5, 0.0), (1.5, 0.3)])
def test_ceiling_is_what_the_noiseless_scores_reach(tau, width):
    """Monte Carlo: 4,000 tasks of 2 responses, labeled; K = 2 leaves no ties that join up."""
    scores = SCORES[:, :2]
    ranks = np.array(labeler(tau=tau, tie_width=width).rank_many(*tasks(scores)))
    strict = ranks[:, 0] != ranks[:, 1]
    right = (ranks[:, 0] < ranks[:, 1]) == (scores[:, 0] > scores[:, 1])
    ceiling = noise_ceiling(gaps(scores), tau=tau, tie_width=width)
    assert right[strict].mean() == pytest.approx(ceiling, abs=0.025)
    p, q = order_probabilities(gaps(scores), tau=tau, tie_width=width)
    assert strict.mean() == pytest.approx((p + q).mean(), abs=0.025)


def test_ceiling_counts_equal_scores_half():
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    expected = (0.5 + sigmoid(2 / 0.5)) / 2
    assert noise_ceiling(np.array([0.0, 2.0]), tau=0.5, tie_width=0.0) == pytest.approx(expected)


def test_gaps_are_of_pairs_that_can_be_ordered():
    """Rows may differ in length; identical responses are ordered by no labeler."""
    scores = [np.array([0.0, 0.0]), np.array([1.0, 3.0, 3.0]), np.array([5.0, 5.0, 5.0])]
    found = score_gaps(scores, [["a", "b"], ["a", "b", "b"], ["a", "a", "a"]])
    np.testing.assert_array_equal(found, [0.0, 2.0, 2.0])


@pytest.mark.parametrize("width", [0.0, 0.2])
@pytest.mark.cases(1)
def test_two_labelers_agree_at_the_rate_asked_for(width):
    tau = calibrate_tau(gaps(SCORES), agreement=0.726, tie_width=width)
    assert expected_agreement(gaps(SCORES), tau=tau, tie_width=width) == pytest.approx(0.726)
    people = [labeler(tau=tau, tie_width=width, seed=seed) for seed in (5, 6)]
    assert agreement(*people, *tasks(SCORES)) == pytest.approx(0.726, abs=0.012)


def test_agreement_by_hand():
    class Fixed:
        def __init__(self, *ranks):
            self.ranks = dict(zip("pq", ranks, strict=True))

        def rank(self, prompt, responses):
            return self.ranks[prompt]

    first, second = Fixed([0, 1, 2], [0, 0]), Fixed([1, 0, 2], [0, 1])
    assert agreement(first, second, "pq", ["abc", "ab"]) == pytest.approx(2 / 3)
    assert np.isnan(agreement(first, second, ["q"], ["ab"]))


def test_tau_grows_with_the_scale_of_the_scores():
    tau = calibrate_tau(gaps(SCORES), agreement=0.7, tie_width=0.0)
    larger = calibrate_tau(gaps(SCORES * 10 + 3), agreement=0.7, tie_width=0.0)
    assert larger == pytest.approx(10 * tau)


@pytest.mark.slow
def test_responses_that_occur_again_do_not_make_the_noise_larger():
    """Two labelers agree as often as asked where half of the pairs are the same word twice."""
    rows = np.random.default_rng(1).choice([-1.0, 1.0], size=(4000, 4))
    prompts, responses = tasks(rows)
    tau = calibrate_tau(score_gaps(rows, responses), agreement=0.9, tie_width=0.05)
    people = [labeler(tau=tau, tie_width=0.05, seed=seed) for seed in (5, 6)]
    assert agreement(*people, prompts, responses) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("rate", [0.5, 0.2, 1.0, 0.95])
def test_agreement_out_of_reach_is_an_error(rate):
    some = np.array([0.0, 1.0, 2.0, 0.0])  # half are ties: at most 3/4
    with pytest.raises(InputError, match=rf"agreement={rate}.*between 0\.500 and 0\.750"):
        calibrate_tau(some, agreement=rate, tie_width=0.0)
    with pytest.raises(InputError, match=r"between 0\.500 and 0\.500"):
        calibrate_tau(np.zeros(3), agreement=0.7, tie_width=0.0)


def test_nothing_to_rank_is_an_error():
    with pytest.raises(InputError, match="no two responses to a prompt differ"):
        calibrate_tau(np.zeros(0), agreement=0.7, tie_width=0.0)


def test_impossible_noise_is_an_error():
    with pytest.raises(InputError, match="tau=0"):
        labeler(tau=0.0)
    with pytest.raises(InputError, match=r"tie_width=-0\.1"):
        labeler(tie_width=-0.1)
