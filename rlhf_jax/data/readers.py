"""A row of a file, recognised by its keys, as one of the four kinds."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from rlhf_jax.data.chat import uses_tools, write_turns
from rlhf_jax.data.columns import CHANGING, note_unread
from rlhf_jax.data.comparisons import comparison_row
from rlhf_jax.data.demonstrations import demonstration_row
from rlhf_jax.data.messages import read_text
from rlhf_jax.data.prompts import check_conversation, conversation_of, missing, prompt_row
from rlhf_jax.data.rows import Comparison, Demonstration, Prompt, Row, RowError, Text


def text_row(row: dict, notes: Counter[str]) -> Text:
    """A document, or a conversation as one. Raises RowError."""
    messages = conversation_of(row)
    # A table has all columns in every row: a null there says nothing.
    if "text" in row and (row["text"] is not None or messages is None):
        note_unread(row, CHANGING, notes)
        return Text(read_text(row["text"], "text"))
    if messages is not None:
        if uses_tools(messages):
            raise RowError("functions are called in the messages, which no text can hold")
        return Text(write_turns(messages))
    check_conversation(row)
    raise missing(row, "text or messages")


READERS: dict[type[Row], Callable[[dict, Counter[str]], Any]] = {
    Text: text_row,
    Prompt: prompt_row,
    Demonstration: demonstration_row,
    Comparison: comparison_row,
}
