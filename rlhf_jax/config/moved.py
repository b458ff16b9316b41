"""Paths of a saved config after its run folder was moved, copied or renamed.

A config names its files as they were typed, so that it says what a run was made from. The folder
of the run is among them: from where it was and where it is now follows what was moved with it.

    was runs/x/ppo, is backup/y/ppo:   runs/x/sft → backup/y/sft, if that is there
                                       data/pairs.jsonl stays: it lies outside
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN_FILES = ("checkpoints", "final", "metrics.jsonl", "model.json", "DONE", "FAILED", ".lock")
"""What tells the folder of a run from one where a config.json alone was put."""


def relocated(config: dict[str, Any], config_class: type, folder: Path) -> dict[str, Any]:
    """``config`` as saved in ``folder``, with the paths that were moved with it as they are now."""
    made_in = run_folder(config)
    is_run = any((folder / name).exists() for name in RUN_FILES)
    if made_in is None or made_in == folder or not is_run:
        return config
    if made_in.absolute() == folder.absolute():  # by another name
        return config
    before, now = moved_part(made_in, folder)
    here = str(folder)

    def new_place(path: str) -> str:
        if Path(path) == made_in:
            return here
        if not Path(path).is_relative_to(before):
            return path
        candidate = now / Path(path).relative_to(before)
        return str(candidate) if is_there(candidate) else path

    return map_paths(config, config_class, new_place)


def run_folder(config: dict[str, Any]) -> Path | None:
    """Where the run of a saved config was made; None where its config does not say."""
    run = config.get("run", {})
    folder = run.get("dir") if isinstance(run, dict) and run else config.get("out")
    return Path(folder) if isinstance(folder, str) else None


def moved_part(before: Path, now: Path) -> tuple[Path, Path]:
    """Both without the last names that they share: what lies in the first was moved to the second.

    Of runs/x/ppo and backup/y/ppo these are runs/x and backup/y.
    """
    a, b = list(before.parts), list(now.parts)
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return Path(*a), Path(*b)


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder, or the run of RUN@STEP, or a file of a pattern."""
    run = Path(str(path).partition("@")[0])
    return path.exists() or run.is_dir() or bool(path.name and any(path.parent.glob(path.name)))


def map_paths(value: Any, kind: Any, function: Callable[[str], str]) -> Any:
    """A saved value of type ``kind`` with ``function`` of every path in it."""
    if value is None:
        return None
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        return {k: map_paths(v, hints.get(k), function) for k, v in value.items()}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return map_paths(value, arguments[0], function)
    if origin is tuple and isinstance(value, list):
        return [map_paths(item, arguments[0], function) for item in value]
    return function(value) if kind is Path and isinstance(value, str) else value
