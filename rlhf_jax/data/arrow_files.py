"""Rows of .parquet and .arrow files, and of folders that ``save_to_disk`` wrote, as plain Python.

Text, numbers, lists and objects stay what they are, however they are stored; dates, times and
durations become text. What is none of these, such as the bytes of a picture, is refused by column.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax.errors import InputError, check, check_fetched

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 1024
STREAMED, INDEXED = b"\xff\xff\xff\xff", b"ARROW1"
"""How Arrow's two forms begin: ``save_to_disk`` writes streams, Feather and others the other."""
STATE, SPLITS = "state.json", "dataset_dict.json"
DESCRIPTIONS = (STATE, SPLITS, "dataset_info.json", "dataset_infos.json")
"""What the package ``datasets`` writes beside rows, about them."""


class _NotPlainError(Exception):
    """A type of Arrow that is no text, number, list or object."""


def arrow_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .parquet or .arrow file.

    Raises InputError for a file that is none, is empty or is cut off, and for a column whose type
    is not read.
    """
    # Half a second, which only these files need.
    import pyarrow

    check_fetched(file)
    number = 0
    try:
        schema, batches = (_parquet if file.suffix == ".parquet" else _arrow)(file)
        plain = _plain_schema(file, schema)
        for batch in batches:
            table = pyarrow.Table.from_batches([batch]).cast(plain)
            yield from _as_python(file, table, number)
            number += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"{file} is no whole {file.suffix[1:]} file: {said}") from error
    check(number > 0, f"{file} is empty")


Opened = tuple["pyarrow.Schema", Iterator["pyarrow.RecordBatch"]]


def _parquet(file: Path) -> Opened:
    from pyarrow import parquet

    opened = parquet.ParquetFile(file, memory_map=True)
    return opened.schema_arrow, opened.iter_batches(batch_size=ROWS_AT_ONCE)


def _arrow(file: Path) -> Opened:
    from pyarrow import ipc, memory_map

    with file.open("rb") as start:
        mark = start.read(len(INDEXED))
    check(
        mark == INDEXED or mark.startswith(STREAMED),
        f"{file} is no Arrow file: expected it to begin as Arrow's streams or files do",
    )
    if mark == INDEXED:
        indexed = ipc.open_file(memory_map(str(file)))
        return indexed.schema, map(indexed.get_batch, range(indexed.num_record_batches))
    streamed = ipc.open_stream(memory_map(str(file)))
    return streamed.schema, iter(streamed)


def _plain_schema(file: Path, schema: "pyarrow.Schema") -> "pyarrow.Schema":
    """The columns with types that are plain Python."""
    import pyarrow

    names = schema.names
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    check(twice is None, f"{file}: two columns are called {twice}, expected different names")
    fields = []
    for field in schema:
        try:
            fields.append(pyarrow.field(field.name, _plain_type(field.type)))
        except _NotPlainError as error:
            raise InputError(
                f"{file}: column {field.name} holds {error}, expected text, numbers, or lists and "
                "objects of them: write the file without this column"
            ) from None
    return pyarrow.schema(fields)


def _plain_type(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """What a column of this type is read as. Raises _NotPlainError."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_struct(kind):
        return pyarrow.struct([pyarrow.field(x.name, _plain_type(x.type)) for x in kind.fields])
    if types.is_map(kind) and _is_text(kind.key_type):
        return pyarrow.map_(kind.key_type, _plain_type(kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pyarrow.large_list(_plain_type(kind.value_type))
    if types.is_decimal(kind) or types.is_float16(kind):
        return pyarrow.float64()
    # As text: JSON has no form for them, and a nanosecond none in Python.
    if types.is_temporal(kind) and not types.is_interval(kind):
        return pyarrow.string()
    plain = (types.is_null, types.is_boolean, types.is_integer, types.is_floating, _is_text)
    if any(is_of(kind) for is_of in plain):
        return kind
    raise _NotPlainError(kind)


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    tests: tuple[Callable, ...] = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_of(kind) for is_of in tests)


def _as_python(file: Path, table: "pyarrow.Table", before: int) -> list[dict[str, Any]]:
    """The rows of a table, of whose file ``before`` rows come first."""
    try:
        return table.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError):  # bytes that are not UTF-8; a key that stands twice
        for number in range(len(table)):
            try:
                table.slice(number, 1).to_pylist(maps_as_pydicts="strict")
            except (ValueError, KeyError) as error:
                raise InputError(f"{file}, row {before + number + 1}: {error}") from None
        raise


# --- folders of save_to_disk ----------------------------------------------------------------------


def saved_files(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that ``save_to_disk`` wrote, in their order; None of another.

    Raises InputError where the folder holds several splits: one is to be chosen.
    """
    if (folder / SPLITS).is_file():
        names = _read(folder / SPLITS, "splits")
        check(
            len(names) == 1,
            f"{folder} is a DatasetDict of save_to_disk with the splits {', '.join(names)}: "
            f"name the one to read, such as {folder / (names or ['train'])[0]}",
        )
        folder = folder / names[0]
    if not (folder / STATE).is_file() or not (folder / "dataset_info.json").is_file():
        return None
    state = folder / STATE
    chosen = _read(state, "_indices_data_files", [])
    check(
        not chosen,
        f"{folder} holds a choice among the rows of its files, as old versions of datasets wrote "
        "it: save it anew with flatten_indices().save_to_disk(...)",
    )
    return [folder / part["filename"] for part in _read(state, "_data_files")]


def _read(path: Path, name: str, missing: Any = None) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get(name, missing)
        found = value if value is not None else missing
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    check(isinstance(found, list), f"{path}: found no list {name}, as save_to_disk writes it")
    return found
