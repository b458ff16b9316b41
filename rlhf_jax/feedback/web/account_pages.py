"""Coming in and going out: tokens, invites, one's own account, the language."""

from http import HTTPStatus

from starlette.responses import Response

from rlhf_jax.errors import InputError
from rlhf_jax.feedback import accounts
from rlhf_jax.feedback.web.render import LANGUAGE_COOKIE, LANGUAGES
from rlhf_jax.feedback.web.security import check_origin
from rlhf_jax.feedback.web.site import Visit

PAGES = ("/label", "/chat", "/dashboard", "/team", "/account", "/enter", "/join")
LANGUAGE_SECONDS = 365 * 86400


def home(visit: Visit) -> Response:
    return visit.redirect("/label" if visit.account else "/enter")


def enter(visit: Visit) -> Response:
    """Sign in with a token, from a link or typed."""
    if visit.request.method == "POST":
        check_origin(visit.request, visit.site.url)
    token = visit.field("token") or visit.request.query_params.get("token", "")
    if not token:
        return visit.page("signin.html", failed=False)
    account = accounts.by_token(visit.database, token.strip())
    if account is None:
        return visit.page("signin.html", status=HTTPStatus.UNAUTHORIZED, failed=True)
    # A page, not a redirect: a SameSite=Strict cookie is not sent along a redirect that another
    # site's link began.
    session = accounts.start_session(visit.database, account)
    return visit.remember(visit.page("entered.html", account=account), session)


def join(visit: Visit) -> Response:
    """Make an account with an invite; its own token is shown once."""
    token = visit.field("invite") or visit.request.query_params.get("invite", "")
    if not accounts.is_open(visit.database, token):
        message = visit.t("join.closed")
        return visit.page("error.html", status=HTTPStatus.NOT_FOUND, message=message)
    if visit.request.method == "GET":
        return visit.page("join.html", invite=token, error="", name="")
    check_origin(visit.request, visit.site.url)
    name = visit.field("name")
    try:
        made = accounts.accept(visit.database, token, name)
    except InputError as error:
        message = visit.t("error.input", why=str(error))
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return visit.page("join.html", status=status, invite=token, error=message, name=name)
    if made is None:
        message = visit.t("join.closed")
        return visit.page("error.html", status=HTTPStatus.NOT_FOUND, message=message)
    account, own = made
    session = accounts.start_session(visit.database, account)
    return visit.remember(visit.page("joined.html", account=account, token=own), session)


def leave(visit: Visit) -> Response:
    accounts.end_session(visit.database, visit.session)
    response = visit.redirect("/enter")
    visit.site.forget_session(response)
    return response


def account(visit: Visit) -> Response:
    alias = accounts.pseudonym(visit.site.secret, visit.account.id)
    return visit.page("account.html", pseudonym=alias)


def delete_own(visit: Visit) -> Response:
    """Everything this labeler has entered, deleted on their request."""
    if visit.account.is_admin or visit.field("sure") != "yes":
        return account(visit)
    accounts.delete_account(visit.database, visit.account.id)
    response = visit.page("error.html", account=None, message=visit.t("account.deleted"))
    visit.site.forget_session(response)
    return response


def language(visit: Visit) -> Response:
    """Remember the language and go back to the page it was chosen on."""
    chosen, back = visit.field("language"), visit.field("back")
    response = visit.redirect(back if back in PAGES else "/")
    if chosen in LANGUAGES:
        visit.site.set_cookie(response, LANGUAGE_COOKIE, chosen, seconds=LANGUAGE_SECONDS)
    return response
