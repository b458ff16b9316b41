"""The labelling pages: one task at a time, skipping, taking back, and the guide."""

import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from rlhf_jax.errors import InputError
from rlhf_jax.feedback import queue, submissions
from rlhf_jax.feedback.fields import PROMPT_FLAGS, QUALITY, RESPONSE_FLAGS, SKIP_REASONS, USE_CASES
from rlhf_jax.feedback.standing import read_standing
from rlhf_jax.feedback.store import StoreUnavailable
from rlhf_jax.feedback.web import forms, reading
from rlhf_jax.feedback.web.render import GUIDE_COOKIE
from rlhf_jax.feedback.web.site import Visit, status_and_message

GUIDE_SECONDS = 365 * 86400
HAPPENED = ("saved", "skipped", "undone-ranking", "undone-skip", "undone-nothing")
"""What the page may say that it did last: ids of the catalogs."""


def label(visit: Visit) -> Response:
    """The task in hand, or the next one; as it was before it was taken back, if it was."""
    task = queue.lease_task(visit.database, visit.labeler, seconds=visit.site.lease_seconds)
    if task is None:
        return visit.page("empty.html", **around(visit))
    entered = forms.blank(_texts(visit, task))
    before = submissions.taken_back(visit.database, visit.labeler, task.id)
    if before is not None:
        entered = forms.entered_before(*before, _texts(visit, task))
    return task_page(visit, task, entered=entered)


def task_page(visit: Visit, task: queue.Task, *, entered: forms.Entered, **options) -> Response:
    """The form for a task, filled in; ``error`` says why it was not stored."""
    order = task.order(visit.labeler)
    values: dict[str, Any] = (
        around(visit)
        | {
            "task": task,
            "asked": reading.asked(task.prompt),
            "long": reading.is_long(task.prompt),
            "shown": [reading.continued(task.prompt, task.responses[n].text) for n in order],
            "entered": entered,
            "submission": secrets.token_hex(16),
            # Rounded down: whoever answers at once must not have answered before it was asked.
            "started": f"{math.floor(10 * time.time()) / 10:.1f}",
            "quality": QUALITY,
            "response_flags": RESPONSE_FLAGS,
            "prompt_flags": PROMPT_FLAGS,
            "use_cases": USE_CASES,
            "skip_reasons": SKIP_REASONS,
            "error": "",
            "status": 200,
        }
        | options
    )
    return visit.page("label.html", **values)


def around(visit: Visit) -> dict:
    """What stands around the task: what happened last, how far the next round is, the guide."""
    query = visit.request.query_params
    seen = visit.request.cookies.get(GUIDE_COOKIE) == visit.site.guide.version
    return {
        "happened": query.get("did") if query.get("did") in HAPPENED else "",
        "saved": query.get("task", ""),
        "standing": read_standing(visit.database),
        "guide_open": not seen or "guide" in query,
        **guide_page(visit),
    }


def guide_page(visit: Visit) -> dict:
    """The guide as the page shows it, in the language of the visit."""
    return {"guide": visit.site.guide.pages[visit.language]}


def _texts(visit: Visit, task: queue.Task) -> list[str]:
    order = task.order(visit.labeler)
    return [reading.continued(task.prompt, task.responses[n].text).text for n in order]


def store(visit: Visit) -> Response:
    """A ranking, or with the button "skip" the reason for none.

    What cannot be stored comes back filled in, with the reason.
    """
    task = queue.task_in_hand(visit.database, visit.field("task"), visit.labeler)
    if task is None:
        raise InputError("task: it is not in your hands any more")
    entered = forms.entered_in(visit.form, _texts(visit, task))
    if visit.field("action") == "fill":
        return task_page(visit, task, entered=forms.ranked_by_ratings(entered))
    try:
        kind, body = _label(visit, entered)
        submissions.submit(
            visit.database,
            visit.labeler,
            submission=visit.field("submission"),
            task=task.id,
            kind=kind,
            body=body,
            clean=visit.site.clean,
        )
    except (InputError, StoreUnavailable) as error:
        if visit.wants_json:
            raise
        status, message = status_and_message(visit.request, error)
        # It may be stored all the same: with the same id a second try makes no second label.
        again = {"submission": visit.field("submission")} if status >= 500 else {}
        return task_page(visit, task, entered=entered, error=message, status=status, **again)
    return visit.go(f"/label?did={'skipped' if kind == 'skip' else 'saved'}&task={task.id}")


def _label(visit: Visit, entered: forms.Entered) -> tuple[str, Mapping]:
    if visit.field("action") == "skip":
        return "skip", {"reason": entered.reason, "note": entered.note}
    return "ranking", forms.ranking_body(entered, started=visit.field("started"))


def undo(visit: Visit) -> Response:
    """The newest decision taken back; its task comes again, filled in as it was.

    A redirect: to load that page again takes nothing more back.
    """
    undone = submissions.undo(visit.database, visit.labeler)
    return visit.go(f"/label?did=undone-{undone[1] if undone else 'nothing'}")


def put_guide_away(visit: Visit) -> Response:
    """Until its text changes, or somebody asks for it."""
    response = visit.go("/label")
    version = visit.site.guide.version
    visit.site.set_cookie(response, GUIDE_COOKIE, version, seconds=GUIDE_SECONDS)
    return response
