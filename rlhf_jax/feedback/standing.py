"""Where the loop stands: how far it is to the next round, and why a round trained no policy."""

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlhf_jax.feedback.figures import read_status
from rlhf_jax.feedback.store import Database
from rlhf_jax.feedback.submissions import count_labels
from rlhf_jax.feedback.texts import parse_body

SILENT_SECONDS = 120
"""A process that has said nothing for so long may be gone."""


class Standing(NamedTuple):
    """What somebody who labels wants to know of the loop."""

    state: str
    """waiting for labels, learning, or idle: no updates run."""
    new: int
    """Labels since the last round, of ``wanted``."""
    wanted: int
    labels: int
    """All so far."""
    round: int
    """The newest that is published; 0 is the SFT model."""


def read_standing(database: Database) -> Standing:
    """Counted now: the updates themselves look only every few seconds."""
    labels = count_labels(database)
    with database.read() as rows:
        newest = rows("SELECT COALESCE(MAX(number), 0) AS n FROM round")[0]["n"]
    told = read_status(database).get("updater")
    gone = told is not None and time.time() - told["updated"] > SILENT_SECONDS
    if told is None or gone or told["phase"] in ("stopped", "failed"):
        return Standing("idle", 0, 0, labels, newest)
    if told["phase"] != "waiting":
        return Standing("learning", 0, 0, labels, newest)
    goal, wanted = told["goal"], told["wanted"]
    new = min(max(labels - (goal - wanted), 0), wanted)
    return Standing("waiting", new, wanted, labels, newest)


class Refusal(NamedTuple):
    """A round whose reward model was too bad to train a policy with."""

    round: int
    labels: int
    """That it learnt from."""
    accuracy: float
    """Share of the held-out pairs that it orders as people did."""
    half_width: float
    """95 %, from the spread between prompts; NaN for fewer than two."""
    pairs: int
    gate: float
    """--ppo.min-reward-accuracy"""
    wait: int
    """New labels until the next try."""
    created: float


def add_refusal(database: Database, number: int, body: Mapping[str, Any]) -> None:
    """Done again after a crash, on the same labels, it replaces its own."""
    with database.write() as rows:
        rows(
            """INSERT INTO refusal VALUES (:number, :labels, :now, :body)
                ON CONFLICT (number, labels) DO UPDATE SET created = :now, body = :body""",
            number=number,
            labels=body["labels"],
            now=time.time(),
            body=json.dumps(body),
        )


def read_refusals(database: Database) -> list[Refusal]:
    """Oldest first."""
    with database.read() as rows:
        refusals = rows("SELECT * FROM refusal ORDER BY number, labels")
    return [
        Refusal(round=row["number"], created=row["created"], **parse_body(row["body"]))
        for row in refusals
    ]
