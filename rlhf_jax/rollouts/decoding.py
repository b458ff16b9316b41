"""The loop that samples token after token, and who is in it.

Responses differ in length, and a row that has ended still takes part in every product. Two things
keep such rows few: waiting prompts take the places of rows that have ended (``with_refill``), and
when none waits any more, the loop is left when half of the rows have ended and goes on with the
others alone (``decode_rest``). Neither changes what a row answers: that hangs on its own key.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.models import layout
from rlhf_jax.models.heads import Cache
from rlhf_jax.types import Generation

PARTS = (2,)
"""The rows that go on are gathered when they are half of the batch: the loop is compiled once
more."""
PARTS_OF_PLACES = (2, 8)
"""After refills, when the last rows were begun late and most others have long ended: half of the
places, and an eighth of them."""
SMALLEST, FEWEST_PLACES = 32, 4
"""Rows under which a smaller batch is not worth its compilation: of a whole batch, and of places,
which somebody asked for who knows that answers differ much in length."""
REFILLS = 8
"""In how many parts all places are refilled: more are emptier for a shorter time, but prompts are
read fewer at once."""


class Decoding(NamedTuple):
    """State of the decode loop: S places, each with the row that it answers or has answered."""

    step: Int[Array, ""]
    """Tokens that the loop has read, which says where it writes the next one's keys and values."""
    row: Int[Array, "S"]
    """Number of each place's row in the batch."""
    t: Int[Array, "S"]
    """Column of each row's next token."""
    token: Int[Array, "S"]
    done: Bool[Array, "S"]
    keys: Key[Array, "S"]
    cache: Cache
    generation: Generation


Step = Callable[[Decoding], Decoding]
Begin = Callable[[Int[Array, ""], int], Decoding]
"""``(first, count) -> `` rows ``first`` to ``first + count``, with their first token sampled."""


def no_responses(rows: int, length: int, pad_id: int, dtype: jnp.dtype) -> Generation:
    """So many rows before anything is sampled."""
    return Generation(
        responses=jnp.full((rows, length), pad_id, jnp.int32),
        mask=jnp.zeros((rows, length), bool),
        logprobs=jnp.zeros((rows, length), dtype),
    )


def write(
    generation: Generation,
    t: Int[Array, "S"],
    token: Int[Array, "S"],
    logprob: Float[Array, "S"],
    done: Bool[Array, "S"],
) -> Generation:
    """``generation`` with column ``t`` of each row, which is real in rows that are not ``done``."""
    # Compared, not indexed: on several devices an index of each row's own would gather all rows.
    here = (jnp.arange(generation.mask.shape[1])[None] == t[:, None]) & ~done[:, None]
    return Generation(
        responses=jnp.where(here, token[:, None], generation.responses),
        mask=generation.mask | here,
        logprobs=jnp.where(here, logprob[:, None], generation.logprobs),
    )


# --- waiting prompts ------------------------------------------------------------------------------


def places_for(rows: int, per_query: int, at_once: float) -> int:
    """How many of ``rows`` are answered at the same time: a share of them, in whole queries."""
    # Less a little, so that 0.07 of 100 queries are 7: the product is 7.000000000000001 in binary.
    queries = math.ceil(at_once * (rows // per_query) - 1e-9)
    return per_query * max(1, queries)


def begun_together(rows: int, places: int, per_query: int) -> int:
    """How many rows are begun at once: whole queries, and a divisor of all that wait."""
    waiting, few = (rows - places) // per_query, places // per_query // REFILLS
    return per_query * math.gcd(waiting, max(1, few))


def with_refill(
    step: Step, begin: Begin, state: Decoding, *, rows: int, count: int
) -> tuple[Decoding, Generation]:
    """Take steps until every row of the batch has been begun, ``count`` of them at a time.

    Returns the places as they are then, and of all rows the responses that left them.
    """
    length = state.generation.mask.shape[1]
    answered = jax.tree.map(lambda x: jnp.zeros((rows, length), x.dtype), state.generation)

    def few_have_ended(state: Decoding):
        return state.done.sum() < count

    def somebody_waits(carry):
        return carry[0] < rows

    def refill(carry):
        first, state, answered = carry
        state = jax.lax.while_loop(few_have_ended, step, state)
        # False sorts before True: places that are done come first, of which there are enough.
        places = jnp.argsort(~state.done, stable=True)[:count]
        answered = put_rows(answered, state, places)

        def begin_here(old, new):
            # With the mask of the row before, and its keys and values. The numbers are the loop's.
            return old if old.ndim == 0 else old.at[places].set(new)

        state = jax.tree.map(begin_here, state, begin(first, count))
        return first + count, state, answered

    first = jnp.int32(len(state.row))
    _, state, answered = jax.lax.while_loop(somebody_waits, refill, (first, state, answered))
    return state, answered


def put_rows(answered: Generation, state: Decoding, places: Int[Array, "C"]) -> Generation:
    """``answered`` with the responses of these places, at their rows."""
    rows = state.row[places]
    return jax.tree.map(lambda x, y: x.at[rows].set(y[places]), answered, state.generation)


# --- fewer rows -----------------------------------------------------------------------------------


def smaller_batches(rows: int, *, refilled: bool) -> tuple[int, ...]:
    """Numbers of rows to go on with. On several devices none: rows would move between them."""
    parts, fewest = (PARTS_OF_PLACES, FEWEST_PLACES) if refilled else (PARTS, SMALLEST)
    sizes = tuple(rows // part for part in parts)
    return tuple(size for size in sizes if size >= fewest) if layout.on_one_device() else ()


def decode_rest(step: Step, state: Decoding, *, sizes: tuple[int, ...]) -> Generation:
    """Take steps until every row has ended; when only ``sizes[0]`` go on, with those alone."""
    # With no smaller batch to go on with, the loop is left when no row goes on.
    few = sizes[0] if sizes else 0

    def going(state: Decoding):
        return (~state.done).sum() > few

    state = jax.lax.while_loop(going, step, state)
    if not sizes:
        return state.generation
    # False sorts before True: those that go on come first. There are at most ``few`` of them, and
    # rows that are done fill the rest, so that the shape is known when the program is compiled.
    rows = jnp.argsort(state.done, stable=True)[:few]

    def take(x, axis=0):
        return jnp.take(x, rows, axis=axis)

    rest = Decoding(
        state.step,
        *map(take, (state.row, state.t, state.token, state.done, state.keys)),
        with_rows(state.cache, take),
        jax.tree.map(take, state.generation),
    )
    # Traced again at the smaller size: each halving costs one more program of the loop's body.
    finished = decode_rest(step, rest, sizes=sizes[1:])
    # Rows that were done come back as they were.
    return jax.tree.map(lambda x, y: x.at[rows].set(y), state.generation, finished)


def with_rows(cache: Cache, change: Callable[[Array, int], Array]) -> Cache:
    """``cache`` whose rows are repeated or taken by ``change(array, axis of the rows)``."""
    # The layout is said again: a repeat or a take forgets it.
    layers = jax.tree.map(lambda x: layout.heads(change(x, 0)), cache.layers)
    return Cache(layers, change(cache.mask, 0), change(cache.positions, 0), cache.index)
