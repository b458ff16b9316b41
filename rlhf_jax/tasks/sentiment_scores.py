"""Who judges a review: the gold scorer that stands for people, and judges that never label.

All of them read the same text: the words that the prompt gave and the response, as one document.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.metrics import non_word_rate, repeated_word_rate
from rlhf_jax.tasks.task import Judge
from rlhf_jax.text.classifier import TextClassifier, words

INSTRUCTION = "Write a {sentiment} review: "
"""What a prompt begins with; the first words of the review follow. {sentiment} is positive or
negative."""
POSITIVE, NEGATIVE = (INSTRUCTION.format(sentiment=s) for s in ("positive", "negative"))
SENTENCE_ENDS = tuple(".!?…\"')]")


def split_prompt(prompt: str) -> tuple[float, str]:
    """(sign of the sentiment asked for, first words of the review). Raises InputError."""
    for sign, start in ((1.0, POSITIVE), (-1.0, NEGATIVE)):
        if prompt.startswith(start):
            return sign, prompt.removeprefix(start)
    raise InputError(f"prompt {prompt!r}: expected it to begin with {POSITIVE!r} or {NEGATIVE!r}")


def full_text(prompt: str, response: str) -> str:
    """The review that gold scorer and judges read: the prompt's first words, then the response.

    Nothing is put between them: a response that begins without a space goes on with the last word.
    """
    return split_prompt(prompt)[1] + response


def full_texts(prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
    """The review that each prompt and its response make together."""
    return [full_text(*pair) for pair in zip(prompts, responses, strict=True)]


class GoldWeights(NamedTuple):
    """What the simulated person minds, in units in which sentiment runs from −1 to 1."""

    repeated: float
    """Per share of words that occurred before in the text."""
    non_words: float
    """Per share of words that occur nowhere in the data."""
    too_short: float
    """For a response without any word; falls linearly to 0 at ``min_words``."""
    min_words: int
    unfinished: float
    """For a text that does not end as a sentence does."""


class GoldScorer(NamedTuple):
    """A person's liking: gold = ±(2σ(z) − 1) − Σ penalties, z the calibrated logit of the review.

    The sign is − where the prompt asks for a negative review. Sentiment saturates, penalties do
    not: past some point, more praise costs more than it brings.
    """

    classifier: TextClassifier
    known_words: frozenset[str]
    weights: GoldWeights

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        """tanh(z / 2) of the classifier, signed by what the prompt asks for, less the penalties."""
        signs = np.array([split_prompt(prompt)[0] for prompt in prompts])
        texts = full_texts(prompts, responses)
        # 2σ(z) − 1 = tanh(z / 2)
        sentiment = np.tanh(self.classifier.logits(texts) / 2)
        return signs * sentiment - np.array(list(map(self.penalty, texts, responses)))

    def penalty(self, text: str, response: str) -> float:
        """What is taken off for how the text is written, whatever it says; >= 0."""
        w = self.weights
        return (
            w.repeated * repeated_word_rate(words(text))
            + w.non_words * self.non_word_rate(text)
            + w.too_short * max(0.0, 1 - len(words(response)) / w.min_words)
            + w.unfinished * (not text.rstrip().endswith(SENTENCE_ENDS))
        )

    def non_word_rate(self, text: str) -> float:
        """Share of the words, split at apostrophes, that are not known."""
        parts = [part for word in words(text) for part in word.split("'")]
        return non_word_rate(parts, self.known_words)


class Lexicon(NamedTuple):
    """Words with their valence; a text's sum counts every occurrence."""

    valences: dict[str, float]

    def sums(self, texts: Sequence[str]) -> Float[np.ndarray, "B"]:
        """Sum of the valences of the words of each text; unknown words have none."""
        get = self.valences.get
        return np.array([sum(get(word, 0.0) for word in words(text)) for text in texts], float)


def read_lexicons(folder: Path) -> dict[str, Lexicon]:
    """VADER, AFINN and Hu and Liu's opinion words. Raises InputError for a file that is wrong."""
    hu_liu = dict.fromkeys(_lines(folder / "opinion_positive.txt"), 1.0)
    hu_liu |= dict.fromkeys(_lines(folder / "opinion_negative.txt"), -1.0)
    return {
        "vader": Lexicon(_valences(folder / "vader_lexicon.txt")),
        "hu_liu": Lexicon(hu_liu),
        "afinn": Lexicon(_valences(folder / "afinn_111.txt")),
    }


def make_judges(classifier: TextClassifier, lexicons: dict[str, Lexicon]) -> dict[str, Judge]:
    """Judges by name, larger is more positive. A mean of the first and the last two is a share.

    classifier, hu_liu, afinn: 1 if positive, 0 if negative, 1/2 if undecided.
    vader: s / √(s² + 15) of the sum s of valences (Hutto and Gilbert 2014), without its rules for
    negation, degree and punctuation.
    """

    def judge(score: Callable[[list[str]], np.ndarray], scale: Callable) -> Judge:
        return lambda prompts, responses: scale(score(full_texts(prompts, responses)))

    def share(x: np.ndarray) -> np.ndarray:
        return (1 + np.sign(x)) / 2

    return {
        "classifier": judge(classifier.logits, share),
        "vader": judge(lexicons["vader"].sums, lambda s: s / np.sqrt(s**2 + 15)),
        "hu_liu": judge(lexicons["hu_liu"].sums, share),
        "afinn": judge(lexicons["afinn"].sums, share),
    }


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a word list: {error}") from error


def _valences(file: Path) -> dict[str, float]:
    valences = {}
    for number, line in enumerate(_lines(file), 1):
        try:
            word, valence = line.split("\t")[:2]
            valences[word.lower()] = float(valence)
        except ValueError:
            raise InputError(
                f"{file}, line {number}: found {line!r}, expected a word, a tab and a number"
            ) from None
    return valences
