"""The objectives against slow references, identities, invariances, and the classical bugs.

Numbers in docstrings are those of the classical RLHF bugs in planted_bugs.py.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from precision import SAME, float32_bound

from rlhf_jax.types import LMBatch, PPOBatch


class OnDevice:
    """A module whose functions take NumPy arrays: the checked signatures want JAX's."""

    def __init__(self, name):
        self._module = importlib.import_module(f"rlhf_jax.objectives.{name}")

    def __getattr__(self, name):
        function = getattr(self._module, name)
        move = lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x
        return lambda *args, **kwargs: function(
            *jax.tree.map(move, args), **jax.tree.map(move, kwargs)
        )


advantages, kl, language_losses, logprobs, masked = map(
    OnDevice, ("advantages", "kl", "language_losses", "logprobs", "masked")
)
policy_losses, preference_losses, rewards = map(
    OnDevice, ("policy_losses", "preference_losses", "rewards")
)

pytestmark = pytest.mark.usefixtures("module_in_float64")
B, R, V = 5, 7, 11
GAMMA_LAM = [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)]


def ragged(rng, *, interior=False):
    lengths = rng.integers(1, R + 1, B)
    mask = np.arange(R)[None] < lengths[:, None]
    return mask & (rng.random((B, R)) > 0.3) if interior else mask


def draw(seed, n=1):
    rng = np.random.default_rng(seed)
    return rng, [rng.normal(size=(B, R)) for _ in range(n)]


def close(actual, expected, tolerance=SAME):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gamma,lam", GAMMA_LAM)
@pytest.mark.parametrize("interior", [False, True])
def test_gae_reference(gamma, lam, interior):
    """Also bug 11: masked positions inside a row are no steps."""
    rng, (r, v) = draw(0, 2)
    mask = ragged(rng, interior=interior)
    mask[0] = False
    actual = advantages.gae(r, v, mask, gamma=gamma, lam=lam)
    for got, expected in zip(actual, reference.gae(r, v, mask, gamma, lam), strict=True):
        close(got, expected)


def test_gae_ignores_what_is_behind_the_mask():
    """Bugs 9, 10, 39: no bootstrapping from masked values; NaN there reaches no gradient."""
    rng, (r, v) = draw(1, 2)
    mask = ragged(rng)
    f = lambda r, v: advantages.gae(r, v, mask, gamma=1.0, lam=0.95)
    clean = f(r, v)
    for junk in (1e6, np.nan):
        dirty = np.where(mask, r, junk), np.where(mask, v, junk)
        for a, b in zip(f(*dirty), clean, strict=True):
            np.testing.assert_array_equal(a, b)
        grads = jax.grad(lambda r, v: f(r, v)[0].sum(), argnums=(0, 1))(*map(jnp.asarray, dirty))
        assert all(np.isfinite(g).all() for g in grads)


def test_returns_are_advantages_plus_values():
    """Bug 12, and λ = 1: advantage = reward to go − V."""
    rng, (r, v) = draw(2, 2)
    mask = ragged(rng)
    a, returns = advantages.gae(r, v, mask, gamma=1.0, lam=1.0)
    close(np.where(mask, a + v, 0), returns)
    to_go = np.cumsum((r * mask)[:, ::-1], axis=1)[:, ::-1]
    close(returns, np.where(mask, to_go, 0))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_reference(shift_mean):
    """Bug 13: biased variance, over real tokens only, finite for a single token."""
    rng, (x,) = draw(3)
    mask = ragged(rng)
    junk = np.where(mask, x, np.nan)
    close(masked.whiten(junk, mask, shift_mean=shift_mean), reference.whiten(x, mask, shift_mean))
    single = np.zeros((B, R), bool)
    single[1, 2] = True
    expected = 0.0 if shift_mean else x[1, 2]
    close(masked.whiten(x, single, shift_mean=shift_mean)[1, 2], expected)
    gradient = jax.grad(lambda x: masked.whiten(x, mask, shift_mean=shift_mean)[0, 0])(junk)
    assert np.isfinite(gradient).all()


def test_last_index_never_wraps():
    """Bug 6: an empty row gives 0, not −1."""
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    assert masked.last_index(mask).tolist() == [1, 0, 2, 1]


def test_logprobs_and_entropy():
    rng = np.random.default_rng(4)
    logits = 5 * rng.normal(size=(B, R, V))
    tokens = rng.integers(0, V, (B, R)).astype(np.int32)
    close(logprobs.token_logprobs(logits, tokens), reference.logprobs(logits, tokens))
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    close(logprobs.entropy(logits), -(probs * np.log(probs)).sum(-1))
    filtered = np.where(logits >= np.median(logits, axis=-1, keepdims=True), logits, -np.inf)
    assert np.isfinite(logprobs.entropy(filtered)).all()
    # Bug 15: the temperature divides.
    close(
        logprobs.token_logprobs(logprobs.scale_logits(logits, 0.7), tokens),
        reference.logprobs(logits / 0.7, tokens),
    )


def test_half_precision_logits_are_widened():
    """Bug 34."""
    logits = (8 * np.random.default_rng(5).normal(size=(64, 50))).astype(jnp.bfloat16)
    tokens = np.zeros(64, np.int32)
    exact = reference.logprobs(np.asarray(logits, float), tokens)
    got = logprobs.token_logprobs(jnp.asarray(logits), tokens)
    assert got.dtype == jnp.float32
    close(got, exact, float32_bound(50 + 4))  # log Σ exp of 50 entries, and four more operations


def test_kl_rewards_reference():
    """Bugs 5, 6, 7, 9: the score on the last real token, nothing on pads, fractions survive."""
    rng, (logp, ref) = draw(6, 2)
    mask = ragged(rng)
    mask[2] = False
    scores = np.full(B, 0.7)
    dirty = np.where(mask, logp, np.nan)
    got = rewards.kl_penalised_rewards(scores, dirty, ref, mask, kl_coef=0.3)
    close(got, reference.kl_rewards(scores, logp, ref, mask, 0.3))
    total = np.where(mask.any(1), scores, 0) - 0.3 * ((logp - ref) * mask).sum(1)
    close(got.sum(axis=1), total)
    same = rewards.kl_penalised_rewards(scores, logp, logp, mask, kl_coef=0.3)
    close(same.sum(axis=1), np.where(mask.any(1), 0.7, 0))


def test_reward_sign_of_kl():
    """Bug 18: a policy surer than the reference of its own tokens is charged."""
    logp, ref = np.full((1, 3), -0.1), np.full((1, 3), -2.0)
    mask = np.ones((1, 3), bool)
    got = rewards.kl_penalised_rewards(np.ones(1), logp, ref, mask, kl_coef=0.1)
    assert got.sum() < 1


def test_missing_eos_is_replaced_not_added():
    """Bug 8: and only an EOS among the real tokens counts."""
    responses = np.array([[3, 9, 0], [3, 4, 5], [3, 4, 9]], np.int32)
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 0]], bool)
    scores = np.array([2.0, 2.0, 2.0])
    got = rewards.penalise_missing_eos(scores, responses, mask, end_ids=(9,), penalty=-1.0)
    assert got.tolist() == [2.0, -1.0, -1.0]
    got = rewards.penalise_missing_eos(scores, responses, mask, end_ids=(9, 5), penalty=-1.0)
    assert got.tolist() == [2.0, 2.0, -1.0]


def test_two_rewards_as_one():
    scores, second = np.array([1.0, -2.0]), np.array([0.5, 4.0])
    close(rewards.mix_scores(scores, second, weight=0.0), scores)
    close(rewards.mix_scores(scores, second, weight=3.0), (scores + 3 * second) / 4)
    # Two copies of one reward are that reward, whatever the weight: β keeps its meaning.
    close(rewards.mix_scores(scores, scores, weight=0.7), scores)


def test_a_constraint_that_is_broken_becomes_dearer():
    """λ is the maximiser's multiplier: up while E[h] < floor, down above, never to 0 or below."""
    at = lambda h: rewards.update_multiplier(jnp.float64(0.5), jnp.float64(h), floor=1.0, lr=0.2)
    weight = lambda h: float(at(h))
    close(weight(1.0), 0.5)
    close(weight(0.0), 0.5 * np.exp(0.2))
    close(weight(3.0), 0.5 * np.exp(-0.4))
    assert 0 < weight(100.0) < 1e-6


def test_kl_estimators_by_enumeration():
    """Bugs 18, 20: E[k1] = E[k3] = KL; as losses k2 and k3 have the gradients they should."""
    rng = np.random.default_rng(7)
    z, z_ref = (jnp.asarray(rng.normal(size=7)) for _ in range(2))
    p, q = jax.nn.log_softmax(z), jax.nn.log_softmax(z_ref)
    exact = kl.exact_kl(z, z_ref)
    for estimator in (kl.kl_k1, kl.kl_k3):
        close((jnp.exp(p) * estimator(p, q)).sum(), exact)

    def as_loss(estimator):
        frozen = jnp.exp(p)  # tokens were sampled before the gradient is taken
        return jax.grad(lambda z: (frozen * estimator(jax.nn.log_softmax(z), q)).sum())(z)

    close(as_loss(kl.kl_k1), np.zeros(7))
    close(as_loss(kl.kl_k2), jax.grad(lambda z: kl.exact_kl(z, z_ref))(z))
    close(as_loss(kl.kl_k3), jax.grad(lambda z: kl.exact_kl(z_ref, z))(z))


def test_k3_keeps_its_digits():
    """Of float32: four roundings of numbers around x, where exp(x) − 1 − x has some of 1."""
    x = 1e-4
    found = float(kl.kl_k3(jnp.float32(x), jnp.float32(0.0)))
    assert found == pytest.approx(x**2 / 2, abs=float32_bound(4, x))


def test_kl_controller():
    """Bug 19 is about its input; here: the direction, and never more than ±20 %."""
    step = lambda value: float(
        kl.update_kl_coef(
            jnp.float64(0.1), jnp.float64(value), target=6.0, horizon=100.0, batch_size=50
        )
    )
    close(step(6.0), 0.1)
    close(step(6.6), 0.1 * 1.05)
    close(step(60.0), 0.1 * 1.1)
    close(step(0.0), 0.1 * 0.9)


def make_batch(seed):
    rng, (logp, v, adv, ret, new_logp, new_v) = draw(seed, 6)
    mask = ragged(rng)
    zeros = np.zeros((B, R), np.int32)
    return PPOBatch(zeros, mask, zeros, mask, logp, logp, v, adv, ret), logp + 0.3 * new_logp, new_v


CLIP = dict(clip_eps=0.2, value_clip_eps=0.4, vf_coef=0.7, entropy_coef=0.0)


def test_ppo_reference():
    """Bugs 24, 25, 26: max not min, clip of the ratio, clipfrac counts what the clip decides."""
    b, new_logp, new_v = make_batch(8)
    loss, metrics = policy_losses.ppo_loss(new_logp, new_v, -new_logp, b, **CLIP)
    policy, value, clipfrac = reference.ppo(
        new_logp, b.logprobs, b.advantages, new_v, b.values, b.returns, b.mask, 0.2, 0.4
    )
    close(loss, policy + 0.7 * value)
    close(metrics["loss/policy_avg"], policy)
    close(metrics["loss/value_avg"], value)
    close(metrics["policy/clipfrac_avg"], clipfrac)


def test_the_entropy_bonus_is_its_coefficient_times_the_mean_entropy():
    """And at 0 the entropy is measured, without a gradient."""
    b, new_logp, new_v = make_batch(8)
    rng = np.random.default_rng(0)
    entropies = np.where(b.mask, rng.uniform(size=b.mask.shape), np.nan)
    f = lambda coef: jax.value_and_grad(
        lambda h: policy_losses.ppo_loss(new_logp, new_v, h, b, **CLIP | {"entropy_coef": coef}),
        has_aux=True,
    )(jnp.asarray(entropies))
    (loss, metrics), gradient = f(0.3)
    (without, same), none = f(0.0)
    mean = entropies[b.mask].mean()
    close(loss, without - 0.3 * mean)
    close(metrics["policy/entropy_avg"], mean)
    close(same["policy/entropy_avg"], mean)
    close(gradient, np.where(b.mask, -0.3 / b.mask.sum(), 0))
    assert (none == 0).all()


def test_ppo_at_the_first_minibatch_is_the_policy_gradient():
    """ratio = 1, clipfrac = 0, approxkl = 0, and ∇L = −mean Â ∇log π."""
    b, _, new_v = make_batch(9)
    f = lambda lp: policy_losses.ppo_loss(lp, new_v, -lp, b, **CLIP)
    _, metrics = f(b.logprobs)
    assert metrics["val/ratio"] == 1 and metrics["val/ratio_var"] == 0
    assert metrics["policy/clipfrac_avg"] == 0 and metrics["policy/approxkl_avg"] == 0
    gradient = jax.grad(lambda lp: f(lp)[0])(jnp.asarray(b.logprobs))
    close(gradient, np.where(b.mask, -b.advantages, 0) / b.mask.sum())


def test_negative_advantage_keeps_its_gradient():
    """Bug 25: Â < 0 and ratio 1.5 is not clipped; Â > 0 and ratio 1.5 is."""
    one = np.ones((1, 1))
    for advantage, expected in ((-1.0, 1.5), (1.0, 0.0)):
        gradient = jax.grad(
            lambda lp, a=advantage: policy_losses.policy_loss(
                lp, 0 * one, a * one, one.astype(bool), clip_eps=0.2
            )[0]
        )(jnp.log(1.5) * one)
        close(gradient, expected)


def test_nothing_under_the_mask_reaches_ppo():
    """Bugs 9, 27, 28, 39: NaN under the mask, and ten more columns of padding, change nothing."""
    b, new_logp, new_v = make_batch(10)
    f = lambda lp, v, b: policy_losses.ppo_loss(lp, v, -lp, b, **CLIP)
    clean = f(new_logp, new_v, b)
    junk = lambda x: np.where(b.mask, x, np.nan)
    dirty = b._replace(
        **{n: junk(getattr(b, n)) for n in ("logprobs", "values", "advantages", "returns")}
    )
    jax.tree.map(np.testing.assert_array_equal, f(junk(new_logp), junk(new_v), dirty), clean)
    gradient = jax.grad(lambda x: f(x, x, dirty)[0])(jnp.asarray(junk(new_logp)))
    assert np.isfinite(gradient).all()
    pad = lambda x: np.pad(x, [(0, 0), (0, 10)])
    padded = jax.tree.map(pad, b)
    jax.tree.map(close, f(pad(new_logp), pad(new_v), padded), clean)


def test_shares_add_up():
    """Bug 29: with the global count, parts of unequal length sum to the whole, gradients too."""
    b, new_logp, new_v = make_batch(11)
    count = float(b.mask.sum())
    args = CLIP | dict(entropy_coef=0.3, count=count)
    f = lambda lp, b, v: policy_losses.ppo_loss(lp, v, -lp, b, **args)
    whole = jax.value_and_grad(f, has_aux=True)(jnp.asarray(new_logp), b, new_v)
    rows = [slice(0, 2), slice(2, 5)]
    take = lambda s: (jnp.asarray(new_logp[s]), jax.tree.map(lambda x: x[s], b), new_v[s])
    parts = [jax.value_and_grad(f, has_aux=True)(*take(s)) for s in rows]
    close(parts[0][0][0] + parts[1][0][0], whole[0][0])
    jax.tree.map(lambda x, y, z: close(x + y, z), parts[0][0][1], parts[1][0][1], whole[0][1])
    close(np.concatenate([parts[0][1], parts[1][1]]), whole[1])


def test_ranking_reference():
    """Bug 31: ties and absent responses are dropped, every prompt weighs the same."""
    rng = np.random.default_rng(12)
    scores = rng.normal(size=(6, 5))
    ranks = rng.integers(0, 3, (6, 5)).astype(np.int32)
    ranks[1] = [0, 1, -1, -1, -1]
    ranks[2] = 1  # all tied: no pair
    ranks[3] = -1
    scores[3] = np.nan
    loss, _ = preference_losses.ranking_loss(scores, ranks)
    close(loss, reference.ranking(scores, ranks))
    gradient = jax.grad(lambda s: preference_losses.ranking_loss(s, ranks)[0])(jnp.asarray(scores))
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[2:4] == 0).all()
    assert preference_losses.count_ranked(ranks) == 4


def test_ranking_identities():
    scores = jnp.array([[0.3, -0.2]])
    order, reverse = jnp.array([[0, 1]]), jnp.array([[1, 0]])
    gradient = lambda r: jax.grad(lambda s: preference_losses.ranking_loss(s, r)[0])(scores)
    close(gradient(order)[0, 0], -jax.nn.sigmoid(-0.5))
    close(gradient(reverse)[0, 0], jax.nn.sigmoid(0.5))
    shifted = preference_losses.ranking_loss(scores + 100, order)[0]
    close(shifted, preference_losses.ranking_loss(scores, order)[0])
    tied = preference_losses.ranking_loss(jnp.zeros((1, 2)), order)
    close(tied[0], np.log(2))
    assert tied[1]["accuracy"] == 0  # a predicted tie is wrong


def test_ranking_does_not_overflow():
    """Bug 30: log σ of a huge margin."""
    loss = lambda s: preference_losses.ranking_loss(s, jnp.array([[0, 1]]))[0]
    close(loss(jnp.array([[-500.0, 500.0]])), 1000.0)
    close(jax.grad(loss)(jnp.array([[-500.0, 500.0]])), [[-1.0, 1.0]])


def test_ranking_shares_add_up():
    rng = np.random.default_rng(13)
    scores = rng.normal(size=(4, 3))
    ranks = np.array([[0, 1, 2], [0, 0, 0], [0, 1, -1], [1, 0, 0]], np.int32)
    count = preference_losses.count_ranked(ranks)
    parts = [
        preference_losses.ranking_loss(scores[s], ranks[s], count=count)[0]
        for s in (slice(0, 1), slice(1, 4))
    ]
    close(sum(parts), preference_losses.ranking_loss(scores, ranks)[0])


def lm_batch(rng):
    tokens = rng.integers(0, V, (B, R)).astype(np.int32)
    segments = np.sort(rng.integers(1, 3, (B, R)), axis=1).astype(np.int32)
    first = np.diff(segments, axis=1, prepend=0) != 0
    return LMBatch(tokens, ~first & (rng.random((B, R)) > 0.2), segments, np.zeros_like(tokens))


def test_lm_loss_reference():
    """Bug 3: logits at t − 1 predict token t."""
    rng = np.random.default_rng(14)
    batch = lm_batch(rng)
    logits = rng.normal(size=(B, R, V))
    loss, _ = language_losses.lm_loss(logits, batch)
    shifted = reference.logprobs(logits[:, :-1], batch.tokens[:, 1:])
    mask = batch.loss_mask[:, 1:]
    close(loss, -shifted[mask].mean())
    assert language_losses.count_targets(batch) == mask.sum()


def test_lm_loss_of_a_model_that_knows_the_next_token():
    """Bug 3 again: nearly 0 for the right shift, large for any other."""
    batch = lm_batch(np.random.default_rng(15))
    follows = np.roll(batch.tokens, -1, axis=1)
    oracle = 30 * jax.nn.one_hot(follows, V)
    assert language_losses.lm_loss(oracle, batch)[0] < 1e-4
    assert language_losses.lm_loss(30 * jax.nn.one_hot(batch.tokens, V), batch)[0] > 1


def test_empty_batches_are_zero():
    batch = lm_batch(np.random.default_rng(16))._replace(loss_mask=np.zeros((B, R), bool))
    logits = jnp.zeros((B, R, V))
    value, gradient = jax.value_and_grad(lambda z: language_losses.lm_loss(z, batch)[0])(logits)
    assert value == 0 and (gradient == 0).all()
