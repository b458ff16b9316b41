"""Instructions of few words with program-checked constraints, for a model that is there already.

Nobody's answers are learnt from: PPO asks the self-instruct seeds, each with a constraint in this
project's own words, and a program says whether the answer keeps it. Tested is on those prompts of
IFEval (Zhou et al. 2023) that are short enough and that an answer of few words could satisfy;
nothing trains on them. The gold score is the share of the constraints that are kept, less a penalty
for repeated words. It says nothing of whether the answer is true or helpful.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.splits import parts, read_fields, shuffled
from rlhf_jax.evaluation.metrics import repeated_word_rate
from rlhf_jax.tasks.constraints import Constraint, followed, make_constraint
from rlhf_jax.tasks.instructions import (
    REPEATED,
    Seed,
    constraints_of,
    echo,
    make_metrics,
    prompt_of,
    read_ifeval,
    text_of,
)
from rlhf_jax.tasks.task import Judge, Task
from rlhf_jax.text.classifier import words

MOST_WORDS, MOST_CHARACTERS = 45, 230
"""Of a prompt, split at white space: at most 106 tokens in the template of SmolLM2."""
ANSWER_WORDS = 40
"""What an answer may have to be tested on, about 64 tokens with marks and capitals."""
SEEDS = {"comparisons": 0.25, "ppo": 0.75}
"""Shares of the self-instruct seeds."""
TESTED = {"validation": 0.25, "evaluation": 0.75}
"""Shares of IFEval's prompts that are left."""

Worded = tuple[str, str, dict[str, Any]]
"""A constraint as a user words it, its kind, and the kind's arguments."""


def build(source: Path) -> Task:
    """Read and split. Deterministic. Raises InputError for missing or wrong files."""
    source = Path(source)
    rows = read_fields(source / "sft_self_instruct", "instruction", "input", "output")
    seeds = [Seed(*map(str.strip, row)) for row in rows]
    ifeval = {
        prompt: constraints
        for prompt, constraints in read_ifeval(source / "eval_ifeval").items()
        if is_short(prompt) and all(map(fits, constraints))
    }
    checks, prompts = dict(ifeval), {}
    asked = [(wording, make_constraint(kind, more)) for wording, kind, more in worded()]
    for name, kept in parts(seeds, lambda seed: seed.text, SEEDS, "seed").items():
        pairs = [(prompt_of(seed, wording), [check]) for seed in kept for wording, check in asked]
        short = dict(pair for pair in pairs if is_short(pair[0]))
        checks |= short
        prompts[name] = shuffled(short)
    prompts |= parts(ifeval, str, TESTED, "ifeval")
    return Task(
        demonstrations=[],
        prompts=prompts,
        corpora={},
        heldout={},
        gold=make_gold(checks),
        judges={},
        metrics=make_metrics(checks),
        baselines={"echo": echo},
        words=words,
    )


def make_gold(checks: dict[str, list[Constraint]]) -> Judge:
    """Share of the constraints that an answer keeps, less half of its share of repeated words."""

    def gold(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        said = [response.strip() for response in responses]
        asked = constraints_of(checks, prompts)
        kept = [np.mean(followed(c, r)) for c, r in zip(asked, said, strict=True)]
        return np.array(kept) - REPEATED * np.array([repeated_word_rate(words(r)) for r in said])

    return gold


def is_short(prompt: str) -> bool:
    """Whether a prompt has few words, and is none of signs and long names."""
    text = text_of(prompt)
    return len(text.split()) <= MOST_WORDS and len(text) <= MOST_CHARACTERS


def fits(constraint: Constraint) -> bool:
    """Whether an answer of ``ANSWER_WORDS`` words could keep it."""
    return least_words(constraint) <= ANSWER_WORDS


def least_words(constraint: Constraint) -> int:
    """About how many words an answer has at least that keeps a constraint."""
    kind, more = constraint
    number = next((n for n in more.values() if isinstance(n, int)), 1)
    if kind == "combination:repeat_prompt":
        return 2 * len(more["prompt_to_repeat"].split())
    if "less than" in more.values():
        return 1
    each = {
        "length_constraints:number_words": 1,
        "length_constraints:number_sentences": 6,
        "length_constraints:number_paragraphs": 12,
        "length_constraints:nth_paragraph_first_word": 12,
        "detectable_format:multiple_sections": 12,
        "combination:two_responses": 24,
        "detectable_format:number_bullet_lists": 5,
        "detectable_format:number_highlighted_sections": 4,
        "detectable_content:number_placeholders": 4,
        "change_case:capital_word_frequency": 2,
        "keywords:frequency": 3,
        "keywords:letter_frequency": 1,
    }
    return each.get(kind, 1) * number


def worded() -> Iterator[Worded]:
    """Constraints of IFEval's kinds that a short answer can keep, in our own words."""
    for wording in ("Leave out every comma.", "Your answer must not contain a single comma."):
        yield wording, "punctuation:no_comma", {}
    for wording in (
        "Answer in small letters and nothing else.",
        "Everything you write should be in lowercase, without any capitals.",
    ):
        yield wording, "change_case:english_lowercase", {}
    for wording in ("Answer in capital letters only.", "WRITE ALL OF IT IN CAPITALS."):
        yield wording, "change_case:english_capital", {}
    for wording in (
        "Put your whole answer in double quotation marks.",
        'Begin and end your answer with the character ".',
    ):
        yield wording, "startend:quotation", {}
    for wording in (
        "Begin with a title in double angular brackets, like <<title>>.",
        "Give it a title, written <<like this>>.",
    ):
        yield wording, "detectable_format:title", {}
    for number in (10, 15, 25):
        more = {"relation": "less than", "num_words": number}
        yield f"Answer in less than {number} words.", "length_constraints:number_words", more
    for number in (15, 25):
        more = {"relation": "at least", "num_words": number}
        yield f"Use {number} words or more.", "length_constraints:number_words", more
    for number in (2, 3):
        more = {"relation": "at least", "num_sentences": number}
        yield f"Use at least {number} sentences.", "length_constraints:number_sentences", more
        more = {"relation": "less than", "num_sentences": number}
        yield f"Write fewer than {number} sentences.", "length_constraints:number_sentences", more
        wording = f"Use exactly {number} bullet points, each on a line that begins with *."
        yield wording, "detectable_format:number_bullet_lists", {"num_bullets": number}
    for number in (1, 2):
        wording = f"Highlight at least {number} part of it with asterisks, *so*."
        yield wording, "detectable_format:number_highlighted_sections", {"num_highlights": number}
        wording = f"Leave at least {number} blank for me to fill in, in square brackets: [name]."
        yield wording, "detectable_content:number_placeholders", {"num_placeholders": number}
    for word in ("the", "is", "good"):
        more = {"forbidden_words": [word]}
        yield f"Do not use the word {word}.", "keywords:forbidden_words", more
    for word in ("simple", "morning", "people"):
        more = {"keywords": [word]}
        yield f"The word {word} must be in your answer.", "keywords:existence", more
        more = {"keyword": word, "relation": "at least", "frequency": 2}
        yield f"Use the word {word} at least twice.", "keywords:frequency", more
    for letter, relation, number in (("a", "less than", 3), ("e", "at least", 10)):
        more = {"letter": letter, "let_relation": relation, "let_frequency": number}
        wording = f"Use the letter {letter} {relation} {number} times."
        yield wording, "keywords:letter_frequency", more
    wording = "Write at least 2 words in capital letters."
    more = {"capital_relation": "at least", "capital_frequency": 2}
    yield wording, "change_case:capital_word_frequency", more
    wording = "Add a postscript that begins with P.S."
    yield wording, "detectable_content:postscript", {"postscript_marker": "P.S."}
    for phrase in ("That is all.", "Is there anything else?"):
        more = {"end_phrase": phrase}
        yield f"End with these very words: {phrase}", "startend:end_checker", more
