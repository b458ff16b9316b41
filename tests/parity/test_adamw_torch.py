"""AdamW, its clipping, decay mask and schedules against torch.optim and transformers' schedules."""

import jax
import numpy as np
import pytest

from parity.torch_bridge import DOUBLE, SINGLE, hf, torch
from rlhf_jax.config import OptimConfig
from rlhf_jax.training.optimizers import make_optimizer, make_schedule, make_state
from rlhf_jax.training.updates import apply_gradients

pytestmark = pytest.mark.torch

TOTAL, WARMUP = 20, 4
DECAYS = {"trunk/block_0/attn/c_attn/kernel", "head/kernel"}
"""Matrices of dense layers: not the embedding, norms and biases."""


def flat_params():
    rng = np.random.default_rng(0)
    shapes = {
        "trunk/wte": (11, 6),
        "trunk/block_0/attn/c_attn/kernel": (6, 18),
        "trunk/block_0/attn/c_attn/bias": (18,),
        "trunk/ln_f/scale": (6,),
        "head/kernel": (6, 1),
        "head/bias": (1,),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def nest(flat):
    tree = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        at = tree
        for key in path:
            at = at.setdefault(key, {})
        at[last] = leaf
    return tree


def flatten(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def gradients(step):
    """From norm 0.1 to norm 100: some are clipped at 1, some are not."""
    rng = np.random.default_rng(step + 1)
    size = 10.0 ** (step % 4 - 2)
    return {name: size * rng.normal(size=x.shape) for name, x in flat_params().items()}


def our_steps(precision, config, count, *, updates_per_step=1):
    tx = make_optimizer(config, TOTAL, updates_per_step=updates_per_step)
    state = make_state(nest(jax.tree.map(precision.jax, flat_params())), tx, ema_decay=0.0)
    for step in range(count):
        grads = nest(jax.tree.map(precision.jax, gradients(step)))
        state = apply_gradients(state, grads, tx, ema_decay=0.0)
    return flatten(state.params)


def torch_steps(precision, config, count, make_schedule):
    params = {name: precision.torch(x, grad=True) for name, x in flat_params().items()}
    pick = lambda decays: [p for name, p in params.items() if (name in DECAYS) == decays]
    groups = [
        {"params": pick(True), "weight_decay": config.weight_decay},
        {"params": pick(False), "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.b1, config.b2), eps=config.eps)
    schedule = make_schedule(adamw)
    norms = []
    for step in range(count):
        for name, grad in gradients(step).items():
            params[name].grad = precision.torch(grad)
        norm = torch.nn.utils.get_total_norm([p.grad for p in params.values()])
        # It divides by norm + 1e-6, which float64 would show: see test_torch_clips_a_little_more.
        max_norm = config.clip_norm * (1 + 1e-6 / norm) if precision is DOUBLE else config.clip_norm
        torch.nn.utils.clip_grad_norm_(params.values(), max_norm)
        norms.append(float(norm))
        adamw.step()
        schedule.step()
    assert count == 1 or min(norms) < config.clip_norm < max(norms)
    return params


def warmup_then_cosine(config):
    """What transformers calls cosine_with_min_lr."""
    return lambda adamw: hf.get_cosine_with_min_lr_schedule_with_warmup(
        adamw, WARMUP, TOTAL, min_lr_rate=config.final_lr
    )


def hold(precision, count, shape, **options):
    config = OptimConfig(
        schedule=shape, warmup_steps=WARMUP, weight_decay=0.3, clip_norm=1.0, **options
    )
    shapes = {"cosine": lambda x: 0.5 * (1 + np.cos(np.pi * x)), "linear": lambda x: 1 - x}

    def rate(step):
        if step < WARMUP:
            return config.warmup_init + (1 - config.warmup_init) * step / WARMUP
        progress = (step - WARMUP) / (TOTAL - WARMUP)
        return config.final_lr + (1 - config.final_lr) * shapes[shape](progress)

    schedule = lambda adamw: torch.optim.lr_scheduler.LambdaLR(adamw, rate)
    expected = torch_steps(precision, config, count, schedule)
    found = our_steps(precision, config, count)
    precision.agree(f"AdamW, {count} step{'s' * (count > 1)}", found, expected)
    start = flat_params()
    assert all((np.abs(np.asarray(found[k]) - start[k]) > 1e-4).any() for k in start)


@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_adamw_with_clipping_decay_mask_and_warm_up(precision, count, eps):
    """Warm-up from a quarter (from 0, the first step would be none), then a line down to a quarter:
    rates that float32, in which schedules are computed, holds exactly."""
    hold(precision, count, "linear", lr=1 / 32, warmup_init=0.25, final_lr=0.25, eps=eps)


@pytest.mark.parametrize("count", [1, 10])
def test_adamw_along_a_cosine(count):
    hold(SINGLE, count, "cosine", lr=0.03, warmup_init=0.1, final_lr=0.1)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_of_transformers(schedule):
    final = {"cosine": 0.1, "linear": 0.0, "constant": 1.0}[schedule]
    config = OptimConfig(lr=0.3, schedule=schedule, warmup_steps=WARMUP, final_lr=final)
    adamw = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=config.lr)
    theirs = {
        "cosine": warmup_then_cosine(config),
        "linear": lambda o: hf.get_linear_schedule_with_warmup(o, WARMUP, TOTAL),
        "constant": lambda o: hf.get_constant_schedule_with_warmup(o, WARMUP),
    }[schedule](adamw)
    expected = []
    for _ in range(TOTAL + 1):
        expected.append(theirs.get_last_lr()[0])
        adamw.step()
        theirs.step()
    ours = make_schedule(config, TOTAL)
    found = np.array([ours(jax.numpy.int32(step)) for step in range(TOTAL + 1)])
    SINGLE.agree(f"{schedule} schedule", found, np.float32(expected))


def test_past_the_end_the_rate_stays():
    """transformers' cosine to a minimum climbs again after the last step; ours does not."""
    config = OptimConfig(lr=1.0, warmup_steps=WARMUP, final_lr=0.1)
    adamw = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = warmup_then_cosine(config)(adamw)
    for _ in range(TOTAL + (TOTAL - WARMUP)):
        adamw.step()
        theirs.step()
    assert theirs.get_last_lr()[0] == pytest.approx(1.0)
    assert float(make_schedule(config, TOTAL)(jax.numpy.int32(2 * TOTAL))) == pytest.approx(0.1)


def test_torch_clips_a_little_more():
    """clip_grad_norm_ multiplies by max / (norm + 1e-6): 10/11 of ours at max = norm = 1e-5."""
    grads = {"w": np.array([3e-5, 4e-5])}
    p = SINGLE.torch(grads["w"], grad=True)
    p.grad = SINGLE.torch(grads["w"])
    torch.nn.utils.clip_grad_norm_([p], 1e-5)
    assert float(p.grad.norm()) == pytest.approx(1e-5 * 5 / 5.1, rel=1e-5)
    config = OptimConfig(lr=1.0, schedule="constant", weight_decay=0.0, clip_norm=1e-5, eps=1.0)
    tx = make_optimizer(config, 1, updates_per_step=1)
    params = {"w": SINGLE.jax(np.zeros(2))}
    updates, _ = tx.update({"w": SINGLE.jax(grads["w"])}, tx.init(params), params)
    # With ε = 1 the first step is the clipped gradient itself, but for a part in 1e5.
    assert float(jax.numpy.linalg.norm(updates["w"])) == pytest.approx(1e-5, rel=2e-5)
