"""How many tokens prompts and answers get, where nobody says it: what the data need."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rlhf_jax.errors import InputError

MULTIPLE = 8
"""Lengths are rounded up to it: data that grow a little need no other programs."""
SPLITS = 1024
"""Ways to divide a context between prompt and answer that are tried."""


class Lengths(NamedTuple):
    """Tokens that a prompt and an answer (with its end) may have."""

    prompt_length: int
    response_length: int


def choose_lengths(
    prompts: Int[np.ndarray, "N"],
    answers: Int[np.ndarray, "N"],
    *,
    context: int,
    prompt_length: int | None = None,
    response_length: int | None = None,
) -> Lengths:
    """Room for the longest of both; if they do not fit ``context``, for as many rows as can be.

    ``prompts`` and ``answers`` are the tokens of each row. A length that is given stays. Raises
    InputError where it leaves no room for the other.
    """
    needed = Lengths(
        prompt_length or _rounded_up(int(prompts.max(initial=1))),
        response_length or _rounded_up(int(answers.max(initial=1))),
    )
    if sum(needed) <= context or None not in (prompt_length, response_length):
        return needed
    fixed = prompt_length or response_length
    if fixed:
        left = context - fixed
        given, other = ("prompt", "answers") if prompt_length else ("response", "prompts")
        if left < 1:
            raise InputError(
                f"{given}_length={context - left} leaves no room for {other} in the model's "
                f"context of {context} tokens"
            )
        return Lengths(prompt_length or left, response_length or left)
    # Tried one by one: how many rows a split loses is no smooth function of it.
    splits = range(1, context, max(context // SPLITS, 1))
    lost = [int(((answers > R) | (prompts > context - R)).sum()) for R in splits]
    best = splits[int(np.argmin(lost))]
    return Lengths(context - best, best)


def _rounded_up(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE
