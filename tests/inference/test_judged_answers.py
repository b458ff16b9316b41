"""Several reward models as one in an evaluation: what best-of-n picks by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config import CombineConfig, ModelConfig, ParallelConfig
from rlhf_jax.config.older import in_todays_form
from rlhf_jax.inference.judged_answers import Answers, as_one, best_of, make_judge
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.model_card import Trained
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.types import Generation, QueryBatch

SCORES = np.random.default_rng(3).normal(size=(4, 3, 2)).astype(np.float32)
"""[P, n, M]"""


@pytest.mark.parametrize(
    "combine, expected",
    [
        (CombineConfig(weights=(3.0, -1.0)), SCORES @ [0.75, -0.25]),
        (CombineConfig(how="min"), SCORES.min(axis=2)),
        (CombineConfig(how="mean_minus_var"), SCORES.mean(axis=2) - SCORES.var(axis=2)),
        (CombineConfig(clip=0.1), SCORES.clip(-0.1, 0.1).mean(axis=2)),
    ],
)
def test_scores_are_combined_as_ppos(combine, expected):
    np.testing.assert_allclose(as_one(SCORES, SCORES, combine), expected, atol=1e-6)


def test_scores_are_normalised_over_the_baselines_answers():
    """So that a policy's gain over the baseline is not normalised away."""
    better = SCORES + 5.0
    found = as_one(better, SCORES, CombineConfig(normalise=True))
    each = (better - SCORES.mean(axis=(0, 1))) / SCORES.std(axis=(0, 1))
    np.testing.assert_allclose(found, each.mean(axis=2), rtol=1e-5)


def test_one_reward_model_is_its_score_and_none_is_not_a_number():
    assert (as_one(SCORES[..., :1], SCORES[..., :1], CombineConfig()) == SCORES[..., 0]).all()
    assert np.isnan(as_one(SCORES[..., :0], SCORES[..., :0], CombineConfig())).all()


def test_best_of_n_is_the_best_of_all_as_one():
    texts = [[f"{p} {k}" for k in range(3)] for p in range(4)]
    one = as_one(SCORES, SCORES, CombineConfig(how="min"))
    answers = Answers(texts, one, SCORES, *[np.arange(12).reshape(4, 3)] * 6)
    picked, best = best_of(answers, 3), SCORES.min(axis=2).argmax(axis=1)
    assert picked.texts == [[texts[p][k]] for p, k in enumerate(best)]
    assert (picked.scores_of_each[:, 0] == SCORES[np.arange(4), best]).all()
    assert picked.gold[:, 0].tolist() == [3 * p + k for p, k in enumerate(best)]


@pytest.mark.slow
def test_how_likely_the_baseline_finds_an_answer_is_at_temperature_one():
    """Whatever temperature it was sampled at; without masked tokens, by log-softmax row by row."""
    model = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=8)
    lm = make_language_model(model, 11)
    params = {"trunk": jax.tree.map(lambda x: 5 * x, lm.init(jax.random.key(0))["trunk"])}
    baseline = Trained(model, 11, None, params, "lm")
    query_mask = jnp.array([[True, True], [False, True]])
    batch = QueryBatch(jnp.array([[3, 4], [0, 5]]), query_mask, jnp.arange(2))
    mask = jnp.array([[True, True, True], [True, False, False]])
    sampled = Generation(jnp.array([[7, 2, 9], [6, 0, 0]]), mask, jnp.zeros((2, 3)))
    parallel = make_parallel(ParallelConfig())
    _, judge = make_judge(parallel, baseline, [], 0.5)(model, 11)
    scores, kl, found = judge(params, batch, sampled)
    assert scores.shape == (2, 0) and kl == pytest.approx(0, abs=1e-5)
    for row, query, answer in ((0, [3, 4], [7, 2, 9]), (1, [5], [6])):
        tokens = jnp.array([[*query, *answer]])
        logits = np.asarray(lm.logits(params, tokens, tokens >= 0, start=0)[0], np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        places = range(len(query) - 1, len(query) + len(answer) - 1)
        expected = sum(logprobs[place, token] for place, token in zip(places, answer, strict=True))
        assert found[row] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("was, now", [("runs/reward", ["runs/reward"]), (None, [])])
def test_an_older_evaluations_config_names_one_reward_model(was, now):
    saved = {
        "stage": "evaluate",
        "config": {"text_only": [], "reward": was},
        "models": {"reward": 1, "reward[settings]": 2, "second_reward": 3},
    }
    found = in_todays_form(saved)
    assert found["config"]["reward"] == now
    assert found["models"] == {"reward[0]": 1, "reward[0][settings]": 2, "second_reward": 3}
