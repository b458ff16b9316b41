"""A stub of the hub that takes commits, and keeps what it was sent."""

import base64
import json
from contextlib import contextmanager

import local_server

TOKEN = "hf_not_a_real_token"


class Hub:
    """What the stub holds: ``files[repo]`` by name, and the requests it had."""

    def __init__(self):
        self.files, self.asked, self.private, self.url, self.refuse = {}, [], {}, "", ""


def answer(hub, path, body, headers):
    """(status, content) of a request."""
    if headers.get("Authorization") != f"Bearer {TOKEN}":
        return 401, {"error": "Invalid credentials"}
    if hub.refuse and hub.refuse in path:
        return 400, {"error": f"no, {TOKEN}"}
    if path == "/api/whoami-v2":
        return 200, {"name": "somebody", "type": "user"}
    if path == "/api/repos/create":
        asked = json.loads(body)
        repo = (
            f"{asked['organization']}/{asked['name']}" if "organization" in asked else asked["name"]
        )
        repo = repo if "/" in repo else f"somebody/{repo}"
        if repo in hub.files:
            return 409, {"url": f"{hub.url}/{repo}", "error": "exists"}
        hub.files[repo] = {".gitattributes": b""}
        hub.private[repo] = asked.get("private", asked.get("visibility") == "private")
        return 200, {"url": f"{hub.url}/{repo}", "name": repo}
    if path == "/api/validate-yaml":  # the front matter of a card
        return 200, {"errors": [], "warnings": []}
    return of_repository(hub, path, body)


def of_repository(hub, path, body):
    """Requests about one repository, whose name stands in the path."""
    repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
    if "/preupload/" in path:
        modes = [
            {
                "path": file["path"],
                # Large files go to a storage of their own, which is the package's affair.
                "uploadMode": "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": modes}
    if "/commit/" in path:
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.files[repo][value["path"]] = base64.b64decode(value["content"])
        return 200, {
            "commitUrl": f"{hub.url}/{repo}/commit/abc",
            "commitOid": "abc",
            "hookOutput": "",
        }
    files = hub.files[repo].items()
    return 200, [{"type": "file", "path": p, "oid": "abc", "size": len(x)} for p, x in files]


@contextmanager
def serve():
    """A running stub; its ``url`` is what ``HF_ENDPOINT`` is to be."""
    hub = Hub()

    class Answers(local_server.Handler):
        def reply(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b""
            hub.asked.append((self.command, self.path))
            status, content = answer(hub, self.path, body, self.headers)
            self.send(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

        do_GET = do_POST = do_PUT = reply  # noqa: N815 - names of http.server

    with local_server.serving(Answers) as hub.url:
        yield hub
