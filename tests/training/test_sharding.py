"""Every large parameter of every family is split; optimizer state follows; the mesh adds up."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rlhf_jax.config import LoRAConfig, ModelConfig, OptimConfig, ParallelConfig, RotaryConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.models.layout import fit
from rlhf_jax.models.lora import add_adapters, partition
from rlhf_jax.training.mesh import mesh_shape
from rlhf_jax.training.optimizers import make_policy_value_optimizer, make_state
from rlhf_jax.training.sharding import laid_out, spec_of

SIZES = {"data": 2, "fsdp": 4, "tensor": 2}
GPT2 = ModelConfig(n_layers=2, d_model=64, n_heads=4, context=64)
LLAMA = replace(
    GPT2,
    positions="rotary",
    norm="rms",
    activation="swiglu",
    bias="qkv",
    qk_norm=True,
    n_kv_heads=2,
    tied=False,
)
NEOX = replace(LLAMA, rotary=RotaryConfig(fraction=0.25), norm="layer", parallel_residual=True)

GEMMA = replace(LLAMA, norm="rms_offset", norm_place="both", activation="geglu", windows=(8, 0))


def specs(tree):
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield name, leaf, spec_of(name, leaf.shape, SIZES)


def parts(spec):
    names = [name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))]
    return int(np.prod([SIZES[name] for name in names if name]))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "family", [GPT2, LLAMA, NEOX, GEMMA], ids=["gpt2", "llama", "neox", "gemma"]
)
def test_every_matrix_of_a_trunk_is_split_over_fsdp_and_tensor(family, scan):
    model = replace(family, scan_layers=scan)
    params = jax.eval_shape(make_language_model(model, 96).init, jax.random.key(0))
    for name, leaf, spec in specs(params):
        layers = ("blocks",) if scan and "blocks" in name else ()
        if leaf.ndim - len(layers) == 2:
            whole = 4 if name.endswith("wpe") else 8
            assert parts(spec) == whole, (name, spec)
        if layers:
            assert not spec or spec[0] is None, "the axis that lax.scan walks is never split"


@pytest.mark.parametrize("lora", [0, 8])
def test_optimizer_state_and_average_lie_as_their_parameters(lora):
    lm = make_language_model(GPT2, 96).init(jax.random.key(0))
    if lora:
        lm = add_adapters(jax.random.key(1), lm, GPT2, LoRAConfig(rank=lora))
    value = make_scalar_model(GPT2, 96).init(jax.random.key(2), lm["trunk"])
    both, _ = partition({"policy": lm, "value": value})
    optim = OptimConfig()
    muon = OptimConfig(optimizer="muon", adam_lr=1e-3)
    for config in (optim,) if lora else (optim, muon):
        tx = make_policy_value_optimizer(config, config, 10, updates_per_step=1)
        state = jax.eval_shape(lambda p, tx=tx: make_state(p, tx, ema_decay=0.9), both)
        of_params = {name: spec for name, _, spec in specs(state.params)}
        seen = set()
        for name, leaf, spec in specs((state.opt_state, state.ema_params)):
            owner = next((p for p in of_params if name.endswith(p)), None)
            if owner is None:
                assert leaf.size <= 16, f"{name} is no parameter's and not small"
            else:
                assert spec == of_params[owner], name
                seen.add(owner)
        assert seen == set(of_params)


def test_scalar_heads_norms_and_counters_lie_everywhere():
    for name in ("head/kernel", "trunk/ln_f/scale", "opt_state/0/count", "policy/head/bias"):
        assert spec_of(name, (64,), SIZES) == P()


def test_axes_that_do_not_divide_are_left_out():
    spec = ("tensor", "fsdp")
    assert fit(spec, (50257, 64), SIZES) == P(None, "fsdp")
    assert fit((("data", "fsdp"),), (2,), SIZES) == P("data")
    assert fit(spec, (3, 3), SIZES) == P(None, None)


def test_without_a_mesh_nothing_is_said():
    tree = {"wte": np.ones((4, 4))}
    assert laid_out(tree) is tree


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ParallelConfig(), (8, 1, 1)),
        (ParallelConfig(fsdp=2, tensor=2), (2, 2, 2)),
        (ParallelConfig(data=1, fsdp=8), (1, 8, 1)),
    ],
)
def test_mesh_shape(config, shape):
    assert mesh_shape(config, 8) == shape


def test_a_mesh_that_does_not_add_up():
    with pytest.raises(InputError, match=r"fsdp=3 x parallel\.tensor=1 = 6, but there are 8"):
        mesh_shape(ParallelConfig(fsdp=3), 8)
    with pytest.raises(InputError, match="pmap splits rows only"):
        ParallelConfig("pmap", fsdp=2)
