"""Answers in columns of their own beside a verdict, as public sets have them.

They are brought to ``responses`` and ``ranks``, so that everything else reads them as a ranking.
``docs/data.md`` has an example of each.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.files import type_name
from rlhf_jax.data.rows import RowError

Ranks = list[int]


class TwoAnswers(NamedTuple):
    """Two columns of answers, and those that say which answer is better."""

    answers: tuple[str, str]
    verdict: tuple[str, ...]
    ranks: Callable[..., Ranks]
    """Of the values of ``verdict``; raises RowError for another value."""


def ranked_row(row: dict) -> dict:
    """``row`` with ``responses`` and ``ranks`` if it is of a known form, else as it is.

    Raises RowError for a verdict that is none.
    """
    answers = row.get("answers")
    if isinstance(answers, list) and answers and all(map(_is_ranked, answers)):
        listed = [{"text": answer["answer"], "rank": answer["rank"]} for answer in answers]
        return _without(row, "answers") | {"responses": listed}
    for form in FORMS:
        if all(name in row for name in (*form.answers, *form.verdict)):
            break
    else:
        return row
    ranks = form.ranks(*((name, row[name]) for name in form.verdict))
    responses = [row[name] for name in form.answers]
    rest = _without(row, *form.answers, *form.verdict)
    return _asked(rest) | {"responses": responses, "ranks": ranks}


def _is_ranked(answer: Any) -> bool:
    return isinstance(answer, dict) and {"answer", "rank"} <= answer.keys()


def _without(row: dict, *names: str) -> dict:
    return {name: value for name, value in row.items() if name not in names}


def _asked(row: dict) -> dict:
    """``row`` with its prompt under a name that it has in other rows, too."""
    question = row.get("question")
    if isinstance(question, dict) and "full_text" in question:  # WebGPT
        return row | {"question": question["full_text"]}
    for name in ("history", "context"):  # SHP's post, HelpSteer3's conversation
        if name in row and not {"prompt", "instruction", "question", "query"} & row.keys():
            return _without(row, name) | {"prompt" if name == "context" else "query": row[name]}
    return row


# --- verdicts -------------------------------------------------------------------------------------

Given = tuple[str, Any]
"""A column with its value."""


def _first() -> Ranks:
    return [0, 1]


def _number(better: int) -> Callable[[Given], Ranks]:
    """The number of the better answer: ``better`` if it is the first, one more for the second."""
    return lambda column: _one_of({better: [0, 1], better + 1: [1, 0]}, column)


def _label(column: Given) -> Ranks:
    """1 where the first is better, 0 where the second is."""
    return _one_of({1: [0, 1], 0: [1, 0]}, column)


def _sign(column: Given) -> Ranks:
    """Below zero where the first is better, above where the second is."""
    strength = _real(column)
    return [int(strength > 0), int(strength < 0)]


def _scores(first: Given, second: Given) -> Ranks:
    """The higher is better."""
    a, b = _real(first), _real(second)
    return [int(a < b), int(b < a)]


def _one_of(ranks: dict[int, Ranks], column: Given) -> Ranks:
    name, value = column
    if isinstance(value, bool) or value not in ranks:
        expected = " or ".join(map(str, sorted(ranks)))
        found = value if isinstance(value, int | float | str) else type_name(value)
        raise RowError(f"{name} is {found!r}, expected {expected}")
    return ranks[value]


def _real(column: Given) -> int | float:
    name, value = column
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        found = type_name(value) if value == value else value
        raise RowError(f"{name} is {found}, expected a number")
    return value


FORMS: Sequence[TwoAnswers] = (
    TwoAnswers(("response_0", "response_1"), ("better_response_id",), _number(0)),  # PKU-SafeRLHF
    TwoAnswers(("output_1", "output_2"), ("preference",), _number(1)),  # AlpacaFarm
    TwoAnswers(("human_ref_a", "human_ref_b"), ("labels",), _label),  # SHP
    TwoAnswers(("response_1", "response_2"), ("preference_strength",), _sign),  # HelpSteer2
    TwoAnswers(("response1", "response2"), ("overall_preference",), _sign),  # HelpSteer3
    TwoAnswers(("answer_0", "answer_1"), ("score_0", "score_1"), _scores),  # WebGPT
    TwoAnswers(("response_j", "response_k"), (), _first),  # Stack Exchange, paired
)
