"""Who is in the team: how much each labelled, when they were last seen; who is still invited."""

import time
from typing import NamedTuple

from rlhf_jax.feedback.accounts import SESSION_SECONDS, pseudonym, site_secret
from rlhf_jax.feedback.store import Database


class Member(NamedTuple):
    """Somebody of the team, and how much they have done."""

    id: str
    name: str
    role: str
    pseudonym: str
    labels: int
    """Rankings, thumbs, corrections; not skips."""
    seen: float | None
    """The newest of sign-ins, labels and messages."""
    revoked: bool


def members(database: Database) -> list[Member]:
    """All accounts, oldest first."""
    with database.read() as rows:
        accounts = rows("SELECT id, name, role, revoked FROM account ORDER BY created")
        counts = rows(
            "SELECT account, COUNT(*) AS n FROM live_label WHERE kind <> 'skip' GROUP BY account"
        )
        seen = rows(
            """SELECT account, MAX(at) AS at FROM (
                SELECT account, created AS at FROM label
                UNION ALL SELECT account, created FROM turn
                UNION ALL SELECT account, expires - :session FROM session) s GROUP BY account""",
            session=SESSION_SECONDS,
        )
    secret = site_secret(database)
    labels = {row["account"]: row["n"] for row in counts}
    last = {row["account"]: row["at"] for row in seen}
    return [
        Member(
            row["id"],
            row["name"],
            row["role"],
            pseudonym(secret, row["id"]),
            labels.get(row["id"], 0),
            last.get(row["id"]),
            row["revoked"] is not None,
        )
        for row in accounts
    ]


class Invite(NamedTuple):
    """An invite link that nobody has used."""

    created: float
    expires: float


def open_invites(database: Database) -> list[Invite]:
    """Newest first."""
    with database.read() as rows:
        invites = rows(
            """SELECT created, expires FROM invite WHERE account IS NULL AND revoked IS NULL
                AND expires > :now ORDER BY created DESC""",
            now=time.time(),
        )
    return [Invite(row["created"], row["expires"]) for row in invites]
