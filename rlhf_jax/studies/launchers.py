"""Where the jobs of a study are at work: processes of this machine, or a cluster's jobs.

A launcher starts jobs and gives a ``Work`` for each, which is asked for its exit code and can be
stopped. Whatever it is, a job is ``python -m experiments.STAGE --config FILE`` with its log beside
that file, so that it goes on where another launcher's had saved.
"""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlhf_jax.cli import to_dict
from rlhf_jax.config import ClusterConfig
from rlhf_jax.config.forks import name_of
from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import InputError
from rlhf_jax.runs.progress import say
from rlhf_jax.studies.plan import Job

MOST_CONTINUED = 20
"""How often a cluster's job that is out of time goes on: one that gets nowhere has to end."""
GRACE_SECONDS = 120
"""What a cluster leaves a job that is out of time, to save."""


@runtime_checkable
class Work(Protocol):
    """A job at work."""

    def exit_code(self) -> int | None:
        """Of its process; None while it is at work."""

    def send(self, number: int) -> None:
        """A signal: SIGTERM, after which it saves, or SIGKILL."""


@runtime_checkable
class Launcher(Protocol):
    """What starts jobs."""

    def start(self, jobs: Sequence[Job]) -> Sequence[Work]:
        """All of them, at once; as many are started together as there is room for."""


# --- the commands ---------------------------------------------------------------------------------


def log_of(job: Job) -> Path:
    """What a job says; beside it lies the config that it is given."""
    return job.folder.parent / "logs" / f"{job.folder.name}.log"


def command_of(job: Job) -> list[str]:
    """What follows ``python``: ``-m experiments.STAGE --config FILE``, the file written."""
    preset = log_of(job).with_suffix(".json")
    preset.parent.mkdir(parents=True, exist_ok=True)
    saved = {"config_class": name_of(type(job.config)), "config": to_dict(job.config)}
    # A file and not flags: every field arrives as it is, whatever its type.
    write_atomically(preset, json.dumps(saved, indent=1) + "\n")
    return ["-m", job.module, "--config", str(preset)]


# --- this machine ---------------------------------------------------------------------------------


class ThisMachine:
    """Jobs as processes, each with its share of the processors."""

    def __init__(self, parallel: int):
        self._parallel = parallel
        self._at_work: dict[int, Process] = {}
        """By the share of the processors that it has."""

    def start(self, jobs: Sequence[Job]) -> list["Process"]:
        """A process for each job, on processors of its own."""
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> "Process":
        taken = {n for n, process in self._at_work.items() if process.exit_code() is None}
        slot = next(n for n in range(self._parallel) if n not in taken)
        self._at_work[slot] = Process(job, share_of_processors(slot, self._parallel))
        return self._at_work[slot]


class Process:
    """A job as a process of this machine."""

    def __init__(self, job: Job, processors: set[int]):
        words = [sys.executable, *command_of(job)]
        with log_of(job).open("ab") as stream:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C comes to us alone, who pass it on
            )
        if processors:
            os.sched_setaffinity(self._process.pid, processors)

    def exit_code(self) -> int | None:
        """Of the process; None while it is at work."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """The signal, to the process."""
        self._process.send_signal(number)


def share_of_processors(slot: int, parallel: int) -> set[int]:
    """The processors of one of several processes, the same number for each; empty: all.

    What a job computes depends on their number, in its last digits.
    """
    if parallel == 1 or not hasattr(os, "sched_setaffinity"):
        return set()
    cores = sorted(os.sched_getaffinity(0))
    cores_of_slot = len(cores) // parallel
    return set(cores[slot * cores_of_slot : (slot + 1) * cores_of_slot])


# --- a cluster ------------------------------------------------------------------------------------


class Cluster:
    """Jobs of Slurm through submitit, those that can begin together as one array.

    Raises InputError if submitit is not installed, or no Slurm is here.
    """

    def __init__(self, config: ClusterConfig, folder: Path, parallel: int):
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise InputError(
                f"--cluster.kind {config.kind} needs the package submitit: "
                "pip install -e '.[slurm]'"
            ) from error
        try:
            self._executor = submitit.AutoExecutor(
                folder, cluster=config.kind, **{f"{config.kind}_max_num_timeout": MOST_CONTINUED}
            )
        except RuntimeError as error:
            raise InputError(f"--cluster.kind {config.kind}: {error}") from error
        named = {"partition": config.partition, "account": config.account}
        self._executor.update_parameters(
            name="rlhf_jax",
            timeout_min=math.ceil(60 * config.hours),
            slurm_cpus_per_task=config.cpus,
            slurm_mem=f"{config.memory_gb}GB",
            gpus_per_node=config.gpus,
            slurm_signal_delay_s=GRACE_SECONDS,
            slurm_array_parallelism=parallel,
            **{f"slurm_{name}": value for name, value in named.items() if value},
        )

    def start(self, jobs: Sequence[Job]) -> list["ClusterWork"]:
        """An array of jobs; which, is said."""
        stages = [Stage([sys.executable, *command_of(job)], log_of(job)) for job in jobs]
        with self._executor.batch():
            submitted = [self._executor.submit(stage) for stage in stages]
        for job, theirs in zip(jobs, submitted, strict=True):
            say(f"{job.name} is job {theirs.job_id}")
        return [ClusterWork(theirs) for theirs in submitted]


class ClusterWork:
    """A job of a cluster, waiting there or at work."""

    def __init__(self, submitted: Any):
        self._submitted = submitted

    def exit_code(self) -> int | None:
        """Of the stage; 1 for a job that the cluster has ended before; None while it is at work."""
        if not self._submitted.done():
            return None
        # Its result is an exit code, unless it was killed or never ran.
        return 1 if self._submitted.exception() is not None else self._submitted.result()

    def send(self, number: int) -> None:
        """Cancels it: the cluster sends SIGTERM, and SIGKILL if that is not enough."""
        self._submitted.cancel(check=False)


class Stage:
    """What a cluster's job does: the command of a stage, in a process of its own."""

    def __init__(self, command: list[str], log: Path):
        self.command, self.log = command, log
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """The stage's exit code. A job that is cancelled leaves when the stage has saved."""
        with self.log.open("ab") as stream:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
            self._process = process
            try:
                return process.wait()
            except BaseException:  # somebody cancels the job: the stage saves
                self._stop()
                raise

    def checkpoint(self) -> Any:
        """Out of time, or in somebody's way: the stage saves, and the same job goes on later."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        return DelayedSubmission(Stage(self.command, self.log))

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        # Not by Popen.wait: who calls this may have interrupted one, which holds a lock. It is left
        # to that one, too, to hear how the process ended.
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
