"""Which text serves which end: a property of the data, not of a run.

Every text's place follows from a hash of its words (or of its user, document or group), so that all
runs and seeds share one split and no text serves two ends.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from rlhf_jax.data.files import find_files, read_rows
from rlhf_jax.errors import InputError

T = TypeVar("T")


def share(text: str, salt: str) -> float:
    """A number in [0, 1) that only the text's words decide; another salt, another number."""
    digest = hashlib.sha256(f"{salt}:{normalised(text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def normalised(text: str) -> str:
    """The text in small letters, each run of white space one space."""
    return " ".join(text.lower().split())


def shuffled(texts: Iterable[T], key: Callable[[T], str] = str) -> list[T]:
    """In an order that only the texts decide."""
    return sorted(texts, key=lambda text: share(key(text), "order"))


def parts(
    rows: Iterable[T], key: Callable[[T], str], shares: Mapping[str, float], salt: str
) -> dict[str, list[T]]:
    """Rows by part, in random order; rows with the same key (a document, a user) stay together.

    ``shares`` add up to 1; a row's part does not depend on the other rows.
    """
    rows_of: dict[str, list[T]] = {name: [] for name in shares}
    for row in shuffled(rows, lambda row: repr(row)):
        place, bound = share(key(row), salt), 0.0
        for name, size in shares.items():
            bound += size
            if place < bound or name == list(shares)[-1]:
                rows_of[name].append(row)
                break
    return rows_of


def without_fold(
    rows: Iterable[T], key: Callable[[T], str], fold: int, folds: int, salt: str
) -> tuple[list[T], list[T]]:
    """(to learn from, held out), each in random order: fold ``fold`` of ``folds`` is held out.

    The groups (rows with the same key) are dealt to the folds in turn, so that each has as many as
    another, give or take one, and each row is held out in one fold. Raises InputError where there
    are fewer groups than folds.
    """
    rows = shuffled(rows, lambda row: repr(row))
    groups = sorted({key(row) for row in rows}, key=lambda group: (share(group, salt), group))
    if len(groups) < folds:
        raise InputError(f"{salt}: {len(groups)} groups of rows cannot be dealt to {folds} folds")
    out = set(groups[fold::folds])
    return [row for row in rows if key(row) not in out], [row for row in rows if key(row) in out]


def connected(groups: Sequence[Sequence[Hashable]]) -> list[int]:
    """For each row's keys, the number of the first row that it hangs together with.

    Rows that share a key are in one group, and so are rows that a chain of such rows joins:
    translations of one sentence, and the other translations of these.
    """
    parent = list(range(len(groups)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    first: dict[Hashable, int] = {}
    for number, keys in enumerate(groups):
        for key in keys:
            a, b = root(number), root(first.setdefault(key, number))
            parent[max(a, b)] = min(a, b)
    return [root(number) for number in range(len(groups))]


def read_fields(path, *names: str) -> list[tuple]:
    """The named fields of every row of a file or folder. Raises InputError where one is missing."""
    values = []
    for file in find_files(path):
        for where, row in read_rows(file):
            missing = [name for name in names if name not in row]
            if missing:
                raise InputError(f"{where}: found the keys {', '.join(row)}, expected {missing[0]}")
            values.append(tuple(row[name] for name in names))
    return values


def passages(path, *, heldout: float, salt: str) -> tuple[list[str], list[str]]:
    """(text to learn from, held out) of .txt files, by passages, in the files' order."""
    texts = [text for (text,) in read_fields(path, "text")]
    learnt, held = [], []
    for text in texts:
        (held if share(text, salt) < heldout else learnt).append(text)
    return learnt, held
