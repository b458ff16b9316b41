"""The documentation site: what it makes from the code, and that all of it is open to everybody."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import rlhf_jax.config
from rlhf_jax.cli import flag_names

ROOT = pathlib.Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGES = ("index", "tutorials/quickstart", "metrics", "reference/commands")
"""One of each kind: links, a tutorial, wide tables, what is generated."""
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_has_every_flag_and_its_default(reference):
    page = reference.commands_page()
    _, part = page.split("\n## ppo\n")
    part = part.split("\n## ")[0]
    shown = set(re.findall(r"^\| `--([\w.-]+)[ `]", part, flags=re.MULTILINE))
    assert shown == set(flag_names(rlhf_jax.config.PPOConfig()))
    (row,) = (row for row in part.splitlines() if row.startswith("| `--clip-eps FLOAT`"))
    assert row.endswith("(over 0; default: 0.2) |")
    rows = [row for row in page.splitlines() if row.startswith("|")]
    assert len(rows) > 500
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3, row  # two cells, whatever they hold


def test_every_command_has_a_part(reference):
    page = reference.commands_page()
    for path in (ROOT / "experiments").glob("[a-z]*.py"):
        if "main(run, " in path.read_text(encoding="utf-8"):
            assert (f"\n## {path.stem}\n" in page) == (path.stem != "doctor")


def test_every_module_of_a_room_is_on_its_page(reference):
    page = reference.api_page("objectives", "")
    for path in (ROOT / "rlhf_jax" / "objectives").glob("[a-z]*.py"):
        assert f".. automodule:: rlhf_jax.objectives.{path.stem}\n" in page


def test_docstrings_are_shown_as_they_stand(reference):
    lines = ["A claim of ``x``.", "", "    h = a * b|c", "", "Then p_i * q, `this`."]
    reference.as_restructured_text(None, "function", "f", None, None, lines)
    assert lines == [
        "A claim of ``x``.",
        "",
        "::",
        "",
        "    h = a * b|c",
        "",
        r"Then p\_i \* q, \`this\`.",
    ]


def test_pages_that_are_as_they_were_stay_untouched(reference, tmp_path):
    reference.write_pages(tmp_path / "reference")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "reference").iterdir()}
    assert {path.stem for path in times} >= {"commands", "api", "api_models"}
    reference.write_pages(tmp_path / "reference")
    assert times == {path: path.stat().st_mtime_ns for path in times}


# --- the site itself ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built without a warning."""
    pytest.importorskip("sphinx", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    words = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "trees")]
    # In a process of its own: conf.py's neighbours have names that the tests' helpers have too.
    command = [sys.executable, "-m", "sphinx", *words, str(ROOT / "docs"), str(folder / "html")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.mark.slow
def test_functions_have_their_docstrings_on_it(site):
    page = (site / "reference" / "api_objectives.html").read_text(encoding="utf-8")
    assert "kl_penalised_rewards" in page


QUESTIONS = {
    "what is the reward model's loss": (["the losses"], r"log σ\(r\(x, y_w\)"),
    "how do I change the advantage estimator": (["algorithms"], r"--advantage"),
    "what does val/ratio mean": (["metrics"], r"val/ratio</span></code></p></td>\s*<td><p>mean ρ"),
    "how do I resume": (["resume and continue"], r"Type the same command again"),
    "has it run on a TPU": (
        ["no; what was done instead"],
        r"Nothing in this project has run on a real TPU",
    ),
}
"""What a new reader asks: the links to click from the first page on, and what answers."""


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_new_reader_finds_answers_in_a_few_clicks(site, question):
    clicks, answer = QUESTIONS[question]
    page = site / "index.html"
    for text in clicks:
        html = page.read_text(encoding="utf-8")
        # In the text of the page and not in the side bar, which lists everything.
        links = re.findall(r'href="([^"#]+)[^"]*"><span class="[^"]*">([^<]+)</span>', html)
        (target,) = {href for href, shown in links if shown == text}
        page = (page.parent / target).resolve()
    assert len(clicks) <= 3
    assert re.search(answer, page.read_text(encoding="utf-8")), page.name


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    flags = ["--disable-gpu", *(() if os.getuid() else ("--no-sandbox",))]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_keeps_anybody_out(site, browser, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
    width, height = SIZES[size]
    viewport = {"width": width, "height": height}
    with browser.new_context(viewport=viewport, color_scheme=scheme) as context:
        for name in PAGES:
            page = context.new_page()
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            found = axe.Axe().run(page).response["violations"]
            serious = [v for v in found if v["impact"] in ("serious", "critical")]
            assert not serious, (name, [(v["id"], v["nodes"][0]["html"]) for v in serious])
            page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_the_search_works_without_a_server(site, browser):
    page = browser.new_page()
    page.goto((site / "search.html").as_uri() + "?q=val%2Fratio")
    page.wait_for_selector("ul.search li a")
    found = [link.get_attribute("href") for link in page.query_selector_all("ul.search li a")]
    assert any(link.startswith("metrics.html") for link in found), found
