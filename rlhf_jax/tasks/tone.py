"""Tone: one sentence of a film's review, in whatever words, judged by how warm it is.

For a language model that is there already and follows instructions: there are no demonstrations and
no text to pretrain on. The gold score counts words of praise and blame (Hu and Liu's lexicon), less
the sentiment task's penalties for how an answer is written; the sentiment task's other judges, one
of which learnt from people's labels, read the same answers and rank nothing. The prompts are made
here, a kind of film about a subject; subjects, not prompts, are what is split, so that no film of
the evaluation is about anything that was trained on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.splits import shuffled
from rlhf_jax.tasks import sentiment
from rlhf_jax.tasks.sentiment_scores import POSITIVE, GoldScorer, Lexicon, read_lexicons
from rlhf_jax.tasks.task import Judge, Task

REQUEST = "Review {kind} about {subject} in one short sentence."

LEXICON = "hu_liu"
"""The gold score's; the other lexicons judge and rank nothing."""

KINDS = (
    *("a film", "a comedy", "a thriller", "a drama", "a horror film", "a western", "a war film"),
    *("a love story", "a documentary", "a musical", "a cartoon", "a detective film"),
)
SUBJECTS = {
    "comparisons": (
        *("two brothers", "an old teacher", "a lost dog", "a bank robbery", "a long journey"),
        *("a young painter", "a broken promise", "a family dinner", "a strike", "a stolen letter"),
        *("a lonely astronaut", "the end of a war", "a football team", "a night train"),
        *("a famous cook", "a court case", "a winter in the mountains", "a new neighbour"),
        *("a village school", "an actor who forgets his lines", "a stolen painting", "a zoo"),
        *("a blind musician", "a treasure map", "a bus driver", "a sinking ship", "an orchestra"),
        *("a rich aunt", "a desert island", "a nurse", "a poker game", "an abandoned factory"),
        *("a climbing accident", "a wedding dress", "a small airport", "a shepherd", "a library"),
        "a birthday party",
    ),
    "ppo": (
        *("a small town", "a lighthouse", "two sisters", "a road trip", "a piano"),
        *("a retired boxer", "a missing child", "a wedding", "a dishonest politician", "a circus"),
        *("a doctor on an island", "a chess player", "a flood", "a summer camp", "a taxi driver"),
        *("an inheritance", "a theatre on fire", "a secret garden", "a robot", "a fishing boat"),
    ),
    "validation": ("a violin", "a prison break", "a grandmother", "a lie", "a hotel"),
    "evaluation": (
        *("the sea", "a bakery", "an old bridge", "a spy", "a language teacher", "a snowstorm"),
        *("a radio station", "a horse", "twins", "a shop that closes", "a mountain guide"),
    ),
}
"""What the films of each set of prompts are about."""


def build(source: Path) -> Task:
    """Make the prompts, and the judges from ``source``. Deterministic."""
    task = sentiment.build(source)
    assert isinstance(task.gold, GoldScorer)
    lexicon = read_lexicons(Path(source) / "lexicons")[LEXICON]
    judges = {name: of_answers(judge) for name, judge in task.judges.items() if name != LEXICON}
    return task._replace(
        demonstrations=[],
        prompts={name: prompts_of(subjects) for name, subjects in SUBJECTS.items()},
        corpora={},
        heldout={},
        gold=Warmth(lexicon, task.gold),
        judges=judges,
    )


class Warmth(NamedTuple):
    """gold = s / √(s² + 1) − Σ penalties, s the words of praise less those of blame in an answer.

    The first of them count most: a second word of praise adds 0.19, a fourth 0.02.
    """

    lexicon: Lexicon
    reviewer: GoldScorer
    """Whose penalties these are: repeated words, words unheard of, no end, hardly any word."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        """Of each answer alone, whatever was asked."""
        sums = self.lexicon.sums(responses)
        penalties = [self.reviewer.penalty(text, text) for text in responses]
        return sums / np.sqrt(sums**2 + 1) - np.array(penalties)


def prompts_of(subjects: Sequence[str]) -> list[str]:
    """Every kind of film about every subject, in an order that only the texts decide."""
    asked = [REQUEST.format(kind=kind, subject=subject) for kind in KINDS for subject in subjects]
    return shuffled(asked)


def of_answers(judge: Judge) -> Judge:
    """A judge of reviews that reads the answer as the whole of a positive one."""

    def judged(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        return judge([POSITIVE] * len(prompts), responses)

    return judged
