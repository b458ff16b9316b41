"""--columns: what a file calls otherwise is read, said, part of what a run is, or refused."""

import json

import pytest

from experiments import canaries
from rlhf_jax.config import CanaryConfig, PreviewConfig, SFTConfig, TextDataConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.datasets import load_comparisons
from rlhf_jax.data.formats import iterate, read_comparisons, read_demonstrations, read_prompts
from rlhf_jax.data.rows import Account, Comparison, Demonstration, Prompt, Text
from rlhf_jax.errors import InputError

PAIR = {"question": "Hi?", "Good": "Yes.", "bad": "No."}
PAIR_COLUMNS = {"prompt": "question", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(lines, encoding="utf-8")
        return tmp_path / name

    return write


def read(path, kind, columns):
    account = Account()
    rows = [row._replace(origin=None) for row in iterate(path, kind, account, columns)]
    return rows, dict(account.notes)


# --- what the flag says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, names",
    [
        ("", {}),
        ("prompt=question", {"prompt": "question"}),
        (" Prompt = Question , chosen=good", {"prompt": "question", "chosen": "good"}),
        ("prompt=question,question=prompt", {"prompt": "question", "question": "prompt"}),
        ("prompt=the question", {"prompt": "the question"}),
    ],
)
def test_pairs_of_names(text, names):
    assert column_names(text) == names


@pytest.mark.parametrize(
    "text, message",
    [
        ("question", "found 'question', expected READ_AS=COLUMN, as in prompt=question"),
        ("prompt=", "found 'prompt='"),
        ("=question", "found '=question'"),
        ("prompt=a,", "found ''"),
        ("prompt=a=b", "found 'prompt=a=b'"),
        ("prompt=a,Prompt=b", "names two columns for Prompt, expected one"),
        ("prompt=a,chosen=A", "reads A twice, expected once"),
        ("prompt=Prompt", "prompt is read as prompt without it"),
    ],
)
@pytest.mark.parametrize(
    "config, flag",
    [(SFTConfig, "columns"), (PreviewConfig, "columns"), (TextDataConfig, "data.columns")],
)
def test_a_mapping_that_is_none_is_refused_by_its_flag(config, flag, text, message):
    with pytest.raises(InputError, match=rf"^{flag}=.*{message}"):
        config(columns=text)


# --- what is read ---------------------------------------------------------------------------------


def test_columns_are_read_under_their_new_names_and_that_is_said(write):
    path = write(PAIR, {**PAIR, "bad": "Never."})
    rows, notes = read(path, Comparison, PAIR_COLUMNS)
    assert rows == [
        Comparison("Hi?", ("Yes.", "No."), (0, 1)),
        Comparison("Hi?", ("Yes.", "Never."), (0, 1)),
    ]
    assert notes == {f"column {old} is read as {new}": 2 for new, old in PAIR_COLUMNS.items()}
    assert rows == [row._replace(origin=None) for row in read_comparisons(path, PAIR_COLUMNS)]


def test_columns_of_every_kind(write):
    path = write({"body": "a", "ask": "b", "say": "c", "truth": "d"})
    assert read(path, Text, {"text": "body"})[0] == [Text("a")]
    assert read(path, Demonstration, {"prompt": "ask", "completion": "say"})[0] == [
        Demonstration("b", "c")
    ]
    ((prompt,), _) = read(path, Prompt, {"prompt": "ask", "reference": "truth"})
    assert (
        prompt.prompt == "b"
        and prompt.columns["reference"] == "d"
        and "truth" not in prompt.columns
    )


def test_a_column_may_be_of_a_public_set(write):
    row = {"prompt": "p", "one": "a", "two": "b", "verdict": 2}
    columns = {"output_1": "one", "output_2": "two", "preference": "verdict"}
    assert read_comparisons(write(row), columns)[0].ranks == (1, 0)


def test_a_column_that_gives_up_its_place_is_said(write):
    rows, notes = read(
        write({"prompt": "old", "ask": "new", "answer": "c"}), Demonstration, {"prompt": "ask"}
    )
    assert rows == [Demonstration("new", "c")]
    assert notes["column prompt is not read: ask takes its place"] == 1


def test_two_columns_may_change_places(write):
    path = write({"prompt": "c", "completion": "p"})
    columns = {"prompt": "completion", "completion": "prompt"}
    rows, notes = read(path, Demonstration, columns)
    assert rows == [Demonstration("p", "c")]
    assert not any("takes its place" in note for note in notes)


def test_an_empty_column_takes_no_place(write):
    path = write({"ask": "a", "answer": "c"}, {"prompt": "b", "ask": None, "answer": "c"})
    assert [row.prompt for row in read_demonstrations(path, {"prompt": "ask"})] == ["a", "b"]


def test_nothing_is_said_of_a_column_that_is_empty_in_all_rows(write):
    _, notes = read(
        write({"prompt": "b", "ask": "", "answer": "c"}), Demonstration, {"query": "ask"}
    )
    assert not any("ask" in note for note in notes)


def test_cells_of_a_table_are_read_by_their_new_names(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('ask\tall\torder\np\t["a", "b"]\t[1, 0]\n')
    columns = {"prompt": "ask", "responses": "all", "ranks": "order"}
    assert read(path, Comparison, columns)[0] == [Comparison("p", ("a", "b"), (1, 0))]
    path.write_text("ask\tall\torder\np\t[a\t[1, 0]\n")
    with pytest.raises(InputError, match=r"a.tsv, line 2: responses: broken JSON"):
        read_comparisons(path, columns)


# --- what is refused ------------------------------------------------------------------------------


def test_a_column_that_no_row_has_is_refused(write):
    path = write({"prompt": "p"}, {"prompt": "q", "Note": "n"})
    message = (
        r"rows.jsonl: --columns prompt=question: no row has a column question, found prompt, note"
    )
    with pytest.raises(InputError, match=message):
        read_prompts(path, {"prompt": "question"})
    assert len(read_prompts(path, {"remark": "note"})) == 2


@pytest.mark.parametrize(
    "kind, new, expected",
    [
        (Text, "prompt", "texts are not read from a column prompt, expected one of conv.*, text"),
        (Demonstration, "chosen", "demonstrations are not read from a column chosen, expected"),
        (Comparison, "text", "comparisons are not read from a column text, expected one of"),
    ],
)
def test_a_name_that_is_not_read_is_refused(write, kind, new, expected):
    with pytest.raises(InputError, match=rf"--columns {new}=question: {expected}"):
        read(write(PAIR), kind, {new: "question"})


def test_columns_that_differ_in_capitals_alone_are_still_refused(write):
    with pytest.raises(InputError, match="two columns differ in capitals alone"):
        read_prompts(write({"ask": "a", "Ask": "b"}), {"prompt": "ask"})


# --- what tells one set from another --------------------------------------------------------------


def test_other_columns_are_another_prepared_set(write, tmp_path):
    path, cache = write(PAIR), tmp_path / "cache"
    swapped = PAIR_COLUMNS | {"chosen": "bad", "rejected": "good"}
    for columns, best in ((PAIR_COLUMNS, "Yes."), (swapped, "No."), (PAIR_COLUMNS, "Yes.")):
        (row,) = load_comparisons(path, data_dir=cache, columns=columns)
        assert row.responses[0] == best


def test_canaries_are_hidden_among_rows_of_other_names(write, tmp_path):
    path, out = write({"ask": "p", "say": "c"}), tmp_path / "out.jsonl"
    columns = "prompt=ask,completion=say"
    canaries.run(CanaryConfig("plant", data=path, out=out, columns=columns, number=1, repeat=1))
    assert ("p", "c") in [(row.prompt, row.completion) for row in read_demonstrations(out)]
