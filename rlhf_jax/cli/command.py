"""Running a command: its config, its help, its signals, and one line for what a user can cause."""

import contextlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from rlhf_jax import help_pages
from rlhf_jax.cli.overrides import load
from rlhf_jax.cli.presets import read_preset, section, take_preset, take_task
from rlhf_jax.errors import InputError, RunError, describe_os_error, describe_out_of_memory

C = TypeVar("C")


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
