"""Labelers: whoever ranks K responses to a prompt. People use the page; here is a simulated one.

The simulated labeler is noisy on purpose. Its noise is set so that two of them, working apart,
order a pair alike as often as InstructGPT's labelers did (72.6 %, Ouyang et al. 2022, §3.4).
Needs neither JAX nor a model.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np
import scipy
from jaxtyping import Float

from rlhf_jax.errors import InputError

Score = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "B"]]
"""``(prompts, responses) -> scores``, higher is better."""


@runtime_checkable
class Labeler(Protocol):
    """Ranks the responses to one prompt: 0 is best, equal ranks are ties."""

    def rank(self, prompt: str, responses: Sequence[str]) -> list[int]:
        """The rank of each response, 0 the best; equal ranks are ties."""
        ...


class SimulatedLabeler:
    """Ranks by utility = score / τ + Gumbel noise: Plackett-Luce, Bradley-Terry for any two.

    P(i above j) = σ((score_i − score_j) / τ − w), w = ``tie_width``; if neither is above the other
    by more than w, they tie. Identical responses meet identical noise, so they tie too. Ties join
    up: if a ties with b and b with c, all three share a rank.

    The noise follows from seed, prompt and response alone, and not from the order of calls or of
    responses: the same task gets the same answer after a resume, in a batch or permuted. (So the
    same response meets the same noise in another task of the same prompt: one person's taste.)
    """

    def __init__(self, score: Score, *, tau: float, tie_width: float, seed: int):
        if not tau > 0 or not tie_width >= 0:
            raise InputError(f"tau={tau} must be > 0 and tie_width={tie_width} must be >= 0")
        self.score, self.tau, self.tie_width, self.seed = score, tau, tie_width, seed

    def rank(self, prompt: str, responses: Sequence[str]) -> list[int]:
        """The rank of each response, 0 the best; equal ranks are ties."""
        return self.rank_many([prompt], [responses])[0]

    def rank_many(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> list[list[int]]:
        """``rank`` for each prompt, with one call of the scorer."""
        asked = [p for p, group in zip(prompts, responses, strict=True) for _ in group]
        answers = [answer for group in responses for answer in group]
        noise = [gumbel(self.seed, *pair) for pair in zip(asked, answers, strict=True)]
        utilities = np.asarray(self.score(asked, answers)) / self.tau + np.array(noise)
        ends = np.cumsum([len(group) for group in responses])
        tasks = np.split(utilities, ends[:-1]) if len(ends) else []
        return [ranks_of(task, tie_width=self.tie_width) for task in tasks]


def gumbel(seed: int, prompt: str, response: str) -> float:
    """A draw from the standard Gumbel distribution that only the arguments decide."""
    # repr quotes its strings, so no two triples give one text.
    digest = hashlib.sha256(repr((seed, prompt, response)).encode()).digest()
    uniform = (int.from_bytes(digest[:6], "big") + 0.5) / 2**48
    return float(-np.log(-np.log(uniform)))


def ranks_of(utilities: Float[np.ndarray, "K"], *, tie_width: float) -> list[int]:
    """Dense ranks, 0 for the highest utility; neighbours within ``tie_width`` share one."""
    order = np.argsort(-utilities, kind="stable")
    steps = -np.diff(utilities[order]) > tie_width
    ranks = np.empty(len(order), int)
    ranks[order] = np.concatenate([[0], np.cumsum(steps)])
    return ranks.tolist()


# --- how much the noise costs ---------------------------------------------------------------------


def score_gaps(
    scores: Iterable[Float[np.ndarray, "_"]], responses: Iterable[Sequence[str]]
) -> Float[np.ndarray, "N"]:
    """|score_i − score_j| of every pair of responses to one prompt that labelers can order at all.

    Identical responses are left out: they tie whatever the noise.
    """
    return np.array(
        [
            abs(row[i] - row[j])
            for row, group in zip(scores, responses, strict=True)
            for i, j in combinations(range(len(group)), 2)
            if group[i] != group[j]
        ]
    )


def order_probabilities(
    gaps: Float[np.ndarray, "N"], *, tau: float, tie_width: float
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """P(labeled as the scores say) and P(labeled the other way round) of pairs so far apart.

    σ(±d − w), d = gap / τ. What is missing to 1 is the chance of a tie (but for ties that only
    join up through a third response).
    """
    d = np.asarray(gaps, float) / tau
    return scipy.special.expit(d - tie_width), scipy.special.expit(-d - tie_width)


def noise_ceiling(gaps: Float[np.ndarray, "N"], *, tau: float, tie_width: float) -> float:
    """Best possible expected share of strictly labeled pairs ordered as the labeler did.

    Σ max(p, q) / Σ (p + q), p and q from ``order_probabilities``; reached by the noiseless scores.
    Pairs of equal score count 1/2.
    """
    with_scores, against = order_probabilities(gaps, tau=tau, tie_width=tie_width)
    return float(with_scores.sum() / (with_scores + against).sum())


def expected_agreement(gaps: Float[np.ndarray, "N"], *, tau: float, tie_width: float) -> float:
    """Share of the pairs that two independent labelers both order strictly which they order alike.

    Σ (p² + q²) / Σ (p + q)², p and q from ``order_probabilities``.
    """
    p, q = order_probabilities(gaps, tau=tau, tie_width=tie_width)
    return float((p**2 + q**2).sum() / ((p + q) ** 2).sum())


def calibrate_tau(gaps: Float[np.ndarray, "N"], *, agreement: float, tie_width: float) -> float:
    """The noise τ at which two labelers agree at this rate on pairs that far apart.

    Raises InputError if no τ gives that rate: it must lie between 1/2, which is chance, and what
    labelers without noise would reach (below 1 if scores are equal).
    """
    if not len(gaps):
        raise InputError("no two responses to a prompt differ: there is nothing to rank")
    spread = max(gaps)

    def rate(log_tau: float) -> float:
        return expected_agreement(gaps, tau=np.exp(log_tau), tie_width=tie_width)

    # In log τ: its size follows from that of the scores, which may be any.
    low, high = (np.log(spread) + np.array([-20.0, 20.0])) if spread > 0 else (0.0, 0.0)
    if not rate(high) < agreement < rate(low):
        raise InputError(
            f"agreement={agreement}: labelers of these {len(gaps)} pairs of responses can agree "
            f"at rates between {rate(high):.3f} and {rate(low):.3f}, as "
            f"{np.mean(np.asarray(gaps) == 0):.0%} of the pairs have equal scores"
        )
    return float(
        np.exp(
            scipy.optimize.brentq(lambda log_tau: rate(log_tau) - agreement, low, high, xtol=1e-10)
        )
    )


def agreement(
    first: Labeler, second: Labeler, prompts: Sequence[str], responses: Sequence[Sequence[str]]
) -> float:
    """Share of the pairs that both labelers order strictly which they order alike; NaN if none."""
    alike = both = 0
    for prompt, group in zip(prompts, responses, strict=True):
        i, j = np.triu_indices(len(group), 1)
        a, b = (np.array(labeler.rank(prompt, group)) for labeler in (first, second))
        product = np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])
        alike += (product > 0).sum()
        both += (product != 0).sum()
    return float(alike / both) if both else float("nan")
