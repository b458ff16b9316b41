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

from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import DivergedError, InputError, RunError, describe_os_error

SCHEMA = 1
LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("grain", "tensorflow-datasets", "tokenizers"),
)


class ModelFile(NamedTuple):
    """A model that a run starts from, or compares."""

    path: str
    digest: str
    """Of its weights."""


class SavedRun(NamedTuple):
    """What another stage, or the report, reads of a run."""

    folder: Path
    stage: str
    config_class: str
    config: dict[str, Any]
    models: dict[str, ModelFile]
    """What it started from, by the config's field."""
    done: dict[str, Any] | None
    """The final summary, or None when the run has not finished."""
    retuned: list[dict[str, Any]]
    """After each divergence: why, and the fields that were changed to go on."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


class Run:
    """A run folder held by this process. Leaving the block on an error writes ``FAILED``."""

    def __init__(self, folder: Path, *, done: dict[str, Any] | None, lock: Any):
        self.folder = folder
        self.done = done
        """Summary of a run that had finished before, or None."""
        self._lock = lock

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
    models: Mapping[str, ModelFile] | None = None,
) -> Run:
    """Take a run folder for this process: start it when new, resume it when it is the same run.

    ``ignore`` names dotted fields (or groups of them) that may change between start and resume,
    ``late`` those that may until the run is finished, ``tunable`` those that may after it diverged,
    which is recorded: the newest are what is saved. A field that a
    run of an older version does not have counts as its value in ``defaults``. ``models`` are what
    the run starts from: a folder may be moved, but not hold another model. Only process 0 checks
    and writes; ``config`` and ``defaults`` are JSON-able.

    Raises InputError when the folder is of another stage, config or model, holds other files, or is
    in use by another process.
    """
    folder = Path(folder)
    if jax.process_index() != 0:
        return Run(folder, done=read_done(folder), lock=None)
    check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder)
    except OSError as error:
        reason = describe_os_error(error)
        raise InputError(f"run folder {folder} cannot be written: {reason}") from None
    try:
        saved_path = folder / "config.json"
        saved = read_run(folder, stage=None) if saved_path.exists() else None
        if saved is not None:
            allowed = [*ignore, *(() if saved.done else late)]
            allowed += tunable if diverged(folder) else ()
            check_same(saved, stage, config, allowed, defaults or {})
            check_same_models(saved, models or {})
        if saved is None or diff_config(saved.config, config, ignore=ignore):
            record = describe_run(stage, config, config_class)
            record["models"] = saved.models if saved else dict(models or {})
            record["retuned"] = retuned(saved, config, [*ignore, *late]) if saved else []
            write_atomically(saved_path, json.dumps(record, indent=2) + "\n")
        (folder / "FAILED").unlink(missing_ok=True)
        return Run(folder, done=read_done(folder), lock=lock)
    except BaseException:
        lock.close()
        raise


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
            saved["config"],
            {name: ModelFile(*model) for name, model in saved.get("models", {}).items()},
            read_done(folder),
            saved.get("retuned", []),
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a config saved by this project ({error!r})") from None
    if stage is not None and run.stage != stage:
        raise InputError(f"{folder} belongs to stage {run.stage!r}, expected a run of {stage!r}")
    return run


def read_done(folder: Path) -> dict[str, Any] | None:
    path = folder / "DONE"
    return json.loads(path.read_text()) if path.exists() else None


def check_free(folder: Path) -> None:
    """Raise InputError rather than scatter a run over somebody's folder."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            below = "" if path == folder else f"{folder}: "
            raise InputError(f"run folder {below}{path} is a file")
    if folder.is_dir() and not (folder / "config.json").exists():
        others = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
        if others:
            raise InputError(f"{folder} is not a run folder and not empty (it holds {others[0]})")


def check_same(
    saved: SavedRun,
    stage: str,
    config: Mapping[str, Any],
    ignore: Collection[str],
    defaults: Mapping[str, Any],
) -> None:
    if saved.stage != stage:
        raise InputError(
            f"{saved.folder} belongs to stage {saved.stage!r}, not {stage!r}: choose another folder"
        )
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


def check_same_models(saved: SavedRun, models: Mapping[str, ModelFile]) -> None:
    """Raise InputError where a model is another than at the start, whatever its folder is called.

    A model that is no longer there is not compared: a finished run needs it no more.
    """
    for name, now in models.items():
        was = saved.models.get(name, now)
        if was.digest != now.digest:
            raise InputError(
                f"{saved.folder} was started from another model: {name} was {was.path} "
                f"({was.digest[:12]}), now {now.path} ({now.digest[:12]}) "
                "(resume from the same, or choose another folder)"
            )


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
