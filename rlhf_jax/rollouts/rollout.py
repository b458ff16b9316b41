"""One batch of experience: query → response → log-probs, values, score."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rlhf_jax.models.heads import LanguageModel, PolicyValue, ScalarModel, episode_inputs
from rlhf_jax.objectives.logprobs import scale_logits, token_logprobs
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.types import Generation, Params, QueryBatch, Rollout


def make_rollout(
    lm: LanguageModel,
    policy_value: PolicyValue,
    reward_models: Mapping[str, ScalarModel],
    *,
    length: int,
    temperature: float,
    end_ids: Sequence[int],
    pad_id: int,
    recompute_logprobs: bool,
) -> Callable[..., Rollout]:
    """``(params, ref_params, reward_params, queries, key, behaviour=None) -> Rollout``.

    Pure and without dropout. Reward parameters and scores have the names of ``reward_models``.

    All log-probs are those of logits / ``temperature``, the distribution that was sampled. The old
    log-probs come from the sampling pass, or with ``recompute_logprobs`` from one more forward
    pass (when sampler and trainer differ numerically, as they may in bfloat16).

    ``behaviour`` are the parameters of another language model that samples, an older policy: then
    ``logprobs`` and ``values`` are those of ``params`` all the same, and ``behaviour_logprobs``
    its own.
    """
    # The whole distribution is sampled, so that the log-probs are those of what was drawn.
    sample = partial(generate, lm, length=length, temperature=temperature, top_k=0, top_p=1.0)
    reread = partial(response_logprobs, lm, temperature=temperature)

    def rollout(
        params: Params,
        ref_params: Params,
        reward_params: Mapping[str, Params],
        batch: QueryBatch,
        key: Key[Array, ""],
        behaviour: Params | None = None,
    ) -> Rollout:
        queries, query_mask = batch.queries, batch.query_mask
        sampler = policy_value.policy(params) if behaviour is None else behaviour
        keys = row_keys(key, queries.shape[0])
        sampled = sample(sampler, queries, query_mask, keys, end_ids=end_ids, pad_id=pad_id)
        responses, mask, logprobs = sampled
        logits, values = policy_value.evaluate(params, queries, query_mask, responses, mask)
        drawn = logprobs
        if behaviour is not None and recompute_logprobs:
            drawn = reread(behaviour, batch, sampled)
        # What an older policy sampled has its own log-probs: those of ``params`` are read anew.
        if recompute_logprobs or behaviour is not None:
            logprobs = token_logprobs(scale_logits(logits, temperature), responses)
        return Rollout(
            queries=queries,
            query_mask=query_mask,
            responses=responses,
            mask=mask,
            logprobs=jnp.where(mask, logprobs, 0.0),
            ref_logprobs=jnp.where(mask, reread(ref_params, batch, sampled), 0.0),
            values=None if values is None else jnp.where(mask, values, 0.0),
            scores=scores_by_name(reward_models, reward_params, batch, sampled),
            behaviour_logprobs=None if behaviour is None else jnp.where(mask, drawn, 0.0),
        )

    return rollout


def scores_by_name(
    reward_models: Mapping[str, ScalarModel],
    reward_params: Mapping[str, Params],
    batch: QueryBatch,
    sampled: Generation,
) -> dict[str, Float[Array, "B"]]:
    """Each reward model's score of the whole answers."""
    tokens = jnp.concatenate([batch.queries, sampled.responses], axis=1)
    mask = jnp.concatenate([batch.query_mask, sampled.mask], axis=1)
    return {
        name: model.score(reward_params[name], tokens, mask, None)
        for name, model in reward_models.items()
    }


def response_logprobs(
    lm: LanguageModel,
    params: Params,
    batch: QueryBatch,
    sampled: Generation,
    *,
    temperature: float,
) -> Float[Array, "B R"]:
    """log π of each response token at the sampling temperature, by one forward pass."""
    # Logits are made from the query's last token on, which predicts the response's first.
    tokens, mask = episode_inputs(batch.queries, batch.query_mask, sampled.responses, sampled.mask)
    logits = lm.logits(params, tokens, mask, start=batch.queries.shape[1] - 1)
    return token_logprobs(scale_logits(logits, temperature), sampled.responses)
