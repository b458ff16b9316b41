"""Who won when people judged: each policy against the first, by the ranks of its answers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.chat import as_text
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.metrics import mean_ci, win_rate
from rlhf_jax.evaluation.significance import wins_and_ties
from rlhf_jax.feedback.figures import agreement
from rlhf_jax.feedback.labels import Label

SCORERS = {"gold": "the gold scorer", "score": "the reward model"}
"""Whose order of the answers is held against people's: figure of an evaluation's samples → name."""


class Answer(NamedTuple):
    """What a policy answered to a prompt, and what scorers say of it."""

    text: str
    scores: Mapping[str, float]
    """By scorer."""


Answers = Mapping[str, Mapping[str, Answer]]
"""prompt → policy → what it answered; every prompt has the same policies in the same order."""


def verdict(answers: Answers, labels: Sequence[Label]) -> dict[str, Any]:
    """Win rates by people, how far they agree, and how far each scorer sides with them.

    On a prompt a policy's lead is the mean over labelers of sign(rank of the first policy's answer
    − rank of its own); it wins where that is positive, and what is drawn at random is the prompt.
    Equal answers tie without being asked about, on the prompts up to the last one that has a label
    (labelers get them in order). Raises InputError for labels of other answers, or none.
    """
    rankings: dict[str, list[dict[str, int]]] = defaultdict(list)
    labels = [label for label in labels if label.kind == "ranking"]
    for label in labels:
        texts = [as_text(response.text) for response in label.task.responses]
        known = {response.text for response in answers.get(label.task.prompt, {}).values()}
        if known != set(texts):
            raise InputError(
                f"task {label.task.id} ({label.task.prompt[:40]!r}): its answers are not those of "
                "the evaluation, expected labels of what `ask` put into this store"
            )
        rankings[as_text(label.task.prompt)].append(
            dict(zip(texts, label.body["ranks"], strict=True))
        )
    if not rankings:
        raise InputError("no label yet: open the page and rank some answers")
    last = max(n for n, prompt in enumerate(answers) if prompt in rankings)
    judged = {
        prompt: policies
        for n, (prompt, policies) in enumerate(answers.items())
        if prompt in rankings or (n <= last and is_settled(policies))
    }
    first, *others = next(iter(judged.values()))

    def leads(policy: str) -> np.ndarray:
        pairs = {prompt: (row[policy], row[first]) for prompt, row in judged.items()}
        return np.array([lead(rankings[prompt], *pair) for prompt, pair in pairs.items()])

    everyone, _ = agreement(labels)
    return {
        "baseline": first,
        "prompts": len(judged),
        "rankings": len(labels),
        "labelers": len({label.labeler for label in labels}),
        "agreement": {"mean": everyone.share, "ci": everyone.half_width, "n": everyone.pairs},
        "policies": {policy: compare(leads(policy)) for policy in others},
        "scorers": {name: siding(name, judged, rankings) for name in SCORERS},
    }


def is_settled(policies: Mapping[str, Answer]) -> bool:
    """Whether all policies said the same, so that nobody need be asked."""
    return len({answer.text for answer in policies.values()}) == 1


def lead(rankings: Sequence[Mapping[str, int]], own: Answer, other: Answer) -> float:
    """Mean sign over labelers, in [−1, 1]; 0 for equal answers."""
    if own.text == other.text:
        return 0.0
    return float(np.mean([np.sign(ranks[other.text] - ranks[own.text]) for ranks in rankings]))


def compare(leads: np.ndarray) -> dict[str, Any]:
    """The win rate of leads over prompts, with wins, ties and a sign test."""
    zeros = np.zeros_like(leads)
    return {"win_rate": win_rate(leads, zeros) | wins_and_ties(leads, zeros)}


def siding(scorer: str, judged: Answers, rankings: Mapping) -> dict[str, float]:
    """Share of the pairs that people order which the scorer orders alike, equal scores half.

    The mean over prompts of each prompt's share.
    """
    shares = []
    for prompt, policies in judged.items():
        alike = []
        for own, other in combinations(policies.values(), 2):
            people = lead(rankings[prompt], own, other)
            if people:
                scores = own.scores[scorer] - other.scores[scorer]
                alike.append((1 + np.sign(scores) * np.sign(people)) / 2)
        if alike:
            shares.append(np.mean(alike))
    return mean_ci(shares) if shares else {"mean": float("nan"), "ci": float("nan"), "n": 0}
