"""Laws of over-optimisation: gold as a function of the distance d = √KL, fitted to a curve.

Gao et al. 2022, eq. 1 and 2, found d (α − β d) for best-of-n and d (α − β ln d) for reinforcement
learning. A law is worth something where it has not been fitted: ``heldout_error`` fits it below a
distance and measures its error beyond. NumPy and SciPy only.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

Distances = Float[np.ndarray, "n"]
"""Along a curve."""


class Law(NamedTuple):
    """A form with two coefficients, 0 at d = 0."""

    formula: str
    gold: Callable[[Distances, float, float], Distances]
    """Gold over the start's, of d, α and β."""
    linear: bool
    """In α and β, so that least squares has one solution."""


def _quadratic(d: Distances, alpha: float, beta: float) -> Distances:
    return d * (alpha - beta * d)


def _logarithmic(d: Distances, alpha: float, beta: float) -> Distances:
    # d ln d goes to 0 with d.
    return alpha * d - beta * scipy.special.xlogy(d, d)


def _saturating(d: Distances, alpha: float, beta: float) -> Distances:
    return alpha * (1 - np.exp(-beta * d))


LAWS: Mapping[str, Law] = MappingProxyType(
    {
        "quadratic": Law("d (α − β d)", _quadratic, linear=True),
        "logarithmic": Law("d (α − β ln d)", _logarithmic, linear=True),
        "saturating": Law("α (1 − exp(−β d))", _saturating, linear=False),
    }
)
"""The law of best-of-n, that of reinforcement learning, and one that never turns."""


def fit(law: Law, d: Distances, gold: Distances) -> tuple[float, float]:
    """α and β of the least squares fit to gold over the start's at distances ``d`` ≥ 0.

    NaN of both for fewer than three points, or where no fit is found.
    """
    if len(d) < 3:
        return float("nan"), float("nan")
    if law.linear:
        design = np.stack([law.gold(d, 1.0, 0.0), law.gold(d, 0.0, 1.0)], axis=1)
        (alpha, beta), *_ = np.linalg.lstsq(design, gold, rcond=None)
        return float(alpha), float(beta)
    # It starts where the curve's end is nearly the asymptote.
    start = (float(gold[d.argmax()]), 2.0 / float(d.max()))
    try:
        (alpha, beta), _ = scipy.optimize.curve_fit(
            law.gold, d, gold, start, bounds=([-np.inf, 0.0], np.inf), maxfev=5000
        )
    except RuntimeError:
        return float("nan"), float("nan")
    return float(alpha), float(beta)


def heldout_error(law: Law, d: Distances, gold: Distances, *, share: float = 0.6) -> float:
    """Root mean square error beyond ``share`` of the largest distance, of the fit to those below.

    NaN where there are no three points below or none beyond.
    """
    below = d <= share * d.max()
    if below.all():
        return float("nan")
    predicted = law.gold(d[~below], *fit(law, d[below], gold[below]))
    return float(np.sqrt(np.mean((predicted - gold[~below]) ** 2)))


class Turn(NamedTuple):
    """Where gold is highest along a curve, and what is lost after."""

    kl: float
    """Nats at which the smoothed curve is highest."""
    gold: float
    lost: float
    """Highest less last, of the smoothed curve: 0 where it has not turned."""


def turn(kl: Distances, gold: Distances, *, window: int = 1) -> Turn:
    """The highest point of a curve in the order of its KL, as the mean of ``window`` neighbours.

    The mean takes away noise, of which the highest of many noisy points would be made.
    """
    order = np.argsort(kl, kind="stable")
    kernel = np.ones(min(window, len(order))) / min(window, len(order))
    x, y = (np.convolve(v[order], kernel, mode="valid") for v in (kl, gold))
    top = int(y.argmax())
    return Turn(float(x[top]), float(y[top]), float(y[top] - y[-1]))
