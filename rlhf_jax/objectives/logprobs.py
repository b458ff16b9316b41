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
    logits_of: Callable[[Float[Array, "B P D"]], Float[Array, "B P V"]],
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    *,
    positions: int,
) -> Float[Array, "B T"]:
    """``token_logprobs(logits_of(hidden), tokens)`` with the logits of some positions at a time.

    The backward pass makes each part's logits again: one more product with the vocabulary, and the
    [B, T, V] array never exists, neither forward nor backward. A part has positions of every row,
    so that rows stay on the devices that hold them.
    """

    @jax.checkpoint
    def part(inputs):
        hidden, tokens = inputs
        return token_logprobs(logits_of(hidden), tokens)

    # ``lax.map`` wants parts of one length; what is added is cut off again at the end.
    (B, T), missing = tokens.shape, -tokens.shape[1] % positions

    def parts(x):
        x = jnp.pad(x, [(0, missing) if axis == 1 else (0, 0) for axis in range(x.ndim)])
        # Parts come first, as the axis that is mapped over; rows keep theirs.
        return jnp.swapaxes(x.reshape(B, -1, positions, *x.shape[2:]), 0, 1)

    logprobs = jax.lax.map(part, (parts(hidden), parts(tokens)))
    return jnp.swapaxes(logprobs, 0, 1).reshape(B, -1)[:, :T]


def entropy(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """H = log Σ exp(z) − Σ softmax(z) z, in nats."""
    logits = at_least_float32(logits)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    probs = jnp.exp(logits - normaliser[..., None])
    # 0 · (−∞) is 0 here: filtered tokens have no mass.
    # The inner ``where`` is for the gradient, which would pass through −∞ and become NaN.
    weighted = jnp.where(probs > 0, probs * jnp.where(probs > 0, logits, 0.0), 0.0)
    return normaliser - weighted.sum(axis=-1)
