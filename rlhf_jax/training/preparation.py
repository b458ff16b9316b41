"""From sampled episodes to what an update reads: one score, rewards, advantages, minibatches."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from rlhf_jax.config import CombineConfig, PPOConfig
from rlhf_jax.config.rewards import reward_names
from rlhf_jax.objectives.advantages import (
    differing,
    gae,
    grpo,
    in_groups,
    reinforce,
    rloo,
    zero_spread_groups,
)
from rlhf_jax.objectives.ends import is_end
from rlhf_jax.objectives.kl import KLEstimator
from rlhf_jax.objectives.masked import masked_mean, masked_sum, whiten
from rlhf_jax.objectives.policy_losses import (
    Aggregation,
    importance_weights,
    token_weights,
)
from rlhf_jax.objectives.rewards import (
    kl_penalised_rewards,
    mix_scores,
    normalise_scores,
    penalise_missing_eos,
    pessimistic_scores,
    weighted_mean,
)
from rlhf_jax.objectives.selection import best_rows, selection_metrics
from rlhf_jax.training.coefficients import Coefs
from rlhf_jax.training.preference_optimization import (
    PreferenceInputs,
    sampled_preferences,
)
from rlhf_jax.types import KeptAnswers, Metrics, PPOBatch, Rollout

Scores = Mapping[str, Float[Array, "B"]]
"""What each reward says of the episodes, by the reward's name."""
AdvantageFn = Callable[..., tuple[Float[Array, "B R"], Float[Array, "B R"] | None]]
"""(rewards [B R], values [B R] | None, mask [B R]) -> (advantages, returns | None): ``gae``, say.
The answers to one prompt (``samples_per_prompt``) are rows that follow one another."""
Combine = Callable[[Scores, Coefs], Float[Array, "B"]]
"""(scores by name, coefficients) -> the one score of each episode: ``combine_scores``."""
Learnt = PPOBatch | KeptAnswers | PreferenceInputs
"""What an update reads, by ``config.objective``."""


class Preparation(NamedTuple):
    """What comes between sampling and learning, as ``config`` says."""

    batch: Callable[[Rollout, Coefs], tuple[Learnt, Metrics]]
    """(episodes, coefs) -> one minibatch."""
    prepare: Callable[..., tuple[Learnt, Metrics]]
    """(episodes, coefs, key) -> the shuffled minibatches of all epochs."""
    judge: Callable[[Rollout, Coefs], tuple[Bool[Array, "G"], Metrics]]
    """(episodes, coefs) -> prompts whose answers differ in score, what is logged of episodes."""


def make_preparation(
    config: PPOConfig,
    *,
    end_ids: Sequence[int],
    advantage_fn: AdvantageFn | None,
    combine: Combine | None,
) -> Preparation:
    """The functions that ``config`` asks for; the last two take the place of its own."""
    names = reward_names(config.reward)
    scored: dict[str, Any] = {
        "combine": combine or partial(combine_scores, config=config.combine, names=names),
        "kl_place": config.kl.place,
        "kl_estimator": config.kl.estimator,
        "missing_eos_penalty": config.missing_eos_penalty,
        "end_ids": end_ids,
    }
    prepare_episodes = partial(
        prepare_batch,
        whiten_rewards=config.whiten_rewards,
        whiten_advantages=config.whiten_advantages,
        group_size=config.samples_per_prompt,
        **scored,
    )

    def learnt_from(rollout, coefs):
        if config.objective != "policy_gradient":
            return select_answers(config, rollout, *episode_rewards(rollout, coefs, **scored))
        advantages = advantage_fn or advantage_function(config, coefs)
        learnt, metrics = prepare_episodes(rollout, coefs, advantage_fn=advantages)
        if rollout.behaviour_logprobs is None:
            return learnt, metrics
        weights, stale = importance_weights(
            rollout.logprobs, rollout.behaviour_logprobs, rollout.mask, cap=config.importance_cap
        )
        return learnt._replace(weights=weights), metrics | stale

    def batch(rollout, coefs):
        learnt, metrics = learnt_from(rollout, coefs)
        return with_weights(learnt, how=config.aggregation), metrics

    def prepare(rollout, coefs, key):
        learnt, metrics = learnt_from(rollout, coefs)
        epochs, parts = config.ppo_epochs, config.num_minibatches
        minibatches = shuffle_minibatches(learnt, key, epochs=epochs, num_minibatches=parts)
        return jax.vmap(partial(with_weights, how=config.aggregation))(minibatches), metrics

    def judge(rollout, coefs):
        scores, _, metrics = episode_rewards(rollout, coefs, **scored)
        differ = differing(*in_groups(scores, rollout.mask, config.samples_per_prompt))[:, 0]
        alike = 1 - differ.mean(dtype=scores.dtype)
        return differ, metrics | {"objective/zero_spread_groups": alike}

    return Preparation(batch, prepare, judge)


def advantage_function(config: PPOConfig, coefs: Coefs) -> AdvantageFn:
    """What ``config.advantage`` names, in an iteration with these coefficients."""
    if config.advantage == "rloo":
        return partial(rloo, group_size=config.samples_per_prompt)
    if config.advantage in ("grpo", "dr_grpo"):
        scale = "std" if config.advantage == "grpo" else "none"
        return partial(grpo, group_size=config.samples_per_prompt, scale=scale)
    if config.advantage == "reinforce":
        return partial(reinforce, baseline=coefs["baseline"])
    return partial(gae, gamma=config.gamma, lam=config.lam)


def combine_scores(
    scores: Scores, coefs: Coefs, *, config: CombineConfig, names: Sequence[str]
) -> Float[Array, "B"]:
    """The rewards ``names`` as one, and mixed with a second reward model where there is one."""
    each = jnp.stack([scores[name] for name in names])
    if config.normalise:
        each = normalise_scores(each)
    if config.clip is not None:
        each = each.clip(-config.clip, config.clip)
    if len(names) == 1:  # exactly the score, whatever its weight
        task = each[0]
    elif config.how == "mean":
        task = weighted_mean(each, config.weights or [1.0] * len(names))
    elif config.how == "min":
        task = each.min(axis=0)
    else:
        spread = {"mean_minus_std": "std", "mean_minus_var": "variance"}[config.how]
        task = pessimistic_scores(each, coef=config.spread_coef, spread=spread)
    if "second" not in scores:
        return task
    return mix_scores(task, scores["second"], weight=coefs["second_weight"])


def prepare_batch(
    rollout: Rollout,
    coefs: Coefs,
    *,
    combine: Combine,
    advantage_fn: AdvantageFn,
    kl_place: Literal["reward", "loss"],
    kl_estimator: KLEstimator,
    whiten_rewards: bool,
    whiten_advantages: bool,
    missing_eos_penalty: float | None,
    group_size: int,
    end_ids: Sequence[int],
) -> tuple[PPOBatch, Metrics]:
    """Scores → rewards → advantages → whitening, in that order.

    Once for the whole rollout batch of all devices; returns come before the advantages are
    whitened. The metrics are those of ``episode_rewards`` and of the advantages.
    """
    r, kl_coef = rollout, coefs["kl_coef"]
    scores, rewards, metrics = episode_rewards(
        rollout,
        coefs,
        combine=combine,
        kl_place=kl_place,
        kl_estimator=kl_estimator,
        missing_eos_penalty=missing_eos_penalty,
        end_ids=end_ids,
    )
    if whiten_rewards:
        rewards = whiten(rewards, r.mask, shift_mean=False)
    if group_size > 1:
        alike = zero_spread_groups(rewards, r.mask, group_size=group_size)
        metrics |= {"objective/zero_spread_groups": alike}
    advantages, returns = advantage_fn(rewards, r.values, r.mask)
    if r.values is not None:
        assert returns is not None, "a value network has returns to learn"
        error = masked_mean((returns - r.values) ** 2, r.mask)
        spread = masked_mean((returns - masked_mean(returns, r.mask)) ** 2, r.mask)
        metrics |= {"val/var_explained": 1 - error / jnp.maximum(spread, 1e-8)}
    if whiten_advantages:
        advantages = whiten(advantages, r.mask, shift_mean=True)
    batch = PPOBatch(
        queries=r.queries,
        query_mask=r.query_mask,
        responses=r.responses,
        mask=r.mask,
        logprobs=r.logprobs,
        ref_logprobs=r.ref_logprobs,
        values=r.values,
        advantages=advantages,
        returns=None if r.values is None else returns,
        kl_coef=jnp.full_like(scores, kl_coef) if kl_place == "loss" else None,
    )
    return batch, metrics


def episode_rewards(
    rollout: Rollout,
    coefs: Coefs,
    *,
    combine: Combine,
    kl_place: Literal["reward", "loss"],
    kl_estimator: KLEstimator,
    missing_eos_penalty: float | None,
    end_ids: Sequence[int],
) -> tuple[Float[Array, "B"], Float[Array, "B R"], Metrics]:
    """(one score per episode, rewards per token with the KL penalty, what is logged of both).

    The metrics are means over episodes of sums over tokens, in nats, under the names of TRL's PPO
    (which descend from lm-human-preferences).
    """
    r, kl_coef = rollout, coefs["kl_coef"]
    scores = combine(r.scores, coefs)
    if missing_eos_penalty is not None:
        scores = penalise_missing_eos(
            scores, r.responses, r.mask, end_ids=end_ids, penalty=missing_eos_penalty
        )
    charged, estimator = (kl_coef, kl_estimator) if kl_place == "reward" else (0.0, "k1")
    rewards = kl_penalised_rewards(
        scores, r.logprobs, r.ref_logprobs, r.mask, kl_coef=charged, estimator=estimator
    )
    metrics = episode_metrics(rollout, scores, rewards, kl_coef, end_ids=end_ids)
    if len(r.scores) > 1:
        metrics |= {f"objective/{name}_scores": each.mean() for name, each in r.scores.items()}
    if "second" in r.scores:
        metrics |= {"objective/second_weight": coefs["second_weight"]}
    if "baseline" in coefs:
        metrics |= {"objective/baseline": coefs["baseline"]}
    return scores, rewards, metrics


def episode_metrics(
    rollout: Rollout,
    scores: Float[Array, "B"],
    rewards: Float[Array, "B R"],
    kl_coef: Float[Array, ""],
    *,
    end_ids: Sequence[int],
) -> Metrics:
    """Means over episodes of what the rollout was worth: scores, KL, entropy, length."""
    r = rollout

    def per_episode(x):
        return jnp.where(r.mask, x, 0.0).sum(axis=1).mean()

    total = per_episode(rewards)
    return {
        "objective/kl": per_episode(r.logprobs - r.ref_logprobs),
        "objective/entropy": per_episode(-r.logprobs),
        "objective/non_score_reward": total - scores.mean(),
        "objective/rlhf_reward": total,
        "objective/scores": scores.mean(),
        "objective/kl_coef": kl_coef,
        "val/num_eos_tokens": (is_end(r.responses, end_ids) & r.mask).sum().astype(jnp.float32),
        "response_length": r.mask.sum(axis=1).mean(dtype=jnp.float32),
    }


def select_answers(
    config: PPOConfig,
    rollout: Rollout,
    scores: Float[Array, "B"],
    rewards: Float[Array, "B R"],
    metrics: Metrics,
) -> tuple[KeptAnswers | PreferenceInputs, Metrics]:
    """What imitation and online DPO learn from: the best answers, or pairs of better and worse.

    An element of the result is a prompt. Imitation goes by the return, score less β · KL; DPO by
    the score, for its loss has a KL of its own.
    """
    r, K = rollout, config.samples_per_prompt
    if config.objective == "dpo":
        metrics |= selection_metrics(scores, r.mask, group_size=K)
        return sampled_preferences(rollout, scores, group_size=K, pairs=config.pairs), metrics
    returns = masked_sum(rewards, r.mask, axis=1)
    metrics |= selection_metrics(returns, r.mask, group_size=K)
    rows, mask = best_rows(returns, r.mask, group_size=K)
    return KeptAnswers(r.queries[rows], r.query_mask[rows], r.responses[rows], mask), metrics


def with_weights(minibatch: Any, *, how: Aggregation) -> Any:
    """``minibatch`` with the weights of its tokens; none where all weigh the same.

    Importance weights that it has are multiplied by those that ``how`` asks for.
    """
    if how == "token_mean" or not isinstance(minibatch, PPOBatch):
        return minibatch
    weights = token_weights(minibatch.mask, how=how)
    weights = weights if minibatch.weights is None else weights * minibatch.weights
    return minibatch._replace(weights=weights)


def shuffle_minibatches(
    batch: Any, key: Key[Array, ""], *, epochs: int, num_minibatches: int
) -> Any:
    """[B, ...] → [epochs · num_minibatches, B / num_minibatches, ...], a new order each epoch.

    Every episode is used exactly ``epochs`` times. Done on the global batch, so that a minibatch
    holds the same episodes on any number of devices.
    """
    B = jax.tree.leaves(batch)[0].shape[0]
    orders = [jax.random.permutation(jax.random.fold_in(key, e), B) for e in range(epochs)]
    order = jnp.concatenate(orders).reshape(epochs * num_minibatches, B // num_minibatches)
    return jax.tree.map(lambda x: x[order], batch)
