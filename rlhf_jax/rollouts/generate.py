"""Sampling responses: prefill and decode in one program, with a preallocated KV cache."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.errors import check
from rlhf_jax.models import layout
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.objectives.ends import is_end
from rlhf_jax.rollouts.decoding import (
    Decoding,
    begun_together,
    decode_rest,
    no_responses,
    places_for,
    put_rows,
    smaller_batches,
    with_refill,
    with_rows,
    write,
)
from rlhf_jax.rollouts.filters import draw, filter_logits, greedy
from rlhf_jax.types import Generation, Params


def row_keys(key: Key[Array, ""], batch_size: int) -> Key[Array, "B"]:
    """A key for every row of a batch, which depends on the row's number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))


Sample = Callable[..., tuple[Int[Array, "S"], Float[Array, "S"]]]
"""``(t, logits, keys, done) -> tokens and their log-probs``: ``sample_token`` with its settings."""


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
    end_ids: Sequence[int],
    pad_id: int,
    at_once: float,
) -> Generation:
    """Sample up to ``length`` tokens per row; decoding ends when every row has ended.

    Rows are K = B / P responses to each query, one after the other; a query is read once.
    Token t of a row is drawn with ``fold_in(keys[row], t)``: a row's response depends neither on
    the other rows nor on the device. ``temperature`` 0 is greedy, with log-probs at temperature 1.
    After any of ``end_ids`` come ``pad_id``, mask False and log-prob 0.

    The share ``at_once`` of the rows is answered at the same time; the others take the places of
    those that have ended. Raises InputError where a sliding window does not allow that.
    """
    Q = queries.shape[1]
    check(
        at_once == 1 or not 0 < model.window < Q + length,
        f"sampling.at_once={at_once}: a model with a sliding window of {model.window} tokens reads "
        f"{Q + length} tokens in their order; expected 1",
    )
    sample = partial(sample_token, temperature=temperature, top_k=top_k, top_p=top_p, pad_id=pad_id)
    options = dict(length=length, end_ids=tuple(end_ids), pad_id=pad_id)
    answer = partial(answer_rows, model, sample, at_once=at_once, **options)
    # Replicas of the weights have no reason to wait for each other.
    return layout.on_own_rows(answer, rows=len(queries), own=3)(params, queries, query_mask, keys)


def answer_rows(
    model: LanguageModel,
    sample: Sample,
    params: Params,
    queries: Int[Array, "P Q"],
    query_mask: Bool[Array, "P Q"],
    keys: Key[Array, "B"],
    *,
    at_once: float,
    **options,
) -> Generation:
    """``generate`` for rows that lie together."""
    (P, Q), B = queries.shape, len(keys)
    K = B // P
    places = places_for(B, K, at_once)
    # Key by key in a loop, each once: as numbers, for a checker of reuse sees the same array again.
    numbers, kind = jax.random.key_data(keys), jax.random.key_impl(keys)

    def begin(first: Int[Array, ""], count: int) -> Decoding:
        def part(x, per):
            # All of them are not cut out: on several devices that would gather them.
            return x if count == B else jax.lax.dynamic_slice_in_dim(x, first // per, count // per)

        asked, mask = part(queries, K), part(query_mask, K)
        own_keys = jax.random.wrap_key_data(part(numbers, 1), impl=kind)
        state = begin_rows(model, sample, params, asked, mask, own_keys, **options)
        return state._replace(row=first + state.row)

    def rest(read_params, state):
        step = partial(take_step, model, sample, read_params, first_slot=Q, **options)
        sizes = smaller_batches(places, refilled=places < B)
        if places == B:
            return decode_rest(step, state, sizes=sizes)
        count = begun_together(B, places, K)
        state, answered = with_refill(step, begin, state, rows=B, count=count)
        finished = decode_rest(step, state, sizes=sizes)
        return put_rows(answered, state._replace(generation=finished), jnp.arange(places))

    # Once, outside the loop, which reads the kernels again for every token.
    def rest_rearranged(params, state):
        return rest(model.rearranged(params, places), state)

    state = begin(jnp.int32(0), places)
    if not model.prefers_rearranged(places):
        return rest(params, state)
    return jax.lax.platform_dependent(params, state, cpu=rest_rearranged, default=rest)


def begin_rows(
    model: LanguageModel,
    sample: Sample,
    params: Params,
    queries: Int[Array, "P Q"],
    query_mask: Bool[Array, "P Q"],
    keys: Key[Array, "B"],
    *,
    length: int,
    end_ids: tuple[int, ...],
    pad_id: int,
) -> Decoding:
    """Read the queries, and sample the first token of each of their rows."""
    B = len(keys)
    logits, cache = model.prefill(params, queries, query_mask, length=length)
    if len(queries) < B:  # here the responses to one query begin to differ

        def repeat(x, axis):
            # Not taken by number: on several devices that would gather the cache.
            return jnp.repeat(x, B // len(queries), axis=axis)

        logits, cache = repeat(logits, 0), with_rows(cache, repeat)
    # The first token comes from prefill's logits; the loop feeds each token in to get the next.
    nobody, t = jnp.zeros(B, bool), jnp.zeros(B, jnp.int32)
    token, logprob = sample(t, logits, keys, nobody)
    empty = no_responses(B, length, pad_id, logprob.dtype)
    return Decoding(
        step=jnp.int32(0),
        row=jnp.arange(B, dtype=jnp.int32),
        t=t + 1,
        token=token,
        done=is_end(token, end_ids) | (length == 1),
        keys=keys,
        cache=cache,
        generation=write(empty, t, token, logprob, nobody),
    )


def take_step(
    model: LanguageModel,
    sample: Sample,
    params: Params,
    state: Decoding,
    *,
    first_slot: int,
    length: int,
    end_ids: tuple[int, ...],
    pad_id: int,
) -> Decoding:
    """Read the newest token of every row, and sample the next."""
    # After ``length`` steps the slots are written anew: no response reaches so far back, and one
    # that was begun in between does not see what is older than itself.
    index = first_slot + state.step % length
    logits, cache = model.decode(params, state.token, state.cache._replace(index=index))
    # A row that has ended stays where it is: its position could leave the model's context.
    positions = jnp.where(state.done, state.cache.positions, cache.positions)
    token, logprob = sample(state.t, logits, state.keys, state.done)
    return Decoding(
        step=state.step + 1,
        row=state.row,
        t=state.t + 1,
        token=token,
        done=state.done | is_end(token, end_ids) | (state.t + 1 >= length),
        keys=state.keys,
        cache=cache._replace(positions=positions),
        generation=write(state.generation, state.t, token, logprob, state.done),
    )


def sample_token(
    t: Int[Array, "B"],
    logits: Float[Array, "B V"],
    keys: Key[Array, "B"],
    done: Bool[Array, "B"],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    pad_id: int,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Token ``t`` of every row with its log-prob; of rows that are ``done`` the padding, and 0."""
    if temperature == 0:
        token, logprob = greedy(logits)
    else:
        # A key for each row and place: the draw does not depend on who else is in the batch.
        step_keys = jax.vmap(jax.random.fold_in)(keys, t)
        logits = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        token, logprob = draw(step_keys, logits)
    # 0, so that sums over a response need no mask.
    return jnp.where(done, pad_id, token), jnp.where(done, 0.0, logprob)
