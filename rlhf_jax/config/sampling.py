"""How answers are sampled, in every stage that samples."""

from dataclasses import dataclass
from typing import Annotated

from rlhf_jax.config.bounds import Bounds, CountOrZero, PositiveOrZero, check_bounds
from rlhf_jax.config.effect import Main, idle
from rlhf_jax.errors import check


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn."""

    temperature: Main[PositiveOrZero] = 0.7
    """Divides the logits in sampling and in every log-probability of PPO; 0 is greedy."""
    top_k: Annotated[CountOrZero, idle(temperature=0)] = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: Annotated[float, Bounds(0, 1, over=True), idle(temperature=0)] = 1.0
    """Keep the smallest set of tokens with this mass; 1 keeps all."""
    at_once: Annotated[float, Bounds(0, 1, over=True)] = 1.0
    """Share of a batch's answers that are sampled at the same time: the others take the places of
    those that end. Less than 1 is quicker where a few answers are much longer than most."""

    def __post_init__(self):
        check_bounds(self, "sampling.")
        check(
            self.temperature == 0 or self.temperature >= 1e-4,
            f"sampling.temperature={self.temperature}: expected 0, which is greedy, or 1e-4 or "
            "more: logits are divided by it",
        )


def check_several(name: str, sampling: SamplingConfig) -> None:
    """Raise where several answers to a prompt would be one and the same."""
    check(
        sampling.temperature > 0,
        f"sampling.temperature=0 is greedy: all {name} would be the same answer; expected over 0",
    )
