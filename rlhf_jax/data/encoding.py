"""From text to arrays: whole data sets in the containers of ``rlhf_jax.types``, one row each.

The arrays of a set have one row more than the set: the last one is empty (no token is real), which
fills up the last batch of a finite pass. Integers are stored as small as they fit.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from rlhf_jax.data import fates
from rlhf_jax.data.demonstrations import every_answer
from rlhf_jax.data.fates import EncodingReport, Fate
from rlhf_jax.data.formats import Comparison, Demonstration, Prompt, Text
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError, check
from rlhf_jax.types import ComparisonBatch, LMBatch, QueryBatch, as_leaf

Target = Literal["response", "turns", "all"]
TEXTS_AT_ONCE = 1024
"""Texts per call of the tokenizer: enough to keep its threads busy, few enough for memory."""


class Piece(NamedTuple):
    """Consecutive tokens of one text; those from ``first_target`` on carry the loss."""

    ids: np.ndarray
    first_target: int


def encode_texts(texts: Iterable[Text], tokenizer: Tokenizer) -> list[Int[np.ndarray, "_"]]:
    """Ids of each document, ending in exactly one end of text.

    Raises InputError for a document that spells a special token, which would be learnt as letters,
    or has characters that would be lost.
    """
    texts, encoded = iter(texts), []
    while chunk := list(islice(texts, TEXTS_AT_ONCE)):
        for row in chunk:
            token = tokenizer.stray_special("", row.text)
            check(
                not tokenizer.lacks(row.text),
                f"{row.origin}: the text has characters that the tokenizer lacks",
            )
            check(
                token is None,
                f"{row.origin}: the text spells the special token {token}, which would be learnt "
                "as letters: divide documents by <|endoftext|>, and take other tokens out",
            )
        ids = tokenizer.encode_documents([row.text for row in chunk])
        encoded += [np.asarray(document, np.int32) for document in ids]
    return encoded


def split_document(ids: Int[np.ndarray, "_"], *, block_size: int) -> list[Piece]:
    """Pieces of at most ``block_size`` tokens.

    A continuation begins with the last token of the piece before it, as context, so every token
    of a document but its first is a target exactly once.
    """
    # Steps of one less than a block: the last token of a piece is the first of the next.
    starts = range(0, max(1, len(ids) - 1), block_size - 1)
    return [Piece(ids[start : start + block_size], first_target=1) for start in starts]


def pack(
    pieces: Sequence[Piece], *, block_size: int, pad_id: int, one_per_row: bool = False
) -> LMBatch:
    """All pieces, several per row, in as few rows as best-fit decreasing finds; and an empty row.

    Longest pieces are placed first, each in the fullest row that has room for it (Johnson 1973).
    ``one_per_row`` gives each piece a row of its own, in their order.
    """
    rows, starts = best_fit([len(piece.ids) for piece in pieces], block_size=block_size)
    if one_per_row:
        rows, starts = list(range(len(pieces))), [0] * len(pieces)
    shape = (max(rows, default=-1) + 2, block_size)
    # The smallest type that holds it halves the memory of a corpus of few ids.
    largest = max((int(piece.ids.max()) for piece in pieces), default=0)
    tokens = np.full(shape, pad_id, np.min_scalar_type(max(largest, pad_id)))
    segments = np.zeros(shape, np.min_scalar_type(block_size))
    positions = np.zeros(shape, np.min_scalar_type(block_size))
    targets = np.zeros(shape, bool)
    segments_of_row = [0] * shape[0]
    for (ids, first_target), row, start in zip(pieces, rows, starts, strict=True):
        end = start + len(ids)
        # Numbered from 1: segment 0 is padding, which nothing real sees.
        segments_of_row[row] += 1
        tokens[row, start:end] = ids
        segments[row, start:end] = segments_of_row[row]
        # Each piece counts from 0, as if it stood alone in its row.
        positions[row, start:end] = np.arange(len(ids))
        targets[row, start + first_target : end] = True
    return LMBatch(*map(as_leaf, (tokens, targets, segments, positions)))


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
            # The lowest bit that is set is the least room that is enough.
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
    return pack(pieces, block_size=block_size, pad_id=pad_id), document_report(documents)


def document_report(documents: Sequence[Int[np.ndarray, "_"]]) -> EncodingReport:
    """How many documents have a token that is learnt."""
    empty = sum(len(ids) < 2 for ids in documents)
    left_out = {"empty document": empty} if empty else {}
    return EncodingReport(len(documents) - empty, left_out, cut={}, over=0, longest={})


def encode_demonstrations(
    demonstrations: Iterable[Demonstration],
    tokenizer: Tokenizer,
    *,
    block_size: int,
    prompt_length: int,
    response_length: int,
    target: Target,
    one_per_row: bool = False,
) -> tuple[LMBatch, EncodingReport]:
    """Packed ``prompt + completion + end of text``, as the policy will see and sample them.

    Prompt and completion are encoded apart. A long prompt keeps its end; a demonstration whose
    completion and end of text are over ``response_length`` is dropped. ``one_per_row`` gives each a
    row of its own. The loss is on the completion, on all ``turns`` of the assistant (each with what
    stands before it), or on ``all`` tokens.
    """
    if target == "turns":
        demonstrations = every_answer(demonstrations)
    if prompt_length + response_length > block_size:
        raise InputError(
            f"prompt_length + response_length = {prompt_length + response_length} is over "
            f"block_size={block_size}"
        )
    lengths = dict(prompt_length=prompt_length, response_length=response_length)
    row_fates = list(fates.of_demonstrations(demonstrations, tokenizer, **lengths))
    report = fates.count(row_fates)
    if not report.kept:
        raise InputError(
            f"none of {len(row_fates)} demonstrations can be learnt from: {report.lost()} "
            f"(response_length={response_length}, with the end of text)"
        )
    pieces = [demonstration_piece(fate, target=target) for fate in row_fates if fate.why is None]
    return pack(
        pieces, block_size=block_size, pad_id=tokenizer.pad_id, one_per_row=one_per_row
    ), report


def demonstration_piece(fate: Fate, *, target: Target) -> Piece:
    """Prompt and answer; the loss is on the answer, or on all tokens that have one before them."""
    (answer,) = fate.responses
    ids = np.asarray([*fate.query, *answer], np.int32)
    return Piece(ids, first_target=1 if target == "all" else len(fate.query))


def encode_prompts(
    prompts: Iterable[Prompt], tokenizer: Tokenizer, *, query_length: int, everything: bool = False
) -> tuple[QueryBatch, EncodingReport]:
    """Left-padded queries in the order of the prompts; a long prompt keeps its end.

    ``everything`` keeps those that spell a special token, too.
    """
    kept, report = _kept(
        fates.of_prompts(prompts, tokenizer, prompt_length=query_length), everything
    )
    queries, mask = _left_padded(kept.values(), query_length, tokenizer.pad_id)
    # Numbers of the prompts as the file has them: columns of a row are looked up by them later.
    index = np.array([*kept, -1], np.int32)
    return QueryBatch(*map(as_leaf, (queries, mask, index))), report


def encode_comparisons(
    comparisons: Iterable[Comparison],
    tokenizer: Tokenizer,
    *,
    query_length: int,
    response_length: int,
    everything: bool = False,
) -> tuple[ComparisonBatch, EncodingReport]:
    """Queries with their K ranked responses; fewer than the largest K leave ranks of -1.

    A response of text ends in one end of text if that fits, and is cut otherwise. Sampled ids are
    taken as they are, up to and including their first end of text. Rows that teach nothing are left
    out, unless ``everything`` is to be scored.
    """
    lengths = dict(prompt_length=query_length, response_length=response_length)
    kept, report = _kept(fates.of_comparisons(comparisons, tokenizer, **lengths), everything)
    row_fates = list(kept.values())
    queries, query_mask = _left_padded(row_fates, query_length, tokenizer.pad_id)
    most = max((len(fate.ranks) for fate in row_fates), default=0)
    shape = (len(row_fates) + 1, most, response_length)
    responses = np.full(shape, tokenizer.pad_id, np.int32)
    mask = np.zeros(shape, bool)
    # −1 everywhere first: of a row with fewer answers the rest is absent.
    ranks = np.full(shape[:2], -1, np.int32)
    for row, fate in enumerate(row_fates):
        ranks[row, : len(fate.ranks)] = fate.ranks
        for k, ids in enumerate(fate.responses):
            responses[row, k, : len(ids)] = ids
            mask[row, k, : len(ids)] = True
    leaves = (queries, query_mask, responses, mask, ranks)
    return ComparisonBatch(*map(as_leaf, leaves)), report


def _kept(rows: Iterable[Fate], everything: bool) -> tuple[dict[int, Fate], EncodingReport]:
    """Rows that are kept by their numbers, and the counts of all."""
    row_fates = list(rows)
    if everything:
        cut_off = next((fate for fate in row_fates if fate.why == fates.SEVERAL), None)
        check(cut_off is None, f"{cut_off and cut_off.row.origin}: {fates.SEVERAL}")
        row_fates = [fate._replace(why=None) for fate in row_fates]
    report = fates.count(row_fates)
    check(
        report.kept > 0 or not row_fates,
        f"none of {len(row_fates)} rows can be learnt from: {report.lost()}",
    )
    return {n: fate for n, fate in enumerate(row_fates) if fate.why is None}, report


def _left_padded(rows: Collection[Fate], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of the queries, with an empty last row."""
    ids = np.full((len(rows) + 1, length), pad_id, np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, fate in enumerate(rows):
        # On the left, so that all answers begin in one column.
        ids[row, length - len(fate.query) :] = fate.query
        mask[row, length - len(fate.query) :] = True
    return ids, mask
