"""The frame of a stage: run folder, resuming, logs, checkpoints, stopping. The loop stays outside.

with Stage(config, "sft", __file__) as stage:
    if stage.summary is not None:  # finished earlier
        return stage.summary
    state = stage.restore(state, train=batches)
    for step in stage.steps(total):
        state, metrics = update(state, next(batches), fold_in(key, step))
        stage.log(metrics, tokens=...)
        stage.checkpoint(state)
    return stage.finish(state.params)
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar

import jax

from rlhf_jax.cli import to_dict
from rlhf_jax.config.forks import name_of
from rlhf_jax.data.batches import Resumable
from rlhf_jax.data.fates import EncodingReport
from rlhf_jax.errors import (
    InputError,
    RunError,
    describe_os_error,
    describe_out_of_memory,
)
from rlhf_jax.runs.checkpoints import Checkpoints, check_finite
from rlhf_jax.runs.final import check_final, remove_older_final, save_final
from rlhf_jax.runs.folder import open_run, take_back
from rlhf_jax.runs.identity import (
    AFTER_NAN,
    LENGTHS,
    MAY_CHANGE,
    data_of,
    fork_of,
    models_of,
    why_not_longer,
)
from rlhf_jax.runs.inputs import InputFile
from rlhf_jax.runs.kept_steps import measured_after
from rlhf_jax.runs.logs import MetricsLog, check_trackers, open_log
from rlhf_jax.runs.profiling import Profiler
from rlhf_jax.runs.progress import Progress, Throughput, peak_memory, say
from rlhf_jax.runs.signals import StopRequest
from rlhf_jax.runs.startup import start
from rlhf_jax.training.hosts import asked_to_stop, connect, leave, sync
from rlhf_jax.types import Params, TrainState

T = TypeVar("T")


class Stage:
    """One stage of training in its run folder; ``config`` is a stage's config with ``run``."""

    def __init__(
        self,
        config: Any,
        name: str,
        file: str,
        *,
        best: tuple[str, Literal["max", "min"]] = ("", "min"),
        one_process: bool = False,
        late: tuple[str, ...] = (),
    ):
        """``file`` is the experiment's own: a fork's is part of what its runs are.

        ``best`` names the held-out figure, "min" or "max", by which checkpoints are best.

        ``one_process``: a stage without training, which several processes cannot share.
        ``late``: config fields that are read after the last item or step; they may change until
        the stage is finished.
        """
        self._best, self._alone, self._late = best, one_process, late
        self._fork = fork_of(file, config)
        self._stopping = False
        self.config, self.run_config, self.name = config, config.run, name
        self.done = 0
        """Steps that are done: of the restored checkpoint, then counted by ``steps``."""
        self.extra: dict[str, Any] = {}
        """What ``checkpoint`` was given besides the state, restored."""
        self.trees: dict[str, Params] = {}
        """The trees of parameters that ``checkpoint`` was given, restored; else ``restore``'s."""
        self._resumed = 0
        """The step of the restored checkpoint; what was logged later is logged again."""
        self._notes: dict[str, Any] = {}
        self._iterators: dict[str, Resumable] = {}
        self._units = {"tokens": 0, "episodes": 0}
        self._throughput = Throughput()
        self._evaluation: dict[str, float] = {}

    def __enter__(self) -> "Stage":  # not Self: methods are type-checked one by one in the tests
        connect(self.config.parallel)
        start(tune_malloc=self.run_config.tune_malloc, compile_cache=self.run_config.compile_cache)
        if self._alone and jax.process_count() > 1:
            raise InputError(f"{self.name} runs in one process; start it on one host")
        check_trackers(self.run_config)
        self._started = time.monotonic()
        self._was_there = self.run_config.dir.exists()
        self._fresh = not (self.run_config.dir / "config.json").exists()
        try:
            self._open()
        except InputError:
            self._remove_if_fresh()
            raise
        if self.summary is not None:
            try:
                check_final(self.run_config.dir, self.summary)
            except InputError:
                self._stack.close()  # without the error: the run has not failed
                raise
            say(f"{self.name}: finished before, in {self.run_config.dir}")
        return self

    def _open(self) -> None:
        with contextlib.ExitStack() as stack:
            self._run = stack.enter_context(
                open_run(
                    self.run_config.dir,
                    stage=self.name,
                    config=to_dict(self.config),
                    config_class=name_of(type(self.config)),
                    ignore=MAY_CHANGE,
                    late=self._late,
                    tunable=AFTER_NAN,
                    defaults=to_dict(type(self.config)()),
                    **self._started_from(),
                    lengths=dict.fromkeys(self._lengths(), why_not_longer(self.config)),
                    fork=self._fork,
                )
            )
            # The first process makes the folder: the others go on when it is there.
            sync("run folder")
            stop = StopRequest(preempted_code=self.run_config.preempted_exit_code)
            self._stop = stack.enter_context(stop)
            self._checkpoints = stack.enter_context(
                Checkpoints(
                    self._run.checkpoints,
                    keep_latest=self.run_config.keep_latest,
                    keep_best=self.run_config.keep_best if self._best[0] else 0,
                    best_metric=self._best[0] or None,
                    best_mode=self._best[1],
                    measured=self._shorter(),
                )
            )
            folder = self.run_config.dir / "profile"
            self._profiler = stack.enter_context(Profiler(folder, self.run_config.profile))
            sync("checkpoints")
            # All or none: an error before this line closes again what was opened.
            self._stack = stack.pop_all()

    def __exit__(self, kind, error, trace) -> None:
        if jax.process_count() > 1 and isinstance(error, Exception | KeyboardInterrupt):
            leave(error)  # peers wait for this process, or it for them: nothing ends by itself
        self._stack.__exit__(kind, error, trace)
        short = describe_out_of_memory(error) if error is not None else ""
        if short or isinstance(error, InputError | OSError | RunError):
            self._remove_if_fresh()
        if short:
            raise RunError(short) from error
        # A broken pipe is the reader's doing, and no failure of the run.
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise RunError(f"{describe_os_error(error)}{self._goes_on()}") from error
        if isinstance(error, KeyboardInterrupt):
            say(f"{self.name}: stopped at once{self._goes_on()}")

    def _remove_if_fresh(self) -> None:
        """Bad input leaves nothing behind before there is work to keep."""
        if self._fresh and jax.process_index() == 0:
            take_back(self.run_config.dir, was_there=self._was_there)

    def _goes_on(self) -> str:
        """What the same command will do, for the end of a sentence."""
        if self._fresh:
            return ""
        step = self._checkpoints.latest_step()
        after = "from what it has kept" if step is None else f"after step {step}"
        return f"; the same command goes on {after}"

    def _started_from(self) -> dict[str, dict[str, InputFile]]:
        """The models and data that are there, which one process compares for all."""
        if jax.process_index() != 0:
            return {}
        return {"models": models_of(self.config), "data": data_of(self.config)}

    def _shorter(self) -> dict[int, dict[str, float]]:
        """Figures of the last steps of the finished runs that this one is longer than."""
        return measured_after(self.run_config.dir) if self._run.done is None else {}

    def _lengths(self) -> list[str]:
        return [name for name in LENGTHS if hasattr(self.config, name)]

    @property
    def summary(self) -> dict[str, Any] | None:
        """What ``finish`` wrote when this stage was finished before."""
        return self._run.done

    def restore(
        self,
        state: TrainState,
        trees: Mapping[str, Params] | None = None,
        /,
        **iterators: Resumable,
    ) -> TrainState:
        """``state``, or the newest checkpoint's, with the iterators moved to where they stood.

        ``trees`` are parameters besides the state, by name, that every checkpoint will be given.
        """
        self._iterators, self.trees = iterators, dict(trees or {})
        restored = self._checkpoints.restore_latest(state, self.trees)
        if restored is not None:
            state, self.done, self.extra = restored.state, restored.step, restored.extra
            self.trees = restored.trees
            self._resumed = self.done
            self._units = self.extra.pop("units")
            # Time goes on from there, so that the summary's seconds are those of all starts
            # together.
            self._started -= self.extra.pop("seconds")
            for name, iterator in iterators.items():
                iterator.set_state(restored.data[name])
            say(f"{self.name}: resumed after step {self.done}")
        self._from = self.done
        stop_after = self.run_config.stop_after
        self._stop_after = self.done + stop_after if stop_after else -1
        return state

    def note(self, **facts: Any) -> None:
        """Facts for the summary."""
        self._notes |= facts

    def note_rows(self, **reports: EncodingReport) -> None:
        """What became of the rows, for the summary; what was cut or left out is also said."""
        for name, report in reports.items():
            self._notes[name] = report._asdict()
            if report.lost():
                say(f"{self.name}: {name}: {report.kept} kept, {report.lost()}")

    def steps(self, total: int) -> Iterator[int]:
        """Numbers of the steps still to do; ends the process politely when asked to stop."""
        unit = "iteration" if hasattr(self.config, "iterations") else "step"
        with Progress(self.name, total, start=self.done, unit=unit) as self._progress:
            for step in range(self.done, total):
                self._last = step + 1 == total
                with jax.profiler.StepTraceAnnotation(self.name, step_num=step):
                    yield step
                self._profiler.step_done()
        self._log.flush()

    def each(
        self,
        items: Iterable[T],
        *,
        total: int,
        start: int = 0,
        of: str = "",
        unit: tuple[str, str] = ("batch", "batches"),
    ) -> Iterator[T]:
        """``items`` of a stage without training, with progress; stops politely between two.

        ``of`` tells several runs through a stage apart, ``unit`` is what one item is, and several.
        """
        name, (one, several) = f"{self.name} {of}".rstrip(), unit
        with Progress(name, total, start=start, unit=one, units=several) as progress:
            for number, item in enumerate(items, start=start + 1):
                yield item
                self._fresh = False
                self._profiler.step_done()
                progress.update(number)
                if self._stop.requested:
                    say(f"{self.name}: stopped; the same command goes on from here")
                    raise SystemExit(self._stop.exit_code)

    def log(self, metrics: Mapping[str, Any], *, show: Sequence[str], **units: int) -> None:
        """Log a step's metrics (scalars); ``units`` (tokens, episodes) are what it processed."""
        self.done += 1
        self._fresh = False
        self._stopping = asked_to_stop(self.done - self._from, self._stop.requested)
        self._evaluation = {}
        for name, count in units.items():
            self._units[name] += count
            self._throughput.add(count)
        write = self._last or self.done % self.run_config.log_every == 0
        row: dict[str, Any] = dict(metrics)
        if write and self._throughput.rate():
            row[f"{next(iter(units))}_per_second"] = self._throughput.rate()
        self._log.scalars(self.done, row, write=write)
        latest = self._log.latest
        figures = {name.rpartition("/")[2]: latest[name] for name in show if name in latest}
        rates = {f"{unit}/s": latest.get(f"{unit}_per_second") for unit in units}
        self._progress.update(self.done, **figures, **{k: v for k, v in rates.items() if v})

    def due(self, every: int) -> bool:
        """Whether something done each ``every`` steps (0: never) but the last is due now."""
        if every == 0 or self.done % every or self._last:
            return False
        self._log.flush()  # raises before what a NaN has left can be measured
        return True

    def log_evaluation(self, figures: Mapping[str, float]) -> None:
        """Of the held-out part; none where nothing is held out."""
        self._evaluation = dict(figures)
        if figures:
            self._log.scalars(self.done, figures)

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log what was sampled at this step."""
        self._log.samples(self.done, rows)

    def checkpoint(
        self,
        state: TrainState,
        trees: Mapping[str, Params] | None = None,
        /,
        **extra: float | jax.Array,
    ) -> None:
        """Save if it is time, if this was the last step, or if asked to stop (then exit).

        A step that is measured as one of the best is saved, whenever it is.
        """
        stopping = self._stopping or self.done == self._stop_after
        due = self._last or self.done % self.run_config.save_every == 0
        if not (stopping or due or self._checkpoints.is_best(self._evaluation)):
            return
        self._log.flush()  # raises before a state after a NaN can be saved
        check_finite(state.params, self.done)
        self._checkpoints.save(
            self.done,
            state,
            data={name: iterator.get_state() for name, iterator in self._iterators.items()},
            extra={name: float(value) for name, value in extra.items()}
            | {"units": self._units, "seconds": time.monotonic() - self._started},
            metrics=self._evaluation,
            trees=trees or {},
        )
        if stopping and not self._last:
            self._checkpoints.wait()
            say(f"{self.name}: saved at step {self.done}; the same command goes on from here")
            # Several processes are stopped by the runtime, which tells of SIGTERM alone.
            runtime = self._stopping and not self._stop.requested
            raise SystemExit(self._stop.preempted_code if runtime else self._stop.exit_code)

    def finish(self, params: Params | None, **results: Any) -> dict[str, Any]:
        """Save the final parameters for the stages to come, write the summary, mark as done."""
        seconds, shorter = time.monotonic() - self._started, self._shorter()
        summary = {
            "steps": self.done,
            "seconds": round(seconds, 1),
            **{name: count for name, count in self._units.items() if count},
            "peak_memory_mib": round(peak_memory()),
            **self._notes,
            **results,
            **({"shorter": {str(n): f for n, f in shorter.items()}} if shorter else {}),
        }
        self._checkpoints.wait()
        folder = self.run_config.dir
        if params is not None:
            otherwise = f"all steps are kept{self._goes_on()}"
            summary |= save_final(folder, params, step=self.done, otherwise=otherwise)
        self._run.finish(summary)
        # Not before DONE is written: until then the shorter run's model is what the folder is for.
        if params is not None and jax.process_index() == 0:
            remove_older_final(folder)
        sync("finished")
        if self._stop.requested:  # too late for a step, but not for the stages to come
            say(f"{self.name}: finished before it could be stopped")
            raise SystemExit(self._stop.exit_code)
        return summary

    @cached_property
    def _log(self) -> MetricsLog:
        """Opened at first use, when it is known which step the run goes on from."""
        config, resume_step = to_dict(self.config), self._resumed or None
        log = open_log(self.run_config, self.name, config=config, resume_step=resume_step)
        return self._stack.enter_context(log)
