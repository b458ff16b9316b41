"""The guide: what a good answer is here, in the words of the task or of who runs the site.

A task's own is ``guides/TASK.LANGUAGE.md``. ``--serve.guide FILE`` puts another in its place, for
readers of every language; where ``FILE`` has a neighbour whose name has a language before its
ending (``guide.zh.md`` beside ``guide.md``), they read that. Markdown, in which HTML is text.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markupsafe import Markup

from rlhf_jax.errors import InputError, check, describe_os_error
from rlhf_jax.feedback.web.render import LANGUAGES

FOLDER = Path(__file__).parent / "guides"
GENERAL = "general"
"""The guide of a task that has none of its own."""
LIMIT = 20_000
"""Characters: more than anybody reads before the first task."""


class Guide(NamedTuple):
    """What labelers read first."""

    pages: Mapping[str, Markup]
    """Language → the text as HTML."""
    version: str
    """Changes with the text: who has put away another version is shown this one."""


def guide_name(task: str) -> str:
    """Whose guide labelers of ``task`` read: its own here, or the one that fits any."""
    return task if (FOLDER / f"{task}.{LANGUAGES[0]}.md").is_file() else GENERAL


def task_guide(task: str) -> Guide:
    """The guide of a task here; for a task of one's own the one that fits any."""
    name = guide_name(task)
    return _guide({language: FOLDER / f"{name}.{language}.md" for language in LANGUAGES})


def own_guide(path: Path) -> Guide:
    """A guide of one's own. Raises InputError for a file that cannot be shown."""
    beside = {language: path.with_suffix(f".{language}{path.suffix}") for language in LANGUAGES}
    return _guide({name: other if other.is_file() else path for name, other in beside.items()})


def _guide(files: Mapping[str, Path]) -> Guide:
    texts = {language: _read(path) for language, path in files.items()}
    # "commonmark" would pass HTML through.
    markdown = MarkdownIt("js-default").disable("image")  # they could only be other sites'
    pages = {language: Markup(markdown.render(text)) for language, text in texts.items()}
    return Guide(pages, hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()[:12])


def _read(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig").strip()
    except OSError as error:
        raise InputError(f"--serve.guide: {describe_os_error(error)}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--serve.guide {path}: byte {error.start} is not UTF-8") from None
    check(
        0 < len(text) <= LIMIT,
        f"--serve.guide {path}: found {len(text)} characters, expected 1 to {LIMIT}",
    )
    return text
