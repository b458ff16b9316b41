"""Characters that one cannot see, made visible: what is shown is what is there.

Bidirectional controls can show a text in another order than it is read in, zero-width characters
hide inside words, and terminal controls do worse. Each is shown as a mark with its number.
"""

import unicodedata
from typing import NamedTuple

SHOWN_AS_THEY_ARE = "\n\t"
BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u034f\u2800"
"""Letters and marks in name, but without a shape."""
JOINER = "\u200d"
EMOJI_BEFORE_JOINER = ("So", "Sk", "Mn")
"""Categories after which a zero-width joiner makes one emoji of several."""


class Piece(NamedTuple):
    """Text as it is, or the mark of a character that one cannot see."""

    text: str
    name: str
    """Of the character that ``text`` is the mark of; "" for text that is itself."""


def pieces(text: str) -> list[Piece]:
    """``text`` as runs of visible characters and marks such as U+202E."""
    parts: list[Piece] = []
    run, before = "", ""
    for character in text:
        if is_visible(character, before):
            run += character
        else:
            if run:
                parts.append(Piece(run, ""))
            parts.append(Piece(f"U+{ord(character):04X}", _name(character)))
            run = ""
        before = character
    return [*parts, Piece(run, "")] if run else parts


def is_visible(character: str, before: str = "") -> bool:
    """Categories C* (control, format, unassigned, private, surrogate) and line separators hide."""
    if character in SHOWN_AS_THEY_ARE:
        return True
    if character == JOINER and before and unicodedata.category(before) in EMOJI_BEFORE_JOINER:
        return True
    category = unicodedata.category(character)
    hides = category[0] == "C" or category in ("Zl", "Zp") or character in BLANK_LETTERS
    return not hides


def _name(character: str) -> str:
    return unicodedata.name(character, "control character").lower()
