"""Compiling for machines that are not there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rlhf_jax.config.bounds import Bounds, CountOrZero, check_bounds
from rlhf_jax.config.chain import InstructGPTConfig
from rlhf_jax.config.effect import idle
from rlhf_jax.config.training import ParallelConfig
from rlhf_jax.errors import check


@dataclass(frozen=True)
class PlanConfig:
    """Which programs of a chain fit a TPU topology, and what they would cost."""

    chain: InstructGPTConfig = field(default_factory=InstructGPTConfig)
    """The stages; ``--config`` gives them."""
    topology: str = "v5e:2x4"
    """KIND:AxB (v5e, v6e) or KIND:AxBxC (v4, v5p)."""
    parallel: Annotated[ParallelConfig, idle(search=True)] = field(default_factory=ParallelConfig)
    programs: tuple[str, ...] = ("sft", "reward", "prefill", "decode", "ppo")
    """Which programs are compiled and measured."""
    reward: Path | None = None
    """Preset whose pretrained model has the shape of the reward and value models; None: the
    policy's."""
    vocab_size: CountOrZero = 0
    """Rows of the embedding; 0: the tokenizer's, padded as pretraining pads it."""
    search: bool = False
    """Try every mesh and number of micro-batches, and rank those that fit."""
    effort: Annotated[float, Bounds(-1, 1)] = -1.0
    """Of the TPU compiler: -1 compiles fast, 0 as JAX does by default (somewhat smaller
    temporaries)."""
    out: Path | None = None
    """Markdown file for the report, besides the terminal."""

    def __post_init__(self):
        check_bounds(self)
        check(self.parallel.mode == "mesh", "plans are for --parallel.mode mesh")
        check(len(self.programs) > 0, "programs is empty: name at least one")
