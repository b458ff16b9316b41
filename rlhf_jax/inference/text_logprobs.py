"""Log-probabilities of given texts under a language model, whatever their lengths."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.heads import make_language_model
from rlhf_jax.objectives.logprobs import token_logprobs
from rlhf_jax.runs.trained import Trained

BUCKET = 64
"""Lengths are padded to multiples of this, so that few programs are compiled."""


class Scored(NamedTuple):
    """Of the tokens that were counted."""

    logprob: float
    """Sum in nats, at temperature 1."""
    greedy: bool
    """Whether each is the likeliest."""


Row = tuple[Sequence[int], int]
"""Ids of context and continuation together, and how many of the last ones are counted."""


def make_logprob_scorer(
    trained: Trained, *, batch_size: int
) -> Callable[[Sequence[Row]], list[Scored]]:
    """``rows -> Scored of each``, in the order given.

    Ids over the context are cut at their beginning.
    """
    lm = make_language_model(trained.model, trained.vocab_size)
    # The last token is predicted and never read.
    longest = trained.model.context + 1

    @jax.jit
    def score(params, tokens, mask, targets):
        logits = lm.logits(params, tokens[:, :-1], mask[:, :-1], start=0)
        targets, wanted = targets[:, 1:], tokens[:, 1:]
        logprobs = jnp.where(targets, token_logprobs(logits, wanted), 0.0)
        greedy = (logits.argmax(axis=-1) == wanted) | ~targets
        return logprobs.sum(axis=1), greedy.all(axis=1)

    def batch_of(rows: Sequence[Row]) -> list[Scored]:
        # One more than a multiple: the model reads all but the last column.
        columns = max(len(ids) for ids, _ in rows)
        shape = (batch_size, -(-(columns - 1) // BUCKET) * BUCKET + 1)
        tokens = np.full(shape, trained.tokenizer.pad_id, np.int32)
        mask, targets = np.zeros(shape, bool), np.zeros(shape, bool)
        for row, (ids, counted) in enumerate(rows):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
            # A row's first token has nothing before it, so it is never counted.
            targets[row, len(ids) - min(counted, len(ids) - 1) : len(ids)] = True
        scored = score(trained.params, *map(jnp.asarray, (tokens, mask, targets)))
        logprobs, greedy = map(np.asarray, scored)
        return [Scored(float(logprobs[i]), bool(greedy[i])) for i in range(len(rows))]

    def score_all(rows: Sequence[Row]) -> list[Scored]:
        rows = [(list(ids)[-longest:], counted) for ids, counted in rows]
        # Rows of similar length share a batch, so that little is padding.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        results: dict[int, Scored] = {}
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            for i, result in zip(chosen, batch_of([rows[i] for i in chosen]), strict=True):
                results[i] = result
        return [results[i] for i in range(len(rows))]

    return score_all


def continuation_logprobs(
    trained: Trained, score: Callable, pairs: Sequence[tuple[str, str]]
) -> np.ndarray:
    """log P(continuation | context) in nats; an empty context is begin or end of text."""
    tokenizer = trained.tokenizer
    rows = []
    for context, continuation in pairs:
        # Something must stand before the first token; an end of text is what documents begin after.
        before = tokenizer.encode_beginning(context) or [tokenizer.eos_id]
        after = tokenizer.encode(continuation)
        rows.append(([*before, *after], len(after)))
    return np.array([scored.logprob for scored in score(rows)])
