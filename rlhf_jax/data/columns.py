"""What the columns of a row mean: the prompt from those that say it, and those that are not read.

A column that changes what is asked is read or refused, never dropped; one that is harmless is
passed over; any other is passed over too, but counted and said.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, overload

from rlhf_jax.data.chat import Conversation, Message, as_text, written_prompt
from rlhf_jax.data.functions import functions_message
from rlhf_jax.data.messages import is_filled, is_messages, read_messages, read_text
from rlhf_jax.data.rows import RowError

ASKING = ("prompt", "instruction", "question", "query")
"""Each of them alone is what is asked."""
MATERIAL = ("input", "context")
"""What an instruction is about, after an empty line."""
SYSTEM = ("system", "system_prompt", "system_message")
ANSWERING = ("completion", "output", "response", "answer")
CONVERSATIONS = ("messages", "conversations")
FUNCTIONS = ("tools", "functions")
"""Which functions the model may call."""
REFUSED = ("documents", "images", "image", "videos", "video", "audios", "audio")
"""What the answers depend on, and a model of text is not shown."""
BESIDE = (
    *("passage", "choices", "options", "persona", "document", "article", "knowledge"),
    *("background", "evidence", "premise", "hypothesis", "dialogue", "dialog", "chat_history"),
    *("conversation_history", "previous_messages", "system_instruction"),
)
"""What a question may be about: all of it is in the prompt's words, or the row is refused."""
RANKED = ("chosen", "rejected", "responses", "summaries")
LABELS = ("label", "kto_tag")
"""Whether an answer is to be learnt."""
OTHERS_READ = (
    *("history", "text", *LABELS, "info", "choice", *RANKED, "ranks", "response_tokens"),
)
READ = frozenset(
    (
        *(*ASKING, *MATERIAL, *SYSTEM, *FUNCTIONS, *ANSWERING, *CONVERSATIONS, *REFUSED),
        *OTHERS_READ,
    )
)
CHANGING = (*ASKING, *MATERIAL, *SYSTEM, *FUNCTIONS, *ANSWERING, *REFUSED, *RANKED, "history")
"""What a plain text beside them is without."""
HARMLESS = frozenset(
    (
        *("id", "idx", "index", "uuid", "hash", "url", "link", "source", "origin", "dataset"),
        *("subset", "split", "category", "categories", "tags", "type", "domain"),
        *("lang", "language", "date", "created", "timestamp", "license", "meta"),
        *("metadata", "extra", "model", "models", "generator", "annotator", "labeler", "worker"),
        *("score", "scores", "rating", "ratings", "margin", "gold", "batch", "confidence"),
        *("rationale", "notes", "flags", "quality", "prompt_flags", "use_case", "round", "seconds"),
        *("demonstration", "kind", "up", "policies", "extra_info", "error", "upvote_ratio"),
        *("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
        *("seconds_difference", "num_responses", "good_natured"),
    )
)
"""Where a row is from, and what was thought of it."""
HARMLESS_ENDS = (
    *("_id", "_ids", "_score", "_scores", "_rating", "_name", "_model", "_metadata", "_source"),
    *("_sha256", "_severity_level", "_harm_category", "_safe", "_ratio"),
    *("-rating", "-model"),
)
HARMLESS_BEGINNINGS = ("score_", "rating_", "num_", "c_root_id_", "created_at", "_")


def unknown_columns(row: dict) -> list[str]:
    """Columns of a row that nothing is known of."""
    return [
        name
        for name, value in row.items()
        if name not in READ | HARMLESS
        and not name.endswith(HARMLESS_ENDS)
        and not name.startswith(HARMLESS_BEGINNINGS)
        and value is not None
    ]


def note_unread(row: dict, names: Sequence[str], notes: Counter[str]) -> None:
    """Count the filled columns among ``names``, which are not learnt in rows like this one."""
    notes.update(f"column {name} is not read" for name in names if is_filled(row.get(name)))


def read_prompt(row: dict) -> str | Conversation | None:
    """What the columns ask, with the system message and the turns before it; None if none asks.

    Raises RowError for columns that contradict each other, or that would be lost.
    """
    for name in REFUSED:
        if _says_more_than_none(row.get(name)):
            raise RowError(
                f"{name} is not learnt, but the answer may depend on it: expected rows without it"
            )
    asked = _asked(row)
    if asked is None:
        for name in ("history", *MATERIAL):
            if is_filled(row.get(name)) and not isinstance(row[name], dict):
                raise RowError(f"found {name} without a prompt, instruction or question")
        if not any(is_filled(row.get(name)) for name in CONVERSATIONS) and _functions(row):
            raise RowError("found functions without a prompt or messages, expected them beside one")
        return None
    _check_beside(row, as_text(asked) if asked else "")
    return with_functions(with_system(_with_history(asked, row), _system(row)), row)


def _check_beside(row: dict, asked: str) -> None:
    """Raise RowError for what a question is about, if it is not in the words of the prompt."""
    for name in BESIDE:
        value = row.get(name)
        if is_filled(value) and not all(text in asked for text in texts_in(value)):
            raise RowError(
                f"{name} is not in the prompt, but the answer may depend on it: expected it there"
            )


def texts_in(value: Any) -> list[str]:
    """All strings in a value of JSON, the keys of objects aside."""
    if isinstance(value, dict):
        return texts_in(list(value.values()))
    if isinstance(value, list):
        return [text for part in value for text in texts_in(part)]
    return [value] if isinstance(value, str) else []


def _asked(row: dict) -> str | Conversation | None:
    present = [name for name in ASKING if name in row]
    # Alone beside an answer it is what is asked; beside an instruction, what that is about.
    if not present and isinstance(row.get("input"), str) and set(row) & {*ANSWERING, "chosen"}:
        present = ["input"]
    if not present:
        return None
    said = [name for name in present if is_filled(row[name])]
    if not said:
        return ""
    name, *others = said
    different = [other for other in others if row[other] != row[name]]
    material = [key for key in MATERIAL if is_filled(row.get(key)) and row[key] != row[name]]
    if different or len(material) > 1 or (material and name != "instruction"):
        other = [*different, *material][-1]
        raise RowError(f"found both {name} and {other}, expected all of the prompt in one of them")
    if name == "prompt":
        if is_messages(row[name]):
            return read_messages(row[name])
        return written_prompt(read_text(row[name], name))
    parts = [read_text(row[key], key) for key in (name, *material)]
    return (Message("user", "\n\n".join(parts)),)


def _with_history(asked: str | Conversation, row: dict) -> str | Conversation:
    """What is asked, after the earlier turns of the column ``history``."""
    if not is_filled(row.get("history")):
        return asked
    asked = (Message("user", asked),) if isinstance(asked, str) else asked
    if len(asked) > 1:
        raise RowError("found history and a prompt of several messages, expected one of them")
    return (*_turns(row["history"]), *asked)


def _turns(history: Any) -> Iterator[Message]:
    if is_messages(history):
        yield from read_messages(history)
        return
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise RowError("history: expected pairs of what was asked and answered, or messages")
        yield Message("user", read_text(pair[0], "history"))
        yield Message("assistant", read_text(pair[1], "history"))


def _system(row: dict) -> str | None:
    """The system message of a column, or of the conversations that hold or answer a prompt."""
    columns = [row[name] for name in SYSTEM if is_filled(row.get(name))]
    names = ("chosen", "rejected", *ANSWERING, *CONVERSATIONS)
    answers = [row[name] for name in names if is_messages(row.get(name))]
    first = [without_functions(read_messages(value))[0] for value in answers]
    texts = [read_text(value, "system") for value in columns]
    texts += [message.content for message in first if message.role == "system"]
    if len(set(texts)) > 1:
        raise RowError("found two different system messages, expected one")
    return texts[0] if texts else None


@overload
def with_functions(prompt: Conversation, row: dict) -> Conversation: ...


@overload
def with_functions(prompt: str, row: dict) -> str | Conversation: ...


def with_functions(prompt: str | Conversation, row: dict) -> str | Conversation:
    """``prompt`` after the functions that a row's columns offer.

    Raises RowError if it begins with others.
    """
    offered = _functions(row)
    if offered is None or not prompt:
        return prompt
    if isinstance(prompt, str):
        prompt = (Message("user", prompt),)
    rest = without_functions(prompt)
    if len(rest) < len(prompt) and prompt[0] != offered:
        raise RowError("found functions in a column and others in the messages, expected one list")
    return (offered, *rest)


def without_functions(conversation: Conversation) -> Conversation:
    """What is said in a conversation that may begin with functions."""
    return conversation[conversation[0].role == "tools" :]


def _functions(row: dict) -> Message | None:
    """The functions that columns of a row offer."""
    names = [name for name in FUNCTIONS if _says_more_than_none(row.get(name))]
    offered = {functions_message(row[name], name) for name in names}
    if len(offered) > 1:
        raise RowError(f"found different {' and '.join(FUNCTIONS)}, expected one of them")
    return next(iter(offered), None)


def _says_more_than_none(value: Any) -> bool:
    """Whether a column is filled, also where it is written as JSON."""
    return is_filled(value) and value not in ("[]", "{}", "null")


@overload
def with_system(prompt: Conversation, system: str | None) -> Conversation: ...


@overload
def with_system(prompt: str, system: str | None) -> str | Conversation: ...


def with_system(prompt: str | Conversation, system: str | None) -> str | Conversation:
    """``prompt`` after a system message. Raises RowError if it begins with another one."""
    if system is None or not prompt:
        return prompt
    if isinstance(prompt, str):
        prompt = (Message("user", prompt),)
    said = without_functions(prompt)
    if not said or said[0].role != "system":
        return (*prompt[: len(prompt) - len(said)], Message("system", system), *said)
    if said[0].content != system:
        raise RowError("found two different system messages, expected one")
    return prompt
