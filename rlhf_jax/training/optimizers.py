"""AdamW, its schedules, what decays, and the average of the weights."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from rlhf_jax.config import OptimConfig
from rlhf_jax.errors import check
from rlhf_jax.objectives.logprobs import at_least_float32
from rlhf_jax.training.muon import scale_by_muon
from rlhf_jax.types import Params, TrainState

Schedule = Callable[[Any], Float[Array, ""]]
"""Of a step's number, a learning rate."""


def warmup_steps(config: OptimConfig, total_steps: int) -> int:
    """Steps of warm-up in a run of ``total_steps``."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return math.floor(config.warmup_share * total_steps)


def check_warmup(config: OptimConfig, total_steps: int, *, flag: str) -> str:
    """What is to be said of a run that ends inside its warm-up; empty of any other.

    Raises InputError if every update would be at a learning rate of 0.
    """
    warmup = warmup_steps(config, total_steps)
    if total_steps > warmup:
        return ""
    found = f"{flag}.warmup_steps={warmup}, but the run has {total_steps}"
    check(
        total_steps > 1 or config.warmup_init > 0,
        f"{found}: its only update is at a learning rate of 0; give --{flag}.warmup-steps 0",
    )
    return f"{found}: its learning rate never gets to {flag}.lr={config.lr:g}"


def make_schedule(config: OptimConfig, total_steps: int) -> Schedule:
    """Learning rate of each step, counted from 0.

    Warm-up: lr · (w + (1 − w) t / warmup_steps), w = ``warmup_init``. Then from lr to
    ``final_lr`` · lr at ``total_steps``, along a half cosine or a line; constant stays at lr.
    """
    warmup = warmup_steps(config, total_steps)
    after = max(total_steps - warmup, 1)
    shape = {
        "cosine": lambda x: 0.5 * (1 + jnp.cos(jnp.pi * x)),
        "linear": lambda x: 1 - x,
        "constant": lambda x: jnp.ones_like(x),
    }[config.schedule]

    def schedule(step):
        # The last step is total_steps − 1, so that the end of the decay, final_lr, is never used.
        step = jnp.asarray(step, float)  # of an int32 the quotients would be float32 in any run
        progress = jnp.clip((step - warmup) / after, 0.0, 1.0)
        decayed = config.final_lr + (1 - config.final_lr) * shape(progress)
        warm = jnp.minimum(step / max(warmup, 1), 1.0)
        warmed = config.warmup_init + (1 - config.warmup_init) * warm
        return config.lr * jnp.where(step < warmup, warmed, decayed)

    return schedule


def decay_mask(params: Params) -> Params:
    """True on the matrices of dense layers: biases, normalisation and embeddings do not decay."""

    def is_kernel(path: Any, leaf: Any) -> bool:
        # By name and not by rank: stacked by a scan over layers, a bias has two dimensions too.
        return path[-1].key in ("kernel", "lora_a", "lora_b")

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def make_optimizer(
    config: OptimConfig, total_steps: int, *, updates_per_step: int
) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW: p ← p − lr (m̂ / (√v̂ + ε) + wd p), or Muon.

    The schedule counts steps of the experiment: in PPO iterations, of ``updates_per_step``
    optimizer updates each, as InstructGPT and lm-human-preferences do.
    """
    schedule = make_schedule(config, total_steps)

    def rate(count: Any) -> Float[Array, ""]:
        # optax counts updates; a PPO iteration makes several, and all of them have its rate.
        return schedule(count // updates_per_step)

    # First in the chain: Adam's moments see the clipped gradient.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity()
    if config.optimizer == "muon":
        return optax.chain(clip, muon(config, rate))
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(rate),
    )


def muon(config: OptimConfig, rate: Schedule) -> optax.GradientTransformation:
    """Muon for the trunk's kernels, Adam with Nesterov's look-ahead for everything else."""

    def label(path, leaf):
        # Muon is for matrices between hidden states: embeddings and heads are tables of rows.
        in_trunk = path[-1].key == "kernel" and any(entry.key == "trunk" for entry in path)
        return "muon" if in_trunk else "adam"

    def labels(params):
        return jax.tree_util.tree_map_with_path(label, params)

    def adam_rate(count: Any) -> Float[Array, ""]:
        return rate(count) * (config.adam_lr / config.lr)

    return optax.partition(
        {
            "muon": optax.chain(
                scale_by_muon(),
                optax.add_decayed_weights(config.weight_decay),
                optax.scale_by_learning_rate(rate),
            ),
            "adam": optax.nadamw(
                adam_rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=0.0
            ),
        },
        labels,
    )


def make_policy_value_optimizer(
    policy: OptimConfig, value: OptimConfig, total_steps: int, *, updates_per_step: int
) -> optax.GradientTransformation:
    """One optimizer for each of PPO's networks, each clipped by its own norm.

    With a shared trunk there is no ``value`` subtree and the policy's optimizer updates everything.
    """
    configs = {"policy": policy, "value": value}
    optimizers: dict[Hashable, optax.GradientTransformation] = {
        name: make_optimizer(config, total_steps, updates_per_step=updates_per_step)
        for name, config in configs.items()
    }

    def networks(params):
        return {
            name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in params.items()
        }

    return optax.partition(optimizers, networks)


def make_state(params: Params, tx: optax.GradientTransformation, *, ema_decay: float) -> TrainState:
    """A fresh state that owns its buffers: steps donate them, the reference keeps the originals."""
    params = jax.tree.map(jnp.copy, params)
    # In float32: (1 − decay) of a weight is below what bfloat16 can add to it.
    average = jax.tree.map(lambda p: jnp.copy(at_least_float32(p)), params) if ema_decay else None
    return TrainState(jnp.int32(0), params, tx.init(params), average)


def averaged_params(state: TrainState) -> Params:
    """What a stage hands on: the average of the weights if one is kept, else the weights."""
    return state.params if state.ema_params is None else state.ema_params


def update_ema(average: Params | None, params: Params, *, decay: float) -> Params | None:
    """e ← decay · e + (1 − decay) · p, in float32 or wider, starting from the initial weights."""
    if average is None:
        return None
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, average, params)
