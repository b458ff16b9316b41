"""Coming in and going out: tokens, invites, one's own account, the language."""

from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from rlhf_jax.errors import InputError
from rlhf_jax.feedback import accounts
from rlhf_jax.feedback.web.render import LANGUAGE_COOKIE, LANGUAGES
from rlhf_jax.feedback.web.site import Visit, signed_in_by

PAGES = ("/label", "/chat", "/dashboard", "/team", "/account", "/enter", "/join")
LANGUAGE_SECONDS = 365 * 86400
OFFER_SECONDS = 600
"""How long a sign-in waits to be taken up, or declined."""


def home(visit: Visit) -> Response:
    """To the next task, or to the door."""
    return visit.redirect("/label" if visit.account else "/enter")


def enter(visit: Visit) -> Response:
    """Sign in with a token, from a link or typed; over another account only if that is meant.

    A link may come from another site, whose request carries no SameSite=Strict cookie: who is
    signed in is seen only by a second request, from our own page. It also takes the token out of
    the address. What the first one leaves is a short session in a cookie of its own.
    """
    token = visit.field("token") or visit.request.query_params.get("token", "")
    if not token:
        return _take_up(visit)
    account = signed_in_by(visit.site, visit.request, token, visit.account)
    if account is None:
        return visit.page("signin.html", status=HTTPStatus.UNAUTHORIZED, failed=True)
    offered = accounts.start_session(visit.database, account, seconds=float(OFFER_SECONDS))
    response = visit.page("entered.html", account=None)
    if visit.request.method == "POST":
        response = visit.redirect("/enter")
    visit.site.set_cookie(response, visit.site.offer_cookie, offered, seconds=OFFER_SECONDS)
    return response


def _take_up(visit: Visit) -> Response:
    """Sign in as the account of the session that a token has opened."""
    offered = visit.request.cookies.get(visit.site.offer_cookie, "")
    account = accounts.by_session(visit.database, offered) if offered else None
    if account is None:
        return visit.page("signin.html", failed=False)
    action = visit.field("action") if visit.is_own_form else ""
    if visit.account not in (None, account) and action not in ("switch", "stay"):
        return visit.page("switch.html", other=account)
    accounts.end_session(visit.database, offered)
    response = visit.redirect("/label")
    if visit.account != account and action != "stay":
        response = _sign_in(visit, response, account)
    visit.site.forget(response, visit.site.offer_cookie)
    return response


def _sign_in(visit: Visit, response: Response, account: accounts.Account) -> Response:
    """In place of whom this browser was signed in as before."""
    # The old session ends: whoever had got hold of it must not come to be the new account.
    if visit.session:
        accounts.end_session(visit.database, visit.session)
    return visit.remember(response, accounts.start_session(visit.database, account))


def join(visit: Visit) -> Response:
    """Make an account with an invite; its own token is shown once."""
    token = visit.field("invite") or visit.request.query_params.get("invite", "")
    if not _is_open(visit, token):
        return _closed(visit)
    form: dict[str, Any] = {"invite": token, "error": "", "name": visit.field("name")}
    if visit.request.method == "GET":
        return visit.page("join.html", **form)
    if visit.account is not None and not visit.is_own_form:
        # Whoever was led here by another site sees first whose place the new account takes.
        return visit.page("join.html", status=HTTPStatus.CONFLICT, **form)
    try:
        accepted = accounts.accept(visit.database, token, form["name"])
    except InputError as error:
        form["error"] = visit.t("error.input", why=str(error))
        return visit.page("join.html", status=HTTPStatus.UNPROCESSABLE_ENTITY, **form)
    if accepted is None:
        return _closed(visit)
    account, own = accepted
    return _sign_in(visit, visit.page("joined.html", account=account, token=own), account)


def _is_open(visit: Visit, token: str) -> bool:
    """Whether an invite lets somebody in; one that does not is a failed credential."""
    who = (visit.client, visit.account and visit.account.id)
    if token:
        visit.site.limits.may_try(*who)
    is_open = bool(token) and accounts.is_open(visit.database, token)
    if token and not is_open:
        visit.site.limits.failed(*who)
    return is_open


def _closed(visit: Visit) -> Response:
    message = visit.t("join.closed")
    return visit.page("error.html", status=HTTPStatus.NOT_FOUND, message=message)


def leave(visit: Visit) -> Response:
    """Ends the session of this browser."""
    accounts.end_session(visit.database, visit.session)
    response = visit.redirect("/enter")
    visit.site.forget_session(response)
    return response


def account(visit: Visit) -> Response:
    """One's own account: pseudonym, token, deletion."""
    alias = accounts.pseudonym(visit.site.secret, visit.labeler.id)
    return visit.page("account.html", pseudonym=alias)


def delete_own(visit: Visit) -> Response:
    """Everything this labeler has entered, deleted on their request."""
    if visit.labeler.is_admin or visit.field("sure") != "yes":
        return account(visit)
    accounts.delete_account(visit.database, visit.labeler.id)
    response = visit.page("error.html", account=None, message=visit.t("account.deleted"))
    visit.site.forget_session(response)
    return response


def language(visit: Visit) -> Response:
    """Remember the language and go back to the page it was chosen on."""
    chosen, back = visit.field("language"), visit.field("back")
    # A form can be made to say any address: only pages of this site are gone back to.
    response = visit.redirect(back if back in PAGES else "/")
    if chosen in LANGUAGES:
        visit.site.set_cookie(response, LANGUAGE_COOKIE, chosen, seconds=LANGUAGE_SECONDS)
    return response
