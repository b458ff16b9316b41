"""``tokenizer.model``: SentencePiece's own file, a protobuf of pieces with scores.

Read without the package sentencepiece: of its messages (sentencepiece_model.proto) a few fields say
all about a BPE, and what would change texts is refused.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.sentencepiece import ScoredPiece
from rlhf_jax.errors import InputError, check, check_fetched

ADVICE = (
    "write a tokenizer.json with transformers "
    "(AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))"
)
BPE = 2
MODELS = {1: "Unigram", BPE: "BPE", 3: "words", 4: "characters"}
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5
"""How protobuf writes a value."""
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error)
"""What a file meets that is cut off, or none of its kind."""

Message = dict[int, list[Any]]
"""The values of each field, by its number."""


class PieceFile(NamedTuple):
    """What a ``tokenizer.model`` holds."""

    pieces: list[ScoredPiece]
    bos: str | None
    eos: str | None
    prefix: bool
    """A ▁ is put before texts."""


def read_pieces(path: Path) -> PieceFile:
    """The pieces of a BPE of SentencePiece, and its begin and end of text.

    Raises InputError for another kind of model, and for one that changes texts.
    """
    check_fetched(path)
    try:
        whole = _message(path.read_bytes())
        pieces = [_piece(_message(entry)) for entry in whole[1]]
        trainer, normalizer = (_message(b"".join(whole.get(n, ()))) for n in (2, 3))
    except UNREADABLE as error:
        raise InputError(f"{path} is no model of SentencePiece ({error!r}); {ADVICE}") from None
    kind = _last(trainer, 3, 1)
    check(kind == BPE, f"{path} is a model of {MODELS.get(kind, kind)}, expected BPE")
    asked = {
        "a normalization of letters": bool(_last(normalizer, 2, b"")),
        "spaces to be taken out": bool(_last(normalizer, 4, 1)),
        "spaces to be left as they are": not _last(normalizer, 5, 1),
        "the sign of a space behind words": bool(_last(trainer, 24, 0)),
        "no bytes for letters without a token": not _last(trainer, 35, 0),
    }
    for what, found in asked.items():
        check(not found, f"{path} asks for {what}, which is not read; {ADVICE}")

    def named(field: int, default: int) -> str | None:
        number = _last(trainer, field, default)  # -1, for none, is written as 2⁶⁴ − 1
        return pieces[number].text if number < len(pieces) else None

    return PieceFile(pieces, named(41, 1), named(42, 2), bool(_last(normalizer, 3, 1)))


def _piece(entry: Message) -> ScoredPiece:
    return ScoredPiece(entry[1][0].decode(), _last(entry, 2, 0.0), _last(entry, 3, 1))


def _last(message: Message, field: int, default: Any) -> Any:
    """A field's value: the last one counts."""
    return message[field][-1] if field in message else default


def _message(data: bytes) -> Message:
    """The fields of a protobuf message. Raises ValueError for bytes that are none."""
    fields: Message = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value: Any
        if key & 7 == VARINT:
            value, at = _varint(data, at)
        elif key & 7 == BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif key & 7 in (FLOAT, DOUBLE):
            form, size = ("<f", 4) if key & 7 == FLOAT else ("<d", 8)
            (value,), at = struct.unpack_from(form, data, at), at + size
        else:
            raise ValueError(f"byte {at} begins no field")
        fields.setdefault(key >> 3, []).append(value)
    if at > len(data):
        raise ValueError("it is cut off")
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(a whole number in groups of seven bits, the lowest first; where it ends)."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
