"""A stub of the Hugging Face hub on this machine: a folder's repositories, and their commits."""

import hashlib
import json
from contextlib import contextmanager
from urllib.parse import unquote

import local_server


class Hub:
    """What the stub has: ``files[kind, repo, revision]``, by name; and what it was asked."""

    def __init__(self):
        self.files, self.commits, self.asked = {}, {}, []
        self.gated = set()
        self.url = ""

    def publish(self, kind, repo, files, revision="main"):
        """Files by name (bytes) as a new commit, at which ``revision`` stands from now on."""
        text = json.dumps([kind, repo, {name: content.hex() for name, content in files.items()}])
        commit = hashlib.sha1(text.encode()).hexdigest()
        for known_as in (revision, commit):
            self.files[kind, repo, known_as] = files
            self.commits[kind, repo, known_as] = commit
        return commit


def answer(hub, path):
    """(status, headers, body) of a request."""
    kind = "dataset" if path.startswith(("/api/datasets/", "/datasets/")) else "model"
    place = path.removeprefix("/api").removeprefix(f"/{kind}s")
    api = path.startswith("/api/")
    mark = "/revision/" if api else "/resolve/"
    repo, _, rest = place.strip("/").partition(mark)
    revision, _, name = (unquote(rest), "", "") if api else rest.partition("/")
    key = kind, repo, unquote(revision) or "main"
    if not any(key[:2] == known[:2] for known in hub.files):
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
    if repo in hub.gated:
        return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
    if key not in hub.files:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    files, commit = hub.files[key], hub.commits[key]
    if api:
        siblings = [{"rfilename": file} for file in files]
        info = {"id": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
    body = files.get(unquote(name))
    if body is None:
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}, body


@contextmanager
def serve():
    """A running stub; its ``url`` is what ``HF_ENDPOINT`` is to be."""
    hub = Hub()

    class Answers(local_server.Handler):
        def respond(self):
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path))
            self.send(*answer(hub, path))

        do_GET = do_HEAD = respond  # noqa: N815 - names of http.server

    with local_server.serving(Answers) as hub.url:
        yield hub
