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


def named_number(name: str, value: float | int) -> str:
    """A number with its name, "loss 5.12"; a name ending in /s is a rate: "18.4k tok/s"."""
    if not name.endswith("/s"):
        return f"{name} {value:.3g}"
    return f"{with_unit(value)} {name}"


class Progress:
    """Progress of one stage: a bar on a terminal, else a line every ``seconds``.

        ppo 10/24 iterations, 42 %, 0:48 left, 3.4 s/iteration, scores -0.928, kl 0.122

    What a step takes and the time left count from the first ``update``, so that compilation does
    not inflate them. It is always time per step, never steps per time: one cannot be read as the
    other. ``unit`` is one step and ``units`` several.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        start: int,
        unit: str = "step",
        units: str = "",
        seconds: float | int = 10,
    ):
        self._stage, self._total, self._seconds = stage, total, seconds
        self._unit, self._units = unit, units or f"{unit}s"
        self._first: tuple[int, float] | None = None
        self._printed = -float("inf")
        self._line = ""
        self._bar = None
        if jax.process_index() == 0 and sys.stderr.isatty():
            form = f"{self._counted(start)} |{{bar}}|"
            self._bar = tqdm(total=total, initial=start, dynamic_ncols=True, bar_format=form)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def update(self, step: int, **numbers: float | int) -> None:
        """``step`` steps are done; ``numbers`` are shown beside (2 or 3 of them)."""
        now = time.monotonic()
        # Compilation happens in the first step, so the clock starts after it.
        self._first = self._first or (step, now)
        figures_shown = [
            *self._times(step, now),
            *(named_number(name, value) for name, value in numbers.items()),
        ]
        if self._bar is not None:
            columns = self._bar.format_dict["ncols"] or 80
            text = fitting(figures_shown, columns - len(self._counted(step)) - BAR)
            self._bar.bar_format = f"{self._counted(step)} |{{bar}}| {text}".rstrip()
            self._bar.update(step - self._bar.n)
            return
        self._line = ", ".join([self._counted(step), *figures_shown])
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

    def _counted(self, step: int) -> str:
        share = 100 * step // max(self._total, 1)
        return f"{self._stage} {step}/{self._total} {self._units}, {share} %"

    def _times(self, step: int, now: float) -> list[str]:
        """The time left, and what a step takes; neither before the second one."""
        first_step, first_time = self._first or (step, now)
        if step == first_step:
            return []
        seconds_each = (now - first_time) / (step - first_step)
        left = [f"{clock((self._total - step) * seconds_each)} left"] if step < self._total else []
        return [*left, f"{duration(seconds_each)}/{self._unit}"]


BAR = 8
"""Columns of a terminal for the bar and what is around it, at the least."""


def fitting(parts: list[str], columns: int) -> str:
    """The first of ``parts`` that fit into so many columns, whole.

    A number without its unit would be another.
    """
    while parts and len(", ".join(parts)) > columns:
        parts = parts[:-1]
    return ", ".join(parts)


def duration(seconds: float | int) -> str:
    """Of a step, in the unit that suits it: 12 ms, 0.31 s, 2.5 min."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds / 60:.3g} min"


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
        self._count = 0
        self._since: float | None = None

    def add(self, count: int) -> None:
        """So many more units are done, now."""
        if self._since is None:
            self._since = time.monotonic()
        else:
            self._count += count

    def rate(self) -> float:
        """Units per second; 0 before the second count."""
        if self._since is None or not self._count:
            return 0.0
        return self._count / max(time.monotonic() - self._since, 1e-9)


def peak_memory() -> float:
    """Largest resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB here
