"""The whole loop learns what it is paid for, and leaves alone what it must not touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import log_ratio_bound

from rlhf_jax.config import KLConfig, ModelConfig, OptimConfig, PPOConfig
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.objectives.preference_losses import count_ranked, ranking_loss
from rlhf_jax.runs.checkpoints import params_sha256
from rlhf_jax.training.optimizers import (
    make_optimizer,
    make_policy_value_optimizer,
    make_state,
)
from rlhf_jax.training.policy_optimization import make_policy_optimization
from rlhf_jax.training.preparation import shuffle_minibatches
from rlhf_jax.training.updates import make_update_step
from rlhf_jax.types import LMBatch, QueryBatch

V, B, Q, R = 12, 64, 3, 6
EOS, PAD = 10, 11
CONFIG = ModelConfig(n_layers=1, d_model=32, n_heads=2, context=16)
LM = make_language_model(CONFIG, V)
SCALAR = make_scalar_model(CONFIG, V)
BOTH = make_policy_value(CONFIG, CONFIG, V, "separate")


def make_iteration(reference, *, kl_coef, ptx_loss=None, ptx_coef=0.0, lr=3e-3):
    """One PPO iteration whose score is the share of 7s in the response."""
    optim = OptimConfig(lr=lr, schedule="constant", weight_decay=0.0)
    tx = make_policy_value_optimizer(optim, optim, 100, updates_per_step=4)
    config = PPOConfig(
        response_length=R,
        batch_size=B,
        ppo_epochs=2,
        num_minibatches=2,
        kl=KLConfig(coef=kl_coef),
        ptx_coef=ptx_coef,
        optim=optim,
    )
    ppo = make_policy_optimization(config, LM, BOTH, {}, tx, end_ids=(EOS,), pad_id=PAD)

    @jax.jit
    def iteration(state, key):
        k_queries, k_rollout, k_shuffle, k_update = jax.random.split(key, 4)
        queries = jax.random.randint(k_queries, (B, Q), 0, EOS)
        batch = QueryBatch(queries, jnp.ones((B, Q), bool), jnp.arange(B))
        r = ppo.rollout(state.params, reference, {}, batch, k_rollout)
        r = r._replace(scores={"task": ((r.responses == 7) & r.mask).sum(axis=1) / R})
        minibatches, metrics = ppo.prepare(r, {"kl_coef": jnp.float32(kl_coef)}, k_shuffle)
        state, update_metrics = ppo.update(state, (minibatches, None), k_update)
        return state, metrics | update_metrics

    return tx, iteration


def start(tx):
    policy = LM.init(jax.random.key(0))
    value = SCALAR.init(jax.random.key(1), policy["trunk"])
    return policy, make_state(BOTH.init(policy, value), tx, ema_decay=0.0)


@pytest.mark.slow
def test_ppo_learns_to_emit_the_paid_token():
    reference = LM.init(jax.random.key(0))
    before = params_sha256(reference)
    tx, iteration = make_iteration(reference, kl_coef=0.0)
    _, state = start(tx)
    history = []
    for step in range(60):
        state, metrics = iteration(state, jax.random.fold_in(jax.random.key(2), step))
        history.append({name: float(value) for name, value in metrics.items()})
    first, last = history[0], history[-1]
    assert first["objective/scores"] < 0.2 and last["objective/scores"] > 0.8
    # Bug 21: the reference is no alias of the policy: the KL is 0 at first and then is not.
    assert abs(first["objective/kl"]) < log_ratio_bound(CONFIG, Q + R, V, tokens=R)
    assert last["objective/kl"] > 1
    assert params_sha256(reference) == before
    # Bug 23: several updates on one rollout move the ratio away from 1.
    assert first["policy/approxkl_avg"] > 0


@pytest.mark.slow
def test_the_kl_penalty_holds_the_policy_back():
    reference = LM.init(jax.random.key(0))
    scores = {}
    for kl_coef in (0.0, 2.0):
        tx, iteration = make_iteration(reference, kl_coef=kl_coef)
        _, state = start(tx)
        for step in range(30):
            state, metrics = iteration(state, jax.random.fold_in(jax.random.key(2), step))
        scores[kl_coef] = float(metrics["objective/kl"])
    assert scores[2.0] < 0.2 * scores[0.0]


def test_every_episode_is_used_epochs_times_in_a_new_order():
    """Bug 47."""
    minibatches = shuffle_minibatches(
        jnp.arange(24), jax.random.key(0), epochs=3, num_minibatches=4
    )
    assert minibatches.shape == (12, 6)
    epochs = np.asarray(minibatches).reshape(3, 24)
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.slow
def test_language_model_beats_the_unigram():
    """On text where the next token is the last one plus 1, modulo 8."""
    tokens = (np.arange(12)[None] + np.arange(16)[:, None]) % 8
    ones = np.ones(tokens.shape, np.int32)
    batch = LMBatch(
        tokens.astype(np.int32), (ones > 0) & (np.arange(12) > 0)[None], ones, ones.cumsum(1) - 1
    )
    batch = jax.tree.map(jnp.asarray, batch._replace(positions=batch.positions.astype(np.int32)))
    tx = make_optimizer(OptimConfig(lr=1e-2), 80, updates_per_step=1)
    loss_fn = lambda p, b, key, count: lm_loss(LM.packed_logits(p, b, None), b, count=count)
    step = jax.jit(make_update_step(loss_fn, count_targets, tx, accumulate=1, ema_decay=0.0))
    state = make_state(LM.init(jax.random.key(0)), tx, ema_decay=0.0)
    for _ in range(80):
        state, metrics = step(state, batch, jax.random.key(0))
    assert metrics["loss"] < 0.1 < np.log(8)


@pytest.mark.slow
def test_reward_model_learns_a_ranking_it_can_see():
    """Responses with more 7s rank higher; held-out pairs are ordered rightly."""
    rng = np.random.default_rng(0)

    def batch(n):
        responses = rng.integers(0, EOS, (n, 4, R))
        ranks = -(responses == 7).sum(axis=2)
        return jnp.asarray(responses, jnp.int32), jnp.asarray(ranks - ranks.min(), jnp.int32)

    def scores_of(params, responses):
        flat = responses.reshape(-1, R)
        return SCALAR.score(params, flat, jnp.ones(flat.shape, bool), None).reshape(-1, 4)

    loss_fn = lambda p, b, key, count: ranking_loss(scores_of(p, b[0]), b[1], count=count)
    tx = make_optimizer(OptimConfig(lr=1e-2), 150, updates_per_step=1)
    step = make_update_step(loss_fn, lambda b: count_ranked(b[1]), tx, accumulate=1, ema_decay=0.0)
    step = jax.jit(step)
    trunk = LM.init(jax.random.key(0))["trunk"]
    state = make_state(SCALAR.init(jax.random.key(1), trunk), tx, ema_decay=0.0)
    for _ in range(150):
        state, _ = step(state, batch(32), jax.random.key(0))
    responses, ranks = batch(200)
    assert ranking_loss(scores_of(state.params, responses), ranks)[1]["accuracy"] > 0.95
