"""No file or function grows past what one reads at once; nothing is run, only parsed."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(path for top in ("rlhf_jax", "experiments") for path in (ROOT / top).rglob("*.py"))
FILE, FUNCTION, RUN = 300, 60, 100
"""Lines of code in a file; lines of a function; of an experiment's ``run``, which is its page."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(text: str) -> int:
    """Lines that are neither blank nor a comment nor part of a docstring."""
    documentation = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            documentation |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = enumerate(map(str.strip, text.split("\n")), 1)
    return sum(bool(x) and not x.startswith("#") and n not in documentation for n, x in lines)


def over(name: str, text: str) -> dict[str, int]:
    """The file and its functions that are over their limits, with their sizes."""
    sizes = {name: size} if (size := code_lines(text)) > FILE else {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_page = node.name == "run" and name.startswith("experiments/")
            size = node.end_lineno - node.lineno + 1
            if size > (RUN if is_page else FUNCTION):
                sizes[f"{name}:{node.name}"] = size
    return sizes


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    name = path.relative_to(ROOT).as_posix()
    assert over(name, path.read_text(encoding="utf-8")) == {}


def test_what_is_too_large_is_seen():
    body = "def f():\n" + "    x = 1\n" * FUNCTION
    assert over("rlhf_jax/a.py", body) == {"rlhf_jax/a.py:f": FUNCTION + 1}
    assert over("experiments/a.py", body.replace("f()", "run()")) == {}
    prose = '"""Words.\n' + "more\n" * FILE + '"""\n' + "# why\n\n" * FILE
    assert over("rlhf_jax/a.py", prose) == {}
    assert over("rlhf_jax/a.py", prose + "x = 1\n" * (FILE + 1)) == {"rlhf_jax/a.py": FILE + 1}
