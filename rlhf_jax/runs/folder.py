"""The folder of one stage: whose it is, with which config, whether it finished or failed.

config.json    stage, config, command line, code version, library versions, devices
metrics.jsonl, samples.jsonl, tb/, checkpoints/
DONE           the final summary (JSON), or
FAILED         the reason, in words
"""

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import InputError, RunError, describe_os_error
from rlhf_jax.runs.inputs import InputFile, check_same_inputs, compared
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.records import (
    SavedRun,
    describe_run,
    diff_config,
    diverged,
    dotted_fields,
    read_done,
    read_run,
    write_record,
)


class Run:
    """A run folder held by this process. Leaving the block on an error writes ``FAILED``."""

    def __init__(
        self,
        folder: Path,
        *,
        done: dict[str, Any] | None,
        lock: Any,
        longer: dict[str, Any] | None = None,
    ):
        self.folder = folder
        self.done = done
        """Summary of a run that had finished before, or None."""
        self._lock = lock
        self._longer = longer
        """Record of this run where it lengthens a finished one, which stays until ``finish``."""

    @property
    def checkpoints(self) -> Path:
        """Where steps are saved."""
        return self.folder / "checkpoints"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            # KeyboardInterrupt and SystemExit stop a run; they do not make it a failed one.
            if isinstance(error, Exception):
                # A note for people; what a run is worth is decided by its checkpoints.
                with suppress(OSError):  # a full disk takes no reason either
                    self.fail(f"{kind.__name__}: {error}")
        finally:
            self.close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as finished; the last thing a stage does."""
        if self._lock is not None:
            # DONE before the record: killed between the two, the folder still tells of a finished
            # run.
            write_atomically(self.folder / "DONE", json.dumps(summary, indent=2) + "\n")
            if self._longer is not None:
                write_record(self.folder, self._longer)
                self._longer = None
        self.done = dict(summary)

    def fail(self, reason: str) -> None:
        """Leave a note of why the run failed; the process that holds the folder alone."""
        if self._lock is not None:
            write_atomically(self.folder / "FAILED", reason + "\n")

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def open_run(
    folder: Path,
    *,
    stage: str,
    config: Mapping[str, Any],
    config_class: str,
    ignore: Collection[str],
    late: Collection[str] = (),
    tunable: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    models: Mapping[str, InputFile] | None = None,
    data: Mapping[str, InputFile] | None = None,
    lengths: Mapping[str, str] | None = None,
    fork: Mapping[str, str] | None = None,
) -> Run:
    """Take a run folder for this process: start it when new, resume it when it is the same run.

    ``ignore`` names dotted fields (or groups of them) that may change between start and resume,
    ``late`` those that may until the run is finished, ``tunable`` those that may after it diverged,
    which is recorded: the newest are what is saved. A field that a run of an older version does not
    have counts as its value in ``defaults``. ``models`` and ``data`` are what the run starts from:
    they may be moved, but not be others. ``lengths`` are fields that may grow, each with the reason
    why it may not, if there is one; a finished run stays what it is until the longer one is
    finished. ``fork`` is whose code runs, if not the project's own. Only process 0 checks and
    writes; ``config`` and ``defaults`` are JSON-able.

    Raises InputError when the folder is of another stage, fork, config, model or data, holds other
    files, or is in use by another process.
    """
    folder = Path(folder)
    if jax.process_index() != 0:
        return join_run(folder, config, lengths or {})
    lock = make_folder(folder)
    try:
        saved = saved_run(folder)
        models, data = models or {}, data or {}
        moved, grows = set[str](), list[str]()
        if saved is not None:
            check_stage(saved, stage)
            check_fork(saved, fork)
            moved = check_inputs(saved, models, data)
            grows = check_lengths(saved, config, lengths or {})
            allowed = [*ignore, *moved, *grows, *(() if saved.done else late)]
            allowed += tunable if diverged(folder) else ()
            check_same(saved, config, allowed, defaults or {})
        known = known_inputs(saved, models, data)
        longer = None
        if saved is None or grows or is_news(saved, config, known, ignore):
            record = describe_run(stage, config, config_class) | known | {"fork": fork}
            others = [*ignore, *late, *moved, *grows]
            record["retuned"] = retuned(saved, config, others) if saved else []
            # Until a longer run is finished, the folder holds the shorter one, which is.
            longer = record if saved is not None and grows and saved.done else None
            if longer is None:
                write_record(folder, record)
        (folder / "FAILED").unlink(missing_ok=True)
        return Run(folder, done=None if longer else read_done(folder), lock=lock, longer=longer)
    except BaseException:
        lock.close()
        raise


def take_back(folder: Path, *, was_there: bool) -> None:
    """Remove what a run that never began has written, so that a corrected command may begin.

    A folder that ``was_there`` before stays: it may be a link, or a mounted disk.
    """
    if not (folder / "config.json").exists():
        return
    # Made by this command, so nothing of anybody's is in it.
    if not was_there:
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def join_run(folder: Path, config: Mapping[str, Any], lengths: Mapping[str, str]) -> Run:
    """The folder as every process but the first has it: without a lock, and nothing is written."""
    saved = saved_run(folder)
    grows = saved is not None and grown(saved.config, config, lengths)
    return Run(folder, done=None if grows else read_done(folder), lock=None)


def saved_run(folder: Path) -> SavedRun | None:
    """What the folder says of its run, or None where none was started."""
    return read_run(folder, stage=None) if (folder / "config.json").exists() else None


def make_folder(folder: Path) -> Any:
    """A folder for a run, if there is none yet, and its lock. Raises InputError if it cannot be."""
    check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return take_lock(folder)
    except OSError as error:
        reason = describe_os_error(error)
        raise InputError(f"run folder {folder} cannot be written: {reason}") from None


def known_inputs(
    saved: SavedRun | None, models: Mapping[str, InputFile], data: Mapping[str, InputFile]
) -> dict[str, dict[str, InputFile]]:
    """What was recorded, and what there was no record of."""
    if saved is None:
        return {"models": dict(models), "data": dict(data)}
    return {"models": {**models, **saved.models}, "data": {**data, **(saved.data or {})}}


def retuned(
    saved: SavedRun, config: Mapping[str, Any], ignore: Collection[str]
) -> list[dict[str, Any]]:
    """What was changed after each divergence, with what is changed now."""
    changes = {
        name: [was, now] for name, was, now in diff_config(saved.config, config, ignore=ignore)
    }
    why = diverged(saved.folder)
    return [*saved.retuned, {"why": why, "changed": changes}] if why and changes else saved.retuned


def is_news(
    saved: SavedRun, config: Mapping[str, Any], known: Mapping[str, Any], ignore: Collection[str]
) -> bool:
    """Whether there are other values of fields that count, or inputs that were not recorded."""
    changed = diff_config(saved.config, config, ignore=ignore)
    return bool(changed) or known != {"models": saved.models, "data": saved.data}


def check_free(folder: Path) -> None:
    """Raise InputError rather than scatter a run over somebody's folder."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            below = "" if path == folder else f"{folder}: "
            raise InputError(f"run folder {below}{path} is a file")
    if (folder / "config.json").exists():
        read_run(folder, stage=None)  # config.json is also what a model of Hugging Face has
    elif folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
        if others:
            raise InputError(f"{folder} is not a run folder and not empty (it holds {others[0]})")


def check_stage(saved: SavedRun, stage: str) -> None:
    """Raise InputError for the folder of another stage."""
    if saved.stage != stage:
        raise InputError(
            f"{saved.folder} belongs to stage {saved.stage!r}, not {stage!r}: choose another folder"
        )


def check_fork(saved: SavedRun, fork: Mapping[str, str] | None) -> None:
    """Raise InputError if other code started the run: another fork, none, or an older one."""
    if saved.fork == fork:
        return
    was, now = (f"the fork {code['name']}" if code else "no fork" for code in (saved.fork, fork))
    started = f"was started by {was}, and this is {now}"
    if was == now:
        started = f"was started by {was}, whose code has changed since"
    raise InputError(f"{saved.folder} {started}: choose another folder")


def check_same(
    saved: SavedRun,
    config: Mapping[str, Any],
    ignore: Collection[str],
    defaults: Mapping[str, Any],
) -> None:
    """Raise InputError for another config, naming each field that changed."""
    as_default = [
        (name, "absent", json.dumps(value)) for name, value in dotted_fields(defaults).items()
    ]
    changes = [
        change
        for change in diff_config(saved.config, config, ignore=ignore)
        if change not in as_default
    ]
    if changes:
        listed = "; ".join(f"{name} was {was}, now {now}" for name, was, now in changes)
        raise InputError(
            f"{saved.folder} was started with another config: {listed} "
            "(resume with the same, or choose another folder)"
        )


def check_inputs(
    saved: SavedRun, models: Mapping[str, InputFile], data: Mapping[str, InputFile]
) -> set[str]:
    """Raise InputError unless models and data are those of the start; the fields that this holds.

    Of a run that did not record its data, today's is taken for it.
    """
    if saved.data is None and data:
        named = ", ".join(file.path for file in data.values())
        say(f"{saved.folder} did not record what its data were; taken as they are now: {named}")
    check_same_inputs(saved.folder, saved.models, models, kind="another model")
    check_same_inputs(saved.folder, saved.data or {}, data, kind="other data")
    return compared(saved.models, models) | compared(saved.data or {}, data)


def grown(
    saved: Mapping[str, Any], config: Mapping[str, Any], lengths: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """The fields of ``lengths`` that are larger than they were, with both values."""
    both = {name: (saved[name], config[name]) for name in lengths if name in saved}
    return {name: (was, now) for name, (was, now) in both.items() if now > was}


def check_lengths(
    saved: SavedRun, config: Mapping[str, Any], lengths: Mapping[str, str]
) -> list[str]:
    """The fields by which this run is longer than the saved one. Raises InputError if it cannot."""
    longer = grown(saved.config, config, lengths)
    for name, (was, now) in longer.items():
        if lengths[name]:
            raise InputError(
                f"{saved.folder} was started with {name}={was}, now {now}, but cannot be made "
                f"longer: {lengths[name]} (choose another folder)"
            )
        say(f"{saved.folder} is made longer: {name} was {was}, now {now}")
    for name in lengths:
        was, now = saved.config.get(name, 0), config[name]
        if now < was:
            raise InputError(
                f"{saved.folder} was started with {name}={was}, now {now}: a run is not made "
                f"shorter (a step that it kept is a model: {saved.folder}@STEP)"
            )
    return list(longer)


def take_lock(folder: Path) -> Any:
    """An open file whose lock the kernel releases when the process ends, however it ends."""
    lock = open(folder / ".lock", "a+")  # noqa: SIM115 (held until Run.close)
    try:
        # A lock and no file with a number: after a crash nobody must remove anything.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise RunError(
            f"{folder} is in use by another process ({owner}); wait, or choose another folder"
        ) from None
    # Who holds it, for the message of the next one.
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {platform.node()}\n")
    lock.flush()
    return lock
