"""A reward model that reads the words of the answer and nothing else: the bar to be cleared."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rlhf_jax.data.chat import as_text
from rlhf_jax.data.formats import Comparison
from rlhf_jax.text.classifier import learn_vocabulary, logistic_regression, terms, tfidf

LOSS_WEIGHT = 1.0
MIN_COUNT = 2


def train_answer_words(rows: Sequence[Comparison]):
    """``rows -> scores [P, K]`` (NaN where absent), fitted on ``rows``.

    Bradley-Terry on tf-idf of the answers' words and word pairs: P(i above j) = σ(w·(x_i − x_j)),
    L2-regularised; each prompt weighs the same, as in the ranking loss.
    """
    answers = [terms(as_text(text)) for row in rows for text in row.responses]
    vocabulary, idf = learn_vocabulary(answers, min_count=MIN_COUNT)
    x = tfidf(answers, vocabulary, idf)
    better, worse, weights, start = [], [], [], 0
    for row in rows:
        ranks = np.array(row.ranks)
        i, j = np.nonzero(ranks[:, None] < ranks[None, :])
        better += (start + i).tolist()
        worse += (start + j).tolist()
        weights += [1 / len(i)] * len(i)
        start += len(ranks)
    w = logistic_regression(
        x[better] - x[worse], np.ones(len(better), bool), np.array(weights), LOSS_WEIGHT, bias=False
    )[0]

    def score(rows: Sequence[Comparison]) -> Float[np.ndarray, "P K"]:
        texts = [terms(as_text(text)) for row in rows for text in row.responses]
        flat = tfidf(texts, vocabulary, idf) @ w
        scores = np.full((len(rows), max(len(row.ranks) for row in rows)), np.nan)
        at = 0
        for n, row in enumerate(rows):
            scores[n, : len(row.ranks)] = flat[at : at + len(row.ranks)]
            at += len(row.ranks)
        return scores

    return score
