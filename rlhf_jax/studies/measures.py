"""Figures of an arm: what of an evaluation stands in a study's rows, and what follows from rows."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Figures = Mapping[str, float]
"""By name. What cannot be measured of an arm is left out."""
Curves = Mapping[str, Mapping[str, Sequence[float | int]]]
"""What was measured at several points. "training": each of ``Study.along``, iteration by iteration;
"best_of_n": n, KL, gold and score of the SFT model's best answers by the arm's reward model."""


class Measured(NamedTuple):
    """What is known of an arm after its evaluation."""

    arm: str
    policy: Mapping[str, Any]
    """Its row of the evaluation's summary: gold, kl, win_rate, length, judges, ..."""
    text: Mapping[str, float]
    """Its losses on held-out text; empty for best-of-n, which has no probabilities of text."""
    baseline_text: Mapping[str, float]
    """The same of the SFT model."""
    training: Mapping[str, Any]
    """Summary of the stage that trained it."""
    curves: Curves = MappingProxyType({})
    reward: Mapping[str, Any] = MappingProxyType({})
    """Figures on held-out comparisons of its chain's reward model; empty where it has none."""


class Result(NamedTuple):
    """What a row says of an arm in one seed."""

    figures: Figures
    curves: Curves = MappingProxyType({})


def standard_figures(m: Measured) -> dict[str, float]:
    """Gold score, KL, win rates, length and the alignment tax.

    ``gold_in_sd`` is the gain of gold over the SFT model's answers, in standard deviations of
    theirs; ``kl`` is measured, in nats from the SFT model, but of best-of-n the formula
    log n − (n − 1)/n; ``tax`` is the loss on held-out text over the SFT model's, in bits per byte,
    the mean over corpora.
    """
    p = m.policy
    figures = {
        "gold": p["gold"]["mean"],
        "kl": p["kl"]["mean"],
        "win_rate": p["win_rate"]["mean"],
        "win_rate_at_equal_length": p["win_rate_at_equal_length"]["mean"],
        "length": p["length"]["mean"],
    }
    if "gold_gain_in_sd" in p:
        figures["gold_in_sd"] = p["gold_gain_in_sd"]
    if "score" in p:
        figures["score"] = p["score"]["mean"]
    names = [name for name in m.text if name.endswith("/bits_per_byte")]
    if names:
        figures["tax"] = float(np.mean([m.text[name] - m.baseline_text[name] for name in names]))
    return figures


def no_more_figures(results: Mapping[str, Result]) -> dict[str, Figures]:
    """None but those that were measured."""
    return {arm: {} for arm in results}


def gold_over_curve(
    results: Mapping[str, Result], curve: Sequence[str], *, gold: str = "gold_in_sd"
) -> dict[str, Figures]:
    """``gold_at_kl``: an arm's gold less that of the curve's arms at the same KL, of one seed.

    Between two arms of the curve gold is linear in √KL, as in the law of Gao et al. 2022,
    gold = d (α − β d), d = √KL. An arm beyond the curve's ends has no such figure: nothing is
    extrapolated. Nor has an arm of the curve, where it would be 0 by construction.
    """
    figures = {arm: result.figures for arm, result in results.items()}
    # The SFT model's KL from itself is 0 but for rounding, and may be below.
    points = sorted(
        (max(figures[arm]["kl"], 0.0), figures[arm][gold]) for arm in curve if arm in figures
    )
    figures_of: dict[str, Figures] = {}
    for arm, own in figures.items():
        inside = len(points) > 1 and points[0][0] <= own["kl"] <= points[-1][0]
        if arm in curve or not inside:
            figures_of[arm] = {}
            continue
        d, golds = np.sqrt([kl for kl, _ in points]), [value for _, value in points]
        at_kl = float(np.interp(np.sqrt(own["kl"]), d, golds))
        figures_of[arm] = {"gold_at_kl": own[gold] - at_kl}
    return figures_of
