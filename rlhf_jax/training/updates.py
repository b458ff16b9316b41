"""Pure update steps: gradients summed over micro-batches and devices, then one optimizer update.

A loss function here is ``(params, batch, key, count) -> (loss, metrics)`` where ``count`` is the
number of counted elements (tokens, prompts) in the *global* batch. The loss and metrics of a part
of the batch are then shares of the global mean, and shares add: over micro-batches and devices
alike. ``axis_name`` names the mapped device axis under ``pmap``; None is the global view.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from rlhf_jax.models.heads import LanguageModel, PolicyValue
from rlhf_jax.models.lora import combine
from rlhf_jax.objectives.advantages import gae
from rlhf_jax.objectives.ends import is_end
from rlhf_jax.objectives.language_losses import lm_loss_of_logprobs
from rlhf_jax.objectives.logprobs import entropy, scale_logits, token_logprobs
from rlhf_jax.objectives.masked import masked_mean, whiten
from rlhf_jax.objectives.rewards import kl_penalised_rewards, mix_scores, penalise_missing_eos
from rlhf_jax.training.optimizers import update_ema
from rlhf_jax.training.sharding import laid_out
from rlhf_jax.types import LMBatch, Metrics, Params, PPOBatch, Rollout, TrainState

LossFn = Callable[[Params, Any, Key[Array, ""], Any], tuple[Float[Array, ""], Metrics]]
UpdateStep = Callable[..., tuple[TrainState, Metrics]]


def psum(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def accumulated_gradients(
    loss_fn: LossFn, params: Params, batch: Any, key: Key[Array, ""], count: Any, *, accumulate: int
) -> tuple[Params, Metrics]:
    """Sum of the gradients (and metrics) of ``accumulate`` micro-batches of equal row number.

    Micro-batch i takes rows i, i + accumulate, ... so that each is spread over all devices.
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return gradient(params, batch, key, count)
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total, inputs):
        rows, i = inputs
        share = gradient(params, rows, jax.random.fold_in(key, i), count)
        return jax.tree.map(jnp.add, total, share), None

    # From zero, so that the program holds the model once.
    share = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro), key, count)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), share)
    total, _ = jax.lax.scan(add, zero, (micro, jnp.arange(accumulate)))
    return total


def on_trainable(loss_fn: LossFn, frozen: Params | None) -> LossFn:
    """``loss_fn`` as a function of what trains: no gradient of the frozen part is computed."""
    return lambda params, *rest: loss_fn(combine(frozen, laid_out(params)), *rest)


def apply_gradients(
    state: TrainState, grads: Params, tx: optax.GradientTransformation, *, ema_decay: float
) -> TrainState:
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = update_ema(state.ema_params, params, decay=ema_decay)
    return TrainState(state.step + 1, params, opt_state, average)


def make_update_step(
    loss_fn: LossFn,
    count_fn: Callable[[Any], Any],
    tx: optax.GradientTransformation,
    *,
    accumulate: int,
    ema_decay: float,
) -> UpdateStep:
    """``(state, batch, key, frozen) -> (state, metrics)``: pretraining, SFT, reward modelling.

    ``frozen`` are the parameters that do not train (those without adapters); the loss sees all.
    """

    def step(
        state: TrainState,
        batch: Any,
        key: Key[Array, ""],
        frozen: Params | None = None,
        *,
        axis_name: str | None = None,
    ):
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        count = psum(count_fn(batch), axis_name)
        shares = accumulated_gradients(
            on_trainable(loss_fn, frozen), state.params, batch, key, count, accumulate=accumulate
        )
        grads, metrics = psum(shares, axis_name)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return apply_gradients(state, grads, tx, ema_decay=ema_decay), metrics

    return step


def make_lm_loss(lm: LanguageModel, *, training: bool) -> LossFn:
    """The language-model loss of an LMBatch; dropout acts only when ``training``."""

    def loss_fn(params, batch: LMBatch, key, count):
        logprobs = lm.packed_logprobs(params, batch, key if training else None)
        return lm_loss_of_logprobs(logprobs, batch, count=count)

    return loss_fn


def prepare_batch(
    rollout: Rollout,
    kl_coef: Float[Array, ""],
    *,
    gamma: float,
    lam: float,
    whiten_rewards: bool,
    whiten_advantages: bool,
    missing_eos_penalty: float | None,
    end_ids: Sequence[int],
    second_weight: Float[Array, ""] | None = None,
) -> tuple[PPOBatch, Metrics]:
    """Rewards → GAE → whitening, in that order, once for the whole rollout batch of all devices.

    ``second_weight`` is λ of ``mix_scores`` and goes with ``rollout.second_scores``.

    Returns R = Â + V come before Â is whitened. The metrics are means over episodes of sums over
    tokens, in nats, under the names of TRL's PPO (which descend from lm-human-preferences).
    """
    r = rollout
    scores = r.scores
    if r.second_scores is not None:
        scores = mix_scores(scores, r.second_scores, weight=second_weight)
    if missing_eos_penalty is not None:
        scores = penalise_missing_eos(
            scores, r.responses, r.mask, end_ids=end_ids, penalty=missing_eos_penalty
        )
    rewards = kl_penalised_rewards(scores, r.logprobs, r.ref_logprobs, r.mask, kl_coef=kl_coef)
    metrics = episode_metrics(rollout, scores, rewards, kl_coef, end_ids=end_ids)
    if r.second_scores is not None:
        metrics |= {
            "objective/task_scores": r.scores.mean(),
            "objective/second_scores": r.second_scores.mean(),
            "objective/second_weight": second_weight,
        }
    if whiten_rewards:
        rewards = whiten(rewards, r.mask, shift_mean=False)
    advantages, returns = gae(rewards, r.values, r.mask, gamma=gamma, lam=lam)
    error = masked_mean((returns - r.values) ** 2, r.mask)
    spread = masked_mean((returns - masked_mean(returns, r.mask)) ** 2, r.mask)
    metrics |= {"val/var_explained": 1 - error / jnp.maximum(spread, 1e-8)}
    if whiten_advantages:
        advantages = whiten(advantages, r.mask, shift_mean=True)
    return PPOBatch(
        r.queries, r.query_mask, r.responses, r.mask, r.logprobs, r.values, advantages, returns
    ), metrics


def episode_metrics(
    rollout: Rollout,
    scores: Float[Array, "B"],
    rewards: Float[Array, "B R"],
    kl_coef: Float[Array, ""],
    *,
    end_ids: Sequence[int],
) -> Metrics:
    r = rollout
    per_episode = lambda x: jnp.where(r.mask, x, 0.0).sum(axis=1).mean()
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


def make_ppo_loss(
    policy_value: PolicyValue, objective: Callable[..., Any], *, temperature: float
) -> LossFn:
    """A loss of parameters from ``objective(new_logprobs, new_values, batch, count=...)``."""

    def loss_fn(params, batch: PPOBatch, key, count):
        logits, values = policy_value.evaluate(
            params, batch.queries, batch.query_mask, batch.responses, batch.mask
        )
        logits = scale_logits(logits, temperature)
        logprobs = token_logprobs(logits, batch.responses)
        loss, metrics = objective(logprobs, values, batch, count=count)
        mean_entropy = masked_mean(jax.lax.stop_gradient(entropy(logits)), batch.mask, count=count)
        return loss, metrics | {"policy/entropy_avg": mean_entropy}

    return loss_fn


def make_ppo_update(
    loss_fn: LossFn,
    ptx_loss_fn: LossFn | None,
    ptx_count_fn: Callable[[LMBatch], Float[Array, ""]] | None,
    tx: optax.GradientTransformation,
    *,
    ptx_coef: float,
    accumulate: int,
    ema_decay: float,
) -> UpdateStep:
    """``(state, (minibatches, ptx minibatches | None), key, frozen) -> (state, metrics)``: one
    iteration.

    Minibatches have a leading axis and are taken in turn. PPO-ptx (Ouyang et al. 2022, eq. 2)
    adds ``ptx_coef`` times the gradient of the language-model loss on pretraining text to that of
    PPO *before* the sum is clipped and Adam takes one step. Metrics are means over minibatches.
    """

    def gradients(params, frozen, batch, ptx, key, axis_name):
        count = psum(batch.mask.sum(dtype=jnp.float32), axis_name)
        loss = on_trainable(loss_fn, frozen)
        shares = accumulated_gradients(loss, params, batch, key, count, accumulate=accumulate)
        grads, metrics = psum(shares, axis_name)
        metrics |= {"policy/grad_norm": optax.tree.norm(grads["policy"])}
        if ptx is None:
            return grads, metrics
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
