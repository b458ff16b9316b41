"""What a run starts from, models and files of data, known by contents wherever they lie."""

import hashlib
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.data.files import find_files
from rlhf_jax.errors import InputError

SETTLED_SECONDS = 2
"""A file that was written so recently may change again without another time or size."""


class InputFile(NamedTuple):
    """A model, or data, that a run starts from."""

    path: str
    digest: str
    """Of a model's weights, or of the bytes of a file, folder or pattern of files."""


def contents_digest(path: Path) -> str | None:
    """What tells data from other data: a digest of bytes and file types, not of names.

    Of a folder or pattern the files that ``find_files`` gives, in their order; of a folder without
    data files (a tokenizer) all files with their names. None where there is nothing.
    """
    named = False
    try:
        found = find_files(path)
    except InputError:
        inside = path.rglob("*") if path.is_dir() else [path]
        found = sorted(file for file in inside if file.is_file())
        named = path.is_dir()
    if not found:
        return None
    total = hashlib.sha256()
    for file in found:
        name = str(file.relative_to(path)) if named else "".join(file.suffixes[-2:])
        total.update(f"{name} {file_sha256(file)}\n".encode())
    return total.hexdigest()


def file_sha256(file: Path) -> str:
    """Digest of a file's bytes, read once per process as long as nobody writes to it."""
    stat = file.stat()
    if time.time() - stat.st_mtime < SETTLED_SECONDS:
        return _sha256.__wrapped__(file, ())
    return _sha256(file.absolute(), (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4096)
def _sha256(file: Path, state: tuple[int, ...]) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def compared(saved: Mapping[str, InputFile], now: Mapping[str, InputFile]) -> set[str]:
    """Config fields whose files are all known then and now: their paths need not be the same."""
    field = lambda label: label.partition("[")[0]
    labels = saved.keys() | now.keys()
    alone = {field(label) for label in saved.keys() ^ now.keys()}
    return {field(label) for label in labels} - alone


def check_same_inputs(
    folder: Path, saved: Mapping[str, InputFile], now: Mapping[str, InputFile], *, kind: str
) -> None:
    """Raise InputError where an input is another than at the start, whatever its path is.

    What is no longer there is not compared: a finished run needs it no more.
    """
    for label, given in now.items():
        was = saved.get(label, given)
        if was.digest != given.digest:
            flag = "--" + label.partition("[")[0].replace("_", "-")
            then, today = f"{was.path} ({was.digest[:12]})", f"{given.path} ({given.digest[:12]})"
            if was.path == given.path:
                what = f"{flag} {given.path} has changed since ({was.digest[:12]} then, "
                what += f"{given.digest[:12]} now)"
            else:
                what = f"{flag} was {then}, now {today}"
            raise InputError(
                f"{folder} was started from {kind}: {what}; give it as it was, or choose another "
                "folder"
            )
