"""Arithmetic: sums, differences and products that a program asks, answers and checks.

Nothing is read: problems, wordings, equations to pretrain on and splits follow from hashes. Two
operands below 100 (of a product, one below 10) make a problem, and one order of them is asked, of a
difference the one that is not negative. What is held out are ranges: no problem of a number of the
thirties with one of the fifties is learnt from, in either order and by any operation, while both
decades are with others. The gold score is 1 where the response's final answer is right
(``exact_match``), else 0.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.splits import parts, share, shuffled
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.metrics import mean_ci
from rlhf_jax.tasks.exact_match import exact_match, final_answer, number_of
from rlhf_jax.tasks.task import Baseline, Figure, Task
from rlhf_jax.text.segments import mixed_tokens

LARGEST, LARGEST_FACTOR = 99, 9
"""Of the operands, and of one operand of a product."""
HELDOUT = {
    "validation": ((0, 7), (1, 3), (2, 9), (4, 6), (5, 8)),
    "evaluation": ((0, 4), (1, 6), (2, 7), (3, 5), (8, 9)),
}
"""Pairs of tens: (3, 5) are 30–39 with 50–59. Each decade is held out with one other of each."""
SHARES = {"demonstrations": 0.4, "comparisons": 0.3, "ppo": 0.3}
"""Of the other problems."""
PER_DOCUMENT = 5
"""Equations in a document of the pretraining text."""

WORDINGS = {
    "+": (
        *("What is {a} + {b}?", "Compute {a} + {b}.", "How much is {a} plus {b}?"),
        *("What is the sum of {a} and {b}?", "{a}加{b}等于多少？"),
    ),
    "-": (
        *("What is {a} - {b}?", "Compute {a} - {b}.", "How much is {a} minus {b}?"),
        *("What do you get if you take {b} from {a}?", "{a}减{b}等于多少？"),
    ),
    "×": (
        *("What is {a} × {b}?", "Compute {a} × {b}.", "How much is {a} times {b}?"),
        *("What is the product of {a} and {b}?", "{a}乘以{b}等于多少？"),
    ),
}
"""How a problem may be asked."""
NAMES = {"+": "add", "-": "subtract", "×": "multiply"}
"""Of the operations, in figures."""


class Problem(NamedTuple):
    """Two numbers and what is to be done with them."""

    a: int
    operation: str
    b: int

    @property
    def answer(self) -> int:
        """The right one."""
        a, b = self.a, self.b
        return {"+": a + b, "-": a - b, "×": a * b}[self.operation]

    @property
    def equation(self) -> str:
        """The problem with its answer."""
        return f"{self.a} {self.operation} {self.b} = {self.answer}"

    @property
    def commuted(self) -> "Problem":
        """With the operands the other way round."""
        return Problem(self.b, self.operation, self.a)

    @property
    def either(self) -> "Problem":
        """The same for both orders of the operands: what is split, and looked for in text."""
        return min(self, self.commuted)


def build(source: Path) -> Task:
    """Make everything; ``source`` is not read. Deterministic."""
    split = split_problems()
    learnt = [problem for name in SHARES for problem in split[name]]
    return Task(
        demonstrations=[
            Demonstration(asked(problem), f" {problem.equation}")
            for problem in split["demonstrations"]
        ],
        prompts={
            n: list(map(asked, problems)) for n, problems in split.items() if n != "demonstrations"
        },
        corpora={"equations": equations(learnt)},
        heldout={"equations": equations(split["evaluation"])},
        gold=gold,
        judges={},
        metrics=metrics,
        baselines={"nearest": make_nearest(split["demonstrations"])},
        words=mixed_tokens,
        verifiable=True,
        problems=problems_in,
    )


# --- problems -------------------------------------------------------------------------------------


def all_problems() -> list[Problem]:
    """Each pair of operands with each operation, in one order.

    Of differences the one that is not negative, of others the one that their hash decides.
    """
    problems = []
    for a, b in combinations_with_replacement(range(LARGEST + 1), 2):
        for operation in WORDINGS:
            if operation != "×" or a <= LARGEST_FACTOR:
                problem = Problem(a, operation, b)
                turned = operation == "-" or share(problem.equation, "order of operands") < 0.5
                problems.append(problem.commuted if turned else problem)
    return problems


def split_problems() -> dict[str, list[Problem]]:
    """Problems by what they serve, in random order: held-out ranges, and shares of the rest."""
    ranges = {pair: name for name, pairs in HELDOUT.items() for pair in pairs}
    by_part: dict[str, list[Problem]] = {"": [], **{name: [] for name in HELDOUT}}
    for problem in all_problems():
        low, high = sorted((problem.a // 10, problem.b // 10))
        by_part[ranges.get((low, high), "")].append(problem)
    rest = parts(by_part.pop(""), lambda problem: problem.equation, SHARES, "problem")
    return rest | {
        name: shuffled(problems, lambda p: p.equation) for name, problems in by_part.items()
    }


def asked(problem: Problem) -> str:
    """The problem in the wording that its hash decides."""
    wordings = WORDINGS[problem.operation]
    wording = wordings[int(share(problem.equation, "wording") * len(wordings))]
    return wording.format(a=problem.a, b=problem.b)


def equations(problems: Iterable[Problem]) -> list[str]:
    """Documents of equations in random order, sums and products in both orders."""
    both = {
        order
        for problem in problems
        for order in ((problem,) if problem.operation == "-" else (problem, problem.commuted))
    }
    lines = shuffled(problem.equation for problem in both)
    return ["\n".join(lines[i : i + PER_DOCUMENT]) for i in range(0, len(lines), PER_DOCUMENT)]


# --- problems in text -----------------------------------------------------------------------------

A, B = (rf"(?<!\d)(?<!\d[.,])(?P<{name}>\d+)(?!\d|[.,]\d)" for name in ("a", "b"))
"""A whole number in the digits of any script, and no part of one."""
FORMS = {
    "+": (
        rf"{A}(?=\s*(?:\+|plus|加上?)\s*{B})",
        rf"(?:sum\s+of|add|adding)\s+{A}(?=\s+(?:and|to)\s+{B})",
    ),
    "-": (
        rf"{A}(?=\s*(?:[-−–]|minus|less|减去?)\s*{B})",
        rf"(?:take|taking|subtract|subtracting)\s+{B}(?=\s+(?:away\s+)?from\s+{A})",
        rf"difference\s+(?:of|between)\s+{A}(?=\s+and\s+{B})",
    ),
    "×": (
        rf"{A}(?=\s*(?:[×x*·⋅]|times|(?:multiplied\s+)?by|乘以?)\s*{B})",
        rf"product\s+of\s+{A}(?=\s+and\s+{B})",
    ),
}
"""How a problem may stand in a text: more than ``WORDINGS``, for text may come from elsewhere. The
second number is looked ahead at, as it may be the first of another problem."""


def readers(forms: dict[str, tuple[str, ...]]) -> list[tuple[str, re.Pattern]]:
    """(operation, compiled form) of every form."""
    pairs = ((operation, form) for operation, patterns in forms.items() for form in patterns)
    return [(operation, re.compile(form, re.IGNORECASE)) for operation, form in pairs]


FORM_READERS = readers(FORMS)
# Looking back keeps a run of digits from being tried at each of its places.
NUMBERS = {re.escape(f"{{{name}}}"): f"(?<![0-9])(?P<{name}>[0-9]+)" for name in ("a", "b")}


def as_form(wording: str) -> str:
    """The expression that reads a wording's two numbers."""
    form = re.escape(wording)
    for place, number in NUMBERS.items():
        form = form.replace(place, number)
    return form


WORDING_READERS = readers({o: tuple(map(as_form, some)) for o, some in WORDINGS.items()})


def problems_in(text: str) -> set[Problem]:
    """The problems that a text asks or answers in figures, each in one order of its operands."""
    text = unicodedata.normalize("NFKC", text)
    problems = (
        Problem(int(match["a"]), operation, int(match["b"]))
        for operation, reader in FORM_READERS
        for match in reader.finditer(text)
    )
    return {problem.either for problem in problems}


def problem_of(prompt: str) -> Problem:
    """What a prompt asks. Raises InputError for one in none of the task's wordings."""
    for operation, reader in WORDING_READERS:
        match = reader.fullmatch(prompt)
        if match:
            return Problem(int(match["a"]), operation, int(match["b"]))
    raise InputError(
        f"prompt {prompt[:60]!r} is no problem of the task arithmetic: expected one such as "
        f"{asked(Problem(3, '+', 5))!r}"
    )


# --- judgement ------------------------------------------------------------------------------------


def gold(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
    """1 for each response whose final answer is right, else 0."""
    answers = [problem_of(prompt).answer for prompt in prompts]
    return np.array(exact_match(prompts, responses, answers), float)


def metrics(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Figure]:
    """The share that ends in a number, and what is right of each operation."""
    right = gold(prompts, responses)
    operations = np.array([problem_of(prompt).operation for prompt in prompts])
    answered = [number_of(final_answer(response)) is not None for response in responses]
    by_operation = {
        name: mean_ci(right[operations == operation])
        for operation, name in NAMES.items()
        if (operations == operation).any()
    }
    return {"answered": mean_ci(answered), **by_operation}


def make_nearest(known: Sequence[Problem]) -> Baseline:
    """What knowing demonstrations by heart is worth: the answer of the nearest of that operation.

    Nearest by |a − a'| + |b − b'|.
    """
    by_operation = {
        operation: [problem for problem in known if problem.operation == operation]
        for operation in WORDINGS
    }
    operands = {
        o: np.array([(p.a, p.b) for p in problems_of]) for o, problems_of in by_operation.items()
    }

    def nearest(prompts: Sequence[str]) -> list[str]:
        said = []
        for problem in map(problem_of, prompts):
            away = np.abs(operands[problem.operation] - (problem.a, problem.b)).sum(axis=1)
            said.append(f" {by_operation[problem.operation][away.argmin()].answer}")
        return said

    return nearest
