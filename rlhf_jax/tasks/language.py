"""Language modelling: books, encyclopedia, Shakespeare and a Chinese novel, in bits per byte.

Pretraining, SFT and PPO-ptx show what alignment costs on each text (the evaluation's table of
losses). So that the chain can run: a prompt is the beginning of a passage, a demonstration how the
author went on, and the gold score −bits per byte of the answer under a byte 5-gram model of text
that nothing else learns from, less a penalty for repeated words (repetition is likely, and dull).
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.splits import parts, passages, read_fields, share, shuffled
from rlhf_jax.evaluation.metrics import mean_ci, repeated_ngram_rate, repeated_word_rate
from rlhf_jax.tasks.task import Figure, Judge, Task
from rlhf_jax.text.ngrams import NgramModel, train_ngrams
from rlhf_jax.text.segments import mixed_tokens

FOLDERS = {
    "gutenberg": "text_gutenberg",
    "wikipedia": "text_wikipedia",
    "shakespeare": "text_tinyshakespeare",
    "novel": "text_zh_novels",
}
HELDOUT = 0.08
ORDER = 5
SCORERS = 0.2
"""Share of the text's passages that the gold scorer (half) and the judge (half) learn from."""
SHARES = {"demonstrations": 0.6, "comparisons": 0.2, "ppo": 0.2}
"""Of the sentences long enough to be cut in two."""
HELDOUT_SHARES = {"validation": 0.25, "evaluation": 0.75}
"""Of those of the held-out passages."""
PROMPT, ANSWER = 60, 160
"""In bytes: where a sentence is cut, at the next word, and how long the rest may be."""
REPEATED = 3.0
"""Bits per byte that a text of nothing but repeated words loses."""
SENTENCE = re.compile(r"(?<=[.!?][\"'”]|[.!?][ \n])|(?<=[。！？])")


def build(source: Path) -> Task:
    """Read and split. Deterministic. Raises InputError for missing or wrong files."""
    source = Path(source)
    corpora, heldout = {}, {}
    for name, folder in FOLDERS.items():
        corpora[name], heldout[name] = passages(source / folder, heldout=HELDOUT, salt="passage")
    # WikiText-2 has splits of its own; those that are here are its validation and test parts.
    corpora["wikitext2"], heldout["wikitext2"] = (
        [text for (text,) in read_fields(source / "text_wikitext2" / f"{part}.txt", "text")]
        for part in ("valid", "test")
    )
    everything = [text for texts in corpora.values() for text in texts]
    apart = {text for text in everything if share(text, "scorer") < SCORERS}
    corpora = {name: [t for t in texts if t not in apart] for name, texts in corpora.items()}
    scorers = [
        [text for text in everything if text in apart and (share(text, "half") < 0.5) == half]
        for half in (True, False)
    ]
    gold, judge = (train_ngrams(texts, order=ORDER) for texts in scorers)

    def cuts(sets: dict[str, list[str]]) -> list[tuple[str, str]]:
        return [cut for texts in sets.values() for text in texts for cut in cut_sentences(text)]

    split = parts(cuts(corpora), lambda cut: cut[0], SHARES, "sentence")
    known = {prompt for prompt, _ in cuts(corpora)}
    unknown = [cut for cut in cuts(heldout) if cut[0] not in known]
    split |= parts(unknown, lambda cut: cut[0], HELDOUT_SHARES, "sentence")
    return Task(
        demonstrations=[Demonstration(*cut) for cut in split["demonstrations"]],
        prompts={
            name: list(dict.fromkeys(prompt for prompt, _ in split[name]))
            for name in split
            if name != "demonstrations"
        },
        corpora=corpora,
        heldout=heldout,
        gold=make_ngram_judge(gold),
        judges={"other_ngrams": make_ngram_judge(judge)},
        metrics=make_metrics(gold),
        baselines={"same_end": make_same_end(split["demonstrations"])},
        words=mixed_tokens,
    )


def cut_sentences(text: str) -> list[tuple[str, str]]:
    """(beginning, rest) of each sentence that is neither too short nor too long."""
    cuts = []
    for piece in SENTENCE.split(text):
        piece = re.sub(r"\s+", " ", piece).strip()
        if PROMPT < len(piece.encode()) <= PROMPT + ANSWER:
            at = len(piece.encode()[: PROMPT // 2].decode(errors="ignore"))
            space = piece.find(" ", at)
            # Chinese has no spaces: there a sentence is cut between any two characters.
            cut = space if 0 < space < len(piece) - 1 and piece[:at].isascii() else at
            cuts.append((piece[:cut], piece[cut:]))
    return cuts


def make_ngram_judge(model: NgramModel) -> Judge:
    """−bits per byte of the response after its prompt − 3 · repeated words; −8 if it is empty."""

    def score(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        bits = response_bits(model, prompts, responses)
        repeated = [repeated_word_rate(mixed_tokens(response)) for response in responses]
        return -bits - REPEATED * np.array(repeated)

    return score


def response_bits(
    model: NgramModel, prompts: Sequence[str], responses: Sequence[str]
) -> Float[np.ndarray, "B"]:
    """Bits per byte of each response after its prompt."""
    pairs = zip(prompts, responses, strict=True)
    return np.array([model.bits_per_byte(r.rstrip(), prompt) for prompt, r in pairs])


def make_metrics(model: NgramModel):
    """Figures of responses: bits per byte of an n-gram model, and how much they repeat."""

    def metrics(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Figure]:
        trigrams = [repeated_ngram_rate(mixed_tokens(response), 3) for response in responses]
        return {
            "ngram_bits_per_byte": mean_ci(response_bits(model, prompts, responses)),
            "repeated_trigrams": mean_ci(trigrams),
        }

    return metrics


def make_same_end(cuts: Sequence[tuple[str, str]]):
    """A person's rest of another sentence, drawn by a hash: fluent, and about something else."""
    ends = [rest for _, rest in shuffled(cuts, lambda cut: cut[0])]
    return lambda prompts: [ends[int(share(p, "baseline") * len(ends))] for p in prompts]
