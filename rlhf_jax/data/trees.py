"""Trees of messages, as OpenAssistant collected them: several people answer one message.

Rows are messages that name the one that they answer (``message_id``, ``parent_id``, ``role``,
``text``), or whole trees, in which a message has its ``replies``. Of a message of a person and its
answers one row is made, as the other readers know it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.files import Origin
from rlhf_jax.data.messages import ROLES
from rlhf_jax.data.rows import (
    Account,
    Comparison,
    Demonstration,
    LeftOut,
    OtherKind,
    Prompt,
    Row,
)
from rlhf_jax.errors import InputError

MESSAGE = frozenset(("message_id", "parent_id", "role", "text"))
ORPHAN = "answers a message that is left out, or is not there"
DELETED = "deleted, or refused by reviewers"
Placed = tuple[Origin, dict]


class Node(NamedTuple):
    """A message with those that answer it."""

    origin: Origin
    message: Mapping[str, Any]
    replies: list["Node"]

    @property
    def is_answer(self) -> bool:
        """Whether the assistant says it."""
        return ROLES.get(str(self.message["role"]).lower()) == "assistant"

    @property
    def turn(self) -> dict[str, Any]:
        """As a message of a conversation."""
        return {"role": self.message["role"], "content": self.message["text"]}


def is_tree(row: Mapping[str, Any]) -> bool:
    """Whether a row is a message that may answer another one, or a tree of messages."""
    root = row.get("prompt")
    return row.keys() >= MESSAGE or (isinstance(root, dict) and {"role", "text"} <= root.keys())


def untangled(rows: Sequence[Placed], kind: type[Row], account: Account) -> Iterator[Placed]:
    """Rows of ``kind``, one for each message of a person that has what this kind learns from.

    Comparisons are of the answers that are ranked, a demonstration is the best of them (the first,
    if there are no ranks), a text each conversation to its end. Messages that are deleted or that
    reviewers refused are left out, and what answers them.
    """
    roots, made = _roots(rows, account), 0
    waiting: list[tuple[Node, tuple[Node, ...]]] = [(root, ()) for root in reversed(roots)]
    while waiting:
        node, before = waiting.pop()
        thread = (*before, node)
        waiting += [(reply, thread) for reply in reversed(node.replies)]
        row = _row(thread, kind)
        if row is not None:
            made += 1
            yield node.origin, row
    account.notes["messages of a tree: what is learnt are conversations in it"] += len(rows)
    if not made:
        file, name = rows[0][0].file, kind.__name__.lower()
        raise OtherKind(f"{file}: its trees of messages hold no {name}s")


def _row(thread: tuple[Node, ...], kind: type[Row]) -> dict[str, Any] | None:
    """What a message teaches after those before it; None where that is nothing of this kind."""
    node, turns = thread[-1], [each.turn for each in thread]
    answers = [reply for reply in node.replies if reply.is_answer]
    if kind is Prompt:
        return None if node.is_answer else {"prompt": turns}
    ranked = [each for each in answers if each.message.get("rank") is not None]
    if kind is Comparison:
        if len(ranked) < 2:
            return None
        ranks = [each.message["rank"] for each in ranked]
        texts = [each.message["text"] for each in ranked]
        return {"prompt": turns, "responses": texts, "ranks": ranks}
    if kind is Demonstration:
        if not answers:
            return None
        best = min(ranked, key=lambda each: each.message["rank"]) if ranked else answers[0]
        return {"prompt": turns, "completion": [best.turn]}
    return None if node.replies else {"messages": turns}


def _roots(rows: Sequence[Placed], account: Account) -> list[Node]:
    """The first message of each tree, with all that answer it and each other."""
    if not rows[0][1].keys() >= MESSAGE:
        for origin, row in rows:
            if not is_tree(row):
                raise InputError(f"{origin}: found no tree, expected one as in the first row")
        roots = [_nested(origin, row["prompt"], account) for origin, row in rows]
        return [root for root in roots if root is not None]
    nodes: dict[str, Node] = {}
    for origin, row in rows:
        if not row.keys() >= MESSAGE:
            raise InputError(
                f"{origin}: found the keys {', '.join(row)}, expected {', '.join(sorted(MESSAGE))} "
                "as in the first row"
            )
        if row["message_id"] in nodes:
            raise InputError(f"{origin}: the message_id {row['message_id']} stands twice")
        _check_message(origin, row)
        nodes[row["message_id"]] = Node(origin, row, [])
    roots = []
    for node in nodes.values():
        parent = node.message["parent_id"]
        if parent is None:
            roots.append(node)
        elif parent in nodes:
            nodes[parent].replies.append(node)
    kept = [root for root in roots if not _is_deleted(root.message)]
    reached, waiting = set(), list(kept)
    while waiting:
        node = waiting.pop()
        reached.add(node.message["message_id"])
        node.replies[:] = [x for x in node.replies if not _is_deleted(x.message)]
        waiting += node.replies
    for name, node in nodes.items():
        if name not in reached:
            why = DELETED if _is_deleted(node.message) else ORPHAN
            account.left_out.append(LeftOut(node.origin, why))
    return kept


def _nested(origin: Origin, message: Mapping[str, Any], account: Account) -> Node | None:
    _check_message(origin, message)
    if _is_deleted(message):
        account.left_out.append(LeftOut(origin, DELETED))
        return None
    replies = [_nested(origin, reply, account) for reply in message.get("replies") or ()]
    return Node(origin, message, [reply for reply in replies if reply is not None])


def _check_message(origin: Origin, message: Mapping[str, Any]) -> None:
    """Raise InputError for a rank or a verdict that is of another type, and so would mean another.

    As text, rank 10 comes before 9, and "False" is true. Tables in which some have no rank write a
    whole one as 1.0.
    """
    for name in ("deleted", "review_result"):
        value = message.get(name)
        if value is not None and not isinstance(value, bool):
            raise InputError(f"{origin}: {name} is {value!r}, expected true, false or null")
    rank = message.get("rank")
    is_whole = isinstance(rank, int | float) and not isinstance(rank, bool) and rank % 1 == 0
    if rank is not None and not (is_whole and rank >= 0):
        raise InputError(f"{origin}: rank is {rank!r}, expected a whole number from 0 on, or null")


def _is_deleted(message: Mapping[str, Any]) -> bool:
    return bool(message.get("deleted")) or message.get("review_result") is False
