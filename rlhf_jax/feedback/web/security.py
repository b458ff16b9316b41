"""The walls of the server: who may ask, how much, how often, and what the browser may do.

Pure ASGI, so that they stand before any parsing. Cookies are HttpOnly and SameSite=Strict; a form
carries a token that only its session could have got; a program uses its token as bearer instead.
"""

import hmac
import json
import time
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf_jax.feedback.web.address import host_of, origin_of

BODY_LIMIT = 1 << 20
"""Bytes. The largest form, nine notes and a demonstration, is under a third of it."""
SIGN_IN_PER_SECOND, SIGN_IN_BURST = 0.5, 10.0
PEOPLE_PER_CLIENT = 25
"""Behind one address, at their full rate."""
MOST_BUCKETS = 10_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    # Not no-referrer: with it browsers hide the origin of our own forms from us.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=()"),
    ("cache-control", "no-store"),
)


class Refused(Exception):
    """A request that is not let in."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status, self.why = status, why


class Walls:
    """Middleware: hosts, body size, rate, headers."""

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str], per_second: float):
        self._app, self._hosts = app, {*LOOPBACK, *hosts}
        self._requests = Buckets(per_second, burst=4 * per_second)
        self._clients = Buckets(PEOPLE_PER_CLIENT * per_second, burst=100 * per_second)
        self._sign_ins = Buckets(SIGN_IN_PER_SECOND, burst=SIGN_IN_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = [(name.encode(), value.encode()) for name, value in HEADERS]
                message["headers"] = [*message["headers"], *given]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, _limited(receive), guarded)
        except Refused as refused:
            if started:
                raise
            await _refuse(refused, guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_LIMIT:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {BODY_LIMIT} bytes")
        # A name that an attacker's DNS points here is not one of ours.
        if host_of(f"//{headers.get('host', '')}") not in self._hosts:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "unknown host name")
        client = (scope.get("client") or ("",))[0]
        who = headers.get("authorization") or headers.get("cookie") or client
        # Both: credentials are the asker's choice, and many people may share an address.
        if not (self._clients.take(client) and self._requests.take(who)):
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many requests, wait a second")
        signs_in = scope["path"] in ("/enter", "/join") or not _has_credentials(headers)
        costs = signs_in and (scope["method"] == "POST" or b"=" in scope["query_string"])
        if costs and not self._sign_ins.take(client):
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many attempts, wait some seconds")


def _has_credentials(headers: Headers) -> bool:
    return "authorization" in headers or "cookie" in headers


def _limited(receive: Receive) -> Receive:
    """``receive`` that stops a body without, or with a false, content-length."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > BODY_LIMIT:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {BODY_LIMIT} bytes")
        return message

    return limited


async def _refuse(refused: Refused, send: Send) -> None:
    body = json.dumps({"error": refused.why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refused.status == HTTPStatus.TOO_MANY_REQUESTS:
        headers.append((b"retry-after", b"1"))
    start = {"type": "http.response.start", "status": refused.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


class Buckets:
    """Token buckets by name: ``per_second`` on average, ``burst`` at once."""

    def __init__(self, per_second: float, *, burst: float):
        self._rate, self._burst = per_second, burst
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now: float | None = None) -> bool:
        now = time.monotonic() if now is None else now
        level, then = self._buckets.pop(name, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._rate)
        self._buckets[name] = (max(level - 1, 0.0), now)  # last: newest
        while len(self._buckets) > MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        return level >= 1


def csrf_token(secret: bytes, session: str) -> str:
    return hmac.new(secret, f"csrf {session}".encode(), "sha256").hexdigest()


def check_origin(request: Request, url: str) -> None:
    """Raise Refused unless the browser says that this site's own page sends the request.

    Its own origin is that of ``url``; without one, the host that the request names. Behind a proxy
    that host is no guide: nginx names the upstream there unless it is told not to.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    foreign = site not in (None, "same-origin", "none")
    if origin is not None and url:
        foreign |= origin != origin_of(url)
    elif origin is not None:
        # A browser writes the origin as scheme://host, with the port as in the host header.
        foreign |= origin.partition("//")[2] != request.headers.get("host")
    if foreign:
        raise Refused(HTTPStatus.FORBIDDEN, "the request comes from another site")


def check_csrf(request: Request, url: str, secret: bytes, session: str, given: str) -> None:
    check_origin(request, url)
    if not hmac.compare_digest(csrf_token(secret, session).encode(), given.encode()):
        raise Refused(HTTPStatus.FORBIDDEN, "the form is of another session: reload the page")
