"""A command of several, each with a config of its own: ``python -m experiments.feedback serve``.

The command's word may stand among the flags. A flag that only others take is refused by name, and
one command may start others, each with those of its own flags that they take.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax import help_pages
from rlhf_jax.cli.command import carry_out, help_topic, name_of, show_help
from rlhf_jax.cli.fields import flag_names, flag_of
from rlhf_jax.cli.flags import Resolve, read_flags
from rlhf_jax.cli.overrides import load
from rlhf_jax.cli.presets import take_preset, take_task
from rlhf_jax.cli.values import either, suggestion
from rlhf_jax.errors import InputError, check


class Subcommand(NamedTuple):
    """What one of the commands does, and with which fields."""

    run: Callable[[Any], Any]
    config_class: type
    """Its docstring says what the command does."""
    resolve: Resolve | None = None
    """Of stages in a row: the config with what they are told filled in."""


def main_of(commands: Mapping[str, Subcommand], *, bare: str) -> None:
    """Entry point of a command of several.

    ``bare`` is said where nothing is typed at all; flags without a command are the first one's.
    """
    module = sys.modules["__main__"]

    def job(argv: list[str]) -> None:
        check(bool(argv), bare)
        name, rest = take_command(argv, commands)
        if name is None and help_topic(rest) == "":
            classes = {command: commands[command].config_class for command in commands}
            print(help_pages.overview(name_of(module), module.__doc__ or "", classes), flush=True)
            raise SystemExit(0)
        run_one(name or next(iter(commands)), rest, commands, program=name_of(module))

    carry_out(job)


def run_one(
    name: str, argv: list[str], commands: Mapping[str, Subcommand], *, program: str
) -> None:
    """The command ``name`` with its flags, or its help."""
    one = commands[name]
    about = inspect.cleandoc(one.config_class.__doc__ or "")
    show_help(one.config_class, argv, command=f"{program} {name}", about=about, resolve=one.resolve)
    one.run(load_command(name, argv, commands))


def load_command(name: str, argv: list[str], commands: Mapping[str, Subcommand]) -> Any:
    """The config that ``argv`` asks for of the command ``name``. Raises InputError as ``load``."""
    check_taken(name, argv, {command: commands[command].config_class for command in commands})
    return load(commands[name].config_class, argv, resolve=commands[name].resolve)


def take_command(argv: Sequence[str], commands: Collection[str]) -> tuple[str | None, list[str]]:
    """Split off the command's word: the first, or the first that is no value of a flag.

    Raises InputError for a first word that is no command.
    """
    if argv and not argv[0].startswith("-"):
        names = list(commands)
        check(
            argv[0] in names,
            f"{argv[0]}: there is no such command; expected {either(names)}"
            f"{suggestion(argv[0], names)}",
        )
        return argv[0], list(argv[1:])
    for n in range(1, len(argv)):
        before = argv[n - 1]
        # ``--format export`` names no command.
        is_value = before.startswith("--") and "=" not in before and before != "--help"
        if argv[n] in commands and not is_value:
            return argv[n], [*argv[:n], *argv[n + 1 :]]
    return None, list(argv)


def check_taken(name: str, argv: Sequence[str], classes: Mapping[str, type]) -> None:
    """Raise InputError for a flag that other commands take, and ``name`` does not."""
    flags = {command: set(flag_names(classes[command]())) for command in classes}
    for typed in read_flags(field_flags(argv)[1], classes[name]()):
        flag = typed.shown.removeprefix("--")
        takers = [command for command in flags if flag in flags[command]]
        if takers and name not in takers:
            verb = "takes" if len(takers) == 1 else "take"
            raise InputError(f"{typed.shown} is no flag of {name}: {both(takers)} {verb} it")


def both(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def field_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The preset of ``argv`` as a flag and its file, or nothing; and the flags of fields."""
    preset, rest = take_preset(list(argv))
    if preset is None:
        preset, rest = take_task(rest)
    return [] if preset is None else ["--config", preset], rest


def flags_for(config_class: type, argv: Sequence[str]) -> list[str]:
    """What of ``argv`` another command understands: the preset, and the flags that it takes."""
    preset, rest = field_flags(argv)
    known, kept, is_kept = set(flag_names(config_class())), preset, True
    for argument in rest:
        if argument.startswith("--"):
            is_kept = flag_of(argument[2:].partition("=")[0]) in known
        kept += [argument] * is_kept
    return kept
