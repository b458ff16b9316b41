"""The numbers that change between iterations: β, λ, a baseline; how they begin and move."""

from jaxtyping import Array, Float

from rlhf_jax.config import PPOConfig
from rlhf_jax.objectives.advantages import (
    update_baseline,
)
from rlhf_jax.objectives.kl import update_kl_coef
from rlhf_jax.objectives.rewards import (
    update_multiplier,
)
from rlhf_jax.types import Metrics

Coefs = dict[str, Float[Array, ""]]
"""The numbers that change between iterations (``starting_coefs``)."""


def starting_coefs(config: PPOConfig) -> dict[str, float]:
    """What ``Coefs`` begin as: ``kl_coef`` β, and as far as ``config`` asks for them others.

    Online DPO charges no KL. ``second_weight`` λ of a second reward; of ``reinforce`` the
    ``baseline`` and the ``baseline_weight`` of the iterations that it is the mean of. With dynamic
    sampling ``unfilled_batches`` counts the iterations in which a prompt taught nothing.
    """
    coefs = {"kl_coef": 0.0 if config.objective == "dpo" else config.kl.coef}
    if config.second_reward.model is not None:
        coefs["second_weight"] = config.second_reward.weight
    if config.objective == "policy_gradient" and config.advantage == "reinforce":
        coefs |= {"baseline": 0.0, "baseline_weight": 0.0}
    if config.max_sampling_rounds > 1:
        coefs["unfilled_batches"] = 0.0
    return coefs


def control(config: PPOConfig, coefs: Coefs, metrics: Metrics) -> Coefs:
    """Ziegler's controller of β, the multiplier λ, the moving baseline, a count, where asked."""
    changed = {}
    if config.kl.target and config.objective != "dpo":
        changed["kl_coef"] = update_kl_coef(
            coefs["kl_coef"],
            metrics["objective/kl"],
            target=config.kl.target,
            horizon=config.kl.horizon,
            batch_size=config.batch_size,
        )
    if config.second_reward.floor is not None:
        changed["second_weight"] = update_multiplier(
            coefs["second_weight"],
            metrics["objective/second_scores"],
            floor=config.second_reward.floor,
            lr=config.second_reward.lr,
        )
    if "baseline" in coefs:
        changed["baseline"], changed["baseline_weight"] = update_baseline(
            coefs["baseline"],
            coefs["baseline_weight"],
            metrics["objective/rlhf_reward"],
            decay=config.baseline_decay,
        )
    if "unfilled_batches" in coefs:
        unfilled = metrics["sampling/missing_prompts"] > 0
        changed["unfilled_batches"] = coefs["unfilled_batches"] + unfilled
    return coefs | changed
