"""The pages through their application: labelling, chat, dashboard, team; and who is kept out."""

import html
import html.parser
import json
import math
import re
import sqlite3
import subprocess
import sys
import types

import pytest

pytest.importorskip("starlette", reason="the pages need the extra feedback")
pytest.importorskip("httpx2", reason="starlette's test client needs httpx2")

from feedback_site import ROOT, fill, integrity
from plain_browser import RANKS, Browser
from starlette.testclient import TestClient

from rlhf_jax.config.feedback import ServeConfig
from rlhf_jax.data.chat import Message, as_text
from rlhf_jax.errors import InputError
from rlhf_jax.feedback import accounts, conversation, figures, queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.fields import PROMPT_FLAGS, RESPONSE_FLAGS, SKIP_REASONS, USE_CASES
from rlhf_jax.feedback.labels import rankings, read_labels, written
from rlhf_jax.feedback.plots import plot
from rlhf_jax.feedback.standing import add_refusal, read_standing
from rlhf_jax.feedback.web import forms, label_pages, limits, reading, security
from rlhf_jax.feedback.web.address import origin_of
from rlhf_jax.feedback.web.app import create_app
from rlhf_jax.feedback.web.guide import own_guide, task_guide
from rlhf_jax.feedback.web.render import CATALOGS, HERE, duration
from rlhf_jax.feedback.web.serve import admin_token
from rlhf_jax.feedback.web.site import Site
from rlhf_jax.tasks.task import task_names

ATTACKS = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "' OR 1=1; DROP TABLE label; --",
    "javascript:alert(1)",
    "</textarea></form><form action=https://evil.example>",
    "\u202egnp.exe\u202c \u200b \x00 \x1b[31m",
)


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes, as a parser sees them."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def database(tmp_path):
    database = open_database(tmp_path / "store.sqlite", busy_seconds=0.1)
    accounts.set_admin(database, "admin-token")
    return database


@pytest.fixture
def site(database):
    return Site(database, per_second=1e6)


@pytest.fixture
def app(site):
    return create_app(site)


def test_the_server_needs_no_jax():
    code = "import sys, rlhf_jax.feedback.web.serve, rlhf_jax.cli; print('jax' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "False", process.stderr


def test_a_task_from_form_to_training_row(database, app):
    fill(database, 2)
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    page = ann.get("/label")
    assert "policy" not in page  # nobody sees whose answer it is
    page = ann.post(
        "/label",
        page,
        **RANKS,
        **{"quality-A": 6, "flag-B": ["sexual", "opinion"], "note-C": "hm\r\nm"},
        **{"prompt-flag": "ambiguous", "use-case": "chat", "demonstration": "My own"},
    )
    assert "Saved." in page
    (label,) = read_labels(database)
    order = label.body["shown"]
    assert [label.body["ranks"][n] for n in order] == [1, 0, 1, 2]
    assert [label.body["quality"][n] for n in order] == [6, None, None, None]
    flags = label.body["flags"][order[1]]
    assert set(flags) == set(RESPONSE_FLAGS) and {f for f in flags if flags[f]} == {
        *("sexual", "opinion")
    }
    assert label.body["notes"][order[2]] == "hm\nm" and label.body["use_case"] == "chat"
    assert label.body["prompt_flags"]["ambiguous"] and not label.body["prompt_flags"]["sensitive"]
    assert 0 <= label.body["seconds"] < 60
    assert written([label])[0].completion == " My own"

    page = ann.post("/undo", page)  # taken back, filled in as it was
    assert "Taken back: your ranking" in page
    assert re.search(r'name="rank-D" value="3" checked', page) and ">My own</textarea>" in page
    assert re.search(r'name="flag-B" value="sexual" checked', page)
    page = ann.post("/label", page, action="skip", reason="offensive", note="no")
    assert [x.kind for x in read_labels(database)] == ["skip"] and "Skipped." in page
    page = ann.post("/label", page, **RANKS)
    assert "Nothing to label" in page


def test_who_answers_at_once_has_taken_no_time(database, app, monkeypatch):
    fill(database, 1)
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    for module in (label_pages, forms):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(time=lambda: 1_000.96))
    ann.post("/label", ann.get("/label"), **RANKS)
    (label,) = read_labels(database)
    assert label.body["seconds"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    "prompt,answer,before,text",
    [
        ("Write a positive review: with his", " acting ,", "with his", " acting ,"),
        ("This is strange", "ly good ", "This is strange", "ly good"),
        ("One. Two, and", " three", "Two, and", " three"),
        ("a ", "good", "a ", "good"),
        ("今天天气很好。我们", "去公园", "我们", "去公园"),
        ("word " * 50, "end", "… " + "word " * 11, "end"),
        # Answered, not continued:
        ("What is it?", " A dog", "", "A dog"),
        ("TL;DR:", " short", "", "short"),
        ('He said "no."', " Then", "", "Then"),
        ("Write a poem", "\n\nRoses", "", "Roses"),
        ("Code:\n", "\n    x = 1\n", "", "    x = 1"),
        ("", " all", "", "all"),
        ((Message("user", "and then"),), (Message("assistant", "what"),), "", "what"),
    ],
)
def test_the_prompts_end_stands_before_an_answer_that_goes_on_from_it(prompt, answer, before, text):
    assert reading.continued(prompt, answer) == (before, text)


def test_the_prompts_end_is_greyed_on_the_page(database, app):
    responses = [queue.Response(text, "p") for text in ("ly good", " good", ", good", "\ton")]
    queue.add_tasks(database, [queue.NewTask("this is strange", responses)])
    page = Browser(app).get("/label")
    shown = re.findall(r'<span class="before">(.*?)</span>(.*?)</div>', page)
    assert sorted(text for _, text in shown) == ["\ton", " good", ", good", "ly good"]
    assert {before for before, _ in shown} == {"this is strange"}
    assert re.search(r'class="written {2}code" dir="auto">', page)  # the one with a tab
    assert not any(map(reading.is_code, ("a\n b", "verse\n  one indented line", "x")))
    assert reading.is_code("if x:\n  y\n  z") and reading.is_code("```\nx\n```")


def test_what_cannot_be_stored_comes_back_filled_in(database, app, tmp_path):
    fill(database, 1)
    ann = Browser(app)
    page = ann.get("/label")
    submission = ann.fields(page)["submission"]
    given = RANKS | {"demonstration": "long work"}
    page = ann.post("/label", page, 422, rank_A=1, demonstration="long work")
    assert "no rank for B, C, D" in html.unescape(page) and ">long work</textarea>" in page
    with sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        page = ann.post("/label", page, 503, **given)
        assert "the store is busy" in page and ">long work</textarea>" in page
        assert re.search(r'name="rank-D" value="4" checked', page)
        other.rollback()
    again = ann.fields(page)["submission"]
    assert again != submission or read_labels(database) == []
    connect = database._connect

    def small():
        connection = connect()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    database._connect = small
    long = "y" * 19_000
    page = ann.post("/label", page, 507, **given | {"demonstration": long})
    assert "disk of the server is full" in page and long in page
    database._connect = connect
    assert "Nothing to label" in ann.post("/label", page, **given)
    assert len(read_labels(database)) == 1


def test_undo_redirects_and_reloading_repeats_nothing(database, app):
    fill(database, 3)
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    page = ann.get("/label")
    for _ in range(2):
        page = ann.post("/label", page, **RANKS)
    answer = ann.http.post("/undo", data=ann.fields(page), follow_redirects=False)
    assert answer.status_code == 303
    for _ in range(3):
        page = ann.get(answer.headers["location"])
        assert "Taken back: your ranking" in page and len(read_labels(database)) == 1
        assert re.search(r'name="rank-D" value="3" checked', page)  # ranks have no gaps
    # Saved anew, it is no draft any more; a skip is taken back with its reason.
    ann.post("/label", page, **RANKS | {"rank_D": 3})
    ann.post("/label", ann.get("/label"), action="skip", reason="too_long", note="novel")
    page = ann.post("/undo", page)
    assert "Taken back: that you skipped" in page and '"too_long" selected' in page
    assert 'value="novel"' in page and "checked" not in page.partition('id="keys-on"')[0]
    ann.post("/undo", page), ann.post("/undo", page)
    assert "There is nothing to take back" in ann.post("/undo", page)


def test_ranks_from_ratings_without_a_script(database, app):
    fill(database, 1)
    ann = Browser(app)
    given = {f"quality-{letter}": n for letter, n in zip("ABCD", (3, 7, 3, 1), strict=True)}
    page = ann.post("/label", ann.get("/label"), action="fill", **given, demonstration="mine")
    ranks = re.findall(r'name="rank-(\w)" value="(\d)" checked', page)
    assert ranks == [("A", "2"), ("B", "1"), ("C", "2"), ("D", "3")] and ">mine<" in page
    assert read_labels(database) == []
    half = forms.Entered([forms.Answer("A", "", rank=4), forms.Answer("B", "", quality=2)])
    assert [x.rank for x in forms.ranked_by_ratings(half).answers] == [4, 1]


def test_two_tabs(database, app):
    fill(database, 1)
    ann = Browser(app)
    first, second = ann.get("/label"), ann.get("/label")
    ann.post("/label", first, **RANKS)
    ann.post("/label", first, **RANKS)  # a double click
    page = ann.post("/label", second, 409, **RANKS | {"demonstration": "kept"})
    assert "You have labelled this task before" in page and ">kept</textarea>" in page
    assert len(read_labels(database)) == 1


def test_api(database, app):
    fill(database, 2)
    token = accounts.add_labeler(database, "Bot")[1]
    http = TestClient(app, base_url="http://localhost")
    bearer = {"Authorization": f"Bearer {token}"}
    task = http.get("/api/task", headers=bearer).json()
    label = {"task": task["task"], "ranks": [3, 0, 1, 1], "submission": "a" * 32}
    assert http.post("/api/label", headers=bearer, json=label).json() == {
        "stored": True,
        "again": False,
    }
    assert http.post("/api/label", headers=bearer, json=label).json()["again"]
    (stored,) = rankings(read_labels(database))
    by_text = {r.text: rank for r, rank in zip(stored.responses, stored.ranks, strict=True)}
    assert [by_text[text] for text in task["responses"]] == [2, 0, 1, 1]
    assert http.get("/api/status", headers=bearer).json() == {
        "open": 1,
        "labels": 1,
        "wanted": 0,
    }
    for body, status in [
        (b"{", 422),
        (b"[" * 100_000, 422),
        (b"[]", 422),
        (b"{}", 422),
        (json.dumps(label | {"submission": "b" * 32}).encode(), 409),
        (json.dumps(label | {"submission": {}}).encode(), 422),
        (json.dumps(label | {"submission": "c" * 32, "task": "' OR 1=1 --"}).encode(), 422),
        (json.dumps(label | {"submission": "d" * 32, "task": "\ud83d"}).encode(), 422),
        (json.dumps(label | {"submission": "e" * 32, "notes": ["\ud83d"] * 4}).encode(), 422),
    ]:
        assert http.post("/api/label", headers=bearer, content=body).status_code == status
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {token}"}):
        assert http.get("/api/task", headers=headers).status_code == 401
    # A browser's cookie is no credential here, so no other site can use it.
    assert Browser(app).http.post("/api/label", json=label).status_code == 401


# --- the guide, and how the loop stands -----------------------------------------------------------


def test_the_guide_is_shown_until_it_is_put_away(database, tmp_path):
    fill(database, 1, wanted=2)
    path = tmp_path / "guide.md"
    path.write_text("# Judge *kindly*\n\n<script>x</script>")
    (tmp_path / "guide.zh.md").write_text("请**仔细**判断")
    app = create_app(Site(database, guide=own_guide(path), per_second=1e6))
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    page = ann.get("/label")
    assert "<h1>Judge <em>kindly</em></h1>" in page and "&lt;script&gt;x" in page
    assert "7 is best" in page and "1 is best" in page and "the end of the prompt" in page
    is_open = lambda page: re.search(r"<dialog [^>]*open>", page) is not None
    assert is_open(page)
    assert not is_open(ann.post("/guide", page)) and not is_open(ann.get("/label"))
    assert is_open(ann.get("/label?guide"))
    chinese = Browser(app, **{"Accept-Language": "zh"})
    assert "请<strong>仔细</strong>判断" in chinese.get("/label")
    path.write_text("Another text")  # is shown to those who know the old one
    ann.http.app = create_app(Site(database, guide=own_guide(path), per_second=1e6))
    again = Browser(ann.http.app, None)
    again.http.cookies = ann.http.cookies
    assert is_open(again.get("/label"))


def test_every_task_has_a_guide_in_both_languages():
    names = task_names()
    guides = {name: task_guide(name) for name in [*names, "my_task.py"]}
    for guide in guides.values():
        assert guide.pages.keys() == CATALOGS.keys() and guide.pages["en"] != guide.pages["zh"]
        assert re.search("[\u4e00-\u9fff]{4}", guide.pages["zh"])
    own = {name for name in names if guides[name] != guides["my_task.py"]}
    # A language model's task and those whose answers a program checks ask people nothing.
    assert own == set(names) - {"language", "arithmetic", "short_instructions"}


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "no such file"),
        (b" \n", "found 0 characters"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (b"x" * 20_001, "found 20001 characters, expected 1 to 20000"),
    ],
)
def test_a_guide_that_cannot_be_shown_is_refused(tmp_path, content, message):
    path = tmp_path / "guide.md"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"--serve.guide.*{message}"):
        own_guide(path)


def test_people_see_how_far_the_next_round_is(database, app):
    fill(database, 2)
    ann = Browser(app)
    assert "No round is running" in ann.get("/label")
    figures.add_round(database, 3, {"labels": 40, "samples": []})
    waiting = {"round": 4, "new": 0, "wanted": 200, "goal": 200}
    figures.set_status(database, "updater", phase="waiting", **waiting)
    page = ann.post("/label", ann.get("/label"), **RANKS)
    assert "1 of 200 labels until the model learns again" in page and "round 3 is out" in page
    for goal, new in ((201, 0), (1, 200), (-300, 200)):  # never under 0, never over what is wanted
        figures.set_status(database, "updater", phase="waiting", **waiting | {"goal": goal})
        assert read_standing(database).new == new
    figures.set_status(database, "updater", phase="ppo", round=4)
    assert "is learning now; labels: 1" in ann.get("/label")
    with database.write() as rows:  # silent for too long
        rows("UPDATE status SET updated = updated - 999")
    assert read_standing(database).state == "idle"


# --- chat -----------------------------------------------------------------------------------------


def test_chat(database, app):
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    page = ann.get("/chat")
    assert "No process is answering now" in page
    page = ann.post("/chat", page, action="say", message="mail me: jo@example.org")
    (question,) = conversation.waiting(database)
    assert question.prompt == "mail me: [EMAIL]" and "The policy is answering" in page
    answers = [queue.Response(f" {word}", "runs/p") for word in ("red", "red", "blue")]
    figures.set_status(database, "answerer", phase="ready", round=2)
    conversation.answer(database, question, answers, round=2, sampling={"temperature": 0.7})
    page = ann.get("/chat")
    assert "Which of these is better" in page and "runs/p" not in page
    forms = re.findall(r"<form.*?</form>", page, re.S)
    of = lambda word: next(
        form for form in forms if f'value="{word}"' in form or f">{word}<" in form
    )
    (turn,) = conversation.read_turns(database, _account(database, "Ann"), _conversation(page))
    assert len(turn.task.responses) == 2  # equal answers are kept once
    ann.post("/chat", of("better"), action="better")
    ann.post("/chat", of("up"), action="up")
    ann.post("/chat", of("correct"), action="correct", text="violet")
    made = rankings(read_labels(database))
    assert sorted(each.source for each in made) == ["correction", "ranking"]
    first = turn.task.order(_account(database, "Ann"))[0]
    chosen = next(each for each in made if each.source == "ranking")
    assert chosen.ranks[first] == 0 and sorted(chosen.ranks) == [0, 1]
    assert written(read_labels(database)) == [
        ("mail me: [EMAIL]", " violet", read_labels(database)[0].labeler)
    ]
    for _ in range(conversation.MOST_WAITING):
        page = ann.post("/chat", page, action="say", message="and now?")
    page = ann.post("/chat", page, 429, action="say", message="too much")
    assert ">too much</textarea>" in page
    ben = Browser(app, accounts.add_labeler(database, "Ben")[1])
    assert "violet" not in ben.get(f"/chat?conversation={_conversation(page)}")


def _account(database, name):
    row = next(row for row in accounts.list_accounts(database) if row["name"] == name)
    return accounts.Account(row["id"], row["name"], row["role"])


def _conversation(page):
    return re.search(r'name="conversation" value="(\w+)"', page)[1]


def test_earlier_conversations_examples_and_the_round_that_answers(database, app):
    queue.add_tasks(
        database,
        [queue.NewTask(p, [queue.Response(" x", "p")]) for p in ("a b & c", "a b & c", "y" * 161)],
    )
    token = accounts.add_labeler(database, "Ann")[1]
    ann, account = Browser(app, token), _account(database, "Ann")
    page = ann.get("/chat")
    assert "Each message stands alone" in page and "Earlier conversations" not in page
    (example,) = re.findall(r'href="(/chat\?[^"]*message=[^"]*)"', page)
    assert ">a b &amp; c</textarea>" in ann.get(html.unescape(example))
    figures.set_status(database, "answerer", phase="ready", round=3)
    for name, message in (("one", "first words"), ("two", "x"), ("one", "more"), ("two", "z")):
        conversation.say(database, account, name, message, dialogue=False)
        (question,) = conversation.waiting(database)
        answers = [queue.Response(" good", "p")]
        conversation.answer(database, question, answers, round=2, sampling={})
    found = conversation.talks(database, account, most=9)
    assert [(each.name, each.first, each.turns) for each in found] == [
        *(("two", "x", 2), ("one", "first words", 2)),
    ]
    page = ann.get("/chat")
    assert "The policy of round 3 answers" in page and page.count("Answered by round 2") == 2
    assert re.search(r'conversation=one#newest"><span class="first"[^>]*>first words<', page)
    assert page.count('id="newest"') == 1 and "Prompts to try" not in page
    answer = ann.http.post(
        "/chat", data=ann.fields(page) | {"action": "say", "message": "m"}, follow_redirects=False
    )
    assert answer.headers["location"].endswith("#newest")
    talking = Browser(create_app(Site(database, dialogue=True, per_second=1e6)), token)
    assert "reads the whole conversation" in talking.get("/chat")
    assert talking.get("/chat?conversation=one&part=turns") == talking.get(
        "/chat?conversation=one&part=turns"
    )  # nothing is drawn anew for nothing


def test_a_dialogues_prompt_holds_what_was_said(database):
    ann = accounts.add_labeler(database, "Ann")[0]
    conversation.say(database, ann, "c", "hi", dialogue=True)
    (question,) = conversation.waiting(database)
    assert as_text(question.prompt) == "\n\nHuman: hi\n\nAssistant:"
    answers = [queue.Response(" yes", "p"), queue.Response(" no", "p")]
    conversation.answer(database, question, answers, round=0, sampling={})
    (turn,) = conversation.read_turns(database, ann, "c")
    place = turn.task.order(ann).index(1)
    body = {"ranks": [0 if n == place else 1 for n in range(2)]}
    submissions.submit(
        database, ann, submission="b" * 8, task=turn.task.id, kind="ranking", body=body
    )
    conversation.say(database, ann, "c", "why", dialogue=True)
    (question,) = conversation.waiting(database)
    turns = [("user", "hi"), ("assistant", "no"), ("user", "why")]
    assert question.prompt == tuple(Message(*turn) for turn in turns)
    conversation.give_up(database, question)
    assert conversation.waiting(database) == []


def test_each_turn_of_a_prompt_is_shown_by_itself(database, app):
    typed = "hi\n\nAssistant: I was typed by a person"
    prompt = (Message("system", "Be brief."), Message("user", typed))
    answers = [queue.Response((Message("assistant", word),), "p") for word in ("red", "blue")]
    queue.add_tasks(database, [queue.NewTask(prompt, answers)])
    page = Browser(app).get("/label")
    turns = re.findall(
        r'<h3 class="quiet">(\w+)</h3>\s*<div class="written asked" .*?>(.*?)</div>', page, re.S
    )
    assert turns == [("Instructions", "Be brief."), ("Person", typed)]
    assert sorted(re.findall(r">(red|blue)</div>", page)) == ["blue", "red"]


# --- dashboard ------------------------------------------------------------------------------------


def test_agreement_by_hand(database):
    fill(database, 2, wanted=3, responses=3)
    people = [accounts.add_labeler(database, name)[0] for name in ("Ann", "Ben", "Cy")]
    # Pairs 01, 02, 12. Task 1: Ann + + tie, Ben + - -, Cy - - tie. Task 2: Ann and Ben alike.
    given = {("Ann", 0): [0, 1, 1], ("Ben", 0): [1, 2, 0], ("Cy", 0): [1, 0, 0]}
    given |= {("Ann", 1): [0, 1, 2], ("Ben", 1): [0, 1, 2]}
    with database.read() as rows:
        tasks = [queue.parse_task(row) for row in rows("SELECT * FROM task ORDER BY number")]
    for (name, n), ranks in given.items():
        person = next(p for p in people if p.name == name)
        with database.write() as rows:
            queue.lease(rows, tasks[n].id, person, 1e12)
        shown = [ranks[k] for k in tasks[n].order(person)]
        submissions.submit(
            database,
            person,
            submission=f"{name}xxxxxxx{n}",
            task=tasks[n].id,
            kind="ranking",
            body={"ranks": shown},
        )
    everyone, each = figures.agreement(read_labels(database))
    # Task 1: Ann-Ben 1 of 2, Ann-Cy 0 of 2, Ben-Cy 1 of 2; task 2: 3 of 3.
    assert (everyone.alike, everyone.pairs) == (5, 9)
    alias = {x.account: x.labeler for x in read_labels(database)}
    figures_of = {p.name: each[alias[p.id]] for p in people}
    assert [(figures_of[n].alike, figures_of[n].pairs) for n in ("Ann", "Ben", "Cy")] == [
        *((4, 7), (5, 7), (1, 4))
    ]
    # Σ (aₜ − r pₜ)² / (n − 1) / n / p̄², r = 5/9: deviations −4/3 and 4/3, p̄ = 4.5
    assert everyone.half_width == pytest.approx(1.96 * ((2 * (4 / 3) ** 2) / 2) ** 0.5 / 4.5)
    alike, pairs, half_width = figures.ratio([(3, 3), (2, 2)])
    assert (alike, pairs) == (5, 5) and math.isnan(half_width), "no spread is no certainty"


def test_dashboard(database, app):
    fill(database, 3)
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    empty = ann.get("/dashboard")
    assert "Nothing to show yet" in empty and "72.6 ± 1.5 %" in empty
    ann.post("/label", ann.get("/label"), **RANKS)
    alias = read_labels(database)[0].labeler
    for number, gold in ((0, -0.2), (1, 0.35)):
        body = {"gold": {"mean": gold, "ci": 0.05}, "score": {"mean": 2 * gold, "ci": 0.1}}
        body |= {"kl": {"mean": 2.5 * number, "ci": 0.1}, "accuracy": 0.7 if number else None}
        body["labelers"] = {alias: {"accuracy": 0.715, "pairs": 42}}
        body["samples"] = [{"prompt": "p", "before": "dull", "after": ATTACKS[0]}]
        figures.add_round(database, number, body)
    figures.set_status(database, "updater", phase="ppo", round=2)
    page = ann.get("/dashboard?part=figures")
    assert "<html" not in page and "71.5 %" in page and "improving the policy by PPO" in page
    assert "Round 0 -0.2 ± 0.05, Round 1 0.35 ± 0.05" in page and page.count("<polyline") == 4
    assert "<script" not in page and html.escape(ATTACKS[0], quote=False)[:20] in page
    ben = Browser(app, accounts.add_labeler(database, "Ben")[1])
    assert "Ann" not in ben.get("/dashboard") and alias in ben.get("/dashboard")
    assert "Ann" in Browser(app).get("/dashboard")


def test_the_dashboard_says_why_a_round_trained_no_policy(database, app):
    tried = {"accuracy": 0.483, "half_width": 0.11, "pairs": 35, "gate": 0.55, "wait": 200}
    for labels in (203, 403, 403):  # the last one again, after a crash
        add_refusal(database, 1, tried | {"labels": labels})
    page = Browser(app).get("/dashboard")
    assert "Round 1 trained no policy" in page and "from 403 labels" in page
    assert "orders 48.3 % ± 11 of 35 held-out pairs" in page and "needs 55.0 %" in page
    assert "200 labels after this one" in page and "The interval reaches the gate" in page
    assert page.count("trained no policy</th>") == 2
    body = {"gold": None, "score": {"mean": 1.0, "ci": 0.1}, "kl": {"mean": 1.0, "ci": 0.1}}
    body |= {"accuracy": 0.6, "labels": 600, "seconds": 1123.0, "samples": []}
    figures.add_round(database, 1, body)  # then it came out
    page = Browser(app).get("/dashboard")
    assert "What helps" not in page and page.count("trained no policy</th>") == 2
    assert "19 min" in page and "1123" not in page
    assert "没有训练策略" in Browser(app, **{"Accept-Language": "zh"}).get("/dashboard")


def test_a_plots_axis_holds_zero_and_a_share_is_drawn_from_0_to_1():
    drawn = plot([(1, 0.62, 0.06), (2, 0.97, 0.1), (3, float("nan"), 0.0)], limits=(0.0, 1.0))
    assert [tick.text for tick in drawn.y_ticks] == ["0", "0.5", "1"] and len(drawn.points) == 2
    assert drawn.points[1].high == drawn.y_ticks[-1].at  # the interval ends where shares do
    assert drawn.points[0].text == "0.62 ± 0.06"
    drawn = plot([(0, 3.0, 0.5), (1, 3.1, float("nan"))], reference=0.5)
    assert drawn.y_ticks[0].text == "0" and float(drawn.y_ticks[-1].text) >= 3.5
    assert drawn.points[1].low == drawn.points[1].high == drawn.points[1].y
    assert drawn.y_ticks[-1].at < drawn.reference < drawn.y_ticks[0].at
    assert plot([]) is None


def test_durations_are_in_units_that_one_reads():
    found = [duration(seconds) for seconds in (0.4, 42, 119, 120, 1123, 7300, 200_000)]
    assert found == [
        *(("seconds", 0), ("seconds", 42), ("seconds", 119), ("minutes", 2), ("minutes", 19)),
        *(("hours", 2), ("days", 2)),
    ]


# --- who comes in ---------------------------------------------------------------------------------


def test_the_team_page_says_who_labelled_and_who_is_invited(database, app):
    fill(database, 1)
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    accounts.add_labeler(database, "Ben")
    ann.post("/label", ann.get("/label"), **RANKS)
    admin = Browser(app)
    page = admin.get("/team")
    rows = [
        " ".join(re.sub("<[^>]*>", " ", row).split())
        for row in re.findall("<tr.*?</tr>", page, re.S)
    ]
    row = lambda name: next(row for row in rows if row.startswith(name))
    assert re.match(r"Ann 1 \d+ s ago labeler-", row("Ann"))
    assert row("Ben").startswith("Ben 0 never labeler-")
    assert "No invitation is open" in page and "close-invites" not in page
    page = admin.post("/team", page, action="invite")
    assert "Open invitations: 1" in page and "works for 7 days more" in page
    assert re.search(r'id="link" readonly value="http://localhost/join\?invite=', page)
    assert "No invitation is open" in admin.post("/team", page, action="close-invites")


def test_invite_link_account_and_revocation(database, app):
    admin, eve = Browser(app), Browser(app, None)
    page = admin.post("/team", admin.get("/team"), action="invite")
    link = re.search(r"http://localhost/join\?invite=[\w-]+", html.unescape(page))[0]
    page = eve.get(link)
    eve.post("/join", page, 422, name="a\u202eb")
    page = eve.post("/join", page, name="Eve")
    token = re.search(r'class="token">([\w-]+)<', page)[1]
    assert "Nothing to label" in eve.get("/label")
    Browser(app, None).get(link, 404)  # used
    Browser(app, token)
    for path in ("/team", "/export?format=native"):
        eve.get(path, 403)
    eve.post("/team", eve.get("/account"), 403, action="invite")
    who = _account(database, "Eve").id
    admin.post("/team", admin.get("/team"), action="revoke", account=who)
    eve.get("/label", 401)
    assert Browser(app, None).http.get("/enter", params={"token": token}).status_code == 401
    # The administrator can be neither revoked nor deleted from the page.
    admin.post("/team", admin.get("/team"), action="revoke", account="admin")
    admin.post("/team", admin.get("/team"), action="delete", sure="yes", account="admin")
    admin.get("/team")
    admin.post("/team", admin.get("/team"), action="delete", sure="yes", account=who)
    assert [row["name"] for row in accounts.list_accounts(database)] == ["admin"]


def test_labels_are_read_anew_when_they_change(database, site):
    fill(database, 2, wanted=2)
    ann, ben = (accounts.add_labeler(database, name)[0] for name in ("Ann", "Ben"))

    def rank(person, submission):
        task = queue.lease_task(database, person)
        names = {"submission": submission, "task": task.id, "kind": "ranking"}
        submissions.submit(database, person, **names, body={"ranks": [0, 1, 2, 3]})

    assert site.labels() == []
    for n, person in enumerate((ann, ben, ann)):
        rank(person, f"number{n:03}")
        assert len(site.labels()) == n + 1 and site.labels() is site.labels()
    submissions.undo(database, ann)
    assert len(site.labels()) == 2
    accounts.delete_account(database, ann.id)
    rank(ben, "number009")  # as many as before, with the same number
    assert {label.account for label in site.labels()} == {ben.id}


def test_a_labeler_deletes_their_own_data(database, app):
    fill(database, 1)
    ann = Browser(app, accounts.add_labeler(database, "Ann")[1])
    ann.post("/label", ann.get("/label"), **RANKS)
    ann.post("/account", ann.get("/account"))  # not sure
    assert len(read_labels(database)) == 1
    assert "has been deleted" in ann.post("/account", ann.get("/account"), sure="yes")
    assert read_labels(database) == []
    ann.get("/label", 401)


@pytest.mark.parametrize("path", ["/label", "/chat", "/dashboard", "/team", "/account", "/export"])
def test_nobody_comes_in_without_a_token(app, path):
    stranger = Browser(app, None)
    for token in ("", "x", "admin-token ' OR 1=1", "../token"):
        answer = stranger.http.get("/enter", params={"token": token})
        assert "set-cookie" not in answer.headers
    stranger.get(path, 401)
    stranger.http.cookies.set("session", "admin")
    assert stranger.http.post("/label", data={"csrf": "x"}).status_code == 401


def test_cookies_and_headers(database, app):
    answer = Browser(app, None).http.get("/enter", params={"token": "admin-token"})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "admin-token" not in cookie
    assert "secure" not in cookie
    for path in ("/", "/label", "/nowhere", "/static/page.js", "/api/task"):
        headers = Browser(app, None).http.get(path).headers
        assert headers["content-security-policy"] == security.POLICY
        assert "unsafe" not in security.POLICY and headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store" and "server" not in headers
    public = create_app(Site(database, url="https://label.example.org"))
    http = TestClient(public, base_url="https://label.example.org")
    answer = http.get("/enter", params={"token": "admin-token"})
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_forms_of_other_sites_are_refused(database, app, headers):
    fill(database, 1)
    ann = Browser(app)
    ann.post("/label", ann.get("/label"), 403, headers=headers, **RANKS)
    ann.post("/team", ann.get("/team"), 403, headers=headers, action="invite")
    stranger = Browser(app, None)
    form = {"token": "admin-token"}
    assert stranger.http.post("/enter", data=form, headers=headers).status_code == 403
    assert read_labels(database) == []


def test_a_form_without_its_sessions_token_is_refused(database, app):
    fill(database, 1)
    ann, other = Browser(app), Browser(app, accounts.add_labeler(database, "Eve")[1])
    page, theirs = ann.get("/label"), other.fields(other.get("/account"))["csrf"]
    for csrf in ("", "x", theirs, "\u00e9"):
        for path in ("/label", "/undo", "/leave", "/account", "/team", "/chat", "/language"):
            ann.post(path, page, 403, csrf=csrf, **RANKS)
    assert read_labels(database) == []
    ann.post("/label", page, **RANKS)


def test_hosts_that_are_not_ours_are_refused(app):
    """DNS rebinding: the attacker's page has another name for this address."""
    for host in ("evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "[::1"):
        answer = Browser(app, None).http.get("/enter", headers={"Host": host})
        assert answer.status_code == 421, host
    for host in ("localhost:8420", "127.0.0.1:8420", "[::1]:8420"):
        assert Browser(app, None).http.get("/enter", headers={"Host": host}).status_code == 200


# --- behind a proxy -------------------------------------------------------------------------------


def test_forms_pass_a_proxy_that_names_the_upstream_as_host(database):
    """nginx's own ``proxy_pass http://127.0.0.1:8420`` sends its upstream's name as the host."""
    fill(database, 1)
    url = "https://label.example.org"
    app = create_app(Site(database, url=url, per_second=1e6))
    own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    for host in ("127.0.0.1:8420", "label.example.org"):
        ann = Browser(app, base=f"https://{host}")
        page = ann.get("/label")
        for origin in (
            *("https://evil.example", "http://label.example.org", "https://label.example.org:444"),
            *("https://label.example.org.evil.example", "http://127.0.0.1:8420", "null"),
        ):
            ann.post("/label", page, 403, headers=own | {"Origin": origin}, **RANKS)
        ann.post("/label", page, 403, headers=own | {"Sec-Fetch-Site": "cross-site"}, **RANKS)
        ann.post("/language", page, headers=own, language="zh", back="/label")
    ann.post("/label", page, headers=own, **RANKS)
    assert len(read_labels(database)) == 1
    stranger = Browser(app, None, base=url)
    for host in ("evil.example", "label.example.org.evil.example"):
        answer = stranger.http.post("/enter", data={"token": "x"}, headers=own | {"Host": host})
        assert answer.status_code == 421
    answer = stranger.http.post("/enter", data={"token": "admin-token"}, headers=own)
    assert answer.status_code == 200


class Prefixed:
    """A proxy that shows an application below a prefix, which it takes off: nginx's
    ``location /label/ { proxy_pass http://127.0.0.1:8420/; }``."""

    def __init__(self, app, prefix: str):
        self.app, self.prefix = app, prefix

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            assert scope["path"].startswith(self.prefix + "/"), scope["path"]
            scope = {**scope, "path": scope["path"].removeprefix(self.prefix)}
        await self.app(scope, receive, send)


def test_everything_is_below_the_prefix(database):
    fill(database, 1)
    site = Site(database, url="https://lab.example.org/label/", per_second=1e6)
    http = TestClient(
        Prefixed(create_app(site), "/label"),
        base_url="https://lab.example.org",
        headers={"Origin": "https://lab.example.org"},
    )
    entered = http.get("/label/enter", params={"token": "admin-token"})
    assert "path=/label;" in entered.headers["set-cookie"].lower()
    seen, waiting = set(), ["/label/", "/label/enter", "/label/join?invite=x", "/label/nowhere"]
    while waiting:  # every page that a link or a form of another leads to
        path = waiting.pop()
        seen.add(path)
        answer = http.get(path)
        assert answer.status_code in (200, 404, 405), path
        for _, attributes in Tags(answer.text).found:
            for name in ("href", "src", "action", "data-live", "data-next"):
                link = attributes.get(name) or "/label/"
                assert link.startswith("/label/") or link in ("#main", "#undo"), (path, name, link)
                is_new = link[0] == "/" and link.partition("?")[0] not in map(
                    bare, seen | set(waiting)
                )
                waiting += [link] * is_new
    assert {"/label/label", "/label/chat", "/label/dashboard", "/label/account"} <= set(
        map(bare, seen)
    )
    form = {**Browser.fields(None, http.get("/label/label").text), "rank-A": 1}
    form |= {f"rank-{letter}": 1 for letter in "BCD"}
    scripted = http.post("/label/label", data=form, headers={"Accept": "application/json"})
    assert scripted.json()["next"].startswith("/label/label?did=saved&task=")
    form = Browser.fields(None, http.get("/label/account").text)
    page = http.post("/label/team", data=form | {"action": "invite"}).text
    assert "https://lab.example.org/label/join?invite=" in page
    left = http.post("/label/leave", data=form, follow_redirects=False)
    assert left.headers["location"] == "/label/enter"
    assert "path=/label;" in left.headers["set-cookie"].lower()
    assert http.get("/label/", follow_redirects=False).headers["location"] == "/label/enter"


def bare(link: str) -> str:
    return link.partition("?")[0]


def test_what_is_no_address_of_a_site_is_refused():
    for url in (
        "label.example.org",
        "ftp://x.org",
        "https://x.org/?a",
        "https://x.org:0",
        "https://",
    ):
        with pytest.raises(InputError, match=r"serve.url: found"):
            ServeConfig(url=url)
    assert origin_of("https://Label.Example.org:443/x/") == "https://label.example.org"
    assert origin_of("http://[::1]:8420") == "http://[::1]:8420"


# --- how much -------------------------------------------------------------------------------------


def test_bodies_are_limited(app):
    ann = Browser(app)
    page = ann.get("/chat")
    big = "x" * (security.BODY_LIMIT + 1)
    ann.post("/chat", page, 413, message=big)

    def chunks():  # without a content-length
        for _ in range(40):
            yield b"y" * (security.BODY_LIMIT // 30)

    assert ann.http.post("/api/label", content=chunks()).status_code == 413
    assert ann.http.post("/chat", content=b"x", headers={"content-length": "-1"}).status_code in (
        *(400, 413),
    )


def test_rates_are_limited(database):
    """An account's own, whatever it shows beside its token: rates are not the asker's choice."""
    app = create_app(Site(database, per_second=0.5))
    token = accounts.add_labeler(database, "Bot")[1]
    http = TestClient(app, base_url="http://localhost")
    ask = lambda n: http.get(
        "/api/status", headers={"Authorization": f"Bearer {token}", "Cookie": f"any={n}"}
    )
    codes = [ask(n).status_code for n in range(10)]
    assert codes[:2] == [200] * 2 and 429 in codes


def test_buckets():
    buckets = limits.Buckets(2.0, burst=1.0)
    assert buckets.take("a", 0.0) and not buckets.take("a", 0.1) and buckets.take("b", 0.1)
    assert buckets.is_empty("a", 0.2) and not buckets.is_empty("c", 0.2)
    assert buckets.take("a", 0.7)
    for n in range(limits.MOST_BUCKETS + 10):
        buckets.take(str(n), 1.0)
    assert len(buckets._buckets) == limits.MOST_BUCKETS


@pytest.mark.parametrize(
    "name",
    ["../site.py", "..%2f..%2fstore.sqlite", "%2e%2e/app.py", "/etc/passwd", "page.css%00.js", ""],
)
def test_no_path_leads_to_other_files(app, name):
    ann = Browser(app)
    for path in (f"/static/{name}", f"/{name}", f"/export?format={name}"):
        answer = ann.http.get(path)
        assert answer.status_code in (404, 422) or "<h1>" in answer.text
        assert "import" not in answer.text and "SQLite format" not in answer.text


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.cases(3)
def test_what_people_and_models_write_is_only_text(database, app, attack):
    responses = [queue.Response(f" {attack} {n}", attack) for n in range(4)]
    queue.add_tasks(database, [queue.NewTask(attack, responses) for _ in range(2)])
    ann = Browser(app)
    page = ann.get("/label")
    given = {f"rank_{letter}": 1 for letter in "ABCD"} | {"demonstration": attack}
    pages = [page, ann.post("/label", page, 422, rank_A=attack, **{"note-A": attack})]
    ann.post("/label", page, **given, **{"note-A": attack})
    ann.post("/chat", ann.get("/chat"), action="say", message=attack)
    pages += [ann.post("/undo", page), ann.get("/chat")]
    pages.append(ann.get("/label", did=attack, task=attack, guide=attack))
    pages.append(ann.get("/chat", message=attack))
    for page in pages:
        tags = Tags(page).found
        assert [attributes for tag, attributes in tags if tag == "script"] == [
            {"src": "/static/page.js", "defer": None}
        ] * page.count("<!doctype")
        names = {tag for tag, _ in tags}
        assert not names & {"img", "iframe", "object", "style", "base", "embed"}
        for tag, attributes in tags:
            assert not any(name.startswith("on") or name == "style" for name in attributes)
            for name in ("href", "src", "action", "formaction", "content"):
                assert re.match(r"/|#|width=|10$|3$|20$", attributes.get(name) or "/"), (tag, name)
        text = re.sub(r"<textarea.*?</textarea>|<[^>]*>", "", page, flags=re.S)
        assert "\u202e" not in text and "\x1b" not in text
        assert "49" not in text or "7 * 7" not in attack
    exported = ann.get("/export?format=native")
    assert all(json.loads(line) for line in exported.split("\n") if line)
    assert integrity(database) == "ok"


def test_redirects_stay_here(app):
    ann = Browser(app)
    page = ann.get("/label")
    for back in ("https://evil.example", "//evil.example", "/\\evil.example", "/enter?token=x"):
        answer = ann.http.post(
            "/language",
            data=ann.fields(page) | {"language": "zh", "back": back},
            follow_redirects=False,
        )
        assert answer.headers["location"] == "/"


# --- languages and files --------------------------------------------------------------------------


def test_catalogs_match(app):
    assert CATALOGS["en"].keys() == CATALOGS["zh"].keys()
    names = lambda text: sorted(re.findall(r"{(\w+)}", text))
    for key, text in CATALOGS["en"].items():
        assert names(text) == names(CATALOGS["zh"][key]) and CATALOGS["zh"][key].strip()
    used = "".join(path.read_text() for path in (HERE / "templates").iterdir())
    used += "".join(path.read_text() for path in HERE.glob("*.py"))
    ids = {"flag.": RESPONSE_FLAGS, "prompt.": PROMPT_FLAGS, "use.": USE_CASES}
    wanted = {p + i for p, known in {**ids, "skip.": SKIP_REASONS}.items() for i in known}
    wanted |= set(re.findall(r'\bt\("([a-z_]+(?:\.[a-z_]+)*)"[,)]', used))
    wanted |= set(re.findall(r"\bt\('([a-z_]+(?:\.[a-z_]+)*)'[,)]", used))
    assert wanted <= CATALOGS["en"].keys()
    prefixes = ("flag.", "prompt.", "use.", "skip.", "phase.", "process.", "error.", "nav.")
    prefixes += ("role.", "happened.", "time.")
    unused = {key for key in CATALOGS["en"].keys() - wanted if not key.startswith(prefixes)}
    assert not unused


def test_both_languages(database, app):
    fill(database, 1)
    ann = Browser(app, **{"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"})
    page = ann.get("/label")
    assert '<html lang="zh-CN">' in page and "整体质量" in page
    page = ann.post("/language", page, language="en", back="/label")
    assert '<html lang="en">' in page and "Overall quality" in page
    ann.post("/label", page, **RANKS)
    assert "flags" in read_labels(database)[0].body  # ids in the data, in any language


def test_no_inline_code_in_templates():
    for path in (HERE / "templates").iterdir():
        text = path.read_text()
        assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son[a-z]+=|\|\s*safe", text), path


def test_the_administrators_token_is_kept_for_its_owner(tmp_path):
    token = admin_token(tmp_path / "feedback", "")
    assert admin_token(tmp_path / "feedback", "") == token and len(token) >= 43
    assert (tmp_path / "feedback" / "token").stat().st_mode & 0o077 == 0
    assert admin_token(tmp_path / "feedback", "m" * 16) == "m" * 16
