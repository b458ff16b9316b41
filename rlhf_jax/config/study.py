"""Running a study: which, for how many seeds, and where its results go."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rlhf_jax.config.bounds import Count, CountOrZero, Positive, check_bounds
from rlhf_jax.config.effect import idle, only


@dataclass(frozen=True)
class ClusterConfig:
    """Which jobs a study asks a cluster for."""

    kind: Literal["none", "slurm", "local"] = "none"
    """Runs are processes of this machine; jobs of Slurm, those that can begin together as one array
    (submitit; every node sees this folder); or submitit's own processes here, to rehearse that."""
    hours: Annotated[Positive, idle(kind="none")] = 4.0
    """Of one run. What is not finished then saves, and goes on as a new job."""
    cpus: Annotated[Count, only(kind="slurm")] = 2
    """Processors of a run, on whose number its last digits depend."""
    memory_gb: Annotated[Count, only(kind="slurm")] = 16
    """Of a run."""
    gpus: Annotated[CountOrZero, idle(kind="none")] = 0
    """Of a run."""
    partition: Annotated[str, only(kind="slurm")] = ""
    """Empty: the cluster's own."""
    account: Annotated[str, only(kind="slurm")] = ""
    """Empty: yours."""

    def __post_init__(self):
        check_bounds(self, "cluster.")


@dataclass(frozen=True)
class StudyConfig:
    """A study: its arms for several seeds, its rows, and the page that is made of them."""

    file: tyro.conf.Positional[Path] = Path("configs/studies/frontier.py")
    """A Python file with get_study() (docs/studies.md)."""
    seeds: Count = 10
    """How many, from 0 on; each runs the whole chain anew."""
    jobs: Count = 1
    """Runs at a time; the processors of this machine are shared evenly among them."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    commands: bool = False
    """Print the command of each run that is missing, in an order in which they can be run, and run
    nothing: for what starts jobs otherwise (SkyPilot, xpk)."""
    dry_run: bool = False
    """Say how many runs are missing and how long they take, and run nothing."""
    report: bool = False
    """Make the page from the rows that are there, and run nothing."""
    few: bool = False
    """Compare arms from two pairs of seeds on, instead of five."""
    dir: Path = Path("runs/studies")
    """Folder of the runs, in one below it that is named as the file."""
    results: Path = Path("docs/results")
    """Folder of NAME.jsonl, with the rows, and of NAME.md, NAME.png and NAME.svg."""

    def __post_init__(self):
        check_bounds(self)
