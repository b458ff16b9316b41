"""Formats: each kind of row is read as it should be; each bad row is named with its place."""

import gzip
import json
from pathlib import Path

import pytest

from rlhf_jax.data import demonstrations
from rlhf_jax.data.answers import EARLIER, REMOVED, REPEATED
from rlhf_jax.data.chat import Message, as_conversation, as_text, write_turns, written_prompt
from rlhf_jax.data.files import Origin
from rlhf_jax.data.formats import (
    Account,
    Comparison,
    Demonstration,
    LeftOut,
    OtherKind,
    Prompt,
    Text,
    iterate,
    read_comparisons,
    read_demonstrations,
    read_prompts,
    read_texts,
)
from rlhf_jax.data.rows import UNANSWERED
from rlhf_jax.errors import InputError

DATA = Path(__file__).parents[2] / "data"
USER = {"role": "user", "content": "Hi?"}
BOT = {"role": "assistant", "content": "Yes."}
BAD_BOT = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be kind."}
HI = (Message("user", "Hi?"),)
BE_KIND = Message("system", "Be kind.")
YES, NO = (Message("assistant", "Yes."),), (Message("assistant", "No."),)


def bare(rows):
    """Rows without their places, and prompts without the columns beside them."""
    alone = lambda row: row._replace(columns=None) if isinstance(row, Prompt) else row
    return [alone(row)._replace(origin=None) for row in rows]


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
        ({"messages": [USER, BOT, USER, BAD_BOT]}, ((*HI, *YES, *HI), NO, (1,))),
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
    with pytest.raises(InputError, match=r"rows.jsonl has no comparisons to learn from"):
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
        (read_texts, r'{"text": "\ud83d"}', "text holds half a surrogate pair"),
        (read_texts, {"messages": [{"role": "tool", "content": "x"}]}, "functions are called in"),
        (read_texts, {"messages": [{"role": "user"}]}, "every message to have role and content"),
        (read_prompts, {"text": "t"}, "found the keys text, expected prompt, instruction"),
        (read_prompts, {"chosen": "ab", "rejected": "cd"}, "begin with no word in common"),
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
        (read_comparisons, {"prompt": "p"}, "found the keys prompt, expected prompt and responses"),
        (
            read_comparisons,
            {"prompt": "p", "output_1": "a", "output_2": "b", "preference": 0},
            "preference is 0, expected 1 or 2",
        ),
        (
            read_comparisons,
            {"prompt": "p", "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": None},
            "score_1 is null, expected a number",
        ),
        (
            read_comparisons,
            {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": True},
            "labels is True, expected 0 or 1",
        ),
        (read_texts, {"Text": "a", "text": "b"}, "two columns differ in capitals alone"),
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
    with pytest.raises(InputError, match=r"has no files of rows \(.txt, .jsonl"):
        read_texts(tmp_path)
    with pytest.raises(InputError, match=r"e.jsonl is empty"):
        read_texts(write("", name="e.jsonl"))
    with pytest.raises(InputError, match=r"a.xlsx: expected a name ending in .txt, .jsonl"):
        read_texts(write("x", name="a.xlsx"))
    with pytest.raises(InputError, match=r"a.txt is plain text, expected prompts in a file of"):
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
    assert write_turns((*YES, later, *HI)) == "\n\nAssistant: Yes.\n\nBe brief.\n\nHuman: Hi?"


def test_rows_of_another_kind_are_told_from_wrong_ones(write):
    """Who guesses what a file holds tries the next kind only for the former."""
    for row in ({"prompt": "p"}, {"text": "t"}):
        with pytest.raises(OtherKind):
            read_demonstrations(write(row))
    with pytest.raises(OtherKind):
        read_prompts(write("x", name="a.txt"))
    good = {"prompt": "p", "completion": "c"}
    for rows in ([{"prompt": "p", "completion": 1}], [{"messages": [USER]}], [good, {"text": "t"}]):
        with pytest.raises(InputError) as refused:
            read_demonstrations(write(*rows))
        assert not isinstance(refused.value, OtherKind)
    with pytest.raises(InputError, match="expected ranks, or a rank in every response") as refused:
        read_comparisons(write({"prompt": "p", "responses": ["a", "b"]}))
    assert not isinstance(refused.value, OtherKind)


def test_bytes_that_are_not_utf8_are_located(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(InputError, match=r"a.jsonl, line 2: byte 24 \(0xff\) is not UTF-8"):
        read_texts(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"b.jsonl.gz cannot be read"):
        read_texts(tmp_path / "b.jsonl.gz")


# --- kinds: prompts repeated in answers -----------------------------------------------------------

LUND = (Message("user", "Where is Lund?"),)
LAKE, IDEA = (Message("assistant", "By the lake."),), (Message("assistant", "No idea."),)
ASK = {"role": "user", "content": "Where is Lund?"}
GOOD = {"role": "assistant", "content": "By the lake."}
POOR = {"role": "assistant", "content": "No idea."}
BEGUN = {"role": "assistant", "content": "By the"}


def read_one(write, kind, row):
    """The row and what is said of it."""
    account = Account()
    (made,) = iterate(write(row), kind, account)
    return made._replace(origin=None), dict(account.notes)


@pytest.mark.parametrize(
    "prompt, chosen, rejected, expected",
    [
        ("Where is Lund?", [ASK, GOOD], [ASK, POOR], ("Where is Lund?", LAKE, IDEA)),
        ("Where is Lund?", [SYSTEM, ASK, GOOD], [SYSTEM, ASK, POOR], None),
        ([ASK], [ASK, GOOD], [ASK, POOR], (LUND, LAKE, IDEA)),
        ([ASK], [ASK, GOOD], POOR, (LUND, LAKE, IDEA)),
        ([SYSTEM, ASK], [ASK, GOOD], [SYSTEM, ASK, POOR], None),
        (
            "\n\nHuman: Where is Lund?\n\nAssistant:",
            "\n\nHuman: Where is Lund?\n\nAssistant: By the lake.",
            "\n\nHuman: Where is Lund?\n\nAssistant: No idea.",
            (LUND, LAKE, IDEA),
        ),
        (
            "Where is Lund?",
            "Where is Lund? By the lake.",
            "Where is Lund? No idea.",
            ("Where is Lund?", " By the lake.", " No idea."),
        ),
        ([ASK], "Where is Lund?\nBy the lake.", "Where is Lund? No idea.", (LUND, LAKE, IDEA)),
    ],
)
def test_answers_lose_the_prompt_that_they_repeat(write, prompt, chosen, rejected, expected):
    row, notes = read_one(
        write, Comparison, {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    )
    prompt, *answers = expected or ((Message("system", "Be kind."), *LUND), LAKE, IDEA)
    assert row == Comparison(prompt, tuple(answers), (0, 1))
    assert notes == {REMOVED: 1}


@pytest.mark.parametrize(
    "completion, expected",
    [
        ([BEGUN | {"content": " lake."}], " lake."),
        (" lake.", " lake."),
        ([ASK, GOOD], " lake."),
        (GOOD, " lake."),
        ("By the lake.", " lake."),
    ],
)
def test_an_answer_continues_the_assistants_message(write, completion, expected):
    row, notes = read_one(write, Demonstration, {"prompt": [ASK, BEGUN], "completion": completion})
    assert row == Demonstration((*LUND, Message("assistant", "By the")), expected)
    assert as_text(row.prompt) + row.completion == as_text((*LUND, *LAKE))
    assert set(notes) == ({REMOVED} if "By the" in str(completion) else set())


@pytest.mark.parametrize(
    "rows, completions, note",
    [
        ([("Hi", "Hi there"), ("Hi", "Hi you")], ["Hi there", "Hi you"], REPEATED),
        ([("a b", "a b c"), ("a b", "c")], ["a b c", "c"], REPEATED),
        ([("a b", "a b c"), ("d", "d e")], [" c", " e"], REMOVED),
        ([("the film", " the film was good")], [" the film was good"], None),
        ([("a b", "\n\nHuman: a b\n\nAssistant: c")], [" c"], REMOVED),
        ([("a b ", "Human: a b\n\nAssistant: c")], [" c"], REMOVED),
        ([("a b\n", "a b c")], [" c"], REMOVED),
    ],
)
def test_texts_lose_their_prompts_only_where_all_of_a_file_repeat_them(
    write, rows, completions, note
):
    account = Account()
    path = write(*({"prompt": p, "completion": c} for p, c in rows))
    assert [row.completion for row in iterate(path, Demonstration, account)] == completions
    assert list(account.notes) == ([note] if note else [])


def test_the_words_that_answers_share_end_at_marks_of_full_width_too(write):
    row = {"chosen": "路在哪里？在湖边。", "rejected": "路在哪里？在山上。"}
    made, _ = read_one(write, Comparison, row)
    assert made == Comparison("路在哪里？", ("在湖边。", "在山上。"), (0, 1))


def test_text_and_messages_without_a_prompt_are_told_apart(write):
    with pytest.raises(InputError, match="line 1: one of chosen and rejected is text"):
        read_comparisons(write({"chosen": [USER, BOT], "rejected": "No."}))


def test_sampled_ids_beyond_any_vocabulary_are_refused(write):
    row = {"prompt": "p", "responses": ["a", "b"], "ranks": [0, 1]}
    with pytest.raises(InputError, match=r"response_tokens\[1\] is not a list of token ids"):
        read_comparisons(write(row | {"response_tokens": [[1], [2**31]]}))


def test_sampled_answers_are_never_cut(write):
    row = {"prompt": "a b", "responses": ["a b c", "a b d"], "ranks": [0, 1]}
    row |= {"response_tokens": [[1], [2]]}
    assert read_one(write, Comparison, row)[0].responses == ("a b c", "a b d")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "Another?", "chosen": [ASK, GOOD], "rejected": POOR}, "does not begin with"),
        ({"prompt": [ASK], "chosen": [GOOD, ASK], "rejected": POOR}, "does not begin and end with"),
        (
            {"prompt": [ASK, BEGUN], "chosen": [GOOD, ASK, GOOD], "rejected": POOR},
            "no message after",
        ),
        (
            {"prompt": [BEGUN], "chosen": GOOD, "rejected": POOR},
            "begins and ends with the assistant",
        ),
        ({"chosen": [ASK, GOOD, ASK], "rejected": [ASK, GOOD, SYSTEM]}, "part at answers"),
    ],
)
def test_a_conversation_that_answers_something_else_is_refused(write, row, message):
    with pytest.raises(InputError, match=rf"rows.jsonl, line 1: .*{message}"):
        read_comparisons(write(row))


def test_turns_that_answers_share_are_the_prompts(write):
    """Of a pair of dialogues whose prompt column is the first question."""
    more = [GOOD, USER]
    row = {
        "prompt": "Where is Lund?",
        "chosen": [ASK, *more, BOT],
        "rejected": [ASK, *more, BAD_BOT],
    }
    expected = Comparison((*LUND, *LAKE, *HI), (YES, NO), (0, 1))
    made, notes = read_one(write, Comparison, row)
    assert made == expected and set(notes) == {REMOVED, EARLIER}
    made, notes = read_one(write, Demonstration, {"prompt": [ASK], "completion": [*more, BOT]})
    assert made == Demonstration(expected.prompt, YES, turns=(1,))
    assert notes == {demonstrations.EARLIER: 1}
    # They part before: each answer is all that follows.
    made, _ = read_one(write, Comparison, row | {"rejected": [ASK, POOR, USER, BAD_BOT]})
    assert made == Comparison("Where is Lund?", ((*LAKE, *HI, *YES), (*IDEA, *HI, *NO)), (0, 1))


# --- kinds: messages stay messages ----------------------------------------------------------------


def test_turns_in_a_persons_text_are_text(write):
    text = "Title this:\n\nHuman: hi\n\nAssistant: hello"
    row, _ = read_one(write, Demonstration, {"messages": [ASK | {"content": text}, GOOD]})
    assert row.prompt == (Message("user", text),) == as_conversation(row.prompt)
    row, notes = read_one(write, Prompt, {"prompt": text})
    assert notes == {"a text prompt holds written turns, which stay words of it": 1}
    assert row.prompt == text and as_conversation(text) == (Message("user", text),)


def test_a_text_that_answers_messages_is_a_message(write):
    for text in ("By the lake.", " By the lake."):
        row, _ = read_one(write, Demonstration, {"prompt": [ASK], "completion": text})
        assert row.completion == LAKE
    # After a text, and where a policy sampled it, it stands as it is.
    asked = "\n\nHuman: Hi?\n\nAssistant:"
    row, _ = read_one(write, Demonstration, {"prompt": asked, "completion": "\nYes"})
    assert row.completion == "\nYes"
    row = {"prompt": [USER], "responses": ["a", " b"], "ranks": [0, 1]}
    sampled, _ = read_one(write, Comparison, row | {"response_tokens": [[1], [2]]})
    assert list(map(as_text, sampled.responses)) == ["a", " b"]
    assert list(map(as_text, read_one(write, Comparison, row)[0].responses)) == [" a", " b"]


# --- kinds: columns that change the meaning -------------------------------------------------------

GUIDE = Message("system", "Be brief.")


@pytest.mark.parametrize(
    "row, prompt",
    [
        ({"question": "Where is Lund?", "answer": "By the lake."}, LUND),
        ({"query": "Where is Lund?", "response": "By the lake."}, LUND),
        ({"input": "Where is Lund?", "output": "By the lake."}, LUND),
        (
            {
                "system_prompt": "Be brief.",
                "question": "Where is Lund?",
                "response": "By the lake.",
            },
            (GUIDE, *LUND),
        ),
        ({"system": "Be brief.", "prompt": "Where is Lund?", "completion": GOOD}, (GUIDE, *LUND)),
        ({"system": "Be brief.", "messages": [ASK, GOOD]}, (GUIDE, *LUND)),
        ({"system": " ", "messages": [ASK, GOOD], "tools": [], "images": None}, LUND),
        ({"system": "", "prompt": [ASK], "completion": GOOD, "tools": "[]", "history": []}, LUND),
        (
            {"instruction": "Where is", "context": "Lund?", "response": "By the lake."},
            (Message("user", "Where is\n\nLund?"),),
        ),
        (
            {
                "instruction": "Where is Lund?",
                "output": "By the lake.",
                "system": "Be brief.",
                "history": [["Hi?", "Yes."]],
            },
            (GUIDE, *HI, *YES, *LUND),
        ),
        (
            {"prompt": "Where is Lund?", "completion": "By the lake.", "history": [USER, BOT]},
            (*HI, *YES, *LUND),
        ),
    ],
)
def test_columns_that_change_what_is_asked_are_read(write, row, prompt):
    row, notes = read_one(write, Demonstration, row)
    assert row == Demonstration(prompt, LAKE) and not notes


def test_a_question_is_the_prompt_of_a_pair(write):
    row = {"system": "Be brief.", "question": "Where is Lund?"}
    row |= {"chosen": "Lund is by the lake.", "rejected": "Lund is lost."}
    answers = ((Message("assistant", text),) for text in (row["chosen"], row["rejected"]))
    expected = Comparison((GUIDE, *LUND), tuple(answers), (0, 1))
    assert read_one(write, Comparison, row) == (expected, {})
    turn = {"conversations": [{"from": "human", "value": "Where is Lund?"}]}
    turn |= {side: {"from": "gpt", "value": row[side]} for side in ("chosen", "rejected")}
    assert read_one(write, Comparison, turn)[0] == expected._replace(prompt=LUND)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"images": ["a.png"]}, "images is not learnt"),
        ({"documents": ["d"]}, "documents is not learnt"),
        ({"context": "c"}, "found both prompt and context"),
        ({"input": "i"}, "found both prompt and input"),
        ({"question": "another"}, "found both prompt and question"),
        ({"history": "earlier"}, "history: expected pairs"),
        ({"history": [["one"]]}, "history: expected pairs"),
        ({"system": "a", "system_prompt": "b"}, "two different system messages"),
        ({"system": ["a"]}, "system is a list with a string"),
        ({"output": "another"}, "found both completion and output"),
        ({"prompt": [SYSTEM, USER], "system": "a"}, "two different system messages"),
        ({"prompt": [USER, BOT, USER], "history": [["a", "b"]]}, "history and a prompt of several"),
        ({"choices": ["a", "b"]}, "choices is not in the prompt"),
        ({"passage": "A road."}, "passage is not in the prompt"),
        ({"chat_history": [USER, BOT]}, "chat_history is not in the prompt"),
        ({"messages": [USER, BOT]}, "a prompt that is not in the messages beside it"),
        ({"prompt": "Hi?", "messages": [USER, BOT]}, "found both completion and messages"),
        (
            {"prompt": "Hi?", "messages": [USER], "conversations": [BOT]},
            "found both messages and conversations",
        ),
        ({"label": -1}, "label is -1, expected true or false"),
        ({"kto_tag": "yes"}, "kto_tag is a string, expected true or false"),
    ],
)
def test_columns_that_would_be_lost_are_refused(write, more, message):
    row = {"prompt": "p", "completion": "c"} | more
    with pytest.raises(InputError, match=rf"rows.jsonl, line 1: .*{message}"):
        read_demonstrations(write(row))


@pytest.mark.parametrize("more", [{"history": "post"}, {"context": "c"}, {"input": "i"}])
def test_columns_beside_a_conversation_are_refused(write, more):
    with pytest.raises(InputError, match=rf"line 1: found {next(iter(more))} without a prompt"):
        read_demonstrations(write({"messages": [USER, BOT]} | more))


def test_choices_in_the_words_of_the_prompt_are_no_loss(write):
    row = {"prompt": "Lund or Graz? Lund. Graz.", "choices": {"text": ["Lund", "Graz"]}}
    assert read_one(write, Prompt, row)[0].prompt == row["prompt"]


@pytest.mark.parametrize(
    "row, prompt",
    [
        ({"messages": [SYSTEM, USER], "response": "Yes."}, (BE_KIND, *HI)),
        ({"messages": [SYSTEM, USER, BOT], "response": "Yes."}, (BE_KIND, *HI)),
        ({"messages": [SYSTEM, USER, BOT], "prompt": "Hi?"}, (BE_KIND, *HI)),
        ({"messages": [SYSTEM, USER, BOT], "prompt": "", "response": ""}, (BE_KIND, *HI)),
        ({"messages": [SYSTEM, USER, BOT], "instruction": "Hi?", "output": "Yes."}, (BE_KIND, *HI)),
        (
            {"messages": [USER, BAD_BOT, USER], "prompt": "Hi?", "completion": "Yes."},
            (*HI, *NO, *HI),
        ),
        ({"messages": [USER, BOT], "system_message": "Be kind."}, (BE_KIND, *HI)),
    ],
)
def test_a_conversation_beside_a_prompt_or_an_answer_is_not_lost(write, row, prompt):
    assert read_one(write, Demonstration, row)[0] == Demonstration(prompt, YES)
    assert read_one(write, Prompt, row)[0].prompt == prompt


def test_the_result_beside_a_worked_answer_is_said(write):
    row, notes = read_one(write, Demonstration, {"messages": [USER, BOT], "answer": "42"})
    assert row == Demonstration(HI, YES) and notes == {"column answer is not read": 1}


@pytest.mark.parametrize("label", [{"label": False}, {"label": 0.0}, {"kto_tag": False}])
@pytest.mark.parametrize("row", [{"messages": [USER, BAD_BOT]}, {"question": "q", "answer": "No."}])
def test_answers_labelled_false_are_left_out_of_every_format(write, label, row):
    account = Account()
    good = row | {name: 1 for name in label}
    assert len(list(iterate(write(good, row | label), Demonstration, account))) == 1
    assert [(each.origin.line, each.why) for each in account.left_out] == [(2, "label false")]


def test_conversations_without_an_answer_are_left_out(write):
    account, path = Account(), write({"messages": [USER, BOT]}, {"messages": [USER]})
    assert len(list(iterate(path, Demonstration, account))) == 1
    assert [(each.origin.line, each.why) for each in account.left_out] == [(2, UNANSWERED)]


@pytest.mark.parametrize(
    "more, expected",
    [
        ({"ranks": [1.0, 0.0]}, (1, 0)),
        ({"ranks": [3, 1], "chosen": "b", "rejected": "a"}, (1, 0)),
        ({"chosen": "a", "rejected": "b"}, (0, 1)),
    ],
)
def test_ranks_of_responses(write, more, expected):
    row, _ = read_one(write, Comparison, {"prompt": "p", "responses": ["a", "b"]} | more)
    assert row == Comparison("p", ("a", "b"), expected)


def test_other_columns_are_said_once(write, caplog):
    rows = [{"prompt": "p", "id": n, "score_chosen": 1, "hint": "h"} for n in range(3)]
    assert len(read_prompts(write(*rows, {"prompt": "p", "hint": None}))) == 4
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "3 rows: column hint is no part of the prompt"
    ]


# --- kinds: empty answers, pairs that teach nothing -----------------------------------------------


@pytest.mark.parametrize(
    "kind, row, why",
    [
        (Text, {"text": " \n"}, "blank text"),
        (Prompt, {"prompt": ""}, "blank prompt"),
        (Prompt, {"instruction": "", "input": ""}, "blank prompt"),
        (Prompt, {"prompt": " "}, "blank prompt"),
        (Demonstration, {"prompt": "", "completion": "c"}, "blank prompt"),
        (Demonstration, {"prompt": "p", "completion": ""}, "empty answer"),
        (Demonstration, {"instruction": "p", "input": "", "output": " \n"}, "empty answer"),
        (Demonstration, {"messages": [USER, BOT | {"content": ""}]}, "empty answer"),
        (Demonstration, {"prompt": "p", "completion": "c", "label": False}, "label false"),
        (
            Demonstration,
            {"messages": [USER, BOT | {"weight": 0}]},
            "the last message has no weight",
        ),
        (Comparison, {"prompt": "p", "chosen": "c", "rejected": "c"}, "chosen equals rejected"),
        (Comparison, {"prompt": "p", "chosen": "c", "rejected": ""}, "empty answer"),
        (
            Comparison,
            {"prompt": [USER], "chosen": BOT, "rejected": [BOT]},
            "chosen equals rejected",
        ),
        (
            Comparison,
            {"prompt": "p", "responses": ["a", "a", "b"], "ranks": [0, 1, 1], "x_id": 1},
            None,
        ),
        (
            Comparison,
            {"prompt": "p", "responses": ["a", "a", "a"], "ranks": [0, 1, 1]},
            "chosen equals rejected",
        ),
        (
            Comparison,
            {"prompt": "p", "responses": ["a", "", "b"], "ranks": [0, 1, 0]},
            "all responses tied",
        ),
        (
            Comparison,
            {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]},
            "all responses tied",
        ),
        (
            Demonstration,
            {"messages": [{"role": "user", "content": " "}, BOT]},
            "blank prompt",
        ),
        (Demonstration, {"messages": [BOT]}, "an answer to nothing"),
    ],
)
def test_rows_that_teach_nothing_are_left_out(write, kind, row, why):
    good = {"text": "t", "prompt": "p", "completion": "c", "chosen": "c", "rejected": "d"}
    account, path = Account(), write(good, row, good)
    rows = list(iterate(path, kind, account))
    assert [each.origin.line for each in rows] == ([1, 2, 3] if why is None else [1, 3])
    assert account.left_out == ([] if why is None else [LeftOut(Origin(str(path), 2), why)])
    if why is not None:
        with pytest.raises(InputError, match=rf"has no .*s to learn from: 1 left out, {why}"):
            list(iterate(write(row), kind, Account()))


def test_an_empty_answer_among_several(write):
    row = {"prompt": "p", "responses": ["a", " ", "b", "c"], "ranks": [3, 0, 1, 1]}
    made, notes = read_one(write, Comparison, row)
    assert made == Comparison("p", ("a", "b", "c"), (1, 0, 0))
    assert notes == {"an empty answer among several is left out": 1}
    # What a policy sampled is judged as it is: its end of text alone is an answer too.
    sampled = row | {"response_tokens": [[1], [0], [2], [3]]}
    assert read_one(write, Comparison, sampled)[0].responses == ("a", " ", "b", "c")


def test_equal_answers_ranked_apart_are_said(write):
    row = {"prompt": "p", "responses": ["a", "a", "b"], "ranks": [0, 1, 2]}
    assert read_one(write, Comparison, row)[1] == {
        "equal answers have different ranks; other pairs are learnt": 1
    }


# --- kinds: documents, formats, files -------------------------------------------------------------


def test_documents_are_divided_inside_a_line_too(write):
    account = Account()
    path = write("a\nb<|endoftext|>c", "<|endoftext|><|endoftext|>", "d<|endoftext|>", name="a.txt")
    rows = [(row.text, row.origin.line) for row in iterate(path, Text, account)]
    assert rows == [("a\nb", 1), ("c", 2), ("d", 4)]
    assert account.notes == {"<|endoftext|> inside a text divides it into documents": 1}
    path = write({"text": "a<|endoftext|>b"}, {"text": "c"})
    assert [(row.text, row.origin.line) for row in read_texts(path)] == [
        ("a", 1),
        ("b", 1),
        ("c", 2),
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}],
        [{"role": "human", "content": "Hi?"}, {"role": "model", "content": "Yes."}],
        [USER | {"content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i?"}]}, BOT],
    ],
)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_conversations_by_other_names(write, messages, name):
    assert read_one(write, Demonstration, {name: messages})[0] == Demonstration(HI, YES)
    system = [{"role": "developer", "content": "Be kind."}, *messages]
    asked = read_one(write, Demonstration, {name: system})[0].prompt
    assert asked == (Message("system", "Be kind."), *HI)


@pytest.mark.parametrize(
    "message, expected",
    [
        (
            {"from": "narrator", "value": "x"},
            "from is 'narrator', expected system, user, assistant",
        ),
        ({"from": "function_call", "value": "x"}, "from is 'function_call'"),
        (
            USER | {"function_call": {"name": "f"}},
            "a message has function_call, which is not learn",
        ),
        (USER | {"content": [{"type": "image", "url": "u"}]}, "part of type 'image'"),
        (USER | {"content": ["Hi?"]}, "content is a list with a string"),
        ({"speaker": "user", "text": "x"}, "role and content, or from and value"),
    ],
)
def test_messages_that_are_more_than_text_are_refused(write, message, expected):
    with pytest.raises(InputError, match=rf"rows.jsonl, line 1: .*{expected}"):
        read_demonstrations(write({"messages": [message, BOT]}))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": '[{"role": "user"}]'}, "messages is a string without messages"),
        ({"conversations": [["Hi?", "Yes."]]}, "conversations is a list without messages"),
        ('{"prompt": "p", "completion": "c", "prompt": "q"}', "the key 'prompt' stands twice"),
        ("[1]", "expected an object with named keys .a list of them belongs in a .json file"),
        ('{"prompt": "p", "completion": "c", "n": ' + "9" * 5000 + "}", "number that is too long"),
        (r'{"prompt": "p", "completion": "c", "x\ud83d": 1}', "half a surrogate pair"),
    ],
)
def test_rows_that_would_be_misread_are_refused(write, row, message):
    with pytest.raises(InputError, match=rf"rows.jsonl, line 1: .*{message}"):
        read_demonstrations(write(row))


@pytest.mark.parametrize(
    "kind, row, mark",
    [
        (Text, {"text": "one</s>two"}, "</s>"),
        (Text, {"text": "one <b> two"}, None),
        (Prompt, {"prompt": "[INST] Hi? [/INST]"}, "[INST]"),
        (Demonstration, {"messages": [USER, {**BOT, "content": "Yes.<|im_end|>"}]}, "<|im_end|>"),
        (Demonstration, {"messages": [{**USER, "content": "What is <|im_end|>?"}, BOT]}, None),
    ],
)
def test_marks_of_other_models_are_said(write, kind, row, mark):
    _, notes = read_one(write, kind, row)
    said = f"{mark} is written in a text: letters, unless the tokenizer has it"
    assert notes == ({} if mark is None else {said: 1})


def test_what_a_text_is_without_is_said(write):
    row = {"text": "Hi? Yes.", "label": "pos", "instruction": "Hi?", "input": "", "output": "Yes."}
    assert read_one(write, Text, row)[1] == {
        "column instruction is not read": 1,
        "column output is not read": 1,
    }


def test_earlier_answers_are_context_and_that_is_said(write):
    _, notes = read_one(write, Demonstration, {"messages": [USER, BOT, USER, BOT]})
    assert notes == {demonstrations.EARLIER: 1}


def test_lists_under_a_key_and_lines_in_json(write):
    rows = [{"text": "a"}, {"text": "b"}]
    for path in (
        write({"version": "1.1", "data": rows}, name="d.json"),
        write(*rows, name="l.json"),
        write(json.dumps(rows[0]), "", json.dumps(rows[1]), name="e.json"),
    ):
        assert read_texts(path) == [
            Text("a", Origin(str(path), 1)),
            Text("b", Origin(str(path), 2)),
        ]
    with pytest.raises(InputError, match=r"t.json holds an object with the keys train, expected a"):
        read_texts(write({"train": rows}, name="t.json"))
    with pytest.raises(InputError, match=r"s.json holds rows under data and test, expected one"):
        read_texts(write({"data": rows, "test": rows}, name="s.json"))
    with pytest.raises(InputError, match=r"n.json, row 2: broken JSON at column 2"):
        read_texts(write(rows[0], "{nope}", name="n.json"))


def test_a_folder_with_held_out_files_is_refused(write, tmp_path):
    for name in ("dev.jsonl", "rows_test.jsonl", "held-out.jsonl", "val-00000-of-00001.jsonl"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        write({"text": "held"}, name=f"{folder.name}/{name}")
        assert bare(read_texts(folder)) == [Text("held")]
        write({"text": "a"}, name=f"{folder.name}/contest.jsonl")
        message = rf"has contest.jsonl and {name}, which by its name is not to be trained on"
        with pytest.raises(InputError, match=message):
            read_texts(folder)
        with pytest.raises(InputError, match=message):
            read_texts(folder / "*.jsonl")


def test_held_out_folders_of_a_pattern_are_refused(write, tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        write({"text": name}, name=f"{name}/a.jsonl")
    with pytest.raises(InputError, match=r"has train/a.jsonl and test/a.jsonl, which by its name"):
        read_texts(tmp_path / "*" / "*.jsonl")
    assert bare(read_texts(tmp_path / "test" / "*.jsonl")) == [Text("test")]


def test_hidden_files_of_a_folder_are_no_data(write, tmp_path):
    write({"text": "a"}, name="a.jsonl")
    write("no", name=".a.jsonl.123.tmp")
    write("no", name="._a.jsonl")
    assert len(read_texts(tmp_path)) == 1


@pytest.mark.parametrize("other", ["b.xlsx", "b.feather", "b.jsonl.xz", "B.JSONL"])
def test_a_folder_with_files_that_are_not_read_is_refused(write, tmp_path, other):
    """They may hold the other half of the rows, or the same ones."""
    path = write({"text": "a"})
    (tmp_path / other).write_text("x")
    with pytest.raises(InputError, match=rf"rows.jsonl and {other}, which is not read: name one"):
        read_texts(tmp_path)
    assert len(read_texts(path)) == len(read_texts(tmp_path / "*.jsonl")) == 1


@pytest.mark.parametrize(
    "names, message",
    [
        (["a.jsonl.xz"], r"no files of rows .* but a.jsonl.xz, which is not read"),
        (["a/b.jsonl"], r"no files of rows .* but folders such as a"),
    ],
)
def test_folders_of_other_kinds_are_refused_with_advice(write, tmp_path, names, message):
    folder = tmp_path / "data"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match=message):
        read_texts(folder)


def test_files_of_other_kinds_are_refused_with_advice(write):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1"
    for name in ("a.jsonl", "a.txt", "a.json", "a.csv", "a.parquet", "a.arrow"):
        with pytest.raises(InputError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
            read_texts(write(pointer, name=name))


# --- null is as good as empty ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "read, good, row, why",
    [
        (read_texts, {"text": "t"}, {"text": None}, "blank text"),
        (read_texts, {"text": "t"}, {"messages": None}, "empty conversation"),
        (read_prompts, {"prompt": "p"}, {"prompt": None}, "blank prompt"),
        (read_prompts, {"prompt": "p"}, {"messages": []}, "empty conversation"),
        (
            read_demonstrations,
            {"prompt": "p", "completion": "c"},
            {"prompt": "p", "completion": None},
            "empty answer",
        ),
        (
            read_demonstrations,
            {"messages": [USER, BOT]},
            {"messages": [USER, BOT | {"content": None}]},
            "empty answer",
        ),
        (read_demonstrations, {"messages": [USER, BOT]}, {"messages": []}, "empty conversation"),
        (read_comparisons, PAIR, {"prompt": "p", "chosen": None, "rejected": "r"}, "empty answer"),
        (read_comparisons, PAIR, {"prompt": "p", "chosen": [], "rejected": "r"}, "empty answer"),
        (read_comparisons, PAIR, {"chosen": "p c", "rejected": None}, "empty answer"),
        (read_comparisons, PAIR, {**PAIR, "responses": ["a", {"text": None}]}, "empty answer"),
    ],
)
def test_a_row_with_null_is_left_out_as_an_empty_one_is(write, caplog, read, good, row, why):
    assert len(read(write(good, row))) == 1
    assert f"1 of 2 rows left out, {why}" in caplog.text


# --- answers in a row, parts of messages, columns that rows of a kind do not learn ---------------


def test_two_answers_in_a_row_are_not_glued(write, caplog):
    twice = {"messages": [USER, BOT, BAD_BOT]}
    assert len(read_demonstrations(write(twice, {"messages": [USER, BOT]}))) == 1
    assert "1 of 2 rows left out, two answers in a row" in caplog.text
    pair = {"chosen": [USER, BOT, BAD_BOT], "rejected": [USER, BOT, BOT]}
    (row,) = read_comparisons(write(pair))
    assert row.prompt == HI and row.responses == ((*YES, *NO), (*YES, *YES))


@pytest.mark.parametrize(
    "read, row, said",
    [
        (read_demonstrations, {"messages": [USER | {"name": "A"}, BOT]}, "name of a message"),
        (read_demonstrations, {"messages": [USER, BOT | {"weight": 0.5}]}, "weight of a message"),
        (read_comparisons, {"chosen": [USER, BOT], "rejected": [USER, BAD_BOT | {"name": "B"}]},
         "name of a message"),
        (read_comparisons, PAIR | {"response": "c"}, "column response"),
        (read_comparisons, PAIR | {"text": "c"}, "column text"),
        (read_demonstrations, {"prompt": "p", "completion": "c", "chosen": "d"}, "column chosen"),
        (read_texts, {"text": "t", "responses": ["a"]}, "column responses"),
    ],
)  # fmt: skip
def test_what_is_not_learnt_of_a_row_is_said(write, caplog, read, row, said):
    assert len(read(write(row))) == 1
    assert f"1 row: {said} is not read" in caplog.text


@pytest.mark.parametrize("mark, weight", [("weight", 0), ("train", False)])
def test_a_completion_without_weight_is_left_out(write, mark, weight):
    row = {"prompt": [USER], "completion": [BOT | {mark: weight}]}
    with pytest.raises(InputError, match="1 left out, the last message has no weight"):
        read_demonstrations(write(row))


def test_markup_that_two_answers_share_ends_with_its_line(write):
    """The line feed behind a turn's header is the prompt's, as it is where one is sampled for."""
    head = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    (row,) = read_comparisons(write({"chosen": head + "Yes.", "rejected": head + "No."}))
    assert row.prompt == head and row.responses == ("Yes.", "No.")


def test_that_a_developer_speaks_as_the_system_is_said(write):
    first = {"role": "developer", "content": "Be kind."}
    made, notes = read_one(write, Demonstration, {"messages": [first, USER, BOT]})
    assert made.prompt[0] == BE_KIND
    assert notes == {"a developer's message is read as the system's": 1}
