"""PPO's losses (Schulman et al. 2017) and those of its kin, token by token under a mask.

Every loss is Σ / ``count``: with the count of the whole batch, the losses (and metrics) of its
parts add up to the mean over the whole.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.objectives.kl import KL_ESTIMATORS, KLEstimator
from rlhf_jax.objectives.masked import masked_mean
from rlhf_jax.types import Metrics, PPOBatch

Count = Float[Array, ""] | float | None
Weights = Float[Array, "B R"] | None
PolicyLoss = Literal["clip", "unclipped", "cispo"]
Ratio = Literal["token", "sequence"]
Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"]


def token_weights(mask: Bool[Array, "B R"], *, how: Aggregation) -> Float[Array, "B R"]:
    """w with Σ w l / N the mean that ``how`` names, N the real tokens of the minibatch ``mask``.

    token_mean        Σᵢ Σₜ l / N                 a token counts as any other (PPO; DAPO, eq. 8)
    sequence_mean     (1/B) Σᵢ (1/|yᵢ|) Σₜ l      in a long answer it counts less (GRPO, eq. 3)
    sequence_sum      (1/B) Σᵢ Σₜ l               the answer is one action (RLOO)
    constant_length   Σᵢ Σₜ l / (B · R)           Dr. GRPO (Liu et al. 2025), R the longest allowed

    B counts the rows with a real token. Yu et al. 2025 (DAPO), Shao et al. 2024 (GRPO).
    """
    # Weights multiply a mean over tokens, Σ / N: each undoes N and divides as its own mean does.
    lengths = mask.sum(axis=1, keepdims=True).astype(float)
    # Rows without a real token only fill up the batch.
    tokens, rows = lengths.sum(), jnp.maximum((lengths > 0).sum(), 1)
    weights = {
        "token_mean": jnp.ones_like(lengths),
        "sequence_mean": tokens / (rows * jnp.maximum(lengths, 1)),
        "sequence_sum": jnp.full_like(lengths, tokens / rows),
        "constant_length": jnp.full_like(lengths, tokens / (rows * mask.shape[1])),
    }[how]
    return jnp.where(mask, weights, 0.0)


def importance_weights(
    logprobs: Float[Array, "B R"],
    behaviour_logprobs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    cap: float,
) -> tuple[Float[Array, "B R"], Metrics]:
    """w = min(π_now / π_then, C) of each token, a constant to the loss, and what is logged of it.

    ``logprobs`` are of the policy that learns, at the beginning of the iteration, and
    ``behaviour_logprobs`` of the older one that sampled. Truncated as in IMPALA (Espeholt et al.
    2018); as weights of PPO's loss, whose own ratio is to π_now, the decoupled objective of Hilton
    et al. 2022, as verl and AReaL have it. AReaL leaves out what is over C instead.

    ``objective/stale_kl`` is the mean over episodes of Σₜ log π_then − log π_now, in nats, and
    ``val/importance_ess`` the effective share of the tokens, (Σ w)² / (N Σ w²): 1 where all weigh
    alike.
    """
    # Masked before exp: what padding holds could overflow there.
    log_ratio = jnp.where(mask, logprobs - behaviour_logprobs, 0.0)
    # A constant: with a gradient the loss would learn to change its own weights.
    ratio = jnp.exp(jax.lax.stop_gradient(log_ratio))
    weights = jnp.where(mask, jnp.minimum(ratio, cap), 0.0)
    mean, square = masked_mean(weights, mask), masked_mean(weights**2, mask)
    return weights, {
        "objective/stale_kl": -masked_mean(log_ratio.sum(axis=1), mask.any(axis=1)),
        "val/importance_weight": mean,
        "val/importance_ess": mean**2 / jnp.where(square > 0, square, 1.0),
        "val/importance_capped": masked_mean((ratio > cap).astype(ratio.dtype), mask),
    }


def log_ratios(
    new_logprobs: Float[Array, "B R"],
    logprobs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    of: Ratio,
) -> Float[Array, "B R"]:
    """log π − log π_old of each token; of a "sequence" their mean over it, at all its tokens.

    The second is log s of GSPO (Zheng et al. 2025), s = (π(y|x) / π_old(y|x))^(1/|y|). Its
    gradient reaches all tokens of the answer alike.
    """
    log_ratio = jnp.where(mask, new_logprobs - logprobs, 0.0)
    # A mean of logs and not their sum: the ratio keeps its size however long the answer is.
    if of == "sequence":
        log_ratio = jnp.where(mask, masked_mean(log_ratio, mask, axis=1)[:, None], 0.0)
    return log_ratio


def policy_loss(
    new_logprobs: Float[Array, "B R"],
    logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    clip_eps: float,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
    kind: PolicyLoss = "clip",
    ratio: Ratio = "token",
    weights: Weights = None,
    count: Count = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The mean over tokens, weighed by ``weights``, of a loss of ρ = π/π_old (``ratio``).

    clip        max(−Â ρ, −Â clip(ρ, 1−ε, 1+ε_high)) (Schulman et al. 2017, eq. 7; ε_high is ε
                unless given: DAPO, Yu et al. 2025, eq. 10). With ``dual_clip`` c where Â < 0 at
                most −c Â (Ye et al. 2020): the gradient of a token that has become much
                likelier ends there.
    unclipped   −Â ρ: importance sampling and no more.
    cispo       −sg(min(ρ, 1+ε_high)) Â log π (MiniMax 2025): the weight is bounded from above
                and every token keeps its gradient.

    ``val/ratio_var`` is the mean of (ρ − 1)², the second moment about ρ's expectation, 1.
    """

    def mean(x):
        return masked_mean(x, mask, count=count)

    # π_old and Â are data of the rollout: only the new log-probs may carry a gradient.
    logprobs, advantages = jax.lax.stop_gradient((logprobs, advantages))
    log_ratio = log_ratios(new_logprobs, logprobs, mask, of=ratio)
    rho = jnp.exp(log_ratio)
    highest = 1 + (clip_eps if clip_eps_high is None else clip_eps_high)
    losses, bounded = -advantages * rho, jnp.zeros_like(mask)
    if kind == "clip":
        unclipped, clipped = losses, -advantages * jnp.clip(rho, 1 - clip_eps, highest)
        # The larger loss is the pessimistic one: a step that went too far is not rewarded for it.
        losses, bounded = jnp.maximum(unclipped, clipped), clipped > unclipped
        if dual_clip is not None:
            # For Â < 0 the plain clip has no bound above: −Â ρ grows with ρ.
            most = -dual_clip * advantages
            beyond = (advantages < 0) & (losses > most)
            losses, bounded = jnp.where(beyond, most, losses), bounded | beyond
    elif kind == "cispo":
        # The ratio is a weight here and no path of the gradient, which comes through log π alone.
        weight = jax.lax.stop_gradient(jnp.minimum(rho, highest))
        losses = -weight * advantages * jnp.where(mask, new_logprobs, 0.0)
        bounded = rho > highest
    loss = mean(losses if weights is None else weights * losses)
    token_log_ratio = log_ratios(new_logprobs, logprobs, mask, of="token")
    return loss, {
        "loss/policy_avg": loss,
        "policy/approxkl_avg": 0.5 * mean(token_log_ratio**2),
        **clip_shares(bounded, rho, mean),
        "val/ratio": mean(rho),
        "val/ratio_var": mean((rho - 1) ** 2),
    }


def clip_shares(
    bounded: Bool[Array, "B R"], rho: Float[Array, "B R"], mean: Callable[[Array], Array]
) -> Metrics:
    """Share of tokens that a bound decides: of all, and of those with ρ below and above 1."""
    sides = {"": bounded, "_low": bounded & (rho < 1), "_high": bounded & (rho > 1)}
    return {f"policy/clipfrac{side}_avg": mean(x.astype(rho.dtype)) for side, x in sides.items()}


def kl_loss(
    new_logprobs: Float[Array, "B R"],
    ref_logprobs: Float[Array, "B R"],
    kl_coef: Float[Array, "B"],
    mask: Bool[Array, "B R"],
    *,
    estimator: KLEstimator,
    weights: Weights = None,
    count: Count = None,
) -> tuple[Float[Array, ""], Metrics]:
    """β · mean of an estimate of the KL per token, as a term of the loss (Shao et al. 2024, eq. 4).

    With tokens sampled from π its gradient is that of KL(π ‖ π_ref) for k2, of KL(π_ref ‖ π) for
    k3, and 0 for k1 in expectation (rlhf_jax/objectives/kl.py). Not corrected for tokens that come
    from π_old. ``loss/kl_avg`` is without β.
    """
    # Before the estimator: k3's exp of what padding holds could overflow, and its gradient be NaN.
    new, ref = (jnp.where(mask, x, 0.0) for x in (new_logprobs, ref_logprobs))
    kl = KL_ESTIMATORS[estimator](new, jax.lax.stop_gradient(ref))
    kl = kl if weights is None else weights * kl
    loss = masked_mean(kl_coef[:, None] * kl, mask, count=count)
    return loss, {"loss/kl_avg": masked_mean(kl, mask, count=count)}


def value_loss(
    new_values: Float[Array, "B R"],
    values: Float[Array, "B R"],
    returns: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    value_clip_eps: float,
    count: Count = None,
) -> tuple[Float[Array, ""], Metrics]:
    """½ mean of max((V − R)², (clip(V, V_old ± ε) − R)²), the larger of the two.

    From OpenAI's baselines; not in the paper of 2017.
    """

    def mean(x):
        return masked_mean(x, mask, count=count)

    # Targets are data: a gradient through the returns would move the target to the prediction.
    values, returns = jax.lax.stop_gradient((values, returns))
    new_values, values, returns = (jnp.where(mask, x, 0.0) for x in (new_values, values, returns))
    error = (new_values - returns) ** 2
    # Clipped as the policy is, so that one minibatch moves no value far from the rollout's.
    near = jnp.clip(new_values, values - value_clip_eps, values + value_clip_eps)
    clipped_error = (near - returns) ** 2
    loss = 0.5 * mean(jnp.maximum(error, clipped_error))
    return loss, {
        "loss/value_avg": loss,
        "val/clipfrac_avg": mean((clipped_error > error).astype(error.dtype)),
        "val/error": mean(error),
    }


def ppo_loss(
    new_logprobs: Float[Array, "B R"],
    new_values: Float[Array, "B R"] | None,
    entropies: Float[Array, "B R"],
    batch: PPOBatch,
    *,
    clip_eps: float,
    value_clip_eps: float,
    vf_coef: float,
    entropy_coef: float,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
    kind: PolicyLoss = "clip",
    ratio: Ratio = "token",
    kl_estimator: KLEstimator = "k1",
    count: Count = None,
) -> tuple[Float[Array, ""], Metrics]:
    """policy loss + c_v · value loss − c_e · mean entropy (Schulman et al. 2017, eq. 9) + β · KL.

    c_v is ``vf_coef``; without a value network (``new_values`` None) its loss is left out. c_e is
    ``entropy_coef``: 0 in InstructGPT, and then the entropy is measured without a gradient. The KL
    is here where the batch has a ``kl_coef``; else it is in the rewards. The batch's ``weights``
    are those of the policy loss and of the KL; values and entropy are means over tokens.
    """
    b = batch
    loss, metrics = policy_loss(
        new_logprobs,
        b.logprobs,
        b.advantages,
        b.mask,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
        kind=kind,
        ratio=ratio,
        weights=b.weights,
        count=count,
    )
    if b.kl_coef is not None:
        penalty, kl_metrics = kl_loss(
            new_logprobs,
            b.ref_logprobs,
            b.kl_coef,
            b.mask,
            estimator=kl_estimator,
            weights=b.weights,
            count=count,
        )
        loss, metrics = loss + penalty, metrics | kl_metrics
    if new_values is not None:
        assert b.values is not None and b.returns is not None, "a batch of a value network has both"
        value, value_metrics = value_loss(
            new_values, b.values, b.returns, b.mask, value_clip_eps=value_clip_eps, count=count
        )
        loss, metrics = loss + vf_coef * value, metrics | value_metrics
    mean_entropy = masked_mean(entropies, b.mask, count=count)
    if entropy_coef:
        loss = loss - entropy_coef * mean_entropy
    return loss, metrics | {"policy/entropy_avg": jax.lax.stop_gradient(mean_entropy)}
