"""The queue: tasks to label, who has one in hand, and what was labelled. Labels are only added.

A task is a prompt with K answers. ``wanted`` labelers get it; a lease keeps it from others while
one has it in hand. ``submission`` is an id that the labeler's page made before it sent anything:
a double click, a retry after a crash and a second try of a lost connection are all one label.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.errors import InputError
from rlhf_jax.feedback.accounts import Account
from rlhf_jax.feedback.database import Database, Rows
from rlhf_jax.feedback.fields import TEXT_LIMIT, check_ranking, check_skip, check_text

LEASE_SECONDS = 1800.0
DECISIONS = ("ranking", "skip")
"""Kinds of label of which a labeler gives one per task."""


class AlreadyLabelled(InputError):
    """This labeler has decided on this task before, with another submission."""


class Response(NamedTuple):
    text: str
    policy: str
    """Run folder of the policy, or "person". Never shown to labelers."""
    tokens: tuple[int, ...] | None = None
    """Ids as they were sampled: encoding the text anew may give others."""
    logprob: float | None = None
    """Σ log π(token) in nats, at the temperature it was sampled with."""


class Task(NamedTuple):
    id: str
    prompt: str
    responses: tuple[Response, ...]
    round: int

    def order(self, account: Account) -> list[int]:
        """The responses as this labeler sees them: each labeler has an order of their own."""
        key = lambda n: hashlib.sha256(f"{self.id} {account.id} {n}".encode()).digest()
        return sorted(range(len(self.responses)), key=key)


class NewTask(NamedTuple):
    prompt: str
    responses: Sequence[Response]
    round: int = 0
    priority: float = 0.0
    """Within a round, higher comes first."""
    wanted: int = 1
    sampling: Mapping[str, Any] | None = None
    """Temperature and the like, for the record."""


def add_tasks(database: Database, tasks: Iterable[NewTask]) -> list[str]:
    with database.write() as rows:
        return [insert_task(rows, task, kind="rank", owner=None) for task in tasks]


def insert_task(rows: Rows, task: NewTask, *, kind: str, owner: str | None) -> str:
    name = secrets.token_hex(8)
    body = {"prompt": task.prompt, "responses": [each._asdict() for each in task.responses]}
    rows(
        """INSERT INTO task VALUES (:id, (SELECT COALESCE(MAX(number), 0) + 1 FROM task), :kind,
            :owner, :round, :priority, :wanted, 0, :now, :body)""",
        id=name,
        kind=kind,
        owner=owner,
        round=task.round,
        priority=task.priority,
        wanted=task.wanted,
        now=time.time(),
        body=json.dumps(body | {"sampling": dict(task.sampling or {})}),
    )
    return name


def parse_task(row: Mapping[str, Any]) -> Task:
    body = json.loads(row["body"])
    responses = tuple(
        Response(**(each | {"tokens": each["tokens"] and tuple(each["tokens"])}))
        for each in body["responses"]
    )
    return Task(row["id"], body["prompt"], responses, row["round"])


DECIDED = """EXISTS (SELECT 1 FROM live_label l WHERE l.task = t.id AND l.account = :account
    AND l.kind IN ('ranking', 'skip'))"""
IN_HAND = f"""SELECT t.* FROM lease s JOIN task t ON t.id = s.task
    WHERE s.account = :account AND s.expires > :now AND NOT {DECIDED}
    ORDER BY s.expires DESC LIMIT 1"""
NEXT = f"""SELECT t.* FROM task t
    WHERE t.kind = 'rank' AND t.labels < t.wanted AND NOT {DECIDED}
    AND t.wanted > t.labels + (SELECT COUNT(*) FROM lease s
        WHERE s.task = t.id AND s.account <> :account AND s.expires > :now)
    ORDER BY t.round DESC, t.priority DESC, t.number LIMIT 1"""


def take_task(
    database: Database, account: Account, *, seconds: float = LEASE_SECONDS
) -> Task | None:
    """The task this labeler has in hand, or the next that needs a label; None if none does."""
    now = time.time()
    with database.write() as rows:
        found = rows(IN_HAND, account=account.id, now=now) or rows(
            NEXT, account=account.id, now=now
        )
        if not found:
            return None
        _lease(rows, found[0]["id"], account, now + seconds)
        return parse_task(found[0])


def _lease(rows: Rows, task: str, account: Account, expires: float) -> None:
    rows(
        """INSERT INTO lease VALUES (:task, :account, :expires)
            ON CONFLICT (task, account) DO UPDATE SET expires = :expires""",
        task=task,
        account=account.id,
        expires=expires,
    )


def read_task(database: Database, task: str, account: Account) -> Task | None:
    """A task that this labeler may see: theirs, or one they have in hand or have labelled."""
    with database.read() as rows:
        return _visible(rows, task, account)


def _visible(rows: Rows, task: str, account: Account) -> Task | None:
    found = rows(
        """SELECT * FROM task t WHERE id = :task AND (owner = :account
            OR EXISTS (SELECT 1 FROM lease WHERE task = :task AND account = :account)
            OR EXISTS (SELECT 1 FROM label WHERE task = :task AND account = :account))""",
        task=task,
        account=account.id,
    )
    return parse_task(found[0]) if found else None


def submit(
    database: Database,
    account: Account,
    *,
    submission: str,
    task: str,
    kind: str,
    body: Mapping[str, Any],
) -> bool:
    """Store a label; when this returns it is on disk. False if it was there already.

    ``body`` is by the labeler's own order of the answers. Raises InputError for a label that is
    not one, AlreadyLabelled for a second decision.
    """
    if not 8 <= len(submission) <= 64 or not submission.isalnum() or not submission.isascii():
        raise InputError("submission: expected 8 to 64 letters and digits")
    with database.write() as rows:
        seen = rows("SELECT task, account, kind FROM label WHERE submission = :s", s=submission)
        if seen:
            if seen[0] == {"task": task, "account": account.id, "kind": kind}:
                return False
            raise InputError("submission: this id belongs to another label")
        target = _visible(rows, task, account)
        if target is None:
            raise InputError(f"task: {task!r} is not in this labeler's hands")
        stored = _check(target, account, kind, body)
        if kind in DECISIONS:
            _decide(rows, task, account)
        rows(
            """INSERT INTO label VALUES (:submission,
                (SELECT COALESCE(MAX(number), 0) + 1 FROM label), :task, :account, :kind, :now,
                :body)""",
            submission=submission,
            task=task,
            account=account.id,
            kind=kind,
            now=time.time(),
            body=json.dumps(stored),
        )
        if kind == "ranking":
            rows("UPDATE task SET labels = labels + 1 WHERE id = :task", task=task)
    return True


def _decide(rows: Rows, task: str, account: Account) -> None:
    """The task leaves this labeler's hands. Raises AlreadyLabelled if it had before."""
    names = {"task": task, "account": account.id}
    if rows(f"SELECT 1 FROM task t WHERE id = :task AND {DECIDED}", **names):
        raise AlreadyLabelled(f"task {task} has a label by this labeler")
    rows("DELETE FROM lease WHERE task = :task AND account = :account", **names)


def _check(task: Task, account: Account, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The label as it is stored: by the task's own order of the answers."""
    order, count = task.order(account), len(task.responses)
    if kind == "ranking":
        made = check_ranking(body, count)
        for name in ("ranks", "quality", "flags", "notes"):
            shown = made[name]
            made[name] = [shown[order.index(n)] for n in range(count)]
        return made | {"shown": order}
    if kind == "skip":
        return check_skip(body)
    if kind == "thumb":
        place, up = body.get("response"), body.get("up")
        if place not in range(count) or not isinstance(up, bool):
            raise InputError(
                f"thumb: found {place!r}, {up!r}, expected an answer and true or false"
            )
        return {"response": order[place], "up": up}
    if kind == "demonstration":
        text = check_text("text", body.get("text"), TEXT_LIMIT)
        place = body.get("corrects")
        if not text or (place is not None and place not in range(count)):
            raise InputError("text: expected a text, and of which answer it is a correction")
        return {"text": text, "corrects": None if place is None else order[place]}
    raise InputError(f"kind: found {kind!r}, expected ranking, skip, thumb or demonstration")


def undo(database: Database, account: Account) -> tuple[Task, str, dict] | None:
    """Take back this labeler's newest decision and put the task back in hand.

    Returns the task, the kind and what was entered, by the labeler's own order.
    """
    now = time.time()
    with database.write() as rows:
        found = rows(
            """SELECT l.submission, l.kind AS decision, l.body AS label, t.* FROM live_label l
                JOIN task t ON t.id = l.task WHERE l.account = :account AND t.kind = 'rank'
                AND l.kind IN ('ranking', 'skip') ORDER BY l.number DESC LIMIT 1""",
            account=account.id,
        )
        if not found:
            return None
        row = found[0]
        rows("INSERT INTO retraction VALUES (:s, :now)", s=row["submission"], now=now)
        if row["decision"] == "ranking":
            rows("UPDATE task SET labels = labels - 1 WHERE id = :id", id=row["id"])
        _lease(rows, row["id"], account, now + LEASE_SECONDS)
    task, entered = parse_task(row), json.loads(row["label"])
    for name in ("ranks", "quality", "flags", "notes"):
        if name in entered:
            entered[name] = [entered[name][n] for n in entered["shown"]]
    return task, row["decision"], entered


def count_open(database: Database) -> int:
    """Tasks that still want a label: how long the queue is."""
    with database.read() as rows:
        sql = "SELECT COUNT(*) AS n FROM task WHERE labels < wanted AND kind = 'rank'"
        return rows(sql)[0]["n"]


def count_labels(database: Database) -> int:
    """Live rankings and demonstrations: what ``update`` waits for."""
    with database.read() as rows:
        sql = "SELECT COUNT(*) AS n FROM live_label WHERE kind <> 'skip'"
        return rows(sql)[0]["n"]
