"""Whatever a request holds: no fault, no response without the headers, no broken text."""

import asyncio
import json
import os
import random
import re
import secrets
from collections import Counter
from urllib.parse import quote_from_bytes

import pytest

pytest.importorskip("starlette", reason="the pages need the extra feedback")

from feedback_site import fill, integrity
from postgresql_server import new_postgresql, shared_server  # noqa: F401

from rlhf_jax.feedback import accounts, conversation, queue
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.formats import WRITERS, to_lines
from rlhf_jax.feedback.labels import read_labels
from rlhf_jax.feedback.web import limits, security
from rlhf_jax.feedback.web.app import create_app
from rlhf_jax.feedback.web.render import HERE
from rlhf_jax.feedback.web.site import Site

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "1000"))
"""Of the slow test. FUZZ_REQUESTS=10000 makes as many, in five minutes of one core."""
LETTERS = "ABCD"
TEXTS = (
    *("", " ", "0", "1", "-1", "0.0", "1e999", "nan", "²", "٣", "1" * 5000, "yes", "zh", "turns"),
    *("a" * 30_000, "的" * 20_001, "\x00", "a\x00b", "\ufffe", "😀", "\u202e", "\r\n\r\n", "null"),
    *("' OR 1=1 --", "../../token", "%00", "{{ 7*7 }}", "{0.__class__}", "%s%n", "<script>", "\\"),
    *("A@" * 9000, "x://a:b@" * 3000, "1-" * 9000, "native", "say", "better", "correct", "skip"),
)
BYTES = (b"\xed\xa0\x80", b"\xff\xfe", b"\xc0\xaf", b"\x00", b"a=b&c", b"\xf4\x90\x80\x80")
"""Half a surrogate pair, bytes that are no UTF-8, and what a form is made of."""
JSON = (None, True, 0.0, -1, 10**400, 1e308, [], {}, [[]], {"a": {"b": []}}, ["\ud83d"], "\ud83d")
FIELDS = {
    ("POST", "/enter"): ("token", "action"),
    ("POST", "/join"): ("invite", "name"),
    ("POST", "/language"): ("language", "back"),
    ("POST", "/leave"): (),
    ("POST", "/account"): ("sure",),
    ("POST", "/label"): (
        *("task", "submission", "started", "prompt-flag", "use-case", "demonstration", "reason"),
        *("note", "action"),
        *(f"{kind}-{x}" for kind in ("rank", "quality", "flag", "note") for x in LETTERS),
    ),
    ("POST", "/undo"): (),
    ("POST", "/guide"): (),
    ("POST", "/chat"): ("conversation", "message", "action", "place", "task", "submission", "text"),
    ("POST", "/team"): ("action", "account", "sure"),
    ("POST", "/api/label"): (
        *("submission", "task", "kind", "ranks", "quality", "flags", "notes", "prompt_flags"),
        *("use_case", "demonstration", "seconds", "reason", "note", "response", "up", "text"),
        "corrects",
    ),
    ("GET", "/"): (),
    ("GET", "/enter"): ("token",),
    ("GET", "/join"): ("invite",),
    ("GET", "/account"): (),
    ("GET", "/label"): ("saved",),
    ("GET", "/chat"): ("conversation", "part"),
    ("GET", "/dashboard"): ("part",),
    ("GET", "/team"): (),
    ("GET", "/export"): ("format",),
    ("GET", "/api/task"): (),
    ("GET", "/api/status"): (),
    ("GET", "/static/{name}"): ("name",),
}
HEADERS = ("accept", "accept-language", "authorization", "content-length", "content-type", "cookie")
HEADERS += ("host", "origin", "sec-fetch-site", "x-forwarded-for", "referer", "range")


class Person:
    """A browser and a program of one account."""

    def __init__(self, site: Site, account: accounts.Account, token: str):
        self.session = accounts.start_session(site.database, account)
        self.csrf = security.csrf_token(site.secret, self.session)
        self.cookie, self.token = f"{site.cookie}={self.session}", token


class Fuzz:
    """Requests that are right but for a field or two."""

    def __init__(self, database, seed: int):
        self.dice, self.database = random.Random(seed), database
        self.site = Site(database, per_second=1e9)
        self.app = create_app(self.site)
        self.admin = accounts.Account(accounts.ADMIN, accounts.ADMIN, accounts.ADMIN)
        accounts.set_admin(database, "admin-token")
        self.restart()

    def restart(self) -> None:
        """Whoever signed out or was deleted is there again, with a task and an answered message."""
        account, token = accounts.add_labeler(self.database, f"Ann {secrets.token_hex(4)}")
        self.people = [
            Person(self.site, account, token),
            Person(self.site, self.admin, "admin-token"),
        ]
        fill(self.database, 1)
        self.task = queue.lease_task(self.database, account).id
        conversation.say(self.database, account, "talk", "hello", dialogue=False)
        for question in conversation.waiting(self.database):
            answers = [queue.Response(f" {word}", "p") for word in ("red", "blue")]
            conversation.answer(self.database, question, answers, round=0, sampling={})

    def right(self, name: str) -> str:
        """What the field should hold."""
        kind = name.partition("-")[0]
        given = {"task": self.task, "submission": secrets.token_hex(8), "rank": "1", "action": ""}
        given |= {"quality": "3", "started": "1.5", "conversation": "talk", "place": "0"}
        return given.get(kind, "word")

    def value(self) -> bytes:
        if self.dice.random() < 0.2:
            return self.dice.choice(BYTES)
        return self.dice.choice(TEXTS).encode("utf-8", "surrogatepass")

    def request(self) -> tuple[dict, bytes]:
        """Scope and body."""
        (method, path), names = self.dice.choice(list(FIELDS.items()))
        person = self.dice.choice(self.people)
        headers = {"host": b"localhost", "cookie": person.cookie.encode()}
        values = {name: self.right(name).encode() for name in names}
        for name in self.dice.sample(names, min(len(names), self.dice.randint(0, 2))):
            values[name] = self.value()
        body, query = b"", b""
        if path.startswith("/api"):
            headers = {"host": b"localhost", "authorization": f"Bearer {person.token}".encode()}
            body = self.json_body(names) if method == "POST" else b""
        elif method == "POST":
            values["csrf"] = person.csrf.encode()
            headers["content-type"] = b"application/x-www-form-urlencoded"
            body = self.encoded(values)
        elif path == "/static/{name}":
            path = f"/static/{values['name'].decode('utf-8', 'replace')}"
        else:
            query = self.encoded(values)
        if self.dice.random() < 0.2:
            headers[self.dice.choice(HEADERS)] = self.value()[:60_000].replace(b"\n", b"")
        if self.dice.random() < 0.3:
            headers["accept"] = b"application/json"
        return scope_of(method, path, query, headers), body

    def encoded(self, values: dict[str, bytes]) -> bytes:
        """As browsers encode a form; some values as they are."""
        raw = self.dice.random() < 0.1
        shown = lambda value: value if raw else quote_from_bytes(value).encode()
        return b"&".join(name.encode() + b"=" + shown(value) for name, value in values.items())

    def json_body(self, names) -> bytes:
        right = {"task": self.task, "submission": secrets.token_hex(8), "kind": "ranking"}
        right |= {"ranks": [0, 1, 2, 3]}
        right["kind"] = self.dice.choice(("ranking", "skip", "thumb", "demonstration"))
        for name in self.dice.sample(names, self.dice.randint(0, 3)):
            right[name] = self.dice.choice((*JSON, *TEXTS))
            if self.dice.random() < 0.3:
                right[name] = [right[name]] * self.dice.choice((1, 4, 9))
        text = json.dumps(right, ensure_ascii=self.dice.random() < 0.5)
        return text.encode("utf-8", "surrogatepass")


def scope_of(method: str, path: str, query: bytes, headers: dict[str, bytes]) -> dict:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "root_path": "",
        "query_string": query,
        "headers": [(name.encode(), value) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }


async def ask(app, scope: dict, body: bytes) -> tuple[int, dict[str, str], bytes]:
    sent, messages = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    headers = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(each.get("body", b"") for each in sent[1:])


async def fuzz(fuzzed: Fuzz, count: int) -> Counter:
    statuses = Counter()
    for _ in range(count):
        scope, body = fuzzed.request()
        status, headers, text = await ask(fuzzed.app, scope, body)
        told = scope["method"], scope["path"], scope["query_string"][:200], body[:500]
        assert status < 500, (status, told, scope["headers"], text)
        assert dict(security.HEADERS).items() <= headers.items(), told
        assert b"Traceback" not in text
        if status >= 400 and text[:1] == b"{":
            assert json.loads(text)["error"], told
        statuses[status] += 1
        if scope["path"] in ("/leave", "/account", "/team", "/enter", "/join"):
            fuzzed.restart()
    return statuses


def check(database, count: int, seed: int, monkeypatch, caplog) -> None:
    monkeypatch.setattr(limits, "FAILURES_BURST", 1e9)
    statuses = asyncio.run(fuzz(Fuzz(database, seed), count))
    assert not caplog.records
    assert statuses[200] > count / 10 and statuses[422] > count / 40  # much of it is let in
    labels = read_labels(database)
    for write in WRITERS.values():
        to_lines(write(labels)).encode()
    assert not any(label.repaired for label in labels)


@pytest.fixture
def database(tmp_path, monkeypatch):
    """A store that waits for no disk: power stays on while a test runs."""
    database = open_database(tmp_path / "store.sqlite")
    connect = database._connect

    def quick():
        connection = connect()
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(database, "_connect", quick)
    return database


@pytest.mark.slow
def test_whatever_fields_hold(database, monkeypatch, caplog):
    check(database, 300, 0, monkeypatch, caplog)
    assert integrity(database) == "ok"


@pytest.mark.slow
def test_whatever_fields_hold_many_times(database, monkeypatch, caplog):
    check(database, REQUESTS, 1, monkeypatch, caplog)
    assert integrity(database) == "ok"


@pytest.mark.slow
def test_whatever_fields_hold_on_postgresql(server, monkeypatch, caplog):
    check(open_database(new_postgresql(server, "fuzz")), 150, 2, monkeypatch, caplog)


def test_no_route_and_no_field_is_missed(tmp_path):
    app = create_app(Site(open_database(tmp_path / "store.sqlite")))
    routes = {(method, route.path) for route in app.routes for method in route.methods - {"HEAD"}}
    assert routes == set(FIELDS)
    code = "".join(path.read_text() for path in HERE.glob("*.py"))
    pages = "".join(path.read_text() for path in (HERE / "templates").glob("*.html"))
    known = {name.rstrip(LETTERS) for names in FIELDS.values() for name in names} | {"csrf"}
    read = re.findall(r'(?:field|form\.get|getlist|query_params\.get)\(f?"([\w-]+)', code)
    read += re.findall(r'(?<!meta )\bname="([\w-]+)"', pages.replace('<meta name="viewport"', ""))
    read += re.findall(r'm\.(?:checks|scale)\("([\w-]+)"', pages)
    assert set(read) <= known, set(read) - known
