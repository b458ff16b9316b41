"""How models of one shape become one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rlhf_jax.config.bounds import Finite, Share, check_bounds
from rlhf_jax.config.data import column_names
from rlhf_jax.config.effect import idle
from rlhf_jax.config.training import ParallelConfig, RunConfig
from rlhf_jax.errors import check


@dataclass(frozen=True)
class AverageConfig:
    """The average of models of one shape, as a run folder."""

    models: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Two or more run folders (or RUN@STEP, Hugging Face checkpoints) of one kind, shape and
    tokenizer: reward models (WARM, Ramé et al. 2024), or language models."""
    weights: tuple[Finite, ...] = ()
    """Of the models in their order; they sum to 1. One below 0 goes beyond the others, away from
    its model. Empty: all alike."""
    method: Literal["linear", "slerp"] = "linear"
    """Weight by weight, or of policies along the sphere about ``init`` (WARP, Ramé et al. 2024)."""
    init: Path | None = None
    """The policy that all of them were trained from: slerp and ``towards_init`` start there."""
    towards_init: Annotated[Share, idle(init=None)] = 0.0
    """1 − η of WARP's linear interpolation towards initialisation: how much of the result is
    ``init``. 0: nothing but the average; between, less reward and less KL."""
    dir: Path = Path("runs/average")
    """The run folder to make."""
    heldout: Path | None = None
    """Of reward models: comparisons on which the average, and each model, is measured. Without them
    its accuracy is not known, and PPO does not start on it but with --force True."""
    columns: Annotated[str, idle(heldout=None)] = ""
    """Other names for columns of heldout: prompt=question,chosen=good,rejected=bad."""

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)
        total = sum(self.weights)
        check(
            not self.weights or abs(total - 1) <= 1e-6,
            f"weights={self.weights} sum to {total:g}: expected a sum of 1; without weights all "
            "count alike",
        )
        check(
            self.method == "linear" or self.init is not None,
            f"method={self.method} goes along the sphere about a policy that all were trained "
            "from: give --init",
        )
        check(
            self.method == "linear" or min(self.weights, default=0) >= 0,
            f"weights={self.weights} with method={self.method}: expected numbers of 0 or more",
        )
        check(
            self.towards_init == 0 or self.init is not None,
            f"towards_init={self.towards_init} needs --init, the policy to go back towards",
        )
        check(
            self.init is None or self.method == "slerp" or self.towards_init > 0,
            f"init={self.init} has no part in a linear average: give --method slerp or "
            "--towards-init",
        )

    @property
    def run(self) -> RunConfig:
        """Where its results go, as a run folder."""
        return RunConfig(dir=self.dir)

    @property
    def parallel(self) -> ParallelConfig:
        """It needs no peer."""
        return ParallelConfig(hosts="off")
