"""Rows that users already have, recognised by their keys and brought to four kinds.

| rows | keys | read as |
| --- | --- | --- |
| plain text | a ``.txt`` file, documents separated by ``<|endoftext|>`` | Text |
| language modelling, labelled sentences | ``text``, or a conversation | Text |
| prompt only | ``prompt`` | Prompt |
| prompt and completion | ``prompt``; ``completion``, ``response`` ... | Demonstration |
| unpaired preference | the same with ``label`` (rows labelled false are left out) | same |
| instructions | ``instruction``, ``input``, ``output`` | Demonstration |
| questions | ``question`` or ``query``; ``answer`` or ``response`` | Demonstration |
| conversation | ``messages`` or ``conversations``, the assistant's last | Demonstration |
| preference | a prompt as above, ``chosen``, ``rejected`` | Comparison |
| RewardBench 2 | the same, ``chosen`` and ``rejected`` being lists of answers | same |
| HH-RLHF, implicit prompt | ``chosen``, ``rejected``: the prompt is what they share | same |
| OpenAI's summaries | ``info``, ``summaries``, ``choice`` | same |
| rankings | ``prompt``, ``responses`` (strings, or ``text`` and ``rank``), ``ranks`` | same |
| trees of messages (OpenAssistant) | ``message_id``, ``parent_id``, ``role``, ``text`` | any |
| Nectar, SHP, WebGPT, PKU-SafeRLHF, HelpSteer and others | see ``public_sets`` | same |

Each but a Text is read as a Prompt too. ``docs/data.md`` has an example of each, what other columns
do, and what is refused or left out.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

from rlhf_jax.data.answers import REMOVED, REPEATED, repeated, without
from rlhf_jax.data.chat import ASSISTANT, Conversation, as_text
from rlhf_jax.data.columns import unknown_columns
from rlhf_jax.data.files import SEPARATOR, Origin, file_type, find_files, read_rows
from rlhf_jax.data.messages import has_developer, unknown_parts
from rlhf_jax.data.public_sets import ranked_row
from rlhf_jax.data.readers import READERS
from rlhf_jax.data.renaming import Columns, check_columns, renamed
from rlhf_jax.data.rows import (
    EMPTY,
    Account,
    Asking,
    Comparison,
    Demonstration,
    LeftOut,
    NotLearnt,
    OtherKeys,
    OtherKind,
    Prompt,
    R,
    Row,
    RowError,
    Text,
    without_gaps,
)
from rlhf_jax.data.trees import is_tree, untangled
from rlhf_jax.errors import InputError

Answered = TypeVar("Answered", Demonstration, Comparison)

MARKS = re.compile(
    r"<\|(?:im_(?:start|end)|eot_id|(?:start|end)_header_id|(?:begin|end)_of_text|user|assistant"
    r"|system|end|endoftext)\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<｜(?:User|Assistant)｜>"
)
"""How models of public families write turns and ends of texts."""


def read_texts(path: str | os.PathLike, columns: Columns | None = None) -> list[Text]:
    """Documents of a file, a folder of files, or a glob pattern. Raises InputError."""
    return list(iterate(path, Text, columns=columns))


def read_demonstrations(
    path: str | os.PathLike, columns: Columns | None = None
) -> list[Demonstration]:
    """Prompts with completions; rows labelled false are left out, and counted in the log."""
    return list(iterate(path, Demonstration, columns=columns))


def read_prompts(path: str | os.PathLike, columns: Columns | None = None) -> list[Prompt]:
    """Prompts of any rows that have one. Raises InputError."""
    return list(iterate(path, Prompt, columns=columns))


def read_comparisons(path: str | os.PathLike, columns: Columns | None = None) -> list[Comparison]:
    """Ranked responses; chosen and rejected are K = 2. Raises InputError.

    Rows that order no two different answers are left out, and counted in the log.
    """
    return list(iterate(path, Comparison, columns=columns))


def iterate(
    path: str | os.PathLike,
    kind: type[R],
    account: Account | None = None,
    columns: Columns | None = None,
) -> Iterator[R]:
    """Rows of ``kind`` (Text, Prompt, Demonstration or Comparison), in the order of the files.

    What is left out or changed is counted in ``account``, or else in the log. ``columns`` are read
    under other names. Raises InputError, naming file and line, for a row that is not of this kind.
    """
    own = Account() if account is None else account
    columns = columns or {}
    check_columns(columns, kind)
    kept = 0
    for file in find_files(path):
        if kind is not Text and file_type(file.name) == ".txt":
            raise OtherKind(f"{file} is plain text, expected {plural(kind)} in a file of rows")
        rows = read_rows(file)
        if columns:
            rows = renamed(file, list(rows), columns, own.notes)
        first = next(rows, None)
        rows = rows if first is None else chain([first], rows)
        if first is not None and is_tree(first[1]):
            rows = untangled(list(rows), kind, own)
        for row in read_as(rows, kind, own):
            kept += 1
            yield row
    if account is None:
        own.say(path, kept)
    if not kept:
        why = own.reasons()
        raise InputError(f"{path} has no {plural(kind)} to learn from{why and f': {why}'}")


def plural(kind: type) -> str:
    """What an error calls rows of ``kind``: "demonstrations"."""
    return f"{kind.__name__.lower()}s"


def read_as(
    raw_rows: Iterable[tuple[Origin, dict]], kind: type[R], account: Account
) -> Iterator[R]:
    """The rows of one file that are learnt from, as ``kind``."""
    rows, left_out = [], []
    for origin, row in raw_rows:
        notes: Counter[str] = Counter()
        try:
            # Public sets first: what they call a rank or a label becomes the columns that are read
            # below.
            row = ranked_row(_by_small_letters(row))
            # A reward function may read them of a prompt.
            what = "no part of the prompt" if kind is Prompt else "not read"
            notes.update(f"column {name} is {what}" for name in unknown_columns(row))
            notes.update(f"{name} of a message is not read" for name in unknown_parts(row))
            notes.update(["a developer's message is read as the system's"] * has_developer(row))
            read = READERS[kind](row, notes)
            rows.append(read._replace(origin=origin))
            mark = _foreign_mark(read)
            if mark is not None:
                notes[f"{mark} is written in a text: letters, unless the tokenizer has it"] += 1
            if _has_written_turns(read):
                notes["a text prompt holds written turns, which stay words of it"] += 1
        except OtherKeys as error:
            first = not rows and not left_out  # which says of what kind a file is
            raise (OtherKind if first else InputError)(f"{origin}: {error}") from None
        except RowError as error:
            raise InputError(f"{origin}: {error}") from None
        except NotLearnt as error:
            left_out.append(LeftOut(origin, str(error)))
        # Of a row each note counts once, however often it applies.
        account.notes.update(notes.keys())
    for row in PASSES[kind](rows, account.notes):
        why = _why_not(row)
        if why is None:
            yield row
        else:
            left_out.append(LeftOut(row.origin, why))
    account.left_out += sorted(left_out, key=lambda lost: lost.origin.line)


def _by_small_letters(row: dict) -> dict:
    """``row`` with the names of its columns in small letters: ``System`` is ``system``."""
    lowered = {name.lower(): value for name, value in row.items()}
    if len(lowered) < len(row):
        raise RowError(f"two columns differ in capitals alone: {', '.join(row)}")
    return lowered


def _has_written_turns(row: Row) -> bool:
    """Whether a text prompt holds a turn, but is no conversation from beginning to end."""
    return not isinstance(row, Text) and isinstance(row.prompt, str) and ASSISTANT in row.prompt


def _foreign_mark(row: Row) -> str | None:
    """A special token of well-known models that is spelled in a text or an answer, or None.

    Not what a person asks in a message, which is never markup.
    """
    asked = () if isinstance(row, Text) or not isinstance(row.prompt, str) else (row.prompt,)
    answers = (row.text,) if isinstance(row, Text) else _answers(row)
    marks = (MARKS.search(as_text(text).replace(SEPARATOR, "")) for text in (*asked, *answers))
    return next((match[0] for match in marks if match), None)


def _why_not(row: Row) -> str | None:
    """Why nothing is to be learnt from a row, or None."""
    if isinstance(row, Text):
        return None if row.text.strip() else "blank text"
    if _asks_nothing(row.prompt):
        return "blank prompt"
    if isinstance(row, Demonstration) and not as_text(row.completion).strip():
        return EMPTY
    return _why_unordered(row) if isinstance(row, Comparison) else None


def _asks_nothing(prompt: str | Conversation) -> bool:
    if isinstance(prompt, str):
        return not prompt.strip()
    return prompt[-1].role == "user" and not prompt[-1].content.strip()


# --- all rows of a file ---------------------------------------------------------------------------


def _split_documents(rows: Sequence[Text], notes: Counter[str]) -> Iterator[Text]:
    """A text with ``<|endoftext|>`` inside is several documents."""
    for row in rows:
        if SEPARATOR not in row.text:
            yield row
            continue
        notes[f"{SEPARATOR} inside a text divides it into documents"] += 1
        assert row.origin is not None, "a file's rows say where they stand"
        lines = file_type(row.origin.file) == ".txt"  # elsewhere a row is on one line
        start = 0
        if not row.text.replace(SEPARATOR, "").strip():
            yield row._replace(text="")
        for piece in row.text.split(SEPARATOR):
            text = piece.strip("\n")
            if text.strip():
                before = row.text[: row.text.index(text, start)].count("\n") if lines else 0
                yield Text(text, row.origin._replace(line=row.origin.line + before))
            start += len(piece) + len(SEPARATOR)


def _answers(row: Asking) -> tuple[str | Conversation, ...]:
    if isinstance(row, Prompt):
        return ()
    return (row.completion,) if isinstance(row, Demonstration) else row.responses


def _without_prompts(rows: Sequence[Answered], notes: Counter[str]) -> Iterator[Answered]:
    """Answers without the prompt that they begin with, if all of a file do that.

    One row's may by chance, and so may those of prompts of a single word. Sampled ids stay.
    """
    written = [row for row in rows if isinstance(row, Demonstration) or row.tokens is None]
    written = [row for row in written if any(as_text(answer).strip() for answer in _answers(row))]
    leads = [repeated(row.prompt, _answers(row)) for row in written]
    found = [lead for lead in leads if lead is not None]
    every = len(found) == len(leads) and any(len(lead.split()) > 1 for lead in found)
    if found:
        notes[REMOVED if every else REPEATED] += len(found)
    # By identity: two rows may be equal, and sampled ones are not among ``written``.
    lead_of = dict(zip(map(id, written), leads, strict=True)) if every else {}
    for row in rows:
        lead = lead_of.get(id(row))
        yield row if lead is None else _with_answers(row, lead)


def _with_answers(row: Demonstration | Comparison, lead: str) -> Any:
    rest = tuple(without(answer, lead, row.prompt) for answer in _answers(row))
    if isinstance(row, Demonstration):
        return row._replace(completion=rest[0])
    return row._replace(responses=rest)


def _ranked_answers(rows: Sequence[Comparison], notes: Counter[str]) -> Iterator[Comparison]:
    """Comparisons without the blank ones among their answers, unless sampled."""
    for row in _without_prompts(rows, notes):
        filled = [n for n, text in enumerate(row.responses) if as_text(text).strip()]
        if row.tokens is None and 2 <= len(filled) < len(row.responses):
            notes["an empty answer among several is left out"] += 1
            row = row._replace(
                responses=tuple(row.responses[n] for n in filled),
                ranks=without_gaps([row.ranks[n] for n in filled]),
            )
        if _why_unordered(row) is None and len(_equal_pairs(row)):
            notes["equal answers have different ranks; other pairs are learnt"] += 1
        yield row


def _why_unordered(row: Comparison) -> str | None:
    """Why no two different answers are ordered, or None."""
    if row.tokens is None and not all(as_text(text).strip() for text in row.responses):
        return EMPTY
    if len(set(row.ranks)) == 1:
        return "all responses tied"
    # A row teaches something as long as one ordered pair has two different answers.
    ordered = sum(a < b for a in row.ranks for b in row.ranks)
    if len(_equal_pairs(row)) < ordered:
        return None
    return "chosen equals rejected"


def _equal_pairs(row: Comparison) -> list[tuple[int, int]]:
    """Equal answers of which one is ranked better."""
    answers = row.tokens or row.responses
    if len(set(answers)) == len(answers):
        return []
    numbers = range(len(answers))
    return [
        (a, b)
        for a in numbers
        for b in numbers
        if row.ranks[a] < row.ranks[b] and answers[a] == answers[b]
    ]


PASSES: dict[type[Row], Callable[[Any, Counter[str]], Iterator[Any]]] = {
    Text: _split_documents,
    Prompt: lambda rows, notes: iter(rows),
    Demonstration: _without_prompts,
    Comparison: _ranked_answers,
}
