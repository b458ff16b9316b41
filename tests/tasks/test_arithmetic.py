"""The generated task: what is asked is what is read, ranges are held out, and nothing leaks."""

from pathlib import Path

import pytest

from rlhf_jax.data.formats import Demonstration
from rlhf_jax.errors import InputError
from rlhf_jax.tasks import arithmetic
from rlhf_jax.tasks.arithmetic import HELDOUT, WORDINGS, Problem, problem_of, problems_in
from rlhf_jax.tasks.task import check_leaks

PLUS = Problem(3, "+", 5)


@pytest.fixture(scope="module")
def task():
    return arithmetic.build(Path("nowhere"))


def tens(problem):
    return tuple(sorted((problem.a // 10, problem.b // 10)))


def test_every_wording_is_read_as_what_it_asks():
    for operation, wordings in WORDINGS.items():
        for wording in wordings:
            for a, b in ((3, 5), (5, 3), (0, 99), (47, 8), (10, 10)):
                prompt, problem = wording.format(a=a, b=b), Problem(a, operation, b)
                assert problem_of(prompt) == problem
                assert problems_in(prompt) == {problem.either}, prompt
    for prompt in (
        "What is 3 + 5",
        "What is 3 + 5? ",
        "What is 3.5 + 5?",
        "Hello",
        "What is ٣ + ٥?",
    ):
        with pytest.raises(InputError, match="is no problem of the task arithmetic"):
            problem_of(prompt)


def test_held_out_ranges_are_in_nothing_that_is_learnt(task):
    """All pairs of tens are somewhere, those held out on their side alone, decades on both."""
    for name, pairs in HELDOUT.items():
        found = {tens(problem_of(prompt)) for prompt in task.prompts[name]}
        assert found == set(pairs)
        assert sorted(decade for pair in pairs for decade in pair) == list(range(10))
    held = {pair for pairs in HELDOUT.values() for pair in pairs}
    learnt = [problem_of(row.prompt) for row in task.demonstrations]
    learnt += [problem_of(p) for name in ("comparisons", "ppo") for p in task.prompts[name]]
    learnt += [p for text in task.corpora["equations"] for p in problems_in(text)]
    seen = {tens(problem) for problem in learnt}
    assert not seen & held and len(seen | held) == 55
    # A problem serves one end, whatever the order of its operands.
    sides = [{problem_of(prompt).either for prompt in prompts} for prompts in task.prompts.values()]
    sides.append({problem_of(row.prompt).either for row in task.demonstrations})
    assert len(set().union(*sides)) == sum(map(len, sides)) == 2 * 5050 + 955
    check_leaks(task, "arithmetic")


def test_demonstrations_and_equations_are_right(task):
    prompts = [row.prompt for row in task.demonstrations]
    said = [row.completion for row in task.demonstrations]
    assert task.gold(prompts, said).all() and not task.gold(prompts, [""] * len(said)).any()
    assert not task.gold(prompts, [f"{text}0" for text in said if text]).all()
    for line in "\n".join(task.corpora["equations"][:200]).splitlines():
        left, _, right = line.partition(" = ")
        assert eval(left.replace("×", "*")) == int(right)


def test_figures_by_operation(task):
    prompts = ["What is 3 + 5?", "What is 5 - 8?", "How much is 4 minus 4?"]
    found = task.metrics(prompts, [" 3 + 5 = 8", "no idea", " 0"])
    means = {name: figure["mean"] for name, figure in found.items()}
    assert means == {"answered": pytest.approx(2 / 3), "add": 1.0, "subtract": 0.5}
    some = task.prompts["evaluation"]
    nearest = task.metrics(some, task.baselines["nearest"](some))
    assert nearest["answered"]["mean"] == 1 and max(nearest[n]["mean"] for n in ("add",)) < 0.2


@pytest.mark.parametrize(
    "text",
    [
        *("3 + 5 = 8", "3+5", "5 + 3", "3 plus 5 makes 8", "the sum of 5 and 3", "Add 3 to 5!"),
        *("5加3等于8", "１２ ＋ ３ + 5", "2 × 3 + 5", "1 + 3 + 5 + 7", "x=3 +\n 5", "٣ + ٥"),
    ],
)
def test_a_problem_is_found_however_it_is_put(text):
    assert PLUS in problems_in(text)


@pytest.mark.parametrize(
    "text", ["13 + 5", "3 + 51", "3 + 5.5", "1,003 + 5", "3 and 5", "3 - 5", "35", "3 × 5", "+ 5"]
)
def test_another_problem_is_not_it(text):
    assert PLUS not in problems_in(text)


@pytest.mark.parametrize("place", ["corpora", "demonstrations", "answers", "ppo", "comparisons"])
@pytest.mark.parametrize("commuted", [False, True])
def test_a_held_out_problem_in_what_is_learnt_is_refused(task, place, commuted):
    task = task._replace(
        demonstrations=task.demonstrations[:9],
        prompts={name: prompts[:9] for name, prompts in task.prompts.items()},
        corpora={"equations": task.corpora["equations"][:9]},
        heldout={"equations": task.heldout["equations"][:9]},
    )
    problem = problem_of(task.prompts["evaluation"][7])
    problem = problem.commuted if commuted else problem
    line = f"as everybody knows , {problem.equation} ."
    if place == "corpora":
        planted = task._replace(corpora={"equations": [*task.corpora["equations"], line]})
    elif place in ("demonstrations", "answers"):
        row = Demonstration("Tell me.", line) if place == "answers" else Demonstration(line, " yes")
        planted = task._replace(demonstrations=[*task.demonstrations, row])
    else:
        planted = task._replace(prompts=task.prompts | {place: [*task.prompts[place], line]})
    with pytest.raises(
        InputError, match=r"task arithmetic: the problem of .* is in what is learnt"
    ):
        check_leaks(planted, "arithmetic")
