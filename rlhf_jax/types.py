"""Containers that cross rooms, and the dimension letters every shape in the project is written in.

B batch · Q query length · R response length · T = Q + R, or a block of text · V vocabulary
D model width · H heads · N layers · K compared responses of one query

Queries are left-padded and responses right-padded, so column Q of ``[query | response]`` is the
first response token of every row. A ``mask`` is True on real tokens; a response's mask is True up
to and including its first EOS. Containers are NamedTuples: JAX rebuilds them with other leaves
(shardings, specs, batches of batches) and a NamedTuple never objects.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

Params = Any
"""A nested dict of arrays, as Flax Linen makes it."""

Metrics = dict[str, Float[Array, ""]]


def as_leaf(array: np.ndarray) -> Any:
    """``array`` where a container says ``Array``: batches are NumPy until devices hold them."""
    return array


class TrainState(NamedTuple):
    """Everything an update step changes. Functions (model, optimizer) enter steps by closure."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema_params: Params | None
    """Exponential moving average of ``params`` in float32 or wider, or None when EMA is off."""


class LMBatch(NamedTuple):
    """Packed text. A row holds one or more documents, told apart by ``segment_ids``."""

    tokens: Int[Array, "*B T"]
    loss_mask: Bool[Array, "*B T"]
    """True where the token is a *target*: never on padding nor on a segment's first token."""
    segment_ids: Int[Array, "*B T"]
    """1, 2, ... per document in the row; 0 is padding."""
    positions: Int[Array, "*B T"]
    """Restart at 0 with every segment."""


class QueryBatch(NamedTuple):
    """Left-padded queries and where each came from."""

    queries: Int[Array, "*B Q"]
    query_mask: Bool[Array, "*B Q"]
    index: Int[Array, "*B"]
    """Row number in the data set, to find the prompt's text again."""


class ComparisonBatch(NamedTuple):
    """K ranked responses of each query; one query with all its pairs is one batch element."""

    queries: Int[Array, "*B Q"]
    query_mask: Bool[Array, "*B Q"]
    responses: Int[Array, "*B K R"]
    mask: Bool[Array, "*B K R"]
    ranks: Int[Array, "*B K"]
    """0 is best; equal ranks are ties; -1 marks an absent response (K is ragged)."""


class Generation(NamedTuple):
    """What sampling returns."""

    responses: Int[Array, "*B R"]
    mask: Bool[Array, "*B R"]
    logprobs: Float[Array, "*B R"]
    """log π(token) at the sampling temperature; 0 outside ``mask``."""


class Rollout(NamedTuple):
    """One batch of experience (episodes): what was asked, answered, and what it was worth."""

    queries: Int[Array, "*B Q"]
    query_mask: Bool[Array, "*B Q"]
    responses: Int[Array, "*B R"]
    mask: Bool[Array, "*B R"]
    logprobs: Float[Array, "*B R"]
    ref_logprobs: Float[Array, "*B R"]
    values: Float[Array, "*B R"] | None
    """None without a value network."""
    scores: dict[str, Float[Array, "*B"]]
    """What each reward says of the whole response, by the reward's name."""
    behaviour_logprobs: Float[Array, "*B R"] | None = None
    """Of the policy that sampled; None where it is the policy of ``logprobs``."""


class PPOBatch(NamedTuple):
    """What PPO's update reads: a rollout with advantages in place of rewards."""

    queries: Int[Array, "*B Q"]
    query_mask: Bool[Array, "*B Q"]
    responses: Int[Array, "*B R"]
    mask: Bool[Array, "*B R"]
    logprobs: Float[Array, "*B R"]
    ref_logprobs: Float[Array, "*B R"]
    values: Float[Array, "*B R"] | None
    advantages: Float[Array, "*B R"]
    returns: Float[Array, "*B R"] | None
    """What the value network learns; None without one."""
    weights: Float[Array, "*B R"] | None = None
    """Of each token in the policy loss (``token_weights``); None: all weigh the same."""
    kl_coef: Float[Array, "*B"] | None = None
    """β of the KL penalty in the loss, the same for all; None where it is in the reward."""


class KeptAnswers(NamedTuple):
    """What imitation reads: the answers that were kept, one of each prompt."""

    queries: Int[Array, "*B Q"]
    query_mask: Bool[Array, "*B Q"]
    responses: Int[Array, "*B R"]
    mask: Bool[Array, "*B R"]
    """False everywhere where no answer was better than another."""
