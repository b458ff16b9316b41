"""Writing positive movie reviews: a small task whose judge learnt from people's own labels.

    task = build(Path("data"))          # read, split, train the scorers: seconds
    write(task, Path("runs/x/data"))    # the files that the stages read

The split is a property of the data, not of a run: every text's place follows from a hash of its
words, so all runs and seeds share one gold scorer and no text serves two ends.
docs/quickstart_task.md has the table of splits and the measured accuracies.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.files import Origin, find_files, read_rows
from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.splits import normalised, passages, share
from rlhf_jax.errors import InputError
from rlhf_jax.tasks.sentiment_scores import (
    INSTRUCTION,
    NEGATIVE,
    POSITIVE,
    GoldScorer,
    GoldWeights,
    full_text,
    make_judges,
    read_lexicons,
)
from rlhf_jax.tasks.task import Task, no_metrics, write
from rlhf_jax.text.classifier import TextClassifier, train_classifier, words
from rlhf_jax.text.duplicates import without_leaks

__all__ = ["build", "build_negative", "full_text", "write"]

PREFIX_WORDS = 3
"""A prompt gives the first three words of a sentence (punctuation marks count)."""
DEMONSTRATION_LENGTHS = range(6, 27)
"""In words, of sentences to learn from; the others go to gold scorer and judge."""
LONGEST_DEMONSTRATION = 23
"""In words: the response fits 28 tokens of a 4,096-token vocabulary, six times in seven."""
EVALUATION, VALIDATION = 0.07, 0.03
"""Shares of the sentences' prefixes."""
SCORERS = 0.15
"""Share of the remaining sentences of demonstration length from which gold and judge learn, beside
all those of other lengths."""
GOLD_SENTENCES = 0.6
"""The gold scorer's share of those; the judge has the rest."""
GOLD_REVIEWS, JUDGE_REVIEWS, HELDOUT_REVIEWS = 0.35, 0.28, 0.04
"""Shares of the long reviews; the rest is text to learn from and source of prompts."""
HELDOUT_PASSAGES = 0.07

REVIEW_WEIGHT = 3.0
"""Of a long review in training the classifiers, next to 1 of a sentence."""
learn = partial(train_classifier, loss_weight=3.0, min_count=2, folds=3)
GOLD = GoldWeights(repeated=1.5, non_words=1.5, too_short=1.0, min_words=4, unfinished=0.25)


class Labelled(NamedTuple):
    """A text that its author labelled."""

    text: str
    positive: bool


class Sentences(NamedTuple):
    """The labelled sentences by use."""

    evaluation: list[Labelled]
    validation: list[Labelled]
    gold: list[Labelled]
    judge: list[Labelled]
    demonstrations: list[Labelled]


class Reviews(NamedTuple):
    """The labelled long reviews by use."""

    gold: list[Labelled]
    judge: list[Labelled]
    heldout: list[Labelled]
    text: list[Labelled]


def build(data_dir: Path) -> Task:
    """Read, split and train. Deterministic. Raises InputError for missing or wrong files."""
    data_dir = Path(data_dir)
    labelled = read_labelled(data_dir / "sft_sentence_polarity")
    long = read_labelled(data_dir / "sft_movie_reviews")
    # Quoted sentences would stand on both sides of the split.
    sentences, reviews = split_sentences(not_quoted(labelled, long)), split_reviews(long)
    books, heldout_books = passages(
        data_dir / "text_gutenberg", heldout=HELDOUT_PASSAGES, salt="passage"
    )
    corpora = {
        "gutenberg": books,
        "reviews": [row.text for row in reviews.text],
        "polarity": [row.text for row in sentences.demonstrations],
    }
    heldout = {
        "gutenberg": heldout_books,
        "reviews": [row.text for row in reviews.heldout],
        "polarity": [row.text for row in sentences.evaluation],
    }
    lexicons = read_lexicons(data_dir / "lexicons")
    everything = [text for texts in (*corpora.values(), *heldout.values()) for text in texts]
    everything += [row.text for part in (*sentences, *reviews) for row in part]
    everything += [word for lexicon in lexicons.values() for word in lexicon.valences]
    seen = {word for text in everything for word in words(text)}
    # Every word that somebody wrote: what is in none of the texts counts as no word.
    known = frozenset(part for word in seen for part in word.split("'"))
    return Task(
        demonstrations=[
            demonstration(row)
            for row in sentences.demonstrations
            if len(row.text.split()) <= LONGEST_DEMONSTRATION
        ],
        prompts={
            **review_prompts(reviews.text, sentences),
            "validation": prompts_of(row.text for row in sentences.validation),
            "evaluation": prompts_of(row.text for row in sentences.evaluation),
        },
        corpora=corpora,
        heldout=heldout,
        gold=GoldScorer(train(sentences.gold, reviews.gold), known, GOLD),
        judges=make_judges(train(sentences.judge, reviews.judge), lexicons),
        metrics=no_metrics,
        baselines={},
        words=words,
    )


def build_negative(data_dir: Path) -> Task:
    """The same with every prompt asking for a negative review; the demonstrations show both."""
    task = build(data_dir)
    turned = {
        name: [NEGATIVE + prompt.removeprefix(POSITIVE) for prompt in prompts]
        for name, prompts in task.prompts.items()
    }
    return task._replace(prompts=turned)


# --- splits ---------------------------------------------------------------------------------------


def prefix(text: str) -> str:
    """A sentence's first words, which a prompt shows."""
    return " ".join(text.split()[:PREFIX_WORDS])


def not_quoted(rows: Sequence[Labelled], reviews: Sequence[Labelled]) -> list[Labelled]:
    """The sentences that are not also a line of a review: the two sets overlap a little."""
    lines = {normalised(line) for review in reviews for line in review.text.splitlines()}
    return [row for row in rows if normalised(row.text) not in lines]


def split_sentences(rows: Sequence[Labelled]) -> Sentences:
    """Sentences with one prefix stay together, so that no evaluation prompt was ever seen."""
    parts = Sentences([], [], [], [], [])
    for row in sorted(rows, key=lambda row: share(row.text, "order")):
        place = share(prefix(row.text), "sentence")
        if place < EVALUATION:
            parts.evaluation.append(row)
        elif place < EVALUATION + VALIDATION:
            parts.validation.append(row)
        elif is_demonstration(row.text) and share(row.text, "demonstration") >= SCORERS:
            parts.demonstrations.append(row)
        else:
            gold = share(row.text, "scorer") < GOLD_SENTENCES
            (parts.gold if gold else parts.judge).append(row)
    return parts


def is_demonstration(text: str) -> bool:
    """Whether a sentence begins with a prompt and is as long as an answer should be."""
    return is_prompt(prefix(text)) and len(text.split()) in DEMONSTRATION_LENGTHS


def is_prompt(start: str) -> bool:
    """Whether first words say enough: three of them, at most one of which is punctuation."""
    return len(start.split()) == PREFIX_WORDS and len(words(start)) >= PREFIX_WORDS - 1


def split_reviews(rows: Sequence[Labelled]) -> Reviews:
    """Whole reviews by what they serve: scorers, held-out text, or text to learn from."""
    parts = Reviews([], [], [], [])
    for row in sorted(rows, key=lambda row: share(row.text, "order")):
        place = share(row.text, "review")
        if place < GOLD_REVIEWS:
            parts.gold.append(row)
        elif place < GOLD_REVIEWS + JUDGE_REVIEWS:
            parts.judge.append(row)
        elif place < GOLD_REVIEWS + JUDGE_REVIEWS + HELDOUT_REVIEWS:
            parts.heldout.append(row)
        else:
            parts.text.append(row)
    # Some reviews were sent in twice, a little changed.
    heldout = without_leaks([row.text for row in parts.text], parts.heldout, lambda row: row.text)
    return parts._replace(heldout=heldout)


# --- prompts and demonstrations -------------------------------------------------------------------


def demonstration(row: Labelled) -> Demonstration:
    """The sentence, cut after its prefix, as an answer to the instruction that it fulfils."""
    start = prefix(row.text)
    asked = INSTRUCTION.format(sentiment="positive" if row.positive else "negative")
    return Demonstration(asked + start, " " + " ".join(row.text.split()[PREFIX_WORDS:]))


def prompts_of(texts: Iterable[str]) -> list[str]:
    """Each distinct prefix once, with the instruction to be positive, in the order of the texts."""
    starts = dict.fromkeys(map(prefix, texts))
    return [POSITIVE + start for start in starts if is_prompt(start)]


def review_prompts(reviews: Sequence[Labelled], sentences: Sentences) -> dict[str, list[str]]:
    """Prompts for comparisons and for PPO: first words of the reviews' lines, two disjoint lists.

    Those with which any labelled sentence begins are left out.
    """
    taken = {normalised(prefix(row.text)) for part in sentences for row in part}
    lines = [line for row in reviews for line in row.text.splitlines()]
    starts = {prefix(line) for line in lines if len(line.split()) in DEMONSTRATION_LENGTHS}
    free = sorted(
        (s for s in starts if normalised(s) not in taken), key=lambda s: share(s, "order")
    )
    first = [start for start in free if share(start, "prompt") < 0.5]
    second = [start for start in free if share(start, "prompt") >= 0.5]
    return {"comparisons": prompts_of(first), "ppo": prompts_of(second)}


# --- files and training ---------------------------------------------------------------------------


def read_labelled(folder: Path) -> list[Labelled]:
    """Texts with their labels, ``pos`` or ``neg``; a text that occurs twice is read once."""
    rows = {}
    for file in find_files(folder):
        for where, row in read_rows(file):
            if row.get("label") not in ("pos", "neg"):
                raise InputError(f"{where}: label is {row.get('label')!r}, expected 'pos' or 'neg'")
            lines = [" ".join(line.split()) for line in _text(where, row).splitlines()]
            text = "\n".join(line for line in lines if line)
            rows.setdefault(normalised(text), Labelled(text, row["label"] == "pos"))
    return list(rows.values())


def train(sentences: Sequence[Labelled], reviews: Sequence[Labelled]) -> TextClassifier:
    """A classifier of sentences that learnt from long reviews too."""
    texts, labels = zip(*sentences, *reviews, strict=True)
    weights = np.repeat([1.0, REVIEW_WEIGHT], [len(sentences), len(reviews)])
    # Calibrated on sentences, which is what it will judge; a review has many words to be sure by.
    return learn(texts, labels, weights, calibrate_on=len(sentences))


def _text(where: Origin, row: dict) -> str:
    if not isinstance(row.get("text"), str):
        raise InputError(f"{where}: expected a string under the key 'text'")
    return row["text"]
