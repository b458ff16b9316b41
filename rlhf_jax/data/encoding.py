"""From text to arrays: whole data sets in the containers of ``rlhf_jax.types``, one row each.

The arrays of a set have one row more than the set: the last one is empty (no token is real), which
fills up the last batch of a finite pass. Integers are stored as small as they fit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from rlhf_jax.data.formats import Comparison, Demonstration, Prompt, Text
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError
from rlhf_jax.types import ComparisonBatch, LMBatch, QueryBatch

TEXTS_AT_ONCE = 1024
"""Texts per call of the tokenizer: enough to keep its threads busy, few enough for memory."""


class EncodingReport(NamedTuple):
    """What became of the rows of a data set."""

    kept: int
    prompts_truncated: int
    """Longer than allowed: their end was kept."""
    responses_truncated: int
    """Longer than allowed: their beginning was kept, without an end of text."""
    dropped: int
    """Demonstrations that do not fit, documents without a token."""


class Piece(NamedTuple):
    """Consecutive tokens of one text; those from ``first_target`` on carry the loss."""

    ids: np.ndarray
    first_target: int


def encode_texts(texts: Iterable[Text], tokenizer: Tokenizer) -> list[Int[np.ndarray, "_"]]:
    """Ids of each document, ending in exactly one end of text."""
    encoded = _encode((text.text for text in texts), tokenizer.encode_batch)
    return [np.asarray([*ids, tokenizer.eos_id], np.int32) for ids in encoded]


def split_document(ids: Int[np.ndarray, "_"], *, block_size: int) -> list[Piece]:
    """Pieces of at most ``block_size`` tokens.

    A continuation begins with the last token of the piece before it, as context, so every token
    of a document but its first is a target exactly once.
    """
    starts = range(0, max(1, len(ids) - 1), block_size - 1)
    return [Piece(ids[start : start + block_size], first_target=1) for start in starts]


def pack(pieces: Sequence[Piece], *, block_size: int, pad_id: int, apart: bool = False) -> LMBatch:
    """All pieces, several per row, in as few rows as best-fit decreasing finds; and an empty row.

    Longest pieces are placed first, each in the fullest row that has room for it (Johnson 1973).
    ``apart`` gives each piece a row of its own, in their order.
    """
    rows, starts = best_fit([len(piece.ids) for piece in pieces], block_size=block_size)
    if apart:
        rows, starts = list(range(len(pieces))), [0] * len(pieces)
    shape = (max(rows, default=-1) + 2, block_size)
    largest = max((int(piece.ids.max()) for piece in pieces), default=0)
    tokens = np.full(shape, pad_id, np.min_scalar_type(max(largest, pad_id)))
    segments = np.zeros(shape, np.min_scalar_type(block_size))
    positions = np.zeros(shape, np.min_scalar_type(block_size))
    targets = np.zeros(shape, bool)
    segments_of_row = [0] * shape[0]
    for (ids, first_target), row, start in zip(pieces, rows, starts, strict=True):
        end = start + len(ids)
        segments_of_row[row] += 1
        tokens[row, start:end] = ids
        segments[row, start:end] = segments_of_row[row]
        positions[row, start:end] = np.arange(len(ids))
        targets[row, start + first_target : end] = True
    return LMBatch(tokens=tokens, loss_mask=targets, segment_ids=segments, positions=positions)


def best_fit(lengths: Sequence[int], *, block_size: int) -> tuple[list[int], list[int]]:
    """(row, first column) of each piece; rows are numbered in the order of their first pieces."""
    rows, starts = [0] * len(lengths), [0] * len(lengths)
    with_room: list[list[int]] = [[] for _ in range(block_size)]  # room -> rows that have it
    rooms = 0  # bit r is set if some row has room for exactly r more tokens
    count = 0
    for piece in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        length = lengths[piece]
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
        else:
            room, row, count = block_size, count, count + 1
        rows[piece], starts[piece] = row, block_size - room
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    # Not by length: the first rows of a pass in order should be like the rest.
    number = {row: n for n, row in enumerate(dict.fromkeys(rows))}
    return [number[row] for row in rows], starts


def encode_documents(
    documents: Iterable[Int[np.ndarray, "_"]], *, block_size: int, pad_id: int
) -> tuple[LMBatch, EncodingReport]:
    """Packed documents; a document of one token, which has nothing to predict, is dropped."""
    if block_size < 2:
        raise InputError(f"block_size={block_size} is under 2: no token would have a context")
    documents = list(documents)
    used = [ids for ids in documents if len(ids) > 1]
    pieces = [piece for ids in used for piece in split_document(ids, block_size=block_size)]
    if not pieces:
        raise InputError(f"none of {len(documents)} documents has any text")
    report = EncodingReport(len(used), 0, 0, dropped=len(documents) - len(used))
    return pack(pieces, block_size=block_size, pad_id=pad_id), report


def encode_demonstrations(
    demonstrations: Iterable[Demonstration],
    tokenizer: Tokenizer,
    *,
    block_size: int,
    prompt_length: int,
    response_length: int,
    target: Literal["response", "all"],
    apart: bool = False,
) -> tuple[LMBatch, EncodingReport]:
    """Packed ``prompt + completion + end of text``, as the policy will see and sample them.

    Prompt and completion are encoded apart. A long prompt keeps its end; a demonstration whose
    completion and end of text are over ``response_length`` is dropped. ``apart`` gives each a row.
    """
    if prompt_length + response_length > block_size:
        raise InputError(
            f"prompt_length + response_length = {prompt_length + response_length} is over "
            f"block_size={block_size}"
        )
    demonstrations = list(demonstrations)
    prompts = _encode((each.prompt for each in demonstrations), tokenizer.encode_prompts)
    completions = _encode((each.completion for each in demonstrations), tokenizer.encode_batch)
    pieces, truncated = [], 0
    for prompt, completion in zip(prompts, completions, strict=True):
        if len(completion) < response_length:
            truncated += len(prompt) > prompt_length
            prompt = prompt[-prompt_length:]
            ids = np.asarray([*prompt, *completion, tokenizer.eos_id], np.int32)
            pieces.append(Piece(ids, first_target=len(prompt) if target == "response" else 1))
    if not pieces:
        raise InputError(
            f"none of {len(demonstrations)} demonstrations fits response_length={response_length} "
            "with its end of text"
        )
    report = EncodingReport(len(pieces), truncated, 0, len(demonstrations) - len(pieces))
    return pack(pieces, block_size=block_size, pad_id=tokenizer.pad_id, apart=apart), report


def encode_prompts(
    prompts: Iterable[Prompt], tokenizer: Tokenizer, *, query_length: int
) -> tuple[QueryBatch, EncodingReport]:
    """Left-padded queries in the order of the prompts; a long prompt keeps its end."""
    encoded = list(_encode((each.prompt for each in prompts), tokenizer.encode_prompts))
    queries, mask, truncated = _left_padded(encoded, query_length, tokenizer.pad_id)
    index = np.append(np.arange(len(encoded), dtype=np.int32), np.int32(-1))
    return QueryBatch(queries, mask, index), EncodingReport(len(encoded), truncated, 0, 0)


def encode_comparisons(
    comparisons: Iterable[Comparison],
    tokenizer: Tokenizer,
    *,
    query_length: int,
    response_length: int,
) -> tuple[ComparisonBatch, EncodingReport]:
    """Queries with their K ranked responses; fewer than the largest K leave ranks of -1.

    A response of text ends in one end of text if that fits, and is cut otherwise. Sampled ids are
    taken as they are, up to and including their first end of text.
    """
    comparisons = list(comparisons)
    encoded = list(_encode((each.prompt for each in comparisons), tokenizer.encode_prompts))
    queries, query_mask, prompts_truncated = _left_padded(encoded, query_length, tokenizer.pad_id)
    most = max((len(each.ranks) for each in comparisons), default=0)
    shape = (len(comparisons) + 1, most, response_length)
    responses = np.full(shape, tokenizer.pad_id, np.int32)
    mask = np.zeros(shape, bool)
    ranks = np.full(shape[:2], -1, np.int32)
    responses_truncated = 0
    for row, comparison in enumerate(comparisons):
        ranks[row, : len(comparison.ranks)] = comparison.ranks
        for k, ids in enumerate(_response_ids(comparison, tokenizer)):
            responses_truncated += len(ids) > response_length
            ids = ids[:response_length]
            responses[row, k, : len(ids)] = ids
            mask[row, k, : len(ids)] = True
    report = EncodingReport(len(comparisons), prompts_truncated, responses_truncated, 0)
    return ComparisonBatch(queries, query_mask, responses, mask, ranks), report


def _response_ids(comparison: Comparison, tokenizer: Tokenizer) -> list[list[int]]:
    if comparison.tokens is None:
        encoded = tokenizer.encode_batch(comparison.responses)
        return [[*ids, tokenizer.eos_id] for ids in encoded]
    made = []
    for ids in map(list, comparison.tokens):
        if max(ids) >= tokenizer.vocab_size:
            raise InputError(
                f"response_tokens of the prompt {comparison.prompt[:40]!r} hold id {max(ids)}, "
                f"expected ids under the vocabulary's {tokenizer.vocab_size}"
            )
        ends = ids.index(tokenizer.eos_id) + 1 if tokenizer.eos_id in ids else len(ids)
        made.append(ids[:ends])
    return made


def _left_padded(
    encoded: list[list[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """(ids, mask, number truncated), with an empty last row."""
    ids = np.full((len(encoded) + 1, length), pad_id, np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, each in enumerate(encoded):
        kept = each[-length:]
        ids[row, length - len(kept) :] = kept
        mask[row, length - len(kept) :] = True
    return ids, mask, sum(len(each) > length for each in encoded)


def _encode(
    texts: Iterable[str], encode: Callable[[list[str]], list[list[int]]]
) -> Iterator[list[int]]:
    texts = iter(texts)
    while some := list(islice(texts, TEXTS_AT_ONCE)):
        yield from encode(some)
