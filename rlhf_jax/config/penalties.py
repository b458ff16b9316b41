"""What holds PPO beside its reward: the KL to the reference, and a second reward."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rlhf_jax.config.bounds import Finite, Positive, PositiveOrZero, check_bounds
from rlhf_jax.config.effect import Main, idle
from rlhf_jax.errors import check


@dataclass(frozen=True)
class KLConfig:
    """The penalty for leaving the reference, and what holds it to a target."""

    coef: Main[PositiveOrZero] = 0.02
    """β: weight of the per-token penalty (InstructGPT: 0.02 for unscaled rewards)."""
    target: Main[PositiveOrZero] = 0.0
    """Nats per episode that the adaptive controller holds; 0 keeps the coefficient fixed."""
    horizon: Annotated[Positive, idle(target=0)] = 10_000.0
    """Episodes over which the adaptive controller acts (Ziegler et al. 2019)."""
    place: Annotated[Literal["reward", "loss"], idle(coef=0)] = "reward"
    """Where the penalty stands: in the reward of each token, and so in the advantages (InstructGPT,
    RLOO), or in the loss, beside them (GRPO)."""
    estimator: Annotated[Literal["k1", "k2", "k3"], idle(coef=0)] = "k1"
    """Of the KL per token, from r = π_ref/π: k1 −log r, k2 (log r)²/2, k3 r − 1 − log r (Schulman
    2020). In the loss k2 has the gradient of KL(π ‖ π_ref), k3 that of KL(π_ref ‖ π)."""

    def __post_init__(self):
        check_bounds(self, "kl.")
        check(
            self.place == "reward" or self.estimator != "k1" or self.coef == 0,
            "kl.place=loss needs kl.estimator k2 or k3: the gradient of k1 is 0 in expectation, so "
            "that it would hold nothing",
        )
        check(
            self.target == 0 or self.coef > 0,
            f"kl.target={self.target} needs kl.coef over 0: the controller multiplies it",
        )


@dataclass(frozen=True)
class SecondRewardConfig:
    """A second reward beside the task's, of harmlessness say: mixed in, or held to a floor."""

    model: Path | None = None
    """Reward model whose score h is mixed in as (r + λ h) / (1 + λ); None: there is none."""
    weight: Annotated[PositiveOrZero, idle(model=None)] = 1.0
    """λ, or with ``floor`` what it starts from."""
    floor: Finite | None = None
    """Mean of h to hold: λ is then a Lagrange multiplier, which grows while h is below. None: λ
    stays as it is."""
    lr: Annotated[Positive, idle(floor=None)] = 0.1
    """η in λ ← λ exp(η (floor − mean h)), once per iteration."""

    def __post_init__(self):
        check_bounds(self, "second_reward.")
        check(
            self.floor is None or self.weight > 0,
            "second_reward.floor needs a weight over 0: a multiplier of 0 cannot grow",
        )
        check(
            self.model is not None or self.floor is None,
            "second_reward.floor needs second_reward.model",
        )
