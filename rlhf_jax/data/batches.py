"""Resumable iterators of batches, as numpy arrays.

Every function takes ``seed``: the order of an endless, shuffled stream in which each epoch is a new
permutation of all rows; or None for one pass in order, the last batch filled up with empty rows.
What is learnt by epochs (demonstrations, comparisons) fills up the last batch of each epoch in the
same way, so that all rows are shown equally often; texts and queries go on without a gap.
``batch_size`` is that of all processes together, and ``local_rows`` the numbers of the rows of a
batch that this process holds: it reads no others, and the batches do not depend on who holds what.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from rlhf_jax.data.encoding import (
    Target,
    encode_comparisons,
    encode_demonstrations,
    encode_documents,
    encode_prompts,
)
from rlhf_jax.data.fates import EncodingReport, total
from rlhf_jax.data.formats import Comparison, Demonstration, Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError
from rlhf_jax.types import ComparisonBatch, LMBatch, QueryBatch, as_leaf

B = TypeVar("B", LMBatch, QueryBatch, ComparisonBatch)
"""What one batch is."""

Rows = np.ndarray | None
"""Numbers of rows of a batch; None: all."""

ENDLESS = 2**40
"""Batches or rows, an end that no run sees."""


@runtime_checkable
class Resumable(Protocol):
    """An endless or finite stream of batches that can go on where it stood."""

    def __next__(self) -> Any:
        """The next batch, or StopIteration."""
        ...

    def get_state(self) -> dict:
        """Where it stands, for JSON."""
        ...

    def set_state(self, state: dict) -> None:
        """Go on from there. Raises InputError if the state is of another stream."""
        ...


class Batches(Generic[B]):
    """An iterator of batches that can tell where it stands and go there.

    ``data`` is a container of arrays with a row for each example and an empty last row, ``sizes``
    the number of rows of each corpus in it, ``weights`` the corpora's shares of the batches' rows
    (empty: one corpus, all rows alike often). ``whole_epochs``: no batch holds rows of two epochs.
    ``copies``: each row stands so many times in a batch, one after the other.
    """

    def __init__(
        self,
        data: B,
        report: EncodingReport,
        *,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int | None,
        local_rows: Rows,
        whole_epochs: bool = False,
        copies: int = 1,
    ):
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        if batch_size % copies:
            raise InputError(f"batch_size={batch_size}: expected a multiple of {copies}")
        if not sum(sizes):
            raise InputError("the data set has no rows, expected at least one")
        self.data = data
        self.report = report
        self.rows = sum(sizes)
        self.global_batch_size = batch_size
        self._local_rows = slice(None) if local_rows is None else local_rows
        self._copies = copies
        # Part of the state: a run must not go on in another order than it began with.
        self._order = {"seed": seed, "weights": list(weights), "sizes": list(sizes)}
        # Only then, so that the states of runs from before there were copies still fit.
        if copies > 1:
            self._order["copies"] = copies
        # From here on rows are drawn, each of which fills ``copies`` places.
        batch_size //= copies
        if seed is None:
            stream = grain.MapDataset.range(self.rows).batch(batch_size)
        elif whole_epochs:
            stream = _permuted(0, self.rows, seed).batch(batch_size)
            stream = stream.repeat(ENDLESS // self.steps_per_epoch)
        else:
            stream = _endless(sizes, weights, seed).batch(batch_size)
        # All is in memory, so reading threads only cost: a batch of 16 rows takes 0.25 ms without
        # them and 0.44 ms with four.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._indices = iter(stream.to_iter_dataset(options))

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show every row once, the last one perhaps not full."""
        return math.ceil(self.rows * self._copies / self.global_batch_size)

    def __iter__(self) -> "Batches[B]":
        return self

    def __next__(self) -> B:
        # Every process draws the whole batch and takes its own rows: who holds what changes
        # nothing.
        index = np.full(self.global_batch_size, -1)  # the empty row
        shown = np.repeat(next(self._indices), self._copies)
        index[: len(shown)] = shown
        index = index[self._local_rows]
        return type(self.data)(*(_rows(leaf, index) for leaf in self.data))

    def get_state(self) -> dict:
        """Where the iterator stands, for JSON; the same in every process."""
        return {"position": self._indices.get_state(), **self._identity}

    def set_state(self, state: dict) -> None:
        """Go on from ``state``, with the same or another number of processes.

        Raises InputError if the state is of other data, another order or global batch size.
        """
        for name in {**self._identity, **state}:
            was, now = state.get(name), self._identity.get(name)
            if was != now and name != "position":
                raise InputError(f"cannot resume the data: {name} was {was} and is now {now}")
        self._indices.set_state(state["position"])

    @cached_property
    def _identity(self) -> dict:
        # Of the encoded rows: another tokenizer or another length makes other data of one file.
        checksum = 0
        for leaf in self.data:
            checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
        return {**self._order, "global_batch_size": self.global_batch_size, "checksum": checksum}


def text_batches(
    *corpora: Iterable[Int[np.ndarray, "_"]],
    weights: Sequence[float],
    block_size: int,
    batch_size: int,
    seed: int | None,
    pad_id: int,
    local_rows: Rows = None,
) -> Batches[LMBatch]:
    """LMBatches of packed documents (``encode_texts``), one or several corpora.

    ``weights`` are the shares of the corpora in the rows of the stream, a corpus starting anew when
    it is used up; empty mixes by size, so that an epoch shows each row of all corpora once. Rows
    are nearly full, so shares of rows are shares of tokens.
    """
    if weights and (len(weights) != len(corpora) or min(weights) <= 0):
        raise InputError(f"weights={list(weights)}: expected {len(corpora)} numbers over 0")
    if weights and seed is None:
        raise InputError("one pass in order takes no weights")
    packed = [encode_documents(corpus, block_size=block_size, pad_id=pad_id) for corpus in corpora]
    return Batches(
        _joined([data for data, _ in packed]),
        total(report for _, report in packed),
        # Without each corpus's empty row; of the joined data one is left, the last.
        sizes=[len(data.tokens) - 1 for data, _ in packed],
        weights=weights,
        batch_size=batch_size,
        seed=seed,
        local_rows=local_rows,
    )


def demonstration_batches(
    demonstrations: Iterable[Demonstration],
    tokenizer: Tokenizer,
    *,
    block_size: int,
    batch_size: int,
    prompt_length: int,
    response_length: int,
    target: Target,
    seed: int | None,
    one_per_row: bool = False,
    local_rows: Rows = None,
) -> Batches[LMBatch]:
    """LMBatches of packed demonstrations (``encode_demonstrations``), or of one per row."""
    data, report = encode_demonstrations(
        demonstrations,
        tokenizer,
        block_size=block_size,
        prompt_length=prompt_length,
        response_length=response_length,
        target=target,
        one_per_row=one_per_row,
    )
    return _one_corpus(data, report, batch_size, seed, local_rows, whole_epochs=True)


def query_batches(
    prompts: Iterable[Prompt],
    tokenizer: Tokenizer,
    *,
    query_length: int,
    batch_size: int,
    seed: int | None,
    local_rows: Rows = None,
    everything: bool = False,
    copies: int = 1,
) -> Batches[QueryBatch]:
    """QueryBatches; ``index`` counts the prompts from 0, and is -1 in an empty row.

    Each prompt stands ``copies`` times in a row, for so many answers.
    """
    data, report = encode_prompts(
        prompts, tokenizer, query_length=query_length, everything=everything
    )
    return _one_corpus(data, report, batch_size, seed, local_rows, copies=copies)


def comparison_batches(
    comparisons: Iterable[Comparison],
    tokenizer: Tokenizer,
    *,
    query_length: int,
    response_length: int,
    batch_size: int,
    seed: int | None,
    local_rows: Rows = None,
    everything: bool = False,
) -> Batches[ComparisonBatch]:
    """ComparisonBatches of ``batch_size`` prompts, each with all its responses.

    ``everything`` keeps rows that teach nothing: there is a row for each comparison.
    """
    data, report = encode_comparisons(
        comparisons,
        tokenizer,
        query_length=query_length,
        response_length=response_length,
        everything=everything,
    )
    return _one_corpus(data, report, batch_size, seed, local_rows, whole_epochs=True)


def _one_corpus(
    data: B,
    report: EncodingReport,
    batch_size: int,
    seed: int | None,
    local_rows: Rows,
    *,
    whole_epochs: bool = False,
    copies: int = 1,
) -> Batches[B]:
    return Batches(
        data,
        report,
        sizes=[len(data[0]) - 1],
        weights=(),
        batch_size=batch_size,
        seed=seed,
        local_rows=local_rows,
        whole_epochs=whole_epochs,
        copies=copies,
    )


def _joined(packed: list[LMBatch]) -> LMBatch:
    """The rows of all corpora, and one empty row."""
    leaves = zip(*packed, strict=True)
    joined = (np.concatenate([*(a[:-1] for a in leaf), leaf[-1][-1:]]) for leaf in leaves)
    return LMBatch(*map(as_leaf, joined))


def _endless(sizes: Sequence[int], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Row numbers for ``ENDLESS`` rows: each epoch is a new permutation."""
    bounds = np.cumsum([0, *sizes]).tolist()
    if not weights:
        # One stream over all corpora, each of which then has as many rows as it has text.
        bounds = [0, bounds[-1]]
    streams = [
        # Repeated for ever, a mix read by single rows would be longer than Python can count.
        _permuted(start, stop, seed + n).repeat(ENDLESS // max(stop - start, 1) + 1)
        for n, (start, stop) in enumerate(pairwise(bounds))
    ]
    return grain.MapDataset.mix(streams, list(weights)) if weights else streams[0]


def _permuted(start: int, stop: int, seed: int) -> grain.MapDataset:
    """Row numbers of one epoch; repeated, it is permuted anew each time."""
    # Grain's shuffle is a permutation that is computed by place: it can be entered anywhere.
    return grain.MapDataset.range(start, stop).seed(seed).shuffle()


def _rows(leaf: Any, index: np.ndarray) -> Any:
    # Stored as small as they fit; JAX counts in int32.
    rows = leaf[index]
    return rows if rows.dtype == bool else rows.astype(np.int32, copy=False)
