"""Sampling goes on until every prompt of a batch has answers that differ in score."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from precision import assert_same

from rlhf_jax.config import KLConfig, ModelConfig, ParallelConfig, PPOConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models.heads import make_language_model, make_policy_value
from rlhf_jax.training.dynamic_sampling import make_sampling
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.policy_optimization import (
    make_policy_optimization,
    ppo_objective,
)
from rlhf_jax.types import Rollout

pytestmark = pytest.mark.usefixtures("module_in_float64")
G, K, Q, R, V = 4, 3, 2, 3, 11
B = G * K
MODEL = ModelConfig(n_layers=1, d_model=8, n_heads=2, context=8, dtype="float64")
COEFS = {"kl_coef": jnp.float32(0.1), "unfilled_batches": jnp.float32(0)}


def configured(rounds, *, prompts=G, **changes):
    return PPOConfig(
        response_length=R,
        batch_size=prompts * K,
        samples_per_prompt=K,
        max_sampling_rounds=rounds,
        num_minibatches=1,
        value_trunk="none",
        advantage="grpo",
        whiten_advantages=False,
        kl=KLConfig(coef=0.1, place="loss", estimator="k3"),
        **changes,
    )


def wired(config):
    lm, both = make_language_model(MODEL, V), make_policy_value(MODEL, MODEL, V, "none")
    tx = optax.sgd(1.0)
    return make_policy_optimization(config, lm, both, {}, tx, end_ids=(0,), pad_id=0)


def made_up(rng, differ):
    """Episodes of a round, in which the prompts that ``differ`` have one right answer of K."""
    scores = np.zeros((len(differ), K))
    scores[:, rng.integers(K)] = differ
    scores += ~np.asarray(differ)[:, None] * rng.integers(0, 2, (len(differ), 1))  # all or none
    rows = len(differ) * K
    mask = np.arange(R)[None] < rng.integers(1, R + 1, rows)[:, None]
    ids = lambda *shape: jnp.asarray(rng.integers(1, V, shape), jnp.int32)
    logprobs = lambda: jnp.asarray(np.where(mask, rng.normal(size=mask.shape) - 3, 0.0))
    tokens = ids(rows, Q), jnp.ones((rows, Q), bool), ids(rows, R), jnp.asarray(mask)
    return Rollout(*tokens, logprobs(), logprobs(), None, {"task": jnp.asarray(scores.ravel())})


class Tried(NamedTuple):
    sampled: object
    rounds: list
    keys: list
    said: list


def tried(differ, *, most, again=False):
    """What ``most`` rounds at most make of batches whose prompts differ so."""
    rng = np.random.default_rng(0)
    rounds, keys, said = [made_up(rng, np.array(row, bool)) for row in differ], [], []

    def answers(key, start):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        n = len(keys) - 1
        return rounds[n], start + n * B + jnp.arange(B)

    config = configured(most)
    wiring = wired(config)
    parallel = make_parallel(ParallelConfig(devices=1))
    sample = make_sampling(config, parallel, wiring.judge, answers, say=said.append)
    sampled = sample(jax.random.key(7), COEFS, 100)
    if again:
        sampled = sample(jax.random.key(8), COEFS, 100)
    return Tried(sampled, rounds, keys, said)


def prompts_of(rollout):
    """A name for each prompt with its answers: what its first row asks and says."""
    rows = np.concatenate([rollout.queries, rollout.responses], axis=1)[::K]
    return [tuple(row.tolist()) for row in rows]


PARTLY = [[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]]


def test_prompts_whose_answers_differ_are_kept_in_the_order_in_which_they_came():
    """Whole groups, of whatever round, against a loop; those over the batch are dropped."""
    t = tried(PARTLY, most=10)
    pool = [
        (name, n, g)
        for n, (row, rollout) in enumerate(zip(PARTLY, t.rounds, strict=True))
        for g, name in enumerate(prompts_of(rollout))
        if row[g]
    ]
    assert prompts_of(t.sampled.rollout) == [name for name, *_ in pool[:G]]
    for at, (_, n, g) in enumerate(pool[:G]):
        for found, drawn in zip(
            jax.tree.leaves(t.sampled.rollout), jax.tree.leaves(t.rounds[n]), strict=True
        ):
            there, here = slice(g * K, (g + 1) * K), slice(at * K, (at + 1) * K)
            np.testing.assert_array_equal(found[here], drawn[there])
    assert len(t.keys) == 3 and t.said == [], "the third round has filled the batch"


def test_what_is_logged_is_of_all_that_was_sampled():
    """Scores of the kept prompts alone would rise towards one half whatever the policy does."""
    t = tried(PARTLY, most=10)
    metrics, drawn = t.sampled.metrics, t.rounds[:3]
    assert t.sampled.episodes == 3 * B
    scores = [np.asarray(r.scores["task"]).mean() for r in drawn]
    assert_same(metrics["objective/scores"], np.mean(scores))
    kl = [np.asarray((r.logprobs - r.ref_logprobs).sum(axis=1)).mean() for r in drawn]
    assert_same(metrics["objective/kl"], np.mean(kl))
    assert_same(metrics["objective/zero_spread_groups"], 1 - 6 / 12)
    assert metrics["sampling/prompts"] == 3 * G
    assert metrics["sampling/tokens"] == sum(int(r.mask.sum()) for r in drawn)
    assert metrics["sampling/learnt_prompts"] == np.float32(4 / 12)
    assert metrics["sampling/missing_prompts"] == 0
    rollout, index = t.sampled.first
    assert prompts_of(rollout) == prompts_of(t.rounds[0]) and index[0] == 100


def test_every_round_draws_with_a_key_of_its_own_and_the_same_at_every_start():
    t = tried(PARTLY, most=10)
    assert len(set(t.keys)) == 3 and t.keys == tried(PARTLY, most=10).keys
    # Rows draw with the numbers of rows folded into it, so it is the parent of none of the keys.
    own = tuple(jax.random.key_data(jax.random.key(7)).tolist())
    assert own not in t.keys


def test_without_rounds_everything_is_as_it_was_sampled():
    t = tried(PARTLY, most=1)
    assert t.keys == [tuple(jax.random.key_data(jax.random.key(7)).tolist())]
    assert t.sampled.rollout is t.rounds[0] and t.sampled.metrics == {}
    assert t.sampled.episodes == B and t.said == []


def test_a_batch_that_cannot_be_filled_is_said_once_and_counted():
    t = tried([*PARTLY[:2], *PARTLY[:2]], most=2, again=True)
    metrics = t.sampled.metrics
    assert len(t.keys) == 4 and t.sampled.episodes == 2 * B
    assert metrics["sampling/missing_prompts"] == 1
    assert metrics["sampling/learnt_prompts"] == np.float32(3 / 8)
    (line,) = t.said
    assert "after 2 rounds" in line and "1 of the 4 prompts" in line
    wiring = wired(configured(2))
    metrics = {name: jnp.float32(x) for name, x in metrics.items()}
    once = wiring.control(COEFS, metrics)
    assert once["unfilled_batches"] == 1
    full = metrics | {"sampling/missing_prompts": jnp.float32(0)}
    assert wiring.control(once, full)["unfilled_batches"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "sequence_sum", "constant_length"])
def test_prompts_that_teach_nothing_weigh_nothing_in_an_unfilled_batch(how):
    """Neither in the KL of the loss nor in what it is divided by: as if the batch were smaller."""
    rollout = tried(PARTLY[:2], most=2).sampled.rollout

    def gradient(config, rollout):
        batch, _ = wired(config).batch(rollout, COEFS)
        new, count = batch.ref_logprobs + 0.3, batch.mask.sum().astype(float)
        loss = lambda new: ppo_objective(config)(new, None, new, batch, count=count)[0]
        return loss(new), jax.grad(loss)(new)

    config = configured(2, aggregation=how)
    loss, gradients = gradient(config, rollout)
    three = jax.tree.map(lambda x: x[: 3 * K], rollout)
    expected = gradient(configured(1, prompts=3, aggregation=how), three)
    assert_same(loss, expected[0])
    assert_same(gradients[: 3 * K], expected[1])
    assert (gradients[3 * K :] == 0).all() and (expected[1] != 0).any()


def test_one_answer_to_a_prompt_has_nothing_to_differ_from():
    with pytest.raises(InputError, match=r"max_sampling_rounds=3 .*samples_per_prompt=1 must be 2"):
        PPOConfig(max_sampling_rounds=3)
