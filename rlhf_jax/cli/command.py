"""Running a command: its config, its help, its signals, and one line for what a user can cause."""

import contextlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from rlhf_jax import help_pages
from rlhf_jax.cli.flags import Resolve
from rlhf_jax.cli.overrides import load
from rlhf_jax.cli.presets import read_preset, section, take_preset, take_task
from rlhf_jax.errors import InputError, RunError, describe_os_error, describe_out_of_memory

C = TypeVar("C")


def main(run: Callable[[C], Any], config_class: type[C]) -> None:
    """Entry point of an experiment: parse, run, and turn what a user can cause into one line."""

    def job(argv: list[str]) -> None:
        module = inspect.getmodule(run)
        show_help(config_class, argv, command=name_of(module), about=module.__doc__ or "")
        run(load(config_class, argv))

    carry_out(job)


def name_of(module: Any) -> str:
    """How a module is started: ``python -m`` this."""
    return getattr(module.__spec__, "name", module.__name__).removesuffix(".__main__")


def carry_out(job: Callable[[list[str]], Any]) -> None:
    """Do ``job`` with the words of the command line; what a user can cause is one line."""
    if callable(signal.getsignal(signal.SIGINT)):  # not where Ctrl-C is ignored (nohup)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with remarks_on_stderr():
            job(sys.argv[1:])
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


def show_help(
    config_class: type,
    argv: Sequence[str],
    *,
    command: str,
    about: str,
    resolve: Resolve | None = None,
) -> None:
    """What ``--help [TOPIC]`` asks for, if it is in ``argv``; then the program ends."""
    topic = help_topic(argv)
    if topic is None:
        return
    preset, rest = take_preset(list(argv))
    preset = take_task(rest)[0] if preset is None else preset
    config = section(config_class() if preset is None else read_preset(preset), config_class)
    text = help_pages.page(config, topic, command=command, about=about, resolve=resolve)
    print(text, flush=True)
    raise SystemExit(0)


def help_topic(argv: Sequence[str]) -> str | None:
    """What help is asked for: of everything (empty), of a topic, or none (None)."""
    flags = [n for n, argument in enumerate(argv) if argument in ("-h", "--help")]
    flags += [n for n, argument in enumerate(argv) if argument.startswith("--help=")]
    if not flags:
        return None
    topic = argv[flags[0]].partition("=")[2]
    following = "".join(argv[flags[0] + 1 : flags[0] + 2])
    return topic or ("" if following.startswith("-") else following)


class Remarks(logging.Handler):
    """The library's warnings as lines of a command, above a running bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line on standard error."""
        tqdm.write(record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def remarks_on_stderr() -> Generator[None]:
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
