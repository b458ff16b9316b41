"""Run the site: makes or opens the store, prints the link to come in, and serves until stopped."""

import os
from pathlib import Path

import uvicorn

from rlhf_jax.errors import RunError
from rlhf_jax.feedback import accounts
from rlhf_jax.feedback.web.app import create_app
from rlhf_jax.feedback.web.site import Site

TOKEN_FILE = "token"


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


def serve(site: Site, *, token: str, host: str, port: int) -> None:
    """Serve until a signal ends it; a label whose sender got an answer is on disk by then."""
    accounts.set_admin(site.database, token)
    base = site.url.rstrip("/") or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"Open {base}/enter?token={token}", flush=True)
    # No access log: links carry tokens. No headers that name the software.
    config = uvicorn.Config(
        create_app(site, host=host),
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,
        limit_concurrency=512,
    )
    server = uvicorn.Server(config)
    server.run()
    if not server.started:
        raise RunError(
            f"could not listen on {host}:{port}; is the port taken? choose another --port"
        )
