"""Overlap with references that people wrote: ROUGE, BLEU and chrF of the published packages.

rouge-score and sacrebleu compute; here are the tokenizer that also cuts Chinese, the best of
several references, and intervals. Needs the extra ``eval``.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy
from jaxtyping import Float
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import Score
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU, CHRF

from rlhf_jax.text.segments import mixed_tokens

ROUGE = ("rouge1", "rouge2", "rougeL")
GROUPS = 20
"""Of sentences, in the jackknife behind the intervals of BLEU and chrF."""


class MixedTokenizer(Tokenizer):
    """``mixed_tokens``, without stemming.

    rouge-score's own tokenizer drops every character that is not a-z or 0-9: Chinese text would
    have no tokens and score 0 against itself.
    """

    def tokenize(self, text: str) -> list[str]:
        """Words of what is written with spaces, single characters of Chinese."""
        return mixed_tokens(text)


def rouge(
    responses: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.0
) -> dict[str, Float[np.ndarray, "B"]]:
    """F_β of ROUGE-1, -2 and -L (Lin 2004) of each response against its best reference.

    F_β = (1 + β²) · P · R / (β² · P + R): recall R counts β times as much as precision P.
    """
    scorer = RougeScorer(list(ROUGE), tokenizer=MixedTokenizer())
    rows = [
        [
            [f_beta(scores[name], beta) for name in ROUGE]
            for scores in _each(scorer, response, targets)
        ]
        for response, targets in zip(responses, references, strict=True)
    ]
    # The best reference for each measure by itself. Reshaped, as of no responses there is no row.
    best = np.array([np.max(row, axis=0) for row in rows]).reshape(-1, len(ROUGE))
    return dict(zip(ROUGE, best.T, strict=True))


def f_beta(score: Score, beta: float) -> float:
    """F_β of one ROUGE score; 0 where neither precision nor recall is above 0."""
    weighted = beta**2 * score.precision + score.recall
    return (1 + beta**2) * score.precision * score.recall / weighted if weighted else 0.0


def _each(scorer: RougeScorer, response: str, references: Sequence[str]) -> list[dict]:
    return [scorer.score(reference, response) for reference in references]


def sentence_chrf(
    responses: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, "B"]:
    """chrF₂ (Popović 2015) of each sentence, between 0 and 1."""
    metric = CHRF()
    pairs = zip(responses, references, strict=True)
    return np.array([metric.sentence_score(r, list(targets)).score / 100 for r, targets in pairs])


def corpus_overlap(
    responses: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, dict[str, float | str]]:
    """BLEU and chrF₂ of all sentences together, 0 to 100, with sacrebleu's signatures.

    ``ci`` is the half-width of a 95 % interval over sentences, by the jackknife over 20 groups of
    them (sacrebleu's own bootstrap fails where a resample scores exactly 0). Every sentence has
    the same number of references.
    """
    figures = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):

        def score(rows: Sequence[int], metric=metric) -> float:
            streams = zip(*(references[n] for n in rows), strict=True)
            chosen = [responses[n] for n in rows]
            return float(metric.corpus_score(chosen, list(map(list, streams))).score)

        everyone = range(len(responses))
        ci = jackknife_ci(score, len(responses)) if len(responses) > 1 else float("nan")
        figure = {"mean": score(everyone), "ci": ci, "n": len(responses)}
        figures[name] = figure | {"signature": metric.get_signature().format(short=False)}
    return figures


def jackknife_ci(score: Callable[[Sequence[int]], float], n: int) -> float:
    """t₀.₉₇₅,g₋₁ √((g − 1)/g Σ (θ₍ᵢ₎ − θ̄)²), θ₍ᵢ₎ the score without group i of g ≤ 20."""
    g = min(GROUPS, n)
    without = [score([k for k in range(n) if k % g != i]) for i in range(g)]
    spread = (g - 1) / g * np.sum((np.array(without) - np.mean(without)) ** 2)
    return float(scipy.stats.t.ppf(0.975, g - 1) * np.sqrt(spread))
