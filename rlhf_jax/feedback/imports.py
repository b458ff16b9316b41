"""Rankings of other people's files: all rows are read before the first one is stored.

Rows of Label Studio and Argilla are brought to the rows that the stages read, and those are read as
``reward`` reads them: ranks from any number on, conversations, and the same reasons to leave a row
out.
"""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.chat import as_text
from rlhf_jax.data.files import Origin, find_files, read_rows
from rlhf_jax.data.formats import read_as
from rlhf_jax.data.rows import Account, Comparison, LeftOut, RowError
from rlhf_jax.errors import InputError, check
from rlhf_jax.feedback.argilla import argilla_rows, is_argilla
from rlhf_jax.feedback.fields import MOST_RESPONSES
from rlhf_jax.feedback.label_studio import label_studio_rows
from rlhf_jax.feedback.texts import check_whole
from rlhf_jax.feedback.visible import is_visible

LONGEST_TEXT = 1_000_000
"""Characters of a prompt or an answer: more than any model here reads, and than a page shows."""
LONGEST_LABELER = 200


class Imported(NamedTuple):
    """A ranking from elsewhere."""

    row: Comparison
    """As a stage learns from it."""
    labeler: str
    """As the file calls them; "" if it does not say."""


class Ranked(Origin):
    """Where a ranking stands, and whose it is."""

    labeler: str

    @classmethod
    def by(cls, labeler: str, origin: Origin) -> "Ranked":
        """The place of a row, with who ranked it."""
        place = cls(*origin)
        place.labeler = labeler
        return place


def read_rankings(path: str | PathLike) -> tuple[list[Imported], Account]:
    """The rankings of a file, folder or pattern, and what was left out of them and why.

    Raises InputError, naming file and row, for a row that is none; and for a file without any.
    """
    account = Account()
    rankings = [ranking for file in find_files(path) for ranking in _rankings(file, account)]
    if not rankings:
        why = account.reasons()
        raise InputError(f"{path} has no rankings{why and f': {why}'}")
    return rankings, account


def check_labeler(labeler: str) -> None:
    """Raise InputError for what cannot be told apart, or shown, as somebody's name."""
    check_whole("labeler", labeler)
    check("\0" not in labeler, f"labeler: {labeler!r} holds a NUL, which no name may hold")
    if len(labeler) > LONGEST_LABELER:
        raise InputError(
            f"labeler: found {len(labeler)} characters, expected at most {LONGEST_LABELER}"
        )
    if not all(is_visible(character) for character in labeler) or "\n" in labeler:
        raise InputError("labeler: found an invisible or control character")


def _rankings(file: Path, account: Account) -> Iterator[Imported]:
    rows = [
        (Ranked.by(labeler, origin), ranking)
        for origin, row in read_rows(file)
        for labeler, ranking in _stage_rows(origin, row, account)
    ]
    for row in read_as(rows, Comparison, account):
        if len(row.responses) > MOST_RESPONSES:
            raise InputError(
                f"{row.origin}: found {len(row.responses)} answers, expected at most "
                f"{MOST_RESPONSES}"
            )
        longest = max(len(as_text(text)) for text in (row.prompt, *row.responses))
        if longest > LONGEST_TEXT:
            raise InputError(
                f"{row.origin}: found a text of {longest} characters, expected at most "
                f"{LONGEST_TEXT}"
            )
        assert isinstance(row.origin, Ranked), "rows keep the places that they are given"
        yield Imported(row, row.origin.labeler)


def _stage_rows(origin: Origin, row: dict, account: Account) -> list[tuple[str, dict[str, Any]]]:
    """(labeler, row as the stages read it): each ranking of a row, recognised by its keys."""

    def leave_out(why: str) -> None:
        account.left_out.append(LeftOut(origin, why))

    try:
        if isinstance(row.get("data"), dict):
            ranked = label_studio_rows(row, leave_out, account.notes)
        elif is_argilla(row):
            ranked = argilla_rows(row, leave_out)
        elif isinstance(row.get("fields"), dict):
            raise RowError(
                "a record of Argilla that is not flattened does not tell which responses were "
                "submitted: expected those of records.to_list(flatten=True)"
            )
        else:
            labeler = row.get("labeler")
            ranked = [("" if labeler is None else str(labeler), row)]
        for labeler, _ in ranked:
            check_labeler(labeler)
    except (RowError, InputError) as error:
        raise InputError(f"{origin}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{origin}: not a row of the format its keys name ({error!r})") from None
    return ranked
