"""What the preview shows is what the stages learn from."""

import json
import sys

import pytest
import tiny

from experiments import preview
from rlhf_jax.cli import main
from rlhf_jax.config import ModelConfig, PreviewConfig
from rlhf_jax.data.batches import comparison_batches, demonstration_batches, query_batches
from rlhf_jax.data.encoding import encode_texts
from rlhf_jax.data.formats import (
    read_comparisons,
    read_demonstrations,
    read_prompts,
    read_texts,
)
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.runs.model_card import save_model_card

KEYS = (
    *("file", "line", "kept", "why", "prompt", "responses", "ranks"),
    *("query_ids", "response_ids", "loss_mask", "cut"),
)


@pytest.fixture(scope="module")
def tokenizer():
    """One id per byte, so that lengths are known."""
    return train_bpe([], vocab_size=258)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A run folder without weights: the preview reads none."""
    folder = tmp_path_factory.mktemp("run")
    shape = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=64)
    save_model_card(folder, shape, 258, tokenizer, kind="lm")
    return folder


@pytest.fixture
def show(monkeypatch, capsys, model, tmp_path):
    """``(rows, flags) -> (objects of --json, what stands on stderr)``."""

    def run(rows, *flags, name="rows.jsonl"):
        file = tmp_path / name
        if isinstance(rows, str):
            file.write_text(rows)
        else:
            tiny.write_rows(file, rows)
        argv = ["preview", "--init", model, "--data", file, "--json", True, "--rows", 0, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        main(preview.run, PreviewConfig)
        out, said = capsys.readouterr()
        *shown, last = map(json.loads, out.splitlines())
        return file, shown, last["summary"], said

    return run


PAIRS = [
    {"prompt": "Where is Lund?", "chosen": " By the lake.", "rejected": " No idea."},
    {"prompt": "Where?", "chosen": " same", "rejected": " same"},
    {"prompt": "0123456789" * 3, "chosen": " abcdefghij", "rejected": " abcdefghxx"},
    {"prompt": "p", "chosen": " a", "rejected": " abcdefghijklmno"},
]
LENGTHS = ("--prompt-length", 20, "--response-length", 9)


def test_comparisons_are_shown_as_the_reward_model_learns_them(show, tokenizer):
    file, shown, summary, said = show(PAIRS, *LENGTHS)
    assert [tuple(row) for row in shown] == [KEYS] * 4
    assert [row["line"] for row in shown] == [1, 2, 3, 4] and shown[0]["file"] == str(file)
    assert [row["kept"] for row in shown] == [True, False, False, True]
    assert shown[0]["responses"] == [" By the lake.", " No idea."] and shown[0]["ranks"] == [0, 1]
    assert shown[3]["cut"] == {"response": 8} and shown[0]["why"] is None
    batches = comparison_batches(
        read_comparisons(file),
        tokenizer,
        query_length=20,
        response_length=9,
        batch_size=1,
        seed=None,
    )
    kept = [row for row in shown if row["kept"]]
    for row, batch in zip(kept, batches, strict=True):
        assert row["query_ids"] == batch.queries[batch.query_mask].tolist()
        pairs = zip(batch.responses[0], batch.mask[0], strict=True)
        assert row["response_ids"] == [ids[mask].tolist() for ids, mask in pairs]
        assert row["loss_mask"] == [[True] * len(ids) for ids in row["response_ids"]]
        assert row["ranks"] == batch.ranks[0].tolist()
    assert summary == {
        "kept": 2,
        "responses cut": 2,
        "answers of equal tokens": 1,
        "chosen equals rejected": 1,
    }
    assert batches.report.kept == len(kept)
    assert "rows of" in said and "are comparisons" in said and "a stage would refuse this" in said


DEMONSTRATIONS = [
    {"prompt": "Where is Lund?", "completion": " By the lake."},
    {"prompt": "Where?", "completion": ""},
    {"prompt": "0123456789" * 3, "completion": " yes"},
    {"prompt": "p", "completion": " abcdefghijklmno"},
]


def test_demonstrations_are_shown_as_sft_learns_them(show, tokenizer):
    file, shown, summary, _ = show(DEMONSTRATIONS, "--prompt-length", 20, "--response-length", 14)
    assert [row["kept"] for row in shown] == [True, False, True, False]
    assert "empty" in shown[1]["why"] and shown[3]["why"] == "answer over response_length"
    assert shown[2]["cut"] == {"prompt": 10}
    batches = demonstration_batches(
        read_demonstrations(file),
        tokenizer,
        block_size=34,
        batch_size=1,
        prompt_length=20,
        response_length=14,
        target="response",
        seed=None,
        one_per_row=True,
    )
    for row, batch in zip([shown[0], shown[2]], batches, strict=True):
        tokens = batch.tokens[batch.segment_ids > 0].tolist()
        assert tokens == row["query_ids"] + row["response_ids"][0]
        assert batch.tokens[batch.loss_mask].tolist() == row["response_ids"][0]
        assert row["response_ids"][0][-1] == tokenizer.eos_id
    assert summary["kept"] == 2 and summary["prompts cut"] == 1
    assert summary[shown[1]["why"]] == summary[shown[3]["why"]] == 1


def test_prompts_are_shown_as_ppo_asks_them(show, tokenizer):
    file, shown, summary, _ = show(DEMONSTRATIONS, "--as", "prompts", "--prompt-length", 20)
    queries = query_batches(read_prompts(file), tokenizer, query_length=20, batch_size=1, seed=None)
    for row, batch in zip(shown, queries, strict=True):
        assert row["query_ids"] == batch.queries[batch.query_mask].tolist()
        assert row["responses"] == row["response_ids"] == row["ranks"] == []
    assert summary == {"kept": 4, "prompts cut": 1}


def test_documents_are_shown_as_pretraining_learns_them(show, tokenizer):
    file, (shown,), summary, said = show("one\n<|endoftext|>\ntwo\n<|endoftext|>\n", name="t.txt")
    expected = [ids.tolist() for ids in encode_texts(read_texts(file), tokenizer)]
    assert shown == {"file": str(file), "documents": 2, "ids": expected} and summary["kept"] == 2
    assert "are text" in said


def test_lengths_are_by_default_what_the_data_need(show):
    _, shown, _, said = show(DEMONSTRATIONS)
    assert "prompts of 32 and answers of 24 tokens, of a context of 64" in said
    assert all(row["cut"] == {} for row in shown if row["kept"])


def test_conversations_that_the_user_ends_are_prompts(show):
    asked = {"messages": [{"role": "user", "content": "Hi?"}]}
    _, shown, _, said = show([asked])
    assert "are prompts" in said and [row["responses"] for row in shown] == [[]]
    answered = {"messages": [*asked["messages"], {"role": "assistant", "content": "Yes."}]}
    _, shown, summary, said = show([asked, answered])
    assert "are demonstrations" in said and [row["kept"] for row in shown] == [False, True]
    assert summary["the messages end without an answer"] == 1


def test_a_named_set_is_shown_as_the_reward_model_takes_it(show):
    flags = ("--data", "pref_llmbar", "--rows", 2, "--allow-cut", True)
    _, shown, summary, _ = show(PAIRS, *flags)
    assert [(row["file"], row["line"]) for row in shown] == [("pref_llmbar", 1), ("pref_llmbar", 2)]
    assert summary["kept"] > 100
    with pytest.raises(SystemExit):
        show(PAIRS, *flags, "--as", "prompts")


def test_rows_limits_what_is_shown_and_not_what_is_counted(show):
    _, shown, summary, _ = show(DEMONSTRATIONS, "--rows", 2)
    assert len(shown) == 2 and sum(summary.values()) == 4


def test_what_a_terminal_shows_can_be_read_without_colours(monkeypatch, capsys, model, tmp_path):
    tiny.write_rows(tmp_path / "rows.jsonl", DEMONSTRATIONS)
    argv = ["preview", "--init", model, "--data", tmp_path / "rows.jsonl", "--prompt-length", "20"]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    main(preview.run, PreviewConfig)
    out = capsys.readouterr().out
    assert "line 3: kept" in out and "[10 tokens cut]" in out and "⟦<|endoftext|>⟧" in out
    assert "line 2: left out: " in out and "learnt" in out and "2 kept" not in out
    assert all(f"line {n}" in out for n in (1, 2, 3, 4))


def test_columns_by_other_names_are_shown_as_they_are_read(show):
    rows = [{"ask": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in PAIRS]
    columns = ("--columns", "prompt=ask,chosen=good,rejected=bad")
    _, expected, _, _ = show(PAIRS, *LENGTHS)
    _, shown, summary, said = show(rows, *LENGTHS, *columns)
    assert shown == expected
    assert "are comparisons (--as)" in said
    assert summary["column ask is read as prompt"] == len(PAIRS)
    demonstrations = [{"ask": "p", "good": " a"}]
    columns = ("--columns", "prompt=ask,completion=good")
    _, (row,), _, said = show(demonstrations, *columns)
    assert "are demonstrations (--as)" in said
    assert (row["prompt"], row["responses"]) == ("p", [" a"])


def test_every_turn_is_shown_where_it_is_learnt(show):
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]}]
    _, shown, summary, _ = show(rows)
    assert [row["responses"] for row in shown] == [[" d"]]
    _, shown, summary, _ = show(rows, "--target", "turns")
    assert [row["responses"] for row in shown] == [[" b"], [" d"]] and summary["kept"] == 2
    with pytest.raises(SystemExit):
        show(PAIRS, "--target", "turns")
