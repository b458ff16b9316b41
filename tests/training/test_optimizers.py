"""Schedules, decay, clipping, averages: by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from precision import SAME, assert_same

from rlhf_jax.config import OptimConfig
from rlhf_jax.training.optimizers import (
    make_optimizer,
    make_policy_value_optimizer,
    make_schedule,
    make_state,
    update_ema,
)
from rlhf_jax.training.updates import apply_gradients

pytestmark = pytest.mark.usefixtures("module_in_float64")


def params():
    key = jax.random.key(0)
    return {
        "trunk": {"wte": jax.random.normal(key, (5, 4)), "c_fc": {"kernel": jnp.ones((4, 4))}},
        "head": {"bias": jnp.ones(3)},
    }


def steps(config, count, *, total=100, updates_per_step=1, gradient=0.3):
    tx = make_optimizer(config, total, updates_per_step=updates_per_step)
    state = make_state(params(), tx, ema_decay=config.ema_decay)
    grads = jax.tree.map(lambda x: gradient * jnp.ones_like(x), state.params)
    for _ in range(count):
        state = apply_gradients(state, grads, tx, ema_decay=config.ema_decay)
    return state


def test_schedules():
    linear = OptimConfig(lr=2.0, schedule="linear", warmup_steps=10, warmup_init=0.1, final_lr=0.2)
    at = lambda config, step: float(make_schedule(config, 110)(step))
    close = lambda config, steps, expected: np.testing.assert_allclose(
        [at(config, t) for t in steps], expected, rtol=SAME
    )
    close(linear, (0, 5, 10, 60, 110, 500), [0.2, 1.1, 2, 1.2, 0.4, 0.4])
    cosine = OptimConfig(lr=1.0, schedule="cosine", final_lr=0.1)
    close(cosine, (0, 55, 110), [1.0, 0.55, 0.1])
    constant = OptimConfig(lr=1.0, schedule="constant")
    assert at(constant, 110) == 1.0


@pytest.mark.slow
def test_the_schedule_counts_iterations():
    """Bug 41: after InstructGPT's 10 iterations of 8 updates the warm-up is over, not before."""
    config = OptimConfig(lr=1.0, schedule="constant", warmup_steps=10, warmup_init=0.1)
    tx = make_optimizer(config, 100, updates_per_step=8)
    state = tx.init(params())
    grads = jax.tree.map(jnp.ones_like, params())
    sizes = []
    for _ in range(81):
        updates, state = tx.update(grads, state, params())
        sizes.append(float(jnp.abs(updates["head"]["bias"]).max()))
    np.testing.assert_allclose(sizes[:8], sizes[0], rtol=SAME)
    assert sizes[8] > sizes[7] and sizes[80] / sizes[0] == pytest.approx(10, rel=SAME)


def test_adamw_against_numpy():
    """Ten steps; decay on the kernel only (bug 43), after Adam and not before."""
    config = OptimConfig(lr=0.03, schedule="constant", weight_decay=0.5, clip_norm=0.0, b2=0.9)
    state = steps(config, 10)
    for path, decay in ((("trunk", "c_fc", "kernel"), 0.5), (("head", "bias"), 0.0)):
        start = got = None
        start, got = params(), state.params
        for name in path:
            start, got = start[name], got[name]
        p, m, v = np.asarray(start, float), 0.0, 0.0
        for t in range(1, 11):
            m, v = 0.9 * m + 0.1 * 0.3, 0.9 * v + 0.1 * 0.09
            p = p - 0.03 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8) + decay * p)
        assert_same(got, np.broadcast_to(p, got.shape))


def test_clipping_is_by_the_global_norm():
    config = OptimConfig(lr=1.0, schedule="constant", clip_norm=1.0)
    tx = make_optimizer(config, 10, updates_per_step=1)
    big = jax.tree.map(lambda x: 100 * jnp.ones_like(x), params())
    _, state = tx.update(big, tx.init(params()), params())
    moments = jax.tree.leaves(state[1].mu)
    norm = np.sqrt(sum(float((m**2).sum()) for m in moments)) / 0.1
    assert norm == pytest.approx(1, rel=SAME)


def test_ema():
    """Bug 42: decay 0.992 keeps 99.2 % of the average; not debiased, starts at the weights."""
    config = OptimConfig(lr=0.1, schedule="constant", ema_decay=0.992)
    one = steps(config, 1)
    expected = jax.tree.map(lambda a, b: 0.992 * a + 0.008 * b, params(), one.params)
    jax.tree.map(assert_same, one.ema_params, expected)
    assert steps(OptimConfig(), 1).ema_params is None and update_ema(None, {}, decay=0.9) is None


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_policy_and_value_have_their_own_optimizers(optimizer):
    make = lambda lr: OptimConfig(optimizer=optimizer, lr=lr, adam_lr=lr, schedule="constant")
    tx = make_policy_value_optimizer(make(1e-2), make(1e-3), 10, updates_per_step=1)
    both = {"policy": params(), "value": params()}
    grads = jax.tree.map(jnp.ones_like, both)
    updates, _ = tx.update(grads, tx.init(both), both)
    ratio = updates["policy"]["head"]["bias"] / updates["value"]["head"]["bias"]
    np.testing.assert_allclose(ratio, 10.0, rtol=SAME)
    alone = {"policy": params()}
    tx.update({"policy": grads["policy"]}, tx.init(alone), alone)  # a shared trunk has no value


def test_muon_orthogonalises_kernels_and_only_those():
    config = OptimConfig(
        optimizer="muon",
        lr=1.0,
        adam_lr=0.5,
        schedule="constant",
        weight_decay=0.0,
        clip_norm=0.0,
        eps=1e-12,
    )
    tx = make_optimizer(config, 10, updates_per_step=1)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params())
    updates, _ = tx.update(grads, tx.init(params()), params())
    singular = np.linalg.svd(updates["trunk"]["c_fc"]["kernel"], compute_uv=False)
    assert (singular > 0.6).all() and (singular < 1.3).all()
    plain = np.abs(updates["head"]["bias"])  # Adam (with Nesterov momentum): all steps alike
    np.testing.assert_allclose(plain, plain[0], rtol=SAME)
    assert 0.4 < plain[0] < 0.8


def test_no_gradient_no_step():
    config = OptimConfig(weight_decay=0.0)
    still = steps(config, 3, gradient=0.0)
    jax.tree.map(np.testing.assert_array_equal, still.params, params())


def test_muon_is_optax_contrib_muon():
    """Twenty steps on wide, tall, square and stacked kernels; everything else is Adam's."""
    shapes = {"wide": (8, 24), "tall": (24, 8), "square": (8, 8), "stacked": (3, 8, 16)}
    kernels = {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}
    start = {"trunk": kernels | {"wte": jnp.ones((9, 8))}, "head": {"kernel": jnp.ones((8, 1))}}
    config = OptimConfig(
        optimizer="muon", lr=0.02, adam_lr=0.004, weight_decay=0.1, clip_norm=0.0, warmup_steps=3
    )
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    schedule = make_schedule(config, 100)
    theirs = optax.contrib.muon(
        schedule,
        weight_decay=0.1,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_learning_rate=lambda count: schedule(count) / 5,
        muon_weight_dimension_numbers={
            "trunk": {name: {"kernel": matrix} for name in shapes} | {"wte": None},
            "head": {"kernel": None},
        },
    )
    ours = make_optimizer(config, 100, updates_per_step=1)
    results = []
    for tx in (ours, theirs):
        update = jax.jit(tx.update)
        found, state = start, tx.init(start)
        for step in range(20):
            leaves, tree = jax.tree.flatten(found)
            keys = jax.random.split(jax.random.key(step), len(leaves))
            noise = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
            updates, state = update(jax.tree.unflatten(tree, noise), state, found)
            found = optax.apply_updates(found, updates)
        results.append(found)
    jax.tree.map(assert_same, *results)
