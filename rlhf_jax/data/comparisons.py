"""Answers in order, for the reward model: pairs, rankings, and choices among summaries."""

from collections import Counter
from typing import Any

from rlhf_jax.data.answers import joined, last_answers, read_answer
from rlhf_jax.data.chat import Conversation
from rlhf_jax.data.columns import ANSWERING, note_unread
from rlhf_jax.data.files import type_name
from rlhf_jax.data.messages import is_filled, is_messages, read_text
from rlhf_jax.data.prompts import askable, asked_in, is_exact, missing, prompt_of, shared_prompt
from rlhf_jax.data.rows import Comparison, RowError, without_gaps


def comparison_row(row: dict, notes: Counter[str]) -> Comparison:
    """The comparison of a row of any format. Raises RowError, or NotLearnt."""
    note_unread(row, ("text", *ANSWERING), notes)
    pair = "chosen" in row and "rejected" in row
    # A table has all columns in every row: a null there says nothing.
    listed = row.get("responses") is not None
    if listed and (_given_ranks(row) is not None or not pair):
        beside = is_filled(row.get("chosen")) and is_filled(row.get("rejected"))
        notes.update(["columns chosen and rejected are not read beside ranked responses"] * beside)
        return _ranking(row, notes)
    if row.get("summaries") is not None and row.get("choice") is not None:
        return _summaries(row, notes)
    if pair:
        notes.update(["column responses is not read"] * listed)
        return _preference(row, notes)
    raise missing(row, "prompt and responses, chosen and rejected, or summaries and choice")


def _preference(row: dict, notes: Counter[str]) -> Comparison:
    prompt = asked_in(row)
    if prompt is None:
        prompt, *answers = shared_prompt(row["chosen"], row["rejected"], notes)
        return Comparison(prompt, tuple(answers), (0, 1))
    prompt = askable(prompt)
    exact = is_exact(row, prompt)
    better, worse = (
        [
            read_answer(answer, name, prompt, notes, exact=exact)
            for name, answer in _several(row[key], key)
        ]
        for key in ("chosen", "rejected")
    )
    ranks = (0,) * len(better) + (1,) * len(worse)
    return Comparison(*last_answers(prompt, [*better, *worse], notes), ranks)


def _several(value: Any, key: str) -> list[tuple[str, Any]]:
    """An answer, or the answers of a list, each with the name for an error."""
    if not value:
        return [(key, "")]
    if not isinstance(value, list) or is_messages(value):
        return [(key, value)]
    return [(f"{key}[{n}]", answer) for n, answer in enumerate(value)]


def _summaries(row: dict, notes: Counter[str]) -> Comparison:
    texts = tuple(_response_text(summary, n) for n, summary in enumerate(_list(row, "summaries")))
    if not _is_count(row["choice"]) or row["choice"] >= len(texts):
        raise RowError(f"choice is {row['choice']!r}, expected 0 ... {len(texts) - 1}")
    ranks = [int(n != row["choice"]) for n in range(len(texts))]
    return _ranked(prompt_of(row, notes), texts, ranks)


def _ranking(row: dict, notes: Counter[str]) -> Comparison:
    responses = _list(row, "responses")
    ranks = _given_ranks(row)
    if ranks is None:
        raise RowError(str(missing(row, "ranks, or a rank in every response")))
    tokens = _token_ids(row, len(responses))
    prompt = prompt_of(row, notes)
    # Where the sampled ids are there, the text is theirs to the letter.
    exact = tokens is not None or is_exact(row, prompt)
    answers = tuple(
        read_answer(response, "responses", prompt, notes)
        if is_messages(response)
        else joined(_response_text(response, n), prompt, exact=exact)
        for n, response in enumerate(responses)
    )
    return _ranked(prompt, answers, ranks, tokens)


def _given_ranks(row: dict) -> list | None:
    """The column of ranks, or the rank of every response; None if there is neither."""
    within = [one.get("rank") for one in _list(row, "responses") if isinstance(one, dict)]
    own = within if within and len(within) == len(row["responses"]) and None not in within else None
    if row.get("ranks") is None:
        return own
    ranks = _list(row, "ranks")
    if own is not None and own != ranks:
        raise RowError(f"found ranks {ranks} and in the responses {own}, expected one of them")
    return ranks


def _ranked(
    prompt: str | Conversation,
    responses: tuple[str | Conversation, ...],
    ranks: list,
    tokens: tuple | None = None,
) -> Comparison:
    """With ranks 0, 1, ... without gaps."""
    if len(responses) < 2:
        raise RowError(f"found {len(responses)} response, expected at least 2 to compare")
    if len(ranks) != len(responses):
        raise RowError(f"found {len(ranks)} ranks for {len(responses)} responses")
    # Programs that keep numbers as floats write 1.0 for a rank.
    ranks = [int(x) if isinstance(x, float) and x.is_integer() else x for x in ranks]
    if not all(map(_is_count, ranks)):
        raise RowError(f"ranks are {ranks}, expected whole numbers from 0 on")
    return Comparison(prompt, responses, without_gaps(ranks), tokens)


def _token_ids(row: dict, count: int) -> tuple[tuple[int, ...], ...] | None:
    if row.get("response_tokens") is None:
        return None
    tokens = _list(row, "response_tokens")
    if len(tokens) != count:
        raise RowError(f"found {len(tokens)} response_tokens for {count} responses")
    for n, ids in enumerate(tokens):
        if not isinstance(ids, list) or not ids or not all(map(_is_id, ids)):
            raise RowError(f"response_tokens[{n}] is not a list of token ids")
    return tuple(map(tuple, tokens))


def _response_text(value: Any, n: int) -> str:
    if isinstance(value, dict):
        if "text" not in value:
            raise RowError(f"response {n} is an object without text, expected one with it")
        value = value["text"]
    return read_text(value, f"the text of response {n}")


def _list(row: dict, key: str) -> list:
    if not isinstance(row[key], list):
        raise RowError(f"{key} is {type_name(row[key])}, expected a list")
    return row[key]


def _is_id(value: Any) -> bool:
    # Batches hold ids as int32.
    return _is_count(value) and value < 2**31


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
