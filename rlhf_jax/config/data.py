"""Text and its tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rlhf_jax.config.bounds import (
    BlockTokens,
    Bounds,
    Count,
    PositiveOrZero,
    ShareBelowOne,
    check_bounds,
)
from rlhf_jax.config.effect import Main, only
from rlhf_jax.errors import check

ANSWER_LENGTH = 32
"""Tokens of an answer where neither a flag nor the run that the policy comes from says it."""


def is_file(data: Path) -> bool:
    """Whether ``data`` names a file or folder, not a set of the project's own."""
    return len(data.parts) != 1 or data.suffix != ""


def column_names(columns: str, prefix: str = "") -> dict[str, str]:
    """What ``prompt=question,chosen=good`` says: the column of the file for each that is read.

    Raises InputError, naming the flag after its ``prefix``, for anything else, and for a column
    that is named twice.
    """
    names: dict[str, str] = {}
    for pair in columns.split(",") if columns.strip() else ():
        read, sign, found = (part.strip() for part in pair.partition("="))
        flag = f"{prefix}columns={columns!r}"
        check(
            bool(read and sign and found) and "=" not in found,
            f"{flag}: found {pair.strip()!r}, expected READ_AS=COLUMN, as in "
            "prompt=question,chosen=good",
        )
        check(read.lower() not in names, f"{flag} names two columns for {read}, expected one")
        check(found.lower() not in names.values(), f"{flag} reads {found} twice, expected once")
        check(read.lower() != found.lower(), f"{flag}: {read} is read as {read} without it")
        names[read.lower()] = found.lower()
    return names


@dataclass(frozen=True)
class TokenizerConfig:
    """Of a new model."""

    path: Main[Path | None] = None
    """A saved tokenizer or a GPT-2 vocabulary folder; None trains one on the text."""
    vocab_size: Main[Annotated[int, Bounds(258), only(path=None)]] = 4096
    """Of a tokenizer trained here: 256 bytes, padding and end of text are the least."""
    multiple: Count = 1
    """The embedding of a new model gets unused rows up to a multiple of this, so that it can be
    split over devices (GPT-2's 50,257 ids: 128 makes 50,304 rows)."""

    def __post_init__(self):
        check_bounds(self, "tokenizer.")

    def padded(self, vocab_size: int) -> int:
        """Rows of the embedding for so many ids."""
        return -(-vocab_size // self.multiple) * self.multiple


@dataclass(frozen=True)
class TextDataConfig:
    """Raw text: one or several corpora, mixed."""

    path: Main[tuple[Path, ...]] = ()
    """Files of texts or folders of them (docs/data.md), one corpus each."""
    weights: tuple[PositiveOrZero, ...] = ()
    """Share of each corpus in the mix; empty mixes by size."""
    heldout: tuple[Path, ...] = ()
    """One held-out file per corpus; empty holds out ``heldout_fraction`` of the documents."""
    heldout_fraction: Annotated[ShareBelowOne, only(heldout=())] = 0.02
    """Share of the documents that is held out, chosen by a hash of each."""
    block_size: BlockTokens | None = None
    """Tokens per packed row. None: the model's context; beside demonstrations or episodes, as many
    as their rows have."""
    columns: str = ""
    """Other names for columns of rows, such as text=body."""
    cache: Path = Path(".cache/datasets")
    """Where prepared data sets live."""

    def __post_init__(self):
        check_bounds(self, "data.")
        column_names(self.columns, "data.")
        check(
            not self.weights or sum(self.weights) > 0,
            f"data.weights={list(self.weights)}: expected a share over 0 among them",
        )
        for name in ("weights", "heldout"):
            given = getattr(self, name)
            check(
                not given or not self.path or len(given) == len(self.path),
                f"data.{name} has {len(given)} entries for {len(self.path)} of data.path",
            )
