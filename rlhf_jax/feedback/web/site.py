"""What all pages share: settings, who is signed in, errors in words, answers as page or JSON."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from rlhf_jax.errors import InputError
from rlhf_jax.feedback.accounts import SESSION_SECONDS, Account, by_session, by_token, site_secret
from rlhf_jax.feedback.database import Database, StoreUnavailable
from rlhf_jax.feedback.labels import Label, read_labels, version
from rlhf_jax.feedback.queue import LEASE_SECONDS
from rlhf_jax.feedback.submissions import AlreadyLabelled
from rlhf_jax.feedback.web.address import prefix_of
from rlhf_jax.feedback.web.render import render, text_of
from rlhf_jax.feedback.web.security import Refused, check_csrf, csrf_token


@dataclass(frozen=True)
class Site:
    """The store and the settings of one server."""

    database: Database
    url: str = ""
    """Where labelers find the site, behind a proxy and perhaps a prefix; "" for loopback."""
    dialogue: bool = False
    """The chat's policy reads whole conversations."""
    scrub: bool = True
    """Take personal data out of what people type."""
    lease_seconds: float = LEASE_SECONDS
    per_second: float = 20.0
    """Requests of one labeler."""
    secret: bytes = field(init=False)
    _read: dict[tuple[int, ...], list[Label]] = field(init=False, default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "secret", site_secret(self.database))

    def labels(self) -> list[Label]:
        """All labels, read anew only when they have changed: dashboards ask every two seconds."""
        now = version(self.database)
        found = self._read.get(now)
        if found is None:
            found = read_labels(self.database)
            self._read.clear()
            self._read[now] = found
        return found

    @property
    def cookie(self) -> str:
        """Cookies know no ports: each store has its own name."""
        return f"labeler_{hashlib.sha256(self.secret).hexdigest()[:8]}"

    @property
    def secure(self) -> bool:
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
        response.delete_cookie(self.cookie, path=self.root or "/")


@dataclass(frozen=True)
class Visit:
    """One request of somebody who is signed in, or not."""

    site: Site
    request: Request
    form: FormData
    account: Account | None
    session: str

    @property
    def database(self) -> Database:
        return self.site.database

    @property
    def csrf(self) -> str:
        return csrf_token(self.site.secret, self.session)

    @property
    def wants_json(self) -> bool:
        return "application/json" in self.request.headers.get("accept", "")

    def field(self, name: str, default: str = "") -> str:
        value = self.form.get(name, default)
        if not isinstance(value, str):
            raise InputError(f"{name}: found a file, expected text")
        return value

    def t(self, key: str, **names: Any) -> str:
        return text_of(self.request, key, **names)

    def page(self, template: str, *, status: int = HTTPStatus.OK, **values: Any) -> Response:
        values = {"account": self.account, "csrf": self.csrf} | values
        return HTMLResponse(render(self.request, template, **values), status)

    def go(self, path: str, **result: Any) -> Response:
        """To another page, or for a script that it may go there."""
        if self.wants_json:
            return JSONResponse({"next": self.site.root + path} | result)
        return self.redirect(path)

    def redirect(self, path: str) -> Response:
        return RedirectResponse(self.site.root + path, HTTPStatus.SEE_OTHER)

    def remember(self, response: Response, session: str) -> Response:
        self.site.set_cookie(response, self.site.cookie, session, seconds=int(SESSION_SECONDS))
        return response


Handler = Callable[[Visit], Response]


def page(handler: Handler, *, public: bool = False, admin: bool = False) -> Callable:
    """An endpoint: finds out who asks, checks the form's token, and turns errors into words."""

    async def endpoint(request: Request) -> Response:
        site: Site = request.app.state.site
        try:
            form = await request.form() if request.method == "POST" else FormData()
            visit = await run_in_threadpool(_visit, site, request, form)
            if not public and visit.account is None:
                return visit.page("signin.html", status=HTTPStatus.UNAUTHORIZED, failed=False)
            if admin and not visit.account.is_admin:
                raise Refused(HTTPStatus.FORBIDDEN, "for the administrator only")
            return await run_in_threadpool(handler, visit)
        except (InputError, StoreUnavailable, Refused) as error:
            status, message = describe(request, error)
            if "application/json" in request.headers.get("accept", ""):
                return JSONResponse({"error": message}, status)
            page_ = render(request, "error.html", account=None, csrf="", message=message)
            return HTMLResponse(page_, status)

    return endpoint


def _visit(site: Site, request: Request, form: FormData) -> Visit:
    session = request.cookies.get(site.cookie, "")
    account = by_session(site.database, session) if session else None
    if request.method == "POST" and account is not None:
        check_csrf(request, site.url, site.secret, session, str(form.get("csrf", "")))
    return Visit(site, request, form, account, session)


def describe(request: Request, error: Exception) -> tuple[int, str]:
    """Status and sentence for an error that a labeler may meet."""
    if isinstance(error, StoreUnavailable):
        full = error.reason == "full"
        status = HTTPStatus.INSUFFICIENT_STORAGE if full else HTTPStatus.SERVICE_UNAVAILABLE
        return status, text_of(request, f"error.{error.reason}")
    if isinstance(error, AlreadyLabelled):
        return HTTPStatus.CONFLICT, text_of(request, "error.already")
    if isinstance(error, Refused):
        return error.status, text_of(request, "error.refused", why=error.why)
    return HTTPStatus.UNPROCESSABLE_ENTITY, text_of(request, "error.input", why=str(error))


def bearer(site: Site, request: Request) -> Account:
    """The account of a program that shows its token. Raises Refused."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    account = by_token(site.database, token.strip()) if scheme.lower() == "bearer" else None
    if account is None:
        raise Refused(HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Bearer TOKEN")
    return account
