"""How a vocabulary spells texts: with which tokens, and for which bytes each token stands.

Byte-level vocabularies spell a text alike wherever it stands. Those of SentencePiece may put a
space before it, which is none of its own: whether they do depends on what the text stands behind.
"""

from collections.abc import Sequence
from enum import Enum
from functools import cached_property

import tokenizers
from tokenizers import decoders

from rlhf_jax.data import sentencepiece
from rlhf_jax.data.byte_level import BYTE_OF, bytes_of
from rlhf_jax.errors import check


class Place(Enum):
    """What a text stands behind."""

    BEGINNING = "nothing, or the begin of text"
    SPECIAL = "a special token"
    INSIDE = "other text"


SPACED = {
    "never": (),
    "first": (Place.BEGINNING,),
    "always": (Place.BEGINNING, Place.SPECIAL),
}
"""The places where a space is put before a text."""


class Spelling:
    """The tokens of texts, and the bytes of tokens; special tokens in texts are letters.

    Raises InputError for a vocabulary whose texts would not come back as they were.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = self._inside = backend
        self._spaced: tuple[Place, ...] = ()
        self._byte_level = isinstance(backend.decoder, decoders.ByteLevel)
        kind = type(backend.model).__name__
        if self._byte_level and kind == "BPE":
            return
        check(
            kind == "BPE" and sentencepiece.spells_spaces(backend),
            "the tokenizer is neither a byte-level BPE nor one of SentencePiece, as this project "
            f"needs: its model is {kind}, its decoder {type(backend.decoder).__name__}",
        )
        sentencepiece.check_exact(backend)
        self._spaced = SPACED[sentencepiece.prefix_of(backend)]
        if self._spaced:
            self._inside = sentencepiece.without_prefix(backend)
            # As of the other one: what looks like a special token is text.
            self._inside.encode_special_tokens = True

    def ids(self, text: str, place: Place = Place.INSIDE) -> list[int]:
        """Ids of ``text`` as it stands at ``place``."""
        return self._at(place).encode(text, add_special_tokens=False).ids

    def ids_of_each(self, texts: Sequence[str], place: Place = Place.INSIDE) -> list[list[int]]:
        """``ids`` of each text, on several threads."""
        encoded = self._at(place).encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _at(self, place: Place) -> tokenizers.Tokenizer:
        return self._backend if place in self._spaced else self._inside

    def space_before(self, place: Place) -> str:
        """The space that a text at ``place`` begins with and that is none of its own, or ""."""
        return " " if place in self._spaced else ""

    def table(self, size: int) -> list[bytes]:
        """What each id under ``size`` stands for; special tokens and holes stand for nothing."""
        spelled = bytes_of if self._byte_level else sentencepiece.bytes_of_piece
        # Added tokens stand as they are in texts; SentencePiece decodes ▁ in those, too.
        whole = str.encode if self._byte_level else sentencepiece.bytes_of_piece
        added = self._backend.get_added_tokens_decoder()
        own = {i: b"" if token.special else whole(token.content) for i, token in added.items()}
        return [
            own[i] if i in own else spelled(self._backend.id_to_token(i) or "") for i in range(size)
        ]

    def lacks(self, text: str) -> bool:
        """Whether characters of a text would be lost: they have no tokens."""
        if self._byte_level:
            return bool(self._missing) and not self._missing.isdisjoint(text.encode())
        # A ▁ that was typed comes back as a space; nothing else is lost where bytes have tokens.
        return sentencepiece.SPACE in text or (bool(self._missing) and self._loses(text))

    def _loses(self, text: str) -> bool:
        table = self._table
        return b"".join(table[i] for i in self.ids(text)) != text.encode()

    @cached_property
    def _table(self) -> list[bytes]:
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return self.table(max(vocabulary.values()) + 1)

    @cached_property
    def _missing(self) -> frozenset[int]:
        """Bytes without a token, in vocabularies that were trained on few texts or have holes."""
        known = self._backend.get_vocab(with_added_tokens=False)
        if self._byte_level:
            return frozenset(byte for char, byte in BYTE_OF.items() if char not in known)
        fallback = getattr(self._backend.model, "byte_fallback", False)
        return frozenset(
            byte for byte in range(256) if not fallback or f"<0x{byte:02X}>" not in known
        )
