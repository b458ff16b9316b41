"""Rows of .csv and .tsv files: a header names the columns, and every cell is text.

Those of columns that never hold text, such as ``messages`` or ``ranks``, are read as JSON.
"""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.json_text import parse_json
from rlhf_jax.errors import InputError, check

DELIMITERS = {".csv": ",", ".tsv": "\t"}
NAMES = {",": "commas", "\t": "tabs"}
UNNAMED = "index"
"""What the first column is called where the header does not say it: pandas numbers rows there."""
LIST_COLUMNS = frozenset(
    (
        *("messages", "conversations", "responses", "ranks", "response_tokens", "summaries"),
        *("info", "answers"),
    )
)
"""What these hold is never text: lists, and objects."""
NUMBER_COLUMNS = frozenset(
    (
        *("choice", "label", "labels", "kto_tag", "better_response_id", "preference"),
        *("preference_strength", "overall_preference", "score_0", "score_1"),
    )
)
"""What these hold is a number, or true or false, wherever it is read."""
CONVERSATION_COLUMNS = frozenset(
    (
        *("prompt", "chosen", "rejected", "completion", "response", "output", "answer"),
        *("history", "context", "response1", "response2"),
    )
)
"""What these hold may be text, or messages."""
MESSAGE_KEYS = ("role", "content"), ("from", "value")
LIST_OF_PYTHON = re.compile(r"\[\s*\{\s*'(role|content|from|value)'")
"""How a list of messages begins that was printed by Python, and not written as JSON."""
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
BOOLEANS = {"true": True, "false": False}


def csv_rows(file: Path, lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, dict]]:
    """(line, cells by column) of each row of a table; a row may go over several lines.

    Raises InputError, naming file and line, for a row with more or fewer cells than the header,
    and for quotes that are not closed.
    """
    numbered = _cells(file, lines, delimiter)
    _, header = numbered[0]
    names = [name.strip() for name in header]
    names[0] = names[0] or UNNAMED
    for number, name in enumerate(names, 1):
        check(name != "", f"{file}, line 1: column {number} has no name, expected one for each")
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    check(twice is None, f"{file}, line 1: two columns are called {twice}")
    for line, cells in numbered[1:]:
        check(
            len(cells) == len(names),
            f"{file}, line {line}: found {len(cells)} cells, expected {len(names)} as in the "
            f"header, divided by {NAMES[delimiter]}",
        )
        yield line, dict(zip(names, cells, strict=True))


def _cells(file: Path, lines: Sequence[str], delimiter: str) -> list[tuple[int, list[str]]]:
    """The cells of each row that has any, with the line that it begins on."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    rows, start = [], 1
    # Python's limit of 128 KiB for a cell is one for the whole process.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        for cells in reader:
            if cells:
                rows.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        advice = ": a cell with quotes has them doubled, and stands in quotes"
        raise InputError(f"{file}, line {start}: {error}{advice}") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def read_cells(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row of texts with what is no text: lists, objects, numbers, true and false.

    Raises InputError, naming ``where`` and the column, for JSON that is broken, and for messages as
    Python prints them.
    """
    return {
        name: _value(name.lower(), cell, f"{where}: {name}") if isinstance(cell, str) else cell
        for name, cell in row.items()
    }


def _value(name: str, cell: str, where: str) -> Any:
    text = cell.strip()
    if name in LIST_COLUMNS:
        _check_json(text, where)
        return parse_json(text, where) if text else None
    if name in NUMBER_COLUMNS and NUMBER.fullmatch(text):
        return parse_json(text, where)
    if name in NUMBER_COLUMNS:
        return BOOLEANS.get(text.lower(), cell if text else None)
    if name in CONVERSATION_COLUMNS and text.startswith("["):
        _check_json(text, where)
        return _conversation(name, text, cell)
    return cell


def _check_json(text: str, where: str) -> None:
    check(
        LIST_OF_PYTHON.match(text) is None,
        f"{where} is a list of messages as Python prints it, expected JSON: write the cell with "
        "json.dumps, or the rows to a .jsonl or .parquet file",
    )


def _conversation(name: str, text: str, cell: str) -> Any:
    """A list of messages, or in ``history`` any list; else the cell as it stands."""
    try:
        value = parse_json(text, name)
    except InputError:  # a text that begins with a bracket
        return cell
    if name == "history":
        return value
    return value if value and all(map(_is_message, value)) else cell


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(value.keys() >= {*keys} for keys in MESSAGE_KEYS)
