"""What the documentation site makes from the code: commands, functions, docstrings as prose."""

import importlib.util
import pathlib
import re

import pytest

import rlhf_jax.config
from rlhf_jax.cli import flag_names

ROOT = pathlib.Path(__file__).parents[2]


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


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    build = pytest.importorskip("sphinx.cmd.build").build_main
    words = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    assert build([*words, str(ROOT / "docs"), str(tmp_path / "html")]) == 0
    page = (tmp_path / "html" / "reference" / "api_objectives.html").read_text(encoding="utf-8")
    assert "kl_penalised_rewards" in page
