"""--target turns: every answer of a conversation is learnt, as it would be sampled."""

import json

import pytest

from rlhf_jax.config import PrivacyConfig, SFTConfig
from rlhf_jax.data.chat import Message
from rlhf_jax.data.datasets import load_demonstrations, split
from rlhf_jax.data.demonstrations import EARLIER, every_answer
from rlhf_jax.data.encoding import encode_demonstrations
from rlhf_jax.data.formats import iterate
from rlhf_jax.data.rows import Account, Demonstration
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.runs.fit import fit_demonstrations

NAMES = {"s": "system", "u": "user", "a": "assistant"}


def turns(text, **marks):
    """ "u1 a1 u2": messages, of which those named in ``marks`` have these weights."""
    return [
        {"role": NAMES[word[0]], "content": word}
        | ({"weight": marks[word]} if word in marks else {})
        for word in text.split()
    ]


def messages(text):
    return tuple(Message(NAMES[word[0]], word) for word in text.split())


@pytest.fixture
def read(tmp_path):
    def read(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        account = Account()
        return list(iterate(path, Demonstration, account)), account

    return read


@pytest.mark.parametrize(
    "row, learnt",
    [
        ({"messages": turns("u1 a1")}, ["u1 > a1"]),
        (
            {"messages": turns("u1 a1 u2 a2 u3 a3")},
            ["u1 > a1", "u1 a1 u2 > a2", "u1 a1 u2 a2 u3 > a3"],
        ),
        ({"messages": turns("s1 u1 a1 u2 a2")}, ["s1 u1 > a1", "s1 u1 a1 u2 > a2"]),
        (
            {"system": "s1", "messages": turns("u1 a1 u2 a2", a1=0)},
            ["s1 u1 a1 u2 > a2"],
        ),
        ({"messages": turns("u1 a1 u2 a2", a1=False)}, ["u1 a1 u2 > a2"]),
        ({"messages": turns("u1 a1 u2 a2", a1=1)}, ["u1 > a1", "u1 a1 u2 > a2"]),
        # Neither of two in a row ends where a sampled answer would.
        ({"messages": turns("u1 a1 a2 u2 a3")}, ["u1 a1 a2 u2 > a3"]),
        # A greeting answers nothing.
        ({"messages": turns("a0 u1 a1 u2 a2")}, ["a0 u1 > a1", "a0 u1 a1 u2 > a2"]),
        # What a row calls its prompt is no answer to learn; an answer of several turns is.
        ({"prompt": turns("u1 a1 u2"), "completion": turns("a2")}, ["u1 a1 u2 > a2"]),
        (
            {"prompt": turns("u1 a1 u2"), "completion": turns("a2 u3 a3")},
            ["u1 a1 u2 > a2", "u1 a1 u2 a2 u3 > a3"],
        ),
        ({"prompt": "u1", "completion": turns("a1 u2 a2")}, ["u1 > a1", "u1 a1 u2 > a2"]),
    ],
)
def test_every_answer_follows_the_turns_before_it(read, row, learnt):
    rows, _ = read(row)
    pairs = [tuple(map(messages, pair.split(" > "))) for pair in learnt]
    assert [(row.prompt, row.completion) for row in every_answer(rows)] == pairs
    assert all(row.origin == rows[0].origin and not row.turns for row in every_answer(rows))
    assert len(rows) == 1 and (rows[0].prompt, rows[0].completion) == pairs[-1]


def test_that_earlier_answers_are_there_is_said(read):
    _, account = read({"messages": turns("u1 a1 u2 a2")}, {"messages": turns("u1 a1")})
    assert account.notes == {EARLIER: 1}


def test_the_loss_is_on_every_answer_and_its_end(read):
    rows, _ = read({"messages": turns("u1 a1 u2 a2")})
    tokenizer = train_bpe([], vocab_size=258)
    options = dict(block_size=96, prompt_length=64, response_length=16, one_per_row=True)
    learnt = {}
    for target in ("response", "turns", "all"):
        batch, report = encode_demonstrations(rows, tokenizer, **options, target=target)
        pairs = zip(batch.tokens[:-1], batch.loss_mask[:-1], strict=True)
        learnt[target] = [tokens[mask].tolist() for tokens, mask in pairs]
        assert report.kept == len(learnt[target])
    answers = [[*tokenizer.encode(f" {answer}"), tokenizer.eos_id] for answer in ("a1", "a2")]
    assert learnt["turns"] == answers and learnt["response"] == answers[1:]
    assert len(learnt["all"]) == 1 and len(learnt["all"][0]) > 40


def test_lengths_are_those_of_every_answer(read, capsys):
    rows, _ = read(
        {"messages": [*turns("u1"), {"role": "assistant", "content": "a" * 50}, *turns("u2 a2")]}
    )
    tokenizer = train_bpe([], vocab_size=258)
    lengths = {}
    for target in ("response", "turns"):
        config = fit_demonstrations(SFTConfig(target=target), rows, tokenizer, context=256)
        lengths[target] = config.response_length
    assert lengths["response"] == 8 and lengths["turns"] == 56
    assert "1 earlier answer of 1 row is learnt too (--target turns)" in capsys.readouterr().err


def test_turns_come_back_from_the_cache_and_stay_on_one_side(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": turns(f"u{n} a{n} u0 a0")} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        loaded = load_demonstrations(path, data_dir=tmp_path / "cache")
        assert [row.turns for row in loaded] == [(1,)] * 20
    train, heldout = split(loaded, heldout_fraction=0.3)
    first = lambda rows: {row.prompt[0] for row in every_answer(rows)}
    assert len(heldout) == 6 and not first(train) & first(heldout)


def test_an_example_of_privacy_is_no_part_of_a_row():
    with pytest.raises(
        InputError, match=r"privacy.epsilon=3.0 needs .* a target that is not turns"
    ):
        SFTConfig(target="turns", pretrain_mix=0.0, privacy=PrivacyConfig(epsilon=3.0))
