"""Formats: each kind of row is read as it should be; each bad row is named with its place."""

import gzip
import json
from pathlib import Path

import pytest

from rlhf_jax.data.chat import Message, as_conversation, as_text, flatten, written_prompt
from rlhf_jax.data.files import Origin
from rlhf_jax.data.formats import (
    Comparison,
    Demonstration,
    Prompt,
    Text,
    read_comparisons,
    read_demonstrations,
    read_prompts,
    read_texts,
)
from rlhf_jax.errors import InputError

DATA = Path(__file__).parent.parent / "data"
USER = {"role": "user", "content": "Hi?"}
BOT = {"role": "assistant", "content": "Yes."}
BAD_BOT = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be kind."}
HI = (Message("user", "Hi?"),)
YES, NO = (Message("assistant", "Yes."),), (Message("assistant", "No."),)


def bare(rows):
    """Rows without their places."""
    return [row._replace(origin=None) for row in rows]


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        dump = lambda row: row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
        lines = map(dump, rows)
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, text",
    [
        ({"text": "a\u2028b", "label": "pos"}, "a\u2028b"),
        ({"messages": [SYSTEM, USER, BOT]}, "Be kind.\n\nHuman: Hi?\n\nAssistant: Yes."),
    ],
)
def test_texts(write, row, text):
    assert bare(read_texts(write(row))) == [Text(text)]


def test_plain_text_is_split_at_separators(write):
    path = write("one\ntwo\n", "<|endoftext|>\r", "", "three", name="a.txt")
    assert read_texts(path) == [
        Text("one\ntwo", Origin(str(path), 1)),
        Text("three", Origin(str(path), 6)),
    ]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"prompt": "p", "completion": " c"}, ("p", " c")),
        ({"prompt": [USER], "completion": [BOT]}, (HI, YES)),
        ({"messages": [USER, BOT]}, (HI, YES)),
        ({"messages": [USER, BOT, USER, BAD_BOT]}, ((*HI, *YES, *HI), NO)),
        ({"instruction": "Hi?", "input": "", "output": "Yes."}, (HI, YES)),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            ((Message("user", "Add.\n\n1 2"),), (Message("assistant", "3"),)),
        ),
    ],
)
def test_demonstrations(write, row, expected):
    path = write(row)
    assert bare(read_demonstrations(path)) == [Demonstration(*expected)]
    assert bare(read_prompts(path)) == [Prompt(expected[0])]


def test_unpaired_rows_labelled_false_are_left_out_and_counted(write, caplog):
    rows = [{"prompt": "p", "completion": str(n), "label": n == 1} for n in range(3)]
    assert bare(read_demonstrations(write(*rows))) == [Demonstration("p", "1")]
    assert "2 of 3 rows left out, label false" in caplog.text


POST = {"post": "I fell.", "title": "Help", "subreddit": "AskReddit"}


@pytest.mark.parametrize(
    "row, prompt, responses, ranks",
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2}, "p", ("c", "r"), (0, 1)),
        (
            {"prompt": [USER], "chosen": [BOT], "rejected": [BAD_BOT]},
            HI,
            (YES, NO),
            (0, 1),
        ),
        ({"chosen": [USER, BOT], "rejected": [USER, BAD_BOT]}, HI, (YES, NO), (0, 1)),
        (
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b c",
                "rejected": "\n\nHuman: a\n\nAssistant: b d",
            },
            (Message("user", "a"),),
            ((Message("assistant", "b c"),), (Message("assistant", "b d"),)),
            (0, 1),
        ),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is black."},
            "The sky is",
            (" blue.", " black."),
            (0, 1),
        ),
        (
            {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"]},
            "p",
            ("a", "b", "c"),
            (0, 0, 1),
        ),
        (
            {"instruction": "Hi?", "input": "", "chosen": "Yes.", "rejected": "No."},
            HI,
            (YES, NO),
            (0, 1),
        ),
        (
            {"info": POST, "summaries": [{"text": " a"}, {"text": " b"}], "choice": 1},
            "SUBREDDIT: r/AskReddit\n\nTITLE: Help\n\nPOST: I fell.\n\nTL;DR:",
            (" a", " b"),
            (1, 0),
        ),
        (
            {
                "info": {"article": "A.", "title": "T"},
                "summaries": [{"text": "a"}, {"text": "b"}],
                "choice": 0,
            },
            "TITLE: T\n\nARTICLE: A.\n\nTL;DR:",
            ("a", "b"),
            (0, 1),
        ),
        (
            {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 1, 3]},
            "p",
            ("a", "b", "c"),
            (0, 0, 1),
        ),
        (
            {"prompt": "p", "responses": [{"text": "a", "rank": 2}, {"text": "b", "rank": 0}]},
            "p",
            ("a", "b"),
            (1, 0),
        ),
    ],
)
def test_comparisons(write, row, prompt, responses, ranks):
    path = write(row)
    assert bare(read_comparisons(path)) == [Comparison(prompt, responses, ranks)]
    assert bare(read_prompts(path)) == [Prompt(prompt)]


def test_sampled_ids_are_kept(write):
    row = {
        "prompt": "p",
        "responses": ["a", "b"],
        "ranks": [0, 1],
        "response_tokens": [[5], [7, 0]],
    }
    assert read_comparisons(write(row))[0].tokens == ((5,), (7, 0))


def test_tied_rows_are_left_out_and_counted(write, caplog):
    tied = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]}
    assert len(read_comparisons(write(tied, {**tied, "ranks": [0, 1]}))) == 1
    assert "1 of 2 rows left out, all responses tied" in caplog.text
    with pytest.raises(InputError, match=r"rows.jsonl has no Comparison rows"):
        read_comparisons(write(tied))


# --- where from -----------------------------------------------------------------------------------


def test_folders_and_patterns_are_read_in_order(write, tmp_path):
    write({"text": "2"}, name="b.jsonl")
    write({"text": "1"}, name="a.jsonl")
    write("not data", name="LICENSE")
    assert bare(read_texts(tmp_path)) == [Text("1"), Text("2")]
    assert bare(read_texts(tmp_path / "b*.jsonl")) == [Text("2")]


def test_json_lists_and_compressed_lines(tmp_path):
    rows = [{"text": "é"}, {"text": "b"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    lines = "\n\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    assert bare(read_texts(tmp_path)) == [Text("é"), Text("b")] * 2


def test_the_data_of_this_repository():
    assert len(read_texts(DATA / "sft_sentence_polarity")) == 8530
    assert len(read_texts(DATA / "sft_movie_reviews")) == 1600
    assert len(read_texts(DATA / "text_zh_poems")) == 517
    assert len(read_texts(DATA / "text_tinystories_sample")) == 153
    assert len(read_texts(DATA / "text_gutenberg")) == 123
    assert all(file.stat().st_size < 5e6 for file in DATA.rglob("*"))


# --- what is refused ------------------------------------------------------------------------------

PAIR = {"prompt": "p", "responses": ["a", "b"], "ranks": [0, 1]}
OK_ROW = {read_texts: {"text": "t"}, read_comparisons: PAIR}


@pytest.mark.parametrize(
    "read, row, message",
    [
        (read_texts, "{nope}", "broken JSON at column 2: Expecting property name"),
        (read_texts, "[1]", "found a list, expected an object with named keys"),
        (read_texts, {"txet": 1, "id": 2}, "found the keys txet, id, expected text or messages"),
        (read_texts, {"text": 3}, "text is a number, expected a string"),
        (read_texts, {"text": None}, "text is null, expected a string"),
        (read_texts, r'{"text": "\ud83d"}', "text holds half a surrogate pair"),
        (read_texts, {"messages": [{"role": "tool", "content": "x"}]}, "role is 'tool', expected"),
        (read_texts, {"messages": [{"role": "user"}]}, "every message to have role and content"),
        (read_prompts, {"text": "t"}, "found the keys text, expected prompt, instruction"),
        (read_prompts, {"chosen": "ab", "rejected": "cd"}, "do not begin alike"),
        (read_prompts, {"chosen": [USER], "rejected": [BOT]}, "share no message"),
        (read_prompts, {"info": {"title": "x"}}, "info has no post and no article"),
        (
            read_demonstrations,
            {"prompt": "p"},
            "found the keys prompt, expected prompt and completion",
        ),
        (read_demonstrations, {"prompt": "p", "completion": 1}, "completion is a number"),
        (
            read_demonstrations,
            {"prompt": "p", "completion": "c", "label": "x"},
            "label is a string",
        ),
        (read_demonstrations, {"messages": [USER]}, "do not end with the assistant's answer"),
        (read_comparisons, {"prompt": "p"}, "found the keys prompt, expected prompt and responses"),
        (
            read_comparisons,
            {"prompt": "p", "chosen": [], "rejected": "r"},
            "chosen is an empty list",
        ),
        (read_comparisons, {**PAIR, "responses": "ab"}, "responses is a string, expected a list"),
        (read_comparisons, {**PAIR, "responses": ["a", 1]}, "the text of response 1 is a number"),
        (
            read_comparisons,
            {"prompt": "p", "responses": ["a", "b"]},
            "expected ranks, or a rank in",
        ),
        (
            read_comparisons,
            {**PAIR, "responses": ["a"], "ranks": [0]},
            "1 response, expected at least 2",
        ),
        (read_comparisons, {**PAIR, "ranks": [0]}, "found 1 ranks for 2 responses"),
        (
            read_comparisons,
            {**PAIR, "ranks": [0, -1]},
            r"ranks are \[0, -1\], expected whole numbers",
        ),
        (read_comparisons, {**PAIR, "ranks": [0, 0.5]}, r"ranks are \[0, 0.5\], expected whole"),
        (read_comparisons, {**PAIR, "ranks": [0, True]}, "expected whole numbers from 0 on"),
        (read_comparisons, {**PAIR, "response_tokens": [[1]]}, "1 response_tokens for 2 responses"),
        (
            read_comparisons,
            {**PAIR, "response_tokens": [[1], []]},
            r"response_tokens\[1\] is not a",
        ),
        (
            read_comparisons,
            {"info": POST, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2},
            r"choice is 2, expected 0 \.\.\. 1",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_line(write, read, row, message):
    good = {"prompt": "p", "completion": "c", **OK_ROW.get(read, {})}
    with pytest.raises(InputError, match=rf"rows.jsonl, line 2: .*{message}"):
        read(write(good, row))


def test_bad_files(write, tmp_path):
    with pytest.raises(InputError, match=r"none.jsonl does not exist"):
        read_texts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match=r"has no .txt, .jsonl or .json files"):
        read_texts(tmp_path)
    with pytest.raises(InputError, match=r"e.jsonl is empty"):
        read_texts(write("", name="e.jsonl"))
    with pytest.raises(InputError, match=r"a.csv: expected a name ending in .txt"):
        read_texts(write("x", name="a.csv"))
    with pytest.raises(InputError, match=r"a.txt is plain text, expected Prompt rows"):
        read_prompts(write("x", name="a.txt"))
    with pytest.raises(
        InputError, match=r"o.json holds an object with the keys text, expected a list"
    ):
        read_texts(write('{"text": "a"}', name="o.json"))
    with pytest.raises(InputError, match=r"b.json, line 2: broken JSON at column"):
        read_texts(write('[{"text": "a"},', "{]", name="b.json"))
    with pytest.raises(InputError, match=r"r.json, row 2: found the keys x, expected text"):
        read_texts(write('[{"text": "a"}, {"x": 1}]', name="r.json"))


TALK = (*HI, *YES, *HI)


@pytest.mark.parametrize("conversation", [HI, TALK, (Message("user", "a\n\nb "),), (*HI, *NO, *HI)])
def test_a_prompt_is_the_conversation_that_it_writes_down(conversation):
    assert written_prompt(as_text(conversation)) == conversation
    assert as_conversation(as_text(conversation)) == conversation


@pytest.mark.parametrize(
    "text",
    [
        " Chinese: 你好\nEnglish:\n",
        "See \n\nHuman: hi\n\nAssistant:",
        "\n\nHuman: hi\n\nAssistant: well",
        "\n\nHuman:hi\n\nAssistant:",
        "\n\nAssistant: hi\n\nAssistant:",
    ],
)
def test_a_prompt_that_writes_down_no_conversation_is_a_users_message(text):
    assert written_prompt(text) == text
    assert as_conversation(text) == (Message("user", text.strip()),)


def test_a_conversation_as_text():
    system, later = Message("system", "Be kind."), Message("system", "Be brief.")
    assert as_text(HI) == "\n\nHuman: Hi?\n\nAssistant:"
    assert as_text(YES) == " Yes."
    assert as_text((system, *HI)) == "Be kind.\n\nHuman: Hi?\n\nAssistant:"
    assert as_text((*HI, *YES)) == "\n\nHuman: Hi?\n\nAssistant: Yes."
    assert as_text((*YES, *HI, *NO)) == " Yes.\n\nHuman: Hi?\n\nAssistant: No."
    # A system message between turns is not glued to the answer before it.
    assert flatten((*YES, later, *HI)) == "\n\nAssistant: Yes.\n\nBe brief.\n\nHuman: Hi?"


def test_bytes_that_are_not_utf8_are_located(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(InputError, match=r"a.jsonl, line 2: byte 24 \(0xff\) is not UTF-8"):
        read_texts(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"b.jsonl.gz cannot be read"):
        read_texts(tmp_path / "b.jsonl.gz")
