"""The queue: tasks to label, and who has one in hand.

A task is a prompt with K answers. ``wanted`` labelers get it; a lease keeps it from others while
one has it in hand.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.chat import Conversation, as_json, as_text
from rlhf_jax.errors import check
from rlhf_jax.feedback.accounts import Account
from rlhf_jax.feedback.store import Database, Rows
from rlhf_jax.feedback.texts import from_json, has_half, parse_body

LEASE_SECONDS = 1800.0


class Response(NamedTuple):
    """An answer to rank, and where it came from."""

    text: str | Conversation
    policy: str
    """Folder of the policy within the run folder, or "person". Never shown to labelers."""
    tokens: tuple[int, ...] | None = None
    """Ids as they were sampled: encoding the text anew may give others."""
    logprob: float | None = None
    """Σ log π(token) in nats, at the temperature it was sampled with."""


class Task(NamedTuple):
    """A prompt with answers to rank."""

    id: str
    prompt: str | Conversation
    responses: tuple[Response, ...]
    round: int

    def order(self, account: Account) -> list[int]:
        """The responses as this labeler sees them: each labeler has an order of their own."""

        def key(n: int) -> bytes:
            # From a hash and not drawn: the page that comes back must have the order that was
            # shown.
            return hashlib.sha256(f"{self.id} {account.id} {n}".encode()).digest()

        return sorted(range(len(self.responses)), key=key)


class NewTask(NamedTuple):
    """A task that is to be put into the queue."""

    prompt: str | Conversation
    responses: Sequence[Response]
    round: int = 0
    priority: float = 0.0
    """Within a round, higher comes first."""
    wanted: int = 1
    sampling: Mapping[str, Any] | None = None
    """Temperature and the like, for the record."""


def add_tasks(database: Database, tasks: Iterable[NewTask]) -> list[str]:
    """Put tasks into the queue for everybody; their ids."""
    with database.write() as rows:
        return [insert_task(rows, task, kind="rank", owner=None) for task in tasks]


def insert_task(rows: Rows, task: NewTask, *, kind: str, owner: str | None) -> str:
    """Put one task into the queue; ``owner`` is the only one who sees it, if there is one."""
    # Not to be guessed: a number would tell how many tasks there are.
    name = secrets.token_hex(8)
    responses = [
        response._asdict() | {"text": as_json(response.text)} for response in task.responses
    ]
    prompt, sampling = as_json(task.prompt), dict(task.sampling or {})
    body = json.dumps({"prompt": prompt, "responses": responses, "sampling": sampling})
    check(not has_half(body), f"the task {as_text(task.prompt)[:40]!r} holds half a surrogate pair")
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
        body=body,
    )
    return name


def parse_task(row: Mapping[str, Any]) -> Task:
    """A task as the store holds it."""
    body = parse_body(row["body"])
    return Task(
        row["id"],
        from_json(body["prompt"]),
        tuple(map(_parse_response, body["responses"])),
        row["round"],
    )


def _parse_response(response: dict[str, Any]) -> Response:
    tokens = response["tokens"] and tuple(response["tokens"])
    read: dict[str, Any] = {"text": from_json(response["text"]), "tokens": tokens}
    return Response(**response | read)


# A ranking or a skip settles a task for one labeler; others may still want it.
DECIDED = """EXISTS (SELECT 1 FROM live_label l WHERE l.task = t.id AND l.account = :account
    AND l.kind IN ('ranking', 'skip'))"""
# Asked before NEXT: who reloads the page gets the same task.
IN_HAND = f"""SELECT t.* FROM lease s JOIN task t ON t.id = s.task
    WHERE s.account = :account AND s.expires > :now AND NOT {DECIDED}
    ORDER BY s.expires DESC LIMIT 1"""
# Labels and leases of others count together, so that no more work on it than are wanted.
NEXT = f"""SELECT t.* FROM task t
    WHERE t.kind = 'rank' AND t.labels < t.wanted AND NOT {DECIDED}
    AND t.wanted > t.labels + (SELECT COUNT(*) FROM lease s
        WHERE s.task = t.id AND s.account <> :account AND s.expires > :now)
    ORDER BY t.round DESC, t.priority DESC, t.number LIMIT 1"""


def lease_task(
    database: Database, account: Account, *, seconds: float = LEASE_SECONDS
) -> Task | None:
    """The task this labeler has in hand, or the next that needs a label; None if none does."""
    now = time.time()
    with database.write() as rows:
        tasks = rows(IN_HAND, account=account.id, now=now) or rows(
            NEXT, account=account.id, now=now
        )
        if not tasks:
            return None
        lease(rows, tasks[0]["id"], account, now + seconds)
        return parse_task(tasks[0])


def lease(rows: Rows, task: str, account: Account, expires: float) -> None:
    """Give a task into the hands of a labeler, or leave it there for longer."""
    rows(
        """INSERT INTO lease VALUES (:task, :account, :expires)
            ON CONFLICT (task, account) DO UPDATE SET expires = :expires""",
        task=task,
        account=account.id,
        expires=expires,
    )


def task_in_hand(database: Database, task: str, account: Account) -> Task | None:
    """A task that this labeler may see: theirs, or one they have in hand or have labelled."""
    with database.read() as rows:
        return visible_task(rows, task, account)


def visible_task(rows: Rows, task: str, account: Account) -> Task | None:
    """A task that is in this labeler's hands, was labelled by them or is theirs; None otherwise."""
    tasks = rows(
        """SELECT * FROM task t WHERE id = :task AND (owner = :account
            OR EXISTS (SELECT 1 FROM lease WHERE task = :task AND account = :account)
            OR EXISTS (SELECT 1 FROM label WHERE task = :task AND account = :account))""",
        task=task,
        account=account.id,
    )
    return parse_task(tasks[0]) if tasks else None


def count_open(database: Database) -> int:
    """Tasks that still want a label: how long the queue is."""
    with database.read() as rows:
        sql = "SELECT COUNT(*) AS n FROM task WHERE labels < wanted AND kind = 'rank'"
        return rows(sql)[0]["n"]


def prompts_asked(database: Database) -> list[str | Conversation]:
    """The prompt of every task of the queue, in order."""
    with database.read() as rows:
        tasks = rows("SELECT body FROM task WHERE kind = 'rank' ORDER BY number")
    return [from_json(parse_body(row["body"])["prompt"]) for row in tasks]


def example_prompts(database: Database, *, most: int, longest: int) -> list[str]:
    """Short prompts that were asked, newest first: what the policy can be asked in the chat."""
    # Twenty times as many, as long ones and dialogues among them are left out.
    sql = "SELECT body FROM task WHERE kind = 'rank' ORDER BY number DESC LIMIT :some"
    with database.read() as rows:
        tasks = rows(sql, some=20 * most)
    prompts = [parse_body(row["body"])["prompt"] for row in tasks]
    short = [prompt for prompt in prompts if isinstance(prompt, str) and len(prompt) <= longest]
    return list(dict.fromkeys(short))[:most]


def open_tasks(database: Database, *, most: int) -> list[Task]:
    """The oldest tasks that still want a label."""
    sql = "SELECT * FROM task WHERE labels < wanted AND kind = 'rank' ORDER BY number LIMIT :most"
    with database.read() as rows:
        return [parse_task(row) for row in rows(sql, most=most)]


def rounds_asked(database: Database) -> set[int]:
    """Rounds whose policies have tasks in the queue, labelled or not."""
    with database.read() as rows:
        return {row["round"] for row in rows("SELECT DISTINCT round FROM task WHERE kind = 'rank'")}
