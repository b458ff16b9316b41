"""Sampling: the right distribution, the right log-probs, rows that do not depend on each other."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from precision import assert_same, float32_bound
from scipy import stats

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.objectives.ends import has_ended
from rlhf_jax.objectives.kl import exact_kl
from rlhf_jax.objectives.logprobs import entropy, scale_logits, token_logprobs
from rlhf_jax.rollouts.decoding import begun_together, places_for, smaller_batches
from rlhf_jax.rollouts.filters import draw, filter_logits, greedy, top_k_filter, top_p_filter
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.rollouts.rollout import asked, make_rollout, response_logprobs
from rlhf_jax.types import QueryBatch

# So that no draw of two programs falls on two sides of the boundary between two tokens.
pytestmark = pytest.mark.usefixtures("module_in_float64")
CONFIG = ModelConfig(n_layers=2, d_model=16, n_heads=2, context=32, dtype="float64")
V, B, Q, R = 19, 6, 5, 8
EOS, PAD = 17, 18
with jax.enable_x64(True):
    LM = make_language_model(CONFIG, V)
OPTIONS = dict(
    length=R, temperature=0.7, top_k=0, top_p=1.0, end_ids=(EOS,), pad_id=PAD, at_once=1.0
)


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(False):  # of this model, drawn in float32, many responses end early
        drawn = make_language_model(replace(CONFIG, dtype="float32"), V).init(jax.random.key(0))
    return jax.tree.map(lambda x: 8 * jnp.asarray(x, float), drawn)


@pytest.fixture(scope="module")
def batch():
    mask = jnp.arange(Q)[None] >= jnp.array([0, 1, 2, 0, 3, 4])[:, None]
    queries = jax.random.randint(jax.random.key(1), (B, Q), 0, EOS)
    return QueryBatch(queries, mask, jnp.arange(B))


def generated(lm, params, queries, mask, keys, **options):
    """As one program: outside of ``jax.jit`` every operation would be one."""
    return jax.jit(partial(generate, lm, **options))(params, queries, mask, keys)


@cache
def sampler(**options):
    return jax.jit(partial(generate, LM, **options))


def sample(params, batch, keys, **changes):
    return sampler(**OPTIONS | changes)(params, batch.queries, batch.query_mask, keys)


@pytest.mark.parametrize("size", [50, 1000])
@pytest.mark.cases(1)
def test_draw_follows_the_distribution(size):
    """Bug 17: chi-square against softmax, over one and over several blocks of the vocabulary.

    In float32, whose sums of the vocabulary are what users draw from.
    """
    with jax.enable_x64(False):
        logits = 2 * jax.random.normal(jax.random.key(0), (size,))
        logits = logits.at[7].set(-jnp.inf)
        n = 200_000
        rows = jnp.broadcast_to(logits, (1000, size))
        pick = jax.jit(lambda key: draw(jax.random.split(key, 1000), rows))
        tokens, logprobs = zip(*(pick(jax.random.key(i)) for i in range(n // 1000)), strict=True)
    tokens = np.concatenate(tokens)
    probs = np.asarray(jax.nn.softmax(jnp.asarray(logits, float)))
    counts = np.bincount(tokens, minlength=size)
    assert counts[7] == 0
    often = probs * n > 5
    expected = np.append(probs[often], probs[~often].sum()) * n
    seen = np.append(counts[often], counts[~often].sum())
    chi2 = ((seen - expected) ** 2 / np.maximum(expected, 1e-9))[expected > 5].sum()
    assert stats.chi2.sf(chi2, often.sum()) > 1e-4
    # log Σ exp of the vocabulary, and four more operations
    bound = float32_bound(size + 4)
    np.testing.assert_allclose(np.concatenate(logprobs), np.log(probs[tokens]), bound, bound)


def test_filters():
    """Ties survive top-k; the token that crosses p is kept; p → 0 keeps the likeliest."""
    logits = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.15, 0.05]]))
    kept = lambda x: np.isfinite(x)[0].tolist()
    assert kept(top_k_filter(logits, 2)) == [True, True, True, False, False]
    assert kept(top_p_filter(logits, 0.5)) == [True, True, False, False, False]
    assert kept(top_p_filter(logits, 0.7)) == [True, True, True, False, False]
    assert kept(top_p_filter(logits, 1e-6)) == [True, False, False, False, False]
    # Temperature comes first: at T = 0.25 the first token alone holds the mass.
    both = filter_logits(logits, temperature=0.25, top_k=0, top_p=0.5)
    assert kept(both) == [True, False, False, False, False]


def test_a_row_does_not_depend_on_its_batch(params, batch):
    keys = lambda: row_keys(jax.random.key(3), B)  # the same keys, made anew for each use
    whole = sample(params, batch, keys())
    flipped = sample(params, jax.tree.map(lambda x: x[::-1], batch), keys()[::-1])
    np.testing.assert_array_equal(flipped.responses[::-1], whole.responses)
    alone = sample(params, jax.tree.map(lambda x: x[2:3], batch), keys()[2:3])
    np.testing.assert_array_equal(alone.responses[0], whole.responses[2])


@pytest.mark.parametrize("scan, rows", [(False, 64), (True, 131)])
@pytest.mark.cases(1)
def test_rows_that_go_on_in_a_smaller_batch_are_the_same(params, monkeypatch, scan, rows):
    config = replace(CONFIG, scan_layers=scan)
    lm = make_language_model(config, V)
    params = {"trunk": as_layout(params["trunk"], config)}
    queries = jax.random.randint(jax.random.key(2), (rows, Q), 0, EOS)
    mask = jnp.arange(Q)[None] >= jnp.arange(rows)[:, None] % Q
    whole_batches = []

    def sample(parts):
        monkeypatch.setattr("rlhf_jax.rollouts.decoding.PARTS", parts)
        whole_batches.append(smaller_batches(rows, refilled=False) == ())
        keys = row_keys(jax.random.key(3), rows)
        return generated(lm, params, queries, mask, keys, **OPTIONS | {"length": 24})

    expected, *others = map(sample, ((), (2,), (2, 4)))
    lengths = np.asarray(expected.mask.sum(axis=1))
    assert (lengths == 24).any() and np.median(lengths) < 12  # else no row would be left behind
    assert whole_batches == [True, False, False]
    for found in others:
        np.testing.assert_array_equal(found.responses, expected.responses)
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert_same(found.logprobs, expected.logprobs)


@pytest.mark.parametrize(
    "scan, per_query, at_once", [(False, 1, 0.25), (True, 1, 0.5), (False, 3, 0.1), (False, 2, 0.9)]
)
@pytest.mark.cases(1)
def test_waiting_prompts_take_the_places_of_rows_that_have_ended(params, scan, per_query, at_once):
    """Every row answers as in the whole batch, though places begin at different times."""
    config = replace(CONFIG, scan_layers=scan)
    lm = make_language_model(config, V)
    params = {"trunk": as_layout(params["trunk"], config)}
    P = 40
    queries = jax.random.randint(jax.random.key(2), (P, Q), 0, EOS)
    mask = jnp.arange(Q)[None] >= jnp.arange(P)[:, None] % Q
    options = OPTIONS | {"length": 24}
    keys = lambda: row_keys(jax.random.key(3), P * per_query)
    expected = generated(lm, params, queries, mask, keys(), **options)
    found = generated(lm, params, queries, mask, keys(), **options | {"at_once": at_once})
    lengths = np.asarray(expected.mask.sum(axis=1))
    assert (lengths == 24).any() and np.median(lengths) < 12  # so places begin again, some often
    np.testing.assert_array_equal(found.responses, expected.responses)
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert_same(found.logprobs, expected.logprobs)


@pytest.mark.slow
def test_a_refilled_place_takes_fewer_steps(params):
    """What it is for: rows read in all, of which those that have ended are the waste."""
    P, length = 64, 24
    queries = jax.random.randint(jax.random.key(2), (P, Q), 0, EOS)
    mask = jnp.ones((P, Q), bool)
    read = []

    def decode(params, tokens, cache):
        jax.debug.callback(lambda: read.append(len(tokens)))
        return LM.decode(params, tokens, cache)

    def rows_read(at_once):
        read.clear()
        keys = row_keys(jax.random.key(3), P)
        lm = LM._replace(decode=decode)
        options = OPTIONS | {"length": length}
        found = generated(lm, params, queries, mask, keys, **options | {"at_once": at_once})
        jax.effects_barrier()
        return sum(read), int(found.mask.sum())

    (whole, tokens), (refilled, same) = rows_read(1.0), rows_read(0.25)
    assert tokens == same < refilled < 0.75 * whole


@pytest.mark.slow
def test_positions_of_rows_that_have_ended_stand_still(params):
    """Learned positions end with the context, and what lies beyond is NaN, which masks let pass."""
    P, length = 48, 24
    queries = jax.random.randint(jax.random.key(2), (P, Q), 0, EOS)
    positions = []

    def decode(params, tokens, cache):
        jax.debug.callback(lambda x: positions.append(x.max()), cache.positions)
        return LM.decode(params, tokens, cache)

    lm, keys = LM._replace(decode=decode), row_keys(jax.random.key(3), P)
    mask = jnp.ones((P, Q), bool)
    generated(lm, params, queries, mask, keys, **OPTIONS | {"length": length, "at_once": 0.34})
    jax.effects_barrier()
    assert len(positions) > length  # so that positions would go on
    assert max(positions) < Q + length <= CONFIG.context


def test_places_and_refills_are_of_whole_queries():
    assert places_for(128, 1, 0.25) == 32 and places_for(128, 1, 1.0) == 128
    assert places_for(12, 4, 0.1) == 4  # never less than one query's
    assert 0.07 * 100 > 7 and places_for(300, 3, 0.07) == 21
    for rows, places, per_query in (
        (128, 32, 1),
        (120, 40, 1),
        (96, 48, 4),
        (7, 2, 1),
        (12, 12, 3),
    ):
        count = begun_together(rows, places, per_query)
        assert count % per_query == 0 and (rows - places) % count == 0 and 0 < count <= places


def test_a_sliding_window_reads_its_cache_in_order(params, batch):
    lm = make_language_model(replace(CONFIG, windows=(0, 4)), V)
    ask = lambda **options: generated(
        lm, params, *batch[:2], row_keys(jax.random.key(3), B), **OPTIONS | options
    )
    with pytest.raises(InputError, match=r"at_once=0.5: a model with a sliding window of 4 tokens"):
        ask(at_once=0.5)
    assert ask().mask.any()


def test_a_row_ends_at_the_first_of_several_ends(params, batch):
    keys = lambda: row_keys(jax.random.key(3), B)
    one = sample(params, batch, keys())
    other = int(one.responses[2, 1])
    assert other not in (EOS, PAD)
    several = sample(params, batch, keys(), end_ids=(EOS, other))
    rows = map(np.asarray, (one.responses, several.responses, several.mask))
    for expected, found, mask in zip(*rows, strict=True):
        ends = np.flatnonzero(np.isin(expected, (EOS, other)))
        length = ends[0] + 1 if len(ends) else R
        assert found[:length].tolist() == expected[:length].tolist()
        assert (found[length:] == PAD).all() and mask.tolist() == [t < length for t in range(R)]
    ended = np.asarray(has_ended(several.responses, several.mask, (EOS, other)))
    assert ended.tolist() == np.isin(several.responses, (EOS, other)).any(axis=1).tolist()
    assert 0 < several.mask.sum() < one.mask.sum()


def test_rows_stay_where_they_are_on_several_devices():
    assert smaller_batches(128, refilled=False) == (64,)
    assert smaller_batches(63, refilled=False) == ()
    assert smaller_batches(64, refilled=True) == (32, 8)
    assert smaller_batches(16, refilled=True) == (8,)
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 1, 1), ("data", "fsdp", "tensor"))):
        assert smaller_batches(128, refilled=False) == smaller_batches(64, refilled=True) == ()


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.cases(1)
def test_responses_to_one_query_are_those_to_its_copies(params, batch, scan):
    """The query is read once for all of them."""
    config = replace(CONFIG, scan_layers=scan)
    lm = make_language_model(config, V)
    params = {"trunk": as_layout(params["trunk"], config)}
    keys = lambda: row_keys(jax.random.key(9), 3 * B)
    copies = [jnp.repeat(x, 3, axis=0) for x in (batch.queries, batch.query_mask)]
    expected = generated(lm, params, *copies, keys(), **OPTIONS)
    found = generated(lm, params, batch.queries, batch.query_mask, keys(), **OPTIONS)
    np.testing.assert_array_equal(found.responses, expected.responses)
    assert_same(found.logprobs, expected.logprobs)
    assert (np.asarray(found.responses[::3]) != np.asarray(found.responses[1::3])).any()


def test_keys_differ_by_row_and_step(params, batch):
    """Bug 40: one prompt eight times gives different answers, and so does the next step."""
    same = jax.tree.map(lambda x: jnp.repeat(x[:1], 8, axis=0), batch)
    first, second = (
        sample(params, same, row_keys(jax.random.key(k), 8), temperature=3.0) for k in (4, 5)
    )
    assert len({tuple(map(int, row)) for row in first.responses}) > 4
    assert (np.asarray(first.responses) != np.asarray(second.responses)).any()


def test_the_mask_ends_with_eos(params, batch):
    """After EOS: padding, mask False, log-prob 0. Sampling the pad id ends nothing."""
    found = [sample(params, batch, row_keys(jax.random.key(k), B)) for k in range(20)]
    responses, mask, logprobs = (np.concatenate(x) for x in zip(*found, strict=True))
    assert (responses[mask] == PAD).any() and (responses[mask] == EOS).any()
    for ids, real, lp in zip(responses, mask, logprobs, strict=True):
        end = np.flatnonzero(ids == EOS)
        length = end[0] + 1 if len(end) else R
        assert real.tolist() == [t < length for t in range(R)]
        assert (ids[length:] == PAD).all() and (lp[length:] == 0).all()


def test_logprobs_of_sampling_are_those_of_the_trainer(params, batch):
    """Bugs 15, 23, 35: at T = 0.7 the ratio is 1 before the first update."""
    sampled = sample(params, batch, row_keys(jax.random.key(6), B))
    read = jax.jit(partial(response_logprobs, LM, temperature=0.7))
    again = read(params, batch, sampled)
    assert_same(np.where(sampled.mask, again, 0), sampled.logprobs)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.cases(1)
def test_rows_that_no_token_has_do_not_exist(params, batch, temperature):
    """Large as they may be, they change no response and no log-prob, and have no gradient."""
    rows = 5
    lm = make_language_model(replace(CONFIG, unused_rows=rows), V + rows)
    wte = jnp.concatenate([params["trunk"]["wte"], jnp.full((rows, CONFIG.d_model), 9.0)])
    padded = {"trunk": params["trunk"] | {"wte": wte}}
    keys = lambda: row_keys(jax.random.key(7), B)
    queries = batch.queries, batch.query_mask
    options = OPTIONS | {"temperature": temperature}
    found = generated(lm, padded, *queries, keys(), **options)
    expected = sample(params, batch, keys(), **options)
    np.testing.assert_array_equal(found.responses, expected.responses)
    assert_same(found.logprobs, expected.logprobs)

    def logprobs(model):
        read = partial(response_logprobs, model, temperature=1.0)
        return jax.jit(lambda params: read(params, batch, found))

    assert_same(logprobs(lm)(padded), logprobs(LM)(params))
    loss = lambda p: jnp.where(found.mask, logprobs(lm)(p), 0).sum()
    gradient = jax.jit(jax.grad(loss))(padded)
    assert (gradient["trunk"]["wte"][V:] == 0).all()
    logits = jax.jit(partial(lm.logits, start=0))(padded, *queries)
    assert (entropy(logits) > 0).all() and (exact_kl(logits, logits) == 0).all()


def test_greedy_is_temperature_zero(params, batch):
    """Bug 16: nothing is divided by zero, and the key does not matter."""
    first, second = (
        sample(params, batch, row_keys(jax.random.key(k), B), temperature=0.0) for k in (0, 1)
    )
    np.testing.assert_array_equal(first.responses, second.responses)
    read = jax.jit(partial(LM.logits, start=Q - 1))
    logits = read(params, batch.queries, batch.query_mask)[:, 0]
    np.testing.assert_array_equal(first.responses[:, 0], logits.argmax(axis=-1))
    token, logprob = greedy(logits)
    assert_same(logprob, token_logprobs(logits, token))


def rollout_of(lm, both, reward_models, **changes):
    options = dict(length=R, temperature=0.7, end_ids=(EOS,), pad_id=PAD, at_once=1.0)
    options |= dict(recompute_logprobs=False, packing=False, samples_per_prompt=1)
    return make_rollout(lm, both, reward_models, **options | changes)


def test_a_rollout_reads_each_prompt_once_for_all_its_answers(params, batch):
    """Its answers are those to as many copies of the prompt."""
    copies = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), batch)
    rows = []

    def prefill(params, queries, *mask, **length):
        rows.append(len(queries))
        return LM.prefill(params, queries, *mask, **length)

    both, found = make_policy_value(CONFIG, CONFIG, V, "none"), []
    for samples in (1, 3):
        lm = LM._replace(prefill=prefill)
        rollout = rollout_of(lm, both, {}, samples_per_prompt=samples)
        found.append(jax.jit(rollout)(both.init(params, {}), params, {}, copies, jax.random.key(8)))
    assert rows == [3 * B, B]
    assert (found[0].responses == found[1].responses).all()
    assert (found[0].queries == found[1].queries).all()
    assert_same(found[0].logprobs, found[1].logprobs)


@pytest.mark.parametrize("samples, read", [(2, 4), (4, 8), (3, 8)])
def test_devices_that_share_a_prompt_each_read_it(samples, read):
    rows = QueryBatch(jnp.zeros((8, Q), jnp.int32), jnp.ones((8, Q), bool), jnp.arange(8))
    mesh = AbstractMesh((4, 1, 1), ("data", "fsdp", "tensor"))
    with jax.sharding.use_abstract_mesh(mesh):
        queries, mask = jax.eval_shape(partial(asked, samples_per_prompt=samples), rows)
    assert len(queries) == len(mask) == read


def test_of_stacked_layers_no_step_cuts_its_kernels_out(params, batch):
    """They are laid apart once: the loop is not given the stack."""
    lm = make_language_model(replace(CONFIG, scan_layers=True), V)
    stacked = params | {"trunk": as_layout(params["trunk"], replace(CONFIG, scan_layers=True))}
    kernel = stacked["trunk"]["blocks"]["mlp"]["c_fc"]["kernel"].shape
    program = jax.jit(partial(generate, lm, **OPTIONS))
    keys = row_keys(jax.random.key(0), B)
    text = program.lower(stacked, batch.queries, batch.query_mask, keys).compile().as_text()
    loops = [line for line in text.splitlines() if " while(" in line]
    assert kernel == (2, 16, 64) and loops
    assert not any("f64[2,16,64]" in line for line in loops)
    assert any("f64[16,64]" in line for line in loops)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.cases(2)
def test_rollout(params, batch, recompute, trunk):
    """Policy = reference: KL 0. Values are those of the states before each token (bug 3)."""
    reward = make_scalar_model(CONFIG, V)
    reward_params = jax.jit(reward.init)(jax.random.key(7), params["trunk"])
    both = make_policy_value(CONFIG, CONFIG, V, trunk)
    rollout = rollout_of(LM, both, {"task": reward}, recompute_logprobs=recompute)
    trained = both.init(params, reward_params)
    r = jax.jit(rollout)(trained, params, {"task": reward_params}, batch, jax.random.key(8))
    assert_same(r.logprobs, r.ref_logprobs)
    tokens = jnp.concatenate([r.queries, r.responses], axis=1)
    mask = jnp.concatenate([r.query_mask, r.mask], axis=1)
    score = jax.jit(lambda params: reward.score(params, tokens, mask, None))
    assert_same(r.scores["task"], score(reward_params))
    if trunk == "separate":
        all_values = jax.jit(partial(reward.values, start=0))(reward_params, tokens, mask)
        expected = np.where(r.mask, all_values[:, Q - 1 : Q + R - 1], 0)
        assert_same(r.values, expected)
    else:
        assert (r.values == 0).all()  # a fresh head on the policy's trunk
    episode = r.queries, r.query_mask, r.responses, r.mask
    logits, _ = jax.jit(both.evaluate)(trained, *episode)
    again = token_logprobs(scale_logits(logits, 0.7), r.responses)
    assert_same(np.where(r.mask, again, 0), r.logprobs)
