"""A row of a file, recognised by its keys, as one of the four kinds."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.data.answers import EARLIER, joined, last_answers, read_answer
from rlhf_jax.data.chat import (
    ASSISTANT,
    Conversation,
    as_text,
    flatten,
    written_prompt,
    written_turns,
)
from rlhf_jax.data.columns import (
    ANSWERING,
    CHANGING,
    CONVERSATIONS,
    SYSTEM,
    read_prompt,
    with_system,
)
from rlhf_jax.data.files import type_name
from rlhf_jax.data.messages import (
    OtherKeys,
    RowError,
    is_filled,
    is_messages,
    read_messages,
    read_text,
)
from rlhf_jax.data.rows import (
    Comparison,
    Demonstration,
    NotLearnt,
    Prompt,
    Text,
    without_gaps,
)

# --- prompts --------------------------------------------------------------------------------------


def _prompt(row: dict, notes: Counter[str]) -> Prompt:
    return Prompt(_prompt_of(row, notes))


def _prompt_of(row: dict, notes: Counter[str]) -> str | Conversation:
    asked = read_prompt(row)
    if asked is not None:
        return _askable(asked)
    if "info" in row:
        return _post(row["info"])
    messages = _conversation(row)
    pair = "chosen" in row and "rejected" in row
    if messages is not None and not (pair and messages[-1].role == "assistant"):
        return _askable(_until_answer(messages))
    if pair:
        return _shared_prompt(row["chosen"], row["rejected"], notes)[0]
    raise _missing(row, "prompt, instruction, question, info, messages, or chosen and rejected")


def _askable(prompt: str | Conversation) -> str | Conversation:
    if prompt == ():
        raise RowError("the assistant's message answers nothing: expected a message before it")
    if not isinstance(prompt, str) and prompt[0].role == prompt[-1].role == "assistant":
        raise RowError("the prompt begins and ends with the assistant, expected a user's message")
    return prompt


def _conversation(row: dict) -> Conversation | None:
    """The messages of a row, after the system message of another column."""
    name = next((name for name in CONVERSATIONS if isinstance(row.get(name), list | str)), None)
    if name is None or not row[name]:
        return None
    if not is_messages(row[name]):
        raise RowError(
            f"{name} is {type_name(row[name])} without messages, expected a list of them"
        )
    system = next((row[key] for key in SYSTEM if is_filled(row.get(key))), None)
    system = None if system is None else read_text(system, "system")
    return with_system(read_messages(row[name]), system)


def _until_answer(messages: Conversation) -> Conversation:
    """A conversation without its last message, if that is the assistant's."""
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _post(info: Any) -> str:
    """A Reddit post (Stiennon et al. 2020, appendix B) or a news article, to be summarised."""
    if not isinstance(info, dict) or not ("post" in info or "article" in info):
        raise RowError("info has no post and no article")
    get = lambda key: read_text(info.get(key) or "", f"info.{key}")
    if info.get("post"):
        title = f"SUBREDDIT: r/{get('subreddit')}\n\nTITLE: {get('title')}"
        return f"{title}\n\nPOST: {get('post')}\n\nTL;DR:"
    return f"TITLE: {get('title')}\n\nARTICLE: {get('article')}\n\nTL;DR:"


def _shared_prompt(
    chosen: Any, rejected: Any, notes: Counter[str]
) -> tuple[str | Conversation, str | Conversation, str | Conversation]:
    """(prompt, chosen, rejected) where the two given ones begin with the prompt.

    Lists of messages are cut where they part; strings after their last common ``Assistant:``, or
    else before the word in which they part.
    """
    if is_messages(chosen) and is_messages(rejected):
        return _shared_messages(read_messages(chosen), read_messages(rejected))
    texts = read_text(chosen, "chosen"), read_text(rejected, "rejected")
    shared = texts[0][: _common(*texts)]
    at = shared.rfind(ASSISTANT)
    cut = at + len(ASSISTANT) if at >= 0 else max(shared.rfind(" "), shared.rfind("\n"))
    if cut <= 0:
        raise RowError("chosen and rejected do not begin alike, expected a prompt")
    if at < 0:
        notes["the prompt is taken to be the words that chosen and rejected begin with"] += 1
    prompt = written_prompt(shared[:cut])
    return prompt, *(_written_answer(text, prompt, cut) for text in texts)


def _shared_messages(a: Conversation, b: Conversation) -> tuple[Conversation, ...]:
    same = _common(a[:-1], b[:-1])
    if not same:
        raise RowError("chosen and rejected share no message that could be the prompt")
    answers = a[same:], b[same:]
    if any(each[0].role != "assistant" or each[-1].role != "assistant" for each in answers):
        raise RowError("chosen and rejected do not part at answers of the assistant")
    return _askable(a[:same]), *answers


def _written_answer(text: str, prompt: str | Conversation, cut: int) -> str | Conversation:
    """What follows the prompt in a conversation that is written down as one string."""
    turns = None if isinstance(prompt, str) else written_turns(text)
    if turns is None or turns[-1].role != "assistant":
        return joined(text[cut:], prompt, exact=True)
    return turns[len(prompt) :]


def _common(a: Sequence, b: Sequence) -> int:
    """How many leading items are equal."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


def _missing(row: dict, expected: str) -> OtherKeys:
    return OtherKeys(f"found the keys {', '.join(row) or '(none)'}, expected {expected}")


# --- texts and demonstrations ---------------------------------------------------------------------


def _text(row: dict, notes: Counter[str]) -> Text:
    if "text" in row:
        others = [name for name in row if name in CHANGING and is_filled(row[name])]
        notes.update(f"column {name} is not read" for name in others)
        return Text(read_text(row["text"], "text"))
    messages = _conversation(row)
    if messages is not None:
        return Text(flatten(messages))
    raise _missing(row, "text or messages")


def _demonstration(row: dict, notes: Counter[str]) -> Demonstration:
    answers = [name for name in ANSWERING if name in row]
    messages = _conversation(row)
    prompt = read_prompt(row)
    if prompt is None or not answers:
        if messages is not None:
            _check_weight(row)
            return _last_answer(messages, notes)
        expected = "prompt and completion, instruction and output, question and answer, or messages"
        raise _missing(row, expected)
    if not _label(row):
        raise NotLearnt("label false")
    filled = [name for name in answers if is_filled(row[name])]
    if len(filled) > 1 and any(row[name] != row[filled[0]] for name in filled):
        raise RowError(f"found both {filled[0]} and {filled[1]}, expected one answer")
    key = (filled or answers)[0]
    prompt = _askable(prompt)
    answer = read_answer(row[key], key, prompt, notes, exact=_is_exact(row, prompt))
    prompt, (answer,) = last_answers(prompt, [answer], notes)
    return Demonstration(prompt, answer)


def _last_answer(messages: Conversation, notes: Counter[str]) -> Demonstration:
    before = _until_answer(messages)
    if len(before) != len(messages) - 1 or not before:
        raise RowError("messages do not end with the assistant's answer to something")
    if any(message.role == "assistant" for message in before):
        notes[EARLIER] += 1
    return Demonstration(_askable(before), messages[-1:])


def _check_weight(row: dict) -> None:
    """Leave out a conversation whose last message is marked as not to be learnt."""
    last = next(row[name][-1] for name in CONVERSATIONS if is_messages(row.get(name)))
    if any(last.get(mark) in (0, False) for mark in ("weight", "train", "loss") if mark in last):
        raise NotLearnt("the last message has no weight")


def _label(row: dict) -> bool:
    label = row.get("label", True)
    if not isinstance(label, bool | int):
        raise RowError(f"label is {type_name(label)}, expected true or false")
    return bool(label)


def _is_exact(row: dict, prompt: str | Conversation) -> bool:
    """Whether the prompt is the text of the row: its answers follow it to the letter."""
    return isinstance(row.get("prompt"), str) and as_text(prompt) == row["prompt"]


# --- comparisons ----------------------------------------------------------------------------------


def _comparison(row: dict, notes: Counter[str]) -> Comparison:
    if "responses" in row:
        return _ranking(row, notes)
    if "summaries" in row and "choice" in row:
        return _summaries(row, notes)
    if "chosen" in row and "rejected" in row:
        return _preference(row, notes)
    raise _missing(row, "prompt and responses, chosen and rejected, or summaries and choice")


def _preference(row: dict, notes: Counter[str]) -> Comparison:
    messages = _conversation(row)
    prompt = read_prompt(row)
    if prompt is None and (messages is None or messages[-1].role == "assistant"):
        prompt, *answers = _shared_prompt(row["chosen"], row["rejected"], notes)
        return Comparison(prompt, tuple(answers), (0, 1))
    prompt = _askable(messages if prompt is None else prompt)
    exact = _is_exact(row, prompt)
    better, worse = (
        [
            read_answer(each, name, prompt, notes, exact=exact)
            for name, each in _several(row[key], key)
        ]
        for key in ("chosen", "rejected")
    )
    ranks = (0,) * len(better) + (1,) * len(worse)
    return Comparison(*last_answers(prompt, [*better, *worse], notes), ranks)


def _several(value: Any, key: str) -> list[tuple[str, Any]]:
    """An answer, or the answers of a list, each with the name for an error."""
    if not isinstance(value, list) or is_messages(value):
        return [(key, value)]
    if not value:
        raise RowError(f"{key} is an empty list, expected at least one answer")
    return [(f"{key}[{n}]", each) for n, each in enumerate(value)]


def _summaries(row: dict, notes: Counter[str]) -> Comparison:
    texts = tuple(_response_text(each, n) for n, each in enumerate(_list(row, "summaries")))
    if not _is_count(row["choice"]) or row["choice"] >= len(texts):
        raise RowError(f"choice is {row['choice']!r}, expected 0 ... {len(texts) - 1}")
    ranks = [int(n != row["choice"]) for n in range(len(texts))]
    return _ranked(_prompt_of(row, notes), texts, ranks)


def _ranking(row: dict, notes: Counter[str]) -> Comparison:
    responses = _list(row, "responses")
    if "ranks" in row:
        ranks = _list(row, "ranks")
    else:
        ranks = [each.get("rank") for each in responses if isinstance(each, dict)]
        if len(ranks) != len(responses) or None in ranks:
            raise RowError(str(_missing(row, "ranks, or a rank in every response")))
    tokens = _token_ids(row, len(responses))
    prompt = _prompt_of(row, notes)
    exact = tokens is not None or _is_exact(row, prompt)
    answers = tuple(
        read_answer(each, "responses", prompt, notes)
        if is_messages(each)
        else joined(_response_text(each, n), prompt, exact=exact)
        for n, each in enumerate(responses)
    )
    return _ranked(prompt, answers, ranks, tokens)


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
        if not isinstance(ids, list) or not ids or not all(map(_is_count, ids)):
            raise RowError(f"response_tokens[{n}] is not a list of token ids")
    return tuple(map(tuple, tokens))


def _response_text(value: Any, n: int) -> str:
    if isinstance(value, dict):
        value = value.get("text")
    return read_text(value, f"the text of response {n}")


def _list(row: dict, key: str) -> list:
    if not isinstance(row[key], list):
        raise RowError(f"{key} is {type_name(row[key])}, expected a list")
    return row[key]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


READERS: dict[type, Callable[[dict, Counter[str]], tuple]] = {
    Text: _text,
    Prompt: _prompt,
    Demonstration: _demonstration,
    Comparison: _comparison,
}
