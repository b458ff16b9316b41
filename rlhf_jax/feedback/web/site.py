"""What all pages share: settings, who is signed in, errors in words, answers as page or JSON."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import Scope

from rlhf_jax.errors import InputError
from rlhf_jax.feedback.accounts import SESSION_SECONDS, Account, by_session, by_token, site_secret
from rlhf_jax.feedback.labels import Label, read_labels, version
from rlhf_jax.feedback.queue import LEASE_SECONDS
from rlhf_jax.feedback.store import Database, StoreUnavailable
from rlhf_jax.feedback.submissions import AlreadyLabelled
from rlhf_jax.feedback.web.address import prefix_of
from rlhf_jax.feedback.web.forms import parse_form, value_of
from rlhf_jax.feedback.web.guide import GENERAL, Guide, task_guide
from rlhf_jax.feedback.web.limits import Limits, Refused, client_of
from rlhf_jax.feedback.web.render import choose_language, render, text_of
from rlhf_jax.feedback.web.security import check_origin, csrf_token, is_csrf
from rlhf_jax.text.personal_data import scrub_typed

LOG = logging.getLogger(__name__)
WANTED = "expected the header Authorization: Bearer TOKEN"


@dataclass(frozen=True)
class Site:
    """The store and the settings of one server."""

    database: Database
    url: str = ""
    """Where labelers find the site, behind a proxy and perhaps a prefix; "" for loopback."""
    dialogue: bool = False
    """The chat's policy reads whole conversations."""
    guide: Guide = field(default_factory=lambda: task_guide(GENERAL))
    """What labelers read first."""
    scrub: bool = True
    """Take personal data out of what people type."""
    lease_seconds: float = LEASE_SECONDS
    per_second: float = 20.0
    """Requests of one labeler."""
    proxies: Sequence[str] = ()
    """Addresses or networks whose X-Forwarded-For is believed."""
    secret: bytes = field(init=False)
    limits: Limits = field(init=False)
    _read: dict[tuple[int, ...], list[Label]] = field(init=False, default_factory=dict)

    def __post_init__(self):
        # The dataclass is frozen; these two follow from its other fields, and are made once.
        object.__setattr__(self, "secret", site_secret(self.database))
        object.__setattr__(self, "limits", Limits(self.per_second))

    def client(self, scope: Scope) -> str | None:
        """Who asks, as limits name them; None if only a proxy is known."""
        return client_of(scope, behind_proxy=bool(self.url), proxies=self.proxies)

    def clean(self, text: str) -> str:
        """What people type, as it is stored."""
        return scrub_typed(text) if self.scrub else text

    def labels(self) -> list[Label]:
        """All labels, read anew only when they have changed: dashboards ask every two seconds."""
        now = version(self.database)
        read = self._read.get(now)
        if read is None:
            read = read_labels(self.database)
            # Only the newest is kept: older versions nobody asks for again.
            self._read.clear()
            self._read[now] = read
        return read

    @property
    def cookie(self) -> str:
        """Cookies know no ports: each store has its own name."""
        # Else two sites on one machine would sign each other's labelers out.
        return f"labeler_{hashlib.sha256(self.secret).hexdigest()[:8]}"

    @property
    def offer_cookie(self) -> str:
        """Holds a session that this browser has not taken up yet."""
        return f"{self.cookie}_next"

    @property
    def secure(self) -> bool:
        """Whether people come by HTTPS, so that cookies may ask for it."""
        return self.url.startswith("https://")

    @property
    def root(self) -> str:
        """What every link begins with: the prefix that the proxy takes off, or ""."""
        return prefix_of(self.url)

    def set_cookie(self, response: Response, name: str, value: str, *, seconds: int) -> None:
        """For this site's paths alone, out of reach of scripts and of other sites' requests."""
        response.set_cookie(
            name,
            value,
            max_age=seconds,
            path=self.root or "/",
            httponly=True,
            samesite="strict",
            secure=self.secure,
        )

    def forget_session(self, response: Response) -> None:
        """Take the session's cookie back."""
        self.forget(response, self.cookie)

    def forget(self, response: Response, name: str) -> None:
        """Take a cookie back."""
        response.delete_cookie(name, path=self.root or "/", httponly=True, samesite="strict")


@dataclass(frozen=True)
class Visit:
    """One request of somebody who is signed in, or not."""

    site: Site
    request: Request
    form: FormData
    account: Account | None
    session: str

    @property
    def labeler(self) -> Account:
        """The account, on the pages of those who are signed in."""
        assert self.account is not None, "the page is not public"
        return self.account

    @property
    def database(self) -> Database:
        """The store of labels."""
        return self.site.database

    @property
    def csrf(self) -> str:
        """What a form of this session carries."""
        return csrf_token(self.site.secret, self.session)

    @property
    def is_own_form(self) -> bool:
        """Whether the form carries the token of this session."""
        return is_csrf(self.site.secret, self.session, self.field("csrf"))

    @property
    def language(self) -> str:
        """That of the cookie, or what the browser prefers."""
        return choose_language(self.request)

    @property
    def wants_json(self) -> bool:
        """Whether a script of the page asks, not the browser itself."""
        return "application/json" in self.request.headers.get("accept", "")

    @property
    def client(self) -> str | None:
        """The address that the request comes from, behind proxies too."""
        return self.site.client(self.request.scope)

    def field(self, name: str, default: str = "") -> str:
        """A field of the form."""
        return value_of(self.form, name, default)

    def t(self, key: str, **names: Any) -> str:
        """A text in the language of the visit, its names filled in."""
        return text_of(self.request, key, **names)

    def page(self, template: str, *, status: int = HTTPStatus.OK, **values: Any) -> Response:
        """A template with these values, the account and the token of its forms."""
        values = {"account": self.account, "csrf": self.csrf} | values
        return HTMLResponse(render(self.request, template, **values), status)

    def go(self, path: str, **result: Any) -> Response:
        """To another page, or for a script that it may go there."""
        if self.wants_json:
            return JSONResponse({"next": self.site.root + path} | result)
        return self.redirect(path)

    def redirect(self, path: str) -> Response:
        """To another page of this site, by GET."""
        return RedirectResponse(self.site.root + path, HTTPStatus.SEE_OTHER)

    def remember(self, response: Response, session: str) -> Response:
        """Give the session's cookie along."""
        self.site.set_cookie(response, self.site.cookie, session, seconds=int(SESSION_SECONDS))
        return response


Handler = Callable[[Visit], Response]


def page(
    handler: Handler, *, public: bool = False, admin: bool = False, own_check: bool = False
) -> Callable:
    """An endpoint: finds out who asks, checks the form's token, and turns errors into words.

    With ``own_check`` the handler itself decides what a form without the session's token may do.
    """

    def answer(request: Request, body: bytes) -> Response:
        visit = _visit(request, body, own_check=own_check)
        if not public and visit.account is None:
            response = visit.page("signin.html", status=HTTPStatus.UNAUTHORIZED, failed=False)
        elif admin and not visit.labeler.is_admin:
            raise Refused(HTTPStatus.FORBIDDEN, "for the administrator only")
        else:
            response = handler(visit)
        if visit.session and visit.account is None and "set-cookie" not in response.headers:
            visit.site.forget_session(response)  # it would count as a failure again and again
        return response

    return guarded(answer, _error_page)


def guarded(answer: Callable[[Request, bytes], Response], show_error: Callable) -> Callable:
    """An endpoint that answers in a thread, so that nobody waits for another's work.

    ``show_error(request, status, message)`` makes the response for what ``status_and_message``
    knows.
    """

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        return await run_in_threadpool(answered, request, body)

    def answered(request: Request, body: bytes) -> Response:
        try:
            return answer(request, body)
        # A labeler is told in words whatever went wrong, and never sees a traceback.
        except Exception as error:
            return show_error(request, *status_and_message(request, error))

    return endpoint


def _error_page(request: Request, status: int, message: str) -> Response:
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"error": message}, status)
    page_ = render(request, "error.html", account=None, csrf="", message=message)
    return HTMLResponse(page_, status)


def _visit(request: Request, body: bytes, *, own_check: bool) -> Visit:
    site: Site = request.app.state.site
    session = request.cookies.get(site.cookie, "")
    account = by_session(site.database, session) if session else None
    # Counted by account where there is one, and as a failed try where a session is none.
    if account is not None:
        site.limits.account_asks(account.id)
    elif session:
        site.limits.failed(site.client(request.scope), None)
    form = FormData()
    if request.method == "POST":
        form = parse_form(request.headers.get("content-type", ""), body)
    visit = Visit(site, request, form, account, session)
    if request.method == "POST":
        # Without an account a form acts in nobody's name; those that begin a session check anyway.
        if account is not None or own_check:
            check_origin(request, site.url)
        if account is not None and not own_check and not visit.is_own_form:
            raise Refused(HTTPStatus.FORBIDDEN, "the form is of another session: reload the page")
    return visit


def status_and_message(request: Request, error: Exception) -> tuple[int, str]:
    """Status and sentence for an error that a labeler may meet."""
    if isinstance(error, StoreUnavailable):
        full = error.reason == "full"
        status = HTTPStatus.INSUFFICIENT_STORAGE if full else HTTPStatus.SERVICE_UNAVAILABLE
        return status, text_of(request, f"error.{error.reason}")
    if isinstance(error, AlreadyLabelled):
        return HTTPStatus.CONFLICT, text_of(request, "error.already")
    if isinstance(error, Refused):
        return error.status, text_of(request, "error.refused", why=error.why)
    if isinstance(error, InputError):
        return HTTPStatus.UNPROCESSABLE_ENTITY, text_of(request, "error.input", why=str(error))
    LOG.error("a fault at %s %r", request.method, request.scope["path"], exc_info=error)
    return HTTPStatus.INTERNAL_SERVER_ERROR, text_of(request, "error.fault")


def bearer(site: Site, request: Request) -> Account:
    """The account of a program that shows its token. Raises Refused."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refused(HTTPStatus.UNAUTHORIZED, WANTED)
    account = signed_in_by(site, request, token, None)
    if account is None:
        raise Refused(HTTPStatus.UNAUTHORIZED, WANTED)
    site.limits.account_asks(account.id)
    return account


def signed_in_by(
    site: Site, request: Request, token: str, account: Account | None
) -> Account | None:
    """The account of a token that ``account`` or a stranger shows; one that is none is counted."""
    who = (site.client(request.scope), account and account.id)
    # Before the token is looked at, or the answer would tell whether a guess was right.
    site.limits.may_try(*who)
    found = by_token(site.database, token.strip())
    if found is None:
        site.limits.failed(*who)
    return found
