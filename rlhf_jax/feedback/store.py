"""What a label store is, whichever database keeps it: its transactions, and how it fails."""

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from rlhf_jax.errors import InputError, RunError
from rlhf_jax.feedback.texts import check_whole, has_half


class StoreUnavailable(RunError):
    """The store could not take or give something now; ``reason``: busy, full, or unreachable."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"the label store is {reason}: {detail}")
        self.reason = reason


def check_storable(values: Mapping[str, Any]) -> None:
    """Raise InputError for what one of the databases cannot hold: the last wall before a store.

    Texts of people are in ``body``, as JSON in ASCII, where NUL is an escape.
    """
    for name, value in values.items():
        if isinstance(value, str):
            check_whole(name, value)
            if "\x00" in value:
                raise InputError(f"{name}: holds a NUL character, expected text without")
            if name == "body" and has_half(value):
                raise InputError("the text holds half a surrogate pair, expected whole characters")


@runtime_checkable
class Rows(Protocol):
    """A transaction: statements with their results as dicts."""

    def __call__(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """The rows that a statement with ``:name`` placeholders gives; none of a change."""
        ...


@runtime_checkable
class Database(Protocol):
    """A store of labels."""

    name: str
    """For messages: without passwords."""

    def write(self) -> contextlib.AbstractContextManager[Rows]:
        """A transaction that alone writes; all of it is stored, or nothing."""
        ...

    def read(self) -> contextlib.AbstractContextManager[Rows]:
        """A transaction that sees the store at one moment."""
        ...

    def holds_store(self) -> bool:
        """Whether the tables have been made."""
        ...
