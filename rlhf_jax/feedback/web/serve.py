"""Run the site: makes or opens the store, prints the link to come in, and serves until stopped."""

import os
import socket
from pathlib import Path

import uvicorn

from rlhf_jax.errors import InputError
from rlhf_jax.feedback import accounts
from rlhf_jax.feedback.web.app import create_app
from rlhf_jax.feedback.web.site import Site

TOKEN_FILE = "token"
BACKLOG = 2048
"""Connections that wait to be taken."""


def admin_token(folder: Path, given: str) -> str:
    """The administrator's token: as given, else the folder's, which only its owner can read."""
    path = folder / TOKEN_FILE
    if given:
        return given
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(accounts.new_token())
    return path.read_text().strip()


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
    accounts.set_admin(site.database, token)
    port = listener.getsockname()[1]
    base = site.url.rstrip("/") or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"Open {base}/enter?token={token}", flush=True)
    # No access log: links carry tokens. No headers that name the software.
    config = uvicorn.Config(
        create_app(site, host=host),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,
        limit_concurrency=512,
    )
    uvicorn.Server(config).run(sockets=[listener])
