"""Filters and greedy generation against transformers' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.torch_bridge import (
    EOS,
    PAD,
    SINGLE,
    VOCAB,
    hf,
    make_gpt2,
    masked_inputs,
    ragged,
    torch,
)
from rlhf_jax.interop.huggingface import load_pretrained
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.rollouts.filters import filter_logits
from rlhf_jax.rollouts.generate import generate, row_keys

pytestmark = pytest.mark.torch


def transformers_filters(logits, temperature, top_k, top_p):
    """The processors that ``generate`` would run, in its order: temperature, top-k, top-p."""
    steps = [hf.TemperatureLogitsWarper(temperature)]
    steps += [hf.TopKLogitsWarper(top_k)] if top_k > 0 else []
    steps += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    return hf.LogitsProcessorList(steps)(None, logits).numpy()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 17, 500])
@pytest.mark.parametrize("top_p", [0.0, 0.05, 0.9, 0.999, 1.0])
def test_filters(precision, temperature, top_k, top_p):
    logits = 3 * np.random.default_rng(top_k).normal(size=(16, 300))
    found = filter_logits(precision.jax(logits), temperature=temperature, top_k=top_k, top_p=top_p)
    expected = transformers_filters(precision.torch(logits), temperature, top_k, top_p)
    kept = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), kept)
    assert kept.any(axis=1).all() and (kept.mean() < 1 or (top_k in (0, 500) and top_p > 0.99))
    precision.agree("filtered logits", jnp.where(kept, found, 0), np.where(kept, expected, 0))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_ties_at_the_last_of_the_top_k_survive(k):
    logits = np.array([[1.0, 3.0, 2.0, 2.0, 2.0, -1.0]])
    found = filter_logits(SINGLE.jax(logits), temperature=1.0, top_k=k, top_p=1.0)
    expected = transformers_filters(SINGLE.torch(logits), 1.0, k, 1.0)
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).sum() == 4


def test_top_p_keeps_every_token_that_ties_for_the_likeliest():
    """Four tokens of 1/4 and p = 0.6: no token is likelier than any, so ours keeps four;
    transformers sorts them somehow and keeps three."""
    logits = np.zeros((1, 4))
    found = filter_logits(SINGLE.jax(logits), temperature=1.0, top_k=0, top_p=0.6)
    expected = transformers_filters(SINGLE.torch(logits), 1.0, 0, 0.6)
    assert np.isfinite(found).sum() == 4 and np.isfinite(expected).sum() == 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    return make_gpt2(hf.GPT2LMHeadModel, folder, seed=0), load_pretrained(folder)


def test_greedy_generation_with_left_padding_and_eos(model):
    """The same ids, padding after EOS included, and the same log-probs of them."""
    theirs, imported = model
    Q, R, lengths = 8, 12, (8, 5, 1, 3, 8, 7)
    rng = np.random.default_rng(0)
    mask = ragged(lengths, Q, left=True)
    queries = np.where(mask, rng.integers(1, VOCAB - 1, mask.shape), PAD)
    inputs = masked_inputs(queries, mask)
    del inputs["position_ids"]  # generate makes them of the mask
    free = theirs.generate(
        **inputs, max_new_tokens=R, do_sample=False, eos_token_id=None, pad_token_id=PAD
    )[:, Q:]
    # A token that some rows say early and some never is their EOS, so that rows end at all times.
    first = {int(t): (free == t).any(dim=1).float().mean() for t in free.unique()}
    eos = min(first, key=lambda t: abs(first[t] - 0.5))
    out = theirs.generate(
        **inputs,
        max_new_tokens=R,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected = out.sequences[:, Q:].numpy()
    expected = np.pad(expected, [(0, 0), (0, R - expected.shape[1])], constant_values=PAD)
    found = generate(
        make_language_model(imported.model, imported.vocab_size),
        imported.params,
        jnp.asarray(queries),
        jnp.asarray(mask),
        row_keys(jax.random.key(0), len(lengths)),
        length=R,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        end_ids=(eos,),
        pad_id=PAD,
        at_once=1.0,
    )
    np.testing.assert_array_equal(found.responses, expected)
    ended = (expected == eos).any(axis=1)
    assert 0 < ended.sum() < len(lengths), "the test needs rows of both kinds"
    logprobs = torch.log_softmax(torch.stack(out.scores, 1), dim=-1)
    chosen = out.sequences[:, Q:, None]
    logprobs = logprobs.gather(-1, chosen)[..., 0].numpy()
    real = np.asarray(found.mask)[:, : logprobs.shape[1]]
    ours = np.asarray(found.logprobs)[:, : logprobs.shape[1]]
    SINGLE.agree("log-probs of greedy tokens", np.where(real, ours, 0), np.where(real, logprobs, 0))
    assert EOS != PAD != eos
