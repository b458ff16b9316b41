"""What real people preferred: six public sets as ranked comparisons, split by what hangs together.

| name | who judged what | split by |
| --- | --- | --- |
| ``pref_hh_harmless`` | crowd workers: the less harmful of two answers in a dialogue | first turn |
| ``pref_pandalm`` | three annotators: the better of two answers to an instruction | instruction |
| ``rank_mqm_wmt23_zh_en`` | translators, three each: errors in up to 10 translations | document |
| ``honesty_truthfulqa`` | people: true and false answers to a question | question |
| ``pref_llmbar`` | experts: the answer that follows the instruction; evaluation only | - |
| ``rank_scitldr_informativeness`` | readers: what a paper's summary tells; evaluation only | - |

Prompts have the form in which the tasks ask: a user's message, ``Chinese: … English:``, an abstract
and ``TL;DR:``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.formats import Comparison
from rlhf_jax.data.splits import parts, read_fields, share, without_fold
from rlhf_jax.tasks import summary_prompt, translation_prompt
from rlhf_jax.tasks.instructions import as_prompt

SHARES = {"train": 0.85, "heldout": 0.15}
MOST_OF_A_KIND = 4
"""True and false answers that a question of TruthfulQA keeps: K is at most 8."""


class Preferences(NamedTuple):
    """One set of human judgements."""

    train: list[Comparison]
    """Empty for a set that is for evaluation only."""
    heldout: list[Comparison]
    subsets: list[str]
    """Of each held-out row, for a table by subset."""
    groups: list[str]
    """Of each held-out row: the document, dialogue, instruction or question that it is of."""
    ties: list[Comparison]
    """Held-out pairs that people called equal."""
    agreement: float | None
    """How often two of the set's labelers, working apart, order a pair alike (pairs that both
    order strictly); None where each was labelled once. A model that knew everybody's taste but
    not this labeler's could hardly do better on single labels."""


class Fold(NamedTuple):
    """What a cross-validation holds out: part ``number`` of ``folds``."""

    number: int
    folds: int


class Judged(NamedTuple):
    """A comparison, with what it hangs together with and the part of its set."""

    comparison: Comparison
    group: str
    subset: str = "all"


def is_name(path: Path) -> bool:
    """Whether a data argument names one of the sets rather than a file."""
    # A file of that name is meant, where there is one.
    return str(path) in SETS and not Path(path).exists()


def load_preferences(name: str, source: Path, fold: Fold | None = None) -> Preferences:
    """The set of this name under ``source``, in its own split or with a fold of it held out.

    All of it is held out if it is for evaluation.
    """
    judged, agreement = SETS[name](Path(source) / name)
    if name in EVALUATION_ONLY:
        train, heldout = [], judged
    elif fold is not None:
        # By group: another answer to the same question would tell the model what is held out.
        train, heldout = without_fold(judged, lambda row: row.group, *fold, name)
    else:
        split = parts(judged, lambda row: row.group, SHARES, name)
        train, heldout = split["train"], split["heldout"]
    # Ties order nothing, but tell whether a model is unsure where people are.
    ordered = [row for row in heldout if not is_tied(row.comparison)]
    return Preferences(
        [row.comparison for row in train if not is_tied(row.comparison)],
        [row.comparison for row in ordered],
        [row.subset for row in ordered],
        [row.group for row in ordered],
        [row.comparison for row in heldout if is_tied(row.comparison)],
        agreement,
    )


def as_pairs(rows: Sequence[Comparison]) -> list[Comparison]:
    """Every strictly ordered pair as a comparison of its own: what InstructGPT warns of (§3.5).

    The pairs of one prompt then meet in different updates, and each response is seen up to K − 1
    times an epoch.
    """
    pairs = []
    for row in rows:
        for i, j in combinations(range(len(row.ranks)), 2):
            if row.ranks[i] != row.ranks[j]:
                ranks = (0, 1) if row.ranks[i] < row.ranks[j] else (1, 0)
                tokens = row.tokens and (row.tokens[i], row.tokens[j])
                pair = (row.responses[i], row.responses[j])
                pairs.append(Comparison(row.prompt, pair, ranks, tokens, row.origin))
    return pairs


# --- the sets -------------------------------------------------------------------------------------

Read = tuple[list[Judged], float | None]
"""Rankings, those without an order too, and how often two labelers agree."""


def is_tied(comparison: Comparison) -> bool:
    """Whether people preferred none of the answers."""
    return len(set(comparison.ranks)) == 1


def hh_harmless(folder: Path) -> Read:
    """Anthropic's dialogues: the more harmless of two answers (Bai et al. 2022)."""
    rows = read_fields(folder, "prompt", "chosen", "rejected")
    judged = [
        Judged(Comparison(prompt, (chosen, rejected), (0, 1)), prompt.split("\n\nAssistant:")[0])
        for prompt, chosen, rejected in rows
    ]
    return judged, None


def pandalm(folder: Path) -> Read:
    """PandaLM's test set: answers to instructions, judged by three people (Wang et al. 2023)."""

    def text_of(instruction: str, material: str) -> str:
        return f"{instruction}\n\n{material}" if material else instruction

    judged = []
    fields = ("instruction", "input", "chosen", "rejected")
    for instruction, material, chosen, rejected in read_fields(folder / "pairs.jsonl", *fields):
        text = text_of(instruction, material)
        pair = (f" {chosen}", f" {rejected}")
        judged.append(Judged(Comparison(as_prompt(text), pair, (0, 1)), text))
    fields = ("instruction", "input", "response1", "response2")
    for instruction, material, first, second in read_fields(folder / "ties.jsonl", *fields):
        text = text_of(instruction, material)
        pair = (f" {first}", f" {second}")
        judged.append(Judged(Comparison(as_prompt(text), pair, (0, 0)), text))
    names = ("pairs", "ties")
    votes = [row for name in names for row in read_fields(folder / f"{name}.jsonl", "votes")]
    sign = {0: 0, 1: 1, 2: -1}  # the first answer is as good, better, worse
    orders = [np.array([[sign[vote]] for vote in row]) for (row,) in votes]
    return judged, pairwise_agreement(orders)


def mqm(folder: Path) -> Read:
    """Translations of WMT 2023, Chinese to English, ranked by the errors that raters marked."""
    judged, orders = [], []
    for document, chinese, responses in read_fields(folder, "doc", "prompt", "responses"):
        ranks = [response["rank"] for response in responses]
        texts = tuple(" " + response["text"] for response in responses)
        if len(set(ranks)) > 1:
            prompt = translation_prompt.prompt_of(chinese)
            judged.append(Judged(Comparison(prompt, texts, dense(ranks)), document))
        # Equal texts of several systems were merged with their ratings: who gave which is lost.
        rated = [r["rater_scores"] for r in responses if len(r["rater_scores"]) == 3]
        if len(rated) > 1:
            orders.append(differences(np.array(rated, float).T))
    return judged, pairwise_agreement(orders)


def dense(ranks: Sequence[int]) -> tuple[int, ...]:
    """0, 0, 2 as 0, 0, 1: the files count those before, a comparison counts places."""
    order = sorted(set(ranks))
    return tuple(map(order.index, ranks))


def truthfulqa(folder: Path) -> Read:
    """Answers to TruthfulQA's questions, the true before the false (Lin et al. 2022)."""
    answers = defaultdict(lambda: ([], []))
    path = folder / "judged_answers.jsonl"
    for question, answer, truthful in read_fields(path, "question", "answer", "truthful"):
        kind = answers[question][0 if truthful else 1]
        if answer not in kind:
            kind.append(answer)
    judged = []
    for question, kinds in answers.items():
        # A text that was judged both ways says nothing.
        both = set(kinds[0]) & set(kinds[1])
        # By hash, so that which answers a question keeps does not depend on their order in the
        # file.
        kept = [sorted(set(kind) - both, key=lambda a: share(a, "answer")) for kind in kinds]
        true, false = (kind[:MOST_OF_A_KIND] for kind in kept)
        if true and false:
            texts = tuple(f" {answer}" for answer in [*true, *false])
            ranks = (0,) * len(true) + (1,) * len(false)
            judged.append(Judged(Comparison(as_prompt(question), texts, ranks), question))
    return judged, None


def llmbar(folder: Path) -> Read:
    """LLMBar: one of two answers does as asked, the other may seem to (Zeng et al. 2023)."""
    rows = read_fields(folder, "subset", "prompt", "chosen", "rejected")
    judged = [
        Judged(
            Comparison(as_prompt(prompt), (f" {chosen}", f" {rejected}"), (0, 1)), prompt, subset
        )
        for subset, prompt, chosen, rejected in rows
    ]
    return judged, None


def scitldr(folder: Path) -> Read:
    """Up to six summaries of a paper, by how many of six kinds of information each carries."""
    judged = []
    for abstract, responses in read_fields(folder, "prompt", "responses"):
        ranks = [response["rank"] for response in responses]
        if len(set(ranks)) > 1:
            prompt = summary_prompt.prompt_of(abstract)
            texts = tuple(f" {response['text']}" for response in responses)
            judged.append(Judged(Comparison(prompt, texts, dense(ranks)), prompt))
    return judged, None


SETS: dict[str, Callable[[Path], Read]] = {
    "pref_hh_harmless": hh_harmless,
    "pref_pandalm": pandalm,
    "rank_mqm_wmt23_zh_en": mqm,
    "honesty_truthfulqa": truthfulqa,
    "pref_llmbar": llmbar,
    "rank_scitldr_informativeness": scitldr,
}
"""By the folder's name, which is what the command line knows."""
EVALUATION_ONLY = ("pref_llmbar", "rank_scitldr_informativeness")


# --- agreement ------------------------------------------------------------------------------------


def differences(scores: np.ndarray) -> np.ndarray:
    """[rater, pair]: which response of each pair a rater scores higher, as 1, 0 or −1."""
    i, j = np.triu_indices(scores.shape[1], 1)
    return np.sign(scores[:, i] - scores[:, j])


def pairwise_agreement(orders: Sequence[np.ndarray]) -> float:
    """Share of (two raters, pair) that both order strictly which they order alike."""
    products = np.concatenate([product for order in orders for product in rater_pairs(order)])
    return float((products > 0).sum() / (products != 0).sum())


def rater_pairs(order: np.ndarray) -> Iterator[np.ndarray]:
    """For each two raters, 1 where they order a pair alike, −1 where otherwise, 0 at a tie."""
    for a, b in combinations(range(len(order)), 2):
        yield order[a] * order[b]
