"""Rows that users already have, recognised by their keys and brought to four kinds.

| rows | keys | read as |
| --- | --- | --- |
| plain text | a ``.txt`` file, documents separated by a line ``<|endoftext|>`` | Text |
| language modelling, labelled sentences | ``text``, or ``messages`` | Text |
| prompt only | ``prompt`` | Prompt |
| prompt and completion | ``prompt``, ``completion`` | Demonstration, Prompt |
| unpaired preference | the same with ``label`` (rows labelled false are left out) | same |
| instructions | ``instruction``, ``input``, ``output`` | Demonstration, Prompt |
| conversation | ``messages``, the last one by the assistant | Demonstration, Prompt |
| preference | ``prompt`` or ``instruction``, ``chosen``, ``rejected`` | Comparison, Prompt |
| RewardBench 2 | the same, ``chosen`` and ``rejected`` being lists of answers | same |
| HH-RLHF, implicit prompt | ``chosen``, ``rejected``: the prompt is what they share | same |
| OpenAI's summaries | ``info``, ``summaries``, ``choice`` | same |
| rankings | ``prompt``, ``responses`` (strings, or ``text`` and ``rank``), ``ranks`` | same |

A prompt, completion, chosen or rejected may be a list of messages. Messages become one string:
``\\n\\nHuman: ...`` for the user, ``\\n\\nAssistant: ...`` for the assistant, a system message as
it stands. A prompt so made ends in ``\\n\\nAssistant:`` and its completion begins with a space;
an instruction with its input is one message of the user. Other keys are ignored.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.chat import ASSISTANT, HUMAN
from rlhf_jax.data.files import find_files, read_rows, type_name
from rlhf_jax.errors import InputError

log = logging.getLogger(__name__)


class Text(NamedTuple):
    """A document."""

    text: str


class Prompt(NamedTuple):
    """What a policy is asked."""

    prompt: str


class Demonstration(NamedTuple):
    """A prompt and how a person answered it."""

    prompt: str
    completion: str


class Comparison(NamedTuple):
    """K responses to one prompt, ranked."""

    prompt: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    """0 is best, without gaps; equal ranks are ties."""
    tokens: tuple[tuple[int, ...], ...] | None = None
    """Ids of responses that a policy sampled, from ``response_tokens``: re-encoding may differ."""


class RowError(ValueError):
    """What is wrong with one row; ``iterate`` adds where it stands."""


def read_texts(path: str | os.PathLike) -> list[Text]:
    """Documents of a file, a folder of files, or a glob pattern. Raises InputError."""
    return list(iterate(path, Text))


def read_demonstrations(path: str | os.PathLike) -> list[Demonstration]:
    """Prompts with completions; rows labelled false are left out, and counted in the log."""
    return list(iterate(path, Demonstration))


def read_prompts(path: str | os.PathLike) -> list[Prompt]:
    """Prompts of any rows that have one. Raises InputError."""
    return list(iterate(path, Prompt))


def read_comparisons(path: str | os.PathLike) -> list[Comparison]:
    """Ranked responses; chosen and rejected are K = 2. Raises InputError.

    Rows whose responses all share one rank order no pair: left out, and counted in the log.
    """
    return list(iterate(path, Comparison))


def iterate(path: str | os.PathLike, kind: type) -> Iterator[tuple]:
    """Rows of ``kind`` (Text, Prompt, Demonstration or Comparison), in the order of the files.

    Raises InputError, naming file and line, for a row that is not of this kind.
    """
    read = READERS[kind]
    kept = left_out = 0
    for file in find_files(path):
        if kind is not Text and file.suffix == ".txt":
            raise InputError(
                f"{file} is plain text, expected {kind.__name__} rows as .jsonl or .json"
            )
        for where, row in read_rows(file):
            try:
                made = read(row)
            except RowError as error:
                raise InputError(f"{where}: {error}") from None
            if made is None:
                left_out += 1
            else:
                kept += 1
                yield made
    if left_out:
        why = "all responses tied" if kind is Comparison else "label false"
        log.warning("%s: %d of %d rows left out, %s", path, left_out, kept + left_out, why)
    if not kept:
        raise InputError(f"{path} has no {kind.__name__} rows")


# --- strings and messages -------------------------------------------------------------------------


def flatten(messages: list[dict]) -> str:
    """One string of a conversation, by the rule at the top of this file."""
    return "".join(_turn(message) for message in messages)


def _turn(message: Any) -> str:
    if not (isinstance(message, dict) and {"role", "content"} <= message.keys()):
        raise RowError("expected every message to have role and content")
    content = _string(message["content"], "content")
    if message["role"] == "system":
        return content
    speaker = {"user": HUMAN, "assistant": ASSISTANT}.get(message["role"])
    if speaker is None:
        raise RowError(f"role is {message['role']!r}, expected system, user or assistant")
    return f"{speaker} {content}"


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{key} is {type_name(value)}, expected a string")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise RowError(f"{key} holds half a surrogate pair, expected whole characters")
    return value


def _asked(value: Any) -> str:
    prompt = flatten(value) + ASSISTANT if _is_messages(value) else _string(value, "prompt")
    if not prompt:
        raise RowError("prompt is empty, expected at least one character")
    return prompt


def _answered(value: Any, key: str) -> str:
    """A completion; messages lose the ``Assistant:`` that their prompt ends in."""
    return flatten(value).removeprefix(ASSISTANT) if _is_messages(value) else _string(value, key)


def _missing(row: dict, expected: str) -> RowError:
    return RowError(f"found the keys {', '.join(row) or '(none)'}, expected {expected}")


# --- prompts --------------------------------------------------------------------------------------


def _prompt(row: dict) -> Prompt:
    return Prompt(_prompt_of(row))


def _prompt_of(row: dict) -> str:
    if "prompt" in row:
        return _asked(row["prompt"])
    if "instruction" in row:
        parts = [_string(row[key], key) for key in ("instruction", "input") if row.get(key)]
        return _asked([{"role": "user", "content": "\n\n".join(parts)}])
    if "info" in row:
        return _post(row["info"])
    if _is_messages(row.get("messages")):
        return _asked(_until_answer(row["messages"]))
    if "chosen" in row and "rejected" in row:
        return _shared_prompt(row["chosen"], row["rejected"])[0]
    raise _missing(row, "prompt, instruction, info, messages, or chosen and rejected")


def _until_answer(messages: list) -> list:
    """A conversation without its last message, if that is the assistant's."""
    last = messages[-1]
    answered = isinstance(last, dict) and last.get("role") == "assistant"
    return messages[:-1] if answered else messages


def _post(info: Any) -> str:
    """A Reddit post (Stiennon et al. 2020, appendix B) or a news article, to be summarised."""
    if not isinstance(info, dict) or not ("post" in info or "article" in info):
        raise RowError("info has no post and no article")
    get = lambda key: _string(info.get(key) or "", f"info.{key}")
    if info.get("post"):
        title = f"SUBREDDIT: r/{get('subreddit')}\n\nTITLE: {get('title')}"
        return f"{title}\n\nPOST: {get('post')}\n\nTL;DR:"
    return f"TITLE: {get('title')}\n\nARTICLE: {get('article')}\n\nTL;DR:"


def _shared_prompt(chosen: Any, rejected: Any) -> tuple[str, Any, Any]:
    """(prompt, chosen, rejected) where the two given ones begin with the prompt.

    Strings are cut after their last common ``Assistant:``, or else before the word in which they
    part; lists of messages where they part.
    """
    if _is_messages(chosen) and _is_messages(rejected):
        same = _common(chosen[:-1], rejected[:-1])
        if same:
            return _asked(chosen[:same]), chosen[same:], rejected[same:]
        raise RowError("chosen and rejected share no message that could be the prompt")
    shared = chosen[: _common(_string(chosen, "chosen"), _string(rejected, "rejected"))]
    at = shared.rfind(ASSISTANT)
    cut = at + len(ASSISTANT) if at >= 0 else max(shared.rfind(" "), shared.rfind("\n"))
    if cut <= 0:
        raise RowError("chosen and rejected do not begin alike, expected a prompt")
    return shared[:cut], chosen[cut:], rejected[cut:]


def _common(a: Sequence, b: Sequence) -> int:
    """How many leading items are equal."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


# --- texts and demonstrations ---------------------------------------------------------------------


def _text(row: dict) -> Text:
    if "text" in row:
        return Text(_string(row["text"], "text"))
    if _is_messages(row.get("messages")):
        return Text(flatten(row["messages"]))
    raise _missing(row, "text or messages")


def _demonstration(row: dict) -> Demonstration | None:
    if "prompt" in row and "completion" in row:
        made = Demonstration(_prompt_of(row), _answered(row["completion"], "completion"))
        label = row.get("label", True)
        if not isinstance(label, bool | int):
            raise RowError(f"label is {type_name(label)}, expected true or false")
        return made if label else None
    if "instruction" in row and "output" in row:
        return Demonstration(_prompt_of(row), " " + _string(row["output"], "output"))
    if _is_messages(row.get("messages")):
        before = _until_answer(row["messages"])
        if len(before) != len(row["messages"]) - 1 or not before:
            raise RowError("messages do not end with the assistant's answer to something")
        return Demonstration(_asked(before), _answered(row["messages"][-1:], "messages"))
    raise _missing(row, "prompt and completion, instruction and output, or messages")


# --- comparisons ----------------------------------------------------------------------------------


def _comparison(row: dict) -> Comparison | None:
    if "responses" in row:
        return _ranking(row)
    if "summaries" in row and "choice" in row:
        return _summaries(row)
    if "chosen" in row and "rejected" in row:
        return _preference(row)
    raise _missing(row, "prompt and responses, chosen and rejected, or summaries and choice")


def _preference(row: dict) -> Comparison:
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row or "instruction" in row:
        prompt = _prompt_of(row)
    else:
        prompt, chosen, rejected = _shared_prompt(chosen, rejected)
    space = "" if "prompt" in row or "instruction" not in row else " "
    better, worse = _answers(chosen, "chosen"), _answers(rejected, "rejected")
    responses = tuple(space + answer for answer in better + worse)
    return Comparison(prompt, responses, (0,) * len(better) + (1,) * len(worse))


def _answers(value: Any, key: str) -> list[str]:
    if isinstance(value, list) and not _is_messages(value):
        if not value:
            raise RowError(f"{key} is an empty list, expected at least one answer")
        return [_string(each, f"{key}[{n}]") for n, each in enumerate(value)]
    return [_answered(value, key)]


def _summaries(row: dict) -> Comparison | None:
    texts = tuple(_response_text(each, n) for n, each in enumerate(_list(row, "summaries")))
    if not _is_count(row["choice"]) or row["choice"] >= len(texts):
        raise RowError(f"choice is {row['choice']!r}, expected 0 ... {len(texts) - 1}")
    return _ranked(_prompt_of(row), texts, [int(n != row["choice"]) for n in range(len(texts))])


def _ranking(row: dict) -> Comparison | None:
    responses = _list(row, "responses")
    texts = tuple(_response_text(each, n) for n, each in enumerate(responses))
    if "ranks" in row:
        ranks = _list(row, "ranks")
    else:
        ranks = [each.get("rank") for each in responses if isinstance(each, dict)]
        if len(ranks) != len(responses) or None in ranks:
            raise _missing(row, "ranks, or a rank in every response")
    return _ranked(_prompt_of(row), texts, ranks, _token_ids(row, len(texts)))


def _ranked(
    prompt: str, responses: tuple[str, ...], ranks: list, tokens: tuple | None = None
) -> Comparison | None:
    """With ranks 0, 1, ... without gaps; None if all are tied."""
    if len(responses) < 2:
        raise RowError(f"found {len(responses)} response, expected at least 2 to compare")
    if len(ranks) != len(responses):
        raise RowError(f"found {len(ranks)} ranks for {len(responses)} responses")
    if not all(map(_is_count, ranks)):
        raise RowError(f"ranks are {ranks}, expected whole numbers from 0 on")
    order = sorted(set(ranks))
    if len(order) == 1:
        return None
    return Comparison(prompt, responses, tuple(map(order.index, ranks)), tokens)


def _token_ids(row: dict, count: int) -> tuple[tuple[int, ...], ...] | None:
    if row.get("response_tokens") is None:
        return None
    tokens = _list(row, "response_tokens")
    if len(tokens) != count:
        raise RowError(f"found {len(tokens)} response_tokens for {count} responses")
    for n, ids in enumerate(tokens):
        if not isinstance(ids, list) or not ids or not all(map(_is_count, ids)):
            raise RowError(f"response_tokens[{n}] is not a list of token ids")
    return tuple(map(tuple, tokens))


def _response_text(value: Any, n: int) -> str:
    if isinstance(value, dict):
        value = value.get("text")
    return _string(value, f"the text of response {n}")


def _list(row: dict, key: str) -> list:
    if not isinstance(row[key], list):
        raise RowError(f"{key} is {type_name(row[key])}, expected a list")
    return row[key]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


READERS: dict[type, Callable[[dict], tuple | None]] = {
    Text: _text,
    Prompt: _prompt,
    Demonstration: _demonstration,
    Comparison: _comparison,
}
