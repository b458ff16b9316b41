"""A request's form to its fields; the labelling form to a label's body, and back into a form when
it could not be stored.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from starlette.datastructures import FormData

from rlhf_jax.errors import InputError
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
    return FormData(pairs)


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
            form.getlist(f"flag-{letter}"),
            form.get(f"note-{letter}", ""),
        )
        for letter, text in zip(LETTERS, texts, strict=False)
    ]
    fields = ("use-case", "demonstration", "reason", "note")
    return Entered(answers, form.getlist("prompt-flag"), *(form.get(name, "") for name in fields))


def _number(form: FormData, name: str) -> int | None:
    """A chosen number; None if none was chosen. Raises InputError for anything else."""
    value = form.get(name, "")
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
    began = float(started) if TIME.fullmatch(started) else None
    return {
        "ranks": [answer.rank - 1 for answer in entered.answers],
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
    checked = lambda flags: [flag for flag, value in flags.items() if value]
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
    rank = lambda x: best_first.index(x.quality) + 1 if x.quality else x.rank
    return entered._replace(answers=[x._replace(rank=rank(x)) for x in entered.answers])


def blank(texts: Sequence[str]) -> Entered:
    return Entered([Answer(letter, text) for letter, text in zip(LETTERS, texts, strict=False)])
