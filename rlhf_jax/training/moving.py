"""Policies beside the one that trains, which change as it does: older ones, and the reference.

Rollouts of the policy k iterations ago are what asynchronous training learns from, where sampling
runs beside the updates (Noukhovitch et al. 2024); here one machine keeps the weights of the last k
iterations and samples with the oldest, so that the delay is exact and can be studied alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.config import PPOConfig
from rlhf_jax.models.lora import combine
from rlhf_jax.objectives.logprobs import at_least_float32
from rlhf_jax.types import Params


class Moving(NamedTuple):
    """What the next iteration reads besides the policy that trains."""

    reference: Params
    past: dict[str, Params]
    """What trains of the policy, as it was before each of the last k iterations; "0" the oldest."""

    def behaviour(self, frozen: Params) -> Params | None:
        """The policy that samples, on its ``frozen`` weights; None: the one that trains."""
        return combine(frozen.get("policy"), self.past["0"]) if self.past else None

    def with_newest(self, policy: Params) -> "Moving":
        """With ``policy`` among the older ones, and without the oldest, before it is updated."""
        if not self.past:
            return self
        # By number, not in the dict's order: a restored one has "10" before "2".
        later = {str(n - 1): self.past[str(n)] for n in range(1, len(self.past))}
        # A copy: the update that follows is given the policy's own buffers.
        return self._replace(past=later | {str(len(later)): copy_of(policy)})

    def kept(self, config: PPOConfig) -> dict[str, Params]:
        """What a checkpoint holds of it, by field: nothing where nothing moves."""
        trees = {"past": self.past} if config.staleness else {}
        return trees | ({"reference": self.reference} if config.reference_every else {})


def start_moving(config: PPOConfig, policy: Params, reference: Params) -> Moving:
    """All older policies are the one that the run starts from; ``policy`` is what trains of it."""
    if config.reference_every:
        # A small α of a difference is lost in bfloat16.
        reference = jax.tree.map(at_least_float32, reference)
    first = copy_of(policy) if config.staleness else None
    return Moving(reference, {str(n): first for n in range(config.staleness)})


def copy_of(params: Params) -> Params:
    """The same weights in other buffers: an update takes those of the policy for its own."""
    return jax.tree.map(jnp.copy, params)


def mix(reference: Params, policy: Params, *, share: float) -> Params:
    """π_ref ← α π + (1 − α) π_ref, weight by weight, α being ``share``.

    TR-DPO (Gorbatovski et al. 2024); at every step with a small α it is the average that WARP's
    policies are held to (Ramé et al. 2024). Parts of the policy that the
    reference lacks, a value head, are left out.
    """
    policy = {name: policy[name] for name in reference}
    return jax.tree.map(lambda r, p: share * p + (1 - share) * r, reference, policy)


def moved(
    config: PPOConfig, moving: Moving, policy: Params, *, done: int, mixed: Callable[..., Params]
) -> Moving:
    """``moving`` after ``done`` iterations, which left ``policy``; ``mixed`` is ``mix``."""
    if config.reference_every == 0 or done % config.reference_every:
        return moving
    return moving._replace(reference=mixed(moving.reference, policy))
