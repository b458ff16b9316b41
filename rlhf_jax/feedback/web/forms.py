"""A request's form to its fields; the labelling form to a label's body, and back.

Back into a form when it could not be stored, or was taken back.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from starlette.datastructures import FormData, UploadFile

from rlhf_jax.errors import InputError, known
from rlhf_jax.feedback.fields import PROMPT_FLAGS, RESPONSE_FLAGS, brief

LETTERS = "ABCDEFGHI"
URLENCODED = "application/x-www-form-urlencoded"
MOST_FIELDS = 1000
"""The largest form has nine answers with eleven flags each."""


def parse_form(kind: str, body: bytes) -> FormData:
    """The fields of a form with this content type; all are texts. Raises InputError."""
    kind = kind.partition(";")[0].strip().lower()
    if body and kind != URLENCODED:
        raise InputError(f"the form: found {kind or 'no content type'!r}, expected {URLENCODED}")
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS
        )
    except UnicodeDecodeError:
        raise InputError("the form: holds bytes that are no UTF-8") from None
    except ValueError:
        raise InputError(f"the form: expected at most {MOST_FIELDS} fields") from None
    fields: list[tuple[str, str | UploadFile]] = [*pairs]
    return FormData(fields)


NUMBER = re.compile("[0-9]{1,3}")
TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
"""When the page was made, in seconds since 1970."""


class Answer(NamedTuple):
    """One answer as the form shows it, with what was entered for it."""

    letter: str
    text: str
    rank: int | None = None
    """From 1, as people count."""
    quality: int | None = None
    flags: Sequence[str] = ()
    note: str = ""


class Entered(NamedTuple):
    """What the labelling form holds, complete or not."""

    answers: list[Answer]
    prompt_flags: Sequence[str] = ()
    use_case: str = ""
    demonstration: str = ""
    reason: str = ""
    note: str = ""


def entered_in(form: FormData, texts: Sequence[str]) -> Entered:
    """A form's fields, complete or not."""
    answers = [
        Answer(
            letter,
            text,
            _number(form, f"rank-{letter}"),
            _number(form, f"quality-{letter}"),
            values_of(form, f"flag-{letter}"),
            value_of(form, f"note-{letter}"),
        )
        for letter, text in zip(LETTERS, texts, strict=False)
    ]
    fields = ("use-case", "demonstration", "reason", "note")
    return Entered(answers, values_of(form, "prompt-flag"), *(value_of(form, n) for n in fields))


def values_of(form: FormData, name: str) -> list[str]:
    """All values of a field; no file is among them (``parse_form``)."""
    return [value for value in form.getlist(name) if isinstance(value, str)]


def value_of(form: FormData, name: str, default: str = "") -> str:
    """The value of a field, the last of several."""
    return [default, *values_of(form, name)][-1]


def _number(form: FormData, name: str) -> int | None:
    """A chosen number; None if none was chosen. Raises InputError for anything else."""
    value = value_of(form, name)
    return parse_number(name, value) if value else None


def parse_number(name: str, text: str) -> int:
    """A whole number as the pages' forms have it: up to three of the digits 0 to 9."""
    if not NUMBER.fullmatch(text):
        raise InputError(f"{name}: found {brief(text)}, expected a whole number")
    return int(text)


def ranking_body(entered: Entered, *, started: str) -> dict[str, Any]:
    """What ``submit`` takes. Raises InputError if an answer has no rank."""
    missing = [answer.letter for answer in entered.answers if answer.rank is None]
    if missing:
        raise InputError(f"no rank for {', '.join(missing)}")
    # This server wrote it into the page: both times are of one clock, whatever the labeler's says.
    began = float(started) if TIME.fullmatch(started) else None
    return {
        "ranks": [known(answer.rank) - 1 for answer in entered.answers],
        "quality": [answer.quality for answer in entered.answers],
        "flags": [_flags(answer.flags, RESPONSE_FLAGS) for answer in entered.answers],
        "notes": [answer.note for answer in entered.answers],
        "prompt_flags": _flags(entered.prompt_flags, PROMPT_FLAGS),
        "use_case": entered.use_case or None,
        "demonstration": entered.demonstration,
        "seconds": None if began is None else time.time() - began,
    }


def _flags(checked: Sequence[str], asked: Sequence[str]) -> dict[str, bool]:
    """All that the form asks, true if checked; what it does not ask is kept to be refused."""
    return {flag: flag in checked for flag in (*asked, *checked)}


def entered_before(kind: str, body: Mapping[str, Any], texts: Sequence[str]) -> Entered:
    """A label that was taken back, as the form shows it again."""
    blank = [Answer(letter, text) for letter, text in zip(LETTERS, texts, strict=False)]
    if kind == "skip":
        return Entered(blank, reason=body["reason"], note=body["note"])

    def checked(flags: Mapping[str, bool]) -> list[str]:
        return [flag for flag, value in flags.items() if value]

    answers = [
        answer._replace(
            rank=body["ranks"][n] + 1,
            quality=body["quality"][n],
            flags=checked(body["flags"][n]),
            note=body["notes"][n],
        )
        for n, answer in enumerate(blank)
    ]
    return Entered(
        answers, checked(body["prompt_flags"]), body["use_case"] or "", body["demonstration"]
    )


def ranked_by_ratings(entered: Entered) -> Entered:
    """The best rating is rank 1, equal ratings tie; an answer that is not rated keeps its rank."""
    best_first = sorted({x.quality for x in entered.answers if x.quality}, reverse=True)
    answers = [
        answer._replace(rank=best_first.index(answer.quality) + 1) if answer.quality else answer
        for answer in entered.answers
    ]
    return entered._replace(answers=answers)


def blank(texts: Sequence[str]) -> Entered:
    """The form as it is first shown."""
    return Entered([Answer(letter, text) for letter, text in zip(LETTERS, texts, strict=False)])
