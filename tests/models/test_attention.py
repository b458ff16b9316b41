"""Who sees whom; kernels of accelerators give what two products give, wherever they can run."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax._src.cudnn import fused_attention_stablehlo
from precision import float32_bound, network_terms

from rlhf_jax.config import ModelConfig, ParallelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models.attention import (
    Segments,
    attention,
    cudnn_attention,
    in_segments,
    plain_attention,
    visible,
)
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.models.scoring import ALL_KEYS, Scoring
from rlhf_jax.models.splash import splash_attention
from rlhf_jax.training.mesh import make_mesh

plain = plain_attention
interpreted = partial(splash_attention, interpret=True)


def test_a_token_sees_its_own_segment_up_to_itself():
    ids = jnp.array([[0, 0, 1, 1, 2, 2, 0], [1, 1, 1, 2, 2, 3, 3]])
    seen = visible(in_segments(ids))[:, 0]
    for b, row in enumerate(np.asarray(ids)):
        for t in range(7):
            expected = [row[s] == row[t] and s <= t for s in range(7)]
            np.testing.assert_array_equal(seen[b, t], expected)


def test_one_query_before_empty_slots_sees_what_is_real():
    keys = jnp.array([[0, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    seen = visible(Segments(jnp.ones((2, 1), jnp.int32), keys))
    np.testing.assert_array_equal(seen[:, 0, 0], keys == 1)


def inputs(H, G, T, S, dtype="float32", Dh=16):
    """Rows: padded on the left, packed, padded on the right; their segments."""
    keys = jax.random.split(jax.random.key(T), 3)
    shapes = ((3, H, T, Dh), (3, G, S, Dh), (3, G, S, Dh))
    q, k, v = (jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True))
    place = jnp.arange(S)
    ids = jnp.stack([place >= 5, 1 + (place >= S // 2) + (place >= S - 3), place < S - 6])
    return q, k, v, Segments(ids[:, S - T :].astype(jnp.int32), ids.astype(jnp.int32))


def outputs_and_gradients(attend, q, k, v, segments):
    """Of a loss that, like those of training, reads nothing of padding."""
    weight = (segments.queries > 0)[:, None, :, None]

    def loss(q, k, v):
        out = attend(q, k, v, segments).astype(jnp.float32)
        return (jnp.sin(3 * out) * weight).sum(), out * weight

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def assert_near(found, expected, keys):
    """To rounding: the kernel sums in float32 whatever it is given, so both programs do.

    Forward, Σ over a head's 16 dimensions, softmax and average over the keys; backward, Σ over the
    dimensions, the keys, and the keys or as many queries.
    """
    for x, y in zip(found, expected, strict=True):
        bound = float32_bound(2 * (2 * 16 + 4 * keys), float(jnp.abs(y).max()))
        np.testing.assert_allclose(x, y, rtol=0, atol=bound)


@pytest.mark.parametrize(
    "H, G, T, S, scoring",
    [
        (4, 4, 128, 128, ALL_KEYS),
        (4, 2, 47, 47, ALL_KEYS),
        (2, 1, 12, 140, ALL_KEYS),
        (2, 2, 129, 200, ALL_KEYS),
        (2, 1, 300, 300, Scoring(width=9, cap=2.0, window=20)),
        (2, 2, 12, 140, Scoring(window=5)),
    ],
    ids=["whole blocks", "grouped", "behind a query", "blocks and a bit", "window", "both"],
)
@pytest.mark.cases(2)
def test_splash_attention_is_attention(H, G, T, S, scoring):
    given = inputs(H, G, T, S)
    got = outputs_and_gradients(partial(interpreted, scoring=scoring), *given)
    expected = outputs_and_gradients(partial(plain, scoring=scoring), *given)
    assert_near(got, expected, S)


@pytest.mark.multidevice
def test_each_device_has_its_own_rows_and_heads():
    done = subprocess.run(
        [sys.executable, __file__],
        env=tiny.process_environment(JAX_NUM_CPU_DEVICES="8"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def compare_on_eight_devices():
    """Run in a process of its own: key-value heads that tensor splits, and one that it cannot."""
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2), jax.devices())
    for kv_heads, split in ((4, True), (1, False)):
        q, k, v, segments = inputs(4, kv_heads, 47, 47)
        q, k, v, *ids = (jnp.concatenate([x, x[:1]]) for x in (q, k, v, *segments))
        expected = outputs_and_gradients(plain, q, k, v, Segments(*ids))
        with jax.set_mesh(mesh):
            got = outputs_and_gradients(interpreted, q, k, v, Segments(*ids))
            traced = str(jax.make_jaxpr(interpreted)(q, k, v, Segments(*ids)))
        assert_near(got, expected, 47)
        heads = 2 if split else 4
        assert f"f32[1,{heads},128,16]" in traced, "a device computes what others compute too"
    q, k, v, segments = inputs(4, 2, 47, 47)
    q, k, v, *ids = (jnp.concatenate([x, x[:1]]) for x in (q, k, v, *segments))
    scoring = Scoring(cap=2.0, window=9)
    expected = outputs_and_gradients(partial(plain, scoring=scoring), q, k, v, Segments(*ids))
    in_blocks = partial(attention, drop=None, fused=False, scoring=scoring)
    for attend in (in_blocks, partial(interpreted, scoring=scoring)):
        with jax.set_mesh(mesh):
            assert_near(outputs_and_gradients(attend, q, k, v, Segments(*ids)), expected, 47)


CONFIG = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, context=32)


def scores_of_a_reward_model(config):
    """Its trunk reads whole sequences, and responses behind a query that is read once."""
    lm, model = make_language_model(config, 50), make_scalar_model(config, 50)
    params = model.init(jax.random.key(1), lm.init(jax.random.key(0))["trunk"])
    tokens = jax.random.randint(jax.random.key(2), (2, 3, 7), 0, 50)
    queries, query_mask = tokens[:, 0], jnp.arange(7)[None] >= jnp.array([[0], [3]])
    mask = jnp.arange(7)[None, None] < jnp.array([[7, 2, 0], [1, 5, 3]])[..., None]
    return model.score_responses(params, queries, query_mask, tokens, mask, None)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.slow
def test_models_take_the_kernel_that_the_platform_has(monkeypatch, scan):
    fused = replace(CONFIG, attention="fused", scan_layers=scan)
    expected = scores_of_a_reward_model(replace(CONFIG, scan_layers=scan))
    np.testing.assert_array_equal(scores_of_a_reward_model(fused), expected)  # two products here
    calls = []

    def choose(*operands, tpu, default):
        calls.append(tpu.func)
        return tpu(*operands, interpret=True)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    bound = float32_bound(2 * network_terms(CONFIG, 14, 1), float(jnp.abs(expected).max()))
    np.testing.assert_allclose(scores_of_a_reward_model(fused), expected, rtol=0, atol=bound)
    assert set(calls) == {splash_attention}


@pytest.mark.parametrize("T, S", [(128, 128), (47, 47), (12, 59)])
def test_cudnn_takes_every_length(monkeypatch, T, S):
    """Lowered for a GPU that is not there: JAX checks shapes, and calls forward and backward."""
    version = lambda: 91000
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", version)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    *qkv, segments = inputs(4, 2, T, S, "bfloat16", Dh=64)
    loss = lambda q, k, v: cudnn_attention(q, k, v, segments).astype(jnp.float32).sum()
    program = jax.export.export(
        jax.jit(jax.grad(loss, (0, 1, 2))),
        platforms=["cuda"],
        disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call(f"__cudnn$fmhaScaleBiasSoftmax{end}")
            for end in ("", "Backward")
        ],
    )(*qkv)
    text = program.mlir_module()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text and "SoftmaxBackward(" in text
    assert [x.shape for x in program.out_avals] == [x.shape for x in qkv]


def test_on_a_gpu_attention_is_cudnn_and_needs_half_precision(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match=r"needs model\.dtype=bfloat16, not float32"):
        attention(*inputs(2, 2, 8, 8), drop=None, fused=True)


def test_cudnn_caps_no_scores():
    given = inputs(2, 2, 8, 8, "bfloat16")
    with pytest.raises(InputError, match=r"cannot cap scores \(model\.score_cap=50\.0\): expected"):
        cudnn_attention(*given, Scoring(cap=50.0))


@pytest.mark.parametrize(
    "T, drop, kernel", [(8, None, True), (1, None, False), (8, lambda weights: weights, False)]
)
def test_one_query_and_dropped_weights_are_two_products(T, drop, kernel):
    """A kernel over blocks of 128 queries has nothing to gain from one, and drops no weights."""
    trace = jax.make_jaxpr(partial(attention, drop=drop, fused=True))(*inputs(2, 2, T, 40))
    assert ("pallas_call" in str(trace)) == kernel


if __name__ == "__main__":
    compare_on_eight_devices()
