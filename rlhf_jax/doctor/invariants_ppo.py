"""What must hold in every iteration of PPO, before and after its update."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rlhf_jax.doctor.invariants import (
    Finding,
    at_most,
    largest_gap,
    relative_gap,
    share_at_least,
)

# --- log-probabilities ----------------------------------------------------------------------------


def ratio_is_one(
    new_logprobs: Float[np.ndarray, "B R"],
    logprobs: Float[np.ndarray, "B R"],
    mask: Bool[np.ndarray, "B R"],
    *,
    bound: float | int,
) -> Finding:
    """max |π/π_old − 1| in the loss of the first minibatch, when nothing has been learnt yet."""
    ratio = np.exp(np.where(mask, new_logprobs - logprobs, 0.0).astype(float))
    return at_most(
        "ratio is 1 at the first minibatch",
        largest_gap(ratio, np.ones_like(ratio), mask),
        bound,
        "the loss and the rollout differ in temperature, dropout, mask or padding; if only "
        "rounding differs: --recompute-logprobs True",
    )


def kl_to_self_is_zero(
    logprobs: Float[np.ndarray, "B R"],
    ref_logprobs: Float[np.ndarray, "B R"],
    mask: Bool[np.ndarray, "B R"],
    *,
    bound: float | int,
) -> Finding:
    """max over episodes of Σ |log π − log π_ref|, the reference being the policy itself."""
    gap = np.where(mask, logprobs.astype(float) - ref_logprobs, 0.0)
    return at_most(
        "KL(π ‖ π) is 0, nats per episode",
        np.abs(gap).sum(axis=1).max(),
        bound,
        "policy and reference are not scored alike: same temperature, same mask, no dropout",
    )


def sampler_agrees_with_trainer(
    sampled: Float[np.ndarray, "B R"],
    scored: Float[np.ndarray, "B R"],
    mask: Bool[np.ndarray, "B R"],
    *,
    bound: float | int,
) -> Finding:
    """max |log π of the sampler − log π of a forward pass|, at the sampling temperature."""
    return at_most(
        "sampler's log-probs = trainer's",
        largest_gap(sampled, scored, mask),
        bound,
        "sampler and trainer differ: temperature, filters (top-k, top-p), cache or precision",
    )


def samples_follow_the_policy(
    logprobs: Float[np.ndarray, "B R"],
    entropies: Float[np.ndarray, "B R"],
    mask: Bool[np.ndarray, "B R"],
    *,
    bound: float | int,
) -> Finding:
    """|z| of the mean of −log π(yₜ) − H(π(·|y₍<ₜ₎)), which is 0 for tokens drawn from π.

    A martingale's increments, so z = Σ d / √(Σ d²) is about standard normal.
    """
    surprise = (-logprobs.astype(float) - entropies)[mask]
    return at_most(
        "samples follow π (|z|)",
        abs(surprise.sum()) / np.sqrt((surprise**2).sum()),
        bound,
        "tokens are drawn from another distribution: temperature, filters or a used key",
    )


# --- the score ------------------------------------------------------------------------------------

Score = Callable[[np.ndarray, np.ndarray], Any]
"""(tokens [B T], mask [B T]) -> scores [B]."""


def score_ignores_padding(
    score_of: Score,
    tokens: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    *,
    junk: Int[np.ndarray, "B T"],
    columns: int,
    bound: float | int,
) -> Finding:
    """Other ids on the padding, and ``columns`` more after the end, leave the score as it is."""
    spoilt = np.concatenate([np.where(mask, tokens, junk), junk[:, :columns]], axis=1)
    longer = np.pad(mask, [(0, 0), (0, columns)])
    scores = np.asarray(score_of(tokens, mask))
    return at_most(
        "score ignores the padding",
        relative_gap(score_of(spoilt, longer), scores, np.ones(len(scores), bool)),
        bound,
        "the score is read on padding, or padding is attended to: read it at last_index(mask)",
    )


def score_reads_the_last_token(
    score_of: Score,
    tokens: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    *,
    vocab_size: int,
    least: float | int,
) -> Finding:
    """Another last real token moves every score by over ``least`` of the scores' deviation."""
    rows, last = np.arange(len(tokens)), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    other = tokens.copy()
    other[rows, last] = (tokens[rows, last] + 1) % vocab_size
    scores = np.asarray(score_of(tokens, mask), float)
    moved = np.abs(np.asarray(score_of(other, mask)) - scores) > least * scores.std()
    return share_at_least(
        "score reads the last token",
        int(moved.sum()),
        len(moved),
        1,
        "the score is read before the end of text: padding must have an id of its own, and the "
        "mask must include the end of text",
    )


# --- rewards --------------------------------------------------------------------------------------


def rewards_sum_to_the_objective(
    rewards: Float[np.ndarray, "B R"],
    scores: Float[np.ndarray, "B"],
    logprobs: Float[np.ndarray, "B R"],
    ref_logprobs: Float[np.ndarray, "B R"],
    mask: Bool[np.ndarray, "B R"],
    *,
    kl_coef: float | int,
    bound: float | int,
) -> Finding:
    """max |Σₜ rₜ − (score − β Σₜ (log π − log π_ref))|, and no reward on padding."""
    kl = np.where(mask, logprobs.astype(float) - ref_logprobs, 0.0).sum(axis=1)
    total = np.where(mask, rewards, 0.0).sum(axis=1, dtype=float)
    lost = np.where(mask, 0.0, rewards)
    return at_most(
        "rewards sum to score − β KL",
        max(np.abs(total - (scores - kl_coef * kl)).max(), np.abs(lost).max()),
        bound,
        "a score lands on padding or twice, or the KL term has another sign or mask",
    )


def fractions_survive(
    returns: Float[np.ndarray, "B"],
    expected: Float[np.ndarray, "B"],
    *,
    bound: float | int,
) -> Finding:
    """A score of 0.3 is still 0.3, less β KL, in the return of the first token (γ = λ = 1)."""
    return at_most(
        "a score of 0.3 stays 0.3",
        np.abs(returns.astype(float) - expected).max(),
        bound,
        "rewards pass through an integer array, such as zeros_like(tokens): give it float32",
    )


# --- the update -----------------------------------------------------------------------------------

Leaves = Sequence[np.ndarray]


def distance(first: Leaves, second: Leaves) -> float:
    """‖first − second‖ / ‖second‖ over all arrays together; NaN if ``second`` is all zeros."""

    def norm(arrays: Leaves) -> float:
        return float(np.sqrt(sum((a.astype(float) ** 2).sum() for a in arrays)))

    gap = norm([a.astype(float) - b for a, b in zip(first, second, strict=True)])
    return float(gap / norm(second)) if norm(second) else float("nan")


def chunks_change_nothing(chunked: Leaves, whole: Leaves, *, bound: float | int) -> Finding:
    """Gradients summed over micro-batches of unequal length are those of the whole batch."""
    return at_most(
        "micro-batches = whole batch",
        distance(chunked, whole),
        bound,
        "divide by the count of the whole batch once, not each micro-batch by its own",
    )


def devices_change_nothing(
    several: Leaves, one: Leaves, *, number: int, bound: float | int
) -> Finding:
    """One step of plain gradient descent moves the parameters alike on 1 and on N devices."""
    return at_most(
        f"1 device = {number} devices",
        distance(several, one),
        bound,
        "a mean is taken per device: sum over devices, then divide by the global count",
    )


def only_the_policy_moved(
    frozen_before: str, frozen_after: str, policy_moved: float | int
) -> Finding:
    """After an update the digest of reference and reward model is the same, and π is another."""
    same = frozen_before == frozen_after
    return Finding(
        "an update leaves the reference",
        f"{'same' if same else 'changed'}; policy {policy_moved:.2g}",
        "same; > 0",
        same and policy_moved > 0,
        "reference and policy share arrays: copy the parameters into the training state"
        if not same
        else "the policy got no gradient or no learning rate: look at optim.lr and advantages",
    )
