"""What must hold of the tokenizer and the user's rows before anything is learnt from them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from rlhf_jax.doctor.invariants import Finding, at_most, share_at_least, share_at_most

# --- the tokenizer --------------------------------------------------------------------------------


def padding_is_not_the_end(pad_id: int, end_ids: Sequence[int]) -> Finding:
    """Padding is none of the ids that end a text."""
    return Finding(
        "padding ≠ end of text (ids)",
        f"{pad_id} and {', '.join(map(str, end_ids))}",
        "differ",
        pad_id not in end_ids,
        "give padding an id of its own, or the end of text is masked with it and never learnt",
    )


def text_comes_back(
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    texts: Sequence[str],
) -> Finding:
    """decode(encode(text)) is the text, for every text."""
    wrong = [text for text in texts if decode(encode(text)) != text]
    return share_at_most(
        "texts the tokenizer loses",
        len(wrong),
        len(texts),
        0,
        f"use a byte-level tokenizer without normalisation; first lost: {wrong[:1]!r:.80}",
    )


def bytes_have_ids(pieces: Iterable[bytes]) -> Finding:
    """Every one of the 256 bytes is a token, so that no text is unknown."""
    missing = {bytes([value]) for value in range(256)} - set(pieces)
    return at_most(
        "bytes without a token, of 256",
        len(missing),
        0,
        f"train or choose a tokenizer with the whole byte alphabet; first missing: "
        f"{sorted(missing)[:1]}",
    )


def ids_fit_the_embedding(ids: Iterable[Sequence[int]], *, rows: int) -> Finding:
    """No id of the data is beyond the embedding, where a lookup would quietly take its last row."""
    largest = max(max(row, default=0) for row in ids)
    return Finding(
        "largest id in the embedding",
        str(largest),
        f"< {rows}",
        largest < rows,
        "model and tokenizer do not belong together: take both from one run folder",
    )


# --- prompts and demonstrations -------------------------------------------------------------------


def episodes_fit(length: int, *, context: int) -> Finding:
    """Prompt and response together are no longer than the model's context."""
    return at_most(
        "prompt and response, in tokens",
        length,
        context,
        "lower prompt_length or response_length, or take a model of a longer context",
    )


def prompts_fit(truncated: int, total: int, *, length: int, bound: float | int) -> Finding:
    """Few prompts are cut to ``length`` tokens."""
    return share_at_most(
        f"prompts cut to {length} tokens",
        truncated,
        total,
        bound,
        "raise prompt_length (prompt + response must fit the context), or drop long prompts",
    )


def queries_keep_the_end(
    queries: Int[np.ndarray, "P Q"],
    mask: Bool[np.ndarray, "P Q"],
    ids: Sequence[Sequence[int]],
    *,
    bos_id: int | None,
) -> Finding:
    """The real tokens of a query are the last tokens of its prompt, at the right margin.

    A prompt that begins with ``bos_id`` keeps it as its first token.
    """
    Q = queries.shape[1]
    wrong = 0
    for query, real, prompt in zip(queries, mask, ids, strict=True):
        end = list(prompt[-Q:])
        if len(prompt) > Q > 1 and prompt[0] == bos_id:
            end[0] = bos_id
        wrong += int(list(query[Q - len(end) :]) != end or sum(real) != len(end))
    return share_at_most(
        "queries that lose their end",
        wrong,
        len(ids),
        0,
        "pad queries on the left, and cut long prompts at their beginning",
    )


def ends_are_targets(
    tokens: Integer[np.ndarray, "N T"],
    loss_mask: Bool[np.ndarray, "N T"],
    *,
    end_ids: Sequence[int],
    demonstrations: int,
) -> Finding:
    """SFT's loss counts exactly one end of text per demonstration."""
    ends = int((np.isin(tokens, end_ids) & loss_mask).sum())
    row = share_at_least(
        "ends of text in SFT's loss",
        ends,
        demonstrations,
        1,
        "append one end of text to every completion and keep it in the loss mask",
    )
    return row._replace(passed=ends == demonstrations)


def demonstrations_fit(dropped: int, total: int, *, length: int, bound: float | int) -> Finding:
    """Few demonstrations are left out for answers over ``length`` tokens."""
    return share_at_most(
        f"demonstrations over {length} tokens",
        dropped,
        total,
        bound,
        "raise sft.response_length, or shorten the demonstrations",
    )


def ends_are_predicted(right: int, total: int, *, bound: float | int) -> Finding:
    """How often the end of text is the likeliest token where a demonstration ends."""
    return share_at_least(
        "ends of text that SFT predicts",
        right,
        total,
        bound,
        "train SFT longer, or look whether the end of text is a target",
    )


def answers_end(ended: int, total: int, *, bound: float | int) -> Finding:
    """Most sampled answers reach their end of text."""
    return share_at_least(
        "sampled answers that end",
        ended,
        total,
        bound,
        "raise response_length, train SFT longer, or set missing_eos_penalty",
    )


# --- comparisons ----------------------------------------------------------------------------------


class Conflicts(NamedTuple):
    """What contradicts itself in a set of comparisons."""

    prompts: int
    pairs: int
    """Different pairs of answers to one prompt, ranked apart at least once."""
    both_ways: int
    """Of these, ranked once so and once the other way round."""
    answers: int
    twice: int
    """Answers that one ranking holds twice, at different ranks."""


def find_conflicts(comparisons: Iterable[tuple]) -> Conflicts:
    """Count over rows that begin with (prompt, responses, ranks)."""
    ordered: set[tuple[str, str, str]] = set()
    prompts, answers, twice = set(), 0, 0
    for prompt, responses, ranks, *_ in comparisons:
        prompts.add(prompt)
        ranks_of: dict[str, set[int]] = {}
        for response, rank in zip(responses, ranks, strict=True):
            ranks_of.setdefault(response, set()).add(rank)
        answers += len(ranks_of)
        twice += sum(len(rankings) > 1 for rankings in ranks_of.values())
        for (a, first), (b, second) in combinations(zip(responses, ranks, strict=True), 2):
            if first != second and a != b:
                ordered.add((prompt, a, b) if first < second else (prompt, b, a))
    pairs = {(prompt, frozenset((a, b))) for prompt, a, b in ordered}
    return Conflicts(len(prompts), len(pairs), len(ordered) - len(pairs), answers, twice)


def comparisons_agree(conflicts: Conflicts, *, bound: float | int) -> list[Finding]:
    """Few pairs are ranked both ways, and few answers have two ranks."""
    return [
        share_at_most(
            "pairs ranked both ways",
            conflicts.both_ways,
            conflicts.pairs,
            bound,
            "keep one ranking per pair, such as the majority's; expected if several people "
            "ranked the same answers",
        ),
        share_at_most(
            "answers with two ranks",
            conflicts.twice,
            conflicts.answers,
            bound,
            "drop repeated answers before they are ranked; sample at a higher temperature",
        ),
    ]


def rankings_rank(useless: int, total: int, *, bound: float | int) -> Finding:
    """Rows that order no two different answers are left out: all tied, or equal in their tokens."""
    return share_at_most(
        "rankings that teach nothing",
        useless,
        total,
        bound,
        "ask for finer rankings, or answers that differ more",
    )
