"""Language modelling: pretraining, SFT, and the pretraining term of PPO-ptx."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.objectives.logprobs import token_logprobs
from rlhf_jax.objectives.masked import masked_mean
from rlhf_jax.types import LMBatch, Metrics


def count_targets(batch: LMBatch) -> Float[Array, ""]:
    """Number of tokens that ``lm_loss`` counts."""
    # The first token of a row has nothing before it to be predicted from.
    return batch.loss_mask[:, 1:].sum().astype(jnp.float32)


def lm_loss(
    logits: Float[Array, "B T V"],
    batch: LMBatch,
    *,
    count: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """−Σ log p(xₜ | x₍<ₜ₎) / number of targets, in nats per token.

    Logits at t − 1 predict token t, for every t where ``loss_mask`` is True (never on padding or
    on a segment's first token). ``count`` is the number of targets in the whole batch.
    """
    # Shifted by one: what stands at t − 1 predicts token t, and the last position predicts nothing.
    targets = batch.tokens[:, 1:]
    logprobs = token_logprobs(logits[:, :-1], targets)
    return lm_loss_of_logprobs(logprobs, batch, count=count)


def lm_loss_of_logprobs(
    logprobs: Float[Array, "B L"],
    batch: LMBatch,
    *,
    count: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """``lm_loss`` where the log-probs of tokens 1, 2, ... are known already."""
    loss = -masked_mean(logprobs, batch.loss_mask[:, 1:], count=count)
    return loss, {"loss": loss}
