"""The pages in a real browser: keys, dragging, drafts, no JavaScript, attacks, phones, axe."""

import os
import re
import shutil

import pytest
from feedback_site import fill, running

from rlhf_jax.feedback import accounts, conversation, figures, queue
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labels import rankings, read_labels
from rlhf_jax.feedback.web.guide import GENERAL, task_guide

pytest.importorskip("uvicorn", reason="the server needs the extra feedback")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"),
]
FLAGS = ("--disable-gpu", "--disable-background-networking", "--disable-sync")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium():
    sandbox = () if os.getuid() else ("--no-sandbox",)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *sandbox])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    store = tmp_path_factory.mktemp("site") / "store.sqlite"
    with running(store) as (port, _):
        yield open_database(store), f"http://127.0.0.1:{port}"


@pytest.fixture
def database(server):
    """The store with nothing in it but the administrator."""
    database, _ = server
    with database.write() as rows:
        rows("DELETE FROM retraction")
        for table in ("turn", "label", "lease", "task", "session", "invite"):
            rows(f"DELETE FROM {table}")
        for table in ("round", "refusal", "status"):
            rows(f"DELETE FROM {table}")
        rows("DELETE FROM account WHERE id <> 'admin'")
    return database


@pytest.fixture
def visit(chromium, server, database):
    """``visit(...) -> page`` of a new labeler who is signed in; its errors fail the test."""
    contexts, errors = [], []

    def open_page(*, name="Ann", viewport=DESK, guided=True, **options):
        context = chromium.new_context(viewport=viewport, **options)
        contexts.append(context)
        if guided:  # has read the guide and put it away
            cookie = {"name": "guide", "value": task_guide(GENERAL).version, "url": server[1]}
            context.add_cookies([cookie])
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"dialog {dialog.message}"))
        page.base = server[1]
        enter(page, accounts.add_labeler(database, name)[1])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def enter(page, token):
    """As this account, instead of another one that is signed in."""
    page.goto(f"{page.base}/enter?token={token}")
    page.wait_for_url(lambda url: "token" not in url)
    if page.url.endswith("/enter"):
        page.click("button[value=switch]")
    page.wait_for_url("**/label")


def shown_ranks(labels):
    """Ranks of the only label in the order in which the labeler saw the answers."""
    (label,) = labels
    return [label.body["ranks"][n] for n in label.body["shown"]], label


def test_keys(visit, database):
    fill(database, 1)
    page = visit()
    for key in ["4", "7", "1", "5"]:  # rates, one after the other
        page.keyboard.press(key)
    assert "All rated" in page.inner_text(".message")
    for key in ["2", "1"]:  # then ranks
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert "Still missing: C, D" in page.inner_text(".message")
    assert "current" in page.get_attribute("[data-letter=C]", "class")
    for key in ("2", "k", "k", "j", "j", "3"):  # C, back and forth, D
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Nothing to label")
    ranks, label = shown_ranks(read_labels(database))
    assert ranks == [1, 0, 1, 2]
    assert [label.body["quality"][n] for n in label.body["shown"]] == [4, 7, 1, 5]


def test_four_answers_take_six_keys(visit, database):
    fill(database, 4)
    page = visit()
    page.evaluate(
        "sessionStorage.keys = 0;"
        "addEventListener('keydown', () => sessionStorage.keys = +sessionStorage.keys + 1, true)"
    )

    def press(keys):
        saved = len(read_labels(database))
        *ranks, enter = keys
        for key in ranks:
            page.keyboard.press(key)
        with page.expect_navigation():  # "Saved" may stand there still from the label before
            page.keyboard.press(enter)
        page.wait_for_selector("text=Saved")
        assert len(read_labels(database)) == saved + 1
        return shown_ranks(read_labels(database)[-1:])

    keys = ["3", "7", "3", "1", "f", "Enter"]  # rate, rank by the ratings, save
    ranks, label = press(keys)
    assert len(keys) == 6 and page.evaluate("sessionStorage.keys") == "6"
    assert ranks == [1, 0, 1, 2]
    assert [label.body["quality"][n] for n in label.body["shown"]] == [3, 7, 3, 1]
    # In rank mode, which is remembered, five; and the digits go round.
    page.goto(page.base + "/label")
    for key in ("r", "j", "j", "4", "3"):  # C and D
        page.keyboard.press(key)
    assert "current" in page.get_attribute("[data-letter=A]", "class")
    assert press(["1", "2", "3", "Enter"])[0] == [0, 1, 2, 2]  # A, B, and C once more
    assert page.get_attribute("button[data-mode=rank]", "aria-pressed") == "true"
    assert press(["2", "1", "1", "2", "Enter"])[0] == [1, 0, 0, 1]


def test_the_guide_opens_first_and_again(visit, database):
    fill(database, 2)
    page = visit(guided=False)
    guide = page.locator("#guide")
    assert guide.is_visible() and "7 is best" in guide.inner_text()
    page.keyboard.press("4")  # nothing is rated behind it
    assert page.locator("input:checked[type=radio]").count() == 0
    with page.expect_response("**/guide"):
        page.keyboard.press("Enter")
    assert not guide.is_visible()
    page.keyboard.press("4")
    assert page.is_checked("input[name=quality-A][value='4']")
    page.reload()
    assert not guide.is_visible() and page.is_checked("input[name=quality-A][value='4']")
    for again in (lambda: page.keyboard.press("?"), lambda: page.click("#help")):
        again()
        assert guide.is_visible()
        page.keyboard.press("Escape")
        assert not guide.is_visible()
    page.click("text=Write a better answer")
    page.focus("textarea[name=demonstration]")
    page.keyboard.type("why?")
    assert not guide.is_visible() and page.input_value("textarea[name=demonstration]") == "why?"


def test_the_guide_without_javascript(visit, database):
    fill(database, 1)
    page = visit(guided=False, java_script_enabled=False, viewport=PHONE, locale="zh-CN")
    assert page.is_visible("#guide") and "7 为最好" in page.inner_text("#guide")
    page.click("text=知道了")
    assert not page.is_visible("#guide")
    page.click("#help")
    assert page.is_visible("#guide")


LONG = "The committee met on Tuesday and discussed the budget. " * 60
CODE = "def area(r):\n\treturn 3.14 * r ** 2\n" + "# a line that does not fit " * 9


def add(database, prompt, texts):
    queue.add_tasks(database, [queue.NewTask(prompt, [queue.Response(x, "p") for x in texts])])


SHIFTS = """() => new Promise((done) => {
    const seen = ({value, sources}) => [value, ...sources.map((each) => each.node?.outerHTML)];
    new PerformanceObserver((list) => done(list.getEntries().map(seen)))
        .observe({type: "layout-shift", buffered: true});
    setTimeout(() => done([]), 300);
})"""
HIDDEN = """() => {
    const found = [];
    const controls = "main :is(input, button, a, summary, textarea, select)";
    for (const each of document.querySelectorAll(controls)) {
        if (!each.checkVisibility({visibilityProperty: true}) || each.closest("dialog")) continue;
        each.focus();
        const at = each.closest("label.check, .steps label, .checks label") ?? each;
        const box = at.getBoundingClientRect();
        for (const y of [box.top + 3, box.bottom - 3]) {
            const top = document.elementFromPoint(box.left + box.width / 2, y);
            if (!at.contains(top)) found.push([each.outerHTML.slice(0, 90), Math.round(y)]);
        }
    }
    return found;
}"""
TOUCHED = "button, a, summary, .steps label, .checks label, .check, select"
SMALL = """(touched) => [...document.querySelectorAll(touched)]
    .filter((each) => each.checkVisibility({visibilityProperty: true})
        && !each.matches(".skip-link") && !each.closest("dialog, .languages, [data-mode]"))
    .map((each) => [each, each.getBoundingClientRect()])
    .filter(([each, box]) => box.height < 43.9 || box.width < 43.9)
    .map(([each, box]) => [each.outerHTML.slice(0, 90), box.width, box.height])"""


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("kind", ["long", "nine", "short"])
def test_nothing_hides_and_nothing_jumps(visit, database, viewport, kind):
    """Opened at the prompt's beginning; what is focused is clear of the bars, flags opened too."""
    prompt, *answers = {
        "long": [LONG, *(LONG + str(n) for n in range(4))],
        "nine": ["Write a function.", *(f"\n{CODE}{n}" for n in range(9))],
        "short": ["Write a positive review: with his", *(f" hand {n}" for n in range(4))],
    }[kind]
    add(database, prompt, answers)
    page = visit(viewport=viewport)
    assert page.evaluate("scrollY") == 0 and page.evaluate(SHIFTS) == []
    prompt_top = page.locator(".asked").bounding_box()["y"]
    dock = page.locator(".dock").bounding_box()
    assert 0 < prompt_top < viewport["height"] / 3 and dock["height"] < viewport["height"] / 3
    if kind == "long" and viewport is DESK:  # beside the answers, to its end above the dock
        box = page.locator(".passage").bounding_box()
        assert box["y"] + box["height"] < dock["y"]
        assert page.locator(".answer").first.bounding_box()["x"] > box["x"] + box["width"]
    if kind == "nine":
        style = "getComputedStyle(document.querySelector('.answer .written'))"
        assert "mono" in page.evaluate(f"{style}.fontFamily") and "U+0009" not in page.content()
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert page.evaluate(HIDDEN) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    if viewport is PHONE:
        assert page.evaluate(SMALL, TOUCHED) == []


@pytest.mark.parametrize(
    "language,words", [("en-US", ["worst", "best"]), ("zh-CN", ["最差", "最好"])]
)
def test_both_scales_say_which_end_is_best_on_a_phone(visit, database, language, words):
    add(database, "with his", [f" hand {n}" for n in range(4)])
    page = visit(viewport=PHONE, locale=language)
    for scale, ends in (("quality", words), ("rank", words[::-1])):
        steps = page.locator(f"[data-letter=B] [data-scale={scale}] .steps label")
        for step, word in ((steps.first, ends[0]), (steps.last, ends[1])):
            step.scroll_into_view_if_needed()
            assert word in step.inner_text() and step.locator("small").is_visible()
    assert page.locator(".bucket[data-rank='1']").inner_text().endswith(words[1])
    assert page.locator(".before").first.inner_text() == "with his"
    assert page.locator(".before").first.is_visible()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_saved_and_skipped_do_not_move_the_page_and_undo_gives_back(visit, database, viewport):
    fill(database, 3)
    waiting = {"phase": "waiting", "round": 4, "new": 0, "wanted": 200, "goal": 200}
    figures.set_status(database, "updater", **waiting)
    figures.add_round(database, 3, {"labels": 0, "samples": []})
    page = visit(viewport=viewport)
    places = lambda: [page.locator(x).first.bounding_box() for x in (".prompt", ".answer", ".dock")]
    before = places()
    page.click("text=Write a better answer")
    page.fill("textarea[name=demonstration]", "my own")
    for letter, rank in zip("ABCD", "2134", strict=True):
        page.check(f"input[name=rank-{letter}][value='{rank}']", force=True)
    page.click("text=Save and next")
    page.wait_for_selector("text=Saved.")
    assert "1 of 200 labels until the model learns again · round 3 is out" in page.inner_text(
        ".strip"
    )
    assert places() == before
    page.click("summary:has-text('Skip this task')")
    page.click("button[value=skip]")
    page.wait_for_selector("text=Skipped.")
    assert places() == before
    for said, kinds in (("that you skipped", ["ranking"]), ("your ranking", [])):
        page.click("text=Undo")
        page.wait_for_selector(f"text=Taken back: {said}")
        page.reload()  # repeats nothing
        assert [x.kind for x in read_labels(database)] == kinds
    assert page.is_checked("input[name=rank-D][value='4']")
    assert page.input_value("textarea[name=demonstration]") == "my own"
    assert page.locator(".bucket[data-rank='1'] .chip").all_inner_texts() == ["B"]


def test_keys_do_not_reach_into_text_and_can_be_turned_off(visit, database):
    fill(database, 1)
    page = visit()
    page.click("text=Write a better answer")
    page.click("textarea[name=demonstration]")
    page.keyboard.type("j 12 k\nr")
    page.keyboard.press("Escape")
    assert page.input_value("textarea[name=demonstration]") == "j 12 k\nr"
    assert page.locator("input:checked[type=radio]").count() == 0
    page.click("summary:has-text('Keyboard')")
    page.uncheck("#keys-on")
    page.focus("[data-letter=A]")
    page.keyboard.press("3")
    assert page.locator("input:checked[type=radio]").count() == 0
    page.reload()
    page.focus("[data-letter=A]")
    page.keyboard.press("3")
    assert page.locator("input:checked[type=radio]").count() == 0


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_dragging_keeps_ties(visit, database, viewport):
    fill(database, 1)
    page = visit(viewport=viewport)
    for letter, rank in (("A", 2), ("B", 1), ("C", 2), ("D", 3), ("D", 1)):
        chip = page.locator(".chip", has_text=letter).bounding_box()
        bucket = page.locator(f".bucket[data-rank='{rank}']").bounding_box()
        page.mouse.move(chip["x"] + chip["width"] / 2, chip["y"] + chip["height"] / 2)
        page.mouse.down()
        page.mouse.move(bucket["x"] + 5, bucket["y"] + 5, steps=4)
        page.mouse.move(bucket["x"] + bucket["width"] / 2, bucket["y"] + bucket["height"] / 2)
        page.mouse.up()
    assert page.locator(".bucket[data-rank='2'] .chip").all_inner_texts() == ["A", "C"]
    page.click("text=Save and next")
    page.wait_for_selector("text=Nothing to label")
    assert shown_ranks(read_labels(database))[0] == [1, 0, 1, 0]


def test_without_javascript(visit, database):
    fill(database, 2)
    page = visit(java_script_enabled=False)
    assert not page.is_visible(".board") and not page.is_visible(".modes")
    for letter, rating in zip("AB", (2, 5), strict=True):
        page.check(f"input[name=quality-{letter}][value='{rating}']", force=True)
    page.click("button[value=fill]")
    assert page.is_checked("input[name=rank-B][value='1']")
    page.click("text=Save and next")
    assert page.url.endswith("/label")  # the browser asks for the ranks itself
    for letter, rank in zip("ABCD", (1, 3, 2, 1), strict=True):
        page.check(f"input[name=rank-{letter}][value='{rank}']", force=True)
    page.click("[data-letter=B] summary")
    page.check("[data-letter=B] input[value=sexual]")
    page.click("text=Save and next")
    assert page.is_visible("text=Saved.")
    ranks, label = shown_ranks(read_labels(database))
    assert ranks == [0, 2, 1, 0] and label.body["flags"][label.body["shown"][1]]["sexual"]
    page.click("text=Undo")
    assert page.is_checked("input[name=rank-B][value='3']") and read_labels(database) == []
    page.click("text=Save and next")
    page.click("summary:has-text('Skip this task')")
    page.select_option("select[name=reason]", "too_long")
    page.click("button[value=skip]")
    assert page.is_visible("text=Nothing to label")
    assert [x.kind for x in read_labels(database)] == ["ranking", "skip"]
    page.goto(page.base + "/dashboard")
    assert page.is_visible("text=rankings")


def test_a_draft_survives_a_reload_and_is_nobody_elses(visit, database):
    fill(database, 1, wanted=2)
    page = visit()
    page.check("input[name=rank-B][value='2']", force=True)
    page.click("[data-letter=C] summary")
    page.check("[data-letter=C] input[value=opinion]")
    page.click("text=Write a better answer")
    page.fill("textarea[name=demonstration]", "half a thought")
    page.reload()
    assert page.is_checked("input[name=rank-B][value='2']")
    assert page.input_value("textarea[name=demonstration]") == "half a thought"
    assert page.is_visible("textarea[name=demonstration]")
    assert "(1)" in page.inner_text("[data-letter=C] summary")
    # Another labeler in the same browser gets the same task, but not the draft.
    page.goto(f"{page.base}/enter?token={accounts.add_labeler(database, 'Ben')[1]}")
    page.click("button[value=switch]")
    page.wait_for_url("**/label")
    assert page.input_value("textarea[name=demonstration]") == ""
    for letter in "ABCD":
        page.check(f"input[name=rank-{letter}][value='1']", force=True)
    page.click("text=Save and next")
    page.wait_for_selector("text=Nothing to label")
    assert page.evaluate("Object.keys(localStorage)") == []


def test_another_sites_link_does_not_swap_the_account(visit, database):
    """Its request carries no cookie, yet the page asks; and nobody is told the token."""
    page, token = visit(), accounts.add_labeler(database, "Eve")[1]
    link, referers = f"{page.base}/enter?token={token}", []
    page.on("request", lambda request: referers.append(request.headers.get("referer", "")))
    page.route(
        "http://evil.example/**",
        lambda route: route.fulfill(content_type="text/html", body=f'<a href="{link}">prize</a>'),
    )
    page.goto("http://evil.example/")
    page.click("text=prize")
    page.wait_for_selector("text=Sign in as Eve?")
    assert page.url == f"{page.base}/enter" and token not in "".join(referers)
    page.click("text=Stay Ann")
    page.wait_for_url("**/label")
    assert page.inner_text(".who") == "Ann"


def test_offline(visit, database):
    fill(database, 1)
    page = visit()
    for key in "12341234":
        page.keyboard.press(key)
    page.context.set_offline(True)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Not saved: no connection")
    assert read_labels(database) == []
    page.context.set_offline(False)
    page.wait_for_selector("text=Nothing to label")
    assert shown_ranks(read_labels(database))[0] == [0, 1, 2, 3]


def test_two_tabs(visit, database):
    fill(database, 1)
    first = visit()
    second = first.context.new_page()
    second.goto(first.url)
    for page in (first, second):
        for letter, rank in zip("ABCD", "1223", strict=True):
            page.check(f"input[name=rank-{letter}][value='{rank}']", force=True)
    first.click("text=Save and next")
    first.wait_for_selector("text=Nothing to label")
    second.click("text=Save and next")
    second.wait_for_selector("text=You have labelled this task before")
    assert second.is_checked("input[name=rank-D][value='3']")
    assert shown_ranks(read_labels(database))[0] == [0, 1, 1, 2]


ATTACK = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<svg/onload=document.title='owned'>\u202egnp.exe"
)


def test_nothing_that_is_written_runs(visit, database):
    responses = [queue.Response(f" {ATTACK} {n}", "p") for n in range(4)]
    queue.add_tasks(database, [queue.NewTask(ATTACK, responses)])
    body = {"gold": {"mean": 0.0, "ci": 0.0}, "kl": {"mean": 0.0}, "accuracy": None}
    sample = {"prompt": ATTACK, "before": ATTACK, "after": ATTACK}
    figures.add_round(database, 1, body | {"samples": [sample]})
    page = visit(name="<b>Ann</b>")
    page.click("text=Write a better answer")
    page.fill("textarea[name=demonstration]", ATTACK)
    page.reload()  # through the draft
    for letter in "ABCD":
        page.check(f"input[name=rank-{letter}][value='1']", force=True)
    page.click("text=Save and next")
    page.wait_for_selector("text=Nothing to label")
    page.goto(page.base + "/chat")
    page.fill("textarea[name=message]", ATTACK)
    page.click("text=Send")
    page.wait_for_selector("text=The policy is answering")
    (question,) = conversation.waiting(database)
    conversation.answer(database, question, responses[:2], round=0, sampling={})
    page.wait_for_selector("text=Which of these is better")  # drawn live
    for path in ("/chat", "/dashboard", "/account", f"/label?did={ATTACK}&task={ATTACK}&guide"):
        page.goto(page.base + path)
        page.wait_for_timeout(100)
        assert "owned" not in page.title()
        assert page.locator("main img, main script").count() == 0
    page.goto(page.base + "/chat")
    assert page.locator(".mark", has_text="U+202E").count() >= 3
    # The policy stops even a script that were let into the page.
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'document.title = \"owned\"';"
        "document.body.append(s)"
    )
    page.wait_for_timeout(50)
    assert "owned" not in page.title()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_chat(visit, database, viewport):
    figures.set_status(database, "answerer", phase="ready", round=1)
    page = visit(viewport=viewport)
    page.goto(page.base + "/chat")
    field = page.locator("textarea[name=message]")
    pressed = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, %s})"
    composing = f"e => e.dispatchEvent({pressed})"
    for n in range(4):
        field.click()
        page.keyboard.type("this film")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type(f"is {n}")
        # The Enter that chooses a word in an input method, in Chromium and in Safari.
        field.evaluate(composing % "isComposing: true")
        field.evaluate(composing % "keyCode: 229")
        assert conversation.waiting(database) == []
        page.keyboard.press("Enter")
        page.wait_for_selector("text=The policy is answering")
        assert field.input_value() == "" and field.evaluate("e => e === document.activeElement")
        (question,) = conversation.waiting(database)
        assert question.prompt == f"this film\nis {n}"
        answers = [queue.Response(f" {word} {n}", "p") for word in ("good", "bad")]
        conversation.answer(database, question, answers, round=1, sampling={})
        page.wait_for_selector(f"text=good {n}")
    say = page.locator(".say").bounding_box()
    for word in ("good", "bad"):  # the newest answer is in view, above the field
        box = page.get_by_text(f"{word} 3", exact=True).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= say["y"]
    scrolled = page.evaluate("scrollY")
    best = page.locator(".reply", has=page.get_by_text("good 3", exact=True))
    best.locator(".primary").click()
    page.wait_for_selector("text=chosen")
    assert page.url.endswith("/chat")  # the page stays, and where it was
    assert abs(page.evaluate("scrollY") - scrolled) < 120
    bad = page.locator(".reply", has=page.get_by_text("bad 3", exact=True))
    bad.locator("button[value=down]").click()
    page.wait_for_selector("button[value=down][aria-pressed=true]")
    assert page.evaluate("document.activeElement.value") == "down"  # drawn anew, focused still
    bad.locator("summary").click()
    bad.locator("textarea").fill("superb")
    bad.locator("button[value=correct]").click()
    page.wait_for_selector(".correction")
    made = [([r.text for r in x.responses], x.ranks) for x in rankings(read_labels(database))]
    assert ([" good 3", " bad 3"], (0, 1)) in made and ([" superb", " bad 3"], (0, 1)) in made
    page.goto(page.base + "/chat")
    assert (
        page.evaluate("scrollY") > 0 and page.get_by_text("good 3", exact=True).first.is_visible()
    )


@pytest.mark.parametrize("clipboard", ["allowed", "refused", "missing"])
def test_an_invite_link_is_copied_or_selected(visit, database, clipboard):
    page = visit()
    if clipboard == "allowed":
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    else:  # without permission, and as on plain HTTP
        broken = {"refused": "{writeText: () => Promise.reject()}", "missing": "undefined"}[
            clipboard
        ]
        script = f"Object.defineProperty(navigator, 'clipboard', {{value: {broken}}});"
        page.add_init_script(script + "document.execCommand = () => false;")
    enter(page, "admin")
    page.goto(page.base + "/team")
    page.click("button[value=invite]")
    page.click("[data-copy]")
    link = page.input_value("#link")
    assert "/join?invite=" in link
    if clipboard == "allowed":
        page.wait_for_selector("text=Copied")
        assert page.evaluate("navigator.clipboard.readText()") == link
    else:
        page.wait_for_selector("text=Selected: press Ctrl-C")
        assert page.evaluate("getSelection().toString()") == link


@pytest.mark.parametrize("width", [320, 1280])
def test_nine_answers_fit(visit, database, width):
    fill(database, 1, responses=9)
    page = visit(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    for letter, rank in zip("ABCDEFGHI", "987654321", strict=True):
        page.click(f"label:has(input[name=rank-{letter}][value='{rank}'])")
    page.click("text=Save and next")
    page.wait_for_selector("text=Nothing to label")
    assert shown_ranks(read_labels(database))[0] == [8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "language,viewport,scheme", [("en-US", DESK, "light"), ("zh-CN", PHONE, "dark")]
)
def test_accessible_in_both_languages_on_both_screens(visit, database, language, viewport, scheme):
    """No serious finding of axe-core, and nothing wider than the screen."""
    fill(database, 3, responses=6)
    for number in range(3):
        body = {"gold": {"mean": 0.1 * number, "ci": 0.05}, "kl": {"mean": 1.0 * number}}
        body |= {"score": {"mean": 0.3 * number}, "accuracy": 0.7, "labelers": {}}
        body["samples"] = [{"prompt": "p", "before": "dull", "after": "fine"}]
        figures.add_round(database, number, body)
    figures.set_status(database, "updater", phase="waiting", round=2, new=3, wanted=10, goal=10)
    page = visit(viewport=viewport, locale=language, color_scheme=scheme)
    queue_of = accounts.list_accounts(database)[-1]
    ann = accounts.Account(queue_of["id"], queue_of["name"], queue_of["role"])
    conversation.say(database, ann, "c", "hello", dialogue=False)
    (question,) = conversation.waiting(database)
    answers = [queue.Response(" good", "p"), queue.Response(" bad", "p")]
    conversation.answer(database, question, answers, round=1, sampling={})
    check_page(page, "/label", language, open_details=True)
    for letter in "ABCDEF":
        page.check(f"input[name=rank-{letter}][value='1']", force=True)
    page.click("button[value=rank]")
    page.wait_for_selector("[data-saved]", state="attached")
    for path in ("/chat", "/dashboard", "/account", "/nowhere"):
        check_page(page, path, language, open_details=path == "/chat")
    page.goto(f"{page.base}/enter?token=admin")
    page.wait_for_url("**/enter")  # that page goes on by itself
    check_page(page, "/enter", language)  # asks, as somebody is signed in
    page.click("button[value=switch]")
    page.wait_for_url("**/label")
    check_page(page, "/team", language)
    page.context.clear_cookies()
    check_page(page, "/enter", language)


def check_page(page, path, language, *, open_details=False):
    page.goto(page.base + path)
    assert page.get_attribute("html", "lang") == ("zh-CN" if language == "zh-CN" else "en")
    if open_details:
        page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    found = axe.Axe().run(page).response["violations"]
    grave = [
        (each["id"], [node["html"][:120] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert not grave, f"{path}: {grave}"
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0, f"{path} is {width} pixels too wide"
    if language == "zh-CN":
        assert re.search(r"[\u4e00-\u9fff]{2}", page.inner_text("main")), path
