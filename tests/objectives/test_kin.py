"""PPO's kin (RLOO, GRPO, DAPO, GSPO, CISPO) against slow references, and what must not matter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import assert_same

from rlhf_jax.objectives.advantages import (
    GROUP_EPS,
    grpo,
    reinforce,
    rloo,
    update_baseline,
    zero_spread_groups,
)
from rlhf_jax.objectives.kl import KL_ESTIMATORS
from rlhf_jax.objectives.policy_losses import (
    kl_loss,
    log_ratios,
    policy_loss,
    ppo_loss,
    token_weights,
)
from rlhf_jax.types import PPOBatch

pytestmark = pytest.mark.usefixtures("module_in_float64")
G, K, R = 5, 4, 6
B = G * K
GROUPED = {
    "rloo": partial(rloo, group_size=K),
    "grpo": partial(grpo, group_size=K, scale="std"),
    "dr_grpo": partial(grpo, group_size=K, scale="none"),
}
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant_length")


def draw(seed=0):
    """Rewards with not-a-numbers under a ragged mask, in groups that lack answers.

    Group 1 scores alike, of group 2 one answer is there, of group 3 none, of group 4 two.
    """
    rng = np.random.default_rng(seed)
    mask = np.arange(R)[None] < rng.integers(1, R + 1, B)[:, None]
    mask[[9, 10, 11, 12, 13, 14, 15, 16, 18]] = False
    rewards = rng.normal(size=(B, R))
    rewards[K : 2 * K] = np.where(np.arange(R) == 0, 0.1, 0.0)
    return jnp.asarray(np.where(mask, rewards, np.nan)), jnp.asarray(mask)


def by_hand(name, rewards, mask):
    """One answer after the other, from Python's own sums."""
    rewards, mask = np.asarray(rewards), np.asarray(mask)
    returns = [
        sum(r for r, m in zip(*row, strict=True) if m) for row in zip(rewards, mask, strict=True)
    ]
    found = np.zeros((B, R))
    for i in range(B):
        first = i // K * K
        others = [j for j in range(first, first + K) if j != i and mask[j].any()]
        if not mask[i].any() or not others:
            continue
        if name == "rloo":
            advantage = returns[i] - sum(returns[j] for j in others) / len(others)
        else:
            there = [returns[j] for j in (*others, i)]
            mean = sum(there) / len(there)
            advantage = returns[i] - mean
            if name == "grpo":
                std = (sum((x - mean) ** 2 for x in there) / (len(there) - 1)) ** 0.5
                advantage /= std + GROUP_EPS
        found[i, mask[i]] = advantage
    return found


@pytest.mark.parametrize("name", GROUPED)
def test_advantages_of_groups(name):
    """Ragged groups too: an answer is compared with those to its prompt that are there."""
    rewards, mask = draw()
    advantages, returns = GROUPED[name](rewards, None, mask)
    expected = by_hand(name, rewards, mask)
    assert_same(advantages, expected)
    assert returns is None and (np.abs(expected[mask]) > 1e-3).sum() > 20


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_that_scores_alike_or_stands_alone_teaches_exactly_nothing(name):
    """The mean of three equal numbers is rounded: divided by ε, the rest would be learnt."""
    rewards, mask = draw()
    advantages, _ = GROUPED[name](rewards, None, mask)
    assert (advantages[K : 4 * K] == 0).all() and (advantages[:K][mask[:K]] != 0).all()
    assert zero_spread_groups(rewards, mask, group_size=K) == 3 / 5
    third = jnp.full((3, 1), 0.1, jnp.float32)
    found, _ = grpo(third, None, third > 0, group_size=3, scale="std")
    assert (found == 0).all()


@pytest.mark.parametrize("name", GROUPED)
def test_the_order_of_groups_and_of_answers_in_them_does_not_matter(name):
    rewards, mask = draw()
    groups = np.arange(B).reshape(G, K)[[3, 0, 4, 2, 1]]
    order = np.random.default_rng(1).permuted(groups, axis=1).ravel()
    advantages, _ = GROUPED[name](rewards, None, mask)
    moved, _ = GROUPED[name](rewards[order], None, mask[order])
    assert_same(moved, advantages[order])


def test_a_baseline_is_the_mean_of_past_iterations():
    rewards, mask = draw()
    returns = np.where(mask, rewards, 0).sum(axis=1, keepdims=True)
    advantages, _ = reinforce(rewards, None, mask, baseline=0.4)
    assert_same(advantages, np.where(mask, returns - 0.4, 0))
    means, state = [2.0, -1.0, 5.0], (jnp.float64(0), jnp.float64(0))
    for mean in means:
        state = update_baseline(*state, jnp.float64(mean), decay=0.5)
    weights = np.array([0.25, 0.5, 1.0])
    assert_same(state[0], (weights * means).sum() / weights.sum())
    first, _ = update_baseline(jnp.float64(0), jnp.float64(0), jnp.float64(7), decay=0.9)
    assert_same(first, np.float64(7))


# --- losses ---------------------------------------------------------------------------------------


def losses_by_hand(new, old, advantages, mask, *, low, high, dual, kind, ratio):
    """(what each token loses, whether a bound decides it)"""
    found, bounded = np.zeros((B, R)), np.zeros((B, R), bool)
    for i, t in np.argwhere(mask):
        gap = new[i, t] - old[i, t]
        if ratio == "sequence":
            gap = np.mean([new[i, s] - old[i, s] for s in range(R) if mask[i, s]])
        rho, a = np.exp(gap), advantages[i, t]
        if kind == "unclipped":
            found[i, t] = -rho * a
        elif kind == "cispo":
            found[i, t] = -min(rho, 1 + high) * a * new[i, t]
            bounded[i, t] = rho > 1 + high
        else:
            kept = min(max(rho, 1 - low), 1 + high)
            gain = min(rho * a, kept * a)
            if dual is not None and a < 0:
                gain = max(gain, dual * a)
            found[i, t], bounded[i, t] = -gain, gain != rho * a
    return found, bounded


def update(seed=2, *, spread=0.6):
    """Log-probs new and old, advantages, and a mask; not-a-numbers under it."""
    rng = np.random.default_rng(seed)
    _, mask = draw()
    normal = lambda: jnp.where(mask, jnp.asarray(rng.normal(size=(B, R))), jnp.nan)
    old = -jnp.exp(normal())
    return old + spread * normal(), old, normal(), mask


def mean_by_hand(losses, mask, how):
    rows = [row[m] for row, m in zip(losses, mask, strict=True) if m.any()]
    return {
        "token_mean": lambda: np.concatenate(rows).mean(),
        "sequence_mean": lambda: np.mean([row.mean() for row in rows]),
        "sequence_sum": lambda: np.mean([row.sum() for row in rows]),
        "constant_length": lambda: np.concatenate(rows).sum() / (len(rows) * R),
    }[how]()


VARIANTS = [
    dict(kind="clip", ratio="token", dual=None),
    dict(kind="clip", ratio="token", dual=1.5),
    dict(kind="clip", ratio="sequence", dual=None),
    dict(kind="unclipped", ratio="token", dual=None),
    dict(kind="cispo", ratio="token", dual=None),
]


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("v", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_policy_losses(v, how):
    """A higher upper clip, a bound on both sides, none, of tokens and of answers."""
    new, old, advantages, mask = update()
    losses, bounded = losses_by_hand(
        *map(np.asarray, (new, old, advantages, mask)), low=0.2, high=0.4, **v
    )
    weights = None if how == "token_mean" else token_weights(mask, how=how)
    bounds = dict(clip_eps=0.2, clip_eps_high=0.4, dual_clip=v["dual"])
    loss, metrics = policy_loss(
        new, old, advantages, mask, **bounds, kind=v["kind"], ratio=v["ratio"], weights=weights
    )
    assert_same(loss, mean_by_hand(losses, np.asarray(mask), how))
    assert_same(metrics["policy/clipfrac_avg"], bounded[mask].mean())
    rises = np.asarray(log_ratios(new, old, mask, of=v["ratio"])) > 0
    for name, there in (("high", bounded & rises), ("low", bounded & ~rises)):
        assert_same(metrics[f"policy/clipfrac_{name}_avg"], there[mask].mean())
    assert v["kind"] == "unclipped" or bounded.sum() > 3


def test_weights_are_of_the_whole_minibatch_so_shares_add_up():
    new, old, advantages, mask = update()
    weights, count = token_weights(mask, how="sequence_mean"), float(mask.sum())
    assert_same(token_weights(mask, how="token_mean"), np.where(mask, 1.0, 0.0))
    f = lambda rows: policy_loss(
        *(x[rows] for x in (new, old, advantages, mask)),
        clip_eps=0.2,
        weights=weights[rows],
        count=count,
    )[0]
    assert_same(f(slice(0, 7)) + f(slice(7, B)), f(slice(0, B)))


def gradient(new, *rest, **options):
    bounds = dict(clip_eps=0.2, clip_eps_high=0.4) | options
    return jax.grad(lambda new: policy_loss(new, *rest, **bounds)[0])(new)


def test_gradients_where_a_bound_decides():
    """Of the clip none, of CISPO that of the bounded weight; with a dual clip none beyond c."""
    row = lambda *x: jnp.asarray([x], float)
    old, mask = row(-1, -1, -1), jnp.ones((1, 3), bool)
    new, advantages = old + jnp.log(row(3.0, 3.0, 1.2)), row(1.0, -1.0, 1.0)
    given = (new, old, advantages, mask)
    assert_same(3 * gradient(*given), row(0, 3, -1.2))
    assert_same(3 * gradient(*given, dual_clip=2.0), row(0, 0, -1.2))
    assert_same(3 * gradient(*given, kind="unclipped"), row(-3, 3, -1.2))
    assert_same(3 * gradient(*given, kind="cispo"), row(-1.4, 1.4, -1.2))


def test_the_gradient_of_a_sequences_ratio_reaches_all_its_tokens():
    """s Â / |y| at each token, and nothing under the mask."""
    new, old, _, mask = update(spread=0.05)
    each = jnp.arange(1.0, B + 1)
    advantages = jnp.where(mask, each[:, None], jnp.nan)
    weights = token_weights(mask, how="sequence_mean")
    found = gradient(new, old, advantages, mask, ratio="sequence", weights=weights)
    lengths = np.asarray(mask.sum(axis=1, keepdims=True))
    s = np.exp(np.where(mask, new - old, 0).sum(axis=1, keepdims=True) / np.maximum(lengths, 1))
    rows = (lengths > 0).sum()
    assert_same(found, np.where(mask, -s * each[:, None] / np.maximum(lengths, 1) / rows, 0))


def test_a_long_answer_weighs_less_per_token_under_the_mean_of_means_alone():
    """GRPO's length bias: at one advantage, tokens of 2 and of 6 have 3 : 1; otherwise 1 : 1."""
    mask = jnp.asarray([[True] * 2 + [False] * 4, [True] * 6])
    zero, one = jnp.zeros((2, R)), jnp.ones((2, R))
    for how in AGGREGATIONS:
        at = gradient(zero, zero, one, mask, weights=token_weights(mask, how=how))
        assert_same(at[0, 0] / at[1, 0], np.float64(3 if how == "sequence_mean" else 1))


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("how", AGGREGATIONS)
def test_the_kl_in_the_loss(estimator, how):
    """β times the estimate, weighed as the policy loss is; its gradient at each token."""
    new, ref, _, mask = update()
    weights = token_weights(mask, how=how)
    f = lambda new: kl_loss(new, ref, jnp.full(B, 0.3), mask, estimator=estimator, weights=weights)
    (loss, metrics), found = jax.value_and_grad(f, has_aux=True)(new)
    gap = np.where(mask, new - ref, 0)
    kl, slope = {
        "k1": (gap, 1 + 0 * gap),
        "k2": (gap**2 / 2, gap),
        "k3": (np.exp(-gap) - 1 + gap, 1 - np.exp(-gap)),
    }[estimator]
    expected = mean_by_hand(kl, np.asarray(mask), how)
    assert_same(loss, 0.3 * expected)
    assert_same(metrics["loss/kl_avg"], expected)
    assert_same(found, 0.3 * np.where(mask, weights * slope, 0) / np.asarray(mask).sum())


def test_the_parts_of_the_loss_are_weighed_as_they_say():
    """Policy and KL by the batch's weights, values and entropy by the token."""
    new, old, advantages, mask = update()
    rng = np.random.default_rng(5)
    ref, values, returns, new_values, entropies = jnp.asarray(rng.normal(size=(5, B, R)))
    weights, beta = token_weights(mask, how="sequence_sum"), jnp.full(B, 0.3)
    ids = jnp.zeros((B, R), jnp.int32)
    tokens = (ids, mask, ids, mask)
    batch = PPOBatch(*tokens, old, ref, values, advantages, returns, weights, beta)
    options = dict(clip_eps=0.2, value_clip_eps=9.0, vf_coef=0.7, entropy_coef=0.1)
    loss, metrics = ppo_loss(new, new_values, entropies, batch, **options, kl_estimator="k2")
    policy, _ = policy_loss(new, old, advantages, mask, clip_eps=0.2, weights=weights)
    kl, _ = kl_loss(new, ref, beta, mask, estimator="k2", weights=weights)
    value = np.asarray(new_values - returns)[mask]
    expected = policy + kl + 0.35 * (value**2).mean() - 0.1 * np.asarray(entropies)[mask].mean()
    assert_same(loss, expected)
    assert_same(metrics["loss/policy_avg"], policy)
