"""Names of labelers: visible, nobody else's, and not to be taken for the site's own.

Two names are one if they look alike but for case, width and spaces (Unicode's NFKC and case
folding). A word of Latin, Greek and Cyrillic letters is none: "аdmin" with a Cyrillic а.
"""

import re
import unicodedata
from collections.abc import Iterable

from rlhf_jax.errors import InputError
from rlhf_jax.feedback.visible import is_visible

NAME_LIMIT = 40
IMPORTED = "import "
"""How the names of accounts begin that stand for labelers of imported files."""
SIMULATED = "simulated "
"""How those of labelers begin that are programs."""
PSEUDONYM = "labeler-"
RESERVED = (
    *("admin", "administrator", "root", "system", "moderator", "support", "owner"),
    *("labeler", "person", "policy", "model", "assistant", "anonymous", "deleted", "import"),
    *("管理员", "系统", "标注员", "客服"),
)
"""Names of roles and of the site, in both languages."""
SELECTORS = re.compile("[\ufe00-\ufe0f]")
"""Variation selectors: they choose between two drawings of the character before."""
LOOK_ALIKE = ("LATIN", "GREEK", "CYRILLIC")
"""Scripts, as Unicode's names of characters begin, that share the shapes of letters."""


def check_name(name: str) -> str:
    """A name as it is shown. Raises InputError for one that cannot be, or that is reserved."""
    name = name.strip()
    if not 0 < len(name) <= NAME_LIMIT:
        raise InputError(f"name: found {len(name)} characters, expected 1 to {NAME_LIMIT}")
    if not all(is_visible(character) for character in name) or "\n" in name:
        raise InputError("name: found an invisible or control character")
    name = " ".join(name.split())
    if any(len(scripts(word)) > 1 for word in name.split()):
        raise InputError("name: found letters of several alphabets in one word")
    key = folded(name)
    if not any(character.isalnum() for character in key):
        raise InputError("name: found no letter or digit")
    if key.startswith((IMPORTED, SIMULATED, PSEUDONYM)):
        kind = "imports" if key.startswith(IMPORTED) else "programs and pseudonyms"
        raise InputError(f"name: those that begin with {key.split(' ')[0]!r} are for {kind}")
    if key in RESERVED:
        raise InputError(f"name: {name!r} is reserved, expected a name of your own")
    return name


def check_new(name: str, taken: Iterable[str]) -> None:
    """Raise InputError if somebody has this name, or one that looks like it."""
    if folded(name) in map(folded, taken):
        raise InputError(f"name: {name!r} is taken, expected another one")


def folded(name: str) -> str:
    """The same for names that people would take for one."""
    compatible = unicodedata.normalize("NFKC", SELECTORS.sub("", name)).casefold()
    return " ".join(unicodedata.normalize("NFKC", compatible).split())


def scripts(word: str) -> set[str]:
    """Which of the scripts whose letters look alike a word has."""
    names = (unicodedata.name(character, "").split(" ")[0] for character in word)
    return {name for name in names if name in LOOK_ALIKE}
