"""Trees of messages, as OpenAssistant collected them, flat and nested."""

import json

import pytest

from rlhf_jax.data.formats import iterate
from rlhf_jax.data.rows import Account, Comparison, Demonstration, LeftOut, OtherKind, Prompt, Text
from rlhf_jax.data.trees import DELETED, ORPHAN
from rlhf_jax.errors import InputError


def flat(name, parent, rank=None, **more):
    """ "u1" is a message of a person, "a1" an answer."""
    role = "prompter" if name.startswith("u") else "assistant"
    ids = {"message_id": name, "parent_id": parent, "message_tree_id": "t"}
    return ids | {"role": role, "text": name, "rank": rank, "lang": "en", "deleted": False} | more


FLAT = [
    flat("u1", None),
    flat("a2", "u1", 1),
    flat("a1", "u1", 0),
    flat("u2", "a2"),
    flat("a3", "u2"),
    flat("u3", "a1"),
]


def nested(name, *replies, rank=None, **more):
    role = "prompter" if name.startswith("u") else "assistant"
    return {
        "message_id": name,
        "role": role,
        "text": name,
        "rank": rank,
        "replies": list(replies),
    } | more


NESTED = {
    "message_tree_id": "t",
    "prompt": nested(
        "u1", nested("a2", nested("u2", nested("a3")), rank=1), nested("a1", nested("u3"), rank=0)
    ),
}


def words(value):
    return value if isinstance(value, str) else " ".join(message.content for message in value)


@pytest.fixture
def read(tmp_path):
    def read(kind, *rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        account = Account()
        return list(iterate(path, kind, account)), account

    return read


FORMS = {"flat": FLAT, "any order": [*reversed(FLAT)], "nested": [NESTED]}


@pytest.mark.parametrize("rows", FORMS.values(), ids=FORMS)
def test_a_tree_as_rows_of_every_kind(read, rows):
    (comparison,), _ = read(Comparison, *rows)
    ranked = dict(zip(map(words, comparison.responses), comparison.ranks, strict=True))
    assert words(comparison.prompt) == "u1" and ranked == {"a1": 0, "a2": 1}
    demonstrations, _ = read(Demonstration, *rows)
    pairs = {(words(row.prompt), words(row.completion)) for row in demonstrations}
    assert pairs == {("u1", "a1"), ("u1 a2 u2", "a3")}
    assert not any(row.turns for row in demonstrations)  # each answer is a row already
    prompts, _ = read(Prompt, *rows)
    assert {words(row.prompt) for row in prompts} == {"u1", "u1 a2 u2", "u1 a1 u3"}
    texts, account = read(Text, *rows)
    as_text = lambda *turns: "".join(
        f"\n\n{'Human' if turn.startswith('u') else 'Assistant'}: {turn}" for turn in turns
    )
    assert {row.text for row in texts} == {
        as_text("u1", "a2", "u2", "a3"),
        as_text("u1", "a1", "u3"),
    }
    note = "messages of a tree: what is learnt are conversations in it"
    assert account.notes == {note: len(rows)} and not account.left_out


def test_a_row_stands_where_its_persons_message_does(read):
    rows, _ = read(Demonstration, *FLAT)
    assert [row.origin.line for row in rows] == [1, 4]


def test_what_is_deleted_or_refused_is_left_out_with_its_answers(read):
    rows = [FLAT[0], FLAT[2], flat("a2", "u1", 1, review_result=False), *FLAT[3:]]
    rows += [flat("a4", "u1", 2), flat("u9", "gone")]
    (comparison,), account = read(Comparison, *rows)
    assert list(map(words, comparison.responses)) == ["a1", "a4"] and comparison.ranks == (0, 1)
    whys = {row.origin.line: row.why for row in account.left_out}
    assert whys == {3: DELETED, 4: ORPHAN, 5: ORPHAN, 8: ORPHAN}
    tree = {"prompt": nested("u1", nested("a1", deleted=True), nested("a2"))}
    (row,), account = read(Demonstration, tree)
    assert words(row.completion) == "a2"
    assert account.left_out == [LeftOut(row.origin, DELETED)]


def test_messages_that_answer_each_other_in_a_circle_are_left_out(read):
    circle = [flat("u7", "a7"), flat("a7", "u7")]
    _, account = read(Demonstration, *FLAT, *circle)
    assert [row.why for row in account.left_out] == [ORPHAN] * 2


def test_trees_without_rows_of_a_kind_are_of_another(read):
    with pytest.raises(OtherKind, match=r"rows.jsonl: its trees of messages hold no comparisons"):
        read(Comparison, *FLAT[3:], flat("u1", None), flat("a2", "u1"))


@pytest.mark.parametrize(
    "rows, message",
    [
        ([*FLAT, FLAT[1]], "line 7: the message_id a2 stands twice"),
        (
            [*FLAT, {"text": "x"}],
            "line 7: found the keys text, expected message_id, parent_id, role",
        ),
        ([NESTED, {"prompt": "x"}], "line 2: found no tree, expected one as in the first row"),
        ([flat("u1", None, role="bystander"), FLAT[1]], "line 1: role is 'bystander', expected"),
    ],
)
def test_what_is_no_tree_is_refused(read, rows, message):
    with pytest.raises(InputError, match=rf"rows.jsonl, {message}"):
        read(Demonstration, *rows)


def test_a_tree_may_be_deeper_than_python_calls(read):
    names = [f"{'ua'[n % 2]}{n}" for n in range(1200)]
    rows = [flat(name, parent) for name, parent in zip(names, [None, *names], strict=False)]
    (row,), _ = read(Text, *rows)
    assert row.text.endswith("Assistant: a1199")


@pytest.mark.parametrize("kind", [Demonstration, Comparison])
@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"rank": "10"}, "rank is '10', expected a whole number from 0 on, or null"),
        ({"rank": -1}, "rank is -1"),
        ({"rank": 0.5}, "rank is 0.5"),
        ({"rank": float("nan")}, "rank is nan"),
        ({"rank": True}, "rank is True"),
        ({"deleted": "False"}, "deleted is 'False', expected true, false or null"),
        ({"review_result": "true"}, "review_result is 'true'"),
    ],
)
def test_ranks_and_verdicts_of_another_type_are_refused_where_they_stand(
    tmp_path, kind, wrong, said
):
    """As text, rank 10 would come before 9, and "False" would take the message out."""
    rows = [*FLAT[:2], FLAT[2] | wrong, *FLAT[3:]]
    path = tmp_path / "trees.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(InputError, match=f"trees.jsonl, line 3: {said}"):
        list(iterate(path, kind, Account()))
    reply = nested("a2", rank=1) | wrong
    path.write_text(json.dumps({"prompt": nested("u1", reply)}), encoding="utf-8")
    with pytest.raises(InputError, match=f"trees.jsonl, line 1: {said}"):
        list(iterate(path, kind, Account()))


def test_a_rank_that_a_table_wrote_as_a_float_is_that_rank(tmp_path):
    """pandas writes 1.0 where other rows have no rank."""
    path = tmp_path / "trees.jsonl"
    found = []
    for kind_of_rank in (int, float):
        rows = [
            row if row["rank"] is None else row | {"rank": kind_of_rank(row["rank"])}
            for row in FLAT
        ]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        found.append(list(iterate(path, Comparison, Account())))
    assert found[0] == found[1] and found[0]
