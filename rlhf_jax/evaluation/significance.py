"""Whether one policy is better than another on the same prompts, or only luckier."""

import numpy as np
import scipy
from jaxtyping import Float, Num

RESAMPLES = 5000
SEED = 0
"""The same data has the same interval."""

Scores = Num[np.ndarray, "P"] | Num[np.ndarray, "P n"]


def gaps_by_prompt(first: Scores, second: Scores) -> Float[np.ndarray, "P"]:
    """First − second on each prompt, of the mean over a prompt's responses where it has several."""
    means = (
        np.asarray(scores, float).reshape(len(scores), -1).mean(1) for scores in (first, second)
    )
    return np.subtract(*means)


def paired_bootstrap(first: Scores, second: Scores) -> dict[str, float | int]:
    """Mean of first − second over prompts, its 95 % interval, and two-sided p of no difference.

    Prompts are drawn with replacement, each with all its responses in both (the responses of a
    prompt are no independent evidence). Percentile interval; p = 2 min(P*(d ≤ 0), P*(d ≥ 0)), with
    one resample added on each side so that it is never 0.
    """
    gaps = gaps_by_prompt(first, second)
    n = len(gaps)
    rng = np.random.default_rng(SEED)
    # Counts of each prompt in each resample, so that memory stays [resamples, prompts].
    counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means = counts @ gaps / n
    low, high = np.quantile(means, [0.025, 0.975])
    sides = [((means <= 0).sum() + 1), ((means >= 0).sum() + 1)]
    return {
        "mean": float(gaps.mean()),
        "low": float(low),
        "high": float(high),
        "ci": float(high - low) / 2,
        "p": float(min(1.0, 2 * min(sides) / (RESAMPLES + 1))),
        "n": n,
    }


def wins_and_ties(first: Scores, second: Scores) -> dict[str, float | int]:
    """On how many prompts first is better, equal, worse; p of the two-sided exact sign test.

    The sign test leaves out ties: under no difference, wins are binomial with 1/2.
    """
    gaps = gaps_by_prompt(first, second)
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    decided = wins + losses
    p = float(scipy.stats.binomtest(wins, decided).pvalue) if decided else 1.0
    return {"wins": wins, "ties": len(gaps) - decided, "losses": losses, "p": p}
