"""The trunk is GPT-2 exactly, and padding, packing, caching and layout change nothing."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import with_noise
from precision import assert_same, float32_bound, network_terms

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.models.transformer import as_layout, stack_blocks, unstack_blocks
from rlhf_jax.planning.flops import count_flops
from rlhf_jax.types import LMBatch

pytestmark = pytest.mark.usefixtures("module_in_float64")
CONFIG = ModelConfig(n_layers=2, d_model=16, n_heads=2, context=24, dtype="float64")
V, B, T = 31, 3, 9


@pytest.fixture(scope="module")
def params():
    return with_noise(jax.jit(make_language_model(CONFIG, V).init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(2), (B, T), 0, V)


def gpt2(params, tokens, n_heads):
    """One sequence through GPT-2, in float64 loops over heads and positions."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["trunk"])

    def norm(x, q):
        spread = np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return (x - x.mean()) / spread * q["scale"] + q["bias"]

    def dense(x, q):
        return x @ q["kernel"] + q["bias"]

    x = [p["wte"][t] + p["wpe"][i] for i, t in enumerate(tokens)]
    for layer in range(CONFIG.n_layers):
        b = p[f"block_{layer}"]
        qkv = [np.split(dense(norm(h, b["ln_1"]), b["attn"]["c_attn"]), 3) for h in x]
        q, k, v = zip(*qkv, strict=True)
        width = len(q[0]) // n_heads
        for i in range(len(x)):
            heads = []
            for h in range(n_heads):
                s = slice(h * width, (h + 1) * width)
                scores = np.array([q[i][s] @ k[j][s] for j in range(i + 1)]) / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                heads.append(sum(w * v[j][s] for j, w in enumerate(weights)))
            x[i] = x[i] + dense(np.concatenate(heads), b["attn"]["c_proj"])
            u = dense(norm(x[i], b["ln_2"]), b["mlp"]["c_fc"])
            u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
            x[i] = x[i] + dense(u, b["mlp"]["c_proj"])
    return np.stack([norm(h, p["ln_f"]) @ p["wte"].T for h in x])


def logits(config, params, tokens, mask=None, start=0):
    """As one program: outside of ``jax.jit`` every operation would be one."""
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    return reader(config, start)(params, tokens, mask)


@cache
def reader(config, start):
    return jax.jit(partial(make_language_model(config, V).logits, start=start))


def test_is_gpt2(params, tokens):
    got = logits(CONFIG, params, tokens)
    for row in range(B):
        expected = gpt2(params, np.asarray(tokens[row]), CONFIG.n_heads)
        assert_same(got[row], expected)


@pytest.mark.parametrize(
    "shape,count", [((12, 768, 12), 124_439_808), ((48, 1600, 25), 1_557_611_200)]
)
def test_parameter_counts_are_gpt2s(shape, count):
    layers, width, heads = shape
    config = ModelConfig(n_layers=layers, d_model=width, n_heads=heads, context=1024)
    lm = make_language_model(replace(config, scan_layers=True), 50257)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_initial_spread():
    """N(0, 0.02), and the two projections into the residual stream smaller by √(2 layers)."""
    config = ModelConfig(n_layers=8, d_model=64, n_heads=2)
    block = make_language_model(config, V).init(jax.random.key(0))["trunk"]["block_3"]
    assert np.isclose(block["mlp"]["c_fc"]["kernel"].std(), 0.02, rtol=0.05)
    assert np.isclose(block["mlp"]["c_proj"]["kernel"].std(), 0.005, rtol=0.05)
    assert np.isclose(block["attn"]["c_proj"]["kernel"].std(), 0.005, rtol=0.05)


def test_causal_by_gradient(params, tokens):
    """Logits at t depend on tokens up to t, and on no later one."""
    trunk = params["trunk"]

    def at(t):
        def loss(wpe):  # one position embedding per token stands for the token
            moved = {"trunk": trunk | {"wpe": wpe}}
            return logits(CONFIG, moved, tokens[:1])[0, t].sum()

        return np.abs(jax.jit(jax.grad(loss))(trunk["wpe"])).sum(axis=1)[:T] > 0

    for t in (0, 4, T - 1):
        assert at(t).tolist() == [i <= t for i in range(T)]


@pytest.mark.parametrize("left,right", [(5, 0), (0, 4), (3, 2)])
def test_padding_changes_nothing(params, tokens, left, right):
    """Bug 4: positions count real tokens only."""
    pad = [(0, 0), (left, right)]
    mask = jnp.pad(jnp.ones(tokens.shape, bool), pad)
    got = logits(CONFIG, params, jnp.pad(tokens, pad, constant_values=7), mask)
    expected = logits(CONFIG, params, tokens)
    assert_same(got[:, left : left + T], expected)


def test_packing_changes_nothing(params, tokens):
    """Documents packed in one row do not see each other, and positions restart."""
    row = jnp.concatenate([tokens[0, :4], tokens[1], tokens[2, :2]])[None]
    segments = jnp.array([[1] * 4 + [2] * T + [3] * 2])
    positions = jnp.concatenate([jnp.arange(4), jnp.arange(T), jnp.arange(2)])[None]
    batch = LMBatch(row, jnp.ones(row.shape, bool), segments, positions)
    packed = make_language_model(CONFIG, V).packed_logits
    got = jax.jit(lambda params: packed(params, batch, None))(params)[0]
    alone = logits(CONFIG, params, tokens)
    expected = np.concatenate([alone[0, :4], alone[1], alone[2, :2]])
    assert_same(got, expected)


def test_a_row_without_real_tokens_is_finite(params, tokens):
    mask = jnp.ones(tokens.shape, bool).at[1].set(False)
    loss = lambda p: logits(CONFIG, p, tokens, mask).sum()
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("scan", [False, True])
def test_cached_decoding_is_the_full_forward(params, tokens, scan):
    """Bug 35, with ragged left-padded queries."""
    config = replace(CONFIG, scan_layers=scan)
    lm = make_language_model(config, V)
    params = {"trunk": as_layout(params["trunk"], config)}
    mask = jnp.arange(T)[None] >= jnp.array([0, 2, 3])[:, None]
    full = logits(config, params, tokens, mask)
    Q = 5
    prefill, decode = jax.jit(partial(lm.prefill, length=T - Q)), jax.jit(lm.decode)
    got, cached = prefill(params, tokens[:, :Q], mask[:, :Q])
    assert_same(got, full[:, Q - 1])
    for t in range(Q, T):
        got, cached = decode(params, tokens[:, t], cached)
        assert_same(got, full[:, t])


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scanned_layers_are_the_unrolled_ones(params, tokens, remat):
    config = replace(CONFIG, scan_layers=True, remat=remat)
    stacked = {"trunk": stack_blocks(params["trunk"], CONFIG.n_layers)}
    f = lambda c: lambda p: jnp.sin(logits(c, p, tokens)).sum()
    value, gradient = jax.jit(jax.value_and_grad(f(CONFIG)))(params)
    scanned, scanned_gradient = jax.jit(jax.value_and_grad(f(config)))(stacked)
    assert_same(scanned, value)
    unstacked = unstack_blocks(scanned_gradient["trunk"], CONFIG.n_layers)
    jax.tree.map(assert_same, unstacked, gradient["trunk"])


def test_rematerialised_blocks_make_again_what_they_say(params, tokens):
    """Of the backward pass's products: none; attention's two of each layer; all of each layer."""
    stacked = {"trunk": stack_blocks(params["trunk"], CONFIG.n_layers)}

    def flops(remat):
        config = replace(CONFIG, scan_layers=True, remat=remat)
        gradient = jax.grad(lambda p: logits(config, p, tokens).sum())
        return count_flops(jax.make_jaxpr(gradient)(stacked).jaxpr)

    (B, T), D, L = tokens.shape, CONFIG.d_model, CONFIG.n_layers
    attention = 2 * 2 * B * T * T * D * L
    kernels = 2 * B * T * (3 + 1 + 4 + 4) * D * D * L
    assert flops("dots") - flops("none") == attention
    # The last product's result is needed by nothing in the block's backward pass.
    assert flops("full") - flops("none") == attention + kernels - 2 * B * T * 4 * D * D * L


def test_both_layouts_start_from_the_same_parameters():
    scanned = make_language_model(replace(CONFIG, scan_layers=True), V).init(jax.random.key(5))
    unrolled = make_language_model(CONFIG, V).init(jax.random.key(5))
    back = unstack_blocks(scanned["trunk"], CONFIG.n_layers)
    jax.tree.map(np.testing.assert_array_equal, back, unrolled["trunk"])


def test_dropout_acts_only_with_a_key(params, tokens):
    """Bug 14: and never in scoring, whatever the config says."""
    config = replace(CONFIG, dropout=0.5)
    lm = make_language_model(config, V)
    ones = jnp.ones(tokens.shape, jnp.int32)
    batch = LMBatch(tokens, ones > 0, ones, jnp.tile(jnp.arange(T), (B, 1)))
    without = jax.jit(lambda params: lm.packed_logits(params, batch, None))
    calm = without(params)
    np.testing.assert_array_equal(calm, without(params))
    assert_same(calm, logits(CONFIG, params, tokens))
    moving = jax.jit(lambda key: lm.packed_logits(params, batch, key))
    first, second = (moving(jax.random.key(k)) for k in (0, 1))
    assert np.abs(first - second).max() > 0.1


def test_score_is_read_at_the_last_real_token(params, tokens):
    """Bug 5: right padding of any length does not move it."""
    model = make_scalar_model(CONFIG, V)
    scalar = jax.jit(model.init)(jax.random.key(0), params["trunk"])
    mask = jnp.arange(T)[None] < jnp.array([4, T, 1])[:, None]
    score = jax.jit(lambda tokens, mask: model.score(scalar, tokens, mask, None))
    got = score(tokens, mask)
    everywhere = jax.jit(partial(model.values, start=0))(scalar, tokens, mask)
    assert_same(got, everywhere[jnp.arange(B), jnp.array([3, T - 1, 0])])
    padded = jnp.pad(tokens, [(0, 0), (0, 6)], constant_values=3)
    again = score(padded, jnp.pad(mask, [(0, 0), (0, 6)]))
    assert_same(again, got)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.cases(1)
def test_a_query_read_once_scores_its_responses_as_read_each_time(params, scan, positions):
    """Scores and their gradients; an absent response has the query's last token."""
    K, Q, R = 3, 4, 5
    config = replace(
        CONFIG,
        scan_layers=scan,
        remat="full" if scan else "none",
        positions=positions,
        n_kv_heads=1,
    )
    model = make_scalar_model(config, V)
    trunk = jax.jit(make_language_model(config, V).init)(jax.random.key(1))["trunk"]
    scalar = jax.jit(model.init)(jax.random.key(0), jax.tree.map(lambda x: 4 * x, trunk))
    query_mask = jnp.arange(Q)[None] >= jnp.array([0, 2, 3])[:, None]
    mask = jnp.arange(R)[None, None] < jnp.array([[5, 2, 1], [3, 0, 4], [1, 1, 0]])[..., None]
    queries = jax.random.randint(jax.random.key(2), (B, Q), 0, V)
    responses = jax.random.randint(jax.random.key(3), (B, K, R), 0, V)

    def read_each_time(scalar):
        rows = lambda q, r: jnp.concatenate([jnp.repeat(q, K, axis=0), r.reshape(B * K, R)], axis=1)
        tokens, real = rows(queries, responses), rows(query_mask, mask)
        return model.score(scalar, tokens, real, None).reshape(B, K)

    def read_once(scalar):
        return model.score_responses(scalar, queries, query_mask, responses, mask, None)

    assert_same(jax.jit(read_once)(scalar), jax.jit(read_each_time)(scalar))
    f = lambda scores: jax.jit(jax.grad(lambda s: jnp.sin(scores(s)).sum()))(scalar)
    jax.tree.map(assert_same, f(read_once), f(read_each_time))


def test_float32_and_bfloat16_are_as_near_as_they_can_be(params, tokens):
    """Both operands of six products in a layer and of the head's are rounded: half of u each, on
    average, in bfloat16. Sums, norms and softmax are float32."""
    exact = logits(CONFIG, params, tokens)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    bounds = {
        "float32": float32_bound(network_terms(CONFIG, T, V)),
        "bfloat16": float32_bound(2 * (6 * CONFIG.n_layers + 1), 1 / 2, dtype="bfloat16"),
    }
    for dtype, bound in bounds.items():
        with jax.enable_x64(False):
            got = logits(replace(CONFIG, dtype=dtype), single, jnp.asarray(tokens, jnp.int32))
        assert got.dtype == jnp.float32
        assert np.abs(got - exact).max() < bound * np.abs(exact).max(), dtype
