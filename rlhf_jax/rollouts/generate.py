"""Sampling responses: prefill and decode in one program, with a preallocated KV cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.models import layout
from rlhf_jax.models.heads import Cache, LanguageModel
from rlhf_jax.rollouts.filters import draw, filter_logits, greedy
from rlhf_jax.types import Generation, Params


class Decoding(NamedTuple):
    """State of the decode loop."""

    t: Int[Array, ""]
    token: Int[Array, "B"]
    done: Bool[Array, "B"]
    cache: Cache
    generation: Generation


def row_keys(key: Key[Array, ""], batch_size: int) -> Key[Array, "B"]:
    """A key for every row of a batch, which depends on the row's number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))


def generate(
    model: LanguageModel,
    params: Params,
    queries: Int[Array, "P Q"],
    query_mask: Bool[Array, "P Q"],
    keys: Key[Array, "B"],
    *,
    length: int,
    temperature: float,
    top_k: int,
    top_p: float,
    eos_id: int,
    pad_id: int,
) -> Generation:
    """Sample up to ``length`` tokens per row; the loop ends when every row has ended.

    Rows are K = B / P responses to each query, one after the other; a query is read once.
    Token t of a row is drawn with ``fold_in(keys[row], t)``: a row's response depends neither on
    the other rows nor on the device. ``temperature`` 0 is greedy, with log-probs at temperature 1.
    After EOS come ``pad_id``, mask False and log-prob 0.
    """

    def sample(t, logits, done):
        if temperature == 0:
            token, logprob = greedy(logits)
        else:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
            options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
            token, logprob = draw(step_keys, filter_logits(logits, **options))
        return jnp.where(done, pad_id, token), jnp.where(done, 0.0, logprob)

    def write(generation: Generation, t, token, logprob, done):
        return Generation(
            responses=generation.responses.at[:, t].set(token),
            mask=generation.mask.at[:, t].set(~done),
            logprobs=generation.logprobs.at[:, t].set(logprob),
        )

    def step(state: Decoding) -> Decoding:
        logits, cache = model.decode(params, state.token, state.cache)
        token, logprob = sample(state.t, logits, state.done)
        generation = write(state.generation, state.t, token, logprob, state.done)
        return Decoding(state.t + 1, token, state.done | (token == eos_id), cache, generation)

    B = len(keys)
    empty = Generation(
        responses=jnp.full((B, length), pad_id, jnp.int32),
        mask=jnp.zeros((B, length), bool),
        logprobs=jnp.zeros((B, length), jnp.float32),
    )
    logits, cache = model.prefill(params, queries, query_mask, length=length)
    if len(queries) < B:
        logits, cache = repeat_rows(logits, cache, B // len(queries))
    nobody = jnp.zeros(B, bool)
    token, logprob = sample(jnp.int32(0), logits, nobody)
    first = write(empty, 0, token, logprob, nobody)
    state = Decoding(jnp.int32(1), token, token == eos_id, cache, first)
    going = lambda state: (state.t < length) & ~state.done.all()
    return jax.lax.while_loop(going, step, state).generation


def repeat_rows(
    logits: Float[Array, "P V"], cache: Cache, times: int
) -> tuple[Float[Array, "B V"], Cache]:
    """Every row ``times`` in a row: where the responses to one query begin to differ."""
    rows = lambda x, axis=0: jnp.repeat(x, times, axis=axis)
    layers = jax.tree.map(lambda x: layout.heads(rows(x, x.ndim - 4)), cache.layers)
    return rows(logits), Cache(layers, rows(cache.mask), rows(cache.positions), cache.index)
