"""TFDS data sets of the user's own files: prepared once, then read at random without loading all.

No TensorFlow: files are array_record, read through ``as_data_source``. The configuration's name is
a hash of the files' bytes and of the code that reads them, so an edited file is prepared anew.
"""

import contextlib
import hashlib
import inspect
import io
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, overload

import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data import (
    answers,
    arrow_files,
    chat,
    columns,
    comparisons,
    csv_files,
    demonstrations,
    files,
    formats,
    functions,
    json_text,
    messages,
    prompts,
    public_sets,
    readers,
    renaming,
    rows,
    trees,
)
from rlhf_jax.data.chat import Conversation, Message, as_text
from rlhf_jax.data.files import Origin, find_files
from rlhf_jax.data.formats import iterate
from rlhf_jax.data.renaming import Columns
from rlhf_jax.data.rows import Account, Comparison, Demonstration, LeftOut, Prompt, R, Row, Text
from rlhf_jax.errors import InputError, RunError

log = logging.getLogger(__name__)

READING = (
    *(answers, arrow_files, chat, columns, comparisons, csv_files, demonstrations, files, formats),
    *(functions, json_text, messages, prompts, public_sets, readers, renaming, rows, trees),
)
"""The code that decides what is read."""
READ_AT_ONCE = 256
"""Rows per read when a whole set is gone through."""

string = tfds.features.Text
integers = tfds.features.Sequence(np.int32)


@dataclass
class FilesConfig(tfds.core.BuilderConfig):
    """The files of a data set; ``name`` is their hash."""

    path: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    """Those that are read under other names."""


class LocalInfo(tfds.core.DatasetInfo):
    """What TFDS knows of a data set that only exists here."""

    def initialize_from_bucket(self) -> None:
        """Nothing: no server knows this data set, and TFDS leaves a temporary folder behind."""


class RowsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One split of rows of one kind, in the order of the files.

    A prompt or an answer is stored as JSON: a string, or a list of messages. The metadata tell
    what was left out and what was changed.
    """

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS: ClassVar = [FilesConfig(name="none", description="no files")]
    KIND: ClassVar[type[Row]]
    FEATURES: ClassVar[dict]

    def _info(self) -> LocalInfo:
        features = tfds.features.FeaturesDict({**self.FEATURES, "file": np.int32, "line": np.int64})
        metadata = tfds.core.MetadataDict()
        return LocalInfo(builder=self, features=features, disable_shuffling=True, metadata=metadata)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        path, account = self.builder_config.path, Account()
        number_of = {str(file): n for n, file in enumerate(find_files(path))}

        def place(origin: Origin | None) -> tuple[int, int]:
            assert origin is not None, "a file's rows say where they stand"
            return number_of[origin.file], origin.line

        columns = dict(self.builder_config.columns)
        for key, row in enumerate(iterate(path, self.KIND, account, columns)):
            file, line = place(row.origin)
            yield key, self.encode(row) | {"file": file, "line": line}
        self.info.metadata["left_out"] = [[*place(origin), why] for origin, why in account.left_out]
        self.info.metadata["notes"] = account.notes

    @staticmethod
    def encode(row: Any) -> dict:
        """A row as TFDS stores it, without its origin."""
        stored = row._asdict()
        del stored["origin"]
        return {name: _stored(value) for name, value in stored.items()}

    @classmethod
    def decode(cls, stored: dict) -> Any:
        """A row as it was read, without its origin."""
        kind: Any = cls.KIND
        names = (name for name in kind._fields if name != "origin")
        return kind(*(_restored(stored[name]) for name in names))


def _stored(value: str | Conversation) -> str:
    return json.dumps(value, ensure_ascii=False)


def _restored(stored: bytes) -> str | Conversation:
    value = json.loads(stored)
    return value if isinstance(value, str) else tuple(Message(*message) for message in value)


class RlhfTexts(RowsBuilder):
    """Documents."""

    KIND = Text
    FEATURES: ClassVar = {"text": string()}


class RlhfPrompts(RowsBuilder):
    """What policies are asked.

    The other columns of a row are stored as JSON, an empty text where there are none.
    """

    KIND = Prompt
    FEATURES: ClassVar = {"prompt": string(), "columns": string()}

    @staticmethod
    def encode(row: Prompt) -> dict:
        """The prompt, and the columns as JSON."""
        # What JSON has no form for, such as a date of a Parquet file, becomes text.
        columns = json.dumps(row.columns, ensure_ascii=False, default=str) if row.columns else ""
        return {"prompt": _stored(row.prompt), "columns": columns}

    @classmethod
    def decode(cls, stored: dict) -> Prompt:
        """The same as ``encode`` took it, without its origin."""
        columns = json.loads(stored["columns"]) if stored["columns"] else None
        return Prompt(_restored(stored["prompt"]), columns)


class RlhfDemonstrations(RowsBuilder):
    """Prompts with the answer that a person gave."""

    KIND = Demonstration
    FEATURES: ClassVar = {"prompt": string(), "completion": string(), "turns": integers}

    @staticmethod
    def encode(row: Demonstration) -> dict:
        """Prompt and answer, and the numbers of earlier ones."""
        texts = {"prompt": _stored(row.prompt), "completion": _stored(row.completion)}
        return texts | {"turns": row.turns}

    @classmethod
    def decode(cls, stored: dict) -> Demonstration:
        """The same as ``encode`` took it, without its origin."""
        turns = tuple(int(number) for number in stored["turns"])
        return Demonstration(_restored(stored["prompt"]), _restored(stored["completion"]), turns)


class RlhfComparisons(RowsBuilder):
    """Sampled token ids are stored end to end, with the number of each response's."""

    KIND = Comparison
    FEATURES: ClassVar = {
        "prompt": string(),
        "responses": tfds.features.Sequence(string()),
        "ranks": integers,
        "tokens": integers,
        "token_counts": integers,
    }

    @staticmethod
    def encode(row: Comparison) -> dict:
        """A row as TFDS stores it: ids end to end, and each response's number of them."""
        tokens = row.tokens or ()
        return {
            "prompt": _stored(row.prompt),
            "responses": list(map(_stored, row.responses)),
            "ranks": row.ranks,
            "tokens": [i for ids in tokens for i in ids],
            "token_counts": [len(ids) for ids in tokens],
        }

    @classmethod
    def decode(cls, stored: dict) -> Comparison:
        """A row as it was read, its ids parted again, without its origin."""
        counts = [int(count) for count in stored["token_counts"]]
        ids = iter([int(i) for i in stored["tokens"]])
        return Comparison(
            prompt=_restored(stored["prompt"]),
            responses=tuple(map(_restored, stored["responses"])),
            ranks=tuple(int(rank) for rank in stored["ranks"]),
            tokens=tuple(tuple(next(ids) for _ in range(n)) for n in counts) if counts else None,
        )


class Rows(Sequence[R]):
    """Rows of a prepared data set, read when they are asked for."""

    def __init__(
        self,
        source: Any,
        decode: Callable[[dict], R],
        numbers: Sequence[int],
        left_out: tuple[LeftOut, ...] = (),
        notes: Mapping[str, int] = MappingProxyType({}),
    ):
        self._source, self._decode, self._numbers = source, decode, numbers
        self.left_out = left_out
        """Rows of the files that are in no part of the set."""
        self.notes = notes
        """What was done with rows of the files that are in it, and with how many."""

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> "Rows[R]": ...

    def __getitem__(self, index: int | slice) -> "R | Rows[R]":
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return self._decode(self._source[self._numbers[index]])

    def __iter__(self) -> Iterator[R]:
        for start in range(0, len(self), READ_AT_ONCE):
            # In chunks: one call for each row would cost more than the reading.
            numbers = list(self._numbers[start : start + READ_AT_ONCE])
            yield from map(self._decode, self._source.__getitems__(numbers))

    def select(self, indices: Sequence[int]) -> "Rows[R]":
        """The rows at ``indices``, still unread, with the account of the whole set."""
        numbers = [self._numbers[i] for i in indices]
        return Rows(self._source, self._decode, numbers, self.left_out, self.notes)


def load_texts(
    path: str | os.PathLike, columns: Columns | None = None, *, data_dir: str | os.PathLike
) -> Rows[Text]:
    """Texts of ``path`` (see ``formats.read_texts``), prepared under ``data_dir`` if need be."""
    return prepare(RlhfTexts, path, columns, data_dir=data_dir)


def load_prompts(
    path: str | os.PathLike, columns: Columns | None = None, *, data_dir: str | os.PathLike
) -> Rows[Prompt]:
    """Prompts of ``path``."""
    return prepare(RlhfPrompts, path, columns, data_dir=data_dir)


def load_demonstrations(
    path: str | os.PathLike, columns: Columns | None = None, *, data_dir: str | os.PathLike
) -> Rows[Demonstration]:
    """Demonstrations of ``path``."""
    return prepare(RlhfDemonstrations, path, columns, data_dir=data_dir)


def load_comparisons(
    path: str | os.PathLike, columns: Columns | None = None, *, data_dir: str | os.PathLike
) -> Rows[Comparison]:
    """Comparisons of ``path``."""
    return prepare(RlhfComparisons, path, columns, data_dir=data_dir)


def prepare(
    builder_class: type[RowsBuilder],
    path: str | os.PathLike,
    columns: Columns | None = None,
    *,
    data_dir: str | os.PathLike,
) -> Rows[Any]:
    """The data set of these files, made now unless it exists; safe in several processes at once.

    Raises InputError for what is wrong with the files, RunError if ``data_dir`` takes no more.
    """
    pairs = tuple(sorted((columns or {}).items()))
    # Named by contents: moved files find the set that was made of them, edited ones do not.
    name = digest(path, pairs)
    config = FilesConfig(name=name, description=str(path), path=str(path), columns=pairs)
    with _quiet():
        # Of TFDS's formats the one that is read at any row, and without TensorFlow.
        builder = builder_class(config=config, data_dir=str(data_dir), file_format="array_record")
        if not _is_complete(builder):
            log.info("preparing %s under %s", path, data_dir)
            _write(builder)
            builder = builder_class(config=config, data_dir=str(data_dir))
        source = builder.as_data_source("train")
    # Files may have moved since they were read: the places are those of today.
    names = [str(file) for file in find_files(path)]

    def placed(stored: dict) -> Row:
        origin = Origin(names[int(stored["file"])], int(stored["line"]))
        return builder_class.decode(stored)._replace(origin=origin)

    account = _account(builder.info.metadata, names)
    account.say(path, len(source))
    return Rows(
        source, placed, range(len(source)), tuple(account.left_out), MappingProxyType(account.notes)
    )


def _account(metadata: Mapping, names: Sequence[str]) -> Account:
    left_out = [LeftOut(Origin(names[n], line), why) for n, line, why in metadata["left_out"]]
    return Account(left_out, Counter(metadata["notes"]))


def _write(builder: RowsBuilder) -> None:
    # Else TFDS asks the network for a set of this name, which nobody else can have.
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=settings)
    except OSError as error:
        # TFDS writes elsewhere and renames, which fails if another process was first.
        if not _is_complete(builder):
            message = f"cannot write the data set {builder.data_path}: {error}"
            raise RunError(message) from error


def _is_complete(builder: RowsBuilder) -> bool:
    # TFDS writes into a folder of another name and renames it: the file is there when all is.
    return (Path(builder.data_path) / "dataset_info.json").is_file()


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """TFDS prints, warns and draws bars about every local data set."""
    chatter = logging.getLogger("absl")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        chatter.setLevel(level)
        tfds.enable_progress_bar()


def digest(path: str | os.PathLike, columns: tuple[tuple[str, str], ...] = ()) -> str:
    """Hash of the files at ``path``, and of what rows are read from them: code, and ``columns``."""
    total = hashlib.sha256("".join(map(inspect.getsource, READING)).encode())
    if columns:
        total.update(repr(columns).encode())
    for file in find_files(path):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        total.update(f"{''.join(file.suffixes)} {content.hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def split(
    rows: Rows[R], *, heldout_fraction: float, independent: bool = False
) -> tuple[Rows[R], Rows[R]]:
    """(training rows, held-out rows), by the hash of each text or prompt.

    Rows with the same text or prompt stay together. Of the distinct ones the fraction, rounded up,
    with the smallest hashes is held out, so a row keeps its side when few others come or go.
    ``independent``: those with a hash below the fraction of all hashes, so a row keeps its side
    whatever others come or go, as ε of one example needs; their number is then left to chance.
    Raises InputError if nothing would be left to train on, or nothing is held out.
    """
    if heldout_fraction == 0:
        return rows, rows[:0]
    # By the prompt alone: answers to one prompt on both sides would be half a leak.
    keys = [hashlib.sha256(as_text(row[0]).encode()).digest() for row in rows]
    distinct = sorted(set(keys))
    if independent:
        count = sum(int.from_bytes(key) < heldout_fraction * 2**256 for key in distinct)
    else:
        count = math.ceil(heldout_fraction * len(distinct))
    if not 0 <= heldout_fraction < 1 or count == len(distinct):
        raise InputError(
            f"holding out {heldout_fraction} of {len(distinct)} different rows leaves none to train"
        )
    if count == 0:
        raise InputError(
            f"none of {len(distinct)} different rows has a hash below {heldout_fraction}: "
            "give more rows or a larger heldout_fraction"
        )
    heldout = set(distinct[:count])
    inside = [n for n, key in enumerate(keys) if key not in heldout]
    outside = [n for n, key in enumerate(keys) if key in heldout]
    return rows.select(inside), rows.select(outside)
