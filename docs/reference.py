"""Pages of the site that are made from the code: every command's fields, every public function."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import rlhf_jax.config
from rlhf_jax.help_pages import description, fields_of, signature

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "objectives": "Pure mathematics on arrays",
    "models": "Networks, heads and how rows are read",
    "rollouts": "Sampling, and episodes with their scores",
    "training": "Updates, PPO and its kin, devices",
    "data": "Rows of files, tokens, batches",
    "interop": "Checkpoints of others",
}
"""Of the library: what a notebook or a fork calls."""


def write_pages(folder: Path) -> None:
    """Write all pages into ``folder``, those that are as they were untouched."""
    folder.mkdir(exist_ok=True)
    pages = {"commands": commands_page(), "api": api_index()}
    pages |= {f"api_{room}": api_page(room, about) for room, about in ROOMS.items()}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# --- commands -------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str, Any]]:
    """(name, what its page says first, config) of each command that has one config."""
    for path in sorted((ROOT / "experiments").glob("[a-z]*.py")):
        source = path.read_text(encoding="utf-8")
        if made := re.search(r"main\(run, (\w+)\)", source):
            about = ast.get_docstring(ast.parse(source)) or ""
            yield path.stem, about, getattr(rlhf_jax.config, made[1])()


def commands_page() -> str:
    """Every field of every command, as ``--help all`` has them."""
    parts = [
        "# Commands",
        "Every flag of every command, with bounds and default. A command shows them by `--help`, "
        "`--help NAME` and `--help all`. `experiments.feedback` has commands of its own "
        "([feedback.md](../feedback.md)).",
    ]
    for name, about, config in commands():
        parts += [f"## {name}", *map(paragraph, about.split("\n\n"))]
        rows = ["| flag | what it is |", "| --- | --- |"]
        for field in fields_of(config):
            rows.append(f"| `{cell(signature(field))}` | {cell(description(field, config))} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def paragraph(text: str) -> str:
    """Of a module's docstring: prose, or commands, which are indented there."""
    if text.startswith("    "):
        return "```\n" + re.sub(r"^ {4}", "", text, flags=re.MULTILINE) + "\n```"
    return text.replace("``", "`")


def cell(text: str) -> str:
    """``text`` on one line, with no bar that would end its cell."""
    return " ".join(text.replace("|", "\\|").split())


# --- functions ------------------------------------------------------------------------------------


def api_index() -> str:
    """The rooms of the library."""
    rows = "\n".join(f"- [`rlhf_jax.{room}`](api_{room}.md): {it}" for room, it in ROOMS.items())
    tree = "\n".join(f"api_{room}" for room in ROOMS)
    return (
        f"# Functions\n\nWhat a notebook or a fork calls. PPO from these, in 37 lines: "
        f"[library.md](../library.md).\n\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    )


def api_page(room: str, about: str) -> str:
    """Every public function and container of a room, module by module."""
    parts = [f"# rlhf_jax.{room}", f"{about}."]
    for path in sorted((ROOT / "rlhf_jax" / room).glob("[a-z]*.py")):
        name = f"rlhf_jax.{room}.{path.stem}"
        parts += [f"## {path.stem}", f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```"]
    return "\n\n".join(parts) + "\n"


def as_restructured_text(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain prose with ``code`` and indented equations: let Sphinx read no more."""
    if lines and lines[0].startswith("Alias for field number"):  # Python's, of a bare field
        lines.clear()
    lines[:] = list(_restructured(lines))


def with_short_types(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str, returns: str
) -> tuple[str, str]:
    """Float[Array, "B R"], as the code has it."""
    return tuple(
        text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returns)
    )


def _restructured(lines: Sequence[str]) -> Iterator[str]:
    """Indented blocks are shown as they stand, and no mark but double backticks means anything."""
    literal = False
    for before, line in zip(["", *lines], lines, strict=False):
        if not line.strip():
            yield line
        elif line.startswith("    ") and (literal or not before.strip()):
            if not literal:
                yield from ("::", "")
            literal = True
            yield line
        else:
            if literal and before.strip():
                yield ""
            literal = False
            yield _without_marks(line.lstrip() if line.startswith(" ") else line)


def _without_marks(line: str) -> str:
    halves = re.split(r"(``[^`]*``)", line)
    return "".join(
        half if half.startswith("``") else re.sub(r"([\\*|`_])", r"\\\1", half) for half in halves
    )
