"""How good a reward model is at telling what people preferred, and how much of it is length.

Everything is over pairs (better, worse) of one prompt. Pairs of a prompt hang together, and so do
rows of one document or instruction: every interval is clustered by ``groups`` (each row its own
where none are given). Needs scores, lengths and ranks only: any reward model, or none.
"""

from collections.abc import Sequence

import numpy as np
import scipy
from jaxtyping import Float, Int, Num

from rlhf_jax.evaluation.metrics import Interval, calibration
from rlhf_jax.evaluation.pairs import ordered_pairs, right

QUARTERS = 4


def clustered_mean(values: Float[np.ndarray, "N"], cluster: Int[np.ndarray, "N"]) -> Interval:
    """Mean over pairs with a 95 % interval over clusters.

    The ratio estimator's variance, Σ_p (Σ_{i∈p} (v_i − v̄))² · m / (m − 1) / n², m clusters p, n
    pairs: it is the usual one where each cluster has one pair, and larger where its pairs agree.
    """
    values, (_, index) = np.asarray(values, float), np.unique(cluster, return_inverse=True)
    n = len(values)
    if n == 0:
        return {"mean": float("nan"), "ci": float("nan"), "n": 0}
    mean = values.mean()
    sums = np.bincount(index, values - mean)
    m = len(sums)
    half = float("nan")
    if m > 1:
        deviation = np.sqrt((sums**2).sum() * m / (m - 1)) / n
        half = scipy.stats.t.ppf(0.975, m - 1) * deviation
    return {"mean": float(mean), "ci": float(half), "n": n}


def accuracy(
    scores: Float[np.ndarray, "P K"],
    ranks: Int[np.ndarray, "P K"],
    groups: Sequence[str] | None = None,
) -> Interval:
    """Share of the ordered pairs that the scores order as people did; equal scores count 1/2."""
    pairs = ordered_pairs(ranks, groups)
    return clustered_mean(right(pairs.margins(scores)), pairs.group)


def advantage(
    scores: Float[np.ndarray, "P K"],
    others: Float[np.ndarray, "P K"],
    ranks: Int[np.ndarray, "P K"],
    groups: Sequence[str] | None = None,
) -> Interval:
    """Accuracy of ``scores`` less that of ``others`` on the same pairs.

    Paired: an interval above 0 says better, also where the two accuracies' own intervals overlap.
    """
    pairs = ordered_pairs(ranks, groups)
    gained = right(pairs.margins(scores)) - right(pairs.margins(others))
    return clustered_mean(gained, pairs.group)


def audit(
    scores: Float[np.ndarray, "P K"],
    lengths: Num[np.ndarray, "P K"],
    ranks: Int[np.ndarray, "P K"],
    subsets: Sequence[str],
    groups: Sequence[str] | None = None,
) -> dict:
    """The table of one reward model on one set; ``lengths`` in any unit, ``subsets`` by prompt."""
    pairs = ordered_pairs(ranks, groups)
    margins, hits = pairs.margins(scores), right(pairs.margins(scores))
    ratio = pairs.margins(np.log1p(lengths))

    def mean(chosen: np.ndarray) -> Interval:
        return clustered_mean(hits[chosen], pairs.group[chosen])

    reliability = calibration(scores, ranks)
    names = np.array(subsets)[pairs.prompt]
    return {
        "accuracy": clustered_mean(hits, pairs.group),
        "always_longer": clustered_mean(right(ratio), pairs.group),
        "by_margin": by_quarter(np.abs(margins), hits, pairs.group),
        "by_length": {
            "preferred is shorter": mean(ratio < 0),
            "as long": mean(ratio == 0),
            "preferred is longer": mean(ratio > 0),
        },
        "by_length_difference": by_quarter(np.abs(ratio), hits, pairs.group),
        "by_subset": {str(name): mean(names == name) for name in dict.fromkeys(names)},
        "ece": reliability.ece,
        "calibration": [
            {"predicted": p, "observed": o, "count": n}
            for p, o, n in zip(*reliability[1:], strict=True)
            if n
        ],
        "length_bias": length_bias(scores, lengths, ranks, groups),
        "variance": score_variance(scores, ranks, groups),
    }


def by_quarter(by: np.ndarray, hits: np.ndarray, group: np.ndarray) -> list[dict]:
    """Accuracy in each quarter of the pairs, from the smallest value of ``by`` to the largest."""
    order = np.argsort(by, kind="stable")
    return [
        {"from": float(by[part].min()), "to": float(by[part].max())}
        | clustered_mean(hits[part], group[part])
        for part in np.array_split(order, QUARTERS)
        if len(part)
    ]


def length_bias(
    scores: Float[np.ndarray, "P K"],
    lengths: Num[np.ndarray, "P K"],
    ranks: Int[np.ndarray, "P K"],
    groups: Sequence[str] | None = None,
) -> dict:
    """How often model and people take the longer answer, and how far apart they are.

    ``correlation`` is of score and log length within prompts. ``excess`` is the model's share less
    people's share on the same pairs: above 0, the model likes length more than people do.
    """
    pairs = ordered_pairs(ranks, groups)
    ratio = pairs.margins(np.log1p(lengths))
    different = ratio != 0
    people = (ratio > 0).astype(float)[different]
    margins = pairs.margins(scores)
    # Turned from better and worse to longer and shorter: which of the two the model takes.
    model = right(margins * np.sign(ratio))[different]
    group = pairs.group[different]
    return {
        "people_take_longer": clustered_mean(people, group),
        "model_takes_longer": clustered_mean(model, group),
        "excess": clustered_mean(model - people, group),
        "correlation": within_correlation(scores, np.log1p(lengths), ranks),
    }


def score_variance(
    scores: Float[np.ndarray, "P K"],
    ranks: Int[np.ndarray, "P K"],
    groups: Sequence[str] | None = None,
) -> dict:
    """The reward's variance under what sampled the answers: within prompts, and between them.

    ``within`` is E_x Var_{y ~ π(·|x)} r(x, y): the unbiased variance over a prompt's answers (s² of
    K ≥ 2), a mean over prompts. Where it is small the objective is flat around the policy, however
    right the reward model is (Razin et al. 2025). ``between``, the variance of the prompts' means,
    moves no policy gradient: what the K answers' spread adds to it, s² / K, is taken off. ``share``
    is within / (within + between).
    """
    here = np.asarray(ranks) >= 0
    rows = here.sum(axis=1) > 1
    number = here[rows].sum(axis=1)
    drawn = np.where(here[rows], np.asarray(scores, float)[rows], 0.0)
    means = drawn.sum(axis=1) / np.maximum(number, 1)
    squares = np.where(here[rows], (drawn - means[:, None]) ** 2, 0.0).sum(axis=1)
    variances = squares / np.maximum(number - 1, 1)
    cluster = np.arange(len(here))
    if groups is not None:
        _, cluster = np.unique(np.asarray(groups), return_inverse=True)
    within, between = clustered_mean(variances, cluster[rows]), float("nan")
    if len(means) > 1:
        # Unbiased, and so at times below 0, where no variance lies.
        between = max(float(means.var(ddof=1) - (variances / number).mean()), 0.0)
    total = within["mean"] + between
    share = within["mean"] / total if total > 0 else float("nan")
    return {"within": within, "between": between, "share": share}


def within_correlation(
    x: Float[np.ndarray, "P K"], y: Float[np.ndarray, "P K"], ranks: Int[np.ndarray, "P K"]
) -> float:
    """Pearson's correlation after each prompt's mean is taken off; NaN without any variation."""
    here = np.asarray(ranks) >= 0
    count = np.maximum(here.sum(axis=1, keepdims=True), 1)
    centred = []
    for values in (x, y):
        values = np.where(here, values, 0.0)
        mean = values.sum(axis=1, keepdims=True) / count
        centred.append(np.where(here, values - mean, 0.0))
    a, b = centred
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


def length_coefficient(lengths: Num[np.ndarray, "P K"], ranks: Int[np.ndarray, "P K"]) -> float:
    """b that best explains the labels by length alone: P(i above j) = σ(b log(len_i / len_j)).

    As the ranking loss, each prompt weighs the same. Between −20 and 20.
    """
    pairs = ordered_pairs(ranks)
    ratio = pairs.margins(np.log1p(lengths))
    weights = 1 / np.bincount(pairs.prompt, minlength=len(lengths))[pairs.prompt]

    def loss(b: float) -> float:
        return (weights * np.logaddexp(0, -b * ratio)).sum()

    # Bounded, as no finite b is best where people always take the longer answer.
    return float(scipy.optimize.minimize_scalar(loss, bounds=(-20, 20), method="bounded").x)


def tie_margins(
    margins_of_ties: Float[np.ndarray, "N"], margins_of_pairs: Float[np.ndarray, "M"]
) -> dict[str, float]:
    """Whether the model is less sure where people said *equal*.

    Mean confidence σ(|margin|) on ties and on pairs, and the probability that a random pair's
    |margin| is above a random tie's (1/2: the model cannot tell).
    """
    ties, pairs = np.abs(margins_of_ties), np.abs(margins_of_pairs)
    auc = scipy.stats.mannwhitneyu(pairs, ties).statistic / (len(pairs) * len(ties))
    return {
        "confidence_on_ties": float(scipy.special.expit(ties).mean()),
        "confidence_on_pairs": float(scipy.special.expit(pairs).mean()),
        "pairs_above_ties": float(auc),
    }
