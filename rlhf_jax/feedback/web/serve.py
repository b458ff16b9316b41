"""Run the site: makes or opens the store, prints the link to come in, and serves until stopped."""

import os
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

import uvicorn

from rlhf_jax.errors import InputError
from rlhf_jax.feedback import accounts
from rlhf_jax.feedback.secret_files import check_token, is_there, read_secret, write_secret
from rlhf_jax.feedback.web.app import create_app
from rlhf_jax.feedback.web.limits import is_address
from rlhf_jax.feedback.web.security import HEADERS
from rlhf_jax.feedback.web.site import Site

TOKEN_FILE = "token"
BACKLOG = 2048
"""Connections that wait to be taken."""
OPEN_TO_ALL = (
    "feedback: listens on {host} itself: no TLS, no time limit for headers, and 512 connections in "
    "all, so that one stranger can keep everybody out. Put a proxy before it (docs/feedback.md)."
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    return host == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def admin_token(folder: Path, given: str) -> str:
    """The administrator's token: as given, else the folder's, which only its owner can read."""
    if given:
        return check_token(given, "--serve.token")
    path = folder / TOKEN_FILE
    if not is_there(path):
        write_secret(path, accounts.new_token())
    return read_secret(path)


def listen(host: str, port: int) -> socket.socket:
    """The site's socket, before anything else is made: a taken port costs nothing.

    Raises InputError naming the flags.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        why = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--serve.host {host} --serve.port {port}: cannot listen there ({why.lower()}); "
            "is another site running? choose another --serve.port"
        ) from None


def serve(site: Site, listener: socket.socket, *, token: str, host: str) -> None:
    """Serve until a signal ends it; a label whose sender got an answer is on disk by then."""
    # Each start sets it anew: a token that was changed in its file must not let in the old one.
    accounts.set_admin(site.database, token)
    port = listener.getsockname()[1]
    base = site.url.rstrip("/") or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"Open {base}/enter?token={quote(token, safe='')}", flush=True)
    if not (site.url or is_loopback(host)):
        print(OPEN_TO_ALL.format(host=host), file=sys.stderr, flush=True)
    # No access log: links carry tokens. No headers that name the software.
    config = uvicorn.Config(
        create_app(site, host=host, headers=()),
        # What uvicorn answers by itself (no HTTP, too many connections) has the headers too.
        headers=list(HEADERS),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,
        limit_concurrency=512,
    )
    uvicorn.Server(config).run(sockets=[listener])
