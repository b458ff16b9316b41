"""Columns that a file calls otherwise: ``{"prompt": "question"}`` reads ``question`` as prompt."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.columns import (
    ANSWERING,
    ASKING,
    CONVERSATIONS,
    LABELS,
    MATERIAL,
    RANKED,
    SYSTEM,
)
from rlhf_jax.data.csv_files import DELIMITERS, read_cells
from rlhf_jax.data.files import Origin, file_type
from rlhf_jax.data.messages import is_filled
from rlhf_jax.data.public_sets import FORMS
from rlhf_jax.data.rows import Comparison, Demonstration, OtherKind, Row, Text
from rlhf_jax.errors import InputError

Columns = Mapping[str, str]
"""The name that a column has in the file, by the one that it is read as; in small letters."""
PROMPT = (*ASKING, *MATERIAL, *SYSTEM, *CONVERSATIONS, "history", "info")
READ_BY: Mapping[type[Row], frozenset[str]] = {
    Text: frozenset(("text", *SYSTEM, *CONVERSATIONS)),
    Demonstration: frozenset((*PROMPT, *ANSWERING, *LABELS)),
    Comparison: frozenset(
        (
            *(*PROMPT, *RANKED, "choice", "ranks", "response_tokens", "answers"),
            *(name for form in FORMS for name in (*form.answers, *form.verdict)),
        )
    ),
}
"""Columns that rows of a kind are read from; of a prompt a reward function may read any."""


def check_columns(columns: Columns, kind: type[Row]) -> None:
    """Raise OtherKind for a name that nothing of this kind is read from."""
    known = READ_BY.get(kind)
    for new, old in columns.items():
        if known is not None and new not in known:
            raise OtherKind(
                f"--columns {new}={old}: {kind.__name__.lower()}s are not read from a column "
                f"{new}, expected one of {', '.join(sorted(known))}"
            )


def renamed(
    file: Path, rows: Sequence[tuple[Origin, dict]], columns: Columns, notes: Counter[str]
) -> Iterator[tuple[Origin, dict]]:
    """The rows of a file with their columns by the names that they are read as, which is counted.

    Raises InputError for a column that no row of the file has.
    """
    names = dict.fromkeys(name.lower() for _, row in rows for name in row)
    for new, old in columns.items():
        if old not in names:
            raise InputError(
                f"{file}: --columns {new}={old}: no row has a column {old}, found "
                f"{', '.join(names)}"
            )
    text = file_type(file.name) in DELIMITERS
    for origin, row in rows:
        row = _renamed(row, columns, notes)
        yield origin, read_cells(row, str(origin)) if text else row


def _renamed(row: dict[str, Any], columns: Columns, notes: Counter[str]) -> dict[str, Any]:
    found = {name.lower(): value for name, value in row.items()}
    if len(found) < len(row):
        return row  # whose columns differ in capitals alone, which the reader refuses
    rest = {name: value for name, value in found.items() if name not in columns.values()}
    for new, old in columns.items():
        said, beside = is_filled(found.get(old)), is_filled(rest.get(new))
        # An empty column says nothing: the one of that name is read as it stands.
        if old not in found or (beside and not said):
            continue
        if said:
            notes[f"column {old} is read as {new}"] += 1
        if beside:
            notes[f"column {new} is not read: {old} takes its place"] += 1
        rest[new] = found[old]
    return rest
