"""Laws of over-optimisation: what was planted in a curve is found in it."""

import numpy as np
import pytest

from rlhf_jax.studies.laws import LAWS, fit, heldout_error, turn

D = np.linspace(0.0, 4.0, 30)
PLANTED = {"quadratic": (1.5, 0.25), "logarithmic": (1.2, 0.6), "saturating": (2.0, 0.7)}


@pytest.mark.parametrize("name", LAWS)
def test_a_fit_finds_what_was_planted(name):
    law, planted = LAWS[name], PLANTED[name]
    assert fit(law, D, law.gold(D, *planted)) == pytest.approx(planted, rel=1e-5)
    noise = np.random.default_rng(0).normal(scale=0.02, size=(200, len(D)))
    found = np.array([fit(law, D, law.gold(D, *planted) + each) for each in noise])
    # Unbiased, or nearly: the mean of 200 fits is within three of its standard errors.
    errors = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - planted) < 3 * errors + 1e-3).all()


def test_the_laws_are_those_of_the_paper():
    d = np.array([0.0, 1.0, 2.0])
    assert LAWS["quadratic"].gold(d, 3.0, 0.5).tolist() == [0.0, 2.5, 4.0]
    assert LAWS["logarithmic"].gold(d, 3.0, 0.5) == pytest.approx([0, 3, 6 - np.log(2)])


@pytest.mark.parametrize("name", LAWS)
def test_the_law_that_made_a_curve_has_the_smallest_error_beyond_its_fit(name):
    gold = LAWS[name].gold(D, *PLANTED[name])
    errors = {other: heldout_error(law, D, gold) for other, law in LAWS.items()}
    assert errors[name] < 1e-5 < 0.01 < min(v for n, v in errors.items() if n != name)


def test_a_law_is_judged_on_points_that_it_has_not_seen():
    law = LAWS["quadratic"]
    gold = law.gold(D, 1.5, 0.25) + 0.7 * (0.6 * D.max() < D)
    assert heldout_error(law, D, gold) == pytest.approx(0.7)


def test_what_cannot_be_fitted_is_no_number():
    law = LAWS["quadratic"]
    assert np.isnan(fit(law, D[:2], D[:2])).all()
    assert np.isnan(heldout_error(law, np.ones(5), np.ones(5)))  # none beyond


def test_a_turn_is_where_the_smoothed_curve_is_highest():
    kl = np.arange(6.0)

    def found(*gold, kl=kl, **options):
        return turn(kl, np.array(gold, float), **options)

    assert found(0, 1, 2, 3, 2, 0) == (3.0, 3.0, 3.0)
    assert found(0, 1, 2, 3, 4, 5).lost == 0.0
    # A single point that sticks out is noise to a window of three.
    assert found(0, 9, 2, 3, 8, 8, window=3) == pytest.approx((4.0, 19 / 3, 0.0))
    assert found(0, 2, 3, 2, 1, 0, kl=kl[::-1]).kl == 3.0  # in the order of KL, however it came
