"""Metrics and samples of a run: JSON lines are the truth, TensorBoard, W&B and Trackio copies.

Metric names are those of TRL's PPO, so that curves overlay. Device arrays are fetched one call
late, when they are ready anyway: logging never waits for the step under way.
"""

import importlib
import importlib.util
import json
import math
import secrets
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import jax

from rlhf_jax.config import RunConfig
from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import DivergedError, InputError
from rlhf_jax.runs.progress import say

FLUSH_SECONDS = 30
"""How long TensorBoard may wait for a row."""


@runtime_checkable
class Sink(Protocol):
    """Where a row goes besides the JSON lines."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """What was sampled at a step."""

    def close(self) -> None:
        """Write what is left."""


class MetricsLog:
    """``metrics.jsonl`` and ``samples.jsonl`` of a run folder, and copies in other sinks.

    Args:
        resume_step: The restored step; later rows are dropped. None starts the files anew.
        watch: Metrics that must stay finite, by name or group ("loss" also covers "loss/...").
        sinks: From ``make_sinks``; closed with the log.

    A row of metrics is {"step", "time": seconds since the stage began (stops not counted), and
    numbers}; a number that is not finite is written as null.

    """

    def __init__(
        self,
        folder: Path,
        *,
        resume_step: int | None,
        watch: Collection[str],
        sinks: Sequence[Sink],
    ):
        self.latest: dict[str, float] = {}
        """The numbers fetched last, for the progress line."""
        self._watch, self._sinks = tuple(watch), list(sinks)
        self._held: tuple[int, Mapping[str, Any], bool] | None = None
        self._primary = jax.process_index() == 0
        before = 0.0
        if self._primary:
            rows = rewind(folder / "metrics.jsonl", resume_step)
            # Time goes on from the last row that is kept: stops do not count.
            before = rows[-1]["time"] if rows else 0.0
            rewind(folder / "samples.jsonl", resume_step)
            self._metrics = open_lines(folder / "metrics.jsonl")
            self._samples = open_lines(folder / "samples.jsonl")
        self._start = time.monotonic() - before

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            with suppress(OSError):  # the error that ended the block is the one to report
                self.close()
            return
        try:
            self.flush()
        finally:
            self.close()

    def scalars(self, step: int, metrics: Mapping[str, Any], *, write: bool = True) -> None:
        """Hold the metrics of ``step`` (device arrays or numbers) and handle those held before.

        With ``write=False`` they are only watched: call it every step, write every so often.
        Raises DivergedError when a watched metric of the step before is NaN or infinite.
        """
        self.flush()
        # Held until the next call: fetching them now would wait for the step under way.
        self._held = step, dict(metrics), write

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Generated texts, one dict each (prompt, response, score ...)."""
        if not self._primary:
            return
        for row in rows:
            append(self._samples, to_line({"step": step, **row}))
        for sink in self._sinks:
            sink.samples(step, rows)

    def flush(self) -> None:
        """Fetch and write what is held; call it before saving, so that no bad state is saved.

        Raises DivergedError when a watched metric is NaN or infinite.
        """
        if self._held is None:
            return
        (step, metrics, write), self._held = self._held, None
        # A fetch is a round trip: of steps that are not written only what must stay finite.
        wanted = metrics if write else {k: v for k, v in metrics.items() if self._watched(k)}
        values = {name: float(value) for name, value in jax.device_get(wanted).items()}
        if write:
            self.latest = values
            self._write(step, values)
        for name, value in values.items():
            if self._watched(name) and not math.isfinite(value):
                raise DivergedError(
                    f"{name} is {value} at step {step} (batch {step} of this stage); stopped with "
                    "the last good checkpoint kept: the same command with a lower --optim.lr goes "
                    "on from there (or from the start, if there is none); or look at that batch"
                )

    def close(self) -> None:
        """Close all files and sinks, also after one that cannot be."""
        with ExitStack() as stack:
            if self._primary:
                stack.callback(self._metrics.close)
                stack.callback(self._samples.close)
                for sink in self._sinks:
                    stack.callback(sink.close)

    def _watched(self, name: str) -> bool:
        return any(name == group or name.startswith(f"{group}/") for group in self._watch)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._primary:
            return
        seconds = round(time.monotonic() - self._start, 3)
        append(self._metrics, to_line({"step": step, "time": seconds, **values}))
        for sink in self._sinks:
            sink.scalars(step, values)


def open_lines(path: Path) -> TextIO:
    """A file to append lines to, each of which is on disk once it is whole."""
    # Line-buffered: a killed process loses at most the line it was writing.
    return open(path, "a", buffering=1, encoding="utf-8")


def append(file: TextIO, text: str) -> None:
    """Write ``text``; an OSError names the file."""
    with naming(file.name):
        file.write(text)


@contextmanager
def naming(path: str) -> Generator[None]:
    """An OSError names this file: that of a failed write names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def to_line(row: Mapping[str, Any]) -> str:
    """A row as JSON; NaN and infinity, which JSON has not, are null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines log; a torn last line, which a kill can leave, is left out.

    Raises InputError naming any other line that is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise InputError(f"{path}, line {number}: not JSON: {line[:60]!r}") from None
    return rows


def rewind(path: Path, step: int | None) -> list[dict[str, Any]]:
    """Drop the rows after ``step`` (None: all) and a torn last line; returns what is left."""
    rows = up_to(step, read_rows(path))
    write_atomically(path, "".join(map(to_line, rows)))
    return rows


def up_to(step: int | None, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of steps up to ``step``; none without one."""
    return [row for row in rows if step is not None and row["step"] <= step]


def check_trackers(run: RunConfig) -> None:
    """Raise InputError if a tracker is asked for and not installed."""
    for name in TRACKERS:
        project = getattr(run, name)
        if project and importlib.util.find_spec(name) is None:
            raise InputError(
                f"--run.{name} {project}: {name} is not installed (pip install {name})"
            )


def open_log(
    run: RunConfig, stage: str, *, config: Mapping[str, Any], resume_step: int | None
) -> MetricsLog:
    """The log of a stage of training, which ends where a loss or a gradient is not finite."""
    sinks = make_sinks(run, stage, config=config, resume_step=resume_step)
    watch = ("loss", "grad_norm", "policy/grad_norm")
    return MetricsLog(run.dir, resume_step=resume_step, watch=watch, sinks=sinks)


def make_sinks(
    run: RunConfig, stage: str, *, config: Mapping[str, Any], resume_step: int | None
) -> list[Sink]:
    """The sinks that are asked for; only process 0 has any. InputError for one not installed."""
    sinks: list[Sink] = []
    if jax.process_index() != 0:
        return sinks
    check_trackers(run)
    if run.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        say("tensorboardX is not installed: metrics go to metrics.jsonl only")
    elif run.tensorboard:
        sinks.append(TensorBoard(run.dir / "tb", resume_step=resume_step))
    for name, begin in TRACKERS.items():
        if getattr(run, name):
            begin_this = partial(begin, run, stage, dict(config))
            sinks.append(Tracker(name, run.dir, begin_this, resume_step=resume_step))
    return sinks


def begin_wandb(run: RunConfig, stage: str, config: dict[str, Any], identity: str) -> Any:
    """A run of wandb.ai, or the one of this id."""
    import wandb

    return wandb.init(
        project=run.wandb,
        name=run.dir.name,
        job_type=stage,
        dir=str(run.dir),
        id=identity,
        resume="allow",
        config=config,
    )


def begin_trackio(run: RunConfig, stage: str, config: dict[str, Any], identity: str) -> Any:
    """A run of Trackio, which tells its runs apart by their names."""
    import trackio

    return trackio.init(
        project=run.trackio,
        name=f"{run.dir.name}-{identity}",
        group=stage,
        resume="allow",
        config=config,
    )


TRACKERS = {"wandb": begin_wandb, "trackio": begin_trackio}
"""By the field of ``RunConfig`` that names a project, which is the package's name too."""


class TensorBoard:
    """Event files for TensorBoard, by tensorboardX (no TensorFlow).

    Written in this thread: tensorboardX's own writer has one for it, whose errors nobody catches.
    """

    def __init__(self, folder: Path, *, resume_step: int | None):
        from tensorboardX.event_file_writer import EventsWriter

        # protobuf makes its classes when they are imported: stubs have none.
        from tensorboardX.proto.event_pb2 import SessionLog  # ty: ignore[missing-module-member]

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = str(folder)
        purge = 0 if resume_step is None else resume_step + 1
        # Its file names count seconds only: the suffix keeps a quick restart from overwriting.
        self._writer = EventsWriter(str(folder / "events"), f".{purge}.{secrets.token_hex(2)}")
        self._flushed = -math.inf
        # From this step on TensorBoard forgets what earlier files say.
        self._add(purge, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step, a curve for each."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._add(step, summary=scalar(name, value))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """What was sampled at a step, as text."""
        from tensorboardX.summary import text

        # JSON has no raw newline, so model text cannot leave the indented block, shown as it is.
        self._add(step, summary=text("samples", "".join(f"    {to_line(row)}" for row in rows)))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _add(self, step: int, **what: Any) -> None:
        # As above.
        from tensorboardX.proto.event_pb2 import Event  # ty: ignore[missing-module-member]

        with naming(self._folder):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()


class Tracker:
    """A run of a tracker of experiments (wandb.ai, Trackio), resumed by the id kept in the folder.

    wandb.ai takes no step twice, and Trackio would draw it twice. When the run goes on from before
    what was logged last (after a kill), a new run there is given all that is kept, and what was
    logged to the old one stays.
    """

    def __init__(
        self, package: str, folder: Path, begin: Callable[[str], Any], *, resume_step: int | None
    ):
        """``begin`` starts the run of an id, or goes on with it."""
        self._module = importlib.import_module(package)
        identity = folder / f"{package}-id"
        logged = read_rows(folder / "metrics.jsonl") + read_rows(folder / "samples.jsonl")
        kept = up_to(resume_step, logged)
        # Rows that a kill took back were sent already, and no step can be sent twice.
        fresh = not identity.exists() or len(kept) < len(logged)
        if fresh:
            write_atomically(identity, secrets.token_hex(8))
        self._run = begin(identity.read_text())
        if fresh:
            self._replay(kept)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step, a curve for each."""
        self._run.log(dict(values), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """What was sampled at a step, as a table."""
        columns = list(rows[0])
        table = self._module.Table(
            columns=columns, data=[[r.get(c) for c in columns] for r in rows]
        )
        self._run.log({"samples": table}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()

    def _replay(self, rows: Sequence[dict[str, Any]]) -> None:
        step_of = itemgetter("step")
        for step, group in groupby(sorted(rows, key=step_of), step_of):
            texts = []
            for row in group:
                values = {k: v for k, v in row.items() if k not in ("step", "time")}
                if "time" in row:
                    self.scalars(step, values)
                else:
                    texts.append(values)
            if texts:
                self.samples(step, texts)
