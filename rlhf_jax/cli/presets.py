"""Presets: a Python file with ``get_config(...)``, a task's name, or a saved ``config.json``.

A whole-chain preset serves every stage, which takes its own section.
"""

import dataclasses
import inspect
import re
import typing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rlhf_jax.cli.notes import note
from rlhf_jax.cli.saved import read_json
from rlhf_jax.config import FeedbackConfig, InstructGPTConfig
from rlhf_jax.config.feedback import LoopConfig
from rlhf_jax.config.forks import extends, widened
from rlhf_jax.errors import InputError
from rlhf_jax.python_files import in_file, load_file

C = TypeVar("C")

TASK_PRESETS = Path(__file__).parents[2] / "configs" / "tasks"
FROM_HF = re.compile(r"^(--[\w.-]+)\.from[-_]hf(?==|$)")


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
    flag = f"--config {path}"
    if not path.endswith(".py"):
        raise InputError(f"{flag}: expected a .py preset or a .json config")
    module = load_file(Path(path), flag=flag)
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"--config {path} has no function get_config")
    words = [word.partition("=") for word in arguments.split(",") if word]
    positional = [name for name, equals, _ in words if not equals]
    named = {name: value for name, equals, value in words if equals}
    signature = inspect.signature(module.get_config)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise InputError(f"--config {preset}: {error}; it takes get_config{signature}") from None
    get_config = partial(module.get_config, *positional, **named)
    return in_file(Path(path), get_config, flag=flag)


def section(preset: Any, config_class: type[C]) -> C:
    """The part of a preset that this experiment reads; a fork's class may extend the part's."""
    if issubclass(config_class, LoopConfig):
        if isinstance(preset, InstructGPTConfig):
            preset = preset.resolve().feedback
        if isinstance(preset, FeedbackConfig) and not issubclass(config_class, FeedbackConfig):
            return narrowed(preset, config_class)
    if isinstance(preset, config_class):
        return preset
    if extends(config_class, preset):
        return widened_with_note(preset, config_class)
    if isinstance(preset, InstructGPTConfig):
        planned: Any = config_class
        if "chain" in (field.name for field in dataclasses.fields(planned)):
            return planned(chain=preset)
        for stage in vars(preset.resolve()).values():
            if isinstance(stage, config_class):
                return stage
            if extends(config_class, stage):
                return widened_with_note(stage, config_class)
    raise InputError(
        f"--config gives a {type(preset).__name__}, but this experiment needs a "
        f"{config_class.__name__}"
    )


def narrowed(config: Any, config_class: type[C]) -> C:
    """What ``config`` says of the fields of ``config_class``, which may have others too."""
    whole, part = typing.get_type_hints(type(config)), typing.get_type_hints(config_class)
    values = {}
    for name in part.keys() & whole.keys():
        value = getattr(config, name)
        values[name] = value if whole[name] == part[name] else narrowed(value, part[name])
    return config_class(**values)


def widened_with_note(preset: Any, config_class: type[C]) -> C:
    """A preset of the class that ``config_class`` extends, saying what the fork decides itself."""
    config, decided = widened(preset, config_class)
    for name in decided:
        was, now = getattr(preset, name), getattr(config, name)
        note(f"{config_class.__name__} has {name}={now}, where the preset has {was}")
    return config
