"""What the tests of the feedback room share: stores, tasks, a server of its own process."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from local_server import free_port

from rlhf_jax.feedback import accounts
from rlhf_jax.feedback.queue import NewTask, Response, add_tasks
from rlhf_jax.feedback.store import Database

ROOT = Path(__file__).parents[2]
SERVER = """
import json, sys
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.web.serve import listen, serve
from rlhf_jax.feedback.web.site import Site
store, port, token, options = sys.argv[1:]
site = Site(open_database(store), **json.loads(options))
serve(site, listen("127.0.0.1", int(port)), token=token, host="127.0.0.1")
assert "jax" not in sys.modules
"""


def fill(database: Database, count: int, *, wanted: int = 1, responses: int = 4) -> list[str]:
    """Tasks whose answers say which they are."""
    return add_tasks(
        database,
        [
            NewTask(
                f"prompt {n}",
                [
                    Response(f" answer {k} to {n}", f"runs/policy{k % 2}", (k, n, 1), -0.5 * k)
                    for k in range(responses)
                ],
                wanted=wanted,
            )
            for n in range(count)
        ],
    )


def integrity(database: Database) -> str:
    """SQLite's own check of the whole file: "ok"."""
    with database.read() as rows:
        return rows("PRAGMA integrity_check")[0]["integrity_check"]


def labeler(database: Database, name: str = "Ann") -> accounts.Account:
    return accounts.add_labeler(database, name)[0]


def start_server(store: Path, port: int, token: str = "admin", **options):
    """A site's process; ``options`` are its settings."""
    settings = json.dumps({"per_second": 1e6} | options)
    arguments = [sys.executable, "-c", SERVER, str(store), str(port), token, settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(port: int, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/static/icon.svg", timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise TimeoutError(f"no server on port {port}")


@contextlib.contextmanager
def running(store: Path, **options):
    """(port, process) of a server that ends with the block."""
    port = free_port()
    process = start_server(store, port, **options)
    try:
        wait_for(port)
        yield port, process
    finally:
        process.terminate()
        process.wait(30)
