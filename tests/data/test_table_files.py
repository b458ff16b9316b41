"""Tables: Parquet, Arrow, folders of save_to_disk, CSV and TSV, and compressed lines."""

import csv
import datetime
import gzip
import json
import random

import pyarrow
import pytest
from pyarrow import ipc, parquet

from rlhf_jax.data import columns, csv_files
from rlhf_jax.data.datasets import digest
from rlhf_jax.data.files import Origin, find_files, read_rows
from rlhf_jax.data.formats import iterate, read_comparisons, read_demonstrations, read_texts
from rlhf_jax.data.rows import Comparison, Demonstration
from rlhf_jax.errors import InputError
from rlhf_jax.runs.inputs import contents_digest

TALK = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
ROWS = [
    {"prompt": "a", "responses": ["b", 'c, "d"\ne'], "ranks": [0, 1], "id": 1},
    {"prompt": "é\u2028", "responses": ["x", "y", "z"], "ranks": [1, 0, 1], "id": None},
]


def write_parquet(path, rows, schema=None):
    names = dict.fromkeys(name for row in rows for name in row)
    whole = [{name: row.get(name) for name in names} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(whole, schema), path)


def write_stream(path, rows, schema=None):
    table = pyarrow.Table.from_pylist(rows, schema)
    with ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=1)


def write_arrow_file(path, rows, schema=None):
    table = pyarrow.Table.from_pylist(rows, schema)
    with ipc.new_file(path, table.schema) as file:
        file.write_table(table, max_chunksize=1)


def write_csv(path, rows):
    dump = lambda cell: json.dumps(cell) if isinstance(cell, list) else cell
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows({name: dump(cell) for name, cell in row.items()} for row in rows)


def write_lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    codec = pyarrow.Codec("zstd") if path.suffix == ".zst" else None
    packed = codec.compress(text, asbytes=True) if codec else text
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else packed)


def save_to_disk(folder, rows, files=2):
    """The files that ``datasets.Dataset.save_to_disk`` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{files:05d}.arrow" for n in range(files)]
    for n, name in enumerate(names):
        size = -(-len(rows) // files)
        write_stream(folder / name, rows[n * size : (n + 1) * size])
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {}}')


WRITERS = {
    **{"a.parquet": write_parquet, "a.arrow": write_stream, "b.arrow": write_arrow_file},
    **{"a.csv": write_csv, "a.tsv": write_csv, "a.ndjson": write_lines},
    **{"a.jsonl.zst": write_lines, "a.ndjson.gz": write_lines, "a.jsonl": write_lines},
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_are_read_whatever_the_file(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    rows = read_comparisons(path)
    assert [row._replace(origin=None) for row in rows] == [
        Comparison("a", ("b", 'c, "d"\ne'), (0, 1)),
        Comparison("é\u2028", ("x", "y", "z"), (1, 0, 1)),
    ]
    # The first row of the CSV goes over no line end: inside JSON it is written as \n.
    lines = {"a.csv": (2, 3), "a.tsv": (2, 3)}.get(name, (1, 2))
    assert [row.origin for row in rows] == [Origin(str(path), line) for line in lines]


def test_random_texts_come_back_from_every_type(tmp_path):
    letters = random.Random(0)
    text = lambda: "".join(letters.choices("a ,;\t\"'\n\\[{|é\u2028", k=12)) + "."
    rows = [{"prompt": text(), "completion": text()} for _ in range(50)]
    expected = [Demonstration(*row.values()) for row in rows]
    for name, write in WRITERS.items():
        write(tmp_path / name, rows)
        read = [row._replace(origin=None) for row in iterate(tmp_path / name, Demonstration)]
        assert read == expected, name


def test_types_of_arrow_become_plain_python(tmp_path):
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    part = pyarrow.struct([("role", pyarrow.dictionary(pyarrow.int8(), pyarrow.string()))])
    columns = {
        "large": (pyarrow.large_string(), "é", "é"),
        "view": (pyarrow.string_view(), "v", "v"),
        "category": (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "c", "c"),
        "nothing": (pyarrow.null(), None, None),
        "when": (pyarrow.timestamp("ns", "UTC"), moment, "2020-01-02 03:04:05.000000000Z"),
        "day": (pyarrow.date32(), datetime.date(2020, 1, 2), "2020-01-02"),
        "turns": (pyarrow.list_(part), [{"role": "user"}], [{"role": "user"}]),
        "pair": (pyarrow.list_(pyarrow.int8(), 2), [1, 2], [1, 2]),
        "map": (pyarrow.map_(pyarrow.string(), pyarrow.float16()), [("a", 0.5)], {"a": 0.5}),
        "price": (pyarrow.decimal128(6, 2), 3, 3.0),
        "yes": (pyarrow.bool_(), True, True),
    }
    schema = pyarrow.schema([(name, kind) for name, (kind, _, _) in columns.items()])
    row = {name: value for name, (_, value, _) in columns.items()}
    table = pyarrow.Table.from_pylist([row], schema)
    for path, new in ((tmp_path / "a.arrow", ipc.new_stream), (tmp_path / "b.arrow", ipc.new_file)):
        with new(path, schema) as file:
            file.write_table(table)
        ((_, found),) = read_rows(path)
        assert found == {name: expected for name, (_, _, expected) in columns.items()}
        assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "kind, value, found",
    [
        (pyarrow.binary(), b"x", "binary"),
        (pyarrow.struct([("bytes", pyarrow.large_binary())]), {"bytes": b"x"}, "large_binary"),
        (pyarrow.map_(pyarrow.int8(), pyarrow.int8()), [(1, 1)], "map<int8, int8>"),
        (pyarrow.month_day_nano_interval(), None, "month_day_nano_interval"),
    ],
)
def test_a_type_that_is_not_plain_is_refused_by_column(tmp_path, kind, value, found):
    schema = pyarrow.schema([("text", pyarrow.string()), ("picture", kind)])
    write_stream(tmp_path / "a.arrow", [{"text": "a", "picture": value}], schema)
    with pytest.raises(InputError, match=rf"a.arrow: column picture holds {found}, expected text"):
        read_texts(tmp_path / "a.arrow")


def test_nulls_of_a_table_with_rows_of_several_kinds_say_nothing(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, [{"prompt": "p", "completion": "c"}, {"messages": TALK}])
    assert len(read_demonstrations(path)) == 2
    write_parquet(path, [{"text": "t"}, {"messages": TALK}])
    assert [row.text for row in read_texts(path)] == ["t", "\n\nHuman: Hi?\n\nAssistant: Yes."]
    write_parquet(path, [{"prompt": "p", "chosen": "c", "rejected": "r"}, ROWS[0] | {"id": 1}])
    assert len(read_comparisons(path)) == 2


# --- folders of save_to_disk ----------------------------------------------------------------------


def test_folders_of_save_to_disk(tmp_path):
    rows = [{"prompt": f"p{n}", "completion": "c"} for n in range(5)]
    save_to_disk(tmp_path / "one", rows, files=3)
    (tmp_path / "one" / "cache-0a1b.arrow").write_bytes(b"of a map, and no rows")
    assert [row.prompt for row in read_demonstrations(tmp_path / "one")] == [
        row["prompt"] for row in rows
    ]
    assert read_demonstrations(tmp_path / "one")[2].origin == Origin(
        str(tmp_path / "one" / "data-00001-of-00003.arrow"), 1
    )


def test_a_split_of_several_is_to_be_chosen(tmp_path):
    both = tmp_path / "both"
    save_to_disk(both / "train", ROWS)
    save_to_disk(both / "test", ROWS[:1], files=1)
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    message = r"DatasetDict of save_to_disk with the splits train, test: name .* as \S*both/train"
    with pytest.raises(InputError, match=message):
        read_comparisons(both)
    assert len(read_comparisons(both / "train")) == 2 > len(read_comparisons(both / "test"))
    (both / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert find_files(both) == find_files(both / "train")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("state.json", "{", "state.json cannot be read"),
        ("state.json", "{}", "state.json: found no list _data_files"),
        (
            "state.json",
            '{"_data_files": [], "_indices_data_files": [{}]}',
            "a choice among the rows .* save it anew with flatten_indices",
        ),
        ("state.json", '{"_data_files": [{"filename": "x.arrow"}]}', "x.arrow is no whole arrow"),
    ],
)
def test_a_folder_of_save_to_disk_that_is_not_whole_is_refused(tmp_path, name, text, message):
    save_to_disk(tmp_path / "a", ROWS)
    (tmp_path / "a" / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_comparisons(tmp_path / "a")


def test_what_datasets_writes_about_rows_is_no_rows(tmp_path):
    """As in its own cache, which has no state.json."""
    write_stream(tmp_path / "a-train.arrow", ROWS)
    (tmp_path / "dataset_info.json").write_text("{}")
    assert len(read_comparisons(tmp_path)) == 2


# --- what is refused ------------------------------------------------------------------------------


def test_a_file_that_is_cut_off_or_none_of_its_kind_is_refused(tmp_path):
    for name in ("a.parquet", "a.arrow", "b.arrow", "a.jsonl.zst", "a.ndjson.gz"):
        path = tmp_path / name
        WRITERS[name](path, ROWS * 200)
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"PAR0 none of them"):
            path.write_bytes(content)
            with pytest.raises(InputError, match=rf"{name}( is no | cannot be read|, row )"):
                list(read_rows(path))


def test_a_table_without_rows_is_empty(tmp_path):
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        schema = pyarrow.schema([("text", pyarrow.string())])
        WRITERS[name](tmp_path / name, [], schema)
        with pytest.raises(InputError, match=rf"{name} is empty"):
            read_texts(tmp_path / name)


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(InputError, match=r"a.arrow: two columns are called text"):
        read_texts(tmp_path / "a.arrow")


def test_bytes_that_are_no_text_are_named_with_their_row(tmp_path):
    raw = pyarrow.array([b"good", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"text": raw})
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(InputError, match=r"a.arrow, row 2: .*can't decode byte 0xff"):
        read_texts(tmp_path / "a.arrow")


@pytest.mark.parametrize(
    "text, message",
    [
        ("text\na\nb,c\n", "line 3: found 2 cells, expected 1 as in the header, divided by commas"),
        ('text\n"a\nb"\nc,d\n', "line 4: found 2 cells"),
        ('text\na\n"b\n', "line 3: unexpected end of data: a cell with quotes"),
        ('text\n"a"b\n', "line 2: .* expected after"),
        ("text,text\na,b\n", "line 1: two columns are called text"),
        ("text,,id\na,b,c\n", "line 1: column 2 has no name"),
        ("prompt;completion\na;b\n", "line 2: found the keys prompt;completion, expected"),
        ("messages\n[{}\n", "line 2: messages: broken JSON at column"),
        ("prompt,chosen,rejected\na,\"[{'role': 'user'}]\",b\n", "line 2: chosen is .* Python"),
        ("", "is empty"),
    ],
)
def test_a_bad_table_of_text_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    read = read_comparisons if "chosen" in text else read_demonstrations
    with pytest.raises(InputError, match=rf"a.csv(, | ){message}"):
        read(path) if "prompt" in text or "messages" in text else list(read_rows(path))


def test_rows_of_a_table_of_text_are_at_their_first_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(',text\r\n0,"a\r\nb"\r\n\r\n1,c\r\n', newline="")
    found = [(origin.line, row) for origin, row in read_rows(path)]
    assert found == [(2, {"index": "0", "text": "a\nb"}), (5, {"index": "1", "text": "c"})]


def test_a_cell_may_be_larger_than_pythons_limit(tmp_path):
    text = "a" * 200_000
    (tmp_path / "a.csv").write_text(f"text\n{text}\n")
    before = csv.field_size_limit()
    assert read_texts(tmp_path / "a.csv")[0].text == text
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "name, cell, value",
    [
        ("messages", json.dumps(TALK), TALK),
        ("Ranks", "[0, 1]", [0, 1]),
        ("label", "True", True),
        ("label", "0", 0),
        ("label", "pos", "pos"),
        ("label", "", None),
        ("prompt", json.dumps(TALK), TALK),
        ("prompt", "[1, 2]", "[1, 2]"),
        ("prompt", '[{"name": "Ann"}]', '[{"name": "Ann"}]'),
        ("prompt", "[Ann] said", "[Ann] said"),
        ("answer", "4", "4"),
        ("history", '[["Hi?", "Yes."]]', [["Hi?", "Yes."]]),
        ("history", "[Ann] said", "[Ann] said"),
        ("note", json.dumps(TALK), json.dumps(TALK)),
    ],
)
def test_a_cell_is_text_unless_its_column_never_is(tmp_path, name, cell, value):
    write_csv(tmp_path / "a.tsv", [{name: cell, "id": "7"}])
    ((_, row),) = read_rows(tmp_path / "a.tsv")
    assert row == {name: value, "id": "7"}


def test_files_that_may_hold_the_same_rows_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", ROWS)
    write_lines(tmp_path / "b.jsonl", ROWS)
    assert len(read_comparisons(tmp_path)) == 4
    write_lines(tmp_path / "a.jsonl.zst", ROWS)
    with pytest.raises(InputError, match=r"a.jsonl.zst and a.parquet, which may hold the same"):
        read_comparisons(tmp_path)
    assert len(read_comparisons(tmp_path / "*.parquet")) == 2


def test_parts_of_a_split_are_named_by_a_pattern(tmp_path):
    for name in ("test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        write_parquet(tmp_path / f"{name}.parquet", ROWS)
    with pytest.raises(InputError, match=r"or a pattern, such as (\S+)$") as caught:
        read_comparisons(tmp_path)
    assert len(read_comparisons(str(caught.value).split()[-1])) == 4


# --- what tells one file from another -------------------------------------------------------------


@pytest.mark.parametrize("name", [*WRITERS, "saved"])
def test_an_edited_file_is_another_input(tmp_path, name):
    path = tmp_path / name
    write = WRITERS.get(name, save_to_disk)
    write(path, ROWS)
    before = digest(path), contents_digest(path)
    if path.is_dir():
        (path / "dataset_info.json").write_text('{"description": "of no row"}')
    assert (digest(path), contents_digest(path)) == before
    if path.is_dir():
        write_stream(path / "data-00001-of-00002.arrow", ROWS[:1])
    else:
        write(path, [ROWS[1], ROWS[0]])
    after = digest(path), contents_digest(path)
    assert after[0] != before[0] and after[1] != before[1]


def test_a_cell_is_read_as_what_its_column_holds():
    """The names that a row's columns go by are known to tables too."""
    assert csv_files.LIST_COLUMNS.issuperset((*columns.CONVERSATIONS, "responses", "summaries"))
    assert csv_files.NUMBER_COLUMNS.issuperset(columns.LABELS)
    assert csv_files.CONVERSATION_COLUMNS.issuperset(
        (*columns.ANSWERING, "prompt", "chosen", "rejected", "history")
    )
