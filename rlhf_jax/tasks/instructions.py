"""Following instructions: people's answers to learn from, programs that check what was asked.

Demonstrations are the self-instruct seeds and user-oriented tasks, each also with constraints that
the person's answer happens to fulfil. Comparisons and PPO ask seeds with a constraint; validation
and evaluation are IFEval's prompts (Zhou et al. 2023), which nothing trains on. The gold score is
the share of the constraints that are fulfilled, less penalties for repeated words and for bytes
that are unlikely in people's text (letters in disorder can have three bullet points too). It says
nothing of whether the answer is true or helpful: no program can; ``pref_pandalm`` and
``pref_llmbar`` test reward models for that.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.chat import Message, as_text
from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.splits import parts, passages, read_fields, share, shuffled
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.metrics import mean_ci, repeated_word_rate
from rlhf_jax.tasks.constraints import Constraint, followed, followed_loosely, make_constraint
from rlhf_jax.tasks.task import Figure, Judge, Task
from rlhf_jax.text.classifier import words
from rlhf_jax.text.ngrams import NgramModel, train_ngrams

VALIDATION = {"validation": 0.15, "evaluation": 0.85}
"""Shares of IFEval's prompts."""
SEEDS = {"demonstrations": 0.5, "comparisons": 0.25, "ppo": 0.25}
"""Shares of the self-instruct tasks. Of all of them people's answers are demonstrations too, with
other constraints: there are only 342."""
HELDOUT = 0.05
REPEATED = 0.5
UNLIKELY = 0.1
"""Penalty per bit per byte under a byte 5-gram model: about 0.25 for people's answers, 0.8 for an
empty one or random bytes."""
ORDER = 5

Asked = tuple[str, Constraint]
"""How an instruction is worded, and what checks it."""


class Seed(NamedTuple):
    """An instruction that a person wrote, with its answer."""

    instruction: str
    input: str
    output: str

    @property
    def text(self) -> str:
        """What is asked: the instruction, and its input where it has one."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction


def build(source: Path) -> Task:
    """Read and split. Deterministic. Raises InputError for missing or wrong files."""
    source = Path(source)
    seeds = [
        Seed(*map(str.strip, row))
        for row in read_fields(source / "sft_self_instruct", "instruction", "input", "output")
    ]
    split = parts(seeds, lambda seed: seed.text, SEEDS, "seed")
    ifeval = read_ifeval(source / "eval_ifeval")
    checks = dict(ifeval)
    prompts = {}
    for name in ("comparisons", "ppo"):
        asked = [(prompt_of(s, wording), [c]) for s in split[name] for wording, c in wordings()]
        checks |= dict(asked)
        prompts[name] = shuffled(prompt for prompt, _ in asked)
    for name, prompts_of_part in parts(ifeval, str, VALIDATION, "ifeval").items():
        prompts[name] = prompts_of_part
    corpora = {
        "gutenberg": passages(source / "text_gutenberg", heldout=HELDOUT, salt="passage"),
        "wikipedia": passages(source / "text_wikipedia", heldout=HELDOUT, salt="passage"),
    }
    return Task(
        demonstrations=demonstrations(seeds),
        prompts=prompts,
        corpora={name: kept for name, (kept, _) in corpora.items()},
        heldout={name: out for name, (_, out) in corpora.items()},
        gold=make_gold(checks, train_ngrams(corpora["wikipedia"][0], order=ORDER)),
        judges={},
        metrics=make_metrics(checks),
        baselines={"echo": echo},
        words=words,
    )


def read_ifeval(folder: Path) -> dict[str, list[Constraint]]:
    """IFEval's prompts, as a user's message, with what each asks for."""
    constraints_of = {}
    for prompt, kinds, arguments in read_fields(folder, "prompt", "instruction_id_list", "kwargs"):
        if len(kinds) != len(arguments):
            raise InputError(f"{folder}: {len(kinds)} instructions with {len(arguments)} kwargs")
        pairs = zip(kinds, arguments, strict=True)
        constraints_of[as_prompt(prompt)] = [make_constraint(*pair) for pair in pairs]
    return constraints_of


def as_prompt(text: str) -> str:
    """The text as a user's message that the assistant is to answer."""
    return as_text((Message("user", text),))


def text_of(prompt: str) -> str:
    """What the user's message says, without the marks of its turn."""
    return prompt.removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:")


def prompt_of(seed: Seed, wording: str) -> str:
    """What a seed asks, with a constraint in so many words."""
    return as_prompt(f"{seed.text}\n\n{wording}")


def wordings() -> list[Asked]:
    """Constraints that an answer of a few words can fulfil, as a user would word them."""
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("Do not use any commas.", "punctuation:no_comma", {}),
        ("Answer in lowercase letters only.", "change_case:english_lowercase", {}),
        ("Answer in capital letters only.", "change_case:english_capital", {}),
        ("Put your whole answer in double quotation marks.", "startend:quotation", {}),
        (
            "Answer in less than 15 words.",
            "length_constraints:number_words",
            {"relation": "less than", "num_words": 15},
        ),
        (
            "Answer in at least 20 words.",
            "length_constraints:number_words",
            {"relation": "at least", "num_words": 20},
        ),
        (
            "Use at least 2 sentences.",
            "length_constraints:number_sentences",
            {"relation": "at least", "num_sentences": 2},
        ),
        (
            "Use exactly 3 bullet points, each on a line that begins with *.",
            "detectable_format:number_bullet_lists",
            {"num_bullets": 3},
        ),
        (
            "Do not use the word the.",
            "keywords:forbidden_words",
            {"forbidden_words": ["the"]},
        ),
        (
            "Use the letter e at least 10 times.",
            "keywords:letter_frequency",
            {"letter": "e", "let_relation": "at least", "let_frequency": 10},
        ),
        (
            "Use the letter a less than 3 times.",
            "keywords:letter_frequency",
            {"letter": "a", "let_relation": "less than", "let_frequency": 3},
        ),
        (
            "Begin with a title in double angular brackets, like <<title>>.",
            "detectable_format:title",
            {},
        ),
    ]
    return [(wording, make_constraint(kind, arguments)) for wording, kind, arguments in rows]


def rewritten(output: str, constraint: Constraint) -> str | None:
    """The person's answer, made to fulfil a constraint that is a matter of writing only."""
    answer = {
        "punctuation:no_comma": lambda: output.replace(",", ""),
        "change_case:english_lowercase": output.lower,
        "change_case:english_capital": output.upper,
        "startend:quotation": lambda: '"' + output.strip('"') + '"',
    }.get(constraint.kind, lambda: output)()
    return answer if constraint.holds(answer) else None


def demonstrations(seeds: Sequence[Seed]) -> list[Demonstration]:
    """Each answer as it stands, and once more for constraints that it can be written to fulfil.

    Of those, the half that a hash of the text picks.
    """
    rows = []
    for seed in seeds:
        rows.append(Demonstration(as_prompt(seed.text), " " + seed.output))
        for wording, constraint in wordings():
            output = rewritten(seed.output, constraint)
            if output is not None and share(seed.text + wording, "constraint") < 0.5:
                rows.append(Demonstration(prompt_of(seed, wording), " " + output))
    return shuffled(rows, lambda row: as_text(row.prompt))


def constraints_of(
    checks: dict[str, list[Constraint]], prompts: Sequence[str]
) -> list[list[Constraint]]:
    """What each prompt asks for. Raises InputError for one that is not the task's own."""
    for prompt in prompts:
        if prompt not in checks:
            raise InputError(
                f"prompt {prompt[:60]!r} has no constraints: this task judges answers only to its "
                "own prompts"
            )
    return [checks[prompt] for prompt in prompts]


def make_gold(checks: dict[str, list[Constraint]], model: NgramModel) -> Judge:
    """Share of the constraints that an answer follows, less its penalty for what is no language."""

    def gold(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        asked = constraints_of(checks, prompts)
        said = [response.strip() for response in responses]
        kept = [np.mean(followed(c, r)) for c, r in zip(asked, said, strict=True)]
        return np.array(kept) - np.array([penalty(model, response) for response in said])

    return gold


def penalty(model: NgramModel, response: str) -> float:
    """What is taken off for how the answer is written, whatever was asked; > 0."""
    return REPEATED * repeated_word_rate(words(response)) + UNLIKELY * model.bits_per_byte(response)


def make_metrics(checks: dict[str, list[Constraint]]) -> Callable[..., dict[str, Figure]]:
    """IFEval's four accuracies: of whole prompts and of single instructions, strict and loose."""

    def metrics(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Figure]:
        asked = constraints_of(checks, prompts)
        rows = list(zip(asked, (response.strip() for response in responses), strict=True))
        figures: dict[str, Figure] = {}
        for name, check in (("strict", followed), ("loose", followed_loosely)):
            results = [check(constraints, response) for constraints, response in rows]
            figures[f"prompt_{name}"] = mean_ci([all(result) for result in results])
            figures[f"instruction_{name}"] = mean_ci([r for result in results for r in result])
        return figures

    return metrics


def echo(prompts: Sequence[str]) -> list[str]:
    """The first sentence of what was asked, said back."""
    return [" " + re.split(r"(?<=[.!?])\s", text_of(prompt), maxsplit=1)[0] for prompt in prompts]


def alpaca_rows(prompts: Sequence[str], responses: Sequence[str], generator: str) -> list[dict]:
    """Rows of an AlpacaEval ``outputs.json``: instruction, output, generator, dataset."""
    return [
        {
            "instruction": text_of(prompt),
            "output": response.strip(),
            "generator": generator,
            "dataset": "rlhf_jax",
        }
        for prompt, response in zip(prompts, responses, strict=True)
    ]
