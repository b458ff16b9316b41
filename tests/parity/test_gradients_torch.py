"""Losses and parameter gradients of whole models: our GPT-2 against transformers' and autograd.

The weights are made by transformers, saved by it and read by ``load_pretrained``.
"""

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.torch_bridge import (
    PAD,
    SINGLE,
    VOCAB,
    by_torch_name,
    hf,
    make_gpt2,
    masked_inputs,
    ragged,
    torch,
    torch_gradients,
)
from rlhf_jax.interop.huggingface import load_pretrained
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.objectives.policy_losses import ppo_loss
from rlhf_jax.objectives.preference_losses import count_ranked, dpo_loss, ranking_loss
from rlhf_jax.training.policy_optimization import make_ppo_loss
from rlhf_jax.training.preference_optimization import sequence_logprobs
from rlhf_jax.training.updates import accumulated_gradients
from rlhf_jax.types import ComparisonBatch, LMBatch, PPOBatch

pytest.importorskip("trl", reason="needs TRL 1.12.0: make test-torch")
from trl import RewardTrainer
from trl.experimental.ppo import ppo_trainer as trl_ppo
from trl.experimental.utils import get_reward

pytestmark = [
    pytest.mark.torch,
    # TRL uses old names of transformers 5.
    pytest.mark.filterwarnings("ignore:`.*is deprecated:FutureWarning"),
]

KEY = jax.random.key(0)


class Pair(NamedTuple):
    theirs: Any
    model: Any
    """ModelConfig."""
    params: Any


def load(folder, kind, seed, **more):
    theirs = make_gpt2(kind, folder, seed=seed, **more)
    imported = load_pretrained(folder)
    return Pair(theirs, imported.model, imported.params)


def at(precision, *pairs):
    """The same models in ``precision``."""
    if precision is SINGLE:
        return pairs

    def double(pair):
        params = jax.tree.map(precision.jax, pair.params)
        theirs = copy.deepcopy(pair.theirs).double()
        return Pair(theirs, replace(pair.model, dtype="float64"), params)

    return tuple(map(double, pairs))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load(tmp_path_factory.mktemp("lm"), hf.GPT2LMHeadModel, 0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Another language model of the same shape."""
    return load(tmp_path_factory.mktemp("reference"), hf.GPT2LMHeadModel, 4)


@pytest.fixture(scope="module")
def scalar(tmp_path_factory):
    """A classifier with one label. Its head is given a bias, as ours has."""
    folder = tmp_path_factory.mktemp("scalar")
    pair = load(folder, hf.GPT2ForSequenceClassification, 1, num_labels=1)
    score = torch.nn.Linear(pair.model.d_model, 1)
    with torch.no_grad():
        score.weight.copy_(pair.theirs.score.weight)
        score.bias.fill_(0.25)
    pair.theirs.score = score
    head = pair.params["head"] | {"bias": jnp.full(1, 0.25)}
    return pair._replace(params=pair.params | {"head": head})


def tokens_like(seed, mask):
    """Random tokens that are neither EOS nor padding, PAD outside the mask."""
    tokens = np.random.default_rng(seed).integers(1, VOCAB - 1, mask.shape)
    return np.where(mask, tokens, PAD).astype(np.int32)


# --- Language model and SFT -------------------------------------------------------------------

DOCUMENTS = (((0, 9, 4), (9, 14, 2), (14, 23, 8)), ((0, 3, 1), (3, 20, 11)), ((0, 6, 5),))
"""(start, end, prompt length) of the documents packed in each row of 23 tokens."""


@pytest.fixture(scope="module")
def packed():
    rows, width = len(DOCUMENTS), 23
    segments, positions = np.zeros((2, rows, width), np.int32)
    targets = np.zeros((rows, width), bool)
    for row, documents in enumerate(DOCUMENTS):
        for number, (start, end, prompt) in enumerate(documents, start=1):
            segments[row, start:end] = number
            positions[row, start:end] = np.arange(end - start)
            targets[row, start + prompt : end] = True
    tokens = tokens_like(2, segments > 0)
    return LMBatch(*map(jnp.asarray, (tokens, targets, segments, positions)))


def block_diagonal_sft_loss(model, batch):
    """Packed rows under a block-diagonal mask; what transformers does with labels of −100, but for
    its cast of the logits to float32."""
    segments = np.asarray(batch.segment_ids)
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    attend = torch.tensor(same & np.tril(np.ones(same.shape[1:], bool)))[:, None]
    bias = torch.where(attend, 0.0, torch.finfo(torch.float32).min).to(model.dtype)
    tokens = torch.tensor(np.asarray(batch.tokens)).long()
    positions = torch.tensor(np.asarray(batch.positions)).long()
    logits = model(input_ids=tokens, attention_mask=bias, position_ids=positions).logits
    labels = torch.where(torch.tensor(np.asarray(batch.loss_mask)), tokens, -100)
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])


def separate_sft_loss(model, batch):
    """Every document alone: no mask, no packing. Σ −log p over all targets / their number."""
    total, count = 0.0, 0
    for row, documents in enumerate(DOCUMENTS):
        for start, end, prompt in documents:
            tokens = torch.tensor(np.asarray(batch.tokens))[row, start:end].long()
            logprobs = torch.log_softmax(model(tokens[None]).logits[0, :-1], dim=-1)
            of_targets = logprobs.gather(1, tokens[1:, None])[prompt - 1 :]
            total, count = total - of_targets.sum(), count + len(of_targets)
    return total / count


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits(precision, lm, side):
    (lm,) = at(precision, lm)
    mask = ragged((20, 13, 1), 20, left=side == "left")
    tokens = tokens_like(0, mask)
    read = jax.jit(partial(make_language_model(lm.model, VOCAB).logits, start=0))
    ours = read(lm.params, jnp.asarray(tokens), jnp.asarray(mask))
    with torch.no_grad():
        theirs = lm.theirs(**masked_inputs(tokens, mask)).logits.numpy()
    precision.agree("GPT-2 logits", np.asarray(ours)[mask], theirs[mask])


@pytest.mark.parametrize("reference", [block_diagonal_sft_loss, separate_sft_loss])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_sft_loss_with_prompt_masks_and_packing(precision, lm, packed, reference, accumulate):
    (lm,) = at(precision, lm)
    apply = make_language_model(lm.model, VOCAB).packed_logits

    def loss_fn(params, batch, key, count):
        return lm_loss(apply(params, batch, None), batch, count=count)

    count = count_targets(packed)
    assert count == 18
    gradients = jax.jit(partial(accumulated_gradients, loss_fn, accumulate=accumulate))
    grads, metrics = gradients(lm.params, packed, KEY, count)
    lm.theirs.zero_grad()
    loss = reference(lm.theirs, packed)
    loss.backward()
    precision.agree("SFT loss", metrics["loss"], loss)
    precision.agree("gradient of the SFT loss", by_torch_name(grads), torch_gradients(lm.theirs))


# --- Reward model -----------------------------------------------------------------------------


def comparisons(ranks, seed, *, full_queries=False):
    """Left-padded queries, right-padded responses; absent responses (rank −1) are empty."""
    rng = np.random.default_rng(seed)
    ranks = np.array(ranks, np.int32)
    B, K = ranks.shape
    query_mask = ragged([6] * B if full_queries else rng.integers(1, 7, B), 6, left=True)
    mask = ragged(rng.integers(1, 9, B * K), 8).reshape(B, K, 8) & (ranks >= 0)[..., None]
    batch = ComparisonBatch(
        tokens_like(seed, query_mask), query_mask, tokens_like(seed + 1, mask), mask, ranks
    )
    return jax.tree.map(jnp.asarray, batch)


def our_ranking(scalar, batch):
    model = make_scalar_model(scalar.model, VOCAB)

    def loss_fn(params):
        scores = model.score_responses(params, *batch[:4], None)
        return ranking_loss(scores, batch.ranks, count=count_ranked(batch.ranks))

    grads, metrics = jax.jit(jax.grad(loss_fn, has_aux=True))(scalar.params)
    return metrics, by_torch_name(grads)


def flat_responses(batch):
    """[B, K] responses as B·K sequences ``[query | response]`` with their masks."""
    K = batch.ranks.shape[1]
    repeat = lambda x: jnp.repeat(x, K, axis=0)
    rows = lambda x: x.reshape(-1, x.shape[-1])
    tokens = jnp.concatenate([repeat(batch.queries), rows(batch.responses)], axis=1)
    return tokens, jnp.concatenate([repeat(batch.query_mask), rows(batch.mask)], axis=1)


def torch_ranking(model, batch):
    """All pairs of each prompt in turn: mean over its untied pairs, then over prompts."""
    tokens, mask = flat_responses(batch)
    rewards = model(**masked_inputs(tokens, mask)).logits[:, 0].reshape(batch.ranks.shape)
    prompts = []
    for reward, rank in zip(rewards, np.asarray(batch.ranks).tolist(), strict=True):
        pairs = [(i, j) for i, a in enumerate(rank) for j, b in enumerate(rank) if 0 <= a < b]
        losses = [torch.log1p(torch.exp(reward[j] - reward[i])) for i, j in pairs]
        prompts += [torch.stack(losses).mean()] if losses else []
    return torch.stack(prompts).mean()


RANKS = {
    "pairwise": [[0, 1], [1, 0], [0, 1], [0, 1]],
    "K-wise": [[0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0], [0, 1, 2, 3]],
    "ties": [[0, 1, 1, 2], [0, 0, 0, 0], [0, 0, 1, 1], [2, 1, 0, 2]],
    "ragged": [[0, 1, 2, 3], [1, 0, -1, -1], [0, 0, 1, -1], [0, -1, -1, -1]],
}


@pytest.mark.parametrize("name", RANKS)
def test_ranking_loss(precision, scalar, name):
    (scalar,) = at(precision, scalar)
    batch = comparisons(RANKS[name], 3)
    metrics, grads = our_ranking(scalar, batch)
    scalar.theirs.zero_grad()
    loss = torch_ranking(scalar.theirs, batch)
    loss.backward()
    precision.agree("ranking loss", metrics["loss"], loss)
    expected = without_offsets(torch_gradients(scalar.theirs))
    precision.agree("gradient of the ranking loss", without_offsets(grads), expected)


@pytest.mark.parametrize("name", RANKS)
def test_dpo_loss(precision, lm, reference, name):
    """Log-probs of whole responses under policy and reference, K-wise, by autograd."""
    lm, other = at(precision, lm, reference)
    batch, beta = comparisons(RANKS[name], 11), 0.3
    model = make_language_model(lm.model, VOCAB)
    ref_logprobs = jax.jit(partial(sequence_logprobs, model))(other.params, batch)

    def loss_fn(params):
        logprobs = sequence_logprobs(model, params, batch)
        return dpo_loss(logprobs, ref_logprobs, batch.ranks, beta=beta, label_smoothing=0.1)

    grads, metrics = jax.jit(jax.grad(loss_fn, has_aux=True))(lm.params)
    tokens, mask = flat_responses(batch)
    K, Q = batch.ranks.shape[1], batch.queries.shape[1]
    answers = torch.tensor(np.array(tokens)).long()[:, Q:]

    def torch_logprobs(network):
        logits = network(**masked_inputs(tokens, mask)).logits[:, Q - 1 : -1]
        each = logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]
        real = torch.tensor(np.array(mask))[:, Q:]
        return torch.where(real, each, 0.0).sum(1).reshape(-1, K)

    lm.theirs.zero_grad()
    with torch.no_grad():
        ref_sums = torch_logprobs(other.theirs)
    rewards = beta * (torch_logprobs(lm.theirs) - ref_sums)
    log_sigmoid = torch.nn.functional.logsigmoid
    prompts = []
    for reward, rank in zip(rewards, np.asarray(batch.ranks).tolist(), strict=True):
        margins = [
            reward[i] - reward[j]
            for i, a in enumerate(rank)
            for j, b in enumerate(rank)
            if 0 <= a < b
        ]
        losses = [-0.9 * log_sigmoid(m) - 0.1 * log_sigmoid(-m) for m in margins]
        prompts += [torch.stack(losses).mean()] if losses else []
    loss = torch.stack(prompts).mean()
    loss.backward()
    precision.agree("DPO loss", metrics["loss"], loss)
    precision.agree("gradient of the DPO loss", by_torch_name(grads), torch_gradients(lm.theirs))


def without_offsets(grads):
    """What adds the same to every score has gradient 0: rounding is all there is to compare."""
    offsets = ("score.bias", "transformer.ln_f.bias")
    assert all(np.abs(np.asarray(grads[name])).max() < 1e-6 for name in offsets)
    return {name: grad for name, grad in grads.items() if name not in offsets}


def trl_reward_loss(model, tokens, mask):
    """``RewardTrainer.compute_loss``: chosen in the first half of the rows, rejected after them."""
    same = lambda x: x
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=same, gather_for_metrics=same),
        _total_train_tokens=0,
        _metrics={"eval": {name: [] for name in TRL_METRICS}},
    )
    inputs = masked_inputs(tokens, mask)
    del inputs["position_ids"]  # TRL gives none: right padding only
    return RewardTrainer.compute_loss(trainer, model, inputs), trainer._metrics["eval"]


TRL_METRICS = ("num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin")


@pytest.mark.parametrize("name", ["pairwise", "K-wise"])
def test_trls_reward_trainer(precision, scalar, name):
    """With as many pairs in every prompt, the mean over prompts is TRL's mean over pairs."""
    (scalar,) = at(precision, scalar)
    batch = comparisons(RANKS[name], 5, full_queries=True)
    metrics, grads = our_ranking(scalar, batch)
    chosen, rejected = all_pairs(batch)
    tokens, mask = map(np.asarray, flat_responses(batch))
    rows = np.concatenate([chosen, rejected])
    scalar.theirs.zero_grad()
    loss, trl_metrics = trl_reward_loss(scalar.theirs, tokens[rows], mask[rows])
    loss.backward()
    precision.agree("ranking loss (TRL)", metrics["loss"], loss)
    expected = without_offsets(torch_gradients(scalar.theirs))
    precision.agree("gradient of the ranking loss (TRL)", without_offsets(grads), expected)
    assert float(metrics["accuracy"]) == pytest.approx(trl_metrics["accuracy"][0], abs=1e-6)
    with torch.no_grad():
        largest = scalar.theirs(**masked_inputs(tokens, mask)).logits.abs().max().item()
    near = 2 * precision.tolerance * largest  # a mean of differences of two scores
    assert float(metrics["margin"]) == pytest.approx(trl_metrics["margin"][0], rel=0, abs=near)


def all_pairs(batch):
    """Rows of ``flat_responses`` of the better and the worse response of every untied pair."""
    ranks = np.asarray(batch.ranks)
    K = ranks.shape[1]
    found = [
        (b * K + i, b * K + j)
        for b, rank in enumerate(ranks)
        for i in range(K)
        for j in range(K)
        if 0 <= rank[i] < rank[j]
    ]
    return np.array(found).T


def test_a_prompt_weighs_the_same_whatever_its_k(scalar):
    """TRL, given all pairs of a prompt with 6 and of one with 1, weighs the former six times."""
    batch = comparisons([[0, 1, 2, 3], [1, 0, -1, -1]], 7, full_queries=True)
    metrics, _ = our_ranking(scalar, batch)
    chosen, rejected = all_pairs(batch)
    tokens, mask = map(np.asarray, flat_responses(batch))
    per_prompt = []
    for pick in (slice(0, 6), slice(6, 7)):
        rows = np.concatenate([chosen[pick], rejected[pick]])
        per_prompt.append(trl_reward_loss(scalar.theirs, tokens[rows], mask[rows])[0].item())
    rows = np.concatenate([chosen, rejected])
    theirs = trl_reward_loss(scalar.theirs, tokens[rows], mask[rows])[0].item()
    first, second = per_prompt
    assert theirs == pytest.approx((6 * first + second) / 7, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx((first + second) / 2, rel=1e-5)
    assert abs(first - second) > 0.05, "the two weightings would be alike"


def test_scores_and_where_they_are_read(precision, scalar):
    """TRL's ``get_reward`` reads the token before the first padding of the *response*; with an
    empty response that is the last of the prompt, and so it is here."""
    (scalar,) = at(precision, scalar)
    query_mask, mask = ragged((6, 3, 1, 6), 6, left=True), ragged((8, 5, 1, 0), 8)
    tokens = np.concatenate([tokens_like(9, query_mask), tokens_like(10, mask)], axis=1)
    both = np.concatenate([query_mask, mask], axis=1)
    score = make_scalar_model(scalar.model, VOCAB).score
    ours = score(scalar.params, jnp.asarray(tokens), jnp.asarray(both), None)
    with torch.no_grad():
        theirs = get_reward(scalar.theirs, torch.tensor(tokens).long(), PAD, 6)[1].numpy()
    precision.agree("scores (TRL)", ours, theirs)


# --- PPO --------------------------------------------------------------------------------------

TEMPERATURE, CLIP, VALUE_CLIP, VF = 0.7, 0.2, 0.2, 0.5
Q, LENGTHS, R = 6, (8, 5, 1, 8), 8


@pytest.fixture(scope="module")
def minibatch(lm, scalar):
    """A rollout whose old log-probs and values lie near the models' own, so that clips act."""
    rng = np.random.default_rng(11)
    query_mask, mask = ragged((6, 3, 1, 6), Q, left=True), ragged(LENGTHS, R)
    queries, responses = tokens_like(12, query_mask), tokens_like(13, mask)
    logprobs, values = torch_forward(lm, scalar, np.concatenate([queries, responses], axis=1))
    near = lambda x, scale: x.detach().numpy() + scale * rng.normal(size=x.shape)
    junk = lambda x: np.where(mask, x, 1e4).astype(np.float32)
    old_logprobs, old_values = junk(near(logprobs, 0.3)), junk(near(values, 0.6))
    return PPOBatch(
        *map(jnp.asarray, (queries, query_mask, responses, mask)),
        *map(jnp.asarray, (old_logprobs, old_logprobs, old_values)),
        *map(jnp.asarray, (junk(rng.normal(size=mask.shape)), junk(near(values, 1.0)))),
    )


def torch_forward(lm, scalar, tokens):
    """Log-probs and values of the response by TRL's own ``forward`` of its two models (its lines
    820-832); temperature without its + 1e-7."""
    both = trl_ppo.PolicyAndValueWrapper(lm.theirs, scalar.theirs)
    tokens = torch.tensor(np.asarray(tokens)).long()
    output, values = trl_ppo.forward(both, tokens, PAD)
    logits = output.logits[:, Q - 1 : -1] / TEMPERATURE
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, Q:, None])[..., 0]
    return logprobs, values[:, Q - 1 : -1, 0]


def torch_ppo_loss(new_logprobs, new_values, batch):
    """The clipped losses (TRL's lines 828-847), all means over real response tokens."""
    mask = torch.tensor(np.asarray(batch.mask))
    old = (batch.logprobs, batch.values, batch.advantages, batch.returns)
    logprobs, values, advantages, returns = (torch.tensor(np.asarray(x))[mask] for x in old)
    ratio = torch.exp(new_logprobs[mask] - logprobs)
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP))
    new_values = new_values[mask]
    near = torch.clamp(new_values, values - VALUE_CLIP, values + VALUE_CLIP)
    value = 0.5 * torch.maximum((new_values - returns) ** 2, (near - returns) ** 2)
    return policy.mean() + VF * value.mean()


def our_ppo(policy_value, params, batch):
    clips = dict(clip_eps=CLIP, value_clip_eps=VALUE_CLIP, vf_coef=VF, entropy_coef=0.0)
    loss_fn = make_ppo_loss(policy_value, partial(ppo_loss, **clips), temperature=TEMPERATURE)
    count = batch.mask.sum(dtype=jnp.float32)
    gradients = jax.jit(partial(accumulated_gradients, loss_fn, accumulate=2))
    grads, metrics = gradients(params, batch, KEY, count)
    total = metrics["loss/policy_avg"] + VF * metrics["loss/value_avg"]
    assert 0.1 < metrics["policy/clipfrac_avg"] < 0.9 and 0.1 < metrics["val/clipfrac_avg"] < 0.9
    return total, grads


def test_ppo_with_two_trunks(precision, lm, scalar, minibatch):
    (lm, scalar), minibatch = at(precision, lm, scalar), jax.tree.map(precision.jax, minibatch)
    policy_value = make_policy_value(lm.model, scalar.model, VOCAB, "separate")
    params = policy_value.init(lm.params, scalar.params)
    total, grads = our_ppo(policy_value, params, minibatch)
    for model in (lm.theirs, scalar.theirs):
        model.zero_grad()
    tokens = np.concatenate([minibatch.queries, minibatch.responses], axis=1)
    loss = torch_ppo_loss(*torch_forward(lm, scalar, tokens), minibatch)
    loss.backward()
    precision.agree("PPO loss (two trunks)", total, loss)
    case = "gradient of the PPO loss"
    precision.agree(f"{case} (policy)", by_torch_name(grads["policy"]), torch_gradients(lm.theirs))
    precision.agree(
        f"{case} (value)", by_torch_name(grads["value"]), torch_gradients(scalar.theirs)
    )


def test_ppo_with_a_shared_trunk(precision, lm, scalar, minibatch):
    """Ziegler et al. 2019: a value head on the policy; TRL has none, so this is plain torch."""
    (lm, scalar), minibatch = at(precision, lm, scalar), jax.tree.map(precision.jax, minibatch)
    policy_value = make_policy_value(lm.model, scalar.model, VOCAB, "shared")
    head = scalar.params["head"]
    total, grads = our_ppo(policy_value, {"policy": lm.params | {"head": head}}, minibatch)
    lm.theirs.zero_grad()
    scalar.theirs.zero_grad()
    queries, query_mask, responses, mask = minibatch[:4]
    tokens = np.concatenate([queries, responses], axis=1)
    inputs = masked_inputs(tokens, np.concatenate([query_mask, mask], axis=1))
    hidden = lm.theirs.transformer(**inputs).last_hidden_state[:, Q - 1 : -1]
    logits = hidden @ lm.theirs.transformer.wte.weight.T / TEMPERATURE
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, inputs["input_ids"][:, Q:, None])
    loss = torch_ppo_loss(logprobs[..., 0], scalar.theirs.score(hidden)[..., 0], minibatch)
    loss.backward()
    precision.agree("PPO loss (shared trunk)", total, loss)
    expected = torch_gradients(lm.theirs) | torch_gradients(scalar.theirs.score, "score.")
    case = "gradient of the PPO loss (shared trunk)"
    precision.agree(case, by_torch_name(grads["policy"]), expected)
