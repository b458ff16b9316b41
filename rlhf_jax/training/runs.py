"""The folder of one stage: whose it is, with which config, whether it finished or failed.

config.json    stage, config, command line, code version, library versions, devices
metrics.jsonl, samples.jsonl, tb/, checkpoints/
DONE           the final summary (JSON), or
FAILED         the reason, in words
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlhf_jax.config.forks import class_named
from rlhf_jax.config.moved import relocated
from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import DivergedError, InputError, RunError, describe_os_error
from rlhf_jax.training.progress import say
from rlhf_jax.training.run_inputs import InputFile, check_same_inputs, compared

SCHEMA = 1
LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("grain", "tensorflow-datasets", "tokenizers"),
)


class SavedRun(NamedTuple):
    """What another stage, or the report, reads of a run."""

    folder: Path
    stage: str
    config_class: str
    config: dict[str, Any]
    models: dict[str, InputFile]
    """What it started from, or compares, by the config's field."""
    data: dict[str, InputFile] | None
    """What it read, likewise; None of a run from before this was recorded."""
    done: dict[str, Any] | None
    """The final summary, or None when the run has not finished."""
    retuned: list[dict[str, Any]]
    """After each divergence: why, and the fields that were changed to go on."""
    fork: dict[str, str] | None
    """Of a run of a fork its ``name``, and ``source``, a digest of its code; None of any other."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


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
        return self.folder / "checkpoints"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            # KeyboardInterrupt and SystemExit stop a run; they do not make it a failed one.
            if isinstance(error, Exception):
                with suppress(OSError):  # a full disk takes no reason either
                    self.fail(f"{kind.__name__}: {error}")
        finally:
            self.close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as finished; the last thing a stage does."""
        if self._lock is not None:
            write_atomically(self.folder / "DONE", json.dumps(summary, indent=2) + "\n")
            if self._longer is not None:
                write_record(self.folder, self._longer)
                self._longer = None
        self.done = dict(summary)

    def fail(self, reason: str) -> None:
        if self._lock is not None:
            write_atomically(self.folder / "FAILED", reason + "\n")

    def close(self) -> None:
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
    saved_path = folder / "config.json"
    if jax.process_index() != 0:
        saved = read_run(folder, stage=None) if saved_path.exists() else None
        grows = saved is not None and grown(saved.config, config, lengths or {})
        return Run(folder, done=None if grows else read_done(folder), lock=None)
    lock = make_folder(folder)
    try:
        saved = read_run(folder, stage=None) if saved_path.exists() else None
        moved, grows = (), ()
        if saved is not None:
            check_stage(saved, stage)
            check_fork(saved, fork)
            moved = check_inputs(saved, models or {}, data or {})
            grows = check_lengths(saved, config, lengths or {})
            allowed = [*ignore, *moved, *grows, *(() if saved.done else late)]
            allowed += tunable if diverged(folder) else ()
            check_same(saved, config, allowed, defaults or {})
        known = known_inputs(saved, models or {}, data or {})
        longer = None
        if saved is None or grows or is_news(saved, config, known, ignore):
            record = describe_run(stage, config, config_class) | known
            record["fork"] = fork
            others = [*ignore, *late, *moved, *grows]
            record["retuned"] = retuned(saved, config, others) if saved else []
            if grows and saved.done:
                longer = record
            else:
                write_record(folder, record)
        (folder / "FAILED").unlink(missing_ok=True)
        return Run(folder, done=None if longer else read_done(folder), lock=lock, longer=longer)
    except BaseException:
        lock.close()
        raise


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


def diverged(folder: Path) -> str:
    """Why the run stopped, if its loss or gradient had become NaN or infinite; else empty."""
    failed = folder / "FAILED"
    why = failed.read_text() if failed.exists() else ""
    return why.strip() if why.startswith(DivergedError.__name__) else ""


def retuned(
    saved: SavedRun, config: Mapping[str, Any], ignore: Collection[str]
) -> list[dict[str, Any]]:
    """What was changed after each divergence, with what is changed now."""
    changes = {
        name: [was, now] for name, was, now in diff_config(saved.config, config, ignore=ignore)
    }
    why = diverged(saved.folder)
    return [*saved.retuned, {"why": why, "changed": changes}] if why and changes else saved.retuned


def read_run(folder: Path, *, stage: str | None) -> SavedRun:
    """A run folder made earlier. Raises InputError when it is none, or not of ``stage``."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a run folder, found no config.json in it")
    try:
        saved = json.loads(path.read_text())
        run = SavedRun(
            folder,
            saved["stage"],
            saved["config_class"],
            moved_config(saved, folder),
            read_inputs(saved.get("models", {})),
            read_inputs(saved["data"]) if "data" in saved else None,
            read_done(folder),
            saved.get("retuned", []),
            saved.get("fork"),
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a config saved by this project ({error!r})") from None
    if stage is not None and run.stage != stage:
        raise InputError(f"{folder} belongs to stage {run.stage!r}, expected a run of {stage!r}")
    return run


def moved_config(saved: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a record in ``folder``, which may have been made in another place."""
    try:
        config_class = class_named(saved["config_class"], str(folder))
    except InputError:  # of a fork whose code is not here, or of another version
        return saved["config"]
    return relocated(saved["config"], config_class, folder)


def read_inputs(saved: Mapping[str, Any]) -> dict[str, InputFile]:
    return {name: InputFile(*found) for name, found in saved.items()}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_atomically(folder / "config.json", json.dumps(record, indent=2) + "\n")


def is_news(
    saved: SavedRun, config: Mapping[str, Any], known: Mapping[str, Any], ignore: Collection[str]
) -> bool:
    """Whether there are other values of fields that count, or inputs that were not recorded."""
    changed = diff_config(saved.config, config, ignore=ignore)
    return bool(changed) or known != {"models": saved.models, "data": saved.data}


def read_done(folder: Path) -> dict[str, Any] | None:
    path = folder / "DONE"
    return read_object(path) if path.exists() else None


def read_object(path: Path, *names: str) -> dict[str, Any]:
    """The JSON object in a file that this project wrote, which has these ``names``.

    Raises InputError for anything else: half of it, or another program's.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not what a run has written there: {error}") from None
    missing = [name for name in names if not isinstance(found, dict) or name not in found]
    if missing or not isinstance(found, dict):
        what = f"no {', '.join(missing)} in it" if missing else "no object in it"
        raise InputError(f"{path} is not what a run has written there: {what}")
    return found


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
    if saved.stage != stage:
        raise InputError(
            f"{saved.folder} belongs to stage {saved.stage!r}, not {stage!r}: choose another folder"
        )


def check_fork(saved: SavedRun, fork: Mapping[str, str] | None) -> None:
    """Raise InputError if other code started the run: another fork, none, or an older one."""
    if saved.fork == fork:
        return
    was, now = (f"the fork {each['name']}" if each else "no fork" for each in (saved.fork, fork))
    found = f"was started by {was}, and this is {now}"
    if was == now:
        found = f"was started by {was}, whose code has changed since"
    raise InputError(f"{saved.folder} {found}: choose another folder")


def check_same(
    saved: SavedRun,
    config: Mapping[str, Any],
    ignore: Collection[str],
    defaults: Mapping[str, Any],
) -> None:
    as_default = [(name, "absent", json.dumps(value)) for name, value in flatten(defaults).items()]
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
        named = ", ".join(found.path for found in data.values())
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


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.001, ...}; lists are values."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def diff_config(
    saved: Mapping[str, Any], given: Mapping[str, Any], *, ignore: Collection[str]
) -> list[tuple[str, str, str]]:
    """(field, saved value, given value), as JSON text, of every field that differs."""

    def texts(config):
        flat = flatten(config)
        return {name: json.dumps(value) for name, value in flat.items() if not ignored(name)}

    def ignored(name):
        return any(name == field or name.startswith(f"{field}.") for field in ignore)

    was, now = texts(saved), texts(given)
    names = [*was, *(name for name in now if name not in was)]
    both = [(name, was.get(name, "absent"), now.get(name, "absent")) for name in names]
    return [row for row in both if row[1] != row[2]]


def config_digest(config: Mapping[str, Any]) -> str:
    """A fingerprint of a config as JSON-able data."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def describe_run(stage: str, config: Mapping[str, Any], config_class: str) -> dict[str, Any]:
    """What ``config.json`` records besides the inputs."""
    return {
        "schema": SCHEMA,
        "stage": stage,
        "config_class": config_class,
        "config": config,
        "config_digest": config_digest(config),
        "argv": sys.argv,
        **environment(),
    }


def environment() -> dict[str, Any]:
    """Code, libraries and machine: what a result depends on besides config and seed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "git": git_version(),
        "versions": versions,
        "platform": platform.platform(),
        "devices": [
            f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()
        ],
        "processes": jax.process_count(),
    }


def git_version() -> dict[str, Any] | None:
    """Commit of this source tree and whether files differ from it; None outside a repository."""
    here = Path(__file__).resolve()

    def git(*arguments):
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy inside some other project's repository is not that project's code.
        git("ls-files", "--error-unmatch", here.name)
        dirty = git("status", "--porcelain", "--untracked-files=no") != ""
        return {"sha": git("rev-parse", "HEAD"), "dirty": dirty}
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def take_lock(folder: Path) -> Any:
    """An open file whose lock the kernel releases when the process ends, however it ends."""
    lock = open(folder / ".lock", "a+")  # noqa: SIM115 (held until Run.close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise RunError(
            f"{folder} is in use by another process ({owner}); wait, or choose another folder"
        ) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {platform.node()}\n")
    lock.flush()
    return lock
