"""PPO with its episodes packed computes what it computes with padding: scores, losses, updates."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from precision import SAME

from rlhf_jax.config import DPOConfig, KLConfig, ModelConfig, OptimConfig, PPOConfig
from rlhf_jax.models import packing
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.rollouts.rollout import make_rollout
from rlhf_jax.training.optimizers import make_state
from rlhf_jax.training.policy_optimization import make_policy_optimization
from rlhf_jax.training.preference_optimization import (
    PreferenceInputs,
    make_preference_loss,
    sequence_logprobs,
)
from rlhf_jax.types import ComparisonBatch, QueryBatch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("module_in_float64")]
B, Q, R, V, PAD = 16, 4, 6, 12, 11
ENDS = (3, 5, 7)
"""So many that answers end early."""
CONFIG = ModelConfig(n_layers=1, d_model=8, n_heads=2, context=Q + R, dtype="float64")
TX = optax.sgd(0.1)
PPO = PPOConfig(
    response_length=R,
    batch_size=B,
    num_minibatches=2,
    kl=KLConfig(coef=0.2),
    optim=OptimConfig(accumulate=2),
)
KIN = {
    # Of two trunks: tests/training/test_parallel.py, on eight devices against padding on one.
    "PPO on one trunk, micro-batches": replace(PPO, value_trunk="shared", entropy_coef=0.1),
    "ratios of answers, means of answers, KL in the loss": replace(
        PPO,
        value_trunk="none",
        advantage="grpo",
        samples_per_prompt=4,
        ratio="sequence",
        aggregation="sequence_mean",
        kl=KLConfig(coef=0.2, place="loss", estimator="k3"),
    ),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of so few tokens."""
    monkeypatch.setattr(packing, "BLOCK_TOKENS", 1)


def same(found, expected):
    jax.tree.map(partial(np.testing.assert_allclose, atol=SAME, rtol=SAME), found, expected)


def wide(params):
    """Far from the tiny initial values, so that answers differ."""
    return jax.tree.map(lambda x: 4 * jnp.asarray(x, float), params)


def networks(value_trunk, pooling="last"):
    lm, scalar = (
        make_language_model(CONFIG, V),
        make_scalar_model(replace(CONFIG, pooling=pooling), V),
    )
    both = make_policy_value(CONFIG, CONFIG, V, value_trunk)
    params, reference, older = (wide(lm.init(jax.random.key(n))) for n in range(3))
    reward = wide(scalar.init(jax.random.key(3), params["trunk"]))
    return lm, scalar, both, (both.init(params, reward), reference, {"task": reward}), older


def queries():
    tokens = jax.random.randint(jax.random.key(4), (B, Q), 0, V)
    mask = jnp.arange(Q)[None] >= (jnp.arange(B) % Q)[:, None]
    return QueryBatch(tokens, mask, jnp.arange(B))


def iteration(config, packed, objective=None, pooling="last"):
    """(episodes, metrics of an update, new parameters) of one iteration."""
    lm, scalar, both, params, _ = networks(config.value_trunk, pooling)
    ppo = make_policy_optimization(
        replace(config, packing=packed),
        lm,
        both,
        {"task": scalar},
        TX,
        end_ids=ENDS,
        pad_id=PAD,
        objective=objective,
    )

    K = config.samples_per_prompt
    prompts = jax.tree.map(lambda x: jnp.repeat(x[::K], K, axis=0), queries())

    @jax.jit
    def run(params, key):
        episodes = ppo.rollout(*params, prompts, key)
        minibatches, metrics = ppo.prepare(episodes, {"kl_coef": jnp.float64(0.2)}, key)
        state = make_state(params[0], TX, ema_decay=0.0)
        state, update_metrics = ppo.update(state, (minibatches, None), key)
        return episodes, metrics | update_metrics, state.params

    return run(params, jax.random.key(5))


@pytest.mark.parametrize("config", KIN.values(), ids=KIN)
def test_an_iteration_is_the_same(config):
    found, expected = iteration(config, True), iteration(config, False)
    lengths = np.asarray(expected[0].mask.sum(axis=1))
    assert lengths.min() < R / 2 and lengths.max() == R  # there is padding, and a longest answer
    same(found, expected)


def test_a_score_that_is_a_mean_is_the_same():
    config = replace(PPO, value_trunk="none", optim=OptimConfig())
    found, expected = (iteration(config, packed, pooling="mean") for packed in (True, False))
    same(found, expected)
    _, scalar, _, (_, _, rewards), _ = networks("none")
    episodes, prompts = expected[0], queries()
    rows = (prompts.queries, episodes.responses), (prompts.query_mask, episodes.mask)
    tokens, mask = (jnp.concatenate(parts, axis=1) for parts in rows)
    outputs = jax.jit(partial(scalar.values, start=Q))(rewards["task"], tokens, mask)
    means = jnp.where(episodes.mask, outputs, 0).sum(axis=1) / episodes.mask.sum(axis=1)
    same(episodes.scores["task"], means)


def test_a_forks_objective_sees_its_minibatch_whole():
    """The tokens of the highest entropy of a minibatch are not those of its blocks."""
    config = replace(PPO, value_trunk="none", optim=OptimConfig())

    def surest(new_logprobs, new_values, entropies, batch, *, count):
        chosen = entropies >= jnp.nanquantile(jnp.where(batch.mask, entropies, jnp.nan), 0.8)
        return -jnp.where(chosen & batch.mask, new_logprobs, 0).sum() / count, {}

    same(*(iteration(config, packed, objective=surest) for packed in (True, False)))


def comparisons():
    """Three answers to each prompt, some of them absent."""
    rng = np.random.default_rng(0)
    mask = np.arange(R)[None, None] < rng.integers(1, R + 1, (B, 3, 1))
    ranks = rng.integers(0, 3, (B, 3)).astype(np.int32)
    ranks[:4, 2] = -1
    mask &= ranks[..., None] >= 0
    responses = rng.integers(0, V, (B, 3, R)).astype(np.int32)
    prompts = queries()
    answers = map(jnp.asarray, (responses, mask, ranks))
    return ComparisonBatch(prompts.queries, prompts.query_mask, *answers)


def test_dpos_gradient_is_the_same():
    lm, _, _, (_, reference, _), params = networks("none")
    batch = comparisons()
    inputs = PreferenceInputs(batch, sequence_logprobs(lm, reference, batch))

    def gradient(packed):
        loss_fn = make_preference_loss(lm, DPOConfig(), temperature=0.7, packing=packed)
        return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, inputs, None, 7.0)

    same(gradient(True), gradient(False))


def test_the_reward_models_gradient_is_the_same():
    _, scalar, _, (_, _, rewards), _ = networks("none")
    batch = comparisons()
    weights = jax.random.normal(jax.random.key(7), batch.ranks.shape)

    def gradient(score):
        def loss_fn(params):
            scores = jnp.where(batch.ranks >= 0, score(params, *batch[:4]), 0)
            return (weights * scores**2).sum(), scores

        return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(rewards["task"])

    padded = lambda params, *rows: scalar.score_responses(params, *rows, None)
    same(gradient(scalar.score_packed), gradient(padded))


def test_an_older_policys_answers_are_read_the_same():
    lm, scalar, both, params, older = networks("separate")
    episodes = [
        jax.jit(
            make_rollout(
                lm,
                both,
                {"task": scalar},
                length=R,
                temperature=0.7,
                end_ids=ENDS,
                pad_id=PAD,
                at_once=1.0,
                recompute_logprobs=True,
                packing=packed,
                samples_per_prompt=1,
            )
        )(*params, queries(), jax.random.key(6), older)
        for packed in (True, False)
    ]
    same(*episodes)
    gap = np.abs(episodes[0].logprobs - episodes[0].behaviour_logprobs)
    assert gap.max() > 0.1
