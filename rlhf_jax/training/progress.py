"""What a person sees while a stage runs: one bar in a terminal, plain lines anywhere else."""

import resource
import sys
import time

import jax
from tqdm import tqdm

from rlhf_jax.evaluation.numbers import with_unit


def say(message: str) -> None:
    """One line on stderr, from process 0 only, above a running bar."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


def show(name: str, value: float | int) -> str:
    """ "loss 5.12"; a name ending in /s is a rate: "18.4k tok/s"."""
    if not name.endswith("/s"):
        return f"{name} {value:.3g}"
    return f"{with_unit(value)} {name}"


class Progress:
    """Progress of one stage: a tqdm bar on a terminal, else a line every ``seconds``.

    The time left counts from the first ``update``, so that compilation does not inflate it.
    """

    def __init__(self, stage: str, total: int, *, start: int, seconds: float | int = 10):
        self._stage, self._total, self._seconds = stage, total, seconds
        self._first: tuple[int, float] | None = None
        self._printed = -float("inf")
        self._line = ""
        self._bar = None
        if jax.process_index() == 0 and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, desc=stage, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def update(self, step: int, **numbers: float | int) -> None:
        """``step`` steps are done; ``numbers`` are shown beside (2 or 3 of them)."""
        shown = " ".join(show(name, value) for name, value in numbers.items())
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        self._first = self._first or (step, now)
        parts = f"{self._stage} {step}/{self._total} {100 * step // max(self._total, 1)}%", shown
        self._line = " ".join([*filter(None, parts), f"ETA {self._left(step, now)}"])
        if now - self._printed >= self._seconds or step >= self._total:
            self._print(now)

    def close(self) -> None:
        """Show where it stopped, if the last line did not."""
        if self._bar is not None:
            self._bar.close()
        elif self._line:
            self._print(time.monotonic())

    def _print(self, now: float) -> None:
        say(self._line)
        self._line, self._printed = "", now

    def _left(self, step: int, now: float) -> str:
        first_step, first_time = self._first
        if step >= self._total:
            return "0:00"
        if step == first_step:
            return "?"
        return clock((self._total - step) * (now - first_time) / (step - first_step))


def clock(seconds: float | int) -> str:
    """Hours, minutes and seconds: 0:42, 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Throughput:
    """Units (tokens, episodes) per second since the first were counted.

    The first count only starts the clock: it was made while its program compiled. Device programs
    run ahead of Python, so a rate between two readings would say little.
    """

    def __init__(self):
        self._count, self._since = 0, None

    def add(self, count: int) -> None:
        if self._since is None:
            self._since = time.monotonic()
        else:
            self._count += count

    def rate(self) -> float:
        """Units per second; 0 before the second count."""
        if not self._count:
            return 0.0
        return self._count / max(time.monotonic() - self._since, 1e-9)


def peak_memory() -> float:
    """Largest resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB here
