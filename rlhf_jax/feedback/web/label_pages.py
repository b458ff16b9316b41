"""The labelling pages: one task at a time, skipping, taking back."""

import secrets
import time
from collections.abc import Mapping

from starlette.responses import Response

from rlhf_jax.data.chat import as_text
from rlhf_jax.errors import InputError
from rlhf_jax.feedback import queue, submissions
from rlhf_jax.feedback.database import StoreUnavailable
from rlhf_jax.feedback.fields import PROMPT_FLAGS, QUALITY, RESPONSE_FLAGS, SKIP_REASONS, USE_CASES
from rlhf_jax.feedback.web import forms
from rlhf_jax.feedback.web.site import Visit, describe


def label(visit: Visit) -> Response:
    """The task in hand, or the next one."""
    task = queue.take_task(visit.database, visit.account, seconds=visit.site.lease_seconds)
    if task is None:
        return visit.page("empty.html", saved=visit.request.query_params.get("saved", ""))
    return show(visit, task)


def show(visit: Visit, task: queue.Task, **options) -> Response:
    """The form for a task; ``entered`` fills it, ``error`` says why it was not stored."""
    order = task.order(visit.account)
    texts = forms.shown(task.responses, order)
    answers = [as_text(task.responses[n].text) for n in order]
    joined = [forms.goes_on(as_text(task.prompt), answer) for answer in answers]
    options = {"entered": forms.blank(texts), "error": "", "status": 200} | options
    return visit.page(
        "label.html",
        task=task,
        asked=forms.asked(task.prompt),
        joined=joined,
        submission=options.pop("submission", secrets.token_hex(16)),
        started=f"{time.time():.1f}",
        saved=visit.request.query_params.get("saved", ""),
        quality=QUALITY,
        response_flags=RESPONSE_FLAGS,
        prompt_flags=PROMPT_FLAGS,
        use_cases=USE_CASES,
        skip_reasons=SKIP_REASONS,
        **options,
    )


def store(visit: Visit) -> Response:
    """A ranking, or with the button "skip" the reason for none. What cannot be stored comes back
    filled in, with the reason."""
    task = queue.read_task(visit.database, visit.field("task"), visit.account)
    if task is None:
        raise InputError("task: it is not in your hands any more")
    texts = forms.shown(task.responses, task.order(visit.account))
    entered = forms.entered_in(visit.form, texts)
    try:
        kind, body = _label(visit, entered)
        submissions.submit(
            visit.database,
            visit.account,
            submission=visit.field("submission"),
            task=task.id,
            kind=kind,
            body=body,
            clean=visit.site.clean,
        )
    except (InputError, StoreUnavailable) as error:
        if visit.wants_json:
            raise
        status, message = describe(visit.request, error)
        again = {"submission": visit.field("submission")} if status >= 500 else {}
        return show(visit, task, entered=entered, error=message, status=status, **again)
    return visit.go(f"/label?saved={task.id}")


def _label(visit: Visit, entered: forms.Entered) -> tuple[str, Mapping]:
    if visit.field("action") == "skip":
        return "skip", {"reason": entered.reason, "note": entered.note}
    return "ranking", forms.ranking_body(entered, started=visit.field("started"))


def undo(visit: Visit) -> Response:
    """The newest decision taken back; its task comes again, filled in as it was."""
    taken_back = submissions.undo(visit.database, visit.account)
    if taken_back is None:
        return visit.go("/label")
    if visit.wants_json:
        return visit.go("/label")
    task, kind, body = taken_back
    texts = forms.shown(task.responses, task.order(visit.account))
    return show(visit, task, entered=forms.entered_before(kind, body, texts))
