"""All labels at one moment, as training rows: what ``update``, the dashboard and exports read."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.chat import Conversation, as_text
from rlhf_jax.data.rows import without_gaps
from rlhf_jax.feedback.accounts import pseudonym, site_secret
from rlhf_jax.feedback.queue import Response, Task, parse_task
from rlhf_jax.feedback.store import Database
from rlhf_jax.feedback.texts import has_half, opinion, parse_body

HELDOUT = 0.15
"""Share of the prompts whose rankings no reward model learns from."""


class Label(NamedTuple):
    """What one labeler said of one task."""

    number: int
    task: Task
    labeler: str
    """Pseudonym."""
    account: str
    kind: str
    created: float
    body: dict[str, Any]
    repaired: bool
    """Whether it or its task held half a character, now U+FFFD."""


class Ranking(NamedTuple):
    """One labeler's order of K answers."""

    task: str
    prompt: str | Conversation
    responses: tuple[Response, ...]
    ranks: tuple[int, ...]
    labeler: str
    round: int
    source: str
    """ranking, thumbs or correction."""


class Written(NamedTuple):
    """An answer that a person wrote."""

    prompt: str | Conversation
    completion: str
    labeler: str


def read_labels(database: Database) -> list[Label]:
    """Labels that stand, in the order they came, from one snapshot, with their tasks.

    Of several thumbs on one answer by one labeler, and of several corrections, the newest stands.
    """
    secret = site_secret(database)
    with database.read() as rows:
        sql = "SELECT * FROM task WHERE id IN (SELECT task FROM label)"
        tasks = {row["id"]: (parse_task(row), has_half(row["body"])) for row in rows(sql)}
        label_rows = rows("SELECT * FROM live_label ORDER BY number")
    labels = [
        Label(
            row["number"],
            tasks[row["task"]][0],
            pseudonym(secret, row["account"]),
            row["account"],
            row["kind"],
            row["created"],
            parse_body(row["body"]),
            tasks[row["task"]][1] or has_half(row["body"]),
        )
        for row in label_rows
    ]
    newest = {opinion(each.task.id, each.account, each.kind, each.body): each for each in labels}
    return sorted(newest.values(), key=lambda label: label.number)


def version(database: Database) -> tuple[int, ...]:
    """Changes whenever ``read_labels`` would give something else; cheap to ask."""
    with database.read() as rows:
        counts = rows(
            """SELECT (SELECT COALESCE(MAX(number), 0) FROM label) AS labels,
                (SELECT COUNT(*) FROM label) AS kept,
                (SELECT COUNT(*) FROM retraction) AS retracted,
                (SELECT COUNT(*) FROM deletion) AS deleted"""
        )
    return tuple(counts[0].values())


def rankings(labels: Sequence[Label]) -> list[Ranking]:
    """Everything that orders answers: rankings, a thumb up beside one down, corrections.

    A correction is better than the answer it corrects.
    """
    ranked = []
    thumbs: dict[tuple[str, str], dict[int, bool]] = {}
    asked: dict[tuple[str, str], Label] = {}
    for label in labels:
        if label.kind == "ranking":
            ranked.append(_ranking(label, label.task.responses, label.body["ranks"], "ranking"))
        elif label.kind == "thumb":
            key = label.task.id, label.labeler
            thumbs.setdefault(key, {})[label.body["response"]] = label.body["up"]
            asked[key] = label
        elif label.kind == "demonstration" and label.body["corrects"] is not None:
            corrected = label.task.responses[label.body["corrects"]]
            better = Response(spaced(label.task.prompt, label.body["text"]), "person")
            # A text that comes back unchanged is no better than itself.
            if better.text != corrected.text:
                ranked.append(_ranking(label, (better, corrected), (0, 1), "correction"))
    for key, ups in thumbs.items():
        # Thumbs that all point one way compare nothing.
        if len(set(ups.values())) == 2:
            responses = [asked[key].task.responses[n] for n in ups]
            ranks = [0 if up else 1 for up in ups.values()]
            ranked.append(_ranking(asked[key], responses, ranks, "thumbs"))
    return ranked


def _ranking(label: Label, responses, ranks, source: str) -> Ranking:
    return Ranking(
        label.task.id,
        label.task.prompt,
        tuple(responses),
        without_gaps(ranks),
        label.labeler,
        label.task.round,
        source,
    )


def written(labels: Sequence[Label]) -> list[Written]:
    """Answers that people wrote: demonstrations beside a ranking, and corrections in the chat."""
    demonstrations = []
    for label in labels:
        text = label.body.get("demonstration" if label.kind == "ranking" else "text")
        if label.kind in ("ranking", "demonstration") and text:
            prompt = label.task.prompt
            demonstrations.append(Written(prompt, spaced(prompt, text), label.labeler))
    return demonstrations


def spaced(prompt: str | Conversation, text: str) -> str:
    """``text`` with the space between prompt and response that sampled answers begin with."""
    before = as_text(prompt)
    apart = not before or before[-1].isspace() or text[:1].isspace()
    return text if apart else f" {text}"


def is_heldout(prompt: str | Conversation) -> bool:
    """Whether rankings of this prompt are kept from training: a property of the prompt alone."""
    digest = hashlib.sha256(b"held out " + as_text(prompt).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 < HELDOUT
