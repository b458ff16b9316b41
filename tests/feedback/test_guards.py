"""One bad labeler, a stranger, a careless operator: what each is refused, and whom it costs."""

import asyncio

import pytest

pytest.importorskip("starlette", reason="the pages need the extra feedback")
pytest.importorskip("httpx2", reason="starlette's test client needs httpx2")

from feedback_site import fill
from plain_browser import LOCAL, RANKS, Browser
from starlette.testclient import TestClient

from rlhf_jax.config.feedback import ServeConfig
from rlhf_jax.errors import InputError
from rlhf_jax.feedback import accounts, queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labels import rankings, read_labels, written
from rlhf_jax.feedback.names import folded
from rlhf_jax.feedback.web import limits, security
from rlhf_jax.feedback.web.app import create_app
from rlhf_jax.feedback.web.serve import admin_token, is_loopback
from rlhf_jax.feedback.web.site import Site


@pytest.fixture
def database(tmp_path):
    database = open_database(tmp_path / "store.sqlite", busy_seconds=0.1)
    accounts.set_admin(database, "admin-token")
    return database


@pytest.fixture
def app(database):
    return create_app(Site(database, per_second=1e6))


@pytest.fixture
def ann(database, app):
    """A labeler with a task before them, and its page."""
    fill(database, 1)
    browser = Browser(app, accounts.add_labeler(database, "Ann")[1])
    browser.page = browser.get("/label")
    return browser


# --- lengths first --------------------------------------------------------------------------------


@pytest.mark.parametrize("name,limit", [("demonstration", 20_000), ("note-A", 2_000)])
def test_lengths_are_checked_before_anything_is_looked_for(ann, database, monkeypatch, name, limit):
    looked_at = []
    scrub = lambda text: looked_at.append(len(text)) or text
    monkeypatch.setattr("rlhf_jax.feedback.web.site.scrub_typed", scrub)
    page = ann.post("/label", ann.page, 422, **RANKS | {name: "a" * (limit + 1)})
    assert f"{limit + 1} characters" in page and max(looked_at, default=0) <= limit
    ann.post("/label", ann.page, **RANKS | {name: "a" * limit})
    assert max(looked_at) == limit and len(read_labels(database)) == 1


def test_what_programs_send_is_scrubbed_too(database, app):
    fill(database, 1)
    bearer = {"Authorization": f"Bearer {accounts.add_labeler(database, 'Bot')[1]}"}
    http = TestClient(app, base_url=LOCAL)
    task = http.get("/api/task", headers=bearer).json()["task"]
    label = {"task": task, "submission": "a" * 8, "ranks": [0, 1, 2, 3], "notes": ["jo@x.org"] * 4}
    assert http.post("/api/label", headers=bearer, json=label).status_code == 200
    assert read_labels(database)[0].body["notes"] == ["[EMAIL]"] * 4


# --- what fields hold -----------------------------------------------------------------------------

DIGITS = "1" * 5000


@pytest.mark.parametrize("value", [DIGITS, "²", "٣", "1.0", "0.0", "-1", "1e3", "a"])
def test_what_is_no_number_is_refused_with_a_sentence(ann, value):
    for name in ("rank-A", "quality-A"):
        page = ann.post("/label", ann.page, 422, **RANKS | {name: value})
        assert f"{name}: found" in page
    for action in ("better", "up", "down", "correct"):
        ann.post("/chat", ann.page, 422, action=action, place=value, conversation="c", text="x")
    ann.post("/label", ann.page, **RANKS | {"started": value})  # a clock that is wrong is no reason


@pytest.mark.parametrize("value", [0.0, True, "0", 4, -1, 10**400, None, [0]])
def test_places_of_answers_are_whole_numbers(database, app, value):
    fill(database, 1)
    _, token = accounts.add_labeler(database, "Bot")
    http = TestClient(app, base_url=LOCAL, headers={"Authorization": f"Bearer {token}"})
    task = http.get("/api/task").json()["task"]
    label = {"task": task, "submission": "a" * 8, "kind": "thumb", "response": value, "up": True}
    assert "response: found" in http.post("/api/label", json=label).json()["error"]
    label |= {"kind": "demonstration", "text": "t", "corrects": value}
    if value is not None:
        assert "corrects: found" in http.post("/api/label", json=label).json()["error"]
    assert read_labels(database) == []


def test_a_file_where_text_belongs(ann):
    files = {"demonstration": ("a.txt", b"text")}
    answer = ann.http.post("/label", data=ann.fields(ann.page) | {"rank-A": "1"}, files=files)
    assert answer.status_code == 422 and "multipart/form-data" in answer.text
    kind = {"content-type": "application/x-www-form-urlencoded"}
    for body, reason in (
        (b"note=%ED%A0%80", "no UTF-8"),
        (b"\xff=1", "no UTF-8"),
        (b"a&" * 2000, "at most 1000 fields"),
    ):
        answer = ann.http.post("/label", content=body, headers=kind)
        assert answer.status_code == 422 and reason in answer.text


def test_nothing_that_a_store_cannot_hold_reaches_it(database):
    half = '{"message": "\\ud83d"}'
    for values, reason in (
        ({"v": "a\x00b"}, "NUL"),
        ({"v": "\ud83d"}, "surrogate"),
        ({"body": half}, "surrogate"),
    ):
        with pytest.raises(InputError, match=reason), database.write() as rows:
            rows(f"INSERT INTO meta VALUES ('x', :{next(iter(values))})", **values)


def test_a_fault_shows_nothing_and_keeps_the_headers(ann, monkeypatch, caplog):
    def fault(*_, **__):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(queue, "lease_task", fault)
    monkeypatch.setattr("rlhf_jax.feedback.web.app.FileResponse", fault)
    for path in ("/label", "/static/page.css"):
        answer = ann.http.get(path)
        assert answer.status_code == 500 and "secret" not in answer.text + str(answer.headers)
        assert dict(security.HEADERS).items() <= dict(answer.headers).items()
    assert caplog.text.count("ZeroDivisionError: secret detail") == 2  # the operator sees it


# --- opinions -------------------------------------------------------------------------------------


def test_thumbs_and_corrections_count_once_per_answer_and_labeler(database):
    (task,) = fill(database, 1)
    people = [accounts.add_labeler(database, name)[0] for name in ("Ann", "Ben")]
    for person in people:
        with database.write() as rows:
            queue.lease(rows, task, person, 1e12)
    bodies = [("thumb", {"response": 0, "up": n % 2 == 0}) for n in range(30)]
    bodies += [("demonstration", {"text": f"better {n}", "corrects": 1}) for n in range(5)]
    for person in people:
        for n, (kind, body) in enumerate(bodies):
            submission = f"{person.name}number{n:03}"
            submissions.submit(
                database, person, submission=submission, task=task, kind=kind, body=body
            )
    labels = read_labels(database)
    assert submissions.count_labels(database) == len(labels) == 4
    assert [each.body["up"] for each in labels if each.kind == "thumb"] == [False] * 2
    assert {each.completion for each in written(labels)} == {" better 4"}
    assert [each.source for each in rankings(labels)] == ["correction"] * 2


# --- who comes in ---------------------------------------------------------------------------------


def test_another_administrators_token_ends_the_old_ones_sessions(database, app):
    old, ann = Browser(app), Browser(app, accounts.add_labeler(database, "Ann")[1])
    accounts.set_admin(database, "admin-token")  # started again: nothing changes
    old.get("/team")
    accounts.set_admin(database, "another-token")
    old.get("/team", 401)
    ann.get("/account")
    Browser(app, "another-token").get("/team")


def test_token_files_that_protect_nothing_are_refused(tmp_path):
    path = tmp_path / "token"
    for content, mode, reason in (
        ("", 0o600, "it is empty"),
        ("short", 0o600, "found 5 characters, expected at least 16"),
        ("x" * 16, 0o644, "others on this machine can read it"),
        ("x" * 16, 0o640, "others on this machine can read it"),
        ("with a space in it", 0o600, "no spaces"),
        ("é" * 16, 0o600, "ASCII"),
    ):
        path.write_text(content)
        path.chmod(mode)
        with pytest.raises(InputError, match=rf"token: .*{reason}"):
            admin_token(tmp_path, "")
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="a link to a file that is not there"):
        admin_token(tmp_path, "")
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="expected a file"):
        admin_token(tmp_path, "")
    with pytest.raises(InputError, match=r"--serve.token: found 5 characters"):
        admin_token(tmp_path, "admin")


def test_signing_in_over_another_account_asks_first(database, app):
    tokens = {name: accounts.add_labeler(database, name)[1] for name in ("Ann", "Ben")}
    browser = Browser(app, tokens["Ann"])
    opened = browser.http.get("/enter", params={"token": tokens["Ben"]})
    assert "Ann" not in opened.text and "url=/enter" in opened.text and "token" not in opened.text
    page = browser.get("/enter")
    assert "Sign in as Ben?" in page and "You are signed in as Ann" in page
    assert ">Ann</a>" in browser.get("/label")  # nothing has changed yet
    page = browser.get("/enter")
    browser.http.post("/enter", data={"action": "switch"})  # not from this page
    assert ">Ann</a>" in browser.get("/label")
    browser.post("/enter", page, action="stay")
    assert ">Ann</a>" in browser.get("/label") and "Sign in as" not in browser.get("/enter")
    browser.http.post("/enter", data={"token": tokens["Ben"]})
    page = browser.post("/enter", browser.get("/enter"), action="switch")
    assert ">Ben</a>" in page
    with database.read() as rows:  # Ann's session and the offers have ended
        assert len(rows("SELECT * FROM session")) == 1


def test_joining_over_another_account_asks_first(database, app):
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    invite = accounts.invite(database)
    forged = ann.http.post("/join", data={"invite": invite, "name": "Eve"})
    assert forged.status_code == 409 and "signs Ann out" in forged.text
    assert ">Ann</a>" in ann.get("/label")
    ann.post("/join", forged.text, name="Eve")
    assert ">Eve</a>" in ann.get("/label")


@pytest.mark.parametrize("kind", ["enter", "form", "join", "bearer", "cookie"])
def test_failed_credentials_are_counted_whatever_the_path(database, app, kind):
    good = accounts.add_labeler(database, "Ann")[1]
    http = TestClient(app, base_url=LOCAL)
    name = app.state.site.cookie

    def guess(token: str) -> int:
        if kind == "bearer":
            return http.get("/api/task", headers={"Authorization": f"Bearer {token}"}).status_code
        if kind == "cookie":
            return http.get("/label", headers={"Cookie": f"{name}={token}"}).status_code
        if kind == "form":
            return http.post("/enter", data={"token": token}).status_code
        return http.get(f"/{kind}", params={"token": token, "invite": token}).status_code

    first = guess("wrong")
    for n in range(30):
        guess(f"wrong{n}")
    bearer = {"Authorization": f"Bearer {good}"}
    assert first in (401, 404) and http.get("/api/task", headers=bearer).status_code == 429
    assert http.get("/enter", params={"token": good}).status_code == 429


def test_an_accounts_failures_follow_it():
    """To other addresses too; who asks from there by another account is not concerned."""
    kept = limits.Limits(1.0)
    for n in range(20):
        kept.failed(f"10.1.0.{n}", "ann")
    with pytest.raises(limits.Refused, match="attempts"):
        kept.may_try("10.2.0.1", "ann")
    kept.may_try("10.2.0.1", "ben")
    kept.may_try("10.2.0.1", None)


@pytest.mark.parametrize(
    "peer,said,proxies,url,client",
    [
        ("10.0.0.1", "6.6.6.6", (), "", "10.0.0.1"),  # nobody's word, without a proxy
        ("127.0.0.1", "6.6.6.6", (), "u", None),  # a proxy that is not configured
        ("127.0.0.1", None, ("127.0.0.1",), "u", None),  # one that does not say
        ("127.0.0.1", "6.6.6.6", ("127.0.0.1",), "u", "6.6.6.6"),
        ("127.0.0.1", "1.1.1.1, 6.6.6.6", ("127.0.0.1",), "u", "6.6.6.6"),  # the first is a lie
        ("127.0.0.1", "6.6.6.6, 10.0.0.9", ("127.0.0.0/8", "10.0.0.0/8"), "u", "6.6.6.6"),
        ("127.0.0.1", "127.0.0.1", ("127.0.0.1",), "u", "127.0.0.1"),  # somebody on its machine
        ("127.0.0.1", "nonsense", ("127.0.0.1",), "u", None),
        ("9.9.9.9", "6.6.6.6", ("127.0.0.1",), "u", "9.9.9.9"),  # past the proxy
        ("2001:db8::1:2:3:4", None, (), "", "2001:db8::/64"),
        ("::ffff:9.9.9.9", None, (), "", "9.9.9.9"),
    ],
)
def test_who_asks(peer, said, proxies, url, client):
    headers = [] if said is None else [(b"x-forwarded-for", said.encode())]
    scope = {"type": "http", "client": (peer, 1), "headers": headers}
    assert limits.client_of(scope, behind_proxy=bool(url), proxies=proxies) == client


def test_behind_a_proxy_that_does_not_say_who_asks_a_stranger_locks_out_nobody(database):
    url = "https://label.example.org"
    app = create_app(Site(database, url=url, per_second=0.5))
    good = accounts.add_labeler(database, "Ann")[1]
    stranger = TestClient(app, base_url=url)
    codes = {stranger.get("/enter", params={"token": f"wrong{n}"}).status_code for n in range(60)}
    assert codes == {401}
    ann = Browser(app, good, base=url)
    ann.get("/label")
    bearer = {"Authorization": f"Bearer {accounts.add_labeler(database, 'Bot')[1]}"}
    assert TestClient(app, base_url=url).get("/api/task", headers=bearer).status_code == 200


def test_requests_that_wait_for_their_body_end(app, monkeypatch):
    monkeypatch.setattr(security, "BODY_SECONDS", 0.05)

    async def never():
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/enter",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("c", 1),
        "server": ("s", 1),
        "scheme": "http",
        "root_path": "",
        "http_version": "1.1",
    }
    asyncio.run(app(scope, never, send))
    assert sent[0]["status"] == 408


def test_content_lengths(app):
    http = TestClient(app, base_url=LOCAL)
    for length in ("\u00b2", "1" * 5000, "-1", "x", ""):
        answer = http.post("/enter", headers={"content-length": length.encode("latin-1")})
        assert answer.status_code == 413 and "x-frame-options" in answer.headers


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,reason",
    [
        *((each, "reserved") for each in ("admin", "ADMIN", " Admin ", "ａｄｍｉｎ", "管理员")),
        ("аdmin", "several alphabets"),  # a Cyrillic а
        ("ad\u200bmin", "invisible"),
        ("a\nb", "invisible"),
        ("\u3164", "invisible"),
        ("...", "no letter"),
        ("Import 7", "for imports"),
        ("simulated 0", "for programs"),
        ("labeler-0123456789", "for programs and pseudonyms"),
        ("x" * 41, "found 41 characters"),
        ("", "found 0 characters"),
    ],
)
def test_names_that_are_refused(database, name, reason):
    with pytest.raises(InputError, match=reason):
        accounts.add_labeler(database, name)


def test_names_are_given_once(database, app):
    accounts.add_labeler(database, "Ann Lee")
    invite = accounts.invite(database)
    for name in (
        "Ann Lee",
        "ann lee",
        "Ann  Lee",
        "ＡＮＮ　ＬＥＥ",
        "Ann\u00a0Lee",
        "A\ufe0fnn Lee",
    ):
        with pytest.raises(InputError, match="is taken"):
            accounts.add_labeler(database, name)
        with pytest.raises(InputError, match="is taken"):
            accounts.accept(database, invite, name)
    for name in ("Ánn Lee", "李安", "Анна Ли", "Ann 李"):
        assert accounts.add_labeler(database, name)[0].name == name
    assert folded("Straße") == folded("STRASSE")


def test_a_program_whose_token_is_lost_gets_another(database):
    first, second = (accounts.add_program(database, "simulated 0") for _ in range(2))
    assert accounts.by_token(database, first) is None
    assert accounts.by_token(database, second).name == "simulated 0"


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["//label/", "/a//b/", "/../x/", "/./", "/标注/", "/a%20b/", "/a;b/", "/a,b", '/a"b/']
)
def test_a_prefix_that_cannot_work_is_refused(prefix):
    with pytest.raises(InputError, match=r"serve.url: found"):
        ServeConfig(url=f"https://lab.example.org{prefix}")


def test_a_prefix_that_the_proxy_leaves_on_is_named(database):
    app = create_app(Site(database, url="https://lab.example.org/label/"))
    http = TestClient(app, base_url="https://lab.example.org")
    answer = http.get("/label/enter")
    assert answer.status_code == 404 and "leaves /label on the address" in answer.text
    assert "There is no such page" in http.get("/nowhere").text


def test_proxies_are_addresses():
    with pytest.raises(InputError, match=r"serve.proxies: found 'nginx'"):
        ServeConfig(url="https://x.org", proxies=("nginx",))
    with pytest.raises(InputError, match=r"serve.proxies: expected serve.url"):
        ServeConfig(proxies=("127.0.0.1",))
    ServeConfig(url="https://x.org/a-b/c_d/", proxies=("127.0.0.1", "10.0.0.0/8", "::1"))


def test_who_listens_beyond_loopback_is_told():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "label.example.org")))
