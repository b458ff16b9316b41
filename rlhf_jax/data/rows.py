"""The four kinds of rows that stages learn from, and the account of those that they do not."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from rlhf_jax.data.chat import Conversation
from rlhf_jax.data.files import Origin
from rlhf_jax.errors import InputError, counted

log = logging.getLogger(__name__)

UNANSWERED = "the messages end without an answer"
"""Why a conversation is no demonstration; it may be a prompt."""
EMPTY = "empty answer"


class Text(NamedTuple):
    """A document."""

    text: str
    origin: Origin | None = None


class Prompt(NamedTuple):
    """What a policy is asked."""

    prompt: str | Conversation
    columns: dict[str, Any] | None = None
    """What else its row holds, such as a reference answer: a reward function may read it."""
    origin: Origin | None = None


class Demonstration(NamedTuple):
    """A prompt and how a person answered it."""

    prompt: str | Conversation
    completion: str | Conversation
    turns: tuple[int, ...] = ()
    """Messages of the prompt that are earlier answers of the same conversation, by their numbers:
    what ``every_answer`` makes demonstrations of, too."""
    origin: Origin | None = None


class Comparison(NamedTuple):
    """K responses to one prompt, ranked."""

    prompt: str | Conversation
    responses: tuple[str | Conversation, ...]
    ranks: tuple[int, ...]
    """0 is best, without gaps; equal ranks are ties."""
    tokens: tuple[tuple[int, ...], ...] | None = None
    """Ids of responses that a policy sampled, from ``response_tokens``: re-encoding may differ."""
    origin: Origin | None = None


Asking = Prompt | Demonstration | Comparison
Row = Text | Asking
R = TypeVar("R", bound=Row)
"""The kind of row that a file or a data set is read as."""


class LeftOut(NamedTuple):
    """A row that nothing is learnt from."""

    origin: Origin
    why: str


@dataclass
class Account:
    """What was not read as it stands, filled in by ``iterate``."""

    left_out: list[LeftOut] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    """Of rows that are kept: what was done with them, and of how many."""

    def reasons(self) -> str:
        """Why nothing is left: "3 left out, no answer, 1 left out, ..."; "" if nothing was."""
        counts = Counter(row.why for row in self.left_out)
        return ", ".join(f"{count} left out, {why}" for why, count in counts.items())

    def say(self, path: str | os.PathLike, kept: int) -> None:
        """Log the counts by reason."""
        total = kept + len(self.left_out)
        for why, count in Counter(row.why for row in self.left_out).items():
            log.warning("%s: %d of %d rows left out, %s", path, count, total, why)
        for note, count in self.notes.items():
            log.warning("%s: %s: %s", path, counted(count, "row"), note)


class OtherKind(InputError):
    """The rows are of another kind than the one that they are read as."""


class RowError(ValueError):
    """What is wrong with one row; the reader of the file adds where it stands."""


class OtherKeys(RowError):
    """The row has none of the keys that rows of this kind have."""


class NotLearnt(Exception):
    """Why one row is left out."""


def without_gaps(ranks: Sequence[int]) -> tuple[int, ...]:
    """The same order as 0, 1, ..."""
    order = sorted(set(ranks))
    return tuple(map(order.index, ranks))
