"""Layers that differ: sliding windows, several rotary bases and none, whether scanned or not."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import with_noise
from precision import assert_same

from rlhf_jax.config import ModelConfig, RotaryConfig
from rlhf_jax.models.attention import (
    Segments,
    attention,
    in_segments,
    plain_attention,
    visible,
)
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.models.scoring import Scoring
from rlhf_jax.models.transformer import as_layout, stack_blocks, unstack_blocks
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.types import LMBatch

pytestmark = pytest.mark.usefixtures("module_in_float64")
V, B, T = 31, 3, 14
CONFIG = ModelConfig(
    n_layers=3,
    d_model=16,
    n_heads=4,
    n_kv_heads=2,
    context=32,
    positions="rotary",
    rotary=RotaryConfig(theta=10_000.0, thetas=(50.0, 10_000.0, 0.0)),
    windows=(4, 0),
    score_width=9,
    score_cap=5.0,
    logit_cap=3.0,
    norm="rms_offset",
    norm_place="both",
    activation="geglu",
    bias="none",
    qk_norm=True,
    scale_embedding=True,
    dtype="float64",
)
MASK = np.arange(T)[None] >= np.array([0, 2, 9])[:, None]


@pytest.fixture(scope="module")
def params():
    return with_noise(jax.jit(make_language_model(CONFIG, V).init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(2), (B, T), 0, V)


def logits(config, params, tokens, mask, start=0):
    return jax.jit(partial(make_language_model(config, V).logits, start=start))(
        params, tokens, jnp.asarray(mask)
    )


@pytest.fixture(scope="module")
def full(params, tokens):
    return logits(CONFIG, params, tokens, MASK)


def test_the_layers_are_those_that_repeat():
    five = replace(CONFIG, n_layers=5)
    assert five.layer_kinds == ((4, 50.0), (0, 10_000.0), (4, 0.0), (0, 50.0), (4, 10_000.0))
    assert ModelConfig(n_layers=2).layer_kinds == ((0, 10_000.0),) * 2


def test_in_a_window_a_token_sees_the_nearest_of_its_segment():
    ids = jnp.array([[0, 0, 1, 1, 1, 1, 1, 2, 2]])
    seen = np.asarray(visible(in_segments(ids), 3)[0, 0])
    for t in range(9):
        expected = [ids[0, s] == ids[0, t] and t - 3 < s <= t for s in range(9)]
        np.testing.assert_array_equal(seen[t], expected)


@pytest.mark.parametrize("T, S", [(19, 19), (12, 30), (3, 30), (1, 1)])
@pytest.mark.parametrize("window", [1, 7])
@pytest.mark.cases(3)
def test_blocks_of_a_window_are_all_scores_under_its_mask(T, S, window):
    """And the gradients, with grouped queries, padding on both sides and packed documents."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((3, 4, T, 6), (3, 2, S, 6), (3, 2, S, 6))
    q, k, v = (jax.random.normal(key, s) for key, s in zip(keys, shapes, strict=True))
    place = jnp.arange(S)
    ids = jnp.stack([place >= 5, 1 + (place >= S // 2), place < S - 6]).astype(jnp.int32)
    segments, scoring = Segments(ids[:, S - T :], ids), Scoring(5, 2.0, window)

    def run(attend):
        f = lambda *qkv: jnp.sin(3 * attend(*qkv, segments)).sum()
        whole = lambda *qkv: (attend(*qkv, segments), *jax.grad(f, (0, 1, 2))(*qkv))
        return jax.jit(whole)(q, k, v)

    expected = run(partial(plain_attention, scoring=scoring))
    got = run(partial(attention, drop=None, fused=False, scoring=scoring, index=jnp.int32(S - T)))
    jax.tree.map(assert_same, got, expected)


def test_a_window_saves_scores():
    """Of 64 keys 2 · 8 for each query; decoding reads 8."""
    inputs = lambda T: [jnp.zeros((1, 2, n, 16)) for n in (T, 64, 64)]
    flops = lambda T, window: count_flops(
        jax.make_jaxpr(
            lambda q, k, v: attention(
                q,
                k,
                v,
                Segments(jnp.ones((1, T), jnp.int32), jnp.ones((1, 64), jnp.int32)),
                None,
                fused=False,
                scoring=Scoring(window=window),
                index=jnp.int32(64 - T),
            )
        )(*inputs(T)).jaxpr
    )
    assert flops(64, 0) == 4 * flops(64, 8) and flops(1, 0) == 8 * flops(1, 8)


@pytest.mark.parametrize("Q", [2, 11])
@pytest.mark.cases(1)
def test_cached_decoding_is_the_full_forward_past_the_window(params, tokens, full, Q):
    """With left padding, queries shorter and longer than the window."""
    lm = make_language_model(CONFIG, V)
    rows = slice(0, 1) if Q < 10 else slice(None)
    tokens, mask, full = tokens[rows], jnp.asarray(MASK)[rows], full[rows]
    prefill = jax.jit(partial(lm.prefill, length=T - Q))
    got, cache = prefill(params, tokens[:, :Q], mask[:, :Q])
    assert_same(got, full[:, Q - 1])
    decode = jax.jit(lm.decode)
    for t in range(Q, T):
        got, cache = decode(params, tokens[:, t], cache)
        assert_same(got, full[:, t])


def test_padding_changes_nothing(params, tokens, full):
    left, right = 3, 2
    pad = [(0, 0), (left, right)]
    mask, padded = jnp.pad(jnp.asarray(MASK), pad), jnp.pad(tokens, pad, constant_values=7)
    got = logits(CONFIG, params, padded, mask)
    assert_same(got[:, left : left + T][MASK], full[MASK])


def test_packing_changes_nothing(params, tokens, full):
    row = jnp.concatenate([tokens[0], tokens[2, 9:]])[None]
    lengths = (T, T - 9)
    ids = jnp.concatenate([jnp.full(n, i + 1) for i, n in enumerate(lengths)])[None]
    positions = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
    batch = LMBatch(row, jnp.ones(row.shape, bool), ids, positions)
    packed = make_language_model(CONFIG, V).packed_logits
    got = jax.jit(lambda params: packed(params, batch, None))(params)[0]
    assert_same(got, np.concatenate([full[0], full[2, 9:]]))


@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.cases(1)
def test_scanned_layers_are_the_unrolled_ones(params, tokens, remat):
    config = replace(CONFIG, scan_layers=True, remat=remat)
    stacked = {"trunk": stack_blocks(params["trunk"], CONFIG.n_layers)}

    def loss(config):
        lm = make_language_model(config, V)
        return lambda p: jnp.sin(lm.logits(p, tokens, jnp.asarray(MASK), start=0)).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss(CONFIG)))(params)
    scanned, scanned_gradient = jax.jit(jax.value_and_grad(loss(config)))(stacked)
    assert_same(scanned, value)
    unstacked = unstack_blocks(scanned_gradient["trunk"], CONFIG.n_layers)
    jax.tree.map(assert_same, unstacked, gradient["trunk"])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.cases(1)
def test_a_query_read_once_scores_its_responses_as_read_each_time(params, tokens, scan):
    """The window of a response's first tokens lies in its query."""
    config = replace(CONFIG, scan_layers=scan)
    K, Q, R = 2, 6, 9
    model = make_scalar_model(config, V)
    scalar = {
        "trunk": as_layout(params["trunk"], config),
        "head": {"kernel": jnp.ones((16, 1)), "bias": jnp.zeros(1)},
    }
    query_mask = jnp.arange(Q)[None] >= jnp.array([0, 2, 5])[:, None]
    mask = jnp.arange(R)[None, None] < jnp.array([[9, 2], [3, 0], [1, 8]])[..., None]
    queries = tokens[:, :Q]
    responses = jax.random.randint(jax.random.key(3), (B, K, R), 0, V)
    rows = lambda q, r: jnp.concatenate([jnp.repeat(q, K, axis=0), r.reshape(B * K, R)], axis=1)
    score = lambda p: model.score(p, rows(queries, responses), rows(query_mask, mask), None)
    once = lambda p: model.score_responses(p, queries, query_mask, responses, mask, None)
    assert_same(jax.jit(once)(scalar), jax.jit(score)(scalar).reshape(B, K))


def test_dropout_acts_in_scanned_layers_of_several_kinds(params, tokens):
    config = replace(CONFIG, scan_layers=True, dropout=0.5)
    lm = make_language_model(config, V)
    stacked = {"trunk": stack_blocks(params["trunk"], CONFIG.n_layers)}
    ones = jnp.ones(tokens.shape, jnp.int32)
    batch = LMBatch(tokens, ones > 0, ones, jnp.tile(jnp.arange(T), (B, 1)))
    run = jax.jit(lambda key: lm.packed_logits(stacked, batch, key))
    first, again, second = (run(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 0.1


def test_caps_hold_and_a_layer_without_rotation_knows_no_order(params, tokens):
    real = np.ones(tokens.shape, bool)
    large = jax.tree.map(lambda x: 9 * x, params)
    assert 2.9 < np.abs(logits(CONFIG, large, tokens, real)).max() <= 3.0
    config = replace(CONFIG, n_layers=1, windows=(), rotary=RotaryConfig(thetas=(0.0,)))
    shuffled = jnp.concatenate([tokens[:, ::-1][:, 1:], tokens[:, -1:]], axis=1)
    last = lambda tokens: logits(config, params, tokens, real, start=T - 1)
    assert_same(last(shuffled), last(tokens))


def test_weights_start_as_a_plain_norms_do():
    """Gemma's norms are scaled by 1 + w, so that w begins at 0."""
    block = make_language_model(CONFIG, V).init(jax.random.key(0))["trunk"]["block_0"]
    for name in ("ln_1", "ln_1_after", "ln_2", "ln_2_after"):
        assert not np.any(block[name]["scale"]), name
    assert not np.any(block["attn"]["q_norm"]["scale"])
