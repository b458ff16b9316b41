"""Batches: what is a target, what is padded where, and iterators that resume exactly."""

import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.batches import (
    comparison_batches,
    demonstration_batches,
    query_batches,
    text_batches,
)
from rlhf_jax.data.encoding import best_fit, encode_texts, split_document
from rlhf_jax.data.fates import EMPTY, EQUAL, TOO_LONG, EncodingReport
from rlhf_jax.data.formats import Comparison, Demonstration, Prompt, Text, read_texts
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.types import ComparisonBatch, LMBatch, QueryBatch

DATA = Path(__file__).parents[2] / "data"
PAD = 99


@pytest.fixture(scope="module")
def tokenizer():
    """One id per byte, so that lengths are known."""
    return train_bpe([], vocab_size=258)


def documents(*lengths):
    """Documents whose tokens are all different from each other's."""
    bounds = np.cumsum([0, *lengths]) + 100
    return [np.arange(a, b, dtype=np.int32) for a, b in pairwise(bounds)]


def texts(docs, **changes):
    options = {"weights": (), "block_size": 8, "batch_size": 2, "seed": 0, "pad_id": PAD}
    return text_batches(docs, **options | changes)


def segments(batch):
    """(tokens, loss mask, positions) of each document of each row."""
    for tokens, mask, segment, positions in zip(
        batch.tokens, batch.loss_mask, batch.segment_ids, batch.positions, strict=True
    ):
        for n in range(1, segment.max() + 1):
            inside = segment == n
            yield tokens[inside], mask[inside], positions[inside]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# --- packing --------------------------------------------------------------------------------------


def test_encode_texts_ends_each_document_in_one_end_of_text(tokenizer):
    encoded = encode_texts([Text("ab"), Text("")], tokenizer)
    assert [ids.tolist().count(tokenizer.eos_id) for ids in encoded] == [1, 1]
    assert all(ids[-1] == tokenizer.eos_id and ids.dtype == np.int32 for ids in encoded)
    assert tokenizer.decode(encoded[0]) == "ab"
    with pytest.raises(InputError, match=r"spells the special token <\|endoftext\|>"):
        encode_texts([Text("ab<|endoftext|>c")], tokenizer)


def test_packed_documents_are_whole_with_own_segments_and_positions():
    docs = documents(3, 5, 8, 2, 4, 1)
    it = texts(docs, seed=None)
    found = {}
    for batch in it:
        assert isinstance(batch, LMBatch) and batch.tokens.shape == (2, 8)
        for name in ("tokens", "segment_ids", "positions"):
            assert getattr(batch, name).dtype == np.int32
        assert batch.loss_mask.dtype == bool
        assert (batch.tokens[batch.segment_ids == 0] == PAD).all()
        assert not batch.loss_mask[batch.segment_ids == 0].any()
        for tokens, mask, positions in segments(batch):
            found[len(tokens)] = tokens
            assert positions.tolist() == list(range(len(tokens)))
            assert mask.tolist() == [False] + [True] * (len(tokens) - 1)
    assert found.keys() == {3, 5, 8, 2, 4}  # the document of one token predicts nothing
    assert all(np.array_equal(found[len(doc)], doc) for doc in docs[:-1])
    assert it.report == EncodingReport(5, {"empty document": 1}, {}, 0, {})


@pytest.mark.parametrize("length", [2, 7, 8, 9, 15, 16, 22, 23, 100])
def test_every_token_of_a_long_document_but_the_first_is_a_target_once(length):
    (doc,) = documents(length)
    targets = []
    for batch in texts([doc], seed=None):
        for tokens, mask, positions in segments(batch):
            targets += tokens[mask].tolist()
            assert not mask[0] and positions[0] == 0
    assert sorted(targets) == doc[1:].tolist()


def test_continuations_begin_with_the_token_before():
    (doc,) = documents(20)
    pieces = [piece.ids.tolist() for piece in split_document(doc, block_size=8)]
    assert pieces == [doc[0:8].tolist(), doc[7:15].tolist(), doc[14:20].tolist()]


def test_best_fit_puts_pieces_where_they_leave_least_room():
    rows, starts = best_fit([3, 5, 6, 2, 8], block_size=8)
    assert rows == [0, 0, 1, 1, 2]
    assert starts == [5, 0, 0, 6, 0]


@pytest.mark.parametrize("block_size", [64, 128])
def test_real_text_fills_rows_nearly_fully(block_size):
    rng = np.random.default_rng(0)
    docs = documents(*rng.integers(2, 60, size=2000))
    it = texts(docs, block_size=block_size, seed=None)
    assert (it.data.segment_ids[:-1] > 0).mean() > 0.97


def test_the_first_rows_in_order_are_not_the_longest_pieces():
    docs = documents(*([3] * 50 + [8] * 50))
    first = next(texts(docs, seed=None))
    assert first.tokens[0, 0] == docs[0][0]


# --- order, epochs, shards, resuming --------------------------------------------------------------


def rows_of(batches, count):
    """First token of each row of ``count`` batches."""
    return [int(token) for batch in islice(batches, count) for token in batch.tokens[:, 0]]


def test_every_epoch_is_a_permutation_in_a_new_order():
    docs = documents(*[8] * 30)
    it = texts(docs, batch_size=3)
    epochs = [rows_of(it, it.steps_per_epoch) for _ in range(3)]
    assert all(sorted(epoch) == [doc[0] for doc in docs] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert epochs[0] != sorted(epochs[0])


def test_the_stream_depends_on_the_seed_only():
    docs = documents(*[8] * 30)
    assert rows_of(texts(docs), 20) == rows_of(texts(docs), 20)
    assert rows_of(texts(docs), 20) != rows_of(texts(docs, seed=1), 20)


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("count", [2, 3])
def test_shards_are_disjoint_and_complete(seed, count):
    docs = documents(*[8] * 31)
    shards = [
        texts(docs, batch_size=6, seed=seed, local_rows=rows)
        for rows in np.split(np.arange(6), count)
    ]
    whole = texts(docs, batch_size=6, seed=seed)
    assert {shard.steps_per_epoch for shard in shards} == {whole.steps_per_epoch} == {6}
    for _ in range(6):
        assert [row for shard in shards for row in rows_of(shard, 1)] == rows_of(whole, 1)


def test_one_pass_shows_every_row_once_in_order_with_static_shapes():
    docs = documents(*[8] * 7)
    batches = list(texts(docs, batch_size=3, seed=None))
    assert [batch.tokens.shape for batch in batches] == [(3, 8)] * 3
    tokens = np.concatenate([batch.tokens[:, 0] for batch in batches])
    assert tokens.tolist() == [doc[0] for doc in docs] + [PAD] * 2
    empty = batches[-1].segment_ids[1:]
    assert not empty.any() and not batches[-1].loss_mask[1:].any()


def make_text(**options):
    return texts(documents(*range(2, 40)), **options)


def make_mix(**options):
    first, second = documents(*[8] * 13), documents(*[5] * 20)
    kept = {"weights": (0.7, 0.3), "block_size": 8, "batch_size": 2, "seed": 0, "pad_id": PAD}
    return text_batches(first, second, **kept | options)


def make_queries(**options):
    prompts = [Prompt(f"prompt {n}") for n in range(11)]
    kept = {"query_length": 6, "batch_size": 2, "seed": 0}
    return query_batches(prompts, train_bpe([], vocab_size=258), **kept | options)


def make_comparisons(**options):
    rows = [Comparison(f"{n}", ("x", "y"), (0, 1)) for n in range(11)]
    kept = {"query_length": 4, "response_length": 4, "batch_size": 4, "seed": 0}
    return comparison_batches(rows, train_bpe([], vocab_size=258), **kept | options)


@pytest.mark.parametrize("make", [make_text, make_mix, make_queries, make_comparisons])
@pytest.mark.parametrize("steps", [0, 3, 7, 40])
@pytest.mark.cases(6)
def test_resuming_is_exact(make, steps):
    it = make()
    list(islice(it, steps))
    state = json.loads(json.dumps(it.get_state()))
    ahead = list(islice(it, 15))
    fresh = make()
    next(fresh)
    fresh.set_state(state)
    assert all(equal(a, b) for a, b in zip(ahead, islice(fresh, 15), strict=True))
    it.set_state(state)
    assert equal(next(it), ahead[0])


def test_resuming_with_another_number_of_processes():
    it = make_queries(batch_size=4)
    next(it)
    state = it.get_state()
    halves = [make_queries(batch_size=4, local_rows=rows) for rows in np.split(np.arange(4), 2)]
    for half in halves:
        half.set_state(state)
    together = [index for half in halves for index in next(half).index.tolist()]
    assert together == next(it).index.tolist()


@pytest.mark.parametrize(
    "other, message",
    [
        (make_text(seed=1), "seed was 0 and is now 1"),
        (make_text(batch_size=3), "global_batch_size was 2 and is now 3"),
        (texts(documents(*range(3, 41))), "sizes was .* and is now"),
        (texts([doc + 1 for doc in documents(*range(2, 40))]), "checksum was .* and is now"),
    ],
)
def test_a_state_of_other_data_is_refused(other, message):
    with pytest.raises(InputError, match=f"cannot resume the data: {message}"):
        other.set_state(make_text().get_state())


@pytest.mark.slow
def test_mixing_follows_the_weights_and_repeats_small_corpora():
    small, large = documents(*[8] * 4), documents(*[8] * 1000)
    it = text_batches(
        [doc + 10_000 for doc in small],
        large,
        weights=(3.0, 1.0),
        block_size=8,
        batch_size=4,
        seed=0,
        pad_id=PAD,
    )
    tokens = rows_of(it, 100)
    counts = Counter(token for token in tokens if token >= 10_000)
    assert sum(counts.values()) == 300
    assert set(counts.values()) == {75}
    assert len({token for token in tokens if token < 10_000}) == 100


@pytest.mark.parametrize("weights,batch_size", [((0.45, 0.35, 0.2), 1), ((0.3, 0.3, 0.4), 2)])
def test_small_batches_of_a_mix_have_no_end(weights, batch_size):
    """Endless corpora mixed by weights under 1 / batch_size were once longer than sys.maxsize."""
    corpora = [[np.arange(2, 12, dtype=np.int32)] * 20 for _ in weights]
    frame = dict(block_size=16, batch_size=batch_size, seed=1, pad_id=0)
    stream = text_batches(*corpora, weights=weights, **frame)
    for _ in range(100):
        assert next(stream).tokens.shape == (batch_size, 16)


def test_without_weights_corpora_are_mixed_by_size():
    first, second = documents(*[8] * 10), [doc + 10_000 for doc in documents(*[8] * 20)]
    it = text_batches(first, second, weights=(), block_size=8, batch_size=3, seed=0, pad_id=PAD)
    assert it.steps_per_epoch == 10
    assert sorted(rows_of(it, 10)) == [int(doc[0]) for doc in first + second]


def test_bad_text_options():
    with pytest.raises(InputError, match=r"weights=\[1.0\]: expected 2 numbers over 0"):
        make_mix(weights=(1.0,))
    with pytest.raises(InputError, match=r"weights=\[1.0, 0.0\]: expected 2 numbers over 0"):
        make_mix(weights=(1.0, 0.0))
    with pytest.raises(InputError, match=r"one pass in order takes no weights"):
        make_mix(seed=None)
    with pytest.raises(InputError, match=r"block_size=1 is under 2"):
        texts(documents(5), block_size=1)
    with pytest.raises(InputError, match=r"batch_size=0 must be at least 1"):
        texts(documents(5), batch_size=0)
    with pytest.raises(InputError, match=r"none of 2 documents has any text"):
        texts(documents(1, 1))


# --- demonstrations -------------------------------------------------------------------------------


def demonstrations(rows, tokenizer, **changes):
    options = {
        "block_size": 16,
        "batch_size": 2,
        "prompt_length": 6,
        "response_length": 5,
        "target": "response",
        "seed": None,
    }
    return demonstration_batches(
        [Demonstration(*row) for row in rows], tokenizer, **options | changes
    )


def found(batches, tokenizer):
    """(text of all tokens, text of targets, ids of targets) of each packed demonstration."""
    return [
        (tokenizer.decode(tokens), tokenizer.decode(tokens[mask]), tokens[mask].tolist())
        for batch in batches
        for tokens, mask, _ in segments(batch)
    ]


def test_only_the_completion_and_its_end_carry_the_loss(tokenizer):
    rows = [("ab", "cde"), ("f", "l"), ("ghi", "jk")]
    seen = found(demonstrations(rows, tokenizer), tokenizer)
    assert sorted(text for text, _, _ in seen) == ["abcde", "fl", "ghijk"]
    assert sorted(targets for _, targets, _ in seen) == ["cde", "jk", "l"]
    for _, _, ids in seen:
        assert ids[-1] == tokenizer.eos_id and ids.count(tokenizer.eos_id) == 1


def test_all_tokens_but_the_first_can_carry_the_loss(tokenizer):
    seen = found(demonstrations([("ab", "cde")], tokenizer, target="all"), tokenizer)
    assert seen == [("abcde", "bcde", [*tokenizer.encode("bcde"), tokenizer.eos_id])]


def test_a_spelled_special_token_is_never_learnt_as_letters(tokenizer):
    """At the end of an answer it is that end; elsewhere the row is left out and counted."""
    rows = [("a", "b<|endoftext|>"), ("a", "b<|endoftext|>c"), ("<|padding|>", "b")]
    it = demonstrations(rows, tokenizer, block_size=32, response_length=16)
    assert found(it, tokenizer) == [("ab", "b", [*tokenizer.encode("b"), tokenizer.eos_id])]
    assert it.report.left_out == {"spells <|endoftext|>": 1, "spells <|padding|>": 1}
    pairs = [Comparison("a", ("b", "c<|padding|>d"), (0, 1)), Comparison("a", ("b", "c"), (0, 1))]
    assert compare(pairs, tokenizer).report.left_out == {"spells <|padding|>": 1}


def test_long_prompts_keep_their_end_and_long_completions_are_dropped(tokenizer):
    rows = [("0123456789", "abcd"), ("p", "abcde"), ("p", "a")]
    it = demonstrations(rows, tokenizer)
    assert sorted(text for text, _, _ in found(it, tokenizer)) == ["456789abcd", "pa"]
    longest = {"prompt": 10, "response": 6}
    assert it.report == EncodingReport(2, {TOO_LONG: 1}, {"prompt": 1}, 2, longest)
    assert it.report.lost() == "1 prompt cut, 1 left out (answer over response_length)"


def test_demonstrations_that_cannot_fit_are_refused(tokenizer):
    with pytest.raises(InputError, match=r"none of 1 demonstrations .* 1 left out .*length=5"):
        demonstrations([("p", "abcde")], tokenizer)
    with pytest.raises(InputError, match=r"prompt_length \+ response_length = 17 is over block"):
        demonstrations([("p", "a")], tokenizer, response_length=11)


# --- queries --------------------------------------------------------------------------------------


def test_answers_to_one_prompt_are_rows_that_follow_one_another(tokenizer):
    """Whoever holds which rows, and after resuming too."""
    prompts = [Prompt(text) for text in ("a", "b", "c", "d", "e")]
    frame = dict(query_length=4, batch_size=6, seed=0, copies=3)
    whole = query_batches(prompts, tokenizer, **frame)
    parts = [
        query_batches(prompts, tokenizer, **frame, local_rows=np.array(m)) for m in ([0, 1], [4])
    ]
    plain = query_batches(prompts, tokenizer, query_length=4, batch_size=2, seed=0)
    assert whole.steps_per_epoch == 3
    for _ in range(4):
        batch = next(whole)
        assert batch.index.tolist() == np.repeat(next(plain).index, 3).tolist()
        for part, rows in zip(parts, ([0, 1], [4]), strict=True):
            assert next(part).index.tolist() == batch.index[rows].tolist()
    resumed = query_batches(prompts, tokenizer, **frame)
    resumed.set_state(json.loads(json.dumps(whole.get_state())))
    assert next(resumed).index.tolist() == next(whole).index.tolist()
    single = query_batches(prompts, tokenizer, **frame | {"copies": 1})
    with pytest.raises(InputError, match="copies was None and is now 3"):
        whole.set_state(single.get_state())
    with pytest.raises(InputError, match="copies was 3 and is now None"):
        single.set_state(whole.get_state())
    with pytest.raises(InputError, match="batch_size=6: expected a multiple of 4"):
        query_batches(prompts, tokenizer, **frame | {"copies": 4})


def test_queries_are_left_padded_and_keep_their_end(tokenizer):
    prompts = [Prompt("ab"), Prompt("0123456789"), Prompt("xyz")]
    it = query_batches(prompts, tokenizer, query_length=5, batch_size=2, seed=None)
    first, last = list(it)
    assert isinstance(first, QueryBatch) and first.queries.dtype == np.int32
    assert first.query_mask.tolist() == [[False] * 3 + [True] * 2, [True] * 5]
    assert first.queries[0, :3].tolist() == [tokenizer.pad_id] * 3
    assert [tokenizer.decode(row) for row in first.queries] == ["ab", "56789"]
    assert first.index.tolist() == [0, 1] and last.index.tolist() == [2, -1]
    assert not last.query_mask[1].any() and (last.queries[1] == tokenizer.pad_id).all()
    assert it.report == EncodingReport(3, {}, {"prompt": 1}, 1, {"prompt": 10, "response": 0})


def test_index_finds_the_prompt_of_a_shuffled_query(tokenizer):
    prompts = [Prompt(f"{n:03d}") for n in range(20)]
    it = query_batches(prompts, tokenizer, query_length=4, batch_size=5, seed=3)
    for batch in islice(it, 8):
        for row, index in zip(batch.queries, batch.index, strict=True):
            assert tokenizer.decode(row) == prompts[index].prompt


def test_an_empty_set_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"the data set has no rows"):
        query_batches([], tokenizer, query_length=4, batch_size=5, seed=3)


# --- comparisons ----------------------------------------------------------------------------------


def compare(rows, tokenizer, **changes):
    options = {"query_length": 4, "response_length": 4, "batch_size": 2, "seed": None}
    return comparison_batches(rows, tokenizer, **options | changes)


def test_comparisons_of_ragged_k_are_padded_with_absent_responses(tokenizer):
    rows = [Comparison("ab", ("x", "yz", "x"), (1, 0, 1)), Comparison("cdefg", ("u", "v"), (0, 1))]
    it = compare(rows, tokenizer, batch_size=3)
    (batch,) = it
    assert isinstance(batch, ComparisonBatch) and batch.responses.shape == (3, 3, 4)
    assert batch.ranks.tolist() == [[1, 0, 1], [0, 1, -1], [-1, -1, -1]]
    assert batch.mask.sum(-1).tolist() == [[2, 3, 2], [2, 2, 0], [0, 0, 0]]
    assert (batch.responses[~batch.mask] == tokenizer.pad_id).all()
    assert tokenizer.decode(batch.queries[1]) == "defg"
    ends = batch.responses[0, 1].tolist()
    assert ends == [*tokenizer.encode("yz"), tokenizer.eos_id, tokenizer.pad_id]
    assert not batch.query_mask[2].any()
    assert it.report == EncodingReport(2, {}, {"prompt": 1}, 1, {"prompt": 5, "response": 3})


def test_long_responses_are_cut_without_an_end(tokenizer):
    it = compare([Comparison("p", ("abc", "abcd"), (0, 1))], tokenizer)
    batch = next(it)
    assert batch.responses[0, 0].tolist() == [*tokenizer.encode("abc"), tokenizer.eos_id]
    assert batch.responses[0, 1].tolist() == tokenizer.encode("abcd")
    assert it.report.cut == {"response": 1} and it.report.longest["response"] == 5


def test_pairs_that_teach_nothing_are_left_out_and_counted(tokenizer):
    """Equal in their ids, perhaps only after cutting; or an answer without a token but its end."""
    rows = [
        Comparison("p", ("same", "same"), (0, 1)),
        Comparison("p", ("abcdef", "abcdgh"), (0, 1)),
        Comparison("p", ("a", ""), (0, 1)),
        Comparison("p", ("a", "a", "b"), (0, 1, 1)),
        Comparison("p", ("a", ""), (0, 1), tokens=((70, 0), (0,))),
    ]
    it = compare(rows, tokenizer)
    assert it.report.kept == 2 and it.report.left_out == {EQUAL: 2, EMPTY: 1}
    assert compare(rows, tokenizer, everything=True).rows == 5
    with pytest.raises(InputError, match=r"none of 3 rows .*: 2 left out \(answers of equal"):
        compare(rows[:3], tokenizer)
    assert compare(rows[1:2] + rows[3:], tokenizer, response_length=7).report.left_out == {}


def test_demonstrations_without_an_answer_are_left_out(tokenizer):
    it = demonstrations([("p", ""), ("p", "a")], tokenizer)
    assert it.report.kept == 1 and it.report.left_out == {EMPTY: 1}


@pytest.mark.parametrize("rows, batch_size", [(5, 4), (3, 4), (7, 3), (8, 4)])
def test_each_epoch_shows_each_row_once(tokenizer, rows, batch_size):
    """The last batch of an epoch is filled up with empty rows, not with rows of the next one."""
    pairs = [Comparison(chr(97 + n), ("x", "y"), (0, 1)) for n in range(rows)]
    it = compare(pairs, tokenizer, batch_size=batch_size, seed=0)
    orders = []
    for _ in range(3):
        batches = list(islice(it, it.steps_per_epoch))
        assert {batch.ranks.shape for batch in batches} == {(batch_size, 2)}
        shown = np.concatenate([b.queries[b.query_mask.any(axis=1)][:, -1] for b in batches])
        orders.append(tokenizer.decode(shown))
    assert {"".join(sorted(order)) for order in orders} == {"abcdefgh"[:rows]}
    assert rows == 3 or len(set(orders)) > 1


def test_epochs_of_whole_batches_are_in_the_order_of_an_endless_stream(tokenizer):
    texts = [chr(97 + n) for n in range(12)]
    pairs = compare([Comparison(t, ("x", "y"), (0, 1)) for t in texts], tokenizer, seed=5)
    prompts = query_batches(map(Prompt, texts), tokenizer, query_length=4, batch_size=2, seed=5)
    for _ in range(30):
        assert np.array_equal(next(pairs).queries, next(prompts).queries)


def test_sampled_ids_come_out_as_they_went_in(tokenizer):
    partial = tokenizer.encode("😀")[:2]  # decodes to U+FFFD, which encodes to other ids
    row = Comparison(
        "p",
        (tokenizer.decode(partial), "ab", "c"),
        (0, 1, 2),
        tokens=(tuple(partial), (*tokenizer.encode("ab"), tokenizer.eos_id), (5, 0, 7, 7)),
    )
    batch = next(compare([row], tokenizer))
    assert batch.responses[0, 0, :2].tolist() == partial and batch.mask[0, 0].sum() == 2
    assert batch.responses[0, 1, :3].tolist() == [*tokenizer.encode("ab"), tokenizer.eos_id]
    assert tokenizer.eos_id == 0 and batch.mask[0, 2].tolist() == [True, True, False, False]


def test_sampled_ids_outside_the_vocabulary_are_refused(tokenizer):
    row = Comparison("p", ("a", "b"), (0, 1), tokens=((258,), (1,)))
    with pytest.raises(InputError, match=r"prompt 'p' hold id 258, expected ids under .* 258"):
        compare([row], tokenizer)


def test_real_text_through_a_real_vocabulary():
    tokenizer = train_bpe(
        (text.text for text in read_texts(DATA / "text_tinystories_sample")), vocab_size=512
    )
    docs = encode_texts(read_texts(DATA / "text_tinystories_sample"), tokenizer)
    it = texts(docs, block_size=128, batch_size=8, pad_id=tokenizer.pad_id, seed=None)
    assert (it.data.segment_ids[:-1] > 0).mean() > 0.97
    ends = sum((b.tokens[b.loss_mask] == tokenizer.eos_id).sum() for b in it)
    assert ends == len(docs)
