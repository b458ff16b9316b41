"""For the administrator: invites, revocation, deletion, exports."""

import time
from http import HTTPStatus

from starlette.responses import Response

from rlhf_jax.errors import InputError
from rlhf_jax.feedback import accounts
from rlhf_jax.feedback.formats import WRITERS, to_lines
from rlhf_jax.feedback.labels import read_labels
from rlhf_jax.feedback.members import members, open_invites
from rlhf_jax.feedback.web.site import Visit


def team(visit: Visit, *, link: str = "") -> Response:
    """Who is in the team, who is invited, and the exports."""
    return visit.page(
        "team.html",
        members=members(visit.database),
        invites=open_invites(visit.database),
        now=time.time(),
        link=link,
        formats=list(WRITERS),
    )


def act(visit: Visit) -> Response:
    """What the form's button says."""
    action, who = visit.field("action"), visit.field("account")
    if action == "invite":
        base = visit.site.url or str(visit.request.base_url)
        token = accounts.invite(visit.database)
        return team(visit, link=f"{base.rstrip('/')}/join?invite={token}")
    if action == "close-invites":
        accounts.revoke_invites(visit.database)
    elif action == "revoke":
        accounts.revoke(visit.database, who)
    elif action == "delete" and visit.field("sure") == "yes" and who != accounts.ADMIN:
        accounts.delete_account(visit.database, who)
    return visit.go("/team")


def export(visit: Visit) -> Response:
    """All labels in one of the formats, as a download."""
    name = visit.request.query_params.get("format", "")
    if name not in WRITERS:
        raise InputError(f"format: found {name!r}, expected one of {', '.join(WRITERS)}")
    lines = to_lines(WRITERS[name](read_labels(visit.database)))
    return Response(
        lines.encode(),
        HTTPStatus.OK,
        {"content-disposition": f'attachment; filename="{name}.jsonl"'},
        "application/jsonl; charset=utf-8",
    )
