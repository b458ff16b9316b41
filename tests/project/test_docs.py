"""What the documents name exists: functions, tests, flags, commits, pages."""

import ast
import dataclasses
import pathlib
import re

import pytest

import rlhf_jax.config
from rlhf_jax.cli import flag_names

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "implementation_details.md").read_text(encoding="utf-8")
FUNCTIONS = sorted(set(re.findall(r"`([a-z_.]+):(\w+)`", TEXT)))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


def defined(path: pathlib.Path) -> set[str]:
    """Names of the functions at the top of a file, which is not imported (it may need torch)."""
    assert path.is_file(), f"there is no {path.relative_to(ROOT)}"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("module,name", FUNCTIONS, ids=str)
def test_functions_exist(module, name):
    assert name in defined(ROOT / (module.replace(".", "/") + ".py"))


@pytest.mark.parametrize("file,name", TESTS, ids=str)
def test_tests_exist(file, name):
    assert name in defined(ROOT / file)
    assert name.startswith("test_"), "pytest would not run it"


def test_every_detail_says_where_it_is_and_what_holds_it():
    items = re.split(r"\n(?=\d+\. )", TEXT.split("## Equal to PyTorch")[0])[1:]
    assert len(items) == 21 + 22 + 3
    for item in items:
        item = item.split("\n## ")[0]
        complete = re.search(r"`[a-z_.]+:\w+`", item) and re.search(r"`tests/\S+::\w+`", item)
        other = "*No*" in item or "`constraints.txt`" in item
        assert complete or other, item


# --- training_arguments.md, forks, links ----------------------------------------------------------

SECTIONS = {
    "TrainingArguments": ("PretrainConfig", "SFTConfig", "RewardConfig", "DPOConfig", "PPOConfig"),
    "SFTConfig": ("SFTConfig",),
    "RewardConfig": ("RewardConfig",),
    "DPOConfig": ("DPOConfig",),
    "PPOConfig": ("PPOConfig",),
}
"""Whose flags a part of docs/training_arguments.md speaks of."""


def flags_of(name: str) -> set[str]:
    config_class = getattr(rlhf_jax.config, name)
    assert dataclasses.is_dataclass(config_class)
    return set(flag_names(config_class()))


def argument_rows() -> list[tuple[str, str, str]]:
    """(part, argument of the other library, our cell) of each row of the tables."""
    text = (ROOT / "docs" / "training_arguments.md").read_text(encoding="utf-8")
    part, rows = "", []
    for line in text.splitlines():
        heading = re.match(r"#{2,3} (\w+Config|TrainingArguments)\b", line)
        part = heading[1] if heading else part
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if part and len(cells) == 3 and set(cells[1]) - set("-"):
            rows.append((part, cells[0], cells[1]))
    return rows


def test_every_flag_of_the_argument_tables_exists():
    rows = argument_rows()
    assert len(rows) > 90
    for part, argument, ours in rows:
        known = set().union(*map(flags_of, SECTIONS[part]))
        for flag in re.findall(r"--([a-z][\w.-]*)", ours):
            assert flag in known, f"{argument}: --{flag} is no flag of {', '.join(SECTIONS[part])}"


def test_no_argument_is_said_to_have_no_equivalent_while_a_flag_bears_its_name():
    """fsdp stood as *no equivalent* long after --parallel.fsdp existed."""
    for part, argument, ours in argument_rows():
        known = set().union(*map(flags_of, SECTIONS[part]))
        last = {flag.rpartition(".")[2].replace("-", "_") for flag in known}
        if ours == "no equivalent":
            names = set(re.findall(r"`(\w+)`", argument))
            assert not names & last, f"{part}: {names & last} has a flag"


def test_every_fork_names_a_commit():
    text = (ROOT / "experiments" / "proj" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    forks = [path.parent.name for path in (ROOT / "experiments" / "proj").glob("*/__init__.py")]
    assert len(rows) == len(forks) > 0
    for row in rows:
        assert re.search(r"\| `[0-9a-f]{7,40}` \|$", row), row


METRIC = r"\b(?:objective|policy|val|loss|sampling)/\w+|\beval/(?:loss|accuracy|margin|ece)\b"


def metrics_in(*files: pathlib.Path) -> set[str]:
    """Names of metrics in code or prose."""
    return {name for file in files for name in re.findall(METRIC, file.read_text(encoding="utf-8"))}


def test_every_metric_is_explained_and_every_explained_one_is_logged():
    explained = metrics_in(ROOT / "docs" / "metrics.md")
    logged = set()
    for room in ("objectives", "training", "runs"):
        code = "".join(
            path.read_text(encoding="utf-8") for path in (ROOT / "rlhf_jax" / room).glob("*.py")
        )
        logged |= set(re.findall(rf'"({METRIC})"', code))
    assert len(logged) > 30
    assert not logged - explained, "docs/metrics.md does not explain these"
    made = {f"policy/clipfrac{side}_avg" for side in ("", "_low", "_high")}  # by f-strings
    made |= {"objective/NAME_scores", "objective/second_scores"}
    pages = {name for name in explained if name.startswith("eval/")}  # by the experiments' pages
    assert not explained - logged - made - pages, "nothing logs these"


PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        if re.fullmatch(r"(\.\./)?reference/\w+\.md", path):
            continue  # made from the code (test_site.py)
        there = page.parent / path if path else page
        assert there.exists(), f"{target} is not there"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target}: the page has no such heading"


def anchors(page: pathlib.Path) -> set[str]:
    """Headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_has_a_head(page):
    """Rows behind an empty line are no part of the table before it, but letters and bars."""
    lines = ["", *page.read_text(encoding="utf-8").splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"\|[ :|-]+\|", after), line


GUIDES = [page for page in PAGES if page.parent.name in ("tutorials", "howto", "zh")]
GUIDES += [ROOT / "docs" / f"{name}.md" for name in ("glossary", "losses", "numerics", "security")]
ALL_FLAGS = {"help", "config"} | {
    flag
    for name in rlhf_jax.config.__all__
    if dataclasses.is_dataclass(config_class := getattr(rlhf_jax.config, name))
    for flag in flag_names(config_class())
}
"""Of all commands, and of the labelling loop's."""
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.-]*\w)(?![\w.]*\*)")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_guide_names_exists(page):
    """Flags of ours, tests and modules; the first cell of a row may speak of another library."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    if page.stem == "migrate":
        text = re.sub(r"^\|[^|]*\|", "", text, flags=re.MULTILINE)
    flags = {flag for code in re.findall(r"`([^`]+)`", text) for flag in FLAG.findall(code)}
    assert not flags - ALL_FLAGS
    for path in re.findall(r"`((?:tests|rlhf_jax)/[\w/]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path
