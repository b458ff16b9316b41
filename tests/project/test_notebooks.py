"""The notebooks hold no outputs, are named on their page, and run from top to bottom."""

import json
import os

import pytest
from tiny import ROOT, process_environment

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    book = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def test_the_page_names_every_notebook():
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3
    assert all(f"(notebooks/{path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_outputs(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, monkeypatch, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra test")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra test")
    for name, value in process_environment(TMPDIR=str(tmp_path), MPLBACKEND="agg").items():
        monkeypatch.setitem(os.environ, name, value)
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
    said = "".join(
        output.get("text", "") for cell in book.cells for output in cell.get("outputs", [])
    )
    # What each of them is about has happened: the score has risen, or arms were compared.
    if path.stem == "own_reward":
        first, last = map(float, said.split("first and last score:")[1].split()[:2])
        assert last > first + 0.5
    elif path.stem == "ablation":
        assert "95 % from" in said
    else:
        assert " -> " in said
