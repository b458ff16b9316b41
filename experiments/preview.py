"""What a stage would learn from each row of a file: tokens, which carry the loss, what is lost.

    python -m experiments.preview --init runs/pretrain --data demonstrations.jsonl
    python -m experiments.preview --init path/to/model --data pairs.jsonl --rows 0 --json True

Rows are read, encoded and cut by the stages' own functions, with the stages' own defaults; nothing
is trained, and no weights are read. ``--json True`` writes an object for each row, then the counts.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text as Styled

from rlhf_jax.cli import main
from rlhf_jax.config import PreviewConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data import fates
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.demonstrations import every_answer
from rlhf_jax.data.encoding import document_report, encode_texts
from rlhf_jax.data.fates import EncodingReport, Fate
from rlhf_jax.data.files import Origin
from rlhf_jax.data.formats import iterate
from rlhf_jax.data.renaming import Columns
from rlhf_jax.data.rows import (
    UNANSWERED,
    Account,
    Comparison,
    Demonstration,
    LeftOut,
    OtherKind,
    Prompt,
    R,
    Text,
)
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError, check, known
from rlhf_jax.runs.fit import check_cut, fit_answers, fit_lengths
from rlhf_jax.runs.trained import Trained, load_reader
from rlhf_jax.tasks.preferences import is_name, load_preferences

KINDS = {
    "comparisons": Comparison,
    "demonstrations": Demonstration,
    "prompts": Prompt,
    "text": Text,
}
"""In the order in which they are tried: a row of comparisons has a prompt, too."""


class Found(NamedTuple):
    """The rows of a file, in its order, and the counts of all."""

    rows: list[Fate | LeftOut]
    report: EncodingReport


class Document(NamedTuple):
    """What pretraining would learn from one file."""

    file: str
    documents: int
    ids: list[list[int]]
    """Of the first documents."""


def run(config: PreviewConfig) -> None:
    """Print what the stage would learn from the rows, as text or as JSON lines."""
    reader = load_reader(config.init, flag="init")
    named = is_name(config.data)
    columns = column_names(config.columns)
    kind = config.as_ or ("comparisons" if named else kind_of(config.data, columns))
    if config.as_ is None:
        print(f"preview: the rows of {config.data} are {kind} (--as)", file=sys.stderr)
    if named:
        check(kind == "comparisons", f"--data {config.data} is a set of comparisons, not of {kind}")
        rows, account, problem = named_rows(config), Account(), None
    else:
        rows, account, problem = read(config.data, KINDS[kind], columns)
    if config.target == "turns":
        check(kind == "demonstrations", f"--target turns is of demonstrations, not of {kind}")
        rows = list(every_answer([row for row in rows if isinstance(row, Demonstration)]))
    if kind == "text":
        texts = [row for row in rows if isinstance(row, Text)]
        show_text(config, reader.tokenizer, texts, account)
    else:
        encoded_rows = encoded(config, kind, reader, rows, account)
        show_rows(config, reader.tokenizer, encoded_rows)
    if problem is not None:
        raise problem


# --- what the stages would do ---------------------------------------------------------------------


def kind_of(path: Path, columns: Columns) -> str:
    """What the first row is. Raises InputError if it is of none of these kinds."""
    for name, kind in KINDS.items():
        account = Account()
        try:
            next(iterate(path, kind, account, columns))
            return name
        except OtherKind as error:
            problem = error
        except InputError as error:
            if not account.left_out:
                raise
            if any(row.why != UNANSWERED for row in account.left_out):
                return name
            problem = error
    raise problem


def read(path: Path, kind: type[R], columns: Columns) -> tuple[list[R], Account, InputError | None]:
    """(rows, account, error): rows that are all left out are shown before a stage's error is."""
    account = Account()
    rows: list[R] = []
    try:
        for row in iterate(path, kind, account, columns):
            rows.append(row)
    except InputError as error:
        if rows or not account.left_out:
            raise
        return rows, account, error
    return rows, account, None


def named_rows(config: PreviewConfig) -> list[Comparison]:
    """What the reward model is taught of a named set, or, of one for evaluation, tested on."""
    preferences = load_preferences(str(config.data), config.source)
    rows = preferences.train or preferences.heldout
    return [row._replace(origin=Origin(str(config.data), n)) for n, row in enumerate(rows, 1)]


def encoded(
    config: PreviewConfig, kind: str, reader: Trained, rows: Sequence, account: Account
) -> Found:
    """The fate of every row, cut as a stage of this kind cuts it."""
    function = {
        "comparisons": fates.of_comparisons,
        "demonstrations": fates.of_demonstrations,
        "prompts": fates.of_prompts,
    }[kind]

    def fates_of(config, *names):
        lengths = {name: getattr(config, name) if config else None for name in names}
        return function(rows, reader.tokenizer, **lengths)

    names = ("prompt_length", "response_length")[: 1 if kind == "prompts" else 2]
    context = reader.model.context
    if kind == "prompts":
        config = fit_answers(config, config.init)
    config = fit_lengths(config, fates_of(None, *names), context=context, stage="preview")
    row_fates = list(fates_of(config, *names))
    report = fates.count(row_fates)
    try:
        check_cut(report, config, context=context, stage="STAGE")
    except InputError as error:
        print(f"preview: a stage would refuse this: {error}", file=sys.stderr)
    both = sorted([*row_fates, *account.left_out], key=origin_of)
    return Found(both, report.with_reading(account.left_out, account.notes))


def origin_of(row: Fate | LeftOut) -> Origin:
    """Where a row stands, which the preview has seen to."""
    return row.origin if isinstance(row, LeftOut) else known(row.row.origin)


# --- JSON -----------------------------------------------------------------------------------------


def as_json(row: Fate | LeftOut) -> dict[str, Any]:
    """One line of ``--json``."""
    file, line = origin_of(row)
    common = {"file": file, "line": line, "kept": row.why is None, "why": row.why}
    names = ("prompt", "responses", "ranks", "query_ids", "response_ids", "loss_mask", "cut")
    if isinstance(row, LeftOut):
        return common | dict.fromkeys(names)
    answers = answers_of(row)
    values = (
        as_text(row.row.prompt),
        [as_text(answer) for answer in answers],
        list(getattr(row.row, "ranks", [0] * len(answers))),
        list(row.query),
        [list(ids) for ids in row.responses],
        [[row.why is None] * len(ids) for ids in row.responses],
        dict(row.cut),
    )
    return common | dict(zip(names, values, strict=True))


def answers_of(fate: Fate) -> tuple:
    """The answers of a row as it is written."""
    if isinstance(fate.row, Demonstration):
        return (fate.row.completion,)
    return getattr(fate.row, "responses", ())


def write_json(row: dict[str, Any]) -> None:
    """Print a row as a line of JSON."""
    print(json.dumps(row, ensure_ascii=False))


# --- text -----------------------------------------------------------------------------------------


def documents_of(rows: Sequence[Text], tokenizer: Tokenizer, first: int) -> Iterator[Document]:
    """What is learnt from each file."""
    for file, part in groupby(rows, key=lambda row: known(row.origin).file):
        ids = [
            ids_of_text.tolist()
            for ids_of_text in encode_texts(part, tokenizer)
            if len(ids_of_text) > 1
        ]
        yield Document(file, len(ids), ids[:first] if first else ids)


def show_text(
    config: PreviewConfig, tokenizer: Tokenizer, rows: Sequence[Text], account: Account
) -> None:
    """Print the documents as they would be packed, and the counts."""
    report = document_report(encode_texts(rows, tokenizer))
    report = report.with_reading(account.left_out, account.notes)
    documents = documents_of(rows, tokenizer, config.rows)
    if config.json:
        for document in documents:
            write_json(document._asdict())
        write_json({"summary": report.counts()})
        return
    console = Console(highlight=False)
    for document in documents:
        title = Styled(f"{document.file}: {document.documents} documents", "bold")
        console.print(title, soft_wrap=True)
        for ids in document.ids:
            console.print(labelled("learnt", ids, tokenizer, LEARNT), soft_wrap=True)
    show_counts(console, report)


# --- the terminal ---------------------------------------------------------------------------------

GIVEN, LEARNT, SPECIAL, LOST = ("cyan", "blue"), ("green", "yellow"), "reverse", "dim red"
"""Colours of tokens that are read, of those that carry the loss (two in turn, so that one sees
where a token ends), of special tokens, and of what is lost."""


def show_rows(config: PreviewConfig, tokenizer: Tokenizer, encoded_rows: Found) -> None:
    """Print each row with what is learnt of it, and the counts."""
    listed = encoded_rows.rows[: config.rows] if config.rows else encoded_rows.rows
    if config.json:
        for row in listed:
            write_json(as_json(row))
        write_json({"summary": encoded_rows.report.counts()})
        return
    console = Console(highlight=False)
    for row in listed:
        for line in described(row, tokenizer):
            console.print(line, soft_wrap=True)
        console.print()
    if len(listed) < len(encoded_rows.rows):
        console.print(f"{len(listed)} of {len(encoded_rows.rows)} rows (--rows 0 shows all)")
    show_counts(console, encoded_rows.report)


def described(row: Fate | LeftOut, tokenizer: Tokenizer) -> Iterator[Styled]:
    """A row in lines that need no colour to be read."""
    fate = f"left out: {row.why}" if row.why else "kept"
    yield Styled.assemble((f"{origin_of(row)}: ", "bold"), (fate, LOST if row.why else "bold"))
    if isinstance(row, LeftOut):
        return
    lost = row.cut.get("prompt", 0)
    yield labelled("prompt", row.query, tokenizer, GIVEN, before=lost)
    ranks = getattr(row.row, "ranks", [None] * len(row.responses))
    full = fates.full_lengths(row)["response"]
    for ids, rank in zip(row.responses, ranks, strict=True):
        name = ("answer" if row.why else "learnt") if rank is None else f"rank {rank}"
        over = full - len(ids) if "response" in row.cut and len(ids) == max_of(row) else 0
        yield labelled(name, ids, tokenizer, LEARNT, after=over)


def max_of(fate: Fate) -> int:
    """Tokens of the longest answer."""
    return max(map(len, fate.responses), default=0)


def labelled(
    name: str,
    ids: Sequence[int],
    tokenizer: Tokenizer,
    colours: tuple[str, str],
    *,
    before: int = 0,
    after: int = 0,
) -> Styled:
    """``name`` and the number of tokens, then the tokens, with how many were cut on either side."""
    line = Styled.assemble((f"  {name:>8} {len(ids):>4} ", "dim"))
    if before:
        line.append(f"[{before} tokens cut] ", LOST)
    for number, (text, special) in enumerate(pieces(ids, tokenizer)):
        line.append(text, SPECIAL if special else colours[number % 2])
    if after:
        line.append(f" [{after} tokens cut]", LOST)
    return line


def pieces(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """(text, whether it is a special token) of each token; of several where they are one character.

    Line feeds are shown as ⏎ and the names of special tokens in ⟦ ⟧.
    """
    waiting: list[int] = []
    for i in ids:
        name = tokenizer.special_text(i)
        if name is not None:
            if waiting:
                yield visible(tokenizer.decode(waiting)), False
                waiting = []
            yield f"⟦{name}⟧", True
            continue
        waiting.append(i)
        text = tokenizer.decode(waiting)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield visible(text), False
            waiting = []
    if waiting:
        yield visible(tokenizer.decode(waiting)), False


def visible(text: str) -> str:
    """Text whose line ends are seen."""
    return text.replace("\n", "⏎\n" + " " * 14)


def show_counts(console: Console, report: EncodingReport) -> None:
    """Print how many rows there are of each fate."""
    for why, count in report.counts().items():
        console.print(f"{count:>8} {why}")


if __name__ == "__main__":
    main(run, PreviewConfig)
