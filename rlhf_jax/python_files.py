"""Python files of the user's own: presets, tasks, reward functions."""

import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import TypeVar

from rlhf_jax.errors import InputError, check

T = TypeVar("T")


class Uncached(SourceFileLoader):
    """Compiles the file as it is now, and leaves no ``__pycache__`` beside it.

    Python's own would take yesterday's code for that of a file of the same size and second.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The file's code."""
        return self.source_to_code(self.get_data(self.path), self.path)


def load_file(path: Path, *, flag: str) -> ModuleType:
    """The module in a file that ``flag`` names.

    Raises InputError where there is none, or with the line on which its code fails.
    """
    check(path.is_file(), f"{flag}: no such file")
    check(path.suffix == ".py", f"{flag}: expected a .py file")
    name = f"own_{path.stem}"
    loader = Uncached(name, str(path))
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # as it has a loader
    module = module_from_spec(spec)
    # There its dataclasses look for their own types; afterwards it is nobody else's to import.
    sys.modules[module.__name__] = module
    try:
        in_file(path, partial(loader.exec_module, module), flag=flag)
    finally:
        del sys.modules[module.__name__]
    return module


def in_file(path: Path, function: Callable[[], T], *, flag: str) -> T:
    """``function()`` of a file's code; what it raises is one sentence with the file's line."""
    try:
        return function()
    except Exception as error:  # whatever somebody's code does
        file = str(path)
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines, message = [error.lineno], f"{error.msg} ({type(error).__name__})"
        else:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            message = f"{kind}{error}"
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{flag}{where}: {' '.join(message.split())}") from error
