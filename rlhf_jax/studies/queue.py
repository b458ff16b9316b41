"""The queue of a study's jobs: some are at work at a time, until all are finished or have failed.

A job is a stage in its run folder: what was killed goes on where it had saved, and what is finished
is not run again. So nothing is kept here: what is done is read from the folders.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.runs.progress import say
from rlhf_jax.runs.records import read_done
from rlhf_jax.studies.launchers import Launcher, Work, log_of
from rlhf_jax.studies.plan import Job

ATTEMPTS = 2
"""A job that fails is started once more: a process may be killed for somebody else's memory."""
POLL_SECONDS = 0.1


class Started(NamedTuple):
    """A job at work."""

    work: Work
    began: float


class Stopped(BaseException):
    """Somebody asked to stop; what was at work has saved."""

    def __init__(self, code: int):
        self.code = code


def is_done(job: Job) -> bool:
    """Whether its run is finished."""
    return read_done(job.folder) is not None


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a run folder, which outlived a study that was killed, say."""
    try:
        # Asked of the lock and not of a process id: ids are given out again.
        with open(folder / ".lock", "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


class Queue:
    """Jobs at work, waiting, done and failed, and the signals that stop them.

    ``then`` is called with each job that is done or has failed, and gives jobs to be run next.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        launcher: Launcher,
        *,
        parallel: int,
        then: Callable[[Job], Iterable[Job]],
        left: Callable[[Sequence[Job]], str],
    ):
        self.waiting = list(jobs)
        self.running: dict[Path, tuple[Job, Started]] = {}
        self.done: set[Path] = set()
        self.failed: dict[Path, str] = {}
        """Why, by folder."""
        self._attempts: dict[Path, int] = {}
        self._told: set[tuple[Path, int]] = set()
        self._launcher, self._parallel = launcher, parallel
        self._then, self._left = then, left
        self._stop = 0
        self._at_once = False

    def run(self) -> None:
        """Until nothing is left. Raises Stopped after SIGTERM or Ctrl-C, when all have saved."""
        # Noted and passed on: the jobs have to save before this process ends.
        previous = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.waiting or self.running:
                self._collect()
                self._pass_on()
                if self._stop and not self.running:
                    raise Stopped(self._stop)
                if not self._stop:
                    self._settle()
                    self._start()
                time.sleep(POLL_SECONDS)
        finally:
            for job, started in self.running.values():  # on an error of our own: none is left alone
                started.work.send(signal.SIGTERM)
                say(f"{job.name} is stopped")
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        # A second signal: whoever asks twice does not want to wait for a save.
        self._at_once = self._stop != 0
        self._stop = 130 if number == signal.SIGINT else 143
        os.write(2, b"\nstopping: what is at work saves first (again: at once)\n")

    def _pass_on(self) -> None:
        """Here and not in the handler, which may run while a job is being started."""
        for folder, (_, started) in self.running.items() if self._stop else ():
            number = signal.SIGKILL if self._at_once else signal.SIGTERM
            if (folder, number) not in self._told:
                self._told.add((folder, number))
                started.work.send(number)

    def _settle(self) -> None:
        """Take out what is done already, and what cannot be run any more."""
        for job in list(self.waiting):
            lost = [folder for folder in job.needs if folder in self.failed]
            if is_done(job):
                self._end(job)
            elif lost:
                self._end(job, f"needs {lost[0].name}, which failed")

    def _start(self) -> None:
        ready = [
            job
            for job in self.waiting
            if all(folder in self.done for folder in job.needs) and not is_held(job.folder)
        ][: self._parallel - len(self.running)]
        works = self._launcher.start(ready) if ready else ()
        for job, work in zip(ready, works, strict=True):
            self.waiting.remove(job)
            self.running[job.folder] = job, Started(work, time.monotonic())
            say(f"{self.standing()} · {job.name} begins")

    def _collect(self) -> None:
        for folder, (job, started) in list(self.running.items()):
            code = started.work.exit_code()
            if code is None:
                continue
            del self.running[folder]
            # In front, so that what is tried once more comes before what has not begun.
            self.waiting.insert(0, job)
            if is_done(job):
                self._end(job, seconds=time.monotonic() - started.began)
            elif self._stop:
                continue
            else:
                self._failed_once(job, code)

    def _failed_once(self, job: Job, code: int) -> None:
        self._attempts[job.folder] = self._attempts.get(job.folder, 0) + 1
        why = f"exit code {code}: {last_line(log_of(job))}"
        if self._attempts[job.folder] < ATTEMPTS:
            say(f"{job.name} ended with {why}; started once more")
        else:
            self._end(job, f"{why} ({log_of(job)})")

    def _end(self, job: Job, why_failed: str = "", *, seconds: float | None = None) -> None:
        self.waiting.remove(job)
        if why_failed:
            self.failed[job.folder] = why_failed
        else:
            self.done.add(job.folder)
        # A seed's evaluation comes before the next seed: a study that is stopped has whole rows.
        self.waiting[:0] = self._then(job)
        took = "" if seconds is None else f" in {seconds:.0f} s"
        # What an earlier study had done is not told, job by job, at each start.
        if why_failed or took:
            result = f"failed: {why_failed}" if why_failed else f"is done{took}"
            say(f"{self.standing()} · {job.name} {result}")

    def standing(self) -> str:
        """``12 of 140 runs done, 1 running, 0 failed, 3 h 20 min left``."""
        running = [job for job, _ in self.running.values()]
        ended = len(self.done) + len(self.failed)
        total = ended + len(running) + len(self.waiting)
        return (
            f"{len(self.done)} of {total} runs done, {len(running)} running, "
            f"{len(self.failed)} failed, {self._left([*running, *self.waiting])} left"
        )


def last_line(log: Path) -> str:
    """The last thing that was said in a log, or that it is empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = [line.rpartition("\r")[2].strip() for line in lines if line.strip()]
    return said[-1] if said else "it said nothing"
