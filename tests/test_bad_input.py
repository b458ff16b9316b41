"""Bad input through the command line: one clear sentence, exit code 2, nothing written."""

import sys

import pytest

from experiments import pretrain
from rlhf_jax.cli import main
from rlhf_jax.config import PretrainConfig

GOOD = '{"text": "once upon a time"}\n'


def refuse(monkeypatch, capsys, folder, *flags):
    """Run the command and return its one line on stderr."""
    command = ["pretrain", "--run.dir", str(folder / "run"), "--data.cache", str(folder / "cache")]
    monkeypatch.setattr(sys, "argv", [*command, *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        main(pretrain.run, PretrainConfig)
    assert stop.value.code == 2
    assert not (folder / "run").exists(), "nothing is written"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "name,content,expected",
    [
        ("empty.txt", b"", ["empty.txt"]),
        ("empty.jsonl", b"", ["empty.jsonl"]),
        ("broken.jsonl", (GOOD + '{"text": \n').encode(), ["broken.jsonl", "line 2"]),
        ("key.jsonl", (GOOD + '{"body": "x"}\n').encode(), ["key.jsonl", "line 2", "body"]),
        ("type.jsonl", (GOOD + '{"text": 7}\n').encode(), ["type.jsonl", "line 2", "a number, expected a string"]),
        ("latin.txt", "caf\xe9".encode("latin-1"), ["latin.txt", "UTF-8"]),
    ],
)
def test_files_that_cannot_be_read(monkeypatch, capsys, tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    message = refuse(monkeypatch, capsys, tmp_path, "--data.path", tmp_path / name)
    assert all(word in message for word in expected), message


def test_a_missing_file(monkeypatch, capsys, tmp_path):
    message = refuse(monkeypatch, capsys, tmp_path, "--data.path", tmp_path / "none.txt")
    assert "none.txt" in message


def test_no_data_at_all(monkeypatch, capsys, tmp_path):
    assert "--data.path" in refuse(monkeypatch, capsys, tmp_path)


def test_a_mistyped_flag(monkeypatch, capsys, tmp_path):
    assert "did you mean --batch-size" in refuse(monkeypatch, capsys, tmp_path, "--batch-sise", "8")


def test_a_folder_that_holds_something_else(monkeypatch, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    monkeypatch.setattr(sys, "argv", ["pretrain", "--run.dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main(pretrain.run, PretrainConfig)
    assert "thesis.tex" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]
