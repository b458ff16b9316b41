"""Instructions of few words: what can be kept in few words, and what the score pays for."""

from pathlib import Path

import pytest

from rlhf_jax.tasks import instructions, short_instructions
from rlhf_jax.tasks.constraints import make_constraint

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def task():
    return short_instructions.build(DATA)


@pytest.mark.parametrize(
    "kind, more, least",
    [
        ("length_constraints:number_words", {"relation": "at least", "num_words": 300}, 300),
        ("length_constraints:number_words", {"relation": "less than", "num_words": 300}, 1),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, 36),
        ("combination:two_responses", {}, 24),
        ("combination:repeat_prompt", {"prompt_to_repeat": "Say it again, please"}, 8),
        ("punctuation:no_comma", {}, 1),
        ("keywords:existence", {"keywords": ["a", "b"]}, 1),
    ],
)
def test_words_that_an_answer_has_at_least(kind, more, least):
    constraint = make_constraint(kind, more)
    assert short_instructions.least_words(constraint) == least
    assert short_instructions.fits(constraint) == (least <= 40)


def test_every_constraint_to_learn_from_fits_and_is_of_ifevals_kinds():
    rows = [(wording, make_constraint(kind, more)) for wording, kind, more in asked()]
    assert len({wording for wording, _ in rows}) == len(rows) == 40
    assert all(short_instructions.fits(constraint) for _, constraint in rows)
    ifeval = instructions.read_ifeval(DATA / "eval_ifeval").values()
    kinds = {constraint.kind for constraints in ifeval for constraint in constraints}
    assert {constraint.kind for _, constraint in rows} < kinds


def asked():
    return list(short_instructions.worded())


def test_nothing_that_is_learnt_from_stands_in_a_prompt_that_is_tested(task):
    """Neither a constraint's words nor eight words of a seed in a row."""
    texts = {name: [instructions.text_of(p).lower() for p in task.prompts[name]] for name in PARTS}
    tested = texts["validation"] + texts["evaluation"]
    for wording, _, _ in asked():
        assert not [text for text in tested if wording.lower().rstrip(".") in text]
    known = set().union(*map(runs_of_words, tested))
    assert not [text for text in texts["ppo"] if runs_of_words(text) & known]


PARTS = ("ppo", "validation", "evaluation")


def runs_of_words(text, length=8):
    words = text.split()
    return {tuple(words[n : n + length]) for n in range(len(words) - length + 1)}


def test_what_is_tested_could_be_kept_in_a_short_answer(task):
    constraints_of = instructions.read_ifeval(DATA / "eval_ifeval")
    tested = [*task.prompts["validation"], *task.prompts["evaluation"]]
    assert len(tested) < len(constraints_of) and all(
        short_instructions.least_words(constraint) <= 40
        for prompt in tested
        for constraint in constraints_of[prompt]
    )


def test_prompts_are_short(task):
    for prompts in task.prompts.values():
        texts = [instructions.text_of(prompt) for prompt in prompts]
        assert all(len(text.split()) <= 45 and len(text) <= 230 for text in texts)


def test_the_score_is_what_is_kept_less_half_of_what_is_repeated(task):
    (prompt, *_) = (p for p in task.prompts["ppo"] if "Leave out every comma." in p)
    said = ["No comma is here at all", "One, and no more", "so so so so", ""]
    scores = task.gold([prompt] * 4, said)
    assert scores[:2].tolist() == [1.0, 0.0]
    assert scores[2] == pytest.approx(1 - 0.5 * 0.75) and scores[3] <= 0
    assert task.metrics([prompt] * 4, said)["prompt_strict"]["mean"] == 0.5
