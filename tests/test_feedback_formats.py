"""Labels out of the store and back in, personal data out of texts, invisible characters shown."""

import json
import unicodedata

import pytest
from feedback_site import fill, labeler

from rlhf_jax.data import formats as rows_of_stages
from rlhf_jax.errors import InputError
from rlhf_jax.feedback import conversation, formats, queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labels import is_heldout, rankings, read_labels
from rlhf_jax.feedback.scrub import scrub
from rlhf_jax.feedback.visible import pieces


@pytest.fixture
def labels(tmp_path):
    """Two labelers' rankings of one task, one with a tie; a chat with thumbs and a correction."""
    database = open_database(tmp_path / "store.sqlite")
    fill(database, 1, wanted=2, responses=3)
    for name, ranks in (("Ann", [0, 1, 1]), ("Ben", [2, 0, 1])):
        account = labeler(database, name)
        task = queue.take_task(database, account)
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
    assert [row["label"] for row in liked] == [False, True, False]


@pytest.mark.parametrize("name", ["native", "label-studio", "argilla"])
def test_back_in(labels, name):
    """Out and in again gives the same rankings, ties and labelers included."""
    rows = json.loads(json.dumps(formats.WRITERS[name](labels)))
    found = [ranking for row in rows for ranking in formats.read_ranking(row)]
    key = lambda x: (x.labeler, x.prompt, x.responses, x.ranks)
    given = [
        (x.labeler, x.prompt, tuple(r.text for r in x.responses), x.ranks) for x in rankings(labels)
    ]
    assert sorted(map(key, found)) == sorted(given)


def test_what_other_tools_write():
    studio = {
        "data": {"prompt": "p", "items": [{"id": "a", "body": "x"}, {"id": "b", "body": "y"}]},
        "annotations": [
            {"completed_by": 7, "result": [{"type": "ranker", "value": {"ranker": ["b", "a"]}}]}
        ],
    }
    assert formats.read_ranking(studio) == [("p", ("x", "y"), (1, 0), "7")]
    argilla = {
        "prompt": "p",
        **{f"response-{n}": f"r{n}" for n in range(1, 4)},
        "ranking.responses": [["response-2", "response-3", "response-1"], ["response-1"]],
        "ranking.responses.users": ["u", "v"],
        "ranking.responses.status": ["submitted", "draft"],
    }
    assert formats.read_ranking(argilla) == [("p", ("r1", "r2", "r3"), (2, 0, 1), "u")]
    trl = {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert formats.read_ranking(trl) == [("p", ("c", "r"), (0, 1), "")]


@pytest.mark.parametrize(
    "row,message",
    [
        ({"x": 1}, "found the keys x"),
        ({"prompt": "p", "responses": ["a"], "ranks": [0]}, "1 answers"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [0]}, "1 ranks"),
        ({"prompt": "p", "responses": ["a", 2], "ranks": [0, 1]}, "not text"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [0, -1]}, "whole numbers"),
        ({"responses": ["a", "b"], "ranks": [0, 1]}, "prompt"),
        ({"data": {"prompt": "p"}}, "items"),
    ],
)
def test_rows_that_are_none(row, message):
    with pytest.raises(InputError, match=message):
        formats.read_ranking(row)


def test_exports_name_nobody(labels):
    accounts = {label.account for label in labels}
    for writer in formats.WRITERS.values():
        text = json.dumps(writer(labels))
        assert not any(account in text for account in accounts)
        assert "Ann" not in text and "Ben" not in text


def test_held_out_by_prompt_alone():
    share = sum(is_heldout(f"prompt {n}") for n in range(4000)) / 4000
    assert 0.13 < share < 0.17 and is_heldout("p") == is_heldout("p")


@pytest.mark.parametrize(
    "text,clean",
    [
        ("mail jo.doe+x@mail.example.org now", "mail [EMAIL] now"),
        ("card 4111 1111 1111 1111.", "card [CARD]."),
        ("order 4111 1111 1111 1112.", "order 4111 1111 1111 1112."),  # wrong check digit
        ("IBAN DE89 3704 0044 0532 0130 00", "IBAN [IBAN]"),
        ("IBAN DE88 3704 0044 0532 0130 00", "IBAN DE88 3704 0044 0532 0130 00"),
        ("身份证11010519491231002X，", "身份证[ID]，"),
        ("身份证110105194912310021，", "身份证110105194912310021，"),
        ("请打13812345678或+86 138-1234-5678", "请打[PHONE]或[PHONE]"),
        ("call +44 20 7946 0958 or (212) 555-0187", "call [PHONE] or [PHONE]"),
        ("ssn 078-05-1120", "ssn [ID]"),
        ("host 192.168.0.12, 2001:db8::8a2e:370:7334", "host [IP], [IP]"),
        ("version 1.2.3.4000 at 12:30:45", "version 1.2.3.4000 at 12:30:45"),
        ("https://me:secret@host/x", "[URL]"),
        ("In 1984, 3.14159 and 2024-05-06 are fine", "In 1984, 3.14159 and 2024-05-06 are fine"),
    ],
)
def test_scrubbing(text, clean):
    assert scrub(text) == clean


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
        assert bool(piece.name) == (hidden and number != 10) or number in (
            *(0x115F, 0x1160, 0x3164, 0xFFA0, 0x34F, 0x2800),
        )
