"""PPO and its kin, wired once: sample, score, prepare, update, control.

``make_policy_optimization`` puts the pure functions of one iteration together from a config; the
experiment, its forks, the doctor, the planner and the benchmarks all run what it returns. An
ablation hands in another function: ``advantage_fn``, ``objective`` or ``combine``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from rlhf_jax.config import PPOConfig
from rlhf_jax.errors import known
from rlhf_jax.models.heads import LanguageModel, PolicyValue, ScalarModel, episode_inputs
from rlhf_jax.models.packing import Block, Packing, pack
from rlhf_jax.objectives.language_losses import count_targets
from rlhf_jax.objectives.logprobs import entropy, scale_logits, token_logprobs
from rlhf_jax.objectives.policy_losses import (
    ppo_loss,
)
from rlhf_jax.objectives.preference_losses import count_ranked
from rlhf_jax.objectives.selection import imitation_loss
from rlhf_jax.rollouts.rollout import make_rollout
from rlhf_jax.training.coefficients import Coefs, control
from rlhf_jax.training.preference_optimization import (
    PreferenceInputs,
    make_preference_loss,
)
from rlhf_jax.training.preparation import AdvantageFn, Combine, Learnt, make_preparation
from rlhf_jax.training.updates import (
    LossFn,
    Pack,
    UpdateStep,
    accumulated_gradients,
    apply_gradients,
    make_lm_loss,
    on_trainable,
    psum,
)
from rlhf_jax.types import KeptAnswers, LMBatch, Metrics, Params, PPOBatch, Rollout, TrainState

Episodes = PPOBatch | KeptAnswers
Objective = Callable[..., tuple[Float[Array, ""], Metrics]]
"""(new_logprobs, new_values, entropies [B R], batch, *, count) -> (loss, metrics): ``ppo_loss``."""


class PolicyOptimization(NamedTuple):
    """The pure functions of one iteration."""

    rollout: Callable[..., Rollout]
    """(params, ref_params, reward params by name, queries, key, older policy | None) -> episodes
    with their scores."""
    batch: Callable[[Rollout, Coefs], tuple[Learnt, Metrics]]
    """(episodes, coefs) -> what the update reads, as one minibatch."""
    prepare: Callable[..., tuple[Learnt, Metrics]]
    """(episodes, coefs, key) -> the same as shuffled minibatches of all epochs."""
    loss: LossFn
    """Of one minibatch, without pretraining text."""
    update: UpdateStep
    """(state, (minibatches, pretraining text | None), key, frozen) -> (state, metrics)."""
    control: Callable[[Coefs, Metrics], Coefs]
    """(coefs, metrics of ``prepare``) -> coefs of the next iteration."""
    judge: Callable[[Rollout, Coefs], tuple[Bool[Array, "G"], Metrics]]
    """(episodes, coefs) -> prompts whose answers differ in score, what is logged of the episodes:
    dynamic sampling goes by it."""


def make_policy_optimization(
    config: PPOConfig,
    lm: LanguageModel,
    policy_value: PolicyValue,
    reward_models: Mapping[str, ScalarModel],
    tx: optax.GradientTransformation,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    advantage_fn: AdvantageFn | None = None,
    objective: Objective | None = None,
    combine: Combine | None = None,
) -> PolicyOptimization:
    """What ``config`` says; ``advantage_fn``, ``objective`` and ``combine`` take its place."""
    rollout = make_rollout(
        lm,
        policy_value,
        reward_models,
        length=known(config.response_length),
        temperature=config.sampling.temperature,
        end_ids=end_ids,
        pad_id=pad_id,
        recompute_logprobs=config.recompute_logprobs,
        packing=config.packing,
        at_once=config.sampling.at_once,
        samples_per_prompt=config.samples_per_prompt,
    )
    batch, prepare, judge = make_preparation(
        config, end_ids=end_ids, advantage_fn=advantage_fn, combine=combine
    )
    loss = make_loss(config, lm, policy_value, objective)
    # A fork's objective may look at its whole minibatch, at a quantile say, and is no sum over
    # blocks. Online DPO's needs a prompt's answers together, wherever they stand: it packs itself.
    in_blocks = config.packing and objective is None and config.objective != "dpo"
    lm_loss = make_lm_loss(lm, training=False)

    def ptx_loss(params, batch, key, count):
        return lm_loss(policy_value.policy(params), batch, key, count)

    update = make_ppo_update(
        loss,
        ptx_loss if config.ptx_coef else None,
        count_targets,
        tx,
        count_fn=count_ranked_prompts if config.objective == "dpo" else count_tokens,
        ptx_coef=config.ptx_coef,
        accumulate=config.optim.accumulate,
        ema_decay=config.optim.ema_decay,
        pack=pack_episodes if in_blocks else None,
    )
    controller = partial(control, config)
    return PolicyOptimization(rollout, batch, prepare, loss, update, controller, judge)


def make_loss(
    config: PPOConfig, lm: LanguageModel, policy_value: PolicyValue, objective: Objective | None
) -> LossFn:
    """The loss of a minibatch that ``config.objective`` names; ``objective`` takes its place."""
    if config.objective == "dpo":
        assert objective is None, "online DPO's loss is of pairs, not of tokens"
        return make_online_dpo_loss(lm, policy_value, config)
    if objective is None:
        objective = imitation_loss if config.objective == "imitation" else ppo_objective(config)
    return make_ppo_loss(policy_value, objective, temperature=config.sampling.temperature)


def ppo_objective(config: PPOConfig) -> Objective:
    """``ppo_loss`` with the coefficients of ``config``."""
    return partial(
        ppo_loss,
        clip_eps=config.clip_eps,
        clip_eps_high=config.clip_eps_high,
        dual_clip=config.dual_clip,
        kind=config.policy_loss,
        ratio=config.ratio,
        kl_estimator=config.kl.estimator,
        value_clip_eps=config.value_clip_eps,
        vf_coef=config.vf_coef,
        entropy_coef=config.entropy_coef,
    )


def make_ppo_loss(policy_value: PolicyValue, objective: Objective, *, temperature: float) -> LossFn:
    """A loss of parameters from ``objective(new_logprobs, new_values, entropies, batch, count=…)``.

    The entropies, in nats, are those of the distribution that each token was sampled from. Of a
    minibatch or of (minibatch, block): then the objective sees the block's episodes alone, and its
    sums over blocks are those of the minibatch.
    """

    def loss_fn(params, batch: Episodes | tuple[Episodes, Block], key, count):
        if not isinstance(batch, (PPOBatch, KeptAnswers)):
            return packed_loss(params, *batch, count)
        logits, values = policy_value.evaluate(
            params, batch.queries, batch.query_mask, batch.responses, batch.mask
        )
        logits = scale_logits(logits, temperature)
        logprobs = token_logprobs(logits, batch.responses)
        return objective(logprobs, values, entropy(logits), batch, count=count)

    def packed_loss(params, batch: Episodes, block: Block, count):
        start = batch.queries.shape[1] - 1
        logits, values = policy_value.read(params, block.rows)
        logits = scale_logits(logits, temperature)
        targets = block.take(jnp.pad(batch.responses, [(0, 0), (start, 0)]))
        outputs = token_logprobs(logits, targets), values, entropy(logits)
        outputs = jax.tree.map(lambda x: block.put(x)[:, start:], outputs)
        mask = batch.mask & block.present[:, None]
        return objective(*outputs, batch._replace(mask=mask), count=count)

    return loss_fn


def pack_episodes(batch: Episodes) -> Packing:
    """The real tokens of a minibatch in rows, read where they predict a response token."""
    tokens, mask = episode_inputs(batch.queries, batch.query_mask, batch.responses, batch.mask)
    Q, R = batch.queries.shape[1], batch.mask.shape[1]
    read = jnp.pad(batch.mask, [(0, 0), (Q - 1, 0)])
    return pack(tokens, mask, read, most_read=R)


def make_online_dpo_loss(lm: LanguageModel, policy_value: PolicyValue, config: PPOConfig) -> LossFn:
    """DPO's loss, as experiments.dpo has it, of the policy and at the sampling temperature."""
    loss_fn = make_preference_loss(
        lm, config.dpo, temperature=config.sampling.temperature, packing=config.packing
    )
    return lambda params, *rest: loss_fn(policy_value.policy(params), *rest)


def count_tokens(batch: Episodes) -> Float[Array, ""]:
    """Real tokens of a minibatch."""
    return batch.mask.sum(dtype=jnp.float32)


def count_ranked_prompts(inputs: PreferenceInputs) -> Float[Array, ""]:
    """Prompts of a minibatch with a pair of answers to learn from."""
    return count_ranked(inputs.batch.ranks)


def make_ppo_update(
    loss_fn: LossFn,
    ptx_loss_fn: LossFn | None,
    ptx_count_fn: Callable[[LMBatch], Float[Array, ""]] | None,
    tx: optax.GradientTransformation,
    *,
    count_fn: Callable[[Any], Float[Array, ""]] = count_tokens,
    ptx_coef: float,
    accumulate: int,
    ema_decay: float,
    pack: Pack | None = None,
) -> UpdateStep:
    """One iteration: ``(state, (minibatches, ptx or None), key, frozen) -> (state, metrics)``.

    Minibatches have a leading axis and are taken in turn. PPO-ptx (Ouyang et al. 2022, eq. 2)
    adds ``ptx_coef`` times the gradient of the language-model loss on pretraining text to that of
    PPO *before* the sum is clipped and Adam takes one step. Metrics are means over minibatches.
    With ``pack`` the loss is worked off in blocks of real tokens (``accumulated_gradients``).
    """

    def gradients(params, frozen, batch, ptx, key, axis_name):
        count = psum(count_fn(batch), axis_name)
        loss = on_trainable(loss_fn, frozen)
        shares = accumulated_gradients(
            loss, params, batch, key, count, accumulate=accumulate, pack=pack
        )
        grads, metrics = psum(shares, axis_name)
        metrics |= {"policy/grad_norm": optax.tree.norm(grads["policy"])}
        if ptx is None:
            return grads, metrics
        assert ptx_loss_fn is not None and ptx_count_fn is not None, "pretraining text has a loss"
        count = psum(ptx_count_fn(ptx), axis_name)
        loss = on_trainable(ptx_loss_fn, frozen)
        shares = accumulated_gradients(loss, params, ptx, key, count, accumulate=accumulate)
        ptx_grads, ptx_metrics = psum(shares, axis_name)
        metrics |= {"loss/ptx_avg": ptx_metrics["loss"]}
        metrics |= {"policy/ptx_grad_norm": ptx_coef * optax.tree.norm(ptx_grads)}
        return jax.tree.map(lambda g, p: g + ptx_coef * p, grads, ptx_grads), metrics

    def update(
        state: TrainState,
        batches: Any,
        key: Key[Array, ""],
        frozen: Params | None = None,
        *,
        axis_name: str | None = None,
    ):
        def minibatch(state, inputs):
            batch, ptx = inputs
            grads, metrics = gradients(state.params, frozen, batch, ptx, key, axis_name)
            return apply_gradients(state, grads, tx, ema_decay=ema_decay), metrics

        state, metrics = jax.lax.scan(minibatch, state, batches)
        return state, jax.tree.map(lambda x: x.mean(axis=0), metrics)

    return update
