"""The same queue for programs: JSON, with the account's token as bearer.

    GET  /api/task    -> {"task", "prompt", "responses"}, or {"task": null} if none is left
    POST /api/label   {"submission", "task", "kind", ...} -> {"stored": true}
    GET  /api/status  -> {"open", "labels", "wanted"}: tasks, labels, labels until the next round

Ranks and the like are in the order in which /api/task gave the answers. A conversation is given as
one string, each turn after Human: or Assistant:.
"""

import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rlhf_jax.data.chat import as_text
from rlhf_jax.errors import InputError
from rlhf_jax.feedback import queue, submissions
from rlhf_jax.feedback.fields import brief
from rlhf_jax.feedback.figures import read_status
from rlhf_jax.feedback.texts import check_whole
from rlhf_jax.feedback.web.site import Site, bearer, guarded


def endpoint(handler):
    """A request handler around ``(site, account, given) -> answer``, both JSON; errors are, too."""

    def answer(request: Request, body: bytes) -> Response:
        site: Site = request.app.state.site
        account = bearer(site, request)
        sent = _parse(body) if request.method == "POST" else {}
        return JSONResponse(handler(site, account, sent))

    return guarded(answer, lambda _, status, message: JSONResponse({"error": message}, status))


def _parse(body: bytes) -> dict:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"body: expected JSON ({error})") from None
    if not isinstance(sent, dict):
        raise InputError("body: expected a JSON object")
    check_whole("body", json.dumps(sent, ensure_ascii=False))
    return sent


@endpoint
def task(site: Site, account, sent: dict) -> dict:
    """The next task of this account, its answers in the order to rank them."""
    taken = queue.lease_task(site.database, account, seconds=site.lease_seconds)
    if taken is None:
        return {"task": None}
    responses = [as_text(taken.responses[n].text) for n in taken.order(account)]
    return {"task": taken.id, "prompt": as_text(taken.prompt), "responses": responses}


@endpoint
def label(site: Site, account, sent: dict) -> dict:
    """Store a label; ``again`` says that it was there already."""
    submission, task = sent.get("submission"), sent.get("task")
    if not isinstance(submission, str) or not isinstance(task, str):
        raise InputError("submission and task: expected text")
    kind = sent.get("kind", "ranking")
    if not isinstance(kind, str):
        raise InputError(f"kind: found {brief(kind)}, expected text")
    stored = submissions.submit(
        site.database,
        account,
        submission=submission,
        task=task,
        kind=kind,
        body=sent,
        clean=site.clean,
    )
    return {"stored": True, "again": not stored}


@endpoint
def status(site: Site, account, sent: dict) -> dict:
    """How many tasks are open, and how many labels there are and are wanted."""
    labels = submissions.count_labels(site.database)
    goal = read_status(site.database).get("updater", {}).get("goal", labels)
    return {
        "open": queue.count_open(site.database),
        "labels": labels,
        "wanted": max(goal - labels, 0),
    }
