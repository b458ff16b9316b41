"""What a row asks: its columns, its conversation, or what its answers begin with."""

import re
from collections import Counter
from typing import Any, overload

from rlhf_jax.data.answers import joined
from rlhf_jax.data.chat import (
    ASSISTANT,
    Conversation,
    as_text,
    common_prefix,
    written_prompt,
    written_turns,
)
from rlhf_jax.data.columns import (
    ASKING,
    CONVERSATIONS,
    FUNCTIONS,
    MATERIAL,
    SYSTEM,
    read_prompt,
    with_functions,
    with_system,
)
from rlhf_jax.data.files import type_name
from rlhf_jax.data.messages import is_filled, is_messages, read_messages, read_text
from rlhf_jax.data.rows import EMPTY, NotLearnt, OtherKeys, Prompt, RowError

WORD_ENDS = re.compile(r"[ \n。，、；：？！]")


def prompt_row(row: dict, notes: Counter[str]) -> Prompt:
    """A row of any format as its prompt, with the columns beside it. Raises RowError."""
    asking = (*ASKING, *MATERIAL, *SYSTEM, *FUNCTIONS, *CONVERSATIONS)
    columns = {name: value for name, value in row.items() if name not in asking}
    return Prompt(prompt_of(row, notes), columns or None)


def prompt_of(row: dict, notes: Counter[str]) -> str | Conversation:
    """The prompt of a row of any format. Raises RowError."""
    asked = asked_in(row)
    if asked is not None:
        return askable(asked)
    if "info" in row:
        return _post(row["info"])
    messages = conversation_of(row)
    pair = "chosen" in row and "rejected" in row
    if messages is not None and not pair:
        return askable(until_answer(messages))
    if pair:
        return shared_prompt(row["chosen"], row["rejected"], notes)[0]
    check_conversation(row)
    raise missing(row, "prompt, instruction, question, info, messages, or chosen and rejected")


def asked_in(row: dict) -> str | Conversation | None:
    """What the columns ask, or a conversation that the user ends; None if an answer is in it.

    Raises RowError for a conversation that does not hold what the columns ask.
    """
    asked, messages = read_prompt(row), conversation_of(row)
    if messages is None:
        return asked
    if asked and not holds(messages, asked):
        raise RowError("found a prompt that is not in the messages beside it, expected it in them")
    return asked or None if messages[-1].role == "assistant" else messages


def holds(messages: Conversation, said: str | Conversation) -> bool:
    """Whether a text, or each message of one, is among ``messages``, white space aside."""
    texts = [said] if isinstance(said, str) else [message.content for message in said]
    held = {"".join(message.content.split()) for message in messages}
    return all("".join(text.split()) in held for text in texts)


@overload
def askable(prompt: Conversation) -> Conversation: ...


@overload
def askable(prompt: str) -> str: ...


def askable(prompt: str | Conversation) -> str | Conversation:
    """``prompt``. Raises RowError if it asks nothing."""
    if prompt == ():
        raise RowError("the assistant's message answers nothing: expected a message before it")
    if not isinstance(prompt, str) and prompt[0].role == prompt[-1].role == "assistant":
        raise RowError("the prompt begins and ends with the assistant, expected a user's message")
    return prompt


def conversation_of(row: dict) -> Conversation | None:
    """The messages of a row, after the system message of another column."""
    names = [n for n in CONVERSATIONS if isinstance(row.get(n), list | str) and row[n]]
    if not names:
        return None
    wrong = next((name for name in names if not is_messages(row[name])), None)
    if wrong is not None:
        raise RowError(
            f"{wrong} is {type_name(row[wrong])} without messages, expected a list of them"
        )
    conversations = [read_messages(row[name]) for name in names]
    if len(set(conversations)) > 1:
        raise RowError(f"found both {names[0]} and {names[1]}, expected one conversation")
    system = next((row[key] for key in SYSTEM if is_filled(row.get(key))), None)
    system = None if system is None else read_text(system, "system")
    return with_functions(with_system(conversations[0], system), row)


def check_conversation(row: dict) -> None:
    """Leave out a row whose conversation is there, but empty."""
    if any(name in row and not is_filled(row[name]) for name in CONVERSATIONS):
        raise NotLearnt("empty conversation")


def until_answer(messages: Conversation) -> Conversation:
    """A conversation without its last message, if that is the assistant's."""
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _post(info: Any) -> str:
    """A Reddit post (Stiennon et al. 2020, appendix B) or a news article, to be summarised."""
    if not isinstance(info, dict) or not ("post" in info or "article" in info):
        raise RowError("info has no post and no article")

    def get(key: str) -> str:
        return read_text(info.get(key) or "", f"info.{key}")

    if info.get("post"):
        title = f"SUBREDDIT: r/{get('subreddit')}\n\nTITLE: {get('title')}"
        return f"{title}\n\nPOST: {get('post')}\n\nTL;DR:"
    return f"TITLE: {get('title')}\n\nARTICLE: {get('article')}\n\nTL;DR:"


# --- the prompt that two answers share ------------------------------------------------------------


def shared_prompt(
    chosen: Any, rejected: Any, notes: Counter[str]
) -> tuple[str | Conversation, str | Conversation, str | Conversation]:
    """(prompt, chosen, rejected) where the two given ones begin with the prompt.

    Lists of messages are cut where they part; strings after their last common ``Assistant:``, or
    else before the word in which they part.
    """
    if not (is_filled(chosen) and is_filled(rejected)):
        raise NotLearnt(EMPTY)
    if is_messages(chosen) and is_messages(rejected):
        return _shared_messages(read_messages(chosen), read_messages(rejected))
    if is_messages(chosen) or is_messages(rejected):
        raise RowError("one of chosen and rejected is text, expected messages in both or a prompt")
    texts = read_text(chosen, "chosen"), read_text(rejected, "rejected")
    shared = texts[0][: common_prefix(*texts)]
    # In a written dialogue the prompt ends where the assistant's last shared turn begins.
    at = shared.rfind(ASSISTANT)
    cut = at + len(ASSISTANT) if at >= 0 else _word_end(shared)
    if cut <= 0:
        raise RowError("chosen and rejected begin with no word in common, expected a prompt")
    if at < 0:
        notes["the prompt is taken to be the words that chosen and rejected begin with"] += 1
    prompt = written_prompt(shared[:cut])
    return prompt, _written_answer(texts[0], prompt, cut), _written_answer(texts[1], prompt, cut)


def _word_end(text: str) -> int:
    """Where the last whole word ends: before a space, behind a line feed or full-width mark."""
    ends = [match.end() - (match[0] == " ") for match in WORD_ENDS.finditer(text)]
    return max(ends, default=0)


def _shared_messages(
    a: Conversation, b: Conversation
) -> tuple[Conversation, Conversation, Conversation]:
    same = common_prefix(a[:-1], b[:-1])
    while same and a[same - 1].role == "assistant":
        same -= 1  # its next message would go on with these words
    if not same:
        raise RowError("chosen and rejected share no message that could be the prompt")
    answers = a[same:], b[same:]
    if any(answer[0].role != "assistant" or answer[-1].role != "assistant" for answer in answers):
        raise RowError("chosen and rejected do not part at answers of the assistant")
    return askable(a[:same]), a[same:], b[same:]


def _written_answer(text: str, prompt: str | Conversation, cut: int) -> str | Conversation:
    """What follows the prompt in a conversation that is written down as one string."""
    turns = None if isinstance(prompt, str) else written_turns(text)
    if turns is None or turns[-1].role != "assistant":
        return joined(text[cut:], prompt, exact=True)
    return turns[len(prompt) :]


def is_exact(row: dict, prompt: str | Conversation) -> bool:
    """Whether the prompt is the text of the row: its answers follow it to the letter."""
    return isinstance(row.get("prompt"), str) and as_text(prompt) == row["prompt"]


def missing(row: dict, expected: str) -> OtherKeys:
    """The error of a row that has none of the keys ``expected``."""
    empty = {name for name in CONVERSATIONS if name in row and not is_filled(row[name])}
    names = [f"{name} (empty)" if name in empty else name for name in row]
    return OtherKeys(f"found the keys {', '.join(names) or '(none)'}, expected {expected}")
