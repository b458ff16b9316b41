"""Products in the forms that a CPU likes: the same values, and on no other platform."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from precision import assert_same

from rlhf_jax.config import LoRAConfig, ModelConfig
from rlhf_jax.models import cpu_decoding
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.lora import add_adapters
from rlhf_jax.models.products import transposed_product, wide_product
from rlhf_jax.rollouts.generate import generate, row_keys

pytestmark = pytest.mark.usefixtures("module_in_float64")
CONFIG = ModelConfig(n_layers=2, d_model=16, n_heads=2, context=32, dtype="float64")
V, B, Q, R = 19, 4, 5, 8
QUERIES = jax.random.randint(jax.random.key(1), (B, Q), 0, 17)
PLATFORMS = [("cpu", True), ("tpu", False), ("cuda", False)]


def test_the_product_with_the_vocabulary_has_the_gradient_of_a_product():
    rows, kernel, weights = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(37, 16), (16, 300), (37, 300)])
    )
    gradients = lambda product: jax.grad(
        lambda x, w: (weights * product(x, w)).sum(), argnums=(0, 1)
    )(rows, kernel)
    np.testing.assert_array_equal(wide_product(rows, kernel), rows @ kernel)
    for found, expected in zip(gradients(wide_product), gradients(jnp.dot), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("platform, transposed", PLATFORMS)
def test_only_a_cpu_turns_the_rows_first(platform, transposed):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((37, 16), (16, 300))]
    traced = jax.jit(jax.grad(lambda x, w: wide_product(x, w).sum(), argnums=1)).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == transposed


def test_a_turned_product_is_the_product():
    rows, kernel = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(5, 16), (16, 9)])
    )
    assert_same(transposed_product(rows, kernel.T), rows @ kernel)


def sampler(config):
    options = dict(
        length=R, temperature=1.0, top_k=0, top_p=1.0, end_ids=(17,), pad_id=18, at_once=1.0
    )
    lm = make_language_model(config, V)
    return jax.jit(
        lambda params, queries, mask, keys: generate(lm, params, queries, mask, keys, **options)
    )


def inputs():
    return QUERIES, jnp.ones((B, Q), bool), row_keys(jax.random.key(2), B)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scan_layers": True},
        {"tied": False, "bias": "none"},
        {"activation": "swiglu", "norm": "rms", "positions": "rotary"},
        {"lora": True},
        {"unused_rows": 3},
    ],
    ids=str,
)
@pytest.mark.cases(1)
def test_decoding_with_turned_kernels_gives_the_same_responses(changes, monkeypatch):
    adapters = changes.pop("lora", False)
    config = replace(CONFIG, **changes)
    params = jax.tree.map(lambda x: 4 * x, make_language_model(config, V).init(jax.random.key(0)))
    if adapters:
        params = add_adapters(jax.random.key(3), params, config, LoRAConfig(rank=2))
        params = jax.tree.map(lambda x: x + 0.1, params)
    plain = sampler(config)(params, *inputs())
    monkeypatch.setattr(cpu_decoding, "WIDE", 16)
    program = sampler(config)
    transposed = program(params, *inputs())
    np.testing.assert_array_equal(transposed.responses, plain.responses)
    assert_same(transposed.logprobs, plain.logprobs)
    assert transposed_products(program, params, *inputs()) == {"mlp", "head"}


def transposed_products(program, *operands, platform="cpu") -> set[str]:
    """The products of MLP, [64, 16], and head, [19, 16], in which the rows stand on the right."""
    traced = program.trace(*operands)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    types = "(tensor<{0}x16xf64>, tensor<{1}x16xf64>) -> tensor<{0}x{1}xf64>"
    outputs = {"mlp": 64, "head": V}
    return {name for name, out in outputs.items() if types.format(out, B) in text}


@pytest.mark.parametrize("platform, transposed", PLATFORMS)
@pytest.mark.cases(1)
def test_only_a_cpu_decodes_with_turned_kernels(platform, transposed, monkeypatch):
    monkeypatch.setattr(cpu_decoding, "WIDE", 16)
    params = make_language_model(CONFIG, V).init(jax.random.key(0))
    found = transposed_products(sampler(CONFIG), params, *inputs(), platform=platform)
    assert found == ({"mlp", "head"} if transposed else set())


@pytest.mark.parametrize("platform, transposed", PLATFORMS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.cases(2)
def test_prefill_does_not_copy_a_tied_embedding_for_one_position(
    tied, platform, transposed, monkeypatch
):
    """On a CPU it is the left operand as it lies; an untied kernel would first be transposed."""
    monkeypatch.setattr(cpu_decoding, "WIDE", 16)
    lm = make_language_model(replace(CONFIG, tied=tied, bias="none"), V)
    params, (queries, mask, _) = lm.init(jax.random.key(0)), inputs()
    prefill = jax.jit(lambda *operands: lm.prefill(*operands, length=R))
    found = transposed_products(prefill, params, queries, mask, platform=platform)
    assert found == ({"head"} if transposed and tied else set())


@pytest.mark.parametrize(
    "rows, config, expected",
    [
        (1, CONFIG, False),
        (2, CONFIG, True),
        (32, CONFIG, True),
        (33, CONFIG, False),
        (8, replace(CONFIG, d_model=8), False),
        (8, replace(CONFIG, dtype="float32"), True),
        (8, replace(CONFIG, dtype="bfloat16"), False),
    ],
)
def test_only_few_rows_of_a_wide_model_are_read_turned(rows, config, expected, monkeypatch):
    monkeypatch.setattr(cpu_decoding, "WIDE", 16)
    assert make_language_model(config, V).prefers_rearranged(rows) == expected


def test_kernels_lie_as_they_are_on_several_devices(monkeypatch):
    monkeypatch.setattr(cpu_decoding, "WIDE", 16)
    lm = make_language_model(CONFIG, V)
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 1, 4), ("data", "fsdp", "tensor"))):
        assert not lm.prefers_rearranged(8)
    assert lm.prefers_rearranged(8)
