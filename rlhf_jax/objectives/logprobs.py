"""Log-probabilities of sampled tokens, and entropy, in float32 or wider."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def at_least_float32(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Half precision is widened: a bfloat16 log-softmax is off by whole percents."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def scale_logits(logits: Float[Array, "*B V"], temperature: float) -> Float[Array, "*B V"]:
    """logits / T: the distribution that sampling at temperature T draws from."""
    return at_least_float32(logits) / temperature


def token_logprobs(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """log softmax(logits)[token] = logit − log Σ exp(logits)."""
    logits = at_least_float32(logits)
    # Padding may lie beyond an imported vocabulary: clipped it is finite, and the mask drops it.
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1, mode="clip")[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_logprobs_in_parts(
    logits_of: Callable[[Float[Array, "M D"]], Float[Array, "M V"]],
    hidden: Float[Array, "N D"],
    tokens: Int[Array, "N"],
    *,
    rows: int,
) -> Float[Array, "N"]:
    """``token_logprobs(logits_of(hidden), tokens)`` with ``rows`` rows of logits at a time.

    The backward pass makes each part's logits again: one more product with the vocabulary, and the
    [N, V] array never exists, neither forward nor backward.
    """

    @jax.checkpoint
    def part(inputs):
        hidden, tokens = inputs
        return token_logprobs(logits_of(hidden), tokens)

    missing = -len(tokens) % rows
    hidden = jnp.pad(hidden, ((0, missing), (0, 0))).reshape(-1, rows, hidden.shape[-1])
    parts = jax.lax.map(part, (hidden, jnp.pad(tokens, (0, missing)).reshape(-1, rows)))
    return parts.reshape(-1)[: len(tokens)]


def entropy(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """H = log Σ exp(z) − Σ softmax(z) z, in nats."""
    logits = at_least_float32(logits)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    probs = jnp.exp(logits - normaliser[..., None])
    # 0 · (−∞) is 0 here: filtered tokens have no mass.
    weighted = jnp.where(probs > 0, probs * jnp.where(probs > 0, logits, 0.0), 0.0)
    return normaliser - weighted.sum(axis=-1)
