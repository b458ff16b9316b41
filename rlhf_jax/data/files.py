"""Rows of .txt, .jsonl, .jsonl.gz and .json files, each with the place to name in an error."""

import glob
import gzip
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_jax.errors import InputError

SEPARATOR = "<|endoftext|>"
"""Alone on a line of a .txt file, it ends a document."""
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".json")


def find_files(path: str | os.PathLike) -> list[Path]:
    """The file itself, the data files of a folder, or the matches of a glob pattern, sorted.

    Raises InputError if there are none, or if a file is of another type.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    if not found:
        what = "has no .txt, .jsonl or .json files" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}")
    for file in found:
        if not file.name.endswith(SUFFIXES):
            raise InputError(f"{file}: expected a name ending in {', '.join(SUFFIXES)}")
    return found


def read_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """(where, row) of each row; a document of a .txt file is a row ``{"text": ...}``.

    Raises InputError for a missing or empty file, bytes that are not UTF-8, or broken JSON.
    """
    lines = _lines(file)
    if file.suffix == ".txt":
        yield from _documents(file, lines)
    elif file.suffix == ".json":
        rows = _parse("\n".join(lines), str(file))
        if not isinstance(rows, list):
            raise InputError(f"{file} holds {type_name(rows)}, expected a list of rows")
        for number, row in enumerate(rows, 1):
            yield _checked(row, f"{file}, row {number}")
    else:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}, line {number}"
                yield _checked(_parse(line, where), where)


def type_name(value: Any) -> str:
    """What JSON calls the type of ``value``, with its article."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")


def _lines(file: Path) -> list[str]:
    """Lines without their ends, be they Unix or Windows ones."""
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not content.strip():
        raise InputError(f"{file} is empty")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}, line {line}: byte {error.start} ({content[error.start]:#04x}) is not UTF-8"
        ) from error
    # Only "\n" ends a line: str.splitlines would also split at U+2028, which JSON strings may hold.
    return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


def _documents(file: Path, lines: list[str]) -> Iterator[tuple[str, dict]]:
    start = 0
    for end in [n for n, line in enumerate(lines) if line.strip() == SEPARATOR] + [len(lines)]:
        text = "\n".join(lines[start:end]).strip("\n")
        if text:
            yield f"{file}, line {start + 1}", {"text": text}
        start = end + 1


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{where}, line {error.lineno}" if "\n" in text else where
        message = f"{at}: broken JSON at column {error.colno}: {error.msg}"
        raise InputError(message) from error
    except RecursionError as error:
        raise InputError(f"{where}: JSON is nested too deeply") from error


def _checked(row: Any, where: str) -> tuple[str, dict]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: found {type_name(row)}, expected an object with named keys")
    return where, row


def check_writable(path: Path) -> None:
    """Make the folders above an output, before the work whose result it is to hold.

    Raises InputError, naming it, if no file can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        above = next((p for p in path.parents if p.exists() and not p.is_dir()), None)
        why = f"{above} is a file" if above else f"{path.parent}: {error.strerror.lower()}"
        raise InputError(f"{path} cannot be written: {why}") from None
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected the name of a file to write")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written: {path.parent} is read-only")


def write_atomically(path: Path, text: str) -> None:
    """A reader, or who comes after a crash, finds all of ``text`` or what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # half a file, and on a full disk it is in the way
        # A failed write names no file, a failed open the temporary one.
        raise type(error)(error.errno, error.strerror, str(path)) from None
