"""Verifiable rewards: how a final answer is read, and what no policy should be paid for."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.config.rewards import reward_source
from rlhf_jax.data.files import Origin
from rlhf_jax.data.formats import Prompt
from rlhf_jax.errors import RunError
from rlhf_jax.inference.rewards import Answers, call, load_function
from rlhf_jax.tasks import exact_match
from rlhf_jax.tasks.exact_match import final_answer, is_right, number_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "response",
    [
        *("95", " 95", "95.", "95。", "95 .", "\n95\n", "95.0", " 37 + 58 = 95"),
        *("The answer is 95.", "The answer is: 95", "37加58等于95。", "答案是 95", "Answer: 95"),
        # Of several guesses the last one counts.
        *("It is 94. No, it is 95", "30 + 50 + 15 = 80 + 15 = 95", "= 93\n= 94\n= 95"),
    ],
)
def test_the_last_answer_counts(response):
    assert is_right(response, 95) and is_right(response, "95") and not is_right(response, 94)


@pytest.mark.parametrize(
    "response",
    [
        *("", " ", ".", "ninety-five", "the answer", "=", "95 =", "is"),
        # Numbers in a row, a number that runs on, one in the midst of words.
        *("93 94 95", "93, 94, 95", "94 or 95", "95 96", "9512345", "0.95", "1095", "95 and more"),
        *("95!", "95?", "x95", "95x", "(95)", "95 apples", "95%", "$95", "this 95", "95..", "95,"),
        *("-95", "−95", "--95", "+95", "- 95", "9 5", "95e0", "95/1", "0x5f"),
        # No zero in front, commas at the thousands only, and ASCII digits.
        *("095", "0095", "9,5", ",95", "95,", "0,095", "٩٥", "９５", "९५", "9⁵", "⑨⑤"),
    ],
)
def test_what_is_no_answer_or_another_one(response):
    assert not is_right(response, 95) and not is_right(f"The answer is {response}", 95)


def test_every_number_as_it_is_written_and_no_other():
    """A property: signs and commas as people write them are read; each change of them is not."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        number = int(rng.integers(1, 10 ** int(rng.integers(1, 10))))
        sign = str(rng.choice(["", "-", "−"]))
        signed = -number if sign else number
        work = str(rng.choice(["", "1 + 2 = ", "so it is ", "Answer:"]))
        for digits in {str(number), f"{number:,}"}:
            said = f" {work}{sign}{digits}"
            assert is_right(said, signed) and is_right(said, str(signed)), said
            assert is_right(f"{said}.", signed)
            assert not is_right(said, -signed) and not is_right(said, signed + 1)
            # Too many digits, a zero in front, a comma elsewhere, a second number, a second sign.
            wrong = [f"{said}0", f"{work}{sign}0{digits}", f"{said},0", f"{said},0000"]
            wrong += [f"{said} {digits}", f"{work}-{sign}{digits}" if sign else f"{said}-"]
            assert not any(is_right(each, signed) for each in wrong), wrong
        text = f"{number:,}"
        if len(text) > 3:
            at = int(rng.integers(1, len(text)))
            moved = text.replace(",", "")
            moved = f"{moved[:at]},{moved[at:]}"
            assert (number_of(moved) == number) == (moved == text)


def test_listing_all_numbers_earns_nothing():
    """However they are put, with 95 among them but not at the end after a mark."""
    numbers = [str(n) for n in range(200)]
    for between in (" ", ", ", "\n", " or ", ". ", "; ", " = "):
        assert not is_right(between.join(numbers), 95)
        if between != " = ":  # a chain of equations ends in its last number, and only there
            assert not is_right(between.join(numbers), 199)


def test_texts_are_compared_without_case_and_spaces():
    assert is_right("The capital of France is  Paris.", "paris")
    assert is_right("12:30", "12:30") and is_right("It is 12:30", "30"), "what follows the mark"
    assert not is_right("Paris or London", "Paris") and not is_right("", "Paris")
    assert final_answer("a = b: c.") == "c"


def test_answers_as_data_sets_have_them():
    worked = "He has 3 + 4 = 7.\n#### 1,007"
    assert is_right("So 1007", 1007) is False and is_right("So it is 1007", worked)
    assert is_right("2.5", 2.5) and is_right("0.1", 0.1) and is_right("= -0.50", "-0.5")
    assert number_of("1,234.50") == Decimal("1234.5") and number_of("1234,567") is None


def function():
    file = ROOT / "rlhf_jax" / "tasks" / "exact_match.py"
    return load_function(reward_source(Path(f"{file}:exact_match")))


def test_it_is_a_reward_function_of_the_command_line():
    score = function()
    assert score(["2 + 2 ="] * 2, ["4", "5"], [4, "4"]) == [1.0, 0.0]
    assert exact_match.exact_match(["p"], [" It is 4."], answer=["#### 4"]) == [1.0]


@pytest.mark.parametrize("wrong", [None, "", " ", "7 #### ", True, ["4"], {"value": 4}])
def test_a_row_without_an_answer_is_named(wrong):
    rows = [Prompt(f"p{n}", {"answer": 4}, Origin("q.jsonl", n + 1)) for n in range(2)]
    answers = Answers(rows, ["4", "5"], [True, True])
    with pytest.raises(RunError, match=r"to .*q\.jsonl.*2.*column answer is .*expected a number"):
        call("task", function(), answers, {"answer": [4, wrong]})
