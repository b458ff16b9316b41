"""Summarising: abstracts of papers in one sentence (SciTLDR, Cachola et al. 2020).

The prompt is the abstract and ``TL;DR:``; people's TL;DRs are demonstrations and references. Papers
that people rated (rank_scitldr_informativeness) lie on the evaluation's side, so that a reward
model can be checked on them. The gold score is the mean of ROUGE-1, -2 and -L (F₂) against the
best reference, less a penalty for more repeated words than people's.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.splits import parts, passages, read_fields
from rlhf_jax.evaluation.metrics import mean_ci, repeated_word_rate
from rlhf_jax.evaluation.overlap import rouge
from rlhf_jax.tasks.references import References
from rlhf_jax.tasks.summary_prompt import abstract_of, prompt_of
from rlhf_jax.tasks.task import Figure, Judge, Task
from rlhf_jax.text.duplicates import find_leaks
from rlhf_jax.text.segments import mixed_tokens

SHARES = {
    "demonstrations": 0.55,
    "comparisons": 0.15,
    "ppo": 0.15,
    "validation": 0.03,
    "evaluation": 0.12,
}
"""Of the papers."""
HELDOUT = 0.05
RECALL = 2.0
"""β of F_β in the gold score, as in chrF₂. Readers count what a summary tells, so they side with F₁
at chance and with F₂ above it (``tests/tasks/test_tasks.py``)."""
REPEATED = 0.5
"""Penalty per share of words that occurred before, over the usual one: loops have about 0.7."""
USUAL = 0.15
"""No more than this share in five of six of people's TL;DRs."""
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])|(?<=[。！？])")


class Paper(NamedTuple):
    """A paper: its abstract, and people's summaries of it."""

    name: str
    abstract: str
    summaries: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The abstract, and the question for a summary."""
        return prompt_of(self.abstract)


def build(source: Path) -> Task:
    """Read and split. Deterministic. Raises InputError for missing or wrong files."""
    source = Path(source)
    papers = read_papers(source / "sft_scitldr")
    rated = {name for (name,) in read_fields(source / "rank_scitldr_informativeness", "paper_id")}
    split = parts([p for p in papers if p.name not in rated], lambda p: p.name, SHARES, "paper")
    split["evaluation"] += [paper for paper in papers if paper.name in rated]
    seen = [paper for name in ("demonstrations", "comparisons", "ppo") for paper in split[name]]
    for name in ("validation", "evaluation"):
        # A few papers were submitted twice, with another number and a few other words.
        leaks = find_leaks([p.abstract for p in seen], [p.abstract for p in split[name]])
        again = {leak.test for leak in leaks}
        split[name] = [paper for n, paper in enumerate(split[name]) if n not in again]
    references = References({paper.prompt: paper.summaries for paper in papers})
    wikipedia = passages(source / "text_wikipedia", heldout=HELDOUT, salt="passage")
    return Task(
        demonstrations=[
            Demonstration(paper.prompt, " " + summary)
            for paper in split["demonstrations"]
            for summary in paper.summaries
        ],
        prompts={n: [p.prompt for p in split[n]] for n in SHARES if n != "demonstrations"},
        corpora={"abstracts": [p.abstract for p in seen], "wikipedia": wikipedia[0]},
        heldout={
            "abstracts": [paper.abstract for paper in split["evaluation"]],
            "wikipedia": wikipedia[1],
        },
        gold=make_gold(references),
        judges={},
        metrics=make_metrics(references),
        baselines={"lead": lead, "oracle_sentence": make_oracle(references)},
        words=mixed_tokens,
    )


def read_papers(folder: Path) -> list[Paper]:
    """Papers with at least one TL;DR; white space is single spaces."""

    def tidy(text: str) -> str:
        return " ".join(text.split())

    rows = read_fields(folder, "id", "source", "targets")
    papers = [Paper(name, tidy(text), tuple(map(tidy, targets))) for name, text, targets in rows]
    # A few abstracts occur twice: one prompt must have one set of references.
    # A paper that was submitted twice has one abstract.
    return list({paper.abstract: paper for paper in papers if paper.summaries}.values())


def make_gold(references: References) -> Judge:
    """Mean recall of ROUGE-1, -2 and -L against people's summaries, less a penalty for repeats."""

    def gold(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        scores = rouge(responses, references.of(prompts), RECALL)
        repeated = np.array([repeated_word_rate(mixed_tokens(response)) for response in responses])
        return np.mean(list(scores.values()), axis=0) - REPEATED * np.maximum(repeated - USUAL, 0)

    return gold


def make_metrics(references: References) -> Callable[..., dict[str, Figure]]:
    """ROUGE, the number of words, and the share of the words that the abstract has (copying)."""

    def metrics(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Figure]:
        scores = rouge(responses, references.of(prompts))
        said = [mixed_tokens(response) for response in responses]
        asked = [set(mixed_tokens(prompt)) for prompt in prompts]
        copied = [
            float(np.mean([w in source for w in words_of_one])) if words_of_one else 0.0
            for words_of_one, source in zip(said, asked, strict=True)
        ]
        figures: dict[str, Figure] = {name: mean_ci(values) for name, values in scores.items()}
        figures["words"] = mean_ci([len(words_of_one) for words_of_one in said])
        return figures | {"copied": mean_ci(copied)}

    return metrics


def sentences(text: str) -> list[str]:
    """The sentences of an abstract."""
    return [part for part in SENTENCE.split(text) if part.strip()]


def lead(prompts: Sequence[str]) -> list[str]:
    """The abstract's first sentence: the baseline that summaries of papers seldom beat by much."""
    return [" " + sentences(abstract_of(prompt))[0] for prompt in prompts]


def make_oracle(references: References) -> Callable[[Sequence[str]], list[str]]:
    """The sentence nearest to the references: what extracting one sentence can reach at most."""

    def best(prompt: str, answers: tuple[str, ...]) -> str:
        candidates = sentences(abstract_of(prompt))
        scores = np.mean(list(rouge(candidates, [answers] * len(candidates)).values()), axis=0)
        return " " + candidates[int(scores.argmax())]

    return lambda prompts: [best(*row) for row in zip(prompts, references.of(prompts), strict=True)]
