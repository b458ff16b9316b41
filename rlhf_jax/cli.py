"""Command line → config: a preset file, then dotted overrides, with a hint for every slip.

    python -m experiments.ppo --config configs/quickstart.py --kl.coef 0.1
    python -m experiments.ppo --config=configs/gpt2_124m.py:seed=1 --config.kl.coef=0.1
    python -m experiments.ppo --config runs/x/ppo/config.json
    python -m experiments.ppo --task translation      # --config configs/tasks/translation.py
    python -m experiments.ppo --help                  # then --help optim, --help all

A preset is a Python file with ``get_config(...)``; a whole-chain preset serves every stage, which
takes its own section. ``config.json`` of a finished run is a preset too.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import io
import json
import logging
import os
import re
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import tyro
from tqdm import tqdm

from rlhf_jax import help_pages
from rlhf_jax.config import InstructGPTConfig
from rlhf_jax.config.bounds import number_in
from rlhf_jax.config.effect import value_of, without_effect
from rlhf_jax.config.forks import check_declared, class_named, extends, widened
from rlhf_jax.config.moved import relocated
from rlhf_jax.errors import (
    InputError,
    RunError,
    check,
    describe_os_error,
    describe_out_of_memory,
)

C = TypeVar("C")
TASK_PRESETS = Path(__file__).parents[1] / "configs" / "tasks"
FROM_HF = re.compile(r"^(--[\w.-]+)\.from[-_]hf(?==|$)")


def main(run: Callable[[C], Any], config_class: type[C]) -> None:
    """Entry point of an experiment: parse, run, and turn what a user can cause into one line."""
    if callable(signal.getsignal(signal.SIGINT)):  # not where Ctrl-C is ignored (nohup)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        show_help(run, config_class, sys.argv[1:])
        with remarks_on_stderr():
            run(load(config_class, sys.argv[1:]))
        if reader_is_gone():
            end(141)
    except InputError as error:
        leave(f"error: {error}", 2)
    except RunError as error:
        leave(f"stopped: {error}", 1)
    except (MemoryError, RuntimeError) as error:
        said = describe_out_of_memory(error)
        if not said:
            raise
        leave(f"stopped: {said}", 1)
    except SystemExit as stop:
        if reader_is_gone():
            end(141)
        raise stop from None
    except BrokenPipeError:
        end(141)  # who read our output has enough of it (| head): a shell's 128 + SIGPIPE
    except OSError as error:
        leave(f"stopped: {describe_os_error(error)}", 1)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("stopped: Ctrl-C", file=sys.stderr)
        end(130)


def leave(message: str, status: int) -> NoReturn:
    """End with one line; quietly where nobody reads any more."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)
    if reader_is_gone():
        end(status)
    raise SystemExit(status) from None


def reader_is_gone() -> bool:
    """Whether what was printed can no longer be written: Python would say so at its end."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed
            stream.flush()
    except OSError:
        return True
    return False


def show_help(run: Callable[[C], Any], config_class: type[C], argv: Sequence[str]) -> None:
    """What ``--help [TOPIC]`` asks for, if it is in ``argv``; then the program ends."""
    flags = [n for n, argument in enumerate(argv) if argument in ("-h", "--help")]
    flags += [n for n, argument in enumerate(argv) if argument.startswith("--help=")]
    if not flags:
        return
    topic = argv[flags[0]].partition("=")[2]
    following = "".join(argv[flags[0] + 1 : flags[0] + 2])
    if not topic and not following.startswith("-"):
        topic = following
    preset, rest = take_preset(list(argv))
    preset = take_task(rest)[0] if preset is None else preset
    config = section(config_class() if preset is None else read_preset(preset), config_class)
    module = inspect.getmodule(run)
    name = getattr(module.__spec__, "name", module.__name__).removesuffix(".__main__")
    print(help_pages.page(config, topic, command=name, about=module.__doc__ or ""), flush=True)
    raise SystemExit(0)


class Remarks(logging.Handler):
    """The library's warnings as lines of a command, above a running bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def remarks_on_stderr() -> Iterator[None]:
    """Within it the library's log is part of what a command says; a program logs as it likes."""
    logger, handler = logging.getLogger("rlhf_jax"), Remarks(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def end(status: int) -> None:
    """End this process now: nothing more is written, and no thread at work is waited for."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def load(config_class: type[C], argv: Sequence[str]) -> C:
    """The config that ``argv`` asks for; what of it has no effect is said on stderr.

    Raises InputError for an unknown flag or preset, or a value that a field may not hold.
    """
    check_declared(config_class)
    preset, rest = take_preset(list(argv))
    if preset is None:
        preset, rest = take_task(rest)
    given = config_class() if preset is None else read_preset(preset)
    default = section(given, config_class)
    config = with_flags(default, rest)
    typed = read_flags(rest, default)
    check_not_filled_in(config, typed)
    if preset is not None and not preset.endswith(".json"):
        say_idle(given, set_in(given), f"{preset}: ")
    say_idle(config, [flag.field for flag in typed], "--")
    return config


def with_flags(config: C, argv: Sequence[str]) -> C:
    """``config`` with the flags of ``argv``. Raises InputError for one that it has not, or a value
    that it may not hold."""
    check_flags(argv, read_flags(argv, config), config)
    return parse(type(config), config, list(argv))


def parse(config_class: type[C], default: C, argv: list[str]) -> C:
    """``default`` with the flags of ``argv``. What tyro says in a box ends here."""
    arguments = dict(default=default, args=argv, config=(tyro.conf.FlagConversionOff,))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what a check raises is shown all the same
            return tyro.cli(config_class, **arguments, console_outputs=False)
    except SystemExit as end:
        cause = end.__context__
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:  # a check of the config: one line, not a box
            raise cause from None
    return tyro.cli(config_class, **arguments)


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
    in_preset(path, partial(spec.loader.exec_module, module))
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
    return in_preset(path, partial(module.get_config, *positional, **named))


def in_preset(path: str, function: Callable[[], Any]) -> Any:
    """``function()`` of a preset's code; what it raises is one sentence with file and line."""
    try:
        return function()
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines, message = [error.lineno], f"{error.msg} ({type(error).__name__})"
        else:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            message = f"{kind}{error}"
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"--config {path}{where}: {' '.join(message.split())}") from error


def section(preset: Any, config_class: type[C]) -> C:
    """The part of a preset that this experiment reads; a fork's class may extend the part's."""
    if isinstance(preset, config_class):
        return preset
    if extends(config_class, preset):
        return widened_with_note(preset, config_class)
    if isinstance(preset, InstructGPTConfig):
        if "chain" in (field.name for field in dataclasses.fields(config_class)):
            return config_class(chain=preset)
        for stage in vars(preset.resolve()).values():
            if isinstance(stage, config_class):
                return stage
            if extends(config_class, stage):
                return widened_with_note(stage, config_class)
    raise InputError(
        f"--config gives a {type(preset).__name__}, but this experiment needs a "
        f"{config_class.__name__}"
    )


def widened_with_note(preset: Any, config_class: type[C]) -> C:
    config, decided = widened(preset, config_class)
    for name in decided:
        was, now = getattr(preset, name), getattr(config, name)
        note(f"{config_class.__name__} has {name}={now}, where the preset has {was}")
    return config


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, annotation) of every field that is no config itself."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name]


def flag_of(dotted: str) -> str:
    """A field as it is spelled on the command line, without the --."""
    return dotted.replace("_", "-").rstrip("-")  # as_, for --as, which Python has taken


def flag_names(config: Any) -> list[str]:
    """Every flag of ``config``, without the --."""
    return [flag_of(field) for field, _ in fields_of(config)]


class Typed(NamedTuple):
    """A flag on the command line."""

    name: str
    """As flag_of its field, whichever way it was spelled."""
    field: str
    values: tuple[str, ...]
    hint: Any
    """The field's annotation; None where there is no such field."""


def read_flags(argv: Sequence[str], default: Any) -> list[Typed]:
    """Every flag of ``argv`` with the values that follow it."""
    hints = dict(fields_of(default))
    fields = {flag_of(field): field for field in hints}
    found: list[Typed] = []
    for argument in argv:
        if not argument.startswith("--"):
            if found:
                found[-1] = found[-1]._replace(values=(*found[-1].values, argument))
        else:
            name, equals, value = argument[2:].partition("=")
            name = flag_of(name)
            field = fields.get(name, "")
            found.append(Typed(name, field, (value,) if equals else (), hints.get(field)))
    return found


ONE_HYPHEN = re.compile("(?!--)[-\u2010-\u2015\u2212]+[a-z]")
"""A flag with one hyphen, or with what word processors and web pages make of two."""


def check_flags(argv: Sequence[str], typed: Sequence[Typed], default: Any) -> None:
    """Raise InputError for a flag that does not exist, or a value that its field cannot hold.

    A flag that is given twice is said: the last counts.
    """
    for argument in argv:
        if ONE_HYPHEN.match(argument) and argument not in ("-inf", "-nan"):
            name = re.search("[a-z].*", argument)[0]
            raise InputError(f"unknown flag {argument}: flags begin with two hyphens, --{name}")
    for number, flag in enumerate(typed):
        if not flag.field:
            raise InputError(unknown_flag(flag.name, default))
        check_values(flag)
        if any(flag.name == earlier.name for earlier in typed[:number]):
            note(f"--{flag.name} is given twice: the last one counts, {' '.join(flag.values)}")


def unknown_flag(name: str, default: Any) -> str:
    """A sentence with the nearest flag, which tyro finds for some lengths only."""
    known = flag_names(default)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    if not near:
        last = {flag: flag.rpartition(".")[2] for flag in known}
        ends = difflib.get_close_matches(name.rpartition(".")[2], last.values(), n=1)
        near = [flag for flag in known if last[flag] in ends]
    hint = f"; did you mean {' or '.join('--' + flag for flag in near)}?" if near else ""
    return f"unknown flag --{name}{hint} (--help all lists them)"


def check_values(flag: Typed) -> None:
    """Raise InputError for a number out of bounds, or an empty path; tyro knows the other types."""
    number, types_ = number_in(flag.hint), list(leaf_types(flag.hint))
    for text in flag.values if tuple in types_ else flag.values[:1]:
        if number is not None and not (text == "None" and types.NoneType in types_):
            problem = number.problem(parsed(text, number.kind))
            check(not problem, f"--{flag.name} {text}: {problem}")
        empty = text == "" and Path in types_
        check(not empty, f"--{flag.name} is empty: expected a path")


def parsed(text: str, kind: type) -> int | float | None:
    """The number that tyro would read; None if it is no number of this kind."""
    try:
        return kind(text)
    except ValueError:
        return None


def leaf_types(hint: Any) -> Iterator[Any]:
    """The types in an annotation: of a union and a tuple each, and tuple itself."""
    if typing.get_origin(hint) is tuple:
        yield tuple
    arguments = typing.get_args(hint)
    for part in arguments[:1] if hasattr(hint, "__metadata__") else arguments:
        yield from leaf_types(part)
    if not arguments:
        yield hint


def check_not_filled_in(config: Any, typed: Sequence[Typed]) -> None:
    """Raise InputError for a flag of a stage that stages in a row set themselves."""
    if not hasattr(config, "resolve"):
        return
    resolved = config.resolve()
    for flag in typed:
        here, there = (value_of(each, flag.field) for each in (config, resolved))
        check(
            here == there,
            f"--{flag.name} has no effect: where stages run in a row, it is {there}",
        )


def set_in(preset: Any) -> list[str]:
    """The fields that are neither as the whole config has them by default, nor as their own."""
    default, names = default_of(type(preset)), []
    for name, _ in fields_of(preset):
        holder, _, last = name.rpartition(".")
        own = default_of(type(value_of(preset, holder) if holder else preset))
        value = value_of(preset, name)
        if value != value_of(default, name) and value != getattr(own, last):
            names.append(name)
    return names


@cache
def default_of(config_class: type) -> Any:
    return config_class()


def say_idle(config: Any, fields: Sequence[str], prefix: str) -> None:
    """One line for each of these fields that is set, but has no effect."""
    for field in dict.fromkeys(fields):
        why = without_effect(config, field)
        if why is not None:
            note(f"{prefix}{flag_of(field)} has no effect{why}")


def note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


def to_dict(config: Any) -> Any:
    """A config as JSON-able data."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def read_json(path: Path) -> Any:
    """The config saved in a run folder's ``config.json``, of whichever class it was."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        name, values = saved["config_class"], saved["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a config saved by this project ({error!r})") from None
    config_class = class_named(name, str(path))
    moved = relocated(values, config_class, path.parent) if isinstance(values, dict) else values
    config = from_dict(config_class, moved, str(path))
    absent = [field for field, _ in fields_of(config) if not is_in(values, field)]
    if absent:
        note(f"{path} is of another version: it does not say {', '.join(absent)}, so defaults hold")
    return config


def is_in(saved: Any, dotted: str) -> bool:
    """Whether a saved config has this field."""
    first, _, rest = dotted.partition(".")
    if not isinstance(saved, dict) or first not in saved:
        return False
    return not rest or is_in(saved[first], rest)


def from_dict(kind: Any, value: Any, where: str) -> Any:
    """The strict inverse of ``to_dict``: an unknown field or a wrong type is an InputError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return config_from(kind, value, where)
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
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value


def config_from(kind: type, value: Any, where: str) -> Any:
    """A config class with its fields from a saved object."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {value!r}")
    hints = typing.get_type_hints(kind)
    unknown = [name for name in value if name not in hints]
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: unknown field {unknown[0]!r}{hint}")
    fields = {k: from_dict(hints[k], v, f"{where}: {k}") for k, v in value.items()}
    try:
        return kind(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
