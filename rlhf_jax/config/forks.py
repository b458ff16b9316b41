"""A fork's own config: a subclass of an experiment's, which works wherever that one does.

    @dataclass(frozen=True)
    class HighEntropyConfig(PPOConfig):
        top_entropy: Share = 0.2
        "Share of the tokens that the policy learns from."

Presets of the parent's class are widened to it, and ``config.json`` names it as ``module:name``.
"""

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, TypeVar

import rlhf_jax.config as project
from rlhf_jax.errors import InputError, check

C = TypeVar("C")


def name_of(config_class: type) -> str:
    """How ``config.json`` names a class: "PPOConfig", or of a fork "module:HighEntropyConfig"."""
    if getattr(project, config_class.__name__, None) is config_class:
        return config_class.__name__
    return f"{module_name(config_class.__module__)}:{config_class.__qualname__}"


def module_name(name: str) -> str:
    """The name by which another process imports a module, also the one that is being run."""
    main = sys.modules[name]
    if name != "__main__":
        return name
    if main.__spec__ is not None:  # python -m experiments.proj.mine.ppo
        return main.__spec__.name
    if main.__dict__.get("__file__") is None:  # a notebook, python -c
        return name
    file = Path(main.__dict__["__file__"]).resolve()  # python experiments/proj/mine/ppo.py
    below = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else Path(file.name)
    return ".".join(below.with_suffix("").parts)


def class_named(name: str, where: str) -> type:
    """The config class that ``name_of`` named. Raises InputError, beginning with ``where``."""
    module, colon, qualname = name.partition(":")
    if not colon:
        check(name in project.__all__, f"{where}: this version has no config of the class {name!r}")
        return getattr(project, name)
    try:
        there = sys.modules["__main__"] if module == module_name("__main__") else None
        inner: Any = there or importlib.import_module(module)
        for part in qualname.split("."):
            inner = getattr(inner, part)
    except Exception as error:  # whatever somebody's module does when it is imported
        raise InputError(
            f"{where}: its config class {name} cannot be read ({type(error).__name__}: {error}); "
            "start the command from the folder from which the fork was started"
        ) from None
    # A record names any object of any module; only what holds settings is built from it.
    is_config = isinstance(inner, type) and dataclasses.is_dataclass(inner)
    check(is_config, f"{where}: {name} is no config class")
    return inner


def extends(config_class: type, preset: Any) -> bool:
    """Whether a preset of this class can be widened to ``config_class``."""
    return type(preset) is not config_class and issubclass(config_class, type(preset))


def widened(preset: Any, config_class: type[C]) -> tuple[C, list[str]]:
    """A preset of the parent's class as one of the fork's, and the fields that the fork decides.

    Fields that the fork declares, new or anew with another default, are as it declares them.
    """
    own = declared(config_class, type(preset))
    values = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    fork = config_class(**{name: value for name, value in values.items() if name not in own})
    decided = [n for n in values if n in own and getattr(fork, n) != values[n]]
    return fork, decided


def declared(config_class: type, parent: type) -> set[str]:
    """The fields that ``config_class`` and what lies between it and ``parent`` declare."""
    order = config_class.__mro__
    between = order[: order.index(parent)]
    return {name for one in between for name in inspect.get_annotations(one)}


def check_declared(config_class: type[Any]) -> None:
    """Raise InputError for a default that Python ignores: of a field declared without its type."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    for one in config_class.__mro__:
        for name in fields & vars(one).keys() - inspect.get_annotations(one).keys():
            raise InputError(
                f"{one.__name__}.{name} has no type, so that its value would be ignored: "
                f"write {name}: {type(vars(one)[name]).__name__} = ..."
            )
