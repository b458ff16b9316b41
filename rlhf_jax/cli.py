"""Command line → config: a preset file, then dotted overrides, with a hint for every slip.

    python -m experiments.ppo --config configs/quickstart.py --kl.coef 0.1
    python -m experiments.ppo --config=configs/gpt2_124m.py:seed=1 --config.kl.coef=0.1
    python -m experiments.ppo --config runs/x/ppo/config.json
    python -m experiments.ppo --task translation      # --config configs/tasks/translation.py

A preset is a Python file with ``get_config(...)``; a whole-chain preset serves every stage, which
takes its own section. ``config.json`` of a finished run is a preset too.
"""

import dataclasses
import difflib
import importlib.util
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from rlhf_jax.config import InstructGPTConfig
from rlhf_jax.errors import InputError, RunError

C = TypeVar("C")
TASK_PRESETS = Path(__file__).parents[1] / "configs" / "tasks"
FROM_HF = re.compile(r"^(--[\w.-]+)\.from[-_]hf(?==|$)")


def main(run: Callable[[C], Any], config_class: type[C]) -> None:
    """Entry point of an experiment: parse, run, and turn the two known errors into one line."""
    try:
        run(load(config_class, sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RunError as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def load(config_class: type[C], argv: Sequence[str]) -> C:
    """The config that ``argv`` asks for. Raises InputError for an unknown flag or preset."""
    preset, rest = take_preset(list(argv))
    if preset is None:
        preset, rest = take_task(rest)
    default = config_class() if preset is None else section(read_preset(preset), config_class)
    check_flags(rest, default)
    return tyro.cli(config_class, default=default, args=rest, config=(tyro.conf.FlagConversionOff,))


def take_preset(argv: list[str]) -> tuple[str | None, list[str]]:
    """Split off ``--config X``; ``--config.a.b`` becomes ``--a.b``, ``--a.from-hf X`` ``--a X``.

    A folder of Hugging Face is recognised where a run folder is expected, so the last is a synonym.
    """
    preset, rest = None, []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            preset = next(arguments, None)
            if preset is None:
                raise InputError("--config needs a file: configs/NAME.py or a run's config.json")
        elif argument.startswith("--config="):
            preset = argument.removeprefix("--config=")
        else:
            if argument.startswith("--config."):
                argument = "--" + argument.removeprefix("--config.")
            rest.append(FROM_HF.sub(r"\1", argument))
    return preset, rest


def take_task(argv: list[str]) -> tuple[str | None, list[str]]:
    """Without ``--config``, ``--task NAME`` is the task's own preset, if it has one."""
    for n, argument in enumerate(argv):
        flag, equals, name = argument.partition("=")
        if flag == "--task":
            name = name if equals else "".join(argv[n + 1 : n + 2])
            preset = TASK_PRESETS / f"{name}.py"
            if name.isidentifier() and preset.is_file():
                return str(preset), argv[:n] + argv[n + 1 + (not equals) :]
    return None, argv


def read_preset(preset: str) -> Any:
    """A config from ``FILE.py[:arg,name=value,...]`` or from a saved ``config.json``."""
    path, _, arguments = preset.partition(":")
    if not Path(path).is_file():
        raise InputError(f"--config {path}: no such file")
    if path.endswith(".json"):
        return read_json(Path(path))
    spec = importlib.util.spec_from_file_location(f"preset_{Path(path).stem}", path)
    if spec is None:
        raise InputError(f"--config {path}: expected a .py preset or a .json config")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = [word.partition("=") for word in arguments.split(",") if word]
    positional = [name for name, equals, _ in words if not equals]
    named = {name: value for name, equals, value in words if equals}
    signature = inspect.signature(module.get_config)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise InputError(f"--config {preset}: {error}; it takes get_config{signature}") from None
    return module.get_config(*positional, **named)


def section(preset: Any, config_class: type[C]) -> C:
    """The part of a preset that this experiment reads."""
    if isinstance(preset, config_class):
        return preset
    if isinstance(preset, InstructGPTConfig):
        if "chain" in (field.name for field in dataclasses.fields(config_class)):
            return config_class(chain=preset)
        for stage in vars(preset.resolve()).values():
            if isinstance(stage, config_class):
                return stage
    raise InputError(
        f"--config gives a {type(preset).__name__}, but this experiment needs a "
        f"{config_class.__name__}"
    )


def flag_names(config: Any, prefix: str = "") -> list[str]:
    """Every dotted field, with hyphens, as it is spelled on the command line."""
    names = []
    for field in dataclasses.fields(config):
        name = prefix + field.name.replace("_", "-")
        value = getattr(config, field.name)
        names += flag_names(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return names


def check_flags(argv: Sequence[str], default: Any) -> None:
    """Raise InputError naming the nearest flag, which tyro does for some lengths only."""
    known = flag_names(default)
    for argument in argv:
        if not argument.startswith("--") or argument == "--help":
            continue
        given = argument[2:].partition("=")[0].replace("_", "-")
        if given in known:
            continue
        near = difflib.get_close_matches(given, known, n=2, cutoff=0.7)
        if not near:
            last = {name: name.rpartition(".")[2] for name in known}
            ends = difflib.get_close_matches(given.rpartition(".")[2], last.values(), n=1)
            near = [name for name in known if last[name] in ends]
        hint = f"; did you mean {' or '.join('--' + name for name in near)}?" if near else ""
        raise InputError(f"unknown flag --{given}{hint} (--help lists all)")


def to_dict(config: Any) -> Any:
    """A config as JSON-able data."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def read_json(path: Path) -> Any:
    """The config saved in a run folder's ``config.json``, of whichever class it was."""
    import rlhf_jax.config as classes

    try:
        saved = json.loads(path.read_text())
        config_class = getattr(classes, saved["config_class"])
    except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a config saved by this project ({error!r})") from None
    return from_dict(config_class, saved["config"], str(path))


def from_dict(kind: Any, value: Any, where: str) -> Any:
    """The strict inverse of ``to_dict``: an unknown field or a wrong type is an InputError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = [name for name in value if name not in hints]
        if unknown:
            near = difflib.get_close_matches(unknown[0], hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{where}: unknown field {unknown[0]!r}{hint}")
        return kind(**{k: from_dict(hints[k], v, f"{where}: {k}") for k, v in value.items()})
    if origin in (types.UnionType, typing.Union):
        return None if value is None else from_dict(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {value!r}")
        return tuple(from_dict(arguments[0], item, where) for item in value)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where}: expected one of {arguments}, found {value!r}")
        return value
    if kind is Path:
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value
