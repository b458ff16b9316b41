"""Reading sentiment: a prompt shows a movie review and asks for a word, judged by people's labels.

The sentences and their splits are those of ``sentiment``. The gold score is 1 for the label's word,
−1 for the other and −1.5 for anything else.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.splits import parts, passages
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.metrics import mean_ci
from rlhf_jax.tasks.sentiment import Labelled, not_quoted, read_labelled, split_reviews, train
from rlhf_jax.tasks.task import Baseline, Figure, Task
from rlhf_jax.text.classifier import words

ASK, ANSWER = "Review: ", "\nSentiment:"
SHARES = {
    "demonstrations": 0.45,
    "comparisons": 0.3,
    "ppo": 0.15,
    "validation": 0.03,
    "evaluation": 0.07,
}
HELDOUT = 0.05


def build(source: Path) -> Task:
    """Read and split. Deterministic. Raises InputError for missing or wrong files."""
    source = Path(source)
    long = read_labelled(source / "sft_movie_reviews")
    sentences = not_quoted(read_labelled(source / "sft_sentence_polarity"), long)
    reviews = split_reviews(long)
    split = parts(sentences, lambda row: row.text, SHARES, "classification")
    labels = {prompt_of(row): row.positive for row in sentences}
    text = [row.text for row in (*reviews.text, *reviews.gold, *reviews.judge)]
    books, heldout_books = passages(source / "text_gutenberg", heldout=HELDOUT, salt="passage")

    def truth(prompts: Sequence[str]) -> np.ndarray:
        unknown = [prompt for prompt in prompts if prompt not in labels]
        if unknown:
            raise InputError(f"prompt {unknown[0][:60]!r} is no labelled review of this task")
        return np.array([labels[prompt] for prompt in prompts])

    def gold(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        said = np.array([verdict(response) for response in responses])
        right = np.where(truth(prompts), said, -said)
        return np.where(said == 0, -1.5, right).astype(float)

    def metrics(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Figure]:
        said = np.array([verdict(response) for response in responses])
        right = (said != 0) & ((said > 0) == truth(prompts))
        return {"accuracy": mean_ci(right * 1.0), "answered": mean_ci((said != 0) * 1.0)}

    return Task(
        demonstrations=[demonstration(row) for row in split["demonstrations"]],
        prompts={n: [prompt_of(r) for r in split[n]] for n in SHARES if n != "demonstrations"},
        corpora={"reviews": text, "gutenberg": books},
        heldout={
            "reviews": [row.text for row in reviews.heldout],
            "gutenberg": heldout_books,
        },
        gold=gold,
        judges={},
        metrics=metrics,
        baselines={"bag_of_words": bag_of_words(split["demonstrations"]), "positive": positive},
        words=words,
    )


def prompt_of(row: Labelled) -> str:
    """A review, and the question what its author thinks."""
    return ASK + row.text + ANSWER


def demonstration(row: Labelled) -> Demonstration:
    """The prompt with its label in a word."""
    return Demonstration(prompt_of(row), " positive" if row.positive else " negative")


def verdict(response: str) -> int:
    """1 for positive, −1 for negative, 0 for anything else: the first word decides."""
    first = (words(response) or [""])[0]
    return {"positive": 1, "negative": -1}.get(first, 0)


def bag_of_words(rows: Sequence[Labelled]) -> Baseline:
    """A logistic regression on the same demonstrations: what reading words alone can do."""
    classifier = cache(lambda: train(rows, []))  # at its first use: it takes seconds

    def classify(prompts: Sequence[str]) -> list[str]:
        texts = [prompt.removeprefix(ASK).removesuffix(ANSWER) for prompt in prompts]
        return [" positive" if z > 0 else " negative" for z in classifier().logits(texts)]

    return classify


def positive(prompts: Sequence[str]) -> list[str]:
    """Always the same word."""
    return [" positive"] * len(prompts)
