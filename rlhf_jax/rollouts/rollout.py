"""One batch of experience: query → response → log-probs, values, score."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.models import layout
from rlhf_jax.models.heads import LanguageModel, PolicyValue, ScalarModel, episode_inputs
from rlhf_jax.models.packing import Block, pack, sum_over_blocks
from rlhf_jax.objectives.logprobs import scale_logits, token_logprobs
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.types import Generation, Params, QueryBatch, Rollout


class Readers(NamedTuple):
    """The networks that read an episode, and their parameters."""

    lm: LanguageModel
    policy_value: PolicyValue
    reward_models: Mapping[str, ScalarModel]
    params: Params
    lm_params: Mapping[str, Params]
    """Of the other language models, by what they are: the reference, and an older policy."""
    reward_params: Mapping[str, Params]


class Reading(NamedTuple):
    """What the networks say of each episode, at the sampling temperature."""

    logprobs: Float[Array, "B R"]
    lm_logprobs: dict[str, Float[Array, "B R"]]
    values: Float[Array, "B R"] | None
    scores: dict[str, Float[Array, "B"]]


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
    packing: bool,
    at_once: float,
    samples_per_prompt: int,
) -> Callable[..., Rollout]:
    """``(params, ref_params, reward_params, queries, key, behaviour=None) -> Rollout``.

    Pure and without dropout. Reward parameters and scores have the names of ``reward_models``.

    All log-probs are those of logits / ``temperature``, the distribution that was sampled. The old
    log-probs come from the sampling pass, or with ``recompute_logprobs`` from one more forward
    pass (when sampler and trainer differ numerically, as they may in bfloat16).

    ``behaviour`` are the parameters of another language model that samples, an older policy: then
    ``logprobs`` and ``values`` are those of ``params`` all the same, and ``behaviour_logprobs``
    its own.

    Of each prompt there are ``samples_per_prompt`` rows, one after the other: the sampler reads it
    once. With ``packing`` the networks read the real tokens alone, in blocks of rows. The share
    ``at_once`` of the answers is sampled at the same time.
    """
    # The whole distribution is sampled, so that the log-probs are those of what was drawn.
    whole = dict(temperature=temperature, top_k=0, top_p=1.0, at_once=at_once)
    sample = partial(generate, lm, length=length, end_ids=end_ids, pad_id=pad_id, **whole)
    read = partial(read_packed if packing else read_padded, temperature=temperature)

    def rollout(
        params: Params,
        ref_params: Params,
        reward_params: Mapping[str, Params],
        batch: QueryBatch,
        key: Key[Array, ""],
        behaviour: Params | None = None,
    ) -> Rollout:
        keys = row_keys(key, len(batch.queries))
        sampler = policy_value.policy(params) if behaviour is None else behaviour
        sampled = sample(sampler, *asked(batch, samples_per_prompt), keys)
        lm_params = {"reference": ref_params}
        if behaviour is not None and recompute_logprobs:
            lm_params["behaviour"] = behaviour
        networks = Readers(lm, policy_value, reward_models, params, lm_params, reward_params)
        seen = read(networks, batch, sampled)
        # What an older policy sampled has its own log-probs: those of ``params`` are read anew.
        anew, stale = recompute_logprobs or behaviour is not None, behaviour is not None
        return episodes(batch, sampled, seen, anew=anew, stale=stale)

    return rollout


def asked(
    batch: QueryBatch, samples_per_prompt: int
) -> tuple[Int[Array, "P Q"], Bool[Array, "P Q"]]:
    """Each prompt of a batch once, with its mask; where devices share one, as the rows stand."""
    B = len(batch.queries)
    P = B // samples_per_prompt
    if B % samples_per_prompt or layout.row_shards(P) != layout.row_shards(B):
        return batch.queries, batch.query_mask
    return batch.queries[::samples_per_prompt], batch.query_mask[::samples_per_prompt]


def episodes(
    batch: QueryBatch, sampled: Generation, seen: Reading, *, anew: bool, stale: bool
) -> Rollout:
    """What was sampled, with what was read of it.

    With ``anew`` the log-probs are those of the reading; of ``stale`` samples those of the policy
    that gave them are kept beside.
    """
    drawn = seen.lm_logprobs.get("behaviour", sampled.logprobs)

    def where_real(x):
        return None if x is None else jnp.where(sampled.mask, x, 0.0)

    return Rollout(
        queries=batch.queries,
        query_mask=batch.query_mask,
        responses=sampled.responses,
        mask=sampled.mask,
        logprobs=where_real(seen.logprobs if anew else sampled.logprobs),
        ref_logprobs=where_real(seen.lm_logprobs["reference"]),
        values=where_real(seen.values),
        scores=seen.scores,
        behaviour_logprobs=where_real(drawn) if stale else None,
    )


def read_padded(
    networks: Readers, batch: QueryBatch, sampled: Generation, *, temperature: float
) -> Reading:
    """A row of each network for each episode, padding and all."""
    n, Q, mask = networks, batch.queries.shape[1], sampled.mask
    inputs = batch.queries, batch.query_mask, sampled.responses, mask
    logits, values = n.policy_value.evaluate(n.params, *inputs)
    logprobs = partial(response_logprobs, n.lm, temperature=temperature)
    tokens = jnp.concatenate([batch.queries, sampled.responses], axis=1)
    mask = jnp.concatenate([batch.query_mask, mask], axis=1)
    return Reading(
        logprobs=token_logprobs(scale_logits(logits, temperature), sampled.responses),
        lm_logprobs={
            name: logprobs(params, batch, sampled) for name, params in n.lm_params.items()
        },
        values=values,
        scores={
            name: model.score(n.reward_params[name], tokens, mask, None, start=Q)
            for name, model in n.reward_models.items()
        },
    )


def read_packed(
    networks: Readers, batch: QueryBatch, sampled: Generation, *, temperature: float
) -> Reading:
    """The same from the real tokens alone: one packing for all networks."""
    n, Q, R = networks, batch.queries.shape[1], sampled.mask.shape[1]
    tokens = jnp.concatenate([batch.queries, sampled.responses], axis=1)
    mask = jnp.concatenate([batch.query_mask, sampled.mask], axis=1)
    # A response token is predicted one column before it; a score is made of the outputs at them.
    predicted = jnp.pad(sampled.responses, [(0, 0), (Q - 1, 1)])
    read = mask.at[:, : Q - 1].set(False)

    def outputs(block: Block):
        targets = block.take(predicted)

        def logprobs(logits):
            return block.put(token_logprobs(scale_logits(logits, temperature), targets))

        logits, values = n.policy_value.read(n.params, block.rows)
        return (
            logprobs(logits),
            {name: logprobs(n.lm.read(params, block.rows)) for name, params in n.lm_params.items()},
            None if values is None else block.put(values),
            {
                name: block.put(model.read(n.reward_params[name], block.rows))
                for name, model in n.reward_models.items()
            },
        )

    found = sum_over_blocks(outputs, pack(tokens, mask, read, most_read=R + 1))
    logprobs, lm_logprobs, values, scores = found
    logprobs, lm_logprobs, values = jax.tree.map(
        lambda x: x[:, Q - 1 : -1], (logprobs, lm_logprobs, values)
    )
    scores = {name: n.reward_models[name].pool(x, mask, start=Q) for name, x in scores.items()}
    return Reading(logprobs, lm_logprobs, values, scores)


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
