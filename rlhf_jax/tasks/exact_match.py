"""Right or wrong: whether a response ends in the answer that its prompt's row gives.

    python -m experiments.ppo --reward rlhf_jax/tasks/exact_match.py:exact_match ...

The final answer is what follows the last ``=``, ``:``, *is*, 等于 or 是 of the response, or all of
it where there is none, without a full stop at the end. Only that is looked at: of several guesses
the last one counts, and numbers in a row are no number.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rlhf_jax.errors import InputError

MARK = re.compile(r"[=:：]|\bis\b|等于|是", re.IGNORECASE)
"""After the last of these stands the final answer."""
NUMBER = re.compile(r"[-−]?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?")
"""As people write one: ASCII digits, commas at the thousands or nowhere, no zero in front."""
WORKED = "####"
"""After this an answer of GSM8K (Cobbe et al. 2021) stands, and its working before."""


def exact_match(prompts: Sequence[str], responses: Sequence[str], answer: Sequence) -> list[float]:
    """1 for each response whose final answer is that of the column ``answer``, else 0.

    Numbers are compared as numbers (1,000 is 1000.0), texts without regard to case and spaces.
    Raises InputError for an answer that is neither.
    """
    pairs = zip(responses, answer, strict=True)
    return [float(is_right(response, wanted)) for response, wanted in pairs]


def is_right(response: str, wanted: Any) -> bool:
    """Whether the final answer of a response, or all of it, is ``wanted``: a number or a text."""
    wanted = read_answer(wanted)
    said = (final_answer(response), without_stop(response))
    if isinstance(wanted, Decimal):
        return wanted in map(number_of, said)
    return plain(wanted) in map(plain, said)


def final_answer(response: str) -> str:
    """What follows the last mark in a response, without a full stop at its end."""
    return without_stop(MARK.split(response)[-1])


def number_of(text: str) -> Decimal | None:
    """The number that a text is, all of it; None for anything else."""
    if not NUMBER.fullmatch(text):
        return None
    return Decimal(text.replace(",", "").replace("−", "-"))


def read_answer(wanted: Any) -> Decimal | str:
    """A row's answer: a number where it is one, after ``####`` where there is that.

    Raises InputError for what is neither number nor text.
    """
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        wanted = str(wanted)
    if not isinstance(wanted, str) or not wanted.rpartition(WORKED)[2].strip():
        raise InputError(f"the column answer is {wanted!r}, expected a number or a text")
    wanted = wanted.rpartition(WORKED)[2].strip()
    number = number_of(wanted)
    return wanted if number is None else number


def plain(text: str) -> str:
    """In small letters, each run of white space one space."""
    return " ".join(text.casefold().split())


def without_stop(text: str) -> str:
    """Without the spaces around it and a full stop at its end."""
    text = text.strip()
    return text[:-1].rstrip() if text.endswith((".", "。")) else text
