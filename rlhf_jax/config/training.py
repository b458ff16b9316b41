"""What every training stage has: an optimizer, devices, a run folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rlhf_jax.config.bounds import (
    Bounds,
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Seed,
    Share,
    ShareBelowOne,
    check_bounds,
)
from rlhf_jax.config.effect import Main, idle, never, only
from rlhf_jax.errors import check


@dataclass(frozen=True)
class OptimConfig:
    """AdamW or Muon with global-norm clipping, a schedule, optionally an average of the weights."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon (Jordan et al. 2024) updates the trunk's kernels along orthogonalised momentum and the
    rest by AdamW."""
    lr: Main[Positive] = 1e-3
    """Learning rate: the highest of the schedule."""
    adam_lr: Annotated[PositiveOrZero, only(optimizer="muon")] = 0.0
    """With muon: learning rate of what is no kernel (embeddings, biases, normalisation, heads)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: half a cosine or a line from lr to final_lr · lr, or lr all along."""
    warmup_steps: CountOrZero | None = None
    """Steps from ``warmup_init`` x lr up to lr; None: ``warmup_share`` of the run. In PPO a step is
    an iteration, not a minibatch."""
    warmup_share: Annotated[ShareBelowOne, only(warmup_steps=None)] = 0.0
    """Share of the run's steps that is warm-up, rounded down: a run of few steps has none."""
    warmup_init: Annotated[Share, idle(warmup_steps=0)] = 0.0
    """First learning rate of the warm-up, as a share of lr (InstructGPT's PPO: 0.1)."""
    final_lr: Annotated[Share, idle(schedule="constant")] = 0.1
    """Last learning rate, as a share of lr (InstructGPT: cosine to 10 %)."""
    weight_decay: PositiveOrZero = 0.05
    """Decoupled; matrices only: not biases, normalisation, nor embeddings."""
    b1: ShareBelowOne = 0.9
    """β₁: decay of Adam's mean of gradients (Kingma and Ba 2015)."""
    b2: ShareBelowOne = 0.95
    """β₂: decay of Adam's mean of squared gradients (GPT-3: 0.95)."""
    eps: Annotated[float, Bounds(0, 1, over=True)] = 1e-8
    """ε of Adam, added to the root of the mean square."""
    clip_norm: PositiveOrZero = 1.0
    """Global norm of the gradient after accumulation; 0 turns clipping off."""
    accumulate: Count = 1
    """Micro-batches per step (in PPO per minibatch, those of the policy's optimizer count for
    both): gradients are summed, then divided once by the global count."""
    ema_decay: ShareBelowOne = 0.0
    """e <- decay e + (1 - decay) p after each step; 0 keeps no average (InstructGPT: 0.992)."""

    def __post_init__(self):
        check_bounds(self, "optim.")
        check(
            self.optimizer == "adamw" or self.adam_lr > 0,
            f"optim.optimizer=muon needs optim.adam_lr > 0, found {self.adam_lr}",
        )


def check_microbatches(name: str, rows: int, optim: OptimConfig) -> None:
    """Raise unless ``rows`` split evenly into the optimizer's micro-batches."""
    check(
        rows % optim.accumulate == 0,
        f"{name}={rows} is not a multiple of optim.accumulate={optim.accumulate}",
    )


@dataclass(frozen=True)
class ParallelConfig:
    """How a step is laid over devices."""

    mode: Literal["mesh", "pmap"] = "mesh"
    """jax.jit over a device mesh, or jax.pmap (data parallelism only)."""
    devices: CountOrZero = 0
    """How many of the visible devices to use; 0 uses all."""
    data: CountOrZero = 0
    """Copies of the model, each with its share of the rows; 0 takes what fsdp and tensor leave."""
    fsdp: Count = 1
    """Devices over which both rows and parameters are split (fully sharded data parallelism)."""
    tensor: Count = 1
    """Devices over which heads and features are split (tensor parallelism)."""
    coordinator: str = ""
    """HOST:PORT of process 0, when several processes are started by hand; empty: one process, or
    what the cluster's environment says (TPU pod, GKE JobSet, Slurm, Open MPI)."""
    processes: Count = 1
    """With coordinator: how many processes there are."""
    process_id: CountOrZero = 0
    """With coordinator: which of them this is, from 0."""
    hosts: Literal["auto", "off"] = "auto"
    """off ignores the cluster's environment: this process runs alone."""

    def __post_init__(self):
        check_bounds(self, "parallel.")
        check(
            0 <= self.process_id < self.processes,
            f"parallel.process_id={self.process_id} is not in 0..{self.processes - 1} "
            "(parallel.processes)",
        )
        check(
            self.coordinator != "" or self.processes == 1,
            f"parallel.processes={self.processes} needs parallel.coordinator HOST:PORT",
        )
        check(
            self.coordinator == "" or re.fullmatch(r".+:[0-9]+", self.coordinator) is not None,
            f"parallel.coordinator={self.coordinator!r}: expected HOST:PORT, as 10.0.0.1:1234",
        )
        check(
            self.mode == "mesh" or self.fsdp * self.tensor == 1,
            "parallel.mode=pmap splits rows only: parallel.fsdp and parallel.tensor must be 1",
        )


@dataclass(frozen=True)
class RunConfig:
    """Where a stage writes, and how often."""

    dir: Main[Path] = Path("runs/run")
    """The stage's own folder. The same command resumes what is unfinished in it."""
    seed: Main[Seed] = 0
    """Of everything random but the order of the data."""
    data_seed: Seed = 0
    """Order of the data, apart from ``seed`` so that ablations see the same batches."""
    save_every: Main[Count] = 200
    """Steps between checkpoints (the last step is always saved); transformers: save_steps."""
    keep_latest: Count = 2
    """How many of the newest checkpoints to keep; transformers: save_total_limit."""
    keep_best: CountOrZero = 1
    """How many more to keep, the best by the stage's held-out figure (if one was measured), which
    other stages read as RUN@best."""
    log_every: Count = 20
    """Steps between rows of metrics.jsonl."""
    eval_every: CountOrZero = 200
    """Steps between evaluations; 0 evaluates after the last step only."""
    stop_after: CountOrZero = 0
    """Stop, saved and resumable, after this many steps of this process; 0 never stops."""
    preempted_exit_code: Annotated[int, Bounds(0, 255)] = 0
    """Of a run that SIGTERM stopped and saved: what the scheduler takes for "start it again"."""
    profile: CountOrZero = 0
    """Steps (batches, where nothing is trained) that jax.profiler records into the run's folder
    ``profile``, from the second of this process on (the first compiles); 0 records none."""
    tensorboard: bool = True
    """Write event files for TensorBoard too, if tensorboardX is installed."""
    wandb: str = ""
    """Project name; empty turns Weights & Biases off."""
    trackio: str = ""
    """Project name; empty turns Trackio off, which keeps metrics on this machine as it does."""
    compile_cache: Path | None = Path(".cache/compiled")
    """Folder for compiled programs, one below it per kind of machine: a second start compiles
    nothing. None keeps none; JAX_COMPILATION_CACHE_DIR, where it is set, is used instead."""
    tune_malloc: bool = True
    """Keep freed memory in the process (glibc only): about 1.25x faster steps on CPU."""

    def __post_init__(self):
        check_bounds(self, "run.")


UNTRAINED = never(
    *("data_seed", "save_every", "keep_latest", "keep_best"),
    *("log_every", "eval_every", "stop_after"),
)
"""Settings of RunConfig without effect where nothing is trained."""
