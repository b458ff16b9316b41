"""The two errors a user meets, bad input and a run that must stop; and words of messages."""

from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the few lines begin that Git LFS leaves in place of a file that it has not fetched."""


class InputError(ValueError):
    """Bad input: one sentence naming the file, line or flag, what was found, what was expected."""


class RunError(RuntimeError):
    """A run that cannot go on (NaN loss, disk full, gate not met): what, where, what next."""


class DivergedError(RunError):
    """A loss or gradient became NaN or infinite: other learning rates may go on in the folder."""


def counted(number: int, word: str) -> str:
    """A number with its word: 1 row, 2 rows."""
    return f"{number} {word}{'s' * (number != 1)}"


def describe_os_error(error: OSError) -> str:
    """What the system said, and of what: "no space left on device (runs/x/metrics.jsonl)"."""
    said = (error.strerror or str(error) or type(error).__name__).strip()
    said = said[:1].lower() + said[1:]
    return said if error.filename is None else f"{said} ({error.filename})"


def describe_out_of_memory(error: BaseException) -> str:
    """A sentence if ``error`` says that this machine, or a device, has no memory left; else ""."""
    said = str(error).strip().partition("\n")[0][:200]
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in said:
        return ""
    return (
        f"out of memory{f' ({said})' if said else ''}: fewer rows at once (a smaller --batch-size, "
        "a larger --optim.accumulate), shorter lengths or more devices need less"
    )


def known(value: T | None) -> T:
    """``value`` of a field that may be None until the data have told it, which they have."""
    assert value is not None
    return value


def check(condition: bool, message: str) -> None:
    """Raise ``InputError(message)`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def check_fetched(path: Path) -> None:
    """Raise InputError if ``path`` is a Git LFS pointer instead of the file that it stands for."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        check(
            file.read(len(LFS_POINTER)) != LFS_POINTER,
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its folder",
        )
