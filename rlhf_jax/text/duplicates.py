"""The same text twice, prompts with a long common beginning, and test text in the training data.

InstructGPT removed prompts that share a long prefix and split by user (Ouyang et al. 2022, §3.2);
``tasks/splits.py`` splits by user, document or group. A leak between training and test is an error.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

from rlhf_jax.errors import InputError
from rlhf_jax.text.segments import HAN

T = TypeVar("T")

MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
"""Accents and vowel signs, which are not in Python's ``\\w``: without them कि is की."""
UNSPACED = HAN.strip("[]") + "".join(
    char
    # Thai and Lao, Burmese, Khmer, kana and bopomofo.
    for block in ((0xE00, 0xF00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3041, 0x3200))
    for char in map(chr, range(*block))
    if char.isalnum()
)
"""Characters of scripts that put no spaces between words."""
WORD = re.compile(rf"[{UNSPACED}][{MARKS}]*|[^\W_{UNSPACED}]+(?:[{MARKS}]+[^\W_{UNSPACED}]*)*")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits of any script, whatever their case; ``UNSPACED`` ones alone.

    Not ROUGE's tokens (``mixed_tokens``), which leave out all but a-z, 0-9 and Han.
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def fingerprint(text: str) -> str:
    """Of the words: case, punctuation and spaces do not count."""
    return hashlib.sha256(" ".join(words_of(text)).encode()).hexdigest()


def without_duplicates(rows: Sequence[T], text: Callable[[T], str]) -> list[T]:
    """The first of all rows whose texts have the same words. A text without words is kept."""
    kept: dict[Hashable, T] = {}
    for number, row in enumerate(rows):
        key = fingerprint(text(row)) if words_of(text(row)) else number
        kept.setdefault(key, row)
    return list(kept.values())


def without_shared_prefixes(
    rows: Sequence[T], text: Callable[[T], str], *, words: int, most: int
) -> list[T]:
    """At most ``most`` of the rows that begin with the same ``words`` words, the first ones.

    For instructions that one user asked again and again with other input. Shorter texts are kept.
    """
    seen: dict[tuple[str, ...], int] = {}
    kept = []
    for row in rows:
        start = tuple(words_of(text(row))[:words])
        if len(start) == words:
            seen[start] = seen.get(start, 0) + 1
            if seen[start] > most:
                continue
        kept.append(row)
    return kept


LEAK_WORDS = 13
"""As in GPT-3's check (Brown et al. 2020, appendix C)."""


class Leak(NamedTuple):
    """A test text that training texts cover."""

    test: int
    """Its number."""
    covered: float
    """Share of its n-grams that occur in training texts."""
    example: str
    """One of them."""


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Every run of ``n`` neighbouring words, in order; none in a text of fewer."""
    words = words_of(text)
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def find_leaks(
    train: Sequence[str], test: Sequence[str], *, n: int = LEAK_WORDS, covered: float = 0.5
) -> list[Leak]:
    """Test texts of which at least this share of the n-grams is in the training texts.

    A text of fewer words than ``n`` is compared whole.
    """
    # Only what the test texts hold is kept: training text may be large.
    wanted = {gram for text in test for gram in ngrams(text, n)}
    known = {gram for text in train for gram in ngrams(text, n) if gram in wanted}
    whole = {fingerprint(text) for text in train}
    leaks = []
    for number, text in enumerate(test):
        grams = ngrams(text, n)
        if not grams:
            if words_of(text) and fingerprint(text) in whole:
                leaks.append(Leak(number, 1.0, text))
            continue
        hits = [gram for gram in grams if gram in known]
        if hits and len(hits) / len(grams) >= covered:
            leaks.append(Leak(number, len(hits) / len(grams), " ".join(hits[0])))
    return leaks


def check_no_leak(train: Sequence[str], test: Sequence[str]) -> None:
    """Raise InputError if any test text leaks into training, naming the first and how many."""
    leaks = find_leaks(train, test)
    if leaks:
        first = leaks[0]
        raise InputError(
            f"{len(leaks)} of {len(test)} test texts are in the training text; number "
            f"{first.test + 1} shares {first.covered:.0%} of its {LEAK_WORDS}-grams, such as "
            f"{first.example[:120]!r}"
        )


def without_leaks(train: Sequence[str], rows: Sequence[T], text: Callable[[T], str]) -> list[T]:
    """The rows whose texts do not leak into training."""
    leaks = {leak.test for leak in find_leaks(train, [text(row) for row in rows])}
    return [row for number, row in enumerate(rows) if number not in leaks]
