"""What a run starts from, models and files of data, known by contents wherever they lie."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.data.files import SUFFIXES, find_files
from rlhf_jax.errors import InputError

SETTINGS = "[settings]"
"""Behind the name of a model: its shape and tokenizer, without its weights."""
SETTLED_SECONDS = 2
"""A file that was written so recently may change again without another time or size."""


class InputFile(NamedTuple):
    """A model, or data, that a run starts from."""

    path: str
    digest: str
    """Of a model's weights, or of the bytes of a file, folder or pattern of files."""


def contents_digest(path: Path) -> str | None:
    """What tells data from other data: a digest of bytes and file types, not of names.

    Of a folder or pattern the files that ``find_files`` gives, in their order; of what it does not
    read all files with their names. None where there is nothing.
    """
    try:
        files = find_files(path)
    except InputError:
        return files_digest(path)
    # The suffix decides how a file is read, so the same bytes under another are other data.
    kinds = [next(suffix for suffix in SUFFIXES if file.name.endswith(suffix)) for file in files]
    return _digest(zip(kinds, files, strict=True))


def files_digest(path: Path) -> str | None:
    """A digest of a file of any type, or of all files below a folder with their names.

    None where there is nothing.
    """
    if not path.is_dir():
        return _digest([(path.suffix, path)]) if path.is_file() else None
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return _digest((str(file.relative_to(path)), file) for file in files) if files else None


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    lines = [f"{name} {file_sha256(file)}\n" for name, file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """Digest of a file's bytes, read once per process as long as nobody writes to it."""
    stat = file.stat()
    if time.time() - stat.st_mtime < SETTLED_SECONDS:
        # A clock ticks too slowly to tell two writes of one second apart: nothing is remembered.
        return _sha256.__wrapped__(file, ())
    # What is remembered belongs to this state of the file, and not to its name.
    return _sha256(file.absolute(), (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4096)
def _sha256(file: Path, state: tuple[int, ...]) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def compared(saved: Mapping[str, InputFile], now: Mapping[str, InputFile]) -> set[str]:
    """Config fields whose files are all known then and now: their paths need not be the same."""
    both, alone = (
        {label.partition("[")[0] for label in labels}  # the field, without a number in it
        for labels in (saved.keys() | now.keys(), saved.keys() ^ now.keys())
    )
    return both - alone


def check_same_inputs(
    folder: Path, saved: Mapping[str, InputFile], now: Mapping[str, InputFile], *, kind: str
) -> None:
    """Raise InputError where an input is another than at the start, whatever its path is.

    What is no longer there is not compared: a finished run needs it no more.
    """
    for label, is_now in now.items():
        was = saved.get(label, is_now)
        if was.digest != is_now.digest:
            flag = "--" + label.partition("[")[0].replace("_", "-")
            part = ": its config or tokenizer" if label.endswith(SETTINGS) else ""
            then, today = f"{was.path} ({was.digest[:12]})", f"{is_now.path} ({is_now.digest[:12]})"
            if was.path == is_now.path:
                what = f"{flag} {is_now.path}{part} has changed since ({was.digest[:12]} then, "
                what += f"{is_now.digest[:12]} now)"
            else:
                what = f"{flag}{part} was {then}, now {today}"
            raise InputError(
                f"{folder} was started from {kind}: {what}; give it as it was, or choose another "
                "folder"
            )
