"""Objectives against the functions of TRL 1.12.0, the last release with a PPO, and torch autograd.

Where TRL writes a formula inline in ``PPOTrainer.train`` (trl/experimental/ppo/ppo_trainer.py) it
is said again here in torch, with the line it stands on. Where TRL differs on purpose, a number pins
by how much.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.torch_bridge import DOUBLE, SINGLE, ragged, to_numpy, torch
from rlhf_jax.objectives.advantages import gae
from rlhf_jax.objectives.kl import kl_k1, kl_k3
from rlhf_jax.objectives.language_losses import lm_loss
from rlhf_jax.objectives.logprobs import entropy, scale_logits, token_logprobs
from rlhf_jax.objectives.masked import masked_mean, masked_var, whiten
from rlhf_jax.objectives.policy_losses import ppo_loss
from rlhf_jax.objectives.preference_losses import ranking_loss
from rlhf_jax.objectives.rewards import kl_penalised_rewards, penalise_missing_eos
from rlhf_jax.types import LMBatch, PPOBatch

pytest.importorskip("trl", reason="needs TRL 1.12.0: make test-torch")
from trl.experimental.ppo import ppo_trainer as trl_ppo
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

pytestmark = pytest.mark.torch

B, R, V, D = 6, 9, 31, 8
LENGTHS = (9, 1, 4, 7, 9, 2)
"""Real tokens of each response; those shorter than R end with EOS."""
MASK = ragged(LENGTHS, R)
BETA, GAMMA, LAM = 0.05, 0.97, 0.9
CLIP, VALUE_CLIP, VF = 0.2, 0.3, 0.5


class Episodes(NamedTuple):
    """What a rollout leaves, as NumPy arrays in float64; 1e3 under the mask."""

    scores: Any
    logprobs: Any
    ref_logprobs: Any
    values: Any


@pytest.fixture
def episodes():
    rng = np.random.default_rng(0)
    junk = lambda x: np.where(MASK, x, 1e3)
    logprobs = -rng.exponential(2.0, (B, R))
    return Episodes(
        scores=rng.normal(size=B),
        logprobs=junk(logprobs),
        ref_logprobs=junk(logprobs + 0.3 * rng.normal(size=(B, R))),
        values=junk(rng.normal(size=(B, R))),
    )


# --- TRL's inline formulas --------------------------------------------------------------------


def trl_rewards(logprobs, ref_logprobs, scores, end, *, estimator="k1"):
    """Lines 765-779: −β KL per token (0 where both are INVALID_LOGPROB), the score at ``end``."""
    invalid = trl_ppo.INVALID_LOGPROB
    mask = torch.tensor(MASK)
    logprobs, ref_logprobs = (
        torch.where(mask, x, torch.full_like(x, invalid)) for x in (logprobs, ref_logprobs)
    )
    logr = ref_logprobs - logprobs
    kl = -logr if estimator == "k1" else torch.exp(logr) - 1 - logr
    rewards = -BETA * kl
    rewards[torch.arange(B), end] += scores
    return rewards


def trl_gae(rewards, values):
    """Lines 787-796: over all columns; padding must hold zeros."""
    advantages, later = torch.zeros_like(rewards), 0.0
    for t in range(R - 1, -1, -1):
        next_value = values[:, t + 1] if t + 1 < R else 0.0
        later = rewards[:, t] + GAMMA * next_value - values[:, t] + GAMMA * LAM * later
        advantages[:, t] = later
    return advantages, advantages + values


def trl_losses(new_logprobs, new_values, logprobs, values, advantages, returns, mask, mask_p1):
    """Lines 824-847: the policy loss over ``mask``, the value loss over ``mask_p1``."""
    invalid = torch.full_like(logprobs, trl_ppo.INVALID_LOGPROB)
    new_logprobs = torch.where(mask, new_logprobs, invalid)
    logprobs = torch.where(mask, logprobs, invalid)
    new_values = torch.where(mask_p1, new_values, torch.zeros_like(new_values))
    near = torch.clamp(new_values, values - VALUE_CLIP, values + VALUE_CLIP)
    errors = torch.max((new_values - returns) ** 2, (near - returns) ** 2)
    value = 0.5 * trl_ppo.masked_mean(errors, mask_p1)
    ratio = torch.exp(new_logprobs - logprobs)
    clipped = -advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
    policy = trl_ppo.masked_mean(torch.max(-advantages * ratio, clipped), mask)
    return policy, value, ratio


# --- Values -----------------------------------------------------------------------------------


def test_masked_statistics(precision, episodes):
    x, mask = np.where(MASK, episodes.values, 0), torch.tensor(MASK)
    ours, theirs = (precision.jax(x), jnp.asarray(MASK)), (precision.torch(x), mask)
    precision.agree("masked mean", masked_mean(*ours), trl_ppo.masked_mean(*theirs))
    biased = trl_ppo.masked_var(*theirs, unbiased=False)
    precision.agree("masked variance", masked_var(*ours), biased)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_trls_but_for_the_biased_variance(precision, episodes, shift_mean):
    """TRL divides by n − 1 (line 259): its result is √((n − 1)/n) of ours about the mean."""
    n = MASK.sum()
    x = np.where(MASK, episodes.values, 0)
    # A boolean mask would make TRL's n / (n − 1) a float32, whatever the values are.
    mask = precision.torch(1.0 * MASK)
    theirs = trl_ppo.masked_whiten(precision.torch(x), mask, shift_mean=shift_mean)
    mean = 0.0 if shift_mean else x[MASK].mean()
    # ε = 1e-8 beside the variance is not scaled: that is the last factor.
    variance = x[MASK].var()
    factor = np.sqrt((variance * n / (n - 1) + 1e-8) / (variance + 1e-8))
    expected = np.where(MASK, (theirs.numpy() - mean) * factor + mean, 0)
    ours = whiten(precision.jax(x), jnp.asarray(MASK), shift_mean=shift_mean)
    precision.agree("whitening (variance made biased)", ours, expected)
    pinned = np.abs(to_real(ours) - mean).max() / np.abs(theirs.numpy()[MASK] - mean).max()
    assert pinned == pytest.approx(np.sqrt(32 / 31), rel=1e-6)


def to_real(x):
    return np.asarray(x)[MASK]


def test_logprobs_and_entropy(precision):
    rng = np.random.default_rng(1)
    logits, tokens = 2 * rng.normal(size=(B, R, V)), rng.integers(0, V, (B, R))
    ours = scale_logits(precision.jax(logits), 0.7)
    theirs = precision.torch(logits) / 0.7
    expected = selective_log_softmax(theirs, precision.torch(tokens))
    precision.agree("log-probs", token_logprobs(ours, jnp.asarray(tokens)), expected)
    precision.agree("entropy", entropy(ours), entropy_from_logits(theirs))


def test_temperature_has_no_epsilon():
    """TRL divides by T + 1e-7 (lines 713, 822): 1.4e-6 nats for a logit of 7 at T = 0.7."""
    logits, token = np.array([[0.0, 7.0]]), np.array([0])
    with jax.enable_x64(True):
        ours = float(token_logprobs(scale_logits(jnp.asarray(logits), 0.7), jnp.asarray(token))[0])
    theirs = selective_log_softmax(torch.tensor(logits) / (0.7 + 1e-7), torch.tensor(token))
    assert float(theirs[0]) - ours == pytest.approx(7 / 0.7**2 * 1e-7, rel=1e-3)


def test_rewards_of_responses_that_never_ended(precision, episodes):
    """Where there is no slot after the last token, TRL's score lies where ours does."""
    e = episodes
    ours = kl_penalised_rewards(*map(precision.jax, e[:3]), jnp.asarray(MASK), kl_coef=BETA)
    last = torch.tensor(LENGTHS) - 1
    theirs = trl_rewards(*map(precision.torch, (e.logprobs, e.ref_logprobs, e.scores)), last)
    precision.agree("rewards (score at the last token)", ours, theirs)
    # TRL's own slot: the one after EOS, a padding token, where there is one (line 778).
    slot = torch.tensor([n if n < R else n - 1 for n in LENGTHS])
    theirs = trl_rewards(*map(precision.torch, (e.logprobs, e.ref_logprobs, e.scores)), slot)
    moved = ~np.isclose(to_numpy(theirs), to_numpy(ours)).all(axis=1)
    assert moved.tolist() == [n < R for n in LENGTHS]


def test_gae_and_returns(precision, episodes):
    rng = np.random.default_rng(2)
    rewards = np.where(MASK, rng.normal(size=(B, R)), 0)
    values = np.where(MASK, episodes.values, 0)
    theirs = trl_gae(precision.torch(rewards), precision.torch(values))
    theirs = [torch.where(torch.tensor(MASK), x, 0.0) for x in theirs]
    junk = lambda x: precision.jax(np.where(MASK, x, 1e6))
    ours = gae(junk(rewards), junk(values), jnp.asarray(MASK), gamma=GAMMA, lam=LAM)
    precision.agree("advantages (GAE)", ours[0], theirs[0])
    precision.agree("returns", ours[1], theirs[1])


def test_trls_score_position_costs_one_lambda():
    """Score 1 at the last of 3 tokens, V = 0, no KL. TRL pays it on the slot after EOS (line 778)
    and lets GAE pass through that slot: every advantage is γλ of ours."""
    mask = jnp.asarray([[True, True, True, False]])
    zero, score = jnp.zeros((1, 4)), jnp.ones(1)
    rewards = kl_penalised_rewards(score, zero, zero, mask, kl_coef=0.0)
    ours, _ = gae(rewards, zero, mask, gamma=1.0, lam=0.95)
    np.testing.assert_allclose(ours[0], [0.9025, 0.95, 1.0, 0.0], rtol=1e-6)
    theirs, later = [], 0.0
    for reward in [1.0, 0.0, 0.0, 0.0]:  # from the slot after EOS backwards
        later = reward + 0.95 * later
        theirs.insert(0, later)
    np.testing.assert_allclose(theirs[:3], [0.857375, 0.9025, 0.95], rtol=1e-6)
    np.testing.assert_allclose(theirs[:3], 0.95 * ours[0, :3], rtol=1e-6)


def test_missing_eos_is_replaced_where_trl_subtracts():
    """Score 0.5 without EOS, penalty 1: TRL's score is 0.5 − 1 (line 759), Ziegler's is −1."""
    responses, mask = (
        jnp.asarray([[5, 6, 7], [5, 0, 9]]),
        jnp.asarray([[True] * 3, [True] * 2 + [False]]),
    )
    scores = jnp.asarray([0.5, 0.25])
    ours = penalise_missing_eos(scores, responses, mask, end_ids=(0,), penalty=-1.0)
    ended = (torch.tensor(np.asarray(responses)) == 0).any(dim=-1)
    theirs = torch.tensor([0.5, 0.25])
    theirs[~ended] -= 1.0
    assert ours.tolist() == [-1.0, 0.25] and theirs.tolist() == [-0.5, 0.25]


def test_kl_estimators(precision, episodes):
    logprobs, reference = to_real(episodes.logprobs), to_real(episodes.ref_logprobs)
    ours = [f(precision.jax(logprobs), precision.jax(reference)) for f in (kl_k1, kl_k3)]
    logr = precision.torch(reference) - precision.torch(logprobs)
    precision.agree("k1", ours[0], -logr)
    precision.agree("k3", ours[1], torch.expm1(logr) - logr)


def test_k3_by_expm1_keeps_digits_that_trl_loses():
    """(exp(x) − 1) − x (line 774) in float32 at x = 1e-3: 4.7 % off; ours 0.03 %."""
    exact = np.expm1(1e-3) - 1e-3
    logr = torch.tensor(1e-3)
    theirs = float((logr.exp() - 1) - logr) / exact - 1
    ours = float(kl_k3(jnp.float32(0.0), jnp.float32(1e-3))) / exact - 1
    assert abs(ours) < 1e-3
    assert abs(theirs) == pytest.approx(0.047, abs=1e-3)


# --- Losses of logits and scores, with their gradients ----------------------------------------


def test_lm_loss_of_logits(precision):
    """torch's cross-entropy, −100 off the targets; the column before predicts a target."""
    rng = np.random.default_rng(4)
    logits, tokens = 3 * rng.normal(size=(B, R, V)), rng.integers(0, V, (B, R))
    targets = MASK & (np.arange(R) > 0)
    whole = jnp.ones((B, R), jnp.int32)
    batch = LMBatch(jnp.asarray(tokens), jnp.asarray(targets), whole, whole)
    loss, grad = jax.value_and_grad(lambda x: lm_loss(x, batch)[0])(precision.jax(logits))
    theirs = precision.torch(logits, grad=True)
    labels = torch.tensor(np.where(targets, tokens, -100))[:, 1:]
    expected = torch.nn.functional.cross_entropy(theirs[:, :-1].transpose(1, 2), labels)
    expected.backward()
    precision.agree("LM loss (logits)", loss, expected)
    precision.agree("gradient of the LM loss (logits)", grad, theirs.grad)


@pytest.mark.parametrize("K", [2, 4, 9])
def test_ranking_loss_of_scores(precision, K):
    """With ties, absent responses, and margins up to 60."""
    rng = np.random.default_rng(K)
    scores, ranks = 20 * rng.normal(size=(B, K)), rng.integers(-1, K, (B, K))
    ranks[0, :2], ranks[1] = (0, 1), 1
    loss, grad = jax.value_and_grad(lambda x: ranking_loss(x, jnp.asarray(ranks))[0])(
        precision.jax(scores)
    )
    theirs = precision.torch(scores, grad=True)
    prompts = []
    for score, rank in zip(theirs, ranks.tolist(), strict=True):
        pairs = [(i, j) for i in range(K) for j in range(K) if 0 <= rank[i] < rank[j]]
        losses = [-torch.nn.functional.logsigmoid(score[i] - score[j]) for i, j in pairs]
        prompts += [torch.stack(losses).mean()] if losses else []
    expected = torch.stack(prompts).mean()
    expected.backward()
    assert 0 < len(prompts) < B
    precision.agree("ranking loss (scores)", loss, expected)
    precision.agree("gradient of the ranking loss (scores)", grad, theirs.grad)


# --- PPO's loss, to the gradients of a small model's parameters -------------------------------


def small_model(xp, params, tokens):
    """Bigram model with a hidden layer: log-probs' logits and a value per token."""
    hidden = xp.tanh(params["embedding"][tokens])
    return hidden @ params["unembedding"], hidden @ params["value"]


@pytest.fixture
def update():
    """Parameters, tokens, and old quantities near the new ones so that both clips act on some."""
    rng = np.random.default_rng(3)
    params = {
        "embedding": rng.normal(size=(V, D)),
        "unembedding": rng.normal(size=(D, V)),
        "value": rng.normal(size=D),
    }
    inputs, responses = rng.integers(0, V, (2, B, R))
    logits, values = small_model(np, params, inputs)
    logprobs = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    logprobs = np.take_along_axis(logprobs, responses[..., None], -1)[..., 0]
    old = dict(
        logprobs=logprobs + 0.3 * rng.normal(size=(B, R)),
        values=values + 0.4 * rng.normal(size=(B, R)),
        advantages=rng.normal(size=(B, R)),
        returns=values + rng.normal(size=(B, R)),
    )
    return params, inputs, responses, old


def our_losses(precision, update):
    params, inputs, responses, old = update
    junk = lambda x: precision.jax(np.where(MASK, x, 1e4))
    nothing = jnp.zeros((B, 1), jnp.int32)
    batch = PPOBatch(
        nothing,
        nothing > 0,
        jnp.asarray(responses),
        jnp.asarray(MASK),
        *map(junk, (old[n] for n in ("logprobs", "logprobs", "values", "advantages", "returns"))),
    )

    def loss(params):
        logits, values = small_model(jnp, params, jnp.asarray(inputs))
        clips = dict(clip_eps=CLIP, value_clip_eps=VALUE_CLIP, vf_coef=VF, entropy_coef=0.0)
        logprobs = token_logprobs(logits, batch.responses)
        return ppo_loss(logprobs, values, entropy(logits), batch, **clips)

    params = jax.tree.map(precision.jax, params)
    (total, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return total, metrics, grads


def their_losses(precision, update, mask_p1):
    params, inputs, responses, old = update
    params = {name: precision.torch(x, grad=True) for name, x in params.items()}
    logits, values = small_model(torch, params, torch.tensor(inputs))
    new_logprobs = selective_log_softmax(logits, torch.tensor(responses))
    old = {name: precision.torch(np.where(MASK, x, 0)) for name, x in old.items()}
    policy, value, ratio = trl_losses(
        new_logprobs, values, **old, mask=torch.tensor(MASK), mask_p1=torch.tensor(mask_p1)
    )
    total = policy + VF * value
    total.backward()
    policy, value, ratio = policy.detach(), value.detach(), ratio.detach()
    return total, policy, value, ratio, {name: p.grad for name, p in params.items()}


def test_ppo_loss_and_gradients(precision, update):
    total, metrics, grads = our_losses(precision, update)
    expected, policy, value, _, expected_grads = their_losses(precision, update, MASK)
    precision.agree("PPO loss", total, expected)
    precision.agree("PPO policy loss", metrics["loss/policy_avg"], policy)
    precision.agree("PPO value loss", metrics["loss/value_avg"], value)
    precision.agree("gradient of the PPO loss (small model)", grads, expected_grads)
    assert 0.2 < metrics["policy/clipfrac_avg"] < 0.8 and 0.1 < metrics["val/clipfrac_avg"] < 0.8


def test_trl_averages_over_padding(update):
    """INVALID_LOGPROB = 1 makes the ratio at padding exactly 1, and TRL's approxkl and ratio are
    plain means over padding too (lines 857, 868): 54 entries here of which 32 are real."""
    _, metrics, _ = our_losses(SINGLE, update)
    *_, ratio, _ = their_losses(SINGLE, update, MASK)
    assert (ratio[torch.tensor(~MASK)] == 1).all()
    real = MASK.mean()
    assert real == 32 / 54
    kl = float(0.5 * (torch.log(ratio) ** 2).mean())
    assert kl == pytest.approx(real * float(metrics["policy/approxkl_avg"]), rel=1e-5)
    mean = real * float(metrics["val/ratio"]) + (1 - real)
    assert float(ratio.mean()) == pytest.approx(mean, rel=1e-5)


def test_trls_value_loss_counts_one_slot_after_eos(update):
    """``padding_mask_p1`` (line 768): 4 of 6 responses ended, so its mean is over 36 tokens."""
    one_more = ragged([n + 1 for n in LENGTHS], R)
    assert one_more.sum() == MASK.sum() + 4 == 36
    params, inputs, responses, old = update
    at_padding = small_model(np, params, inputs)[1]
    old = old | {name: np.where(MASK, old[name], at_padding) for name in ("values", "returns")}
    *_, value, _, _ = their_losses(DOUBLE, (params, inputs, responses, old), MASK)
    *_, value_p1, _, _ = their_losses(DOUBLE, (params, inputs, responses, old), one_more)
    extra = 36 / 32 * float(value_p1) - float(value)
    # At the extra slots TRL has V_old = 0 (masked) and V_new as it comes.
    slots = one_more & ~MASK
    expected = 0.5 * (at_padding[slots] ** 2).sum() / 32
    assert extra == pytest.approx(expected, rel=1e-6)
