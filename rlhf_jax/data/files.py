"""Rows of files, of whatever type they are, each with the place to name in an error."""

import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.arrow_files import DESCRIPTIONS, arrow_rows, saved_files
from rlhf_jax.data.csv_files import DELIMITERS, csv_rows, read_cells
from rlhf_jax.data.hub import fetch_data, is_hub_name
from rlhf_jax.data.json_text import parse_json
from rlhf_jax.errors import InputError, check_fetched

SEPARATOR = "<|endoftext|>"
"""Alone on a line of a .txt file, it ends a document."""
TEXTS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSED = (".gz", ".zst")
TABLES = (".parquet", ".arrow")
SUFFIXES = (*TEXTS, *(text + packed for text in TEXTS for packed in COMPRESSED), *TABLES)
"""What the name of a file of rows ends in."""
HELD_OUT = frozenset(
    (
        *("test", "tests", "testing", "valid", "validation", "val", "dev", "eval", "evaluation"),
        *("heldout", "holdout", "held", "testset", "devset", "valset", "evalset"),
    )
)
"""Words in the name of a file that is not to be trained on."""
ALIKE = (*SUFFIXES, ".jsonl.xz", ".jsonl.bz2", ".json.xz", ".feather", ".orc", ".xlsx", ".pkl")
"""Endings, in small letters, of what may hold rows too."""

HALF = re.compile("[\ud800-\udfff]")
"""A surrogate: half a character, as a cut emoji leaves it, which UTF-8 cannot write."""


class Origin(NamedTuple):
    """Where a row stands."""

    file: str
    line: int
    """From 1; of a file without lines of its own, such as .json, the number of the row."""

    def __str__(self) -> str:
        """As an error names it."""
        numbered = file_type(self.file) in (".json", *TABLES)
        return f"{self.file}, {'row' if numbered else 'line'} {self.line}"


def file_type(name: str | os.PathLike) -> str:
    """How a file is read, by its name: ".jsonl" of a.jsonl.gz; empty where it is not read."""
    ending = next((x for x in SUFFIXES if str(name).endswith(x)), "")
    return ending.removesuffix(".gz").removesuffix(".zst")


def find_files(path: str | os.PathLike) -> list[Path]:
    """The file itself, those of a folder or of a split of the hub, or a pattern's matches, sorted.

    Raises InputError if there are none, if a file is of another type, or if some files are named
    as held-out data and some are not.
    """
    path = Path(path)
    if is_hub_name(path):
        files = fetch_data(path, SUFFIXES)
    elif path.is_dir():
        files = saved_files(path) or _files_of(path)
    elif path.exists():
        files = [path]
    else:
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [file for file in files if not file.is_dir()]
    if not files:
        raise InputError(_why_none(path))
    for file in files:
        if not file_type(file.name):
            raise InputError(f"{file}: expected a name ending in {', '.join((*TEXTS, *TABLES))}")
    _refuse_twice(path, files)
    _refuse_mixture(path, files)
    return files


def _files_of(folder: Path) -> list[Path]:
    """The data files of a folder: hidden ones, as programs write them, are none."""
    visible = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    files = [file for file in visible if file_type(file.name) and file.is_file()]
    if any(file_type(file.name) in TABLES for file in files):
        files = [file for file in files if file.name not in DESCRIPTIONS]
    others = [x for x in visible if x.name.lower().endswith(ALIKE) and not file_type(x.name)]
    if files and others:
        raise InputError(
            f"{folder} has {files[0].name} and {others[0].name}, which is not read: name one file, "
            f"or a pattern such as {folder}/*{file_type(files[0].name)}"
        )
    return files


def _refuse_twice(path: Path, files: Sequence[Path]) -> None:
    """Raise InputError for two files that may hold the same rows: a.jsonl beside a.parquet."""
    first: dict[str, Path] = {}
    for file in files:
        ending = next(x for x in sorted(SUFFIXES, key=len, reverse=True) if file.name.endswith(x))
        other = first.setdefault(str(file).removesuffix(ending), file)
        if other != file:
            raise InputError(
                f"{path} has {other.name} and {file.name}, which may hold the same rows: name one "
                f"file, or a pattern such as {file.parent}/*{''.join(other.suffixes[-1:])}"
            )


def _why_none(path: Path) -> str:
    if not path.is_dir():
        return f"{path} does not exist"
    names = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    other = next((name for name in names if name.lower().endswith(ALIKE)), None)
    nested = next((name for name in names if (path / name).is_dir()), None)
    why = f"{path} has no files of rows ({', '.join((*TEXTS, *TABLES))})"
    if other is not None:
        why += f", but {other}, which is not read"
    elif nested is not None:
        why += f", but folders such as {nested}: name one of them, or a pattern such as {path}/**"
    return why


def _refuse_mixture(path: Path, files: Sequence[Path]) -> None:
    """Raise InputError if some of several files are named as held-out data, others not."""
    root = os.path.commonpath([file.parent for file in files])
    names = [str(file.relative_to(root)) for file in files]
    held_out = [name for name in names if is_held_out(name)]
    others = [name for name in names if not is_held_out(name)]
    if held_out and others:
        # Of several parts all are to be named: train-*, and not train-00000-of-00002.parquet.
        parts = re.split(r"\d", others[0], maxsplit=1)[0] + "*"
        several = {name for name in names if fnmatch(name, parts)} == {*others} and others[1:]
        raise InputError(
            f"{path} has {others[0]} and {held_out[0]}, which by its name is not to be trained on: "
            f"name one file, such as {Path(root) / others[0]}"
            f"{f', or a pattern, such as {Path(root) / parts}' if several else ''}"
        )


def is_held_out(name: str) -> bool:
    """Whether the name of a file, or of its folder, says that it is for tests or evaluation."""
    return bool(HELD_OUT & set(re.split(r"[^a-z]+", name.lower())))


def read_rows(file: Path) -> Iterator[tuple[Origin, dict]]:
    """(origin, row) of each row; a document of a .txt file is a row ``{"text": ...}``.

    A .json file holds a list of rows, an object with that list under ``data``, or lines of JSON.
    Raises InputError for a missing or empty file, bytes that are not UTF-8, broken JSON, or a table
    that is not whole.
    """
    kind = file_type(file.name)
    if kind in TABLES:
        for number, row in enumerate(arrow_rows(file), 1):
            yield _checked(row, Origin(str(file), number))
        return
    lines = _lines(file)
    if kind == ".txt":
        yield from _documents(file, lines)
    elif kind in DELIMITERS:
        for number, row in csv_rows(file, lines, DELIMITERS[kind]):
            origin = Origin(str(file), number)
            yield _checked(read_cells(row, str(origin)), origin)
    elif kind == ".json":
        rows = _parse_lines(file, lines) if _are_rows(lines) else _parse_list(file, lines)
        for number, row in enumerate(rows, 1):
            yield _checked(row, Origin(str(file), number))
    else:
        for number, line in enumerate(lines, 1):
            if line.strip():
                origin = Origin(str(file), number)
                yield _checked(parse_json(line, str(origin)), origin)


def _parse_list(file: Path, lines: list[str]) -> list:
    rows = parse_json("\n".join(lines), str(file))
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        others = [name for name in rows if name != "data" and _is_list_of_rows(rows[name])]
        if others:
            raise InputError(f"{file} holds rows under data and {others[0]}, expected one list")
        return rows["data"]
    if not isinstance(rows, list):
        keys = f" with the keys {', '.join(rows)}" if isinstance(rows, dict) else ""
        raise InputError(
            f"{file} holds {type_name(rows)}{keys}, expected a list of rows (or lines of JSON in a "
            ".jsonl file)"
        )
    return rows


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def _are_rows(lines: list[str]) -> bool:
    """Whether a .json file holds an object on each line, as a .jsonl file does."""
    filled = [line for line in lines if line.strip()]
    # The second line tells: a single object over several lines has its keys there.
    if len(filled) < 2 or not filled[0].startswith("{") or not filled[1].startswith("{"):
        return False
    try:
        return isinstance(json.loads(filled[0]), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def _parse_lines(file: Path, lines: list[str]) -> Iterator[Any]:
    filled = (line for line in lines if line.strip())
    for number, line in enumerate(filled, 1):
        yield parse_json(line, str(Origin(str(file), number)))


def type_name(value: Any) -> str:
    """What JSON calls the type of ``value``, with its article."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")


def _lines(file: Path) -> list[str]:
    """Lines without their ends, be they Unix or Windows ones."""
    # A pointer of Git LFS is text, and would be read as a document.
    check_fetched(file)
    try:
        content = _unpacked(file)
    except (OSError, EOFError, zlib.error) as error:
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
    # Windows writes the mark at the beginning.
    return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


def _unpacked(file: Path) -> bytes:
    content = file.read_bytes()
    if file.suffix == ".gz":
        return gzip.decompress(content)
    if file.suffix == ".zst":
        # Half a second, which only these files need.
        from pyarrow import BufferReader, CompressedInputStream

        return CompressedInputStream(BufferReader(content), "zstd").read()
    return content


def _documents(file: Path, lines: list[str]) -> Iterator[tuple[Origin, dict]]:
    start = 0
    for end in [n for n, line in enumerate(lines) if line.strip() == SEPARATOR] + [len(lines)]:
        text = "\n".join(lines[start:end]).rstrip("\n")
        empty = len(text) - len(text.lstrip("\n"))
        if text:
            yield Origin(str(file), start + empty + 1), {"text": text[empty:]}
        start = end + 1


def _checked(row: Any, origin: Origin) -> tuple[Origin, dict]:
    if not isinstance(row, dict):
        advice = " (a list of them belongs in a .json file)" if isinstance(row, list) else ""
        expected = f"expected an object with named keys{advice}"
        raise InputError(f"{origin}: found {type_name(row)}, {expected}")
    if any(map(HALF.search, row)):
        name = next(filter(HALF.search, row))
        raise InputError(f"{origin}: the key {name!a} holds half a surrogate pair")
    return origin, row


def check_writable(path: Path, *inputs: Path) -> None:
    """Whether an output can be written, before the work whose result it is to hold.

    Nothing is made: bad input found later leaves no empty folder. Raises InputError, naming
    ``path``, if no file can be written there, or if it is among the ``inputs`` of the command,
    which it would replace.
    """
    for source in inputs:
        files = source.iterdir() if source.is_dir() else [source]
        if path.exists() and any(file.exists() and file.samefile(path) for file in files):
            raise InputError(f"{path} is read by this command: write to another file")
    if path.exists() and not path.is_file():
        # Neither may be replaced by a file, which is how ``write_atomically`` ends.
        what = "a folder" if path.is_dir() else "a device or pipe"
        raise InputError(f"{path} is {what}, expected the name of a file to write")
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise InputError(f"{path} cannot be written: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: {above} is read-only")


def write_atomically(path: Path, text: str) -> None:
    """A reader, or who comes after a crash, finds all of ``text`` or what was there before.

    Folders above it are made.
    """
    # In the same folder, as a rename is whole only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            # Else a crash after the rename could leave an empty file under the new name.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # half a file, and on a full disk it is in the way
        # A failed write names no file, a failed open the temporary one.
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from None
