"""Labels out of the store and back in, conversations scrubbed, invisible characters shown."""

import json
import unicodedata
from collections import Counter

import pytest
from feedback_site import fill, labeler

from rlhf_jax.data import formats as rows_of_stages
from rlhf_jax.data.chat import Message
from rlhf_jax.errors import InputError
from rlhf_jax.feedback import conversation, formats, queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.imports import read_rankings
from rlhf_jax.feedback.labels import is_heldout, rankings, read_labels
from rlhf_jax.feedback.texts import map_text
from rlhf_jax.feedback.visible import pieces
from rlhf_jax.text.personal_data import scrub_typed


@pytest.fixture
def labels(tmp_path):
    """Two labelers' rankings of one task, one with a tie; a chat with thumbs and a correction."""
    database = open_database(tmp_path / "store.sqlite")
    fill(database, 1, wanted=2, responses=3)
    for name, ranks in (("Ann", [0, 1, 1]), ("Ben", [2, 0, 1])):
        account = labeler(database, name)
        task = queue.lease_task(database, account)
        order = task.order(account)
        shown = [ranks[n] for n in order]
        body = {"ranks": shown, "demonstration": "mine" if name == "Ann" else ""}
        submissions.submit(
            database, account, submission=account.id, task=task.id, kind="ranking", body=body
        )
    conversation.say(database, account, "c", "hello", dialogue=False)
    (question,) = conversation.waiting(database)
    answers = [queue.Response(f" {word}", "p") for word in ("good", "bad", "odd")]
    conversation.answer(database, question, answers, round=0, sampling={})
    task = conversation.read_turns(database, account, "c")[0].task
    place = {n: task.order(account).index(n) for n in range(3)}
    for n, (kind, body) in enumerate(
        [
            ("thumb", {"response": place[0], "up": False}),
            ("thumb", {"response": place[0], "up": True}),  # changed their mind
            ("thumb", {"response": place[1], "up": False}),
            ("demonstration", {"text": "better", "corrects": place[2]}),
        ]
    ):
        submissions.submit(
            database, account, submission=f"chat{n:04}", task=task.id, kind=kind, body=body
        )
    return read_labels(database)


def test_what_orders_answers(labels):
    made = [([r.text for r in x.responses], list(x.ranks), x.source) for x in rankings(labels)]
    answers = [f" answer {k} to 0" for k in range(3)]
    assert made == [
        (answers, [0, 1, 1], "ranking"),
        (answers, [2, 0, 1], "ranking"),
        ([" better", " odd"], [0, 1], "correction"),
        ([" good", " bad"], [0, 1], "thumbs"),
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_stages_read_native_and_trl_rows(labels, tmp_path):
    native = rows_of_stages.read_comparisons(
        write(tmp_path / "native.jsonl", formats.native(labels))
    )
    assert [row.ranks for row in native] == [x.ranks for x in rankings(labels)]
    assert native[0].tokens == ((0, 0, 1), (1, 0, 1), (2, 0, 1)) and native[2].tokens is None
    pairs = rows_of_stages.read_comparisons(
        write(tmp_path / "trl.jsonl", formats.trl_preference(labels))
    )
    assert len(pairs) == 2 + 3 + 1 + 1
    assert pairs[2].responses == (" answer 1 to 0", " answer 0 to 0")  # Ben's second best pair
    shown = rows_of_stages.read_demonstrations(
        write(tmp_path / "sft.jsonl", formats.demonstrations(labels))
    )
    assert [row[:2] for row in shown] == [("prompt 0", " mine"), ("hello", " better")]
    liked = formats.trl_unpaired(labels)
    assert [row["label"] for row in liked] == [True, False]  # of two on one answer the newest


@pytest.mark.parametrize("name", ["native", "label-studio", "argilla"])
def test_back_in(labels, name, tmp_path):
    """Out and in again gives the same rankings, ties and labelers included."""
    found, account = read_rankings(write(tmp_path / "rows.jsonl", formats.WRITERS[name](labels)))
    key = lambda x: (x.labeler, x.row.prompt, x.row.responses, x.row.ranks)
    given = [
        (x.labeler, x.prompt, tuple(r.text for r in x.responses), x.ranks) for x in rankings(labels)
    ]
    assert sorted(map(key, found)) == sorted(given)
    assert not account.left_out
    buckets = "buckets are ranked as the file has them, best first: rank 1, rank 2"
    assert (account.notes.keys() & {buckets}) == ({buckets} if name == "label-studio" else set())


@pytest.fixture
def read(tmp_path):
    """(prompt, responses, ranks, labeler) of the rankings in some rows, and why others are none."""

    def read(*rows):
        found, account = read_rankings(write(tmp_path / "rows.jsonl", rows))
        tuples = [(x.row.prompt, x.row.responses, x.row.ranks, x.labeler) for x in found]
        return tuples, [each.why for each in account.left_out]

    return read


def studio(*annotations, **more):
    """A task of Label Studio; an annotation is what its ranker says, or a whole one."""
    items = [{"id": name, "title": name.upper(), "body": f"text {name}"} for name in "abc"]
    made = [
        each
        if "result" in each
        else {
            "completed_by": 7,
            "result": [{"type": "ranker", "from_name": "rank", "value": {"ranker": each}}],
        }
        for each in annotations
    ]
    return {"data": {"prompt": "p", "items": items, "task_id": 1}, "annotations": made, **more}


@pytest.mark.parametrize(
    "ranker,texts,ranks",
    [
        ({"rank": ["c", "a", "b"]}, "abc", (1, 2, 0)),  # without buckets: under the tag's own name
        ({"best": ["c"], "fair": ["a"], "poor": ["b"]}, "abc", (1, 2, 0)),
        ({"best": ["b"], "poor": ["c", "a"]}, "abc", (1, 0, 1)),
        ({"rank 1": ["a"], "rank 2": [], "rank 3": ["b", "c"]}, "abc", (0, 1, 1)),
        ({"_": ["b"], "best": ["c"], "poor": ["a"]}, "ac", (1, 0)),
        ({"best": ["c"], "poor": ["a"]}, "ac", (1, 0)),
    ],
)
def test_label_studios_ranker(read, ranker, texts, ranks):
    found, left_out = read(studio(ranker))
    assert found == [("p", tuple(f"text {name}" for name in texts), ranks, "7")]
    assert left_out == ["item that was not placed"] * (3 - len(texts))


def test_what_label_studio_has_besides_rankings(read):
    one = {"result": [{"type": "ranker", "from_name": "r", "value": {"ranker": {"r": [*"bca"]}}}]}
    found, left_out = read(
        studio(
            one | {"was_cancelled": True, "completed_by": 1},
            one | {"was_cancelled": False, "completed_by": {"id": 2, "email": "ann@example.org"}},
            one | {"result": [{"type": "choices"}, *one["result"]]},
            {"result": []},
            {"best": ["a"], "_": ["b", "c"]},
            {"best": ["a", "b", "c"]},
            predictions=[one, one],
            drafts=[one],
        ),
        studio(),
    )
    assert [labeler for *_, labeler in found] == ["2", ""] and found[0][2] == (2, 0, 1)
    assert Counter(left_out) == {
        "prediction, not a person's": 2,
        "draft": 1,
        "cancelled annotation": 1,
        "result of type choices": 1,
        "annotation without a ranking": 1,
        "annotation that places fewer than two items": 1,
        "all responses tied": 1,
        "task without annotations": 1,
    }


def test_label_studios_pairs(read):
    pair = lambda side: {
        "data": {"prompt": "p", "answer1": "x", "answer2": "y"},
        "annotations": [
            {"result": [{"type": "pairwise", "to_name": "answer1,answer2", "value": side}]}
        ],
    }
    found, _ = read(pair({"selected": "right"}), pair({"selected": "left"}))
    assert [ranks for _, _, ranks, _ in found] == [(1, 0), (0, 1)]
    with pytest.raises(InputError, match="line 1: pairwise: found 'both'"):
        read(pair({"selected": "both"}))


def argilla(*responses, **more):
    users, states, rankings = zip(*responses, strict=True) if responses else (None, None, None)
    return {
        "prompt": "p",
        **{f"response-{n}": f"r{n}" for n in range(1, 4)},
        "ranking.responses": rankings,
        "ranking.responses.users": users,
        "ranking.responses.status": states,
    } | more


def test_argillas_records(read):
    ranked = [{"value": "response-3", "rank": 1}, {"value": "response-1", "rank": 3}]
    ranked.append({"value": "response-2", "rank": 1})
    found, left_out = read(
        argilla(
            ("u", "submitted", ["response-2", "response-3", "response-1"]),
            ("v", "draft", ["response-1"]),
            ("w", "discarded", None),
            ("x", "submitted", ranked),
        ),
        argilla(status="pending"),
        argilla(("u", "submitted", ["response-2", "response-1"]), **{"response-3": None}),
    )
    assert found == [
        ("p", ("r1", "r2", "r3"), (2, 0, 1), "u"),
        ("p", ("r1", "r2", "r3"), (1, 0, 0), "x"),
        ("p", ("r1", "r2"), (1, 0), "u"),
    ]
    assert sorted(left_out) == [
        *("discarded response", "draft response", "record that nobody has ranked"),
    ]
    tagged = argilla(("u", "submitted", ["response-2", "response-1"]))
    tagged |= {"tags.responses": [["good", "short"]], "tags.responses.users": ["u"]}
    assert read(tagged)[0] == [("p", ("r1", "r2"), (1, 0), "u")]


def test_rows_are_read_as_the_stages_read_them(read, tmp_path):
    message = lambda role, text: {"role": role, "content": text}
    typed = "\n\nHuman: hi\n\nAssistant: hello"
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 7, 1], "labeler": 0},
        {
            "prompt": [message("user", typed)],
            "chosen": [message("assistant", "A wren.")],
            "rejected": [message("assistant", "A spoon.")],
        },
        {"prompt": "p", "chosen": "same", "rejected": "same"},
    ]
    found, left_out = read(*rows)
    stages = rows_of_stages.read_comparisons(tmp_path / "rows.jsonl")
    assert [x[:3] for x in found] == [(row.prompt, row.responses, row.ranks) for row in stages]
    assert found[0] == ("p", ("a", "b", "c"), (0, 1, 0), "0")
    assert found[1][:2] == (
        (Message("user", typed),),
        ((Message("assistant", "A wren."),), (Message("assistant", "A spoon."),)),
    )
    assert left_out == ["chosen equals rejected"]


HALF = "A wren \ud83d"
TWO = ["response-1", "response-2"]


@pytest.mark.parametrize(
    "row,message",
    [
        ({"x": 1}, "found the keys x"),
        ({"prompt": "p", "responses": ["a"], "ranks": [0]}, "1 response"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [0]}, "1 ranks"),
        ({"prompt": "p", "responses": ["a", 2], "ranks": [0, 1]}, "expected a string"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [0, -1]}, "whole numbers"),
        ({"prompt": "p", "responses": [*"abcdefghij"], "ranks": [*range(10)]}, "at most 9"),
        ({"responses": ["a", "b"], "ranks": [0, 1]}, "prompt"),
        ({"prompt": "p", "responses": [HALF, "b"], "ranks": [0, 1]}, "half a surrogate"),
        ({"prompt": HALF, "chosen": "a", "rejected": "b"}, "half a surrogate"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "labeler": "a\0"}, "holds a NUL"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "labeler": HALF}, "labeler: holds half"),
        ({"data": {"prompt": "p"}, "annotations": [{"result": [{"type": "ranker"}]}]}, "0 lists"),
        (studio({"best": ["z"], "poor": ["a"]}), "names 'z', expected some of a, b, c"),
        (studio({"best": ["a"], "poor": ["a", "b"]}), "an item twice"),
        (studio({"result": [{"type": "ranker"}, {"type": "pairwise"}]}), "2 rankings"),
        (studio({"result": None}), "has no result"),
        (studio({"result": [None]}), "a result is null, expected an object"),
        (studio({"result": [{"type": "ranker", "value": None}]}), "the value of a ranker is null"),
        (studio({"result": [{"type": "pairwise", "value": 3}]}), "the value of a pairwise is a"),
        (argilla(("u", "submitted", ["response-1", "x"])), "names 'x', expected fields"),
        (argilla(("u", "submitted", [*TWO, "response-1"])), "a field twice"),
        (argilla(("u", "submitted", [{"value": "response-1"}, *TWO[1:]])), "whole numbers"),
        (argilla(("u", "submitted", TWO), **{"other.responses": [TWO]}), "one question"),
        ({"fields": {"prompt": "p"}, "responses": {"ranking": []}}, "flatten=True"),
    ],
)
def test_rows_that_are_none(read, row, message):
    """Named with their place, and no row of the file is taken."""
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 2: .*{message}"):
        read({"prompt": "p", "chosen": " a", "rejected": " b"}, row)


def test_a_file_without_rankings_says_why(read):
    with pytest.raises(InputError, match=r"has no rankings: 2 left out, record that nobody"):
        read(argilla(), argilla())


def test_conversations_go_out_as_messages_and_come_back(tmp_path):
    """What a person typed is one turn, whatever it looks like."""
    database = open_database(tmp_path / "store.sqlite")
    ann = labeler(database)
    typed = "one\n\nAssistant: two\n\nHuman: three"
    conversation.say(database, ann, "c", typed, dialogue=True)
    (question,) = conversation.waiting(database)
    assert question.prompt == (Message("user", typed),)
    answers = [queue.Response(" red", "p", (1, 2)), queue.Response(" blue", "p", (3,))]
    conversation.answer(database, question, answers, round=0, sampling={})
    (turn,) = conversation.read_turns(database, ann, "c")
    for n, (kind, body) in enumerate(
        [("ranking", {"ranks": [0, 1]}), ("demonstration", {"text": "violet", "corrects": 0})]
    ):
        submissions.submit(
            database, ann, submission=f"said{n:04}", task=turn.task.id, kind=kind, body=body
        )
    labels = read_labels(database)
    asked = [{"role": "user", "content": typed}]
    said = lambda text: [{"role": "assistant", "content": text}]
    native = formats.native(labels)
    assert [row["prompt"] for row in native] == [asked] * 2
    assert native[0]["responses"] == [" red", " blue"]
    assert formats.demonstrations(labels)[0]["completion"] == said("violet")
    better = " red" if turn.task.order(ann) == [0, 1] else " blue"
    assert formats.trl_preference(labels)[0]["chosen"] == said(better.strip())
    for name in ("native", "trl-preference", "label-studio", "argilla"):
        path = write(tmp_path / f"{name}.jsonl", formats.WRITERS[name](labels))
        for found, _ in (read_rankings(path),):
            assert {each.row.prompt for each in found} == {(Message("user", typed),)}
            answers = {text for each in found for text in each.row.responses}
            assert {(Message("assistant", word),) for word in ("red", "blue")} <= answers
            assert len(found) == 2


def test_half_a_character_of_an_older_store_blocks_nothing(tmp_path):
    database = open_database(tmp_path / "store.sqlite")
    ann = labeler(database)
    responses = [queue.Response("A wren.", "import"), queue.Response("A spoon.", "import")]
    for prompt in ("Name a bird.", "Name a tree."):
        submissions.add_ranked(database, [("7", queue.NewTask(prompt, responses), [0, 1])])
    with database.write() as rows:  # as it was imported before halves were refused
        rows("UPDATE task SET body = replace(body, 'A wren.', 'A \\ud83d') WHERE number = 1")
        rows("UPDATE task SET body = replace(body, 'A wren.', '\\ud83d\\ude00') WHERE number = 2")
    labels = read_labels(database)
    assert [label.repaired for label in labels] == [True, False]
    texts = [label.task.responses[0].text for label in labels]
    assert texts == ["A \ufffd", "\N{GRINNING FACE}"]
    for writer in formats.WRITERS.values():
        formats.to_lines(writer(labels)).encode("utf-8")
    with pytest.raises(InputError, match="half a surrogate"):
        queue.add_tasks(database, [queue.NewTask("p \udc00", responses)])
    task = queue.add_tasks(database, [queue.NewTask("p", responses)])[0]
    queue.lease_task(database, ann)
    for kind, body in (("demonstration", {"text": "\ud83d"}), ("skip", {"note": "\ud83d"})):
        body = {"reason": "other"} | body
        with pytest.raises(InputError, match="half a surrogate"):
            submissions.submit(database, ann, submission="x" * 8, task=task, kind=kind, body=body)


def test_labelers_with_long_names_stay_two(tmp_path):
    database = open_database(tmp_path / "store.sqlite")
    task = queue.NewTask("p", [queue.Response("a", "import"), queue.Response("b", "import")])
    names = ["a" * 50 + "1", "a" * 50 + "2", "a"]
    assert submissions.add_ranked(database, [(name, task, [0, 1]) for name in names]) == 3
    assert submissions.add_ranked(database, [(name, task, [0, 1]) for name in names]) == 0
    assert len({label.labeler for label in read_labels(database)}) == 3


def test_exports_name_nobody(labels):
    accounts = {label.account for label in labels}
    for writer in formats.WRITERS.values():
        text = json.dumps(writer(labels))
        assert not any(account in text for account in accounts)
        assert "Ann" not in text and "Ben" not in text


def test_held_out_by_prompt_alone():
    share = sum(is_heldout(f"prompt {n}") for n in range(4000)) / 4000
    assert 0.13 < share < 0.17 and is_heldout("p") == is_heldout("p")


def test_every_message_of_a_conversation_is_scrubbed():
    asked = (Message("user", "mail jo@example.org"), Message("assistant", "and?"))
    assert map_text(scrub_typed, asked) == (Message("user", "mail [EMAIL]"), asked[1])
    assert map_text(scrub_typed, "mail jo@example.org") == "mail [EMAIL]"


def test_invisible_characters_are_shown():
    shown = pieces("a\u202eb\u200bc\x07\n\ud83d d\u3164")
    assert [piece.text for piece in shown] == [
        *("a", "U+202E", "b", "U+200B", "c", "U+0007", "\n", "U+D83D", " d", "U+3164")
    ]
    assert shown[1].name == "right-to-left override"
    family = "👩\u200d👩\u200d👧 عربى 汉字 é e\u0301"
    assert [piece.text for piece in pieces(family)] == [family]
    for number in (*range(0x3200), *range(0xFE00, 0x10000), *range(0xE0000, 0xE0080)):
        (piece, *_) = pieces(chr(number))
        hidden = unicodedata.category(chr(number)) in ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")
        assert bool(piece.name) == (hidden and chr(number) not in "\n\t") or number in (
            *(0x115F, 0x1160, 0x3164, 0xFFA0, 0x34F, 0x2800),
        )
