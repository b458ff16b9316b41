"""What labelers send: labels, which are only added, and taking one back, which adds that too.

``submission`` is an id that the labeler's page made before it sent anything: a double click, a
retry after a crash and a second try of a lost connection are all one label.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_jax.data.chat import as_json
from rlhf_jax.errors import InputError
from rlhf_jax.feedback.accounts import Account, named
from rlhf_jax.feedback.fields import (
    TEXT_LIMIT,
    Clean,
    brief,
    check_place,
    check_ranking,
    check_skip,
    check_text,
)
from rlhf_jax.feedback.queue import (
    DECIDED,
    LEASE_SECONDS,
    NewTask,
    Task,
    insert_task,
    lease,
    parse_task,
    visible_task,
)
from rlhf_jax.feedback.store import Database, Rows
from rlhf_jax.feedback.texts import opinion, parse_body

DECISIONS = ("ranking", "skip")
"""Kinds of label of which a labeler gives one per task."""


class AlreadyLabelled(InputError):
    """This labeler has decided on this task before, with another submission."""


def submit(
    database: Database,
    account: Account,
    *,
    submission: str,
    task: str,
    kind: str,
    body: Mapping[str, Any],
    clean: Clean = str,
) -> bool:
    """Store a label; when this returns it is on disk. False if it was there already.

    ``body`` is by the labeler's own order of the answers; ``clean`` is done to its texts. Raises
    InputError for a label that is not one, AlreadyLabelled for a second decision.
    """
    if not 8 <= len(submission) <= 64 or not submission.isalnum() or not submission.isascii():
        raise InputError("submission: expected 8 to 64 letters and digits")
    with database.write() as rows:
        seen = rows("SELECT task, account, kind FROM label WHERE submission = :s", s=submission)
        if seen:
            # Sent twice, which is no error: the first is on disk.
            if seen[0] == {"task": task, "account": account.id, "kind": kind}:
                return False
            raise InputError("submission: this id belongs to another label")
        target = visible_task(rows, task, account)
        if target is None:
            raise InputError(f"task: {brief(task)} is not in this labeler's hands")
        # Within the transaction: the task cannot be taken from these hands between check and write.
        stored = _check(target, account, kind, body, clean)
        if kind in DECISIONS:
            _decide(rows, task, account)
        _insert_label(rows, submission, task, account, kind, stored)
    return True


def _insert_label(
    rows: Rows, submission: str, task: str, account: Account, kind: str, body: Mapping[str, Any]
) -> None:
    rows(
        """INSERT INTO label VALUES (:submission, (SELECT COALESCE(MAX(number), 0) + 1 FROM label),
            :task, :account, :kind, :now, :body)""",
        submission=submission,
        task=task,
        account=account.id,
        kind=kind,
        now=time.time(),
        body=json.dumps(body),
    )
    if kind == "ranking":
        rows("UPDATE task SET labels = labels + 1 WHERE id = :task", task=task)


def _decide(rows: Rows, task: str, account: Account) -> None:
    """The task leaves this labeler's hands. Raises AlreadyLabelled if it had before."""
    names = {"task": task, "account": account.id}
    if rows(f"SELECT 1 FROM task t WHERE id = :task AND {DECIDED}", **names):
        raise AlreadyLabelled(f"task {task} has a label by this labeler")
    rows("DELETE FROM lease WHERE task = :task AND account = :account", **names)


def _check(
    task: Task, account: Account, kind: str, body: Mapping[str, Any], clean: Clean
) -> dict[str, Any]:
    """The label as it is stored: by the task's own order of the answers."""
    order, count = task.order(account), len(task.responses)
    if kind == "ranking":
        ranking = check_ranking(body, count, clean)
        for name in ("ranks", "quality", "flags", "notes"):
            by_shown_place = ranking[name]
            ranking[name] = [by_shown_place[order.index(n)] for n in range(count)]
        return ranking | {"shown": order}
    if kind == "skip":
        return check_skip(body, clean)
    if kind == "thumb":
        up = body.get("up")
        if not isinstance(up, bool):
            raise InputError(f"up: found {brief(up)}, expected true or false")
        return {"response": order[check_place("response", body.get("response"), count)], "up": up}
    if kind == "demonstration":
        text, place = check_text("text", body.get("text"), TEXT_LIMIT, clean), body.get("corrects")
        if not text:
            raise InputError("text: found none, expected a better answer")
        corrected = None if place is None else order[check_place("corrects", place, count)]
        return {"text": text, "corrects": corrected}
    raise InputError(f"kind: found {brief(kind)}, expected ranking, skip, thumb or demonstration")


def add_ranked(database: Database, ranked: Iterable[tuple[str, NewTask, Sequence[int]]]) -> int:
    """Tasks with a label each, from elsewhere: (labeler's name, task, ranks). All, or none.

    Returns how many are new: what was added before is not added again.
    """
    with database.write() as rows:
        return sum(_add_ranked(rows, *ranking) for ranking in ranked)


def _add_ranked(rows: Rows, labeler: str, task: NewTask, ranks: Sequence[int]) -> bool:
    account = named(rows, labeler)
    texts = [as_json(response.text) for response in task.responses]
    # The id is the content's: a file that is imported again adds nothing.
    content = json.dumps([account.id, as_json(task.prompt), texts, list(ranks)])
    submission = hashlib.sha256(content.encode()).hexdigest()
    if rows("SELECT 1 FROM label WHERE submission = :s", s=submission):
        return False
    name = insert_task(rows, task, kind="rank", owner=None)
    body = check_ranking({"ranks": list(ranks)}, len(texts))
    # In which order the labeler saw the answers nobody knows: the file's own stands for it.
    _insert_label(
        rows, submission, name, account, "ranking", body | {"shown": [*range(len(texts))]}
    )
    return True


def undo(database: Database, account: Account) -> tuple[Task, str, dict] | None:
    """Take back this labeler's newest decision and put the task back in hand.

    Returns the task, the kind and what was entered, by the labeler's own order; None if there is
    nothing to take back.
    """
    now = time.time()
    with database.write() as rows:
        labels = rows(
            """SELECT l.submission, l.kind AS decision, l.body AS label, t.* FROM live_label l
                JOIN task t ON t.id = l.task WHERE l.account = :account AND t.kind = 'rank'
                AND l.kind IN ('ranking', 'skip') ORDER BY l.number DESC LIMIT 1""",
            account=account.id,
        )
        if not labels:
            return None
        row = labels[0]
        # Labels are only ever added: what was taken back can still be looked at.
        rows("INSERT INTO retraction VALUES (:s, :now)", s=row["submission"], now=now)
        if row["decision"] == "ranking":
            rows("UPDATE task SET labels = labels - 1 WHERE id = :id", id=row["id"])
        lease(rows, row["id"], account, now + LEASE_SECONDS)
    return parse_task(row), row["decision"], _by_shown_order(row["label"])


def _by_shown_order(body: str) -> dict[str, Any]:
    """A decision as its labeler entered it."""
    entered = parse_body(body)
    for name in ("ranks", "quality", "flags", "notes"):
        if name in entered:
            entered[name] = [entered[name][n] for n in entered["shown"]]
    return entered


def taken_back(database: Database, account: Account, task: str) -> tuple[str, dict] | None:
    """What this labeler last took back of a task: the kind and what was entered; None if nothing.

    Also None if they have decided on the task again since.
    """
    with database.read() as rows:
        labels = rows(
            """SELECT l.kind, l.body, r.submission AS retracted FROM label l
                LEFT JOIN retraction r ON r.submission = l.submission
                WHERE l.account = :account AND l.task = :task AND l.kind IN ('ranking', 'skip')
                ORDER BY l.number DESC LIMIT 1""",
            account=account.id,
            task=task,
        )
    if not labels or labels[0]["retracted"] is None:
        return None
    return labels[0]["kind"], _by_shown_order(labels[0]["body"])


def count_labels(database: Database) -> int:
    """What ``update`` waits for: rankings, and thumbs and written answers that stand.

    Several of one labeler on one answer are one, the newest.
    """
    with database.read() as rows:
        ranked = rows("SELECT COUNT(*) AS n FROM live_label WHERE kind = 'ranking'")[0]["n"]
        others = rows(
            """SELECT task, account, kind, body FROM live_label
                WHERE kind IN ('thumb', 'demonstration')"""
        )
    about = (opinion(x["task"], x["account"], x["kind"], parse_body(x["body"])) for x in others)
    return ranked + len(set(about))
