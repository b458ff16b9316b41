"""The chat page's conversations. The server writes what a person said; another process answers.

A turn has the person's message and, when a policy has answered, a task of kind "chat" with its
answers: which is better, thumbs and corrections are labels of that task.
"""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.chat import Conversation, Message, as_json, as_text
from rlhf_jax.feedback.accounts import Account
from rlhf_jax.feedback.queue import NewTask, Response, Task, insert_task, parse_task
from rlhf_jax.feedback.store import Database
from rlhf_jax.feedback.texts import from_json, parse_body

MOST_WAITING = 3
"""Messages of one person that may wait for an answer."""


class Turn(NamedTuple):
    """A message of a person, with the answers to it."""

    id: str
    conversation: str
    message: str
    state: str
    """waiting, done, or failed."""
    task: Task | None
    labels: list[dict[str, Any]]
    """What this person has said of the answers, in order: kind and body."""


class Question(NamedTuple):
    """What a policy is to answer."""

    turn: str
    account: str
    prompt: str | Conversation


def say(
    database: Database, account: Account, conversation: str, message: str, *, dialogue: bool
) -> str | None:
    """Store a message; None if too many of this person's wait already.

    Its prompt is the message alone, or with ``dialogue`` the conversation, with the answers liked
    best so far.
    """
    prompt: str | Conversation = message
    if dialogue:
        # A message that nobody has answered is no part of the dialogue.
        turns = [turn for turn in read_turns(database, account, conversation) if turn.task]
        said = [each for turn in turns for each in _said(turn)]
        prompt = (*said, Message("user", message))
    with database.write() as rows:
        waiting = "SELECT COUNT(*) AS n FROM turn WHERE account = :a AND state = 'waiting'"
        if rows(waiting, a=account.id)[0]["n"] >= MOST_WAITING:
            return None
        turn = secrets.token_hex(8)
        rows(
            """INSERT INTO turn VALUES (:id, (SELECT COALESCE(MAX(number), 0) + 1 FROM turn),
                :conversation, :account, 'waiting', :now, NULL, :body)""",
            id=turn,
            conversation=conversation,
            account=account.id,
            now=time.time(),
            body=json.dumps({"message": message, "prompt": as_json(prompt)}),
        )
    return turn


def _said(turn: Turn) -> Conversation:
    answer = as_text(preferred(turn)).strip()
    return Message("user", turn.message), Message("assistant", answer)


def waiting(database: Database) -> list[Question]:
    """Messages that no policy has answered, oldest first."""
    with database.read() as rows:
        turns = rows("SELECT id, account, body FROM turn WHERE state = 'waiting' ORDER BY number")
    return [
        Question(row["id"], row["account"], from_json(parse_body(row["body"])["prompt"]))
        for row in turns
    ]


def answer(
    database: Database,
    question: Question,
    responses: Sequence[Response],
    *,
    round: int,
    sampling: dict[str, Any],
) -> None:
    """Store a policy's answers; equal ones are kept once."""
    distinct = list({response.text: response for response in responses}.values())
    with database.write() as rows:
        sql = "SELECT 1 FROM turn WHERE id = :id AND state = 'waiting'"
        if not rows(sql, id=question.turn):
            return  # deleted on request meanwhile
        task = NewTask(question.prompt, distinct, round=round, sampling=sampling)
        name = insert_task(rows, task, kind="chat", owner=question.account)
        rows(
            "UPDATE turn SET state = 'done', task = :task WHERE id = :id",
            task=name,
            id=question.turn,
        )


def give_up(database: Database, question: Question) -> None:
    """Mark a question that could not be answered."""
    with database.write() as rows:
        rows("UPDATE turn SET state = 'failed' WHERE id = :id", id=question.turn)


def read_turns(database: Database, account: Account, conversation: str) -> list[Turn]:
    """This person's conversation, in order."""
    with database.read() as rows:
        turns = rows(
            """SELECT * FROM turn WHERE account = :account AND conversation = :conversation
                ORDER BY number""",
            account=account.id,
            conversation=conversation,
        )
        tasks, labels = {}, {}
        for turn in turns:
            if turn["task"] is None:
                continue
            task = rows("SELECT * FROM task WHERE id = :id", id=turn["task"])
            tasks[turn["id"]] = parse_task(task[0])
            label_rows = rows(
                "SELECT kind, body FROM live_label WHERE task = :task ORDER BY number",
                task=turn["task"],
            )
            labels[turn["id"]] = [
                (label["kind"], parse_body(label["body"])) for label in label_rows
            ]
    return [
        Turn(
            turn["id"],
            turn["conversation"],
            parse_body(turn["body"])["message"],
            turn["state"],
            tasks.get(turn["id"]),
            [{"kind": kind, "body": body} for kind, body in labels.get(turn["id"], ())],
        )
        for turn in turns
    ]


def preferred(turn: Turn) -> str | Conversation:
    """The answer that a conversation goes on from.

    The newest correction, else the one ranked best, else the first.
    """
    best = 0
    for label in turn.labels:
        if label["kind"] == "ranking":
            best = label["body"]["ranks"].index(0)
    # A correction is the person's own words, and comes before every rank.
    for label in turn.labels[::-1]:
        if label["kind"] == "demonstration":
            return label["body"]["text"]
    assert turn.task is not None, "a turn that is done has answers"
    return turn.task.responses[best].text


class Talk(NamedTuple):
    """One of a person's conversations, for a list of them."""

    name: str
    first: str
    """Its first message."""
    turns: int
    newest: float
    """When the last message was written."""


def talks(database: Database, account: Account, *, most: int) -> list[Talk]:
    """This person's conversations, the one that they last wrote in first."""
    with database.read() as rows:
        talk_rows = rows(
            """SELECT g.*, t.body FROM (
                    SELECT conversation AS name, MIN(number) AS start, MAX(number) AS stop,
                        COUNT(*) AS turns, MAX(created) AS newest
                    FROM turn WHERE account = :account GROUP BY conversation) g
                JOIN turn t ON t.number = g.start ORDER BY g.stop DESC LIMIT :most""",
            account=account.id,
            most=most,
        )
    return [
        Talk(row["name"], parse_body(row["body"])["message"], row["turns"], row["newest"])
        for row in talk_rows
    ]


def newest_conversation(database: Database, account: Account) -> str | None:
    """The conversation of the newest message of a person, or None."""
    with database.read() as rows:
        newest = rows(
            "SELECT conversation FROM turn WHERE account = :a ORDER BY number DESC LIMIT 1",
            a=account.id,
        )
    return newest[0]["conversation"] if newest else None
