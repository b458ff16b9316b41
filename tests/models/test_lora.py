"""Low-rank adapters: nothing changes at first, only they train, and merged they are the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapters import LORA, SCALE, VOCAB, adapted, logits
from families import SHAPES, random_params
from precision import assert_same

from rlhf_jax.config import OptimConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.lora import (
    add_adapters,
    combine,
    has_adapters,
    kernels,
    merge_adapters,
    partition,
    share_equal,
)
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.training.optimizers import make_optimizer, make_state
from rlhf_jax.training.updates import make_update_step
from rlhf_jax.types import LMBatch


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.cases(3)
def test_new_adapters_change_nothing(name):
    config, base, params = adapted(name, random=False)
    np.testing.assert_array_equal(logits(config, params), logits(config, base))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.usefixtures("float64")
@pytest.mark.cases(4)
def test_merged_is_the_same_model(name, scan):
    config, base, params = adapted(name, scan=scan, dtype="float64")
    merged = merge_adapters(params, SCALE)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    found, expected = logits(config, params), logits(config, merged)
    assert_same(found, expected)
    assert float(jnp.abs(found - logits(config, base)).max()) > 0.05


@pytest.mark.usefixtures("float64")
def test_the_update_is_scaled_by_alpha_over_rank():
    _, _, params = adapted("gpt2", dtype="float64")
    layer = params["trunk"]["block_0"]["attn"]["c_attn"]
    expected = layer["kernel"] + 2.0 * layer["lora_a"] @ layer["lora_b"]
    found = merge_adapters(params, SCALE)["trunk"]["block_0"]["attn"]["c_attn"]["kernel"]
    assert_same(found, expected)


def test_scanned_layers_get_the_same_adapters():
    unrolled, _, params = adapted("llama", random=False)
    _, _, stacked = adapted("llama", scan=True, random=False)
    jax.tree.map(
        np.testing.assert_array_equal,
        as_layout(stacked["trunk"], unrolled),
        params["trunk"],
    )


def test_targets_choose_layers_by_their_path():
    modules = lambda targets: {
        "/".join(path[1:])
        for path, _ in kernels(SHAPE_TREE)
        if "lora_a" in at(adapt(targets)["trunk"], path)
    }
    assert modules(".*") == {"attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"}
    assert modules("attn/c_attn|mlp/c_fc") == {"attn/c_attn", "mlp/c_fc"}
    with pytest.raises(InputError, match=r"lora.targets='q_proj' names no dense layer; there are"):
        adapt("q_proj")


def test_a_rank_that_no_layer_has_is_refused():
    width = SHAPES["gpt2"].d_model
    adapt(".*", rank=width)
    with pytest.raises(InputError, match=rf"lora.rank={width + 1}: expected at most {width}, the"):
        adapt(".*", rank=width + 1)


SHAPE_TREE = random_params(SHAPES["gpt2"], vocab_size=VOCAB)["trunk"]


def adapt(targets, **changes):
    config = dataclasses.replace(LORA, targets=targets, **changes)
    return add_adapters(jax.random.key(0), {"trunk": SHAPE_TREE}, SHAPES["gpt2"], config)


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_partition_and_combine_are_inverse_and_copy_nothing():
    _, _, params = adapted("qwen3")
    params["head"] = {"kernel": jnp.ones((16, 1)), "bias": jnp.zeros(1)}
    trainable, frozen = partition(params)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(trainable["trunk"])}
    assert names == {"lora_a", "lora_b"} and trainable["head"] is not None
    assert not has_adapters(frozen) and "head" not in frozen
    again = combine(frozen, trainable)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (again, params)), strict=True))
    everything, nothing = partition({"trunk": SHAPE_TREE})
    assert nothing == {} and everything["trunk"] is SHAPE_TREE
    assert combine(nothing, everything)["trunk"] is not None


def test_equal_weights_are_shared():
    _, base, params = adapted("gpt2")
    other = jax.tree.map(jnp.copy, params)
    other["trunk"]["ln_f"]["scale"] += 1
    shared = share_equal(other, base)
    assert shared["trunk"]["wte"] is base["trunk"]["wte"]
    assert shared["trunk"]["ln_f"]["scale"] is other["trunk"]["ln_f"]["scale"]
    assert has_adapters(shared)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_only_adapters_train_and_only_they_have_optimizer_state(weight_decay):
    config, base, params = adapted("llama", random=False)
    lm = make_language_model(config, VOCAB)
    optim = OptimConfig(lr=1e-2, schedule="constant", weight_decay=weight_decay)
    tx = make_optimizer(optim, 10, updates_per_step=1)
    trainable, frozen = partition(params)
    state = make_state(trainable, tx, ema_decay=0.9)
    sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert sizes(state.opt_state) == 2 * sizes(trainable) + 2  # two moments, two counters
    assert sizes(state.ema_params) == sizes(trainable) < sizes(params) / 3

    def loss_fn(params, batch, key, count):
        return lm_loss(lm.packed_logits(params, batch, None), batch, count=count)

    step = jax.jit(make_update_step(loss_fn, count_targets, tx, accumulate=2, ema_decay=0.9))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (4, 12)), jnp.int32)
    ones, counted = jnp.ones(tokens.shape, jnp.int32), jnp.ones(tokens.shape, bool)
    batch = LMBatch(tokens, counted, ones, jnp.tile(jnp.arange(12)[None], (4, 1)))
    losses = []
    for n in range(30):
        state, metrics = step(state, batch, jax.random.key(n), frozen)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    merged = combine(frozen, state.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(base):
        names = [entry.key for entry in path]
        np.testing.assert_array_equal(at(merged, names), leaf)
    assert all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(state.params))


@pytest.mark.usefixtures("float64")
def test_the_gradient_of_an_adapter_is_that_of_its_product():
    """∂L/∂A = s ∂L/∂W Bᵀ and ∂L/∂B = s Aᵀ ∂L/∂W, by the merged model's own gradient."""
    config, _, params = adapted("gpt2", dtype="float64")
    trainable, frozen = partition(params)
    loss = lambda params: optax.l2_loss(logits(config, params)).mean()
    found = jax.jit(jax.grad(lambda p: loss(combine(frozen, p))))(trainable)
    dense = jax.jit(jax.grad(loss))(merge_adapters(params, SCALE))
    path = ("trunk", "block_1", "attn", "c_proj")
    layer, outer = at(params, path), at(dense, path)["kernel"]
    expected = {
        "lora_a": SCALE * outer @ layer["lora_b"].T,
        "lora_b": SCALE * layer["lora_a"].T @ outer,
    }
    for name, value in expected.items():
        assert_same(at(found, path)[name], value)
