"""A linear classifier of short texts, and the word lists that judge next to it. NumPy and SciPy.

Everything here counts *words*: runs of letters and digits, lower-cased, with inner apostrophes.
Punctuation is not counted, so it earns nothing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return WORD.findall(text.lower())


def terms(text: str) -> list[str]:
    """Words and pairs of neighbouring words."""
    in_order = words(text)
    return in_order + [f"{first} {second}" for first, second in pairwise(in_order)]


class TextClassifier(NamedTuple):
    """P(positive | text) = σ(logit), logit = bias + Σ_t w_t x_t over the text's distinct terms.

    x_t = idf_t / √(Σ_u idf_u²): binary tf-idf of unit length. Another positive word therefore adds
    less the longer the text is, and a word said twice adds nothing.
    """

    vocabulary: dict[str, int]
    idf: Float[np.ndarray, "F"]
    weights: Float[np.ndarray, "F"]
    bias: float

    def logits(self, texts: Sequence[str]) -> Float[np.ndarray, "B"]:
        """log-odds that each text is positive; the bias if it has no known term."""
        x = tfidf([terms(text) for text in texts], self.vocabulary, self.idf)
        return x @ self.weights + self.bias


def tfidf(
    terms_of_each: Sequence[Iterable[str]], vocabulary: dict[str, int], idf: Float[np.ndarray, "F"]
) -> "scipy.sparse.csr_array":
    """Row b holds idf_t of the distinct known terms of text b, scaled to unit length."""
    rows = [{vocabulary[term] for term in text if term in vocabulary} for text in terms_of_each]
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((column for row in rows for column in row), np.int64, ends[-1])
    values = idf[columns]
    row_of = np.repeat(np.arange(len(rows)), np.diff(ends))
    # bincount adds in order: with reduceat the last bit would depend on the texts beside it.
    lengths = np.sqrt(np.bincount(row_of, values**2, len(rows)))
    return scipy.sparse.csr_array(
        (values / lengths[row_of], columns, ends), (len(rows), len(vocabulary))
    )


def learn_vocabulary(
    terms_of_each: Sequence[Iterable[str]], *, min_count: int
) -> tuple[dict[str, int], Float[np.ndarray, "F"]]:
    """Columns of the terms that ``min_count`` texts or more have, and their idf.

    idf_t = ln((1 + n) / (1 + n_t)) + 1 for n texts, n_t of which have the term.
    """
    counts = Counter(term for text in terms_of_each for term in set(text))
    kept = sorted(term for term, count in counts.items() if count >= min_count)
    # Smoothed as if one more text had every term, so that no idf is 0 or infinite.
    idf = np.log((1 + len(terms_of_each)) / (1 + np.array([counts[term] for term in kept]))) + 1
    return {term: column for column, term in enumerate(kept)}, idf


def train_classifier(
    texts: Sequence[str],
    labels: Sequence[bool],
    weights: Float[np.ndarray, "B"],
    *,
    loss_weight: float,
    min_count: int,
    calibrate_on: int,
    folds: int,
) -> TextClassifier:
    """L2-regularised logistic regression on tf-idf: min C Σ_b v_b log(1 + e^{−z_b}) + ½|w|².

    z_b is the logit of text b, negated if its label is negative; v_b its weight; C ``loss_weight``.
    Terms in fewer than ``min_count`` texts are dropped. Deterministic.

    The logits are honest for texts like the first ``calibrate_on``: each fold of these is scored by
    a regression that did not see its labels, and Platt's slope and offset (1999), fitted on those
    scores, go into the weights of the final one.
    """
    terms_of_each = [terms(text) for text in texts]
    vocabulary, idf = learn_vocabulary(terms_of_each, min_count=min_count)
    x, is_positive = tfidf(terms_of_each, vocabulary, idf), np.asarray(labels)

    def fit(rows: np.ndarray) -> tuple[np.ndarray, float]:
        return logistic_regression(x[rows], is_positive[rows], weights[rows], loss_weight)

    number, everyone = np.arange(len(texts)), np.ones(len(texts), bool)
    unseen = np.empty(calibrate_on)
    for k in range(folds):
        out = (number < calibrate_on) & (number % folds == k)
        w, bias = fit(~out)
        # Scores of its own training texts would be too sure, and so would what is fitted on them.
        unseen[np.flatnonzero(out)] = x[out] @ w + bias
    slope, offset = calibrate(unseen, is_positive[:calibrate_on])
    w, bias = fit(everyone)
    return TextClassifier(vocabulary, idf, slope * w, slope * bias + offset)


def calibrate(logits: Float[np.ndarray, "B"], labels: Bool[np.ndarray, "B"]) -> tuple[float, float]:
    """Slope a and offset b for which σ(a·logit + b) fits the labels best (Platt 1999)."""
    # A weak prior: with separable labels the slope would otherwise run to infinity.
    w, offset = logistic_regression(logits[:, None], labels, np.ones(len(logits)), 1000.0)
    return float(w[0]), offset


def logistic_regression(
    x, labels, weights, loss_weight: float, *, bias: bool = True
) -> tuple[Float[np.ndarray, "F"], float]:
    """Weights and bias (0 without one), by Newton's method with conjugate gradients from zero."""
    signs = np.where(labels, 1.0, -1.0)

    def objective(parameters):
        w, offset = parameters[:-1], parameters[-1]
        z = signs * (x @ w + offset)
        slope = -loss_weight * weights * signs * scipy.special.expit(-z)
        value = loss_weight * (weights * np.logaddexp(0, -z)).sum() + (w**2).sum() / 2
        return value, np.append(x.T @ slope + w, bias * slope.sum())

    def hessian_times(parameters, vector):
        z = x @ parameters[:-1] + parameters[-1]
        curvature = loss_weight * weights * scipy.special.expit(z) * scipy.special.expit(-z)
        along = curvature * (x @ vector[:-1] + vector[-1])
        return np.append(x.T @ along + vector[:-1], bias * along.sum())

    best = scipy.optimize.minimize(
        objective,
        np.zeros(x.shape[1] + 1),
        jac=True,
        hessp=hessian_times,
        method="trust-ncg",
        options={"gtol": 1e-3},
    ).x
    return best[:-1], float(best[-1])
