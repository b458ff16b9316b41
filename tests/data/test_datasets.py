"""Prepared data sets: the same rows as the files, never stale, never half-written."""

import ast
import inspect
import json
import subprocess
import sys
import tempfile

import pytest

from rlhf_jax.data import datasets
from rlhf_jax.data.chat import Message
from rlhf_jax.data.datasets import (
    load_comparisons,
    load_demonstrations,
    load_prompts,
    load_texts,
    split,
)
from rlhf_jax.data.fates import EncodingReport, total
from rlhf_jax.data.files import Origin
from rlhf_jax.data.formats import (
    Comparison,
    Demonstration,
    LeftOut,
    Prompt,
    Text,
    read_comparisons,
    read_texts,
)
from rlhf_jax.errors import InputError, RunError


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


def bare(rows):
    """Rows without their places, and prompts without the columns beside them."""
    alone = lambda row: row._replace(columns=None) if isinstance(row, Prompt) else row
    return [alone(row)._replace(origin=None) for row in rows]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_texts_keep_their_order_and_type(write, cache):
    path = write(*({"text": f"text {n} é😀"} for n in range(600)))
    rows = load_texts(path, data_dir=cache)
    assert list(rows) == read_texts(path)
    assert type(rows[7]) is Text and rows[7] == Text("text 7 é😀", Origin(str(path), 8))
    assert rows[-1].text == "text 599 é😀" and len(rows) == 600
    assert list(rows[10:20:5]) == [rows[10], rows[15]]
    with pytest.raises(IndexError):
        rows[600]


def test_prompts_and_demonstrations(write, cache):
    path = write({"prompt": "p\x00", "completion": "é"}, {"prompt": "q", "completion": " c"})
    assert bare(load_prompts(path, data_dir=cache)) == [Prompt("p\x00"), Prompt("q")]
    expected = [Demonstration("p\x00", "é"), Demonstration("q", " c")]
    assert bare(load_demonstrations(path, data_dir=cache)) == expected


def test_comparisons_keep_ranks_ties_and_sampled_ids(write, cache):
    path = write(
        {"prompt": "p", "responses": ["a", "b", "é"], "ranks": [1, 0, 1]},
        {
            "prompt": "q",
            "responses": ["a", "b"],
            "ranks": [0, 1],
            "response_tokens": [[70000], [2, 0, 1]],
        },
    )
    rows = list(load_comparisons(path, data_dir=cache))
    assert rows == read_comparisons(path)
    assert rows[0] == Comparison("p", ("a", "b", "é"), (1, 0, 1), None, Origin(str(path), 1))
    assert rows[1].tokens == ((70000,), (2, 0, 1))
    assert all(type(value) is int for value in (*rows[0].ranks, *rows[1].tokens[1]))


def test_conversations_and_the_account_come_back_from_the_cache(write, cache, caplog):
    asked = [{"role": "user", "content": "a\n\nHuman: b"}]
    pair = {"prompt": asked, "chosen": [{"role": "assistant", "content": " c"}], "rejected": "d"}
    path = write(pair, pair | {"rejected": " " * 3}, pair | {"rejected": pair["chosen"], "odd": 1})
    first, again = (load_comparisons(path, data_dir=cache) for _ in range(2))
    answers = ((Message("assistant", " c"),), (Message("assistant", "d"),))
    row = Comparison(
        (Message("user", "a\n\nHuman: b"),), answers, (0, 1), None, Origin(str(path), 1)
    )
    assert list(first) == list(again) == [row]
    left_out = (
        LeftOut(Origin(str(path), 2), "empty answer"),
        LeftOut(Origin(str(path), 3), "chosen equals rejected"),
    )
    assert first.left_out == again.left_out == left_out == again.select([]).left_out
    assert first.notes == again.notes == {"column odd is not read": 1}
    assert caplog.text.count("1 of 3 rows left out, chosen equals rejected") == 2
    moved = path.rename(path.with_name("moved.jsonl"))
    assert load_comparisons(moved, data_dir=cache)[0].origin.file == str(moved)


def test_what_reading_did_is_in_the_report_of_a_stage(write, cache):
    rows = load_texts(write({"text": "a<|endoftext|>b"}, {"text": " "}), data_dir=cache)
    report = EncodingReport(2, {"empty document": 1}, {}, 0, {}).with_reading(
        rows.left_out, rows.notes
    )
    assert report.counts() == {
        "kept": 2,
        "empty document": 1,
        "blank text": 1,
        "<|endoftext|> inside a text divides it into documents": 1,
    }
    assert total([report, report]).counts() == {k: 2 * n for k, n in report.counts().items()}


def test_a_set_is_prepared_once_and_anew_when_its_file_is_edited(write, cache, monkeypatch):
    assert load_texts(write({"text": "old"}), data_dir=cache)[0].text == "old"
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "iterate", None)  # reading the file again would fail
        assert load_texts(write({"text": "old"}), data_dir=cache)[0].text == "old"
    assert load_texts(write({"text": "new"}), data_dir=cache)[0].text == "new"
    write({"text": "more"}, name="second.jsonl")
    assert len(load_texts(write({"text": "new"}).parent, data_dir=cache)) == 2


def test_a_bad_row_leaves_nothing_behind(write, cache):
    path = write({"prompt": "p"}, {"prompt": 3})
    with pytest.raises(InputError, match=r"rows.jsonl, line 2: prompt is a number"):
        load_prompts(path, data_dir=cache)
    assert not list(cache.rglob("*.array_record*"))
    assert load_prompts(write({"prompt": "p"}), data_dir=cache)[0].prompt == "p"


def test_another_process_may_be_first(write, cache, monkeypatch):
    path = write({"text": "a"}, {"text": "b"})
    iterate = datasets.iterate

    def overtaken(*args):
        monkeypatch.setattr(datasets, "iterate", iterate)
        load_texts(path, data_dir=cache)
        return iterate(*args)

    monkeypatch.setattr(datasets, "iterate", overtaken)
    assert bare(load_texts(path, data_dir=cache)) == [Text("a"), Text("b")]
    assert not list(cache.rglob("*incomplete*"))


def test_a_folder_that_cannot_be_written_is_named(write, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write the data set .*file/rlhf_texts"):
        load_texts(write({"text": "a"}), data_dir=tmp_path / "file")


def test_preparing_is_silent_and_needs_no_tensorflow(write, cache, capfd, caplog):
    load_texts(write({"text": "a"}), data_dir=cache)
    assert capfd.readouterr() == ("", "") and not caplog.records
    code = "import sys, rlhf_jax.data.datasets; print('tensorflow' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_no_temporary_folder_stays(write, cache, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    load_texts(write({"text": "a"}), data_dir=cache)
    assert not list((tmp_path / "temporary").iterdir())


def test_split_holds_out_whole_prompts_by_hash(write, cache):
    path = write(*({"prompt": f"p{n % 50}", "completion": str(n)} for n in range(100)))
    rows = load_demonstrations(path, data_dir=cache)
    train, heldout = split(rows, heldout_fraction=0.1)
    assert sorted([*train, *heldout]) == sorted(rows)
    assert len({row.prompt for row in heldout}) == 5
    assert not {row.prompt for row in train} & {row.prompt for row in heldout}
    assert [row.completion for row in train] == sorted((r.completion for r in train), key=int)


def test_split_does_not_depend_on_order_nor_on_other_rows(write, cache):
    rows = [{"text": f"t{n}"} for n in range(100)]
    splits = [
        set(bare(split(load_texts(write(*some), data_dir=cache), heldout_fraction=0.1)[1]))
        for some in (rows, rows[::-1], rows[:90])
    ]
    assert splits[0] == splits[1]
    assert len(splits[0]) == 10 and len(splits[0] & splits[2]) >= 8


@pytest.mark.slow
def test_an_independent_side_depends_on_the_row_alone(write, cache):
    """By rank, one row more moves another for some of the rows."""
    rows = load_texts(write(*({"text": f"t{n}"} for n in range(60))), data_dir=cache)

    def moved(independent):
        how = dict(heldout_fraction=0.3, independent=independent)
        train, heldout = map(set, split(rows, **how))
        assert len(train) + len(heldout) == 60 and 9 <= len(heldout) <= 27
        others = [[m for m in range(60) if m != n] for n in range(60)]
        left = [set(split(rows.select(some), **how)[0]) for some in others]
        return sum(some != train - {row} for some, row in zip(left, rows, strict=True))

    assert moved(independent=True) == 0 < moved(independent=False)


def test_an_independent_split_with_an_empty_side_is_refused(write, cache):
    rows = load_texts(write({"text": "a"}, {"text": "b"}, {"text": "b"}), data_dir=cache)
    with pytest.raises(InputError, match=r"none of 2 different rows has a hash below 0.001: give"):
        split(rows, heldout_fraction=0.001, independent=True)
    with pytest.raises(InputError, match=r"holding out 0.999 of 2 different rows leaves none"):
        split(rows, heldout_fraction=0.999, independent=True)
    assert len(split(rows, heldout_fraction=0.0, independent=True)[0]) == 3


def test_split_never_holds_out_nothing_or_everything(write, cache):
    rows = load_texts(write({"text": "a"}, {"text": "b"}, {"text": "b"}), data_dir=cache)
    assert [len(part) for part in split(rows, heldout_fraction=0.0)] == [3, 0]
    assert min(len(part) for part in split(rows, heldout_fraction=0.01)) >= 1
    with pytest.raises(InputError, match=r"holding out 0.6 of 2 different rows leaves none"):
        split(rows, heldout_fraction=0.6)


def test_all_code_that_reads_is_part_of_a_prepared_sets_name():
    """A change of it makes sets anew. Not what fetches files alone: their bytes are in the name."""
    names = {module.__name__ for module in datasets.READING}
    imported = set()
    for module in datasets.READING:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and node.module == "rlhf_jax.data":
                imported |= {f"rlhf_jax.data.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf_jax"):
                imported.add(node.module)
    assert "rlhf_jax.data.columns" in imported
    assert imported - names == {"rlhf_jax.data.hub", "rlhf_jax.errors"}
