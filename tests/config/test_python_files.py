"""Python files of one's own: presets, tasks and reward functions are loaded by one function."""

import os
import sys

import pytest

from rlhf_jax.errors import InputError
from rlhf_jax.python_files import load_file
from rlhf_jax.tasks.task import find_task

DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True)
class Row:
    text: str

def first(prompts, responses):
    return [len(Row(x).text) for x in responses]
"""


def test_a_file_may_do_what_a_module_may(tmp_path):
    """Dataclasses look for their types in sys.modules, where nothing is left behind."""
    (tmp_path / "own.py").write_text(DATACLASS)
    before = set(sys.modules)
    module = load_file(tmp_path / "own.py", flag="--reward own.py:first")
    assert module.first(["p"], ["abc"]) == [3] and set(sys.modules) == before


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\ny = 1 / 0\n", r"--task .*own\.py, line 2: ZeroDivisionError: division by zero$"),
        ("def build(:\n", r"--task .*own\.py, line 1: invalid syntax \(SyntaxError\)$"),
        ("x = 1\n", r"--task .*own\.py: expected a function build\(source\)"),
        (None, r"--task .*own\.py: no such file$"),
    ],
)
def test_a_file_that_fails_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "own.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        find_task(str(path))
    assert not any(name.startswith("own_") for name in sys.modules)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "own.txt").write_text("x = 1\n")
    with pytest.raises(InputError, match=r"--task own\.txt: expected a \.py file"):
        load_file(tmp_path / "own.txt", flag="--task own.txt")


def test_a_file_is_read_as_it_is_now_and_nothing_is_written_beside_it(tmp_path, monkeypatch):
    """Byte code is told from its file by size and second: an edit may have the same."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path, found = tmp_path / "own.py", []
    for value in (1, 2):
        path.write_text(f"x = {value}\n")
        os.utime(path, (1_000, 1_000))
        found.append(load_file(path, flag="--task own.py").x)
    assert found == [1, 2] and [file.name for file in tmp_path.iterdir()] == ["own.py"]
