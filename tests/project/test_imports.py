"""The rooms and their direction (who may import whom), and habits that a search can check."""

import ast
import graphlib
import pathlib
import shutil
import subprocess
import sys

import conftest
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "rlhf_jax").rglob("*.py"))
FLOORS = (
    *("types", "errors", "python_files", "config", "help_pages", "cli"),
    *("objectives", "text", "data", "evaluation", "models", "interop", "rollouts", "tasks"),
    *("training", "privacy", "runs", "inference", "planning", "doctor", "feedback", "report"),
    "studies",
)
"""The rooms of the library from the ground up: a room imports those before it, and none above."""
ALONE = {
    "objectives": {"types"},
    "models": {"objectives", "types", "config", "errors"},
    "rollouts": {"models", "objectives", "types", "config", "errors"},
    "data": {"text", "types", "errors"},
    "evaluation": {"text", "errors"},
    "tasks": {"data", "evaluation", "text", "errors", "python_files"},
    "feedback": {"evaluation", "data", "text", "errors"},
}
"""Rooms that may import these only."""


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from rlhf_jax.tasks import sentiment" imports rlhf_jax.tasks.sentiment
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_direction(path):
    room = path.relative_to(ROOT / "rlhf_jax").parts[0]
    names = list(imports(path))
    tops = {name.split(".")[0] for name in names}
    assert not tops & {"experiments", "configs", "benchmarks"}, "the library knows no experiment"
    assert "flax" not in tops or room == "models", "only models/ knows Flax"
    if room == "objectives":
        assert tops <= {"jax", "jaxtyping", "rlhf_jax", "math", "typing", "collections"}
    if room in ("feedback", "evaluation", "report", "text"):
        assert "jax" not in tops, "the page and the report need no JAX"
    room = room.removesuffix(".py")
    others = {name.split(".")[1] for name in names if name.startswith("rlhf_jax.")} - {room}
    below = ALONE.get(room, {*FLOORS[: FLOORS.index(room)]} if room in FLOORS else set())
    assert others <= below, f"{room} may not import {others - below}"


def test_no_modules_import_each_other_in_a_circle():
    """Imports within functions count too: they hide a circle and do not open it."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}

    def module_of(name):
        while name and name not in names:
            name = name.rpartition(".")[0]
        return name

    graph = {name: {module_of(each) for each in imports(path)} for name, path in names.items()}
    for name, others in graph.items():
        others -= {"", name}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the modules


def test_no_module_is_unchecked(pytestconfig):
    """Each has its shapes checked (pyproject.toml) or the types of its arguments (conftest.py)."""
    checked = {*pytestconfig.getoption("jaxtyping_packages").split(","), *conftest.TEXT}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names = {".".join(parts[: n + 1]) for n in range(1, len(parts))}
        assert names & checked or path.name == "__init__.py", path


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "experiments").rglob("*.py"))], ids=str)
def test_habits(path):
    text = path.read_text(encoding="utf-8")
    assert "PRNGKey" not in text, "typed keys only"
    assert "from __future__ import annotations" not in text, "shapes are checked at run time"


def test_tests_lie_in_folders_of_rooms_and_trees():
    rooms = {path.stem for path in (ROOT / "rlhf_jax").iterdir()}
    folders = rooms | {"experiments", "benchmarks", "project", "parity"}
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    assert not [path for path in files if path.parent.name not in folders]
    names = [path.name for path in files if path.parent.name != "parity"]
    assert len(set(names)) == len(names), "two test modules of one name cannot both be imported"


# What setup.py's extras bring that `make quickstart` does not install.
NOT_INSTALLED = (
    *("rouge_score", "sacrebleu", "dp_accounting", "gguf", "lm_eval", "transformers"),
    *("starlette", "uvicorn", "python_multipart", "sqlalchemy", "psycopg"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["instructgpt", "audit", "task", "doctor", "convert"])
def test_the_main_job_imports_without_the_extras_it_does_not_install(name):
    block = f"import sys; sys.modules.update(dict.fromkeys({NOT_INSTALLED!r}))"
    command = [sys.executable, "-c", f"{block}; import experiments.{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_installation_holds_the_library_and_nothing_else(tmp_path):
    """Its templates too; experiments, presets and benchmarks are run from a clone."""
    pytest.importorskip("setuptools")  # Python from 3.12 on makes environments without it
    for name in ("setup.py", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("rlhf_jax", "experiments", "configs", "benchmarks"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "built"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = lambda top: {p.relative_to(top) for p in (top / "rlhf_jax").rglob("*") if p.is_file()}
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["rlhf_jax"]
    assert files(tmp_path / "built") == files(tmp_path)
