"""SentencePiece's BPE (Kudo and Richardson 2018), as tokenizer.json keeps it.

A space is written ▁, and what no token spells is written in bytes (``<0x0A>``). Most vocabularies
also put a ▁ before a text, so that its first word has the token that it has anywhere else; that
one is no space of the text. Where it is put differs: before every text between special tokens
("always", which transformers calls legacy), or only at the very beginning ("first").
"""

import json
import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rlhf_jax.data.byte_level import backend_of
from rlhf_jax.errors import check

SPACE = "\u2581"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")

SEQUENCES = ("normalizers", "pretokenizers", "decoders")
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
UNDO = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}

Prefix = Literal["never", "first", "always"]
"""Where a text has a ▁ put before it."""


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, as files say them."""
    if part is None:
        return []
    content = json.loads(part.__getstate__())
    inner = next((content[kind] for kind in SEQUENCES if kind in content), None)
    return [content] if inner is None else inner


def spells_spaces(backend: tokenizers.Tokenizer) -> bool:
    """Whether ▁ is decoded to a space, as it is in no byte-level vocabulary."""
    steps = _steps(backend.decoder)
    return UNDO in steps or any(step["type"] == "Metaspace" for step in steps)


def check_exact(backend: tokenizers.Tokenizer) -> None:
    """Raise InputError for steps before the merges that may change a text, or drop some of it."""
    before, splits = _steps(backend.normalizer), _steps(backend.pre_tokenizer)
    other = [step["type"] for step in before if step not in (PREPEND, REPLACE)]
    other += [step["type"] for step in splits if not _keeps_letters(step)]
    check(
        not other,
        f"the tokenizer has {', '.join(other)} before its merges, which may change a text; "
        f"expected a SentencePiece BPE that does no more than write spaces as {SPACE}",
    )
    check(
        REPLACE in before or any(step["type"] == "Metaspace" for step in splits),
        f"the tokenizer reads {SPACE} as a space, but nothing in it writes spaces as {SPACE}",
    )


def _keeps_letters(split: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer gives back every letter."""
    if split["type"] == "Metaspace":
        return split["replacement"] == SPACE
    return split["type"] == "Digits" or split.get("behavior", "Removed") != "Removed"


def prefix_of(backend: tokenizers.Tokenizer) -> Prefix:
    """Where a text has a ▁ put before it."""
    if PREPEND in _steps(backend.normalizer):
        return "always"
    splits = _steps(backend.pre_tokenizer)
    return next((step["prepend_scheme"] for step in splits if step["type"] == "Metaspace"), "never")


def without_prefix(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """``backend`` for a text that goes on from another one."""
    content = json.loads(backend.to_str())
    content["normalizer"] = {
        "type": "Sequence",
        "normalizers": [step for step in _steps(backend.normalizer) if step != PREPEND],
    }
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            step | {"prepend_scheme": "never"} if step["type"] == "Metaspace" else step
            for step in _steps(backend.pre_tokenizer)
        ],
    }
    return backend_of(json.dumps(content))


def bytes_of_piece(token: str) -> bytes:
    """What a token stands for: a byte, or letters among which ▁ is a space."""
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


# --- From pieces and scores -----------------------------------------------------------------------


class PieceKind(IntEnum):
    """What a piece is, numbered as in SentencePiece's own files, and in GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ScoredPiece(NamedTuple):
    """An entry of a vocabulary."""

    text: str
    score: float
    kind: int
    """A ``PieceKind``."""


def from_scores(pieces: Sequence[ScoredPiece], prefix: Prefix) -> tokenizers.Tokenizer:
    """The package's tokenizer of pieces with scores.

    Of neighbouring pieces those become one that score highest as one. Raises InputError for a
    vocabulary that the package cannot hold.
    """
    vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
    check(len(vocabulary) == len(pieces), "the vocabulary has a token twice")
    whole = [p.text for p in pieces if p.kind == PieceKind.USER_DEFINED and SPACE in p.text]
    check(
        not whole,
        f"the vocabulary takes spaces together before its merges ({', '.join(map(repr, whole[:3]))}"
        "), which only a tokenizer.json says in full: write one with transformers "
        "(AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))",
    )
    unknown = next((p.text for p in pieces if p.kind == PieceKind.UNKNOWN), None)
    model = models.BPE(
        vocabulary, merges_of(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    if prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    else:
        before = [normalizers.Prepend(SPACE)] if prefix == "always" else []
        backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [] if prefix == "never" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return backend


def merges_of(pieces: Sequence[ScoredPiece]) -> list[tuple[str, str]]:
    """The pairs of pieces that become one, those first that score highest as one."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == PieceKind.NORMAL}
    made = [
        (-score, n, (token[:at], token[at:]))
        for n, (token, score) in enumerate(scores.items())
        for at in range(1, len(token))
        if token[:at] in scores and token[at:] in scores
    ]
    return [pair for _, _, pair in sorted(made)]
