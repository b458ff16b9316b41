"""Where a setting does nothing, stated beside it: ``horizon: Annotated[Positive, idle(target=0)]``.

``rlhf_jax.cli`` says it of every flag that is typed and of every field that a preset sets.
Those that most people set are marked likewise, ``lr: Main[Positive]``: ``--help`` shows them first.
"""

import typing
from functools import cache, reduce
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro

T = TypeVar("T")
POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]


class OnMainPage(NamedTuple):
    """A field that the first page of ``--help`` shows; the others are in its groups."""


Main = Annotated[T, OnMainPage()]


class Idle(NamedTuple):
    """A field without effect, while another of the same config (``other``) is as it is."""

    other: str
    """Its dotted name; empty: the field never has an effect here."""
    values: tuple[Any, ...]
    """What it may be, or a function that says whether it is that."""
    when: bool
    """Without effect while ``other`` is one of ``values``; False: while it is none of them."""
    parts: tuple[str, ...] = ()
    """Of a field that is a config itself, the fields that this is about; empty: all."""
    but: tuple[str, ...] = ()
    """And those that it is not about."""

    def holds(self, config: Any, inner: str) -> bool:
        """Whether ``inner`` (dotted, empty for a field that is no config) now does nothing."""
        part = inner.partition(".")[0]
        if part in self.but or (self.parts and part not in self.parts):
            return False
        if not self.other:
            return True
        value = value_of(config, self.other)
        is_one = any(known(value) if callable(known) else known == value for known in self.values)
        return is_one == self.when

    def reason(self, config: Any, prefix: str) -> str:
        """The end of the sentence; ``prefix`` is where ``config`` stands."""
        if not self.other:
            return " here"
        value = value_of(config, self.other)
        name = f"{prefix}.{self.other}".removeprefix(".").replace("_", "-")
        if value is None or value in ("", ()):
            return f": {name} is not given"
        return f": {name} is {value if not isinstance(value, tuple) else ' '.join(map(str, value))}"


def idle(**condition: Any) -> Idle:
    """No effect while the named field has this value, or one of a tuple of values."""
    (other, values), *_ = condition.items()
    return Idle(other.replace("__", "."), as_tuple(values), True)


def only(*, but: tuple[str, ...] = (), **condition: Any) -> Idle:
    """An effect only while the named field has this value, or one of a tuple of values."""
    (other, values), *_ = condition.items()
    return Idle(other.replace("__", "."), as_tuple(values), False, but=but)


def never(*parts: str) -> Idle:
    """Of a field that is a config: parts of it that have no effect where it stands."""
    return Idle("", (), True, parts=parts)


def as_tuple(values: Any) -> tuple[Any, ...]:
    """A tuple of values as it stands; a single one, or an empty tuple, as the only one."""
    return values if isinstance(values, tuple) and values else (values,)


def value_of(config: Any, dotted: str) -> Any:
    """The field of a config that a dotted name like "kl.target" means."""
    return reduce(getattr, dotted.split("."), config)


def without_effect(config: Any, dotted: str) -> str | None:
    """Why the field ``dotted`` of ``config`` does nothing, as the end of a sentence; else None."""
    path = dotted.split(".")
    for depth, name in enumerate(path):
        holder = reduce(getattr, path[:depth], config)
        for note in notes_of(type(holder))[name]:
            if note.holds(holder, ".".join(path[depth + 1 :])):
                return note.reason(holder, ".".join(path[:depth]))
    return None


def is_main(hint: Any) -> bool:
    """Whether an annotation is ``Main[...]``."""
    return any(isinstance(note, OnMainPage) for note in getattr(hint, "__metadata__", ()))


def is_positional(hint: Any) -> bool:
    """Whether a field is set by a word in its place, without a flag."""
    return POSITIONAL in getattr(hint, "__metadata__", ())


@cache
def notes_of(config_class: type) -> dict[str, tuple[Idle, ...]]:
    """Where each field of a class does nothing, as its type says; () for most."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    beside = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: tuple(n for n in notes if isinstance(n, Idle)) for name, notes in beside.items()}
