"""What is learnt of a group of answers by comparing their returns: the best one, or who beats whom.

A group is the answers to one prompt, ``group_size`` rows that follow one another. Rows without a
real token count nowhere, and of a group that scores all alike nothing is learnt: no answer in it
is better than another.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.objectives.advantages import differing, in_groups
from rlhf_jax.objectives.masked import masked_mean
from rlhf_jax.types import KeptAnswers, Metrics

Pairs = Literal["best_worst", "all"]
"""Which answers of a group are compared (``compared``)."""


def extremes(
    returns: Float[Array, "G K"], present: Bool[Array, "G K"]
) -> tuple[Int[Array, "G"], Int[Array, "G"]]:
    """(the best, the worst) of each group's answers that are there; of equals the first."""
    # ±∞ keeps an absent answer from being the best, and from being the worst.
    best = jnp.argmax(jnp.where(present, returns, -jnp.inf), axis=1)
    return best, jnp.argmin(jnp.where(present, returns, jnp.inf), axis=1)


def best_rows(
    returns: Float[Array, "B"], mask: Bool[Array, "B R"], *, group_size: int
) -> tuple[Int[Array, "G"], Bool[Array, "G R"]]:
    """(the row with the highest return of each group, of equals the first; its mask).

    The mask is False everywhere of a group that scores all alike.
    """
    returns, present = in_groups(returns, mask, group_size)
    best, _ = extremes(returns, present)
    # From the place in a group to the row of the batch.
    rows = jnp.arange(len(best)) * group_size + best
    return rows, mask[rows] & differing(returns, present)


def compared(
    returns: Float[Array, "B"], mask: Bool[Array, "B R"], *, group_size: int, pairs: Pairs
) -> tuple[Int[Array, "G C"], Int[Array, "G C"]]:
    """(which rows of the batch are compared with one another, their ranks), group by group.

    all          C = K: every answer, and so every pair whose returns differ
    best_worst   C = 2: the best and the worst, of equals the first

    Rank 0 is the best, equal returns are equal ranks, and −1 marks what takes part in no pair: an
    answer that is absent, and with best_worst both of a group that scores all alike.
    """
    returns, present = in_groups(returns, mask, group_size)
    if pairs == "all":
        # An answer's rank is how many are better, so equal answers share one.
        better = (returns[:, None, :] > returns[:, :, None]) & present[:, None, :]
        inside, ranks = jnp.arange(group_size)[None], better.sum(axis=2)
    else:
        inside, ranks = jnp.stack(extremes(returns, present), axis=1), jnp.array([[0, 1]])
        present = differing(returns, present)
    rows = jnp.arange(len(returns))[:, None] * group_size + inside
    return rows, jnp.where(present, ranks, -1).astype(jnp.int32)


def selection_metrics(
    returns: Float[Array, "B"], mask: Bool[Array, "B R"], *, group_size: int
) -> Metrics:
    """The mean return of the best answers, and the share of groups that score all alike.

    The mean is over groups that have an answer.
    """
    returns, present = in_groups(returns, mask, group_size)
    best, _ = extremes(returns, present)
    highest = jnp.take_along_axis(returns, best[:, None], axis=1)[:, 0]
    return {
        "objective/best_reward": masked_mean(highest, present.any(axis=1)),
        "objective/zero_spread_groups": 1 - differing(returns, present).mean(dtype=returns.dtype),
    }


def imitation_loss(
    new_logprobs: Float[Array, "B R"],
    new_values: None,
    entropies: Float[Array, "B R"],
    batch: KeptAnswers,
    *,
    count: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """−(1/N) Σₜ log π(yₜ) of the answers that were kept, N their tokens.

    Expert iteration (Anthony et al. 2017), rejection-sampling fine-tuning, RAFT (Dong et al. 2023).
    """
    loss = masked_mean(-new_logprobs, batch.mask, count=count)
    mean_entropy = masked_mean(entropies, batch.mask, count=count)
    return loss, {
        "loss/policy_avg": loss,
        "policy/entropy_avg": jax.lax.stop_gradient(mean_entropy),
    }
