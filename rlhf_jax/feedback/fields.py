"""What a labeler enters: the fields of InstructGPT's interface.

Ouyang et al. 2022, Tables 1, 3, 7. In the data fields are ids; their names in English and Chinese
are in ``locales/``.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_jax.data.rows import without_gaps
from rlhf_jax.errors import InputError
from rlhf_jax.feedback.texts import check_whole

QUALITY = range(1, 8)
"""Overall quality of an answer: Likert, 7 is best."""
RESPONSE_FLAGS = (
    "fails_instruction",
    "inappropriate_assistant",
    "hallucination",
    "satisfies_constraint",
    "sexual",
    "violent",
    "encourages_harm",
    "denigrates",
    "harmful_advice",
    "opinion",
    "moral_judgment",
)
PROMPT_FLAGS = (
    "ambiguous",
    "sensitive",
    "identity_dependent",
    "closed_domain",
    "continuation_style",
    "opinionated_content",
    "asks_advice",
    "asks_moral_judgment",
    "safety_constraints",
    "other_constraints",
    "intent_unclear",
)
USE_CASES = (
    *("generation", "open_qa", "brainstorming", "chat", "rewrite"),
    *("summarization", "classification", "other", "closed_qa", "extract"),
)
SKIP_REASONS = ("unclear", "cannot_judge", "too_long", "offensive", "personal_data", "other")
TEXT_LIMIT = 20_000
"""Characters of a demonstration, correction or chat message."""
NOTE_LIMIT = 2_000
MOST_RESPONSES = 9
"""K of InstructGPT: 4 to 9. Digits 1 to 9 rank them."""


Clean = Callable[[str], str]
"""What becomes of a text before it is stored: ``scrub_typed``, or ``str`` to leave it."""


def check_ranking(body: Mapping[str, Any], count: int, clean: Clean = str) -> dict[str, Any]:
    """A ranking of ``count`` answers as it is stored. Raises InputError naming the field.

    ranks: 0 is best. quality: 1 ... 7 or None where none was given. flags, prompt_flags: ids that
    were asked, each true or false; an id that is missing was not asked. ``clean`` is done to texts,
    once their lengths are known.
    """
    ranks = _list(body, "ranks", count)
    if not all(_is_int(rank) and 0 <= rank < MOST_RESPONSES for rank in ranks):
        raise InputError(f"ranks: found {brief(ranks)}, expected {count} whole numbers from 0 on")
    quality = _list(body, "quality", count, default=None)
    if not all(q is None or (_is_int(q) and q in QUALITY) for q in quality):
        raise InputError(
            f"quality: found {brief(quality)}, expected 1 ... 7 or null for each answer"
        )
    flags = _list(body, "flags", count, default={})
    notes = _list(body, "notes", count, default="")
    use_case = body.get("use_case")
    if use_case is not None and use_case not in USE_CASES:
        raise InputError(
            f"use_case: found {brief(use_case)}, expected one of {', '.join(USE_CASES)}"
        )
    return {
        "ranks": list(without_gaps(ranks)),
        "quality": quality,
        "flags": [_flags("flags", of_one, RESPONSE_FLAGS) for of_one in flags],
        "notes": [check_text("notes", note, NOTE_LIMIT, clean) for note in notes],
        "prompt_flags": _flags("prompt_flags", body.get("prompt_flags", {}), PROMPT_FLAGS),
        "use_case": use_case,
        "demonstration": check_text(
            "demonstration", body.get("demonstration", ""), TEXT_LIMIT, clean
        ),
        "seconds": _seconds(body.get("seconds")),
    }


def check_skip(body: Mapping[str, Any], clean: Clean = str) -> dict[str, Any]:
    """Why a task was skipped, as it is stored. Raises InputError for an unknown reason."""
    reason = body.get("reason")
    if reason not in SKIP_REASONS:
        raise InputError(
            f"reason: found {brief(reason)}, expected one of {', '.join(SKIP_REASONS)}"
        )
    return {"reason": reason, "note": check_text("note", body.get("note", ""), NOTE_LIMIT, clean)}


def check_text(name: str, value: Any, limit: int, clean: Clean = str) -> str:
    """A text as it is stored. Its length is checked first: all that follows takes time by it."""
    if not isinstance(value, str) or len(value) > limit:
        found = f"{len(value)} characters" if isinstance(value, str) else brief(value)
        raise InputError(f"{name}: found {found}, expected text of at most {limit} characters")
    check_whole(name, value)
    return clean(value.replace("\r\n", "\n").strip("\n"))


def check_place(name: str, value: Any, count: int) -> int:
    """The place of one of ``count`` answers: a whole number, not 0.0 or False."""
    if not _is_int(value) or not 0 <= value < count:
        raise InputError(f"{name}: found {brief(value)}, expected the place of one of {count}")
    return value


def brief(value: Any) -> str:
    """What a refusal quotes of a value that may be of any size."""
    return reprlib.repr(value)


def _flags(name: str, value: Any, known: Sequence[str]) -> dict[str, bool]:
    if not isinstance(value, Mapping) or not all(isinstance(v, bool) for v in value.values()):
        raise InputError(f"{name}: found {brief(value)}, expected true or false by name")
    unknown = [flag for flag in value if flag not in known]
    if unknown:
        raise InputError(f"{name}: found {brief(unknown[0])}, expected some of {', '.join(known)}")
    return dict(value)


def _list(body: Mapping[str, Any], name: str, count: int, **default: Any) -> list:
    value = body.get(name)
    if value is None and "default" in default:
        return [default["default"]] * count
    if not isinstance(value, list) or len(value) != count:
        raise InputError(f"{name}: found {brief(value)}, expected a list of {count}")
    return value


def _seconds(value: Any) -> float | None:
    """How long the labeler had the task before them, as their browser says."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6
    return round(float(value), 1) if usable else None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
