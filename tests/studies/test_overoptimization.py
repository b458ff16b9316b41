"""Over-optimisation: laws planted in curves are found as figures, and the drawing shows them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from test_study_results import STUDY

from rlhf_jax.evaluation.metrics import best_of_n_kl
from rlhf_jax.studies.laws import LAWS
from rlhf_jax.studies.measures import Measured, Result
from rlhf_jax.studies.overoptimization import (
    NAMES,
    OWN,
    TABLES,
    accuracy,
    at_common_distances,
    derived,
    draw_ways,
    gold_metric,
    law_figures,
    ways,
)

GOLD = gold_metric("sentiment")
NS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
BEST_OF, TRAINING = (1.5, 0.5), (1.2, 0.7)
"""α and β."""


def planted_curves(*, start=0.3, kl=None, training=TRAINING):
    """Both ways exactly by their laws; gold is ``start`` at the SFT model."""
    bon = np.array([best_of_n_kl(n) for n in NS])
    kl = np.linspace(0, 25, 60) if kl is None else kl
    gold = LAWS["quadratic"].gold(np.sqrt(bon), *BEST_OF)
    trained = LAWS["logarithmic"].gold(np.sqrt(kl), *training)
    return {
        "best_of_n": {
            "n": NS,
            "kl": bon.tolist(),
            "gold": (start + gold).tolist(),
            "score": (bon - 0.4).tolist(),
        },
        "training": {
            "objective/kl": kl.tolist(),
            "objective/scores": (kl + 0.1).tolist(),
            GOLD: (start + trained).tolist(),
        },
    }


def test_the_figures_are_those_that_were_planted():
    figures = law_figures(planted_curves(), gold=GOLD)
    for way, (alpha, beta) in {"best_of_n": BEST_OF, "training": TRAINING}.items():
        assert figures[f"{way}_alpha"] == pytest.approx(alpha)
        assert figures[f"{way}_beta"] == pytest.approx(beta)
    assert figures["best_of_n_error_quadratic"] < 1e-9 < figures["best_of_n_error_logarithmic"]
    assert figures["training_error_logarithmic"] < 1e-9 < figures["training_error_quadratic"]
    # d (α − β ln d) is highest where ln d = α / β − 1, and d (α − β d) at d = α / (2 β).
    top = np.exp(2 * (TRAINING[0] / TRAINING[1] - 1))
    assert figures["training_peak_kl"] == pytest.approx(top, rel=0.2)
    last = np.linspace(0, 25, 60)[-5:]
    end = LAWS["logarithmic"].gold(np.sqrt(last), *TRAINING).mean()
    assert figures["training_end_kl"] == pytest.approx(last.mean())
    assert figures["training_end"] == pytest.approx(end)
    assert figures["training_lost"] > 0.3
    assert figures["best_of_n_peak"] == pytest.approx(1.5**2 / 2, rel=0.02)
    for way, own in OWN.items():
        worse = {n: v for n, v in figures.items() if n.startswith(f"{way}_worse_")}
        assert {*worse} == {f"{way}_worse_{law}" for law in LAWS if law != own}
        assert min(worse.values()) > 0
    assert {name for table in TABLES.values() for name in table} <= {*NAMES}


def test_a_reward_models_accuracy_is_that_of_its_own_held_out_pairs():
    measured = Measured("a", {}, {}, {}, {}, {}, {"eval/accuracy": 0.7, "eval/margin": 1.0})
    assert accuracy(measured) == {"accuracy": 0.7}
    assert accuracy(measured._replace(reward={})) == {}


def test_each_way_is_measured_from_its_own_start():
    curves = planted_curves()
    curves["training"][GOLD] = [value + 0.5 for value in curves["training"][GOLD]]
    expected = law_figures(planted_curves(), gold=GOLD)
    assert law_figures(curves, gold=GOLD) == pytest.approx(expected, abs=1e-9)


def test_a_kl_estimated_below_zero_is_zero():
    kl = np.array([-1e-3, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0])
    curves = planted_curves(kl=np.maximum(kl, 0))
    curves["training"]["objective/kl"] = kl.tolist()
    assert np.isfinite([*law_figures(curves, gold=GOLD).values()]).all()


def test_a_penalty_is_compared_with_stopping_at_its_own_kl():
    better = (TRAINING[0] + 0.5, TRAINING[1])
    near = planted_curves(kl=np.linspace(0, 4, 40), training=better)
    far = planted_curves(kl=np.linspace(0, 60, 40))
    results = {"free": planted_curves(), "held": near, "beyond": far}
    results = {arm: Result({}, curves) for arm, curves in results.items()}
    stopped = {"held": "free", "beyond": "free", "missing": "free"}
    found = derived(results, stopped=stopped, gold=GOLD)
    # 0.5 d more gold at d = 2, less the last five points' distance from there.
    assert found["held"]["over_stopping"] == pytest.approx(0.5 * 2, abs=0.06)
    assert {*found["held"]} == {"over_stopping", "training_end", "training_end_kl"}
    assert "over_stopping" not in found["beyond"]  # its KL lies beyond: nothing is extrapolated
    assert found["free"] == law_figures(planted_curves(), gold=GOLD)


def test_seeds_are_averaged_at_the_same_distance():
    """And not at the same iteration: one seed has gone twice as far in as many."""
    near, far = (planted_curves(kl=np.arange(0, end, 0.11) ** 2) for end in (2.1, 4.1))
    seeds = [ways(curves, GOLD)["training"] for curves in (near, far)]
    d, golds, proxies = at_common_distances(seeds, window=1)
    assert d[0] == 0 and d[-1] == pytest.approx(2.09) and golds.shape == proxies.shape == (2, 80)
    far = d > 0.3  # nearer the law is steep between two points
    expected = LAWS["logarithmic"].gold(d, *TRAINING)[far]
    np.testing.assert_allclose(golds[:, far], [expected, expected], atol=0.02)
    np.testing.assert_allclose(proxies, [d**2, d**2], atol=0.02)


def test_the_drawing_shows_every_arm_and_is_the_same_twice(tmp_path):
    arms = {"ppo": {seed: Result({}, planted_curves(start=seed)) for seed in range(3)}}
    draw = partial(
        draw_ways, columns={"small": {"ppo": "150 prompts", "gone": "600 prompts"}}, gold=GOLD
    )
    for name in ("a", "b"):
        draw(replace(STUDY, draw=draw), arms, tmp_path / name)
    first, second = ((tmp_path / f"{name}.svg").read_text() for name in ("a", "b"))
    assert first == second and "gold, 150 prompts" in first and "600 prompts" not in first
    assert (tmp_path / "a.png").stat().st_size > 10_000
