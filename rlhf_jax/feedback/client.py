"""A labeler that is a program: the queue over HTTP, with retries that store nothing twice."""

import http.client
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rlhf_jax.errors import InputError, RunError

RETRY = (429, 500, 502, 503, 504, 507)
"""Statuses that may pass: too many requests, and servers or stores that are away."""


class Given(NamedTuple):
    """A task as the server gives it."""

    id: str
    prompt: str
    responses: tuple[str, ...]


class Client:
    """One account on one site. A lost connection is tried again for ``patience`` seconds."""

    def __init__(self, url: str, token: str, *, patience: float = 30.0):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"url: found {url!r}, expected http://HOST:PORT or with a prefix")
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=30)
        self._root = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._patience = patience

    def take(self) -> Given | None:
        """The task in hand, or the next; None if there is none now."""
        answer = self._ask("GET", "/api/task")
        if answer["task"] is None:
            return None
        return Given(answer["task"], answer["prompt"], tuple(answer["responses"]))

    def rank(
        self, task: Given, ranks: Sequence[int], *, submission: str | None = None, **more: Any
    ) -> None:
        """Returns when the label is on the server's disk."""
        body = {"task": task.id, "ranks": list(map(int, ranks)), **more}
        self._ask("POST", "/api/label", body | {"submission": submission or secrets.token_hex(16)})

    def status(self) -> dict[str, int]:
        """How many tasks are open, and how many labels there are and are wanted."""
        return self._ask("GET", "/api/status")

    def _ask(self, method: str, path: str, body: dict | None = None) -> dict:
        content = None if body is None else json.dumps(body)
        deadline, pause = time.monotonic() + self._patience, 0.05
        while True:
            try:
                self._connection.request(method, self._root + path, content, self._headers)
                response = self._connection.getresponse()
                answer = json.loads(response.read())
                if response.status not in RETRY:
                    break
                trouble = f"{response.status} {answer.get('error', '')}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._connection.close()
                trouble = repr(error)
            if time.monotonic() > deadline:
                raise RunError(f"{path}: no answer for {self._patience:g} s ({trouble})")
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        if response.status != 200:
            raise InputError(f"{path}: {answer.get('error', response.status)}")
        return answer
