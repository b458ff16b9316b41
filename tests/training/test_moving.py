"""Answers of an older policy, their truncated weights, and a reference that moves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from precision import assert_same

from rlhf_jax.config import KLConfig, ModelConfig, PPOConfig
from rlhf_jax.models.heads import make_language_model, make_policy_value
from rlhf_jax.objectives.policy_losses import importance_weights
from rlhf_jax.rollouts.rollout import make_rollout
from rlhf_jax.training.moving import mix, moved, start_moving
from rlhf_jax.training.policy_optimization import make_policy_optimization
from rlhf_jax.types import QueryBatch, Rollout

pytestmark = pytest.mark.usefixtures("module_in_float64")
B, Q, R, V = 4, 2, 3, 11
TEMPERATURE = 0.7
MODEL = ModelConfig(n_layers=1, d_model=8, n_heads=2, context=8, dtype="float64")


def draw(seed=0):
    """(log-probs now, log-probs then, mask), not-a-numbers under the mask."""
    rng = np.random.default_rng(seed)
    mask = np.arange(R)[None] < rng.integers(1, R + 1, B)[:, None]
    numbers = lambda: np.where(mask, rng.normal(size=(B, R)) - 3, np.nan)
    return jnp.asarray(numbers()), jnp.asarray(numbers()), jnp.asarray(mask)


def test_importance_weights_are_ratios_up_to_a_cap():
    now, then, mask = draw()
    weights, metrics = importance_weights(now, then, mask, cap=1.5)
    expected, real = np.zeros((B, R)), []
    for i, t in np.argwhere(mask):
        ratio = np.exp(now[i, t]) / np.exp(then[i, t])
        real.append(ratio)
        expected[i, t] = min(ratio, 1.5)
    assert_same(weights, expected)
    assert 0 < np.mean(np.array(real) > 1.5) < 1
    assert_same(metrics["val/importance_capped"], np.mean(np.array(real) > 1.5))
    assert_same(metrics["val/importance_weight"], expected.sum() / len(real))
    kept = [min(ratio, 1.5) for ratio in real]
    effective = sum(kept) ** 2 / sum(w * w for w in kept) / len(kept)
    assert_same(metrics["val/importance_ess"], effective)
    assert_same(metrics["objective/stale_kl"], -np.log(real).sum() / B)


def test_importance_weights_are_constants_to_a_loss():
    """Else an update would raise what makes its own weights large."""
    now, then, mask = draw()
    weights = lambda x: importance_weights(x, then, mask, cap=1.5)[0].sum()
    assert (jax.grad(weights)(now) == 0).all()


def test_importance_weights_are_those_of_the_loss_beside_what_an_answer_weighs():
    """Tokens of every minibatch; nothing where the policy that learns has sampled itself."""
    config = PPOConfig(
        response_length=R,
        batch_size=B,
        num_minibatches=2,
        value_trunk="none",
        aggregation="sequence_mean",
        importance_cap=1.5,
        staleness=1,
        kl=KLConfig(coef=0.1),
    )
    lm, both = make_language_model(MODEL, V), make_policy_value(MODEL, MODEL, V, "none")
    wiring = make_policy_optimization(config, lm, both, {}, optax.sgd(1.0), end_ids=(0,), pad_id=0)
    now, then, mask = draw()
    ids = jnp.arange(B * R, dtype=jnp.int32).reshape(B, R)
    tokens = ids[:, :Q], jnp.ones((B, Q), bool), ids, mask
    scores = {"task": jnp.arange(B, dtype=float)}
    r = Rollout(*tokens, now, now, None, scores, behaviour_logprobs=then)
    coefs = {"kl_coef": jnp.float64(0.1)}
    batches, metrics = jax.jit(wiring.prepare)(r, coefs, jax.random.key(0))
    weights, stale = importance_weights(now, then, mask, cap=1.5)
    assert_same(metrics["objective/stale_kl"], stale["objective/stale_kl"])
    for n in range(2):
        real = np.asarray(batches.mask[n])
        rows = np.asarray(batches.responses[n])[:, 0] // R
        lengths = real.sum(axis=1, keepdims=True)
        expected = np.asarray(weights)[rows] * real.sum() / 2 / lengths
        assert_same(batches.weights[n], np.where(real, expected, 0.0))
    fresh, metrics = jax.jit(wiring.batch)(r._replace(behaviour_logprobs=None), coefs)
    assert "objective/stale_kl" not in metrics
    assert_same(fresh.weights.sum(axis=1), np.full(B, np.asarray(mask).sum() / B))


@pytest.mark.slow
def test_an_older_policy_samples_and_the_one_that_learns_says_how_likely_that_was():
    lm, both = make_language_model(MODEL, V), make_policy_value(MODEL, MODEL, V, "none")
    now, then, reference = (jax.jit(lm.init)(jax.random.key(n)) for n in range(3))
    now, then = (jax.tree.map(lambda x: 8 * x, params) for params in (now, then))
    args = dict(length=R, temperature=TEMPERATURE, end_ids=(V,), pad_id=0, at_once=1.0)
    roll_out = make_rollout(
        lm, both, {}, recompute_logprobs=False, packing=False, samples_per_prompt=1, **args
    )
    queries = jax.random.randint(jax.random.key(5), (B, Q), 0, V)
    batch = QueryBatch(queries, jnp.ones((B, Q), bool), jnp.arange(B))
    inputs = {"policy": now}, reference, {}, batch, jax.random.key(6)
    r = jax.jit(roll_out)(*inputs, then)
    tokens = jnp.concatenate([r.queries, r.responses], axis=1)
    read = jax.jit(partial(lm.logits, start=Q - 1))

    def by_hand(params):
        logits = read(params, tokens, jnp.ones(tokens.shape, bool))[:, :-1] / TEMPERATURE
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return np.take_along_axis(np.asarray(logprobs), np.asarray(r.responses)[..., None], 2)[
            ..., 0
        ]

    assert_same(r.logprobs, by_hand(now))
    assert_same(r.behaviour_logprobs, by_hand(then))
    assert_same(r.ref_logprobs, by_hand(reference))
    assert np.abs(r.logprobs - r.behaviour_logprobs).max() > 0.1


# --- what moves -----------------------------------------------------------------------------------


def network(seed):
    rng = np.random.default_rng(seed)
    return {"trunk": {"w": jnp.asarray(rng.normal(size=(3, 2)))}, "head": jnp.ones(2)}


def buffers(tree):
    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}


def test_the_oldest_of_the_last_policies_samples():
    """It is the first one until there are k others; none of them is in the policy's own memory."""
    reference = {"trunk": network(9)["trunk"]}
    policies = [network(n) for n in range(5)]
    config = PPOConfig(staleness=2)
    moving = start_moving(config, policies[0], reference)
    sampled = []
    for policy in policies:
        behaviour = moving.behaviour({})
        sampled.append([bool((p["trunk"]["w"] == behaviour["trunk"]["w"]).all()) for p in policies])
        moving = moving.with_newest(policy)
        assert not buffers(moving.past) & buffers(policies)
    assert [row.index(True) for row in sampled] == [0, 0, 0, 1, 2]
    assert moving.kept(config).keys() == {"past"}
    still = start_moving(PPOConfig(), policies[0], reference)
    assert still.behaviour({}) is None and still.with_newest(policies[1]).kept(PPOConfig()) == {}


def test_older_policies_are_in_order_after_a_checkpoint_too():
    """JAX sorts the names of a tree: "10" before "2"."""
    moving = start_moving(PPOConfig(staleness=12), network(0), {"trunk": network(9)["trunk"]})
    for n in range(12):
        moving = moving.with_newest(network(n))
    moving = moving._replace(past=jax.tree.map(lambda x: x, moving.past))
    for n in range(12):
        oldest = moving.behaviour({})["trunk"]["w"]
        assert (oldest == network(n)["trunk"]["w"]).all()
        moving = moving.with_newest(network(0))


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_reference_moves_every_n_iterations(share):
    """In memory of its own, so that an update of the policy does not take it away."""
    config = PPOConfig(reference_every=2, reference_mix=share)
    reference = {"trunk": network(9)["trunk"]}
    moving = start_moving(config, network(0), reference)
    mixed = jax.jit(partial(mix, share=share))
    expected = np.asarray(reference["trunk"]["w"])
    for done in range(1, 6):
        policy = network(done)
        moving = moved(config, moving, policy, done=done, mixed=mixed)
        if done % 2 == 0:
            expected = share * np.asarray(policy["trunk"]["w"]) + (1 - share) * expected
        assert_same(moving.reference["trunk"]["w"], expected)
        assert moving.reference.keys() == {"trunk"} and moving.kept(config).keys() == {"reference"}
        assert not buffers(moving.reference) & buffers(policy)
    still = start_moving(PPOConfig(), network(0), reference)
    assert moved(PPOConfig(), still, network(1), done=2, mixed=mixed) is still
