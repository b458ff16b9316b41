"""The config that a command line asks for: a preset's, with the flags over it."""

import contextlib
import io
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import tyro

from rlhf_jax.cli.flags import Resolve, check_flags, check_not_filled_in, read_flags
from rlhf_jax.cli.notes import say_idle, set_in
from rlhf_jax.cli.presets import read_preset, section, take_preset, take_task
from rlhf_jax.config.forks import check_declared
from rlhf_jax.errors import InputError

C = TypeVar("C")


def load(config_class: type[C], argv: Sequence[str], *, resolve: Resolve | None = None) -> C:
    """The config that ``argv`` asks for; what of it has no effect is said on stderr.

    ``resolve`` fills in what stages in a row are told; None: the config's own, if it has one.
    Raises InputError for an unknown flag or preset, or a value that a field may not hold.
    """
    check_declared(config_class)
    preset, rest = take_preset(list(argv))
    if preset is None:
        preset, rest = take_task(rest)
    preset_config = config_class() if preset is None else read_preset(preset)
    default = section(preset_config, config_class)
    config = with_flags(default, rest)
    typed = read_flags(rest, default)
    check_not_filled_in(config, typed, resolve or getattr(config_class, "resolve", None))
    # A run's config.json has every field, meant or not; a preset was written by somebody.
    if preset is not None and not preset.endswith(".json"):
        say_idle(preset_config, set_in(preset_config), f"{preset}: ")
    say_idle(config, [flag.field for flag in typed], "--")
    return config


def with_flags(config: C, argv: Sequence[str]) -> C:
    """``config`` with the flags of ``argv``.

    Raises InputError for one that it has not, or a value that it may not hold.
    """
    check_flags(argv, read_flags(argv, config), config)
    return parse(type(config), config, list(argv))


def parse(config_class: type[C], default: C, argv: list[str]) -> C:
    """``default`` with the flags of ``argv``. What tyro says in a box ends here."""
    read = partial(
        tyro.cli, config_class, default=default, args=argv, config=(tyro.conf.FlagConversionOff,)
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what a check raises is shown all the same
            return read(console_outputs=False)
    except SystemExit as end:
        # tyro exits with a box of its own; the check's sentence is somewhere behind it.
        cause = end.__context__
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:  # a check of the config: one line, not a box
            raise cause from None
    return read()
