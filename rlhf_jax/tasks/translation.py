"""Translating Chinese into English: Tatoeba's everyday sentences, NTREX's news as a harder test.

Paraphrases and translations of one sentence hang together and stay on one side of the split; NTREX
is for evaluation only. The gold score is the sentence's chrF₂ against the best reference.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.splits import connected, normalised, parts, passages, read_fields
from rlhf_jax.evaluation.metrics import mean_ci
from rlhf_jax.evaluation.overlap import corpus_overlap, sentence_chrf
from rlhf_jax.tasks.references import References
from rlhf_jax.tasks.task import Figure, Judge, Task
from rlhf_jax.tasks.translation_prompt import chinese_of, prompt_of
from rlhf_jax.text.classifier import learn_vocabulary, tfidf
from rlhf_jax.text.duplicates import without_leaks
from rlhf_jax.text.segments import mixed_tokens

SHARES = {
    "demonstrations": 0.72,
    "comparisons": 0.12,
    "ppo": 0.12,
    "validation": 0.01,
    "evaluation": 0.03,
}
"""Of Tatoeba's groups of sentences that are translations of each other."""
HELDOUT = 0.05

Pair = tuple[str, str, int]
"""Chinese, English, and the group that the pair belongs to."""


def build(source: Path) -> Task:
    """Read and split. Deterministic. Raises InputError for missing or wrong files."""
    source = Path(source)
    pairs = read_pairs(source / "sft_tatoeba_zh_en")
    news = read_pairs(source / "sft_ntrex_zh_en")
    split = parts(pairs, lambda pair: str(pair[2]), SHARES, "translation")
    learnt = [pair for name in ("demonstrations", "comparisons", "ppo") for pair in split[name]]
    # Sentences that differ in punctuation only are in different groups.
    split["evaluation"] = without_leaks(
        [chinese for chinese, _, _ in learnt], split["evaluation"], lambda pair: pair[0]
    )
    answers = defaultdict(list)
    for chinese, english, _ in [*pairs, *news]:
        answers[prompt_of(chinese)].append(english)
    references = References(
        {prompt: tuple(translations) for prompt, translations in answers.items()}
    )
    prompts = {
        name: list(dict.fromkeys(prompt_of(chinese) for chinese, _, _ in split[name]))
        for name in SHARES
        if name != "demonstrations"
    }
    taken = {prompt for prompts_of_part in prompts.values() for prompt in prompts_of_part}
    # A sentence of the news may be an everyday one, and stand in another list already.
    prompts["news"] = [p for p in map(prompt_of, (row[0] for row in news)) if p not in taken]
    novel = passages(source / "text_zh_novels", heldout=HELDOUT, salt="passage")
    return Task(
        demonstrations=[
            Demonstration(prompt_of(chinese), " " + english)
            for chinese, english, _ in split["demonstrations"]
        ],
        prompts=prompts,
        corpora={
            "english": list(dict.fromkeys(english for _, english, _ in learnt)),
            "chinese": list(dict.fromkeys(chinese for chinese, _, _ in learnt)),
            "novel": novel[0],
        },
        heldout={
            "english": list(dict.fromkeys(english for _, english, _ in split["evaluation"])),
            "chinese": list(dict.fromkeys(chinese for chinese, _, _ in split["evaluation"])),
            "novel": novel[1],
        },
        gold=make_gold(references),
        judges={},
        metrics=make_metrics(references),
        baselines={"copy": copy, "memory": make_memory(split["demonstrations"])},
        words=mixed_tokens,
    )


def read_pairs(folder: Path) -> list[Pair]:
    """(Chinese, English, group): pairs that share a sentence, or a chain of them, are a group.

    A pair of NTREX belongs to its document.
    """
    rows = [(zh.strip(), en.strip()) for zh, en in read_fields(folder, "zh", "en")]
    # Of both languages: two Chinese sentences with one translation say the same.
    keys = [(("zh", normalised(zh)), ("en", normalised(en))) for zh, en in rows]
    return [(*row, group) for row, group in zip(rows, connected(keys), strict=True)]


def make_gold(references: References) -> Judge:
    """chrF₂ of each response against its best reference, between 0 and 1."""

    def gold(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "B"]:
        return sentence_chrf([r.strip() for r in responses], references.of(prompts))

    return gold


def make_metrics(references: References) -> Callable[..., dict[str, Figure]]:
    """BLEU and chrF with sacrebleu's signatures, and how often a reference is met exactly.

    Against each prompt's first reference, so that scores of several sets compare.
    """

    def metrics(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Figure]:
        answers = references.of(prompts)
        said = [response.strip() for response in responses]
        exact = [
            normalised(response) in map(normalised, references_of_one)
            for response, references_of_one in zip(said, answers, strict=True)
        ]
        overlap = corpus_overlap(said, [references_of_one[:1] for references_of_one in answers])
        return {**overlap, "exact": mean_ci(exact)}

    return metrics


def copy(prompts: Sequence[str]) -> list[str]:
    """The Chinese sentence itself: what a score is worth that needs no translation."""
    return [" " + chinese_of(prompt) for prompt in prompts]


def make_memory(pairs: Sequence[Pair]) -> Callable[[Sequence[str]], list[str]]:
    """A translation memory: the English of the demonstration whose Chinese is nearest.

    Nearest by cosine of tf-idf over characters and neighbouring pairs of them.
    """

    def terms(text: str) -> set[str]:
        return {*text, *(text[i : i + 2] for i in range(len(text) - 1))}

    sentences = [terms(chinese) for chinese, _, _ in pairs]
    vocabulary, idf = learn_vocabulary(sentences, min_count=1)
    memory = tfidf(sentences, vocabulary, idf)

    def nearest(prompts: Sequence[str]) -> list[str]:
        asked = tfidf([terms(chinese_of(prompt)) for prompt in prompts], vocabulary, idf)
        best = (asked @ memory.T).toarray().argmax(axis=1)
        return [" " + pairs[n][1] for n in best]

    return nearest
