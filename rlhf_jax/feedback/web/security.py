"""The walls of the server: who may ask, how much, how often, and what the browser may do.

Pure ASGI, so that they stand before any parsing. Cookies are HttpOnly and SameSite=Strict; a form
carries a token that only its session could have got; a program uses its token as bearer instead.
"""

import asyncio
import hmac
import json
import logging
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf_jax.feedback.web.address import host_of, origin_of
from rlhf_jax.feedback.web.limits import Refused

BODY_LIMIT = 1 << 20
"""Bytes. The largest form, nine notes and a demonstration, is under a third of it."""
BODY_SECONDS = 30.0
"""Until all of a body is there."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    # Addresses carry tokens: no request says from which page it comes, only from which site. Not
    # no-referrer: with it browsers hide the origin of our own forms from us.
    ("referrer-policy", "strict-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=()"),
    ("cache-control", "no-store"),
)


DIGITS = re.compile("[0-9]{1,12}")
LOG = logging.getLogger(__name__)


class Walls:
    """Middleware: hosts, body size and time, clients' rates, headers, and faults of our own.

    ``client_asks`` raises Refused if the client of a request has asked too often.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Sequence[str],
        client_asks: Callable[[Scope], None],
        headers: Sequence[tuple[str, str]] = HEADERS,
    ):
        self._app, self._hosts, self._client_asks = app, {*LOOPBACK, *hosts}, client_asks
        self._headers = [(name.encode(), value.encode()) for name, value in headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it; headers go on whatever comes back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, _limited(receive), guarded)
        except Refused as refused:
            # Half an answer is out: a second status line would be read as part of it.
            if started:
                raise
            await _refuse(refused, guarded)
        except Exception:
            LOG.exception("a fault at %s %r", scope["method"], scope["path"])
            if not started:
                fault = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the server's own")
                await _refuse(fault, guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not DIGITS.fullmatch(length) or int(length) > BODY_LIMIT:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {BODY_LIMIT} bytes")
        # A name that an attacker's DNS points here is not one of ours.
        if host_of(f"//{headers.get('host', '')}") not in self._hosts:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "unknown host name")
        self._client_asks(scope)


def _limited(receive: Receive) -> Receive:
    """``receive`` that stops a body without, or with a false, content-length, or a slow one."""
    total, more = 0, True
    # For all of the body: a byte now and then would keep a per-message timeout from ever firing.
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def limited() -> Message:
        nonlocal total, more
        if not more:  # what comes now is that the connection ends
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            why = f"the body took longer than {BODY_SECONDS:g} seconds"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, why) from None
        total, more = total + len(message.get("body", b"")), message.get("more_body", False)
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


def csrf_token(secret: bytes, session: str) -> str:
    """What a form of this session carries, which no other site knows."""
    return hmac.new(secret, f"csrf {session}".encode(), "sha256").hexdigest()


def check_origin(request: Request, url: str) -> None:
    """Raise Refused unless the browser says that this site's own page sends the request.

    Its own origin is that of ``url``; without one, the host that the request names. Behind a proxy
    that host is no guide: nginx names the upstream there unless it is told not to.
    """
    # Set by the browser and out of reach of scripts; programs that are no browser send neither
    # header.
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


def is_csrf(secret: bytes, session: str, given: str) -> bool:
    """Whether a form's token is that of the session."""
    # It takes as long however much of a guess is right, so that time tells nothing.
    return hmac.compare_digest(csrf_token(secret, session).encode(), given.encode())
