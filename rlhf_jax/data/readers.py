"""A row of a file, recognised by its keys, as one of the four kinds."""

import re
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
    LABELS,
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
    UNANSWERED,
    Comparison,
    Demonstration,
    NotLearnt,
    Prompt,
    Text,
    without_gaps,
)

WORD_ENDS = re.compile(r"[ \n。，、；：？！]")

# --- prompts --------------------------------------------------------------------------------------


def _prompt(row: dict, notes: Counter[str]) -> Prompt:
    return Prompt(_prompt_of(row, notes))


def _asked(row: dict) -> str | Conversation | None:
    """What the columns ask, or a conversation that the user ends; None if an answer is in it.

    Raises RowError for a conversation that does not hold what the columns ask.
    """
    asked, messages = read_prompt(row), _conversation(row)
    if messages is None:
        return asked
    if asked and not _holds(messages, asked):
        raise RowError("found a prompt that is not in the messages beside it, expected it in them")
    return asked or None if messages[-1].role == "assistant" else messages


def _holds(messages: Conversation, said: str | Conversation) -> bool:
    """Whether a text, or each message of one, is among ``messages``, white space aside."""
    texts = [said] if isinstance(said, str) else [message.content for message in said]
    held = {"".join(message.content.split()) for message in messages}
    return all("".join(text.split()) in held for text in texts)


def _prompt_of(row: dict, notes: Counter[str]) -> str | Conversation:
    asked = _asked(row)
    if asked is not None:
        return _askable(asked)
    if "info" in row:
        return _post(row["info"])
    messages = _conversation(row)
    pair = "chosen" in row and "rejected" in row
    if messages is not None and not pair:
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
    names = [n for n in CONVERSATIONS if isinstance(row.get(n), list | str) and row[n]]
    if not names:
        return None
    wrong = next((name for name in names if not is_messages(row[name])), None)
    if wrong is not None:
        raise RowError(
            f"{wrong} is {type_name(row[wrong])} without messages, expected a list of them"
        )
    found = [read_messages(row[name]) for name in names]
    if len(set(found)) > 1:
        raise RowError(f"found both {names[0]} and {names[1]}, expected one conversation")
    system = next((row[key] for key in SYSTEM if is_filled(row.get(key))), None)
    system = None if system is None else read_text(system, "system")
    return with_system(found[0], system)


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
    if is_messages(chosen) or is_messages(rejected):
        raise RowError("one of chosen and rejected is text, expected messages in both or a prompt")
    texts = read_text(chosen, "chosen"), read_text(rejected, "rejected")
    shared = texts[0][: _common(*texts)]
    at = shared.rfind(ASSISTANT)
    cut = at + len(ASSISTANT) if at >= 0 else _word_end(shared)
    if cut <= 0:
        raise RowError("chosen and rejected begin with no word in common, expected a prompt")
    if at < 0:
        notes["the prompt is taken to be the words that chosen and rejected begin with"] += 1
    prompt = written_prompt(shared[:cut])
    return prompt, *(_written_answer(text, prompt, cut) for text in texts)


def _word_end(text: str) -> int:
    """Where the last whole word ends: before white space, or behind a mark of full width."""
    ends = [match.end() - match[0].isspace() for match in WORD_ENDS.finditer(text)]
    return max(ends, default=0)


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
    empty = lambda name: name in CONVERSATIONS and not is_filled(row[name])
    names = [f"{name} (empty)" if empty(name) else name for name in row]
    return OtherKeys(f"found the keys {', '.join(names) or '(none)'}, expected {expected}")


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
    key, messages, prompt = _answering(row), _conversation(row), _asked(row)
    answered = messages is not None and messages[-1].role == "assistant"
    if answered and prompt is None and key == "answer":
        # The result of a worked answer, in sets of mathematics.
        notes.update(["column answer is not read"] * is_filled(row[key]))
    elif answered and key is not None:
        _check_same(row[key], key, messages, whole=prompt is None)
    if messages is not None and (key is None or prompt is None or not is_filled(row[key])):
        _check_label(row)
        _check_weight(row)
        return _last_answer(messages, notes)
    if prompt is None or key is None:
        expected = "prompt and completion, instruction and output, question and answer, or messages"
        raise _missing(row, expected)
    _check_label(row)
    prompt = _askable(prompt)
    answer = read_answer(row[key], key, prompt, notes, exact=_is_exact(row, prompt))
    prompt, (answer,) = last_answers(prompt, [answer], notes)
    return Demonstration(prompt, answer)


def _answering(row: dict) -> str | None:
    """The column of the answer: one with something in it, if there is one."""
    names = [name for name in ANSWERING if name in row]
    filled = [name for name in names if is_filled(row[name])]
    if len(filled) > 1 and any(row[name] != row[filled[0]] for name in filled):
        raise RowError(f"found both {filled[0]} and {filled[1]}, expected one answer")
    return next(iter((*filled, *names)), None)


def _check_same(value: Any, key: str, messages: Conversation, *, whole: bool) -> None:
    """Raise RowError for an answer that is not in the conversation, or not the last of a whole."""
    if not is_filled(value):
        return
    said = read_messages(value) if is_messages(value) else read_text(value, key)
    if not _holds(messages[-1:] if whole else messages, said):
        raise RowError(f"found both {key} and messages that end otherwise, expected one answer")


def _last_answer(messages: Conversation, notes: Counter[str]) -> Demonstration:
    before = _until_answer(messages)
    if len(before) == len(messages):
        raise NotLearnt(UNANSWERED)
    if not before:
        raise NotLearnt("an answer to nothing")
    if any(message.role == "assistant" for message in before):
        notes[EARLIER] += 1
    return Demonstration(_askable(before), messages[-1:])


def _check_weight(row: dict) -> None:
    """Leave out a conversation whose last message is marked as not to be learnt."""
    last = next(row[name][-1] for name in CONVERSATIONS if is_messages(row.get(name)))
    if any(last.get(mark) in (0, False) for mark in ("weight", "train", "loss") if mark in last):
        raise NotLearnt("the last message has no weight")


def _check_label(row: dict) -> None:
    """Leave out an answer that is labelled false: 0 and 1 are labels too, other numbers none."""
    for name in LABELS:
        label = row.get(name, True)
        if not isinstance(label, bool | int | float) or label not in (0, 1):
            found = label if isinstance(label, int | float) else type_name(label)
            raise RowError(f"{name} is {found}, expected true or false")
        if not label:
            raise NotLearnt("label false")


def _is_exact(row: dict, prompt: str | Conversation) -> bool:
    """Whether the prompt is the text of the row: its answers follow it to the letter."""
    return isinstance(row.get("prompt"), str) and as_text(prompt) == row["prompt"]


# --- comparisons ----------------------------------------------------------------------------------


def _comparison(row: dict, notes: Counter[str]) -> Comparison:
    pair = "chosen" in row and "rejected" in row
    if "responses" in row and (_given_ranks(row) is not None or not pair):
        notes.update(["columns chosen and rejected are not read beside ranked responses"] * pair)
        return _ranking(row, notes)
    if "summaries" in row and "choice" in row:
        return _summaries(row, notes)
    if pair:
        notes.update(["column responses is not read"] * ("responses" in row))
        return _preference(row, notes)
    raise _missing(row, "prompt and responses, chosen and rejected, or summaries and choice")


def _preference(row: dict, notes: Counter[str]) -> Comparison:
    prompt = _asked(row)
    if prompt is None:
        prompt, *answers = _shared_prompt(row["chosen"], row["rejected"], notes)
        return Comparison(prompt, tuple(answers), (0, 1))
    prompt = _askable(prompt)
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
    ranks = _given_ranks(row)
    if ranks is None:
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


def _given_ranks(row: dict) -> list | None:
    """The column of ranks, or the rank of every response; None if there is neither."""
    each = [one.get("rank") for one in _list(row, "responses") if isinstance(one, dict)]
    own = each if each and len(each) == len(row["responses"]) and None not in each else None
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
    return _is_count(value) and value < 2**31


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


READERS: dict[type, Callable[[dict, Counter[str]], tuple]] = {
    Text: _text,
    Prompt: _prompt,
    Demonstration: _demonstration,
    Comparison: _comparison,
}
