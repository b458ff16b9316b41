"""Logits in parts: the same loss and gradients, and never all of them at once."""

from dataclasses import replace

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from precision import assert_same

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.objectives.language_losses import lm_loss, lm_loss_of_logprobs
from rlhf_jax.types import LMBatch

pytestmark = pytest.mark.usefixtures("module_in_float64")
CONFIG = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=24, dtype="float64")
V, B, T = 503, 3, 12


def make_batch() -> LMBatch:
    shape = (B, T)
    tokens = jax.random.randint(jax.random.key(2), shape, 0, V)
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, shape)
    positions = jnp.broadcast_to(jnp.arange(T)[None], shape)
    return LMBatch(tokens, mask, jnp.ones(shape, jnp.int32), positions)


def loss_fn(config):
    lm = make_language_model(config, V)

    def loss(params, batch):
        return lm_loss_of_logprobs(lm.packed_logprobs(params, batch, None), batch)[0]

    return loss


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 33, 100])  # 33 = B (T − 1) rows in all
@pytest.mark.cases(2)
def test_the_same_loss_and_gradients(tied, rows):
    config = replace(CONFIG, tied=tied)
    lm, batch = make_language_model(config, V), make_batch()
    params = jax.jit(lm.init)(jax.random.key(0))
    reference = lambda params: lm_loss(lm.packed_logits(params, batch, None), batch)[0]
    expected = jax.jit(jax.value_and_grad(reference))(params)
    in_parts = loss_fn(replace(config, logit_rows=rows))
    found = jax.jit(jax.value_and_grad(in_parts))(params, batch)
    jax.tree.map(assert_same, found, expected)


def test_without_parts_nothing_changes():
    lm, batch = make_language_model(CONFIG, V), make_batch()
    params = jax.jit(lm.init)(jax.random.key(0))
    expected = lm_loss(lm.packed_logits(params, batch, None), batch)[0]
    assert loss_fn(CONFIG)(params, batch) == expected


def test_the_logits_never_exist_at_once():
    """No array of the gradient's program has as many entries as all logits."""
    params = jax.jit(make_language_model(CONFIG, V).init)(jax.random.key(0))

    def largest(rows: int) -> int:
        gradient = jax.grad(loss_fn(replace(CONFIG, logit_rows=rows)))
        program = jax.make_jaxpr(gradient)(params, make_batch())
        return max(sizes(program.jaxpr))

    assert largest(0) >= B * (T - 1) * V
    assert largest(4) <= V * CONFIG.d_model  # the embedding


def sizes(jaxpr):
    """Entries of every array that a program makes, in inner programs too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)
