"""What becomes of each row: the ids that are learnt from it, or why it is left out.

The stages pack these ids into arrays (``encoding``), ``experiments.preview`` shows them. Without a
length nothing is cut, which tells how long the rows are.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import NamedTuple

from rlhf_jax.data.chat import Conversation, as_text
from rlhf_jax.data.rows import EMPTY, Asking, Comparison, Demonstration, LeftOut, Prompt, Row
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError, counted

ROWS_AT_ONCE = 1024
"""Rows per call of the tokenizer: enough to keep its threads busy, few enough for memory."""

TOO_LONG = "answer over response_length"
"""Why a demonstration is left out: half an answer would teach to stop in the middle."""
SEVERAL = "answer of several messages, in a chat template"
"""Why a row is left out whose answers part before the last turn: a policy samples one message."""
LACKS = "characters that the tokenizer lacks"
"""Why a row is left out of which a part would be lost."""
EQUAL = "answers of equal tokens"
"""Why a comparison is left out: the gradient of two equal scores is zero."""

Ids = list[int]


class Fate(NamedTuple):
    """What a stage learns from one row."""

    row: Asking
    query: Ids
    """Of the prompt: its end (after its begin of text), where it is too long."""
    responses: tuple[Ids, ...]
    """Of each answer with its end of text: the beginning, where it is too long."""
    cut: Mapping[str, int]
    """How many tokens of "prompt" and "response" are cut; empty where nothing is."""
    why: str | None = None
    """Why the row is left out; None where it is kept."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of a comparison's answers; none of other rows."""
        return self.row.ranks if isinstance(self.row, Comparison) else ()

    @property
    def fits(self) -> bool:
        """Whether its length takes nothing away from what is learnt."""
        if self.why == TOO_LONG:
            return False
        return not self.cut or self.why not in (None, EQUAL)


class EncodingReport(NamedTuple):
    """How many rows there are of each fate."""

    kept: int
    left_out: dict[str, int]
    """By reason."""
    cut: dict[str, int]
    """Of the kept ones, by what is cut: "prompt" to its end, "response" to its beginning."""
    over: int
    """Rows that are cut, or left out for their length."""
    longest: dict[str, int]
    """Tokens of the longest prompt and of the longest answer with its end, before any cut."""
    changed: dict[str, int] = {}  # noqa: RUF012 - no instance writes to it
    """Rows that are read otherwise than they stand, by what was done with them."""

    def with_reading(
        self, left_out: Iterable[LeftOut], notes: Mapping[str, int]
    ) -> "EncodingReport":
        """And what reading has left out of the files, or done with their rows."""
        counted = Counter(row.why for row in left_out)
        return self._replace(left_out=dict(Counter(self.left_out) + counted), changed=dict(notes))

    def counts(self) -> dict[str, int]:
        """Rows by reason, "kept" first."""
        cut = {f"{part}s cut": number for part, number in self.cut.items()}
        return {"kept": self.kept, **cut, **self.left_out, **self.changed}

    def lost(self) -> str:
        """What is not learnt, in words; empty where all is."""
        cut = [f"{counted(number, part)} cut" for part, number in self.cut.items()]
        return ", ".join([*cut, *(f"{n} left out ({why})" for why, n in self.left_out.items())])


def of_prompts(
    rows: Iterable[Prompt], tokenizer: Tokenizer, *, prompt_length: int | None
) -> Iterator[Fate]:
    """The fate of each prompt: a long one keeps its end, and its begin of text."""
    for chunk in _some(rows):
        queries = _encoded(chunk, lambda rows: tokenizer.encode_prompts([r.prompt for r in rows]))
        for row, query in zip(chunk, queries, strict=True):
            why = _spelled(row.prompt, (), tokenizer)
            cut = _cut(query, prompt_length, (), None)
            yield Fate(row, tokenizer.last_ids(query, prompt_length), (), cut, why)


def of_demonstrations(
    rows: Iterable[Demonstration],
    tokenizer: Tokenizer,
    *,
    prompt_length: int | None,
    response_length: int | None,
) -> Iterator[Fate]:
    """The fate of each demonstration.

    A long prompt keeps its end; a row whose answer is too long with its end is left out.
    """
    for chunk in _some(rows):
        queries = _encoded(chunk, lambda rows: tokenizer.encode_prompts([r.prompt for r in rows]))
        answers = _encoded(
            chunk,
            lambda rows: tokenizer.encode_answers(
                [r.prompt for r in rows], [_sampled_part(r.completion, tokenizer) for r in rows]
            ),
        )
        for row, query, answer in zip(chunk, queries, answers, strict=True):
            why = _spelled(row.prompt, (row.completion,), tokenizer)
            if why is None and _is_empty(answer, tokenizer):
                why = EMPTY
            # A comparison's answer may be cut: its score is still of what stands there.
            if why is None and response_length is not None and len(answer) > response_length:
                why = TOO_LONG
            cut = _cut(query, prompt_length, (answer,), None)
            yield Fate(row, tokenizer.last_ids(query, prompt_length), (answer,), cut, why)


def of_comparisons(
    rows: Iterable[Comparison],
    tokenizer: Tokenizer,
    *,
    prompt_length: int | None,
    response_length: int | None,
) -> Iterator[Fate]:
    """The fate of each comparison.

    A long prompt keeps its end, a long answer its beginning, then without an end of text.
    Sampled ids are taken as they are, up to and including their first end. A row none of whose
    ranked pairs differs in ids teaches nothing, and is left out.
    """
    for chunk in _some(rows):
        queries = _encoded(chunk, lambda rows: tokenizer.encode_prompts([r.prompt for r in rows]))
        answers = _encoded(chunk, lambda rows: _answers(rows, tokenizer))
        for row, query, whole_answers in zip(chunk, queries, answers, strict=True):
            responses = tuple(answer[:response_length] for answer in whole_answers)
            written = row.responses if row.tokens is None else ()
            why = _spelled(row.prompt, written, tokenizer)
            if why is None and written and any(_is_empty(ids, tokenizer) for ids in whole_answers):
                why = EMPTY
            if why is None and not _teaches(responses, row.ranks):
                why = EQUAL
            cut = _cut(query, prompt_length, whole_answers, response_length)
            yield Fate(row, tokenizer.last_ids(query, prompt_length), responses, cut, why)


def count(fates: Iterable[Fate]) -> EncodingReport:
    """Rows by fate."""
    kept = over = 0
    left_out, cut = Counter(), Counter()
    longest = {"prompt": 0, "response": 0}
    for fate in fates:
        full = full_lengths(fate)
        longest = {part: max(longest[part], full[part]) for part in longest}
        over += not fate.fits
        if fate.why is None:
            kept += 1
            cut.update(fate.cut.keys())
        else:
            left_out[fate.why] += 1
    return EncodingReport(kept, dict(left_out), dict(cut), over, longest)


def full_lengths(fate: Fate) -> dict[str, int]:
    """Tokens of the prompt and of the longest answer, before any cut."""
    answer = max(map(len, fate.responses), default=0)
    return {
        "prompt": len(fate.query) + fate.cut.get("prompt", 0),
        "response": answer + fate.cut.get("response", 0),
    }


def total(reports: Iterable[EncodingReport]) -> EncodingReport:
    """One report of several sets."""
    kept, left_out, cut, over, longest, changed = zip(*reports, strict=True)
    return EncodingReport(
        sum(kept),
        dict(sum(map(Counter, left_out), Counter())),
        dict(sum(map(Counter, cut), Counter())),
        sum(over),
        {part: max(lengths[part] for lengths in longest) for part in longest[0]},
        dict(sum(map(Counter, changed), Counter())),
    )


def _teaches(responses: Sequence[Ids], ranks: Sequence[int]) -> bool:
    """Whether two answers of different rank differ in their ids; a single answer ranks nothing."""
    # Compared as ids, after the cut: what the model is shown.
    ranked = combinations(zip(responses, ranks, strict=True), 2)
    return any(r != s and a != b for (a, r), (b, s) in ranked)


def _answers(rows: Sequence[Comparison], tokenizer: Tokenizer) -> list[list[Ids]]:
    """Ids of each row's answers: those sampled, or those of the texts."""
    written = [row for row in rows if row.tokens is None]
    prompts = [row.prompt for row in written for _ in row.responses]
    answers = [_sampled_part(response, tokenizer) for row in written for response in row.responses]
    # One call for all written answers, whose ids are then dealt out in the same order.
    encoded = iter(tokenizer.encode_answers(prompts, answers))
    return [
        [next(encoded) for _ in row.responses]
        if row.tokens is None
        else [_sampled(ids, row, tokenizer) for ids in row.tokens]
        for row in rows
    ]


def _sampled(ids: Sequence[int], row: Comparison, tokenizer: Tokenizer) -> Ids:
    """Up to and including the first end."""
    if max(ids) >= tokenizer.vocab_size:
        raise InputError(
            f"response_tokens of the prompt {as_text(row.prompt)[:40]!r} hold id {max(ids)}, "
            f"expected ids under the vocabulary's {tokenizer.vocab_size}"
        )
    # Behind its end a sampled answer has padding, which is none of it.
    end = next((n for n, i in enumerate(ids, start=1) if i in tokenizer.end_ids), len(ids))
    return list(ids[:end])


def _spelled(
    prompt: str | Conversation, answers: Sequence[str | Conversation], tokenizer: Tokenizer
) -> str | None:
    """Why a row is left out whose text would be learnt as another one, or None."""
    if any(_sampled_part(answer, tokenizer) != answer for answer in answers):
        return SEVERAL
    if any(map(tokenizer.lacks, (prompt, *answers))):
        return LACKS
    for answer in answers or ("",):
        token = tokenizer.stray_special(prompt, answer)
        if token is not None:
            return f"spells {token}"
    return None


def _sampled_part(answer: str | Conversation, tokenizer: Tokenizer) -> str | Conversation:
    """What a policy would sample of an answer: in a chat template its first message."""
    return answer if isinstance(answer, str) or not tokenizer.chat_prompts else answer[:1]


def _is_empty(answer: Ids, tokenizer: Tokenizer) -> bool:
    return all(i in tokenizer.end_ids for i in answer)


def _cut(
    query: Ids, prompt_length: int | None, answers: Sequence[Ids], response_length: int | None
) -> dict[str, int]:
    """Tokens over the lengths, of the longest answer."""
    over = {
        "prompt": len(query) - (prompt_length or len(query)),
        "response": max(map(len, answers), default=0) - response_length if response_length else 0,
    }
    return {part: tokens for part, tokens in over.items() if tokens > 0}


def _some(rows: Iterable) -> Iterator[list]:
    rows = iter(rows)
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        yield chunk


def _encoded(rows: Sequence, encode: Callable[[Sequence], list]) -> list:
    """``encode`` of all ``rows``; an InputError that one of them causes says where it stands."""
    try:
        return encode(rows)
    except InputError:
        # Again, one by one: the tokenizer's error is of the whole chunk and names no line.
        for row in rows:
            _encode_one(row, encode)
        raise


def _encode_one(row: Row, encode: Callable[[Sequence], list]) -> None:
    try:
        encode([row])
    except InputError as error:
        where = f"{row.origin}: " if row.origin else ""
        raise InputError(f"{where}{error}") from None
