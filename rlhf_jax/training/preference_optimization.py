"""DPO and its kin, wired: the log-probs of ranked responses, and a config's loss of them.

It is all the same whether the rankings are a file's or of responses sampled while it trains.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.config import DPOConfig
from rlhf_jax.models.heads import LanguageModel, episode_inputs
from rlhf_jax.objectives.logprobs import token_logprobs
from rlhf_jax.objectives.masked import masked_sum
from rlhf_jax.objectives.preference_losses import dpo_loss
from rlhf_jax.training.updates import LossFn
from rlhf_jax.types import ComparisonBatch, Params


class PreferenceInputs(NamedTuple):
    """What one update of DPO reads."""

    batch: ComparisonBatch
    ref_logprobs: Float[Array, "B K"]
    """``sequence_logprobs`` of the reference."""


def sequence_logprobs(
    lm: LanguageModel, params: Params, batch: ComparisonBatch
) -> Float[Array, "B K"]:
    """Σₜ log π(yₜ | x, y₍<ₜ₎) of every response."""
    K, Q = batch.ranks.shape[1], batch.queries.shape[1]
    queries, query_mask = (jnp.repeat(x, K, axis=0) for x in (batch.queries, batch.query_mask))
    responses, mask = (x.reshape(-1, x.shape[-1]) for x in (batch.responses, batch.mask))
    inputs = episode_inputs(queries, query_mask, responses, mask)
    logprobs = token_logprobs(lm.logits(params, *inputs, start=Q - 1), responses)
    return masked_sum(logprobs, mask, axis=1).reshape(batch.ranks.shape)


def preference_objective(config: DPOConfig) -> partial:
    """``dpo_loss`` with the loss and the coefficients of ``config``."""
    return partial(
        dpo_loss,
        beta=config.beta,
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        per_token=config.per_token,
        sft_coef=config.sft_coef,
    )


def make_preference_loss(lm: LanguageModel, config: DPOConfig) -> LossFn:
    """A loss of parameters and ``PreferenceInputs``; its count is ``count_ranked`` of the ranks."""
    objective = preference_objective(config)

    def loss_fn(params, inputs: PreferenceInputs, key, count):
        batch, ref_logprobs = inputs
        logprobs, lengths = sequence_logprobs(lm, params, batch), batch.mask.sum(axis=2)
        return objective(logprobs, ref_logprobs, batch.ranks, lengths, count=count)

    return loss_fn
