"""Which answers of a group are learnt from, against loops; and online DPO and imitation as wired.

Not-a-numbers and padding under the mask, ties, and groups that lack answers are drawn.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from precision import assert_same

from rlhf_jax.config import KLConfig, ModelConfig, PairLossConfig, PPOConfig, SamplingConfig
from rlhf_jax.models.heads import make_language_model, make_policy_value
from rlhf_jax.objectives.selection import best_rows, compared, imitation_loss, selection_metrics
from rlhf_jax.training.policy_optimization import make_policy_optimization
from rlhf_jax.types import KeptAnswers, Rollout

pytestmark = pytest.mark.usefixtures("module_in_float64")
G, K, Q, R, V = 6, 3, 2, 4, 13
B = G * K


def draw(seed=0):
    """Group 1 scores alike, of group 2 one answer is there, of 3 none, of 4 two; 5 has a tie."""
    rng = np.random.default_rng(seed)
    mask = np.arange(R)[None] < rng.integers(1, R + 1, B)[:, None]
    mask[[6, 8, 9, 10, 11, 13]] = False
    returns = np.round(rng.normal(size=B), 3)
    returns[3:6], returns[[6, 8, 9, 10, 11, 13]] = 0.1, 99.0
    returns[15:] = 2.0, -1.0, 2.0
    return jnp.asarray(returns), jnp.asarray(mask)


def there(group, mask):
    return [i for i in range(group * K, group * K + K) if mask[i].any()]


def differ(rows, returns):
    return len({float(returns[i]) for i in rows}) > 1


def test_of_each_prompt_the_best_answer_is_kept():
    """Where no answer is better than another none is; of equals the first."""
    returns, mask = draw()
    rows, kept = best_rows(returns, mask, group_size=K)
    for g in range(G):
        if differ(there(g, mask), returns):
            best = max(there(g, mask), key=lambda i: (float(returns[i]), -i))
            assert rows[g] == best and (kept[g] == mask[best]).all()
        else:
            assert not kept[g].any() and rows[g] // K == g
    assert kept.any(axis=1).tolist() == [True, False, False, False, True, True] and rows[5] == 15
    metrics = selection_metrics(returns, mask, group_size=K)
    highest = [max(float(returns[i]) for i in there(g, mask)) for g in range(G) if g != 3]
    assert_same(metrics["objective/best_reward"], np.mean(highest))
    assert_same(metrics["objective/zero_spread_groups"], np.float64(0.5))


@pytest.mark.parametrize("pairs", ["all", "best_worst"])
def test_pairs_are_of_answers_to_one_prompt_that_differ(pairs):
    """Every (better, worse) that the ranks mean, by rows of the batch, against loops."""
    returns, mask = draw()
    rows, ranks = compared(returns, mask, group_size=K, pairs=pairs)
    assert rows.shape == ranks.shape == (G, K if pairs == "all" else 2)
    found = {
        (int(rows[g, i]), int(rows[g, j]))
        for g in range(G)
        for i, j in np.ndindex(rows.shape[1], rows.shape[1])
        if 0 <= ranks[g, i] < ranks[g, j]
    }
    expected = set()
    for g in range(G):
        each = there(g, mask)
        every = {(i, j) for i in each for j in each if returns[i] > returns[j]}
        if pairs == "best_worst" and every:
            value = lambda i: float(returns[i])
            every = {(max(each, key=value), min(each, key=value))}
        expected |= every
    assert found == expected and len(found) == (6 if pairs == "all" else 3)


# --- as wired -------------------------------------------------------------------------------------

MODEL = ModelConfig(n_layers=1, d_model=8, n_heads=2, context=8, dtype="float64")
TEMPERATURE = 0.7


def made_up_rollout():
    returns, mask = draw()
    rng = np.random.default_rng(1)
    ids = lambda *shape: jnp.asarray(rng.integers(1, V, shape), jnp.int32)
    logprobs = lambda: jnp.asarray(np.where(mask, rng.normal(size=(B, R)) - 3, np.nan))
    queries = jnp.repeat(ids(G, Q), K, axis=0)
    tokens = queries, jnp.ones((B, Q), bool), ids(B, R), mask
    return Rollout(*tokens, logprobs(), logprobs(), None, {"task": returns})


def wired(**changes):
    config = PPOConfig(
        response_length=R,
        batch_size=B,
        samples_per_prompt=K,
        num_minibatches=2,
        value_trunk="none",
        **changes,
    )
    lm, both = make_language_model(MODEL, V), make_policy_value(MODEL, MODEL, V, "none")
    tx = optax.sgd(1.0)
    return lm, make_policy_optimization(config, lm, both, {}, tx, end_ids=(0,), pad_id=0)


def logprobs_by_hand(lm, params, rollout):
    """log π of each token at the sampling temperature, from all logits."""
    tokens = np.concatenate([rollout.queries, rollout.responses], axis=1)
    everywhere = np.ones(tokens.shape, bool)
    logits = jax.jit(partial(lm.logits, start=Q - 1))(params, tokens, everywhere)[:, :-1]
    logits = np.asarray(logits, np.float64) / TEMPERATURE
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return np.take_along_axis(logprobs, np.asarray(rollout.responses)[..., None], axis=2)[..., 0]


COEFS = {"kl_coef": jnp.float32(0.0)}
SAMPLING = SamplingConfig(temperature=TEMPERATURE)


def test_imitation_learns_the_kept_answers_by_their_return():
    """−log π per token of the best of each prompt, the KL being part of the return."""
    lm, wiring = wired(objective="imitation", kl=KLConfig(coef=0.5), sampling=SAMPLING)
    params, r = lm.init(jax.random.key(0)), made_up_rollout()
    minibatches, metrics = jax.jit(wiring.prepare)(
        r, {"kl_coef": jnp.float64(0.5)}, jax.random.key(0)
    )
    kl = np.where(r.mask, r.logprobs - r.ref_logprobs, 0).sum(axis=1)
    returns = np.where(r.mask.any(axis=1), np.asarray(r.scores["task"]) - 0.5 * kl, -np.inf)
    best = [int(g * K + returns[g * K : g * K + K].argmax()) for g in (0, 1, 4, 5)]
    kept = {tuple(ids): tuple(m) for ids, m in zip(*rows_of(minibatches), strict=True) if any(m)}
    assert kept == {tuple(r.responses[i].tolist()): tuple(r.mask[i].tolist()) for i in best}
    assert minibatches.responses.shape == (2, G // 2, R)
    assert_same(metrics["objective/zero_spread_groups"], np.float64(1 / 3))

    batch, _ = jax.jit(wiring.batch)(r, {"kl_coef": jnp.float64(0.5)})
    loss, _ = jax.jit(wiring.loss)({"policy": params}, batch, None, None)
    by_hand = logprobs_by_hand(lm, params, r)
    each = [-by_hand[i, t] for i in best for t in range(R) if r.mask[i, t]]
    assert_same(loss, np.mean(each))


def rows_of(minibatches):
    return (np.asarray(x).reshape(G, R).tolist() for x in (minibatches.responses, minibatches.mask))


@pytest.mark.parametrize("pairs", ["all", "best_worst"])
def test_online_dpo_is_dpo_of_the_pairs_that_were_sampled(pairs):
    """A prompt is one element of a minibatch, its answers together; the loss against loops."""
    lm, wiring = wired(
        objective="dpo", pairs=pairs, sampling=SAMPLING, dpo=PairLossConfig(beta=0.3)
    )
    params, r = lm.init(jax.random.key(0)), made_up_rollout()
    minibatches, _ = jax.jit(wiring.prepare)(r, COEFS, jax.random.key(0))
    batch = minibatches.batch
    prompt_of = {tuple(ids): i // K for i, ids in enumerate(np.asarray(r.responses).tolist())}
    for n, g in np.ndindex(2, G // 2):
        prompts = {prompt_of[tuple(ids)] for ids in np.asarray(batch.responses[n, g]).tolist()}
        assert len(prompts) == 1
        prompt = prompts.pop()
        assert (batch.queries[n, g] == r.queries[prompt * K]).all()

    inputs, _ = jax.jit(wiring.batch)(r, COEFS)
    loss, metrics = jax.jit(wiring.loss)({"policy": params}, inputs, None, None)
    total = lambda x: np.where(r.mask, x, 0).sum(axis=1)
    rewards = 0.3 * (total(logprobs_by_hand(lm, params, r)) - total(r.ref_logprobs))
    scores, mask = draw()
    losses = []
    for g in range(G):
        each = there(g, mask)
        found = [(i, j) for i in each for j in each if scores[i] > scores[j]]
        if pairs == "best_worst" and found:
            value = lambda i: float(scores[i])
            found = [(max(each, key=value), min(each, key=value))]
        margins = [rewards[i] - rewards[j] for i, j in found]
        losses += [np.mean([np.log1p(np.exp(-m)) for m in margins])] if found else []
    assert len(losses) == 3
    assert_same(loss, np.mean(losses))
    assert {"accuracy", "margin", "change_chosen", "change_rejected"} <= metrics.keys()


def test_imitation_loses_the_log_probs_of_real_tokens():
    """A share of the whole batch's mean, and no entropy bonus."""
    new = jnp.asarray([[-1.0, -3.0, jnp.nan]])
    mask = jnp.asarray([[True, True, False]])
    ids = jnp.zeros((1, 3), jnp.int32)
    loss, metrics = imitation_loss(new, None, -new, KeptAnswers(ids, mask, ids, mask), count=8.0)
    assert_same(loss, np.float64(0.5))
    assert_same(metrics["policy/entropy_avg"], np.float64(0.5))
