"""Human preferences: split by what hangs together, agreement counted, words as the bar."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.formats import Comparison
from rlhf_jax.tasks import summarization
from rlhf_jax.tasks.answer_words import train_answer_words
from rlhf_jax.tasks.preferences import (
    EVALUATION_ONLY,
    SETS,
    Fold,
    as_pairs,
    differences,
    is_name,
    load_preferences,
    pairwise_agreement,
)

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def sets():
    return {name: load_preferences(name, DATA) for name in SETS}


def rows_of(name, file):
    return [json.loads(line) for line in (DATA / name / file).open(encoding="utf-8")]


@pytest.mark.parametrize("name", SETS)
def test_no_prompt_is_on_both_sides(sets, name):
    found = sets[name]
    assert not {row.prompt for row in found.train} & {row.prompt for row in found.heldout}
    assert len(found.subsets) == len(found.groups) == len(found.heldout) > 0
    assert (found.train == []) == (name in EVALUATION_ONLY)
    for row in found.train + found.heldout:
        assert len(row.responses) == len(row.ranks) >= 2
        assert sorted(set(row.ranks)) == list(range(len(set(row.ranks)))) != [0]
        assert row.prompt.endswith(("Assistant:", "English:", "TL;DR:"))


def test_groups_stay_together(sets):
    documents = {}
    for row in rows_of("rank_mqm_wmt23_zh_en", "rankings.jsonl"):
        documents[row["prompt"]] = row["doc"]
    chinese = lambda row: row.prompt.removeprefix("Chinese: ").removesuffix("\nEnglish:")
    found = sets["rank_mqm_wmt23_zh_en"]
    sides = [{documents[chinese(row)] for row in side} for side in (found.train, found.heldout)]
    assert all(sides) and not sides[0] & sides[1]
    first = lambda row: row.prompt.split("\n\nAssistant:")[0]
    found = sets["pref_hh_harmless"]
    assert not set(map(first, found.train)) & set(map(first, found.heldout))


def test_folds_hold_every_row_out_once_and_no_document_twice(sets):
    name = "rank_mqm_wmt23_zh_en"
    folds = [load_preferences(name, DATA, Fold(n, 7)) for n in range(7)]
    whole = sets[name].train + sets[name].heldout
    assert sorted(row for fold in folds for row in fold.heldout) == sorted(whole)
    # Two articles have a line that is a closing quotation mark and nothing else.
    rows = [row for row in rows_of(name, "rankings.jsonl") if len(row["prompt"]) > 1]
    documents = {row["prompt"]: row["doc"] for row in rows}
    chinese = lambda row: row.prompt.removeprefix("Chinese: ").removesuffix("\nEnglish:")
    for fold in folds:
        assert sorted(fold.train + fold.heldout) == sorted(whole)
        sides = (fold.heldout, fold.train)
        held, seen = ({documents.get(chinese(row)) for row in side} - {None} for side in sides)
        assert len(held) in (30 // 7, 30 // 7 + 1) and not held & seen
        assert len(fold.subsets) == len(fold.heldout)
        for group, row in zip(fold.groups, fold.heldout, strict=True):
            assert group == documents.get(chinese(row), group)


def test_every_pair_is_what_the_file_says(sets):
    found = sets["pref_pandalm"]
    rows = rows_of("pref_pandalm", "pairs.jsonl")
    made = {row.responses for row in found.train + found.heldout}
    assert made == {(" " + row["chosen"], " " + row["rejected"]) for row in rows}
    assert all(row.ranks == (0, 1) for row in found.train)
    tied = {(r["response1"], r["response2"]) for r in rows_of("pref_pandalm", "ties.jsonl")}
    folds = [load_preferences("pref_pandalm", DATA, Fold(n, 5)) for n in range(5)]
    for part in (found, *folds):
        assert part.ties and all(row.ranks == (0, 0) for row in part.ties)
        assert {tuple(a[1:] for a in row.responses) for row in part.ties} <= tied
        assert not {row.prompt for row in part.ties} & {row.prompt for row in part.train}
    assert sum(len(fold.ties) for fold in folds) == len(rows_of("pref_pandalm", "ties.jsonl"))
    judged = {(r["question"], r["answer"]): r["truthful"] for r in rows_of(*TRUTH)}
    for row in sets["honesty_truthfulqa"].heldout:
        question = row.prompt.removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:")
        for response, rank in zip(row.responses, row.ranks, strict=True):
            assert judged[question, response[1:]] == (rank == 0)


@pytest.mark.slow
def test_rated_summaries_are_asked_for_as_the_task_asks(sets):
    """The ranks are those of the number of kinds of information; no paper is learnt from."""
    found = sets["rank_scitldr_informativeness"].heldout
    task = summarization.build(DATA)
    assert not {row.prompt for row in found} & {row.prompt for row in task.demonstrations}
    asked = {row.prompt for row in found} & set(task.prompts["evaluation"])
    assert len(asked) >= 0.95 * len(found)
    scores = {
        " " + response["text"]: response["score"]
        for row in rows_of("rank_scitldr_informativeness", "rankings.jsonl")
        for response in row["responses"]
    }
    for row in found:
        told = [scores[response] for response in row.responses]
        assert row.ranks == tuple(len({t for t in told if t > mine}) for mine in told)


TRUTH = ("honesty_truthfulqa", "judged_answers.jsonl")


def test_agreement_by_hand(sets):
    order = np.array([[1, 1, 0, -1], [1, -1, 1, -1], [1, 1, -1, -1]])
    # Raters 1 and 2: + − 0 +; 1 and 3: + + 0 +; 2 and 3: + − − +
    assert pairwise_agreement([order]) == pytest.approx(7 / 10)
    assert differences(np.array([[3.0, 1.0, 1.0]])).tolist() == [[1, 1, 0]]
    # What data/README's origin reports for these raters
    assert sets["rank_mqm_wmt23_zh_en"].agreement == pytest.approx(0.70, abs=0.005)
    assert sets["pref_pandalm"].agreement > 0.9
    assert sets["pref_hh_harmless"].agreement is None


def test_names_and_files_are_told_apart(tmp_path):
    assert is_name(Path("pref_llmbar")) and not is_name(Path("comparisons.jsonl"))
    assert not is_name(Path("data/pref_llmbar"))


def test_pairs_for_themselves():
    row = Comparison("p", ("a", "b", "c"), (1, 0, 1), ((1,), (2,), (3,)))
    assert as_pairs([row]) == [
        Comparison("p", ("a", "b"), (1, 0), ((1,), (2,))),
        Comparison("p", ("b", "c"), (0, 1), ((2,), (3,))),
    ]


def test_words_learn_words_and_nothing_of_a_single_prompt():
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(30)]

    def row(n):
        good, bad = (" ".join(rng.choice(words, 6)) for _ in range(2))
        return Comparison(f"p{n}", (f"{good} fine", f"{bad} poor", good), (0, 2, 1))

    rows = [row(n) for n in range(200)]
    score = train_answer_words(rows)
    scores = score([row(n) for n in range(200, 260)])
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.95
    ragged = score([Comparison("p", ("fine", "poor"), (0, 1)), rows[0]])
    assert np.isnan(ragged[0, 2]) and ragged[0, 0] > ragged[0, 1]


def test_words_reach_what_the_data_allows(sets):
    """Above chance on held-out human labels: the bar that a reward model has to clear."""
    for name, least in (("pref_hh_harmless", 0.55), ("honesty_truthfulqa", 0.72)):
        found = sets[name]
        scores = train_answer_words(found.train)(found.heldout)
        right = [
            scores[n, i] > scores[n, j]
            for n, row in enumerate(found.heldout)
            for i, a in enumerate(row.ranks)
            for j, b in enumerate(row.ranks)
            if a < b
        ]
        assert np.mean(right) > least, name
