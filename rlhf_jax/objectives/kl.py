"""KL divergence between policy and reference: estimators, the exact value, the controller.

With samples from π and log r = log π_ref − log π (Schulman 2020, "Approximating KL Divergence"):
k1 = −log r, k2 = (log r)²/2, k3 = r − 1 − log r. In nats per token. k1 and k3 are unbiased for
KL(π ‖ π_ref). As a *reward* k1 is right; as a *loss* E[∇k1] = 0, E[∇k2] = ∇KL(π ‖ π_ref) and
E[∇k3] = ∇KL(π_ref ‖ π).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.objectives.logprobs import at_least_float32


def kl_k1(logprobs: Float[Array, "*S"], ref_logprobs: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """log π − log π_ref."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Float[Array, "*S"], ref_logprobs: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """(log π − log π_ref)² / 2."""
    return 0.5 * (logprobs - ref_logprobs) ** 2


def kl_k3(logprobs: Float[Array, "*S"], ref_logprobs: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """r − 1 − log r, through expm1: exp(x) − 1 − x loses all digits below |x| ≈ 1e-3."""
    log_ratio = ref_logprobs - logprobs
    return jnp.expm1(log_ratio) - log_ratio


KLEstimator = Literal["k1", "k2", "k3"]
KL_ESTIMATORS: dict[KLEstimator, Callable[..., Array]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def exact_kl(logits: Float[Array, "*B V"], ref_logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """Σ_v π(v) (log π(v) − log π_ref(v)) over the whole vocabulary."""
    logprobs = jax.nn.log_softmax(at_least_float32(logits))
    ref_logprobs = jax.nn.log_softmax(at_least_float32(ref_logits))
    return (jnp.exp(logprobs) * (logprobs - ref_logprobs)).sum(axis=-1)


def update_kl_coef(
    kl_coef: Float[Array, ""],
    kl: Float[Array, ""],
    *,
    target: float,
    horizon: float,
    batch_size: int,
) -> Float[Array, ""]:
    """β ← β (1 + clip(KL/target − 1, ±0.2) · batch_size / horizon) (Ziegler et al. 2019, §2.2).

    ``kl`` and ``target`` are nats per *episode* (summed over tokens), ``batch_size`` the episodes
    of all devices since the last update.
    """
    # Clipped, so that one unusual batch moves β by no more than any other that is far off.
    error = jnp.clip(kl / target - 1, -0.2, 0.2)
    return kl_coef * (1 + error * batch_size / horizon)
