"""Sampling responses: prefill and decode in one program, with a preallocated KV cache.

Responses differ in length, and a row that has ended still takes part in every product. So the loop
is left when half of the rows have ended, and goes on with the others alone (see ``decode_rest``).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.models import layout
from rlhf_jax.models.heads import Cache, LanguageModel
from rlhf_jax.objectives.ends import is_end
from rlhf_jax.rollouts.filters import draw, filter_logits, greedy
from rlhf_jax.types import Generation, Params

HALVINGS = 1
"""How often the rows that go on are gathered into half a batch: the loop is compiled once more."""
SMALLEST = 32
"""Rows under which a smaller batch is hardly quicker."""


class Decoding(NamedTuple):
    """State of the decode loop."""

    t: Int[Array, ""]
    token: Int[Array, "B"]
    done: Bool[Array, "B"]
    keys: Key[Array, "B"]
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
    end_ids: Sequence[int],
    pad_id: int,
) -> Generation:
    """Sample up to ``length`` tokens per row; decoding ends when every row has ended.

    Rows are K = B / P responses to each query, one after the other; a query is read once.
    Token t of a row is drawn with ``fold_in(keys[row], t)``: a row's response depends neither on
    the other rows nor on the device. ``temperature`` 0 is greedy, with log-probs at temperature 1.
    After any of ``end_ids`` come ``pad_id``, mask False and log-prob 0.
    """
    sample = partial(sample_token, temperature=temperature, top_k=top_k, top_p=top_p, pad_id=pad_id)

    def step(params: Params, state: Decoding) -> Decoding:
        logits, cache = model.decode(params, state.token, state.cache)
        token, logprob = sample(state.t, logits, state.keys, state.done)
        generation = write(state.generation, state.t, token, logprob, state.done)
        done = state.done | is_end(token, end_ids)
        return Decoding(state.t + 1, token, done, state.keys, cache, generation)

    B = len(keys)
    logits, cache = model.prefill(params, queries, query_mask, length=length)
    if len(queries) < B:  # here the responses to one query begin to differ

        def repeat(x, axis):
            # Not taken by number: on several devices that would gather the cache.
            return jnp.repeat(x, B // len(queries), axis=axis)

        logits, cache = repeat(logits, 0), with_rows(cache, repeat)
    # The first token comes from prefill's logits; the loop feeds each token in to get the next.
    nobody = jnp.zeros(B, bool)
    token, logprob = sample(jnp.int32(0), logits, keys, nobody)
    empty = Generation(
        responses=jnp.full((B, length), pad_id, jnp.int32),
        mask=jnp.zeros((B, length), bool),
        logprobs=jnp.zeros((B, length), logprob.dtype),
    )
    first = write(empty, jnp.int32(0), token, logprob, nobody)
    state = Decoding(jnp.int32(1), token, is_end(token, end_ids), keys, cache, first)

    def rest(params, state):
        return decode_rest(partial(step, params), state, length=length, sizes=smaller_batches(B))

    # Transposed once, outside the loop, which reads the kernels again for every token.
    def rest_transposed(params, state):
        return rest(model.transposed(params), state)

    if not model.prefers_transposed(B):
        return rest(params, state)
    return jax.lax.platform_dependent(params, state, cpu=rest_transposed, default=rest)


def sample_token(
    t: Int[Array, ""],
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
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        logits = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        token, logprob = draw(step_keys, logits)
    # 0, so that sums over a response need no mask.
    return jnp.where(done, pad_id, token), jnp.where(done, 0.0, logprob)


def write(
    generation: Generation,
    t: Int[Array, ""],
    token: Int[Array, "B"],
    logprob: Float[Array, "B"],
    done: Bool[Array, "B"],
) -> Generation:
    """``generation`` with its column ``t``, which is real in rows that are not ``done``."""
    return Generation(
        responses=generation.responses.at[:, t].set(token),
        mask=generation.mask.at[:, t].set(~done),
        logprobs=generation.logprobs.at[:, t].set(logprob),
    )


def smaller_batches(rows: int) -> tuple[int, ...]:
    """Numbers of rows to go on with. On several devices none: rows would move between them."""
    sizes = tuple(rows >> n for n in range(1, HALVINGS + 1))
    return tuple(size for size in sizes if size >= SMALLEST) if layout.on_one_device() else ()


def decode_rest(
    step: Callable[[Decoding], Decoding], state: Decoding, *, length: int, sizes: tuple[int, ...]
) -> Generation:
    """Take steps until every row has ended; when only ``sizes[0]`` go on, with those alone."""
    # With no smaller batch to go on with, the loop is left when no row goes on.
    few = sizes[0] if sizes else 0

    def going(state: Decoding):
        return (state.t < length) & ((~state.done).sum() > few)

    state = jax.lax.while_loop(going, step, state)
    if not sizes:
        return state.generation
    # False sorts before True: those that go on come first. There are at most ``few`` of them, and
    # rows that are done fill the rest, so that the shape is known when the program is compiled.
    rows = jnp.argsort(state.done, stable=True)[:few]

    def take(x, axis=0):
        return jnp.take(x, rows, axis=axis)

    rest = Decoding(
        state.t,
        *map(take, (state.token, state.done, state.keys)),
        with_rows(state.cache, take),
        jax.tree.map(take, state.generation),
    )
    # Traced again at the smaller size: each halving costs one more program of the loop's body.
    finished = decode_rest(step, rest, length=length, sizes=sizes[1:])
    # Rows that were done come back as they were.
    return jax.tree.map(lambda x, y: x.at[rows].set(y), state.generation, finished)


def with_rows(cache: Cache, change: Callable[[Array, int], Array]) -> Cache:
    """``cache`` whose rows are repeated or taken by ``change(array, axis of the rows)``."""
    # The layout is said again: a repeat or a take forgets it.
    layers = jax.tree.map(lambda x: layout.heads(change(x, 0)), cache.layers)
    return Cache(layers, change(cache.mask, 0), change(cache.positions, 0), cache.index)
