"""What ``--help`` prints: the fields that most people set, then the groups, each with its own page.

    python -m experiments.ppo --help              one page
    python -m experiments.ppo --help optim        all fields of a group, or of that name
    python -m experiments.ppo --help all          all fields

The fields, their defaults, their bounds and what is said of them are those of ``rlhf_jax/config``;
``Main[...]`` there marks what the first page shows.
"""

import ast
import dataclasses
import difflib
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.config.bounds import number_in
from rlhf_jax.config.effect import is_main, is_positional, without_effect
from rlhf_jax.errors import InputError

WORDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "{True,False}"}


class Field(NamedTuple):
    """A flag, or a word without one."""

    name: str
    """Where it is in the config: optim.b1."""
    flag: str
    """How it is typed, without the --; of a positional argument its name."""
    group: str
    """The flag of the config that it belongs to; empty at the top."""
    hint: Any
    default: Any
    doc: str
    main: bool
    positional: bool


class Group(NamedTuple):
    """A config inside the command's own."""

    flag: str
    config: Any
    doc: str

    @property
    def is_stage(self) -> bool:
        """Whether it could be a command's config by itself: it has groups below."""
        return sum(map(dataclasses.is_dataclass, vars(self.config).values())) > 1


def page(
    config: Any,
    topic: str,
    *,
    command: str,
    about: str,
    resolve: Callable[[Any], Any] | None = None,
) -> str:
    """The help of ``command``, whose module says ``about``: of everything, or of one topic.

    ``resolve`` fills in what stages in a row are told, which is not offered; None: the config's
    own, if it has one. Raises InputError for a topic that is no group, field, or last part of one.
    """
    width = max(40, min(100, shutil.get_terminal_size().columns))
    if topic:
        return "\n".join(topic_page(config, topic, width))
    resolve = resolve or getattr(type(config), "resolve", None)
    filled_in = filled_in_by(config, resolve) if resolve else set()
    return "\n".join(main_page(config, command, about, filled_in, width))


def overview(command: str, about: str, commands: Mapping[str, type]) -> str:
    """The help of a command of several, each with its config class."""
    width = max(40, min(100, shutil.get_terminal_size().columns))
    usage = f"usage: python -m {command} COMMAND [--config FILE] [--FIELD VALUE]"
    lines = [*wrapped(usage, width), "", *opening(about, width), ""]
    for name, config_class in commands.items():
        lines += entry(name, first_sentence(plain(config_class.__doc__ or "")), width)
    more = "COMMAND --help shows the fields of one, COMMAND --help NAME all of a group or field."
    return "\n".join([*lines, "", *wrapped(more, width)])


def main_page(config: Any, command: str, about: str, filled_in: set[str], width: int) -> list[str]:
    """The lines of ``--help``: usage, the command's purpose, its main fields, then the groups."""
    groups = [group for group in groups_of(config) if "." not in group.flag]
    stages = [group for group in groups if group.is_stage]
    fields = main_fields(config, [group.flag for group in stages])
    words = "".join(f" [{field.flag.upper()}]" for field in fields if field.positional)
    usage = f"usage: python -m {command}{words} [--config FILE] [--FIELD VALUE]"
    lines = [*wrapped(usage, width), "", *opening(about, width), ""]
    lines += entry("--config FILE", CONFIG, width)
    for field in fields:
        lines += entry(signature(field), summary(field), width)
    for group in stages:
        inner = [stage.flag for stage in groups_of(group.config) if stage.is_stage]
        inner_fields = main_fields(group.config, inner)
        names = [field.flag for field in inner_fields if not field.positional]
        names = [name for name in names if f"{group.flag}.{name}" not in filled_in]
        lines += ["", *wrapped(f"{group.flag}: {first_sentence(group.doc)}", width)]
        lines += wrapped(f"--{group.flag}. {', '.join(names)}", width, indent=2)
    leaves = [group for group in groups if not group.is_stage]
    if leaves:
        lines += ["", "More fields, by group:"]
    for group in leaves:
        line = f"  {group.flag:14}{first_sentence(group.doc)}"
        lines.append(line if len(line) <= width else f"{line[: width - 2]} …")
    return [*lines, "", *wrapped(more(groups), width)]


def more(groups: Sequence[Group]) -> str:
    """The last words of the main page."""
    if not groups:
        return "--help NAME says all of a field, --help all of every field."
    first = groups[0].flag
    return f"--help {first} shows all of a group, --help NAME what has this name, --help all all."


CONFIG = "A preset (configs/*.py) or a run's config.json."


def main_fields(config: Any, leave_out: Sequence[str]) -> list[Field]:
    """What the main page shows of ``config``: of its own fields all, if none of them is marked.

    Of a group those that have an effect as ``config`` stands: the others wait in their group.
    """
    fields = list(fields_of(config))
    marked = any(field.main for field in fields if not field.group)
    return [
        field
        for field in fields
        if (field.main or not (marked or field.group))
        and field.group.partition(".")[0] not in leave_out
        and not never_used(config, field)
        and not (field.group and without_effect(config, field.name))
    ]


def filled_in_by(config: Any, resolve: Callable[[Any], Any]) -> set[str]:
    """The flags of stages that the command sets itself, where it runs them in a row."""
    resolved = {field.flag: field.default for field in fields_of(resolve(others(config)))}
    fields = [field for field in fields_of(config) if field.group]
    return {field.flag for field in fields if resolved[field.flag] != field.default}


def others(config: Any) -> Any:
    """``config`` with another folder, seed and task, which tells where they are handed on."""
    changes: dict[str, Any] = {"seed": config.seed + 1, "task": f"not_{config.task}"}
    for name in ("dir", "run", "source"):
        folder = vars(config).get(name)
        changes |= {name: folder / "other"} if isinstance(folder, Path) else {}
    return dataclasses.replace(config, **changes)


def never_used(config: Any, field: Field) -> bool:
    """Whether a field of its own takes no part in what the config does."""
    return without_effect(config, field.name) == " here"


def topic_page(config: Any, topic: str, width: int) -> list[str]:
    """Every field, group by group, that ``topic`` is about."""
    every = list(fields_of(config))
    path = topic.strip("-").replace("_", "-")
    fields = [field for field in every if f"{field.flag}.".startswith(f"{path}.")]
    fields = fields or [field for field in every if topic == "all" or has_part(field, path)]
    if not fields:
        raise InputError(unknown_topic(config, topic))
    docs = {group.flag: group.doc for group in groups_of(config)}
    lines: list[str] = []
    group = None
    for field in fields:
        if field.group != group:
            group = field.group
            head = f"{group}: {docs[group]}" if group else ""
            lines += ["", *wrapped(head, width)]
        lines += entry(signature(field), description(field, config), width)
    return lines[1:]


def has_part(field: Field, name: str) -> bool:
    """Whether its flag, or that of a group around it, ends in ``name``: lr is part of optim.lr."""
    return f".{name}." in f".{field.flag}."


def unknown_topic(config: Any, topic: str) -> str:
    """The error of a ``--help TOPIC`` that names nothing, with the nearest names."""
    flags = [field.flag for field in fields_of(config)]
    names = {part for flag in flags for part in (flag, *flag.split("."))}
    near = difflib.get_close_matches(topic, sorted(names), n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"--help {topic}: no group or field has this name{hint} (--help lists the groups)"


# --- text -----------------------------------------------------------------------------------------


def opening(about: str, width: int) -> list[str]:
    """The first paragraph of a module's docstring, and its example commands as they stand."""
    paragraphs = inspect.cleandoc(about).split("\n\n")
    examples = [text for text in paragraphs[1:2] if text.startswith("    ")]
    first = wrapped(" ".join(paragraphs[0].split()), width)
    return [*first, *(["", *examples[0].splitlines()] if examples else [])]


def entry(left: str, right: str, width: int) -> list[str]:
    """Two columns; where the left one is too narrow, the right one begins on the next line."""
    column = min(32, width // 3)
    lines = textwrap.wrap(right, width - column, break_on_hyphens=False, break_long_words=False)
    lines = [" " * column + line for line in lines]
    if len(left) + 4 > column or not lines:
        return [f"  {left}", *lines]
    return [f"  {left}".ljust(column) + lines[0][column:], *lines[1:]]


def wrapped(text: str, width: int, *, indent: int = 0) -> list[str]:
    """The text in lines of at most ``width``, broken between words only."""
    blank = " " * indent
    wrapper = textwrap.TextWrapper(width, initial_indent=blank, subsequent_indent=blank)
    wrapper.break_on_hyphens = wrapper.break_long_words = False
    return wrapper.wrap(text)


def signature(field: Field) -> str:
    """``--optim.lr FLOAT``."""
    if field.positional:
        return field.flag.upper()
    return f"--{field.flag} {metavar(field.hint)}"


def metavar(hint: Any) -> str:
    """What stands behind a flag."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hasattr(hint, "__metadata__"):
        return metavar(arguments[0])
    if origin is tuple:
        return f"{metavar(arguments[0])} ..."
    if origin in (types.UnionType, typing.Union):
        return metavar(arguments[0])
    if origin is typing.Literal:
        choices = "{" + ",".join(map(str, arguments)) + "}"
        return choices if len(arguments) < 5 and len(choices) <= 40 else "WORD"
    return WORDS[hint]


def summary(field: Field) -> str:
    """One sentence of a field, and its default, if it has one."""
    by_default = "" if field.default in (None, "", ()) else default(field)
    return " ".join(filter(None, (first_sentence(field.doc), choices(field), by_default)))


def description(field: Field, config: Any) -> str:
    """All that is said of a field."""
    number = number_in(field.hint)
    bounds = str(number.bounds).lstrip(", ") if number else ""
    idle = without_effect(config, field.name)
    notes = [bounds, "None allowed" if may_be_none(field.hint) else ""]
    notes = [note for note in (*notes, default(field)[1:-1]) if note]
    said = " ".join(filter(None, (field.doc, choices(field), f"({'; '.join(notes)})")))
    return said + (f" Without effect{idle}." if idle else "")


def choices(field: Field) -> str:
    """The words that a field may be, where there are too many for its signature."""
    for hint in (field.hint, *typing.get_args(field.hint)):
        words = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Literal and (field.positional or len(words) > 4):
            return "One of " + ", ".join(words) + "."
    return ""


def may_be_none(hint: Any) -> bool:
    """Whether a field of this type takes None, also inside ``Annotated``."""
    arguments = typing.get_args(hint)
    return types.NoneType in arguments or any(
        types.NoneType in typing.get_args(part) for part in arguments[:1]
    )


def default(field: Field) -> str:
    """What stands there unless it is set, as the page says it."""
    value = field.default
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"(default: {text or 'empty'})"


def first_sentence(text: str) -> str:
    """The text up to its first full stop before a capital letter."""
    return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


# --- fields ---------------------------------------------------------------------------------------


def fields_of(config: Any, prefix: str = "") -> Iterator[Field]:
    """Every field of ``config`` and of the configs in it: its own first."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    docs = field_docs(type(config))
    inner = []
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        name = prefix + field.name
        if dataclasses.is_dataclass(value):
            inner.append((value, name))
            continue
        flag = name.replace("_", "-").rstrip("-")  # as_ is --as
        doc, group = docs.get(field.name, ""), flag.rpartition(".")[0]
        yield Field(name, flag, group, hint, value, doc, is_main(hint), is_positional(hint))
    for value, name in inner:
        yield from fields_of(value, f"{name}.")


def groups_of(config: Any, prefix: str = "") -> Iterator[Group]:
    """The configs inside ``config``, and those inside them."""
    docs = field_docs(type(config))
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            of_class = type(value).__doc__
            yield Group(flag, value, plain(of_class or docs.get(field.name, "")))
            yield from groups_of(value, f"{flag}.")


@cache
def field_docs(config_class: type) -> dict[str, str]:
    """The string below each field of a class and of those it extends, by the field's name."""
    docs = {}
    for one in [one for one in reversed(config_class.__mro__) if dataclasses.is_dataclass(one)]:
        # Python keeps no docstrings of fields: they are read where they stand.
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    docs[name] = plain(text)
    return docs


def plain(text: str) -> str:
    """A docstring in one line, names in it without their quotes."""
    return " ".join(text.split()).replace("``", "")
