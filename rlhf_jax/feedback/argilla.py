"""Argilla's records, flattened (``to_list(flatten=True)``): the rankings of a ranking question.

A question's responses are under ``QUESTION.responses``, one for each user, in order: names of the
fields that were ranked, best first, or objects with value and rank, which may tie. Only submitted
ones are labels; a record that nobody answered has null there.
"""

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.data.columns import unknown_columns
from rlhf_jax.data.rows import RowError

RESPONSES = ".responses"
SUBMITTED = "submitted"

Row = dict[str, Any]


def is_argilla(row: Row) -> bool:
    """Whether a row has the responses to a question, as Argilla's flattened records do."""
    return any(name.endswith(RESPONSES) for name in row)


def argilla_rows(row: Row, leave_out: Callable[[str], None]) -> list[tuple[str, Row]]:
    """(labeler, ranking as the stages read it) of each submitted response. Raises RowError.

    ``leave_out`` is told why of each response and record that is not read.
    """
    question = _question(row)
    responses = row[question] if question else None
    if question is None or not responses:
        leave_out("record that nobody has ranked")
        return []
    users = row.get(f"{question}.users") or [""] * len(responses)
    states = row.get(f"{question}.status") or [SUBMITTED] * len(responses)
    if not len(responses) == len(users) == len(states):
        raise RowError(f"{question}: expected as many users and states as responses")
    ranked = []
    for ranking, user, state in zip(responses, users, states, strict=True):
        if state != SUBMITTED:
            leave_out(f"{state or 'pending'} response")
        else:
            ranked.append((str(user or ""), _ranked(row, question, ranking)))
    return ranked


def _question(row: Row) -> str | None:
    """The question whose responses rank fields; None if no question has such a response."""
    names = [name for name in row if name.endswith(RESPONSES)]
    answered = [
        name for name in names if any(isinstance(answer, list) for answer in row[name] or ())
    ]
    if len(answered) > 1:
        # Questions with several labels have lists too, but not of the record's fields.
        answered = [n for n in answered if any(_name(x) in row for x in _first_list(row[n]))]
    if len(answered) > 1:
        raise RowError(f"found rankings of {' and '.join(answered)}, expected one question")
    return answered[0] if answered else None


def _first_list(responses: list) -> list:
    return next(response for response in responses if isinstance(response, list))


def _name(place: Any) -> Any:
    return place.get("value") if isinstance(place, Mapping) else place


def _ranked(row: Row, question: str, ranking: Any) -> Row:
    if not isinstance(ranking, list) or not ranking:
        raise RowError(f"{question}: found {ranking!r}, expected the names of fields in order")
    names = [_name(place) for place in ranking]
    wrong = [name for name in names if not isinstance(name, str) or row.get(name) is None]
    if wrong:
        raise RowError(f"{question} names {wrong[0]!r}, expected fields of the record")
    if len(set(names)) != len(names):
        raise RowError(f"{question} names a field twice")
    ranks = {
        name: place.get("rank") if isinstance(place, Mapping) else n
        for n, (name, place) in enumerate(zip(names, ranking, strict=True))
    }
    unknown = {*unknown_columns(row), *names}
    asked = {name: value for name, value in row.items() if name not in unknown}
    fields = [name for name in row if name in ranks]
    return asked | {
        "responses": [row[name] for name in fields],
        "ranks": [ranks[name] for name in fields],
    }
