"""The report in a real browser: nothing is wider than the screen, figures can be saved, axe."""

import os
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from report_run import make_run

from experiments.report import write
from rlhf_jax.feedback import figures
from rlhf_jax.feedback.database import open_database

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a run with everything in it, rounds of feedback too."""
    folder = tmp_path_factory.mktemp("browser")
    run = make_run(folder / "run", 0)
    (run / "feedback").mkdir()
    database = open_database(run / "feedback" / "store.sqlite")
    for number in range(3):
        figure = {"mean": 0.1 * number, "ci": 0.05}
        body = {"labels": 250 * number, "gold": figure, "kl": figure, "seconds": 1123.0}
        body["samples"] = [{"prompt": "p", "before": "dull", "after": "fine"}]
        figures.add_round(database, number, body)
    write([run], folder / "report.html")
    sandbox = () if os.getuid() else ("--no-sandbox",)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", *sandbox])
        opened = browser.new_page(accept_downloads=True)
        opened.requests = []
        opened.on("request", lambda request: opened.requests.append(request.url))
        opened.goto((folder / "report.html").as_uri())
        yield opened
        browser.close()


WIDER = """() => [...document.querySelectorAll("html, .scroll, pre, figure, .answers")]
    .filter(e => e.scrollWidth > Math.max(e.clientWidth, 1))
    .map(e => `${e.tagName}.${e.className}: ${e.scrollWidth} > ${e.clientWidth}`)"""
FREE = """() => [...document.querySelectorAll("figure")].map(figure => {
    const right = e => e.getBoundingClientRect().right;
    return right(figure) - Math.max(...[...figure.querySelectorAll(".panel")].map(right));
})"""
"""Pixels to the right of a figure's panels; a single one has its caption beside it."""
OPEN = "open => document.querySelectorAll('details').forEach(fold => fold.open = open)"


@pytest.mark.parametrize("width", [1300, 900, 390, 320])
def test_nothing_is_wider_than_the_screen(page, width):
    """No table scrolls sideways, folded ones included."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(OPEN, True)
    assert page.evaluate(WIDER) == []
    # The lines of the results stand on one row each on a wide screen.
    heads = page.evaluate("document.querySelector('#results thead').getBoundingClientRect().width")
    assert (heads > 600) == (width >= 900)
    page.evaluate(OPEN, False)


def test_figures_fill_the_width(page):
    page.set_viewport_size({"width": 1300, "height": 900})
    free = page.evaluate(FREE)
    assert len(free) > 5 and max(map(abs, free)) < 2


def test_a_figure_is_saved_as_svg(page):
    with page.expect_download() as download:
        page.click("#frontier .save >> nth=0")
    assert download.value.suggested_filename == "frontier_gold_sqrt_kl.svg"
    root = ElementTree.parse(download.value.path()).getroot()
    assert root.tag.endswith("svg") and "Gold score" in "".join(root.itertext())


def test_the_page_asks_for_nothing_else(page):
    assert [url for url in page.requests if not url.startswith("data:")] == page.requests[:1]


def test_printed_pages_are_light_and_hold_the_folded_tables(page):
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 680, "height": 900})
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
    assert not page.is_visible("nav") and not page.is_visible(".save >> nth=0")
    height = "document.querySelector('#results .printed table').getBoundingClientRect().height"
    assert page.evaluate(height) > 50
    assert page.evaluate(WIDER) == []
    page.emulate_media(media="screen", color_scheme="light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_both_schemes(page, scheme):
    page.emulate_media(media="screen", color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate(OPEN, True)
    found = axe.Axe().run(page).response["violations"]
    grave = [
        (each["id"], [node["html"][:120] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert not grave
    page.evaluate(OPEN, False)
