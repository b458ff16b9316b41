"""Talking to the current policy; what people say of its answers is stored as labels."""

import hmac
import re
import secrets
import time
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from rlhf_jax.data.chat import as_text
from rlhf_jax.errors import InputError
from rlhf_jax.feedback import conversation as talk
from rlhf_jax.feedback import queue, submissions
from rlhf_jax.feedback.fields import TEXT_LIMIT, check_text
from rlhf_jax.feedback.figures import read_status
from rlhf_jax.feedback.web.forms import LETTERS, parse_number
from rlhf_jax.feedback.web.site import Visit

CONVERSATION = re.compile("[0-9A-Za-z]{1,64}")
ANSWERER_SECONDS = 60
"""An answering process that has said nothing for so long is taken for gone."""
TALKS = 50
"""Earlier conversations that are listed."""
EXAMPLES, EXAMPLE_LENGTH = 3, 160
"""Prompts that a new conversation offers, and their most characters."""


def chat(visit: Visit) -> Response:
    """A conversation: the one that is named, else the newest."""
    query = visit.request.query_params
    name = query.get("conversation", "")
    if not CONVERSATION.fullmatch(name):
        name = talk.newest_conversation(visit.database, visit.labeler) or secrets.token_hex(8)
    return _page(visit, name, message=query.get("message", "")[:TEXT_LIMIT])


def _page(visit: Visit, name: str, *, message: str, error: str = "", status: int = 200) -> Response:
    turns = talk.read_turns(visit.database, visit.labeler, name)
    values: dict[str, Any] = {
        "conversation": name,
        "turns": [shown(visit, turn) for turn in turns],
        "answerer": _answerer(visit),
        "status": status,
    }
    # The page's script asks for these alone, and what somebody is typing stays as it is.
    if visit.request.query_params.get("part") == "turns":
        return visit.page("turns.html", **values)
    return visit.page(
        "chat.html",
        **values,
        message=message,
        error=error,
        talks=talk.talks(visit.database, visit.labeler, most=TALKS),
        examples=[] if turns else _examples(visit),
        fresh=secrets.token_hex(8),
        dialogue=visit.site.dialogue,
    )


def _answerer(visit: Visit) -> dict | None:
    """What the answering process last said of itself; None if there is none."""
    status = read_status(visit.database).get("answerer")
    gone = status is None or time.time() - status["updated"] > ANSWERER_SECONDS
    return None if gone else status


def _examples(visit: Visit) -> list[str]:
    return queue.example_prompts(visit.database, most=EXAMPLES, longest=EXAMPLE_LENGTH)


def shown(visit: Visit, turn: talk.Turn) -> dict:
    """A turn as the page shows it: answers in this person's order, with what they said of each."""
    if turn.task is None:
        return {"turn": turn, "answers": [], "better": None, "tied": False}
    order = turn.task.order(visit.labeler)
    ranks, thumbs, corrections = None, {}, {}
    for label in turn.labels:
        body = label["body"]
        if label["kind"] == "ranking":
            ranks = body["ranks"]
        elif label["kind"] == "thumb":
            thumbs[body["response"]] = body["up"]
        elif label["kind"] == "demonstration":
            corrections[body["corrects"]] = body["text"]
    answers = [
        {
            "letter": letter,
            "place": place,
            "text": as_text(turn.task.responses[n].text).strip(),
            "thumb": thumbs.get(n),
            "correction": corrections.get(n, ""),
            "best": ranks is not None and ranks[n] == 0,
            "submission": _submission(visit, turn, place),
        }
        for place, (letter, n) in enumerate(zip(LETTERS, order, strict=False))
    ]
    tied = ranks is not None and len(set(ranks)) == 1
    return {"turn": turn, "answers": answers, "better": ranks, "tied": tied}


def _submission(visit: Visit, turn: talk.Turn, place: int) -> str:
    """The same however often the turn is drawn, until something has been said of it."""
    named = f"turn {turn.id} {place} {len(turn.labels)}"
    return hmac.new(visit.site.secret, named.encode(), "sha256").hexdigest()[:32]


def act(visit: Visit) -> Response:
    """A message, or an opinion of an answer."""
    name = visit.field("conversation")
    if not CONVERSATION.fullmatch(name):
        raise InputError("conversation: expected up to 64 letters and digits")
    if visit.field("action") == "say":
        return _say(visit, name)
    place = parse_number("place", visit.field("place")) if visit.field("place") else None
    body: dict = {
        "better": lambda: {"ranks": _ranks(visit, place)},
        "up": lambda: {"response": place, "up": True},
        "down": lambda: {"response": place, "up": False},
        "correct": lambda: {"text": visit.field("text"), "corrects": place},
    }.get(visit.field("action"), dict)()
    kinds = {"better": "ranking", "up": "thumb", "down": "thumb", "correct": "demonstration"}
    task = visit.field("task")
    submissions.submit(
        visit.database,
        visit.labeler,
        # One form has several buttons: each is an opinion of its own.
        submission=visit.field("submission") + visit.field("action"),
        task=task,
        kind=kinds.get(visit.field("action"), ""),
        body=body,
        clean=visit.site.clean,
    )
    return visit.go(f"/chat?conversation={name}#task-{task}")


def _ranks(visit: Visit, place: int | None) -> list[int]:
    """The chosen answer above all others; without one, all alike."""
    task = queue.task_in_hand(visit.database, visit.field("task"), visit.labeler)
    count = len(task.responses) if task else 0
    return [0 if place is None or n == place else 1 for n in range(count)]


def _say(visit: Visit, name: str) -> Response:
    message = check_text("message", visit.field("message"), TEXT_LIMIT, visit.site.clean)
    if not message.strip():
        return visit.go(f"/chat?conversation={name}")
    turn = talk.say(visit.database, visit.labeler, name, message, dialogue=visit.site.dialogue)
    if turn is None:
        error, status = visit.t("chat.too_many"), HTTPStatus.TOO_MANY_REQUESTS
        if visit.wants_json:
            return JSONResponse({"error": error}, status)
        return _page(visit, name, message=message, error=error, status=status)
    return visit.go(f"/chat?conversation={name}#newest")
