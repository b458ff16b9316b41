"""DPO and its kin, wired: the log-probs of ranked responses, and a config's loss of them.

It is all the same whether the rankings are a file's or of responses sampled while it trains.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import PairLossConfig
from rlhf_jax.models.heads import LanguageModel, episode_inputs
from rlhf_jax.models.packing import pack, read_in_blocks
from rlhf_jax.objectives.logprobs import scale_logits, token_logprobs
from rlhf_jax.objectives.masked import masked_sum
from rlhf_jax.objectives.preference_losses import dpo_loss
from rlhf_jax.objectives.selection import Pairs, compared
from rlhf_jax.training.updates import LossFn
from rlhf_jax.types import ComparisonBatch, Params, Rollout


class PreferenceInputs(NamedTuple):
    """What one update of DPO reads."""

    batch: ComparisonBatch
    ref_logprobs: Float[Array, "B K"]
    """``sequence_logprobs`` of the reference."""


def sequence_logprobs(
    lm: LanguageModel,
    params: Params,
    batch: ComparisonBatch,
    *,
    temperature: float = 1.0,
    packing: bool = False,
) -> Float[Array, "B K"]:
    """Σₜ log π(yₜ | x, y₍<ₜ₎) of every response, of the distribution at ``temperature``.

    A query is read once for all its responses. With ``packing`` the real tokens alone are read, in
    blocks of rows, and a query before each of its responses.
    """
    K = batch.ranks.shape[1]
    responses, mask = (x.reshape(-1, x.shape[-1]) for x in (batch.responses, batch.mask))
    if packing:
        queries = (jnp.repeat(x, K, axis=0) for x in (batch.queries, batch.query_mask))
        inputs = episode_inputs(*queries, responses, mask)
        logprobs = packed_logprobs(lm, params, inputs, responses, mask, temperature=temperature)
    else:
        first, later = lm.answer_logits(params, *batch[:4])
        logits = jnp.repeat(first, K, axis=0)[:, None], later
        tokens = responses[:, :1], responses[:, 1:]
        parts = map(token_logprobs, (scale_logits(x, temperature) for x in logits), tokens)
        logprobs = jnp.concatenate([*parts], axis=1)
    return masked_sum(logprobs, mask, axis=1).reshape(batch.ranks.shape)


def packed_logprobs(
    lm: LanguageModel,
    params: Params,
    inputs: tuple[Int[Array, "B T"], Bool[Array, "B T"]],
    responses: Int[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    temperature: float,
) -> Float[Array, "B R"]:
    """log π of each response token from ``episode_inputs`` without their padding."""
    (tokens, there), R = inputs, mask.shape[1]
    start = tokens.shape[1] - R
    targets = jnp.pad(responses, [(0, 0), (start, 0)])
    packing = pack(tokens, there, jnp.pad(mask, [(0, 0), (start, 0)]), most_read=R)

    def logprobs(params, block):
        logits = scale_logits(lm.read(params, block.rows), temperature)
        return block.put(token_logprobs(logits, block.take(targets)))

    return read_in_blocks(logprobs, params, packing)[:, start:]


def preference_objective(config: PairLossConfig) -> partial:
    """``dpo_loss`` with the loss and the coefficients of ``config``."""
    return partial(
        dpo_loss,
        beta=config.beta,
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        per_token=config.per_token,
        sft_coef=config.sft_coef,
    )


def make_preference_loss(
    lm: LanguageModel,
    config: PairLossConfig,
    *,
    temperature: float = 1.0,
    packing: bool = False,
) -> LossFn:
    """A loss of parameters and ``PreferenceInputs``; its count is ``count_ranked`` of the ranks."""
    objective = preference_objective(config)
    logprobs_of = partial(sequence_logprobs, lm, temperature=temperature, packing=packing)

    def loss_fn(params, inputs: PreferenceInputs, key, count):
        batch, ref_logprobs = inputs
        logprobs = logprobs_of(params, batch)
        lengths = batch.mask.sum(axis=2)
        return objective(logprobs, ref_logprobs, batch.ranks, lengths, count=count)

    return loss_fn


def sampled_preferences(
    rollout: Rollout,
    scores: Float[Array, "B"],
    *,
    group_size: int,
    pairs: Pairs,
) -> PreferenceInputs:
    """The answers to each prompt, which are rows that follow one another, ranked by ``scores``.

    A prompt with its answers is one element, which no shuffle and no sharding takes apart.
    """
    r = rollout
    rows, ranks = compared(scores, r.mask, group_size=group_size, pairs=pairs)
    queries, query_mask = (x[::group_size] for x in (r.queries, r.query_mask))
    batch = ComparisonBatch(queries, query_mask, r.responses[rows], r.mask[rows], ranks)
    return PreferenceInputs(batch, masked_sum(r.ref_logprobs, r.mask, axis=1)[rows])
