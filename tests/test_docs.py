"""What docs/implementation_details.md names exists."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
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
