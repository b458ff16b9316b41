"""What a run folder says of itself: config, inputs, code and machine, and how it ended."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlhf_jax.config.forks import class_named
from rlhf_jax.config.moved import relocated
from rlhf_jax.config.older import in_todays_form
from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import DivergedError, InputError
from rlhf_jax.runs.inputs import InputFile

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
        """Where steps are saved."""
        return self.folder / "checkpoints"


def diverged(folder: Path) -> str:
    """Why the run stopped, if its loss or gradient had become NaN or infinite; else empty."""
    failed = folder / "FAILED"
    why = failed.read_text() if failed.exists() else ""
    return why.strip() if why.startswith(DivergedError.__name__) else ""


def read_run(folder: Path, *, stage: str | None) -> SavedRun:
    """A run folder made earlier. Raises InputError when it is none, or not of ``stage``."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a run folder, found no config.json in it")
    try:
        saved = in_todays_form(json.loads(path.read_text()))
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
    """Inputs as a record holds them, by label."""
    return {name: InputFile(*entry) for name, entry in saved.items()}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write config.json, all of it or nothing."""
    write_atomically(folder / "config.json", json.dumps(record, indent=2) + "\n")


def read_done(folder: Path) -> dict[str, Any] | None:
    """What DONE says of a finished run, or None."""
    path = folder / "DONE"
    return read_object(path) if path.exists() else None


def read_object(path: Path, *names: str) -> dict[str, Any]:
    """The JSON object in a file that this project wrote, which has these ``names``.

    Raises InputError for anything else: half of it, or another program's.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not what a run has written there: {error}") from None
    missing = [name for name in names if not isinstance(value, dict) or name not in value]
    if missing or not isinstance(value, dict):
        what = f"no {', '.join(missing)} in it" if missing else "no object in it"
        raise InputError(f"{path} is not what a run has written there: {what}")
    return value


def dotted_fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.001, ...}; lists are values."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= dotted_fields(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def diff_config(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, ignore: Collection[str]
) -> list[tuple[str, str, str]]:
    """(field, saved value, given value), as JSON text, of every field that differs."""

    def texts(config):
        flat = dotted_fields(config)
        return {name: json.dumps(value) for name, value in flat.items() if not ignored(name)}

    def ignored(name):
        # A field stands for the group below it as well.
        return any(name == field or name.startswith(f"{field}.") for field in ignore)

    was, now = texts(saved), texts(current)
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
            # Asked of the installation: importing all of them would take seconds.
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
        "machine": machine(),
    }


def machine() -> str:
    """How many processors this process has, and their kind. No name of a machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # platform.processor() is empty or vague on Linux, so /proc is asked where there is one.
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(": ")[2] for line in lines if "model name" in line), model)
    return f"{cores or 1} of {model}"


def git_version() -> dict[str, Any] | None:
    """Commit of this source tree and whether files differ from it; None outside a repository."""
    here = Path(__file__).resolve()

    def git(*arguments):
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy inside some other project's repository is not that project's code.
        git("ls-files", "--error-unmatch", here.name)
        # Results change while a study writes them, and what is computed does not.
        looked_at = ("--", ":/", ":(top,exclude)docs/results")
        dirty = git("status", "--porcelain", "--untracked-files=no", *looked_at) != ""
        return {"sha": git("rev-parse", "HEAD"), "dirty": dirty}
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
