"""Byte-level BPE of the package tokenizers: vocabularies whose tokens keep their ids.

The package numbers added tokens by counting the others. In a vocabulary with holes that is an id
that is taken: each function here sees to it that every token has the id that it should have.
"""

import json
from collections.abc import Container, Iterable, Sequence
from itertools import count
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte: itself if visible, else from U+0100 on."""
    # As OpenAI's encoder does it: JSON files of vocabularies then hold no control characters.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    chars = {chr(byte): byte for byte in visible}
    return chars | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


BYTE_OF = _byte_alphabet()


def bytes_of(token: str) -> bytes:
    """What a token of the vocabulary stands for; one with other letters is its own text."""
    if all(char in BYTE_OF for char in token):
        return bytes(BYTE_OF[char] for char in token)
    return token.encode()


def id_of(backend: tokenizers.Tokenizer, token: str) -> int:
    """The id of a token that the vocabulary is known to have."""
    i = backend.token_to_id(token)
    assert i is not None, f"{token!r} is no token of the vocabulary"
    return i


def begin_with(backend: tokenizers.Tokenizer, bos: str) -> None:
    """Have every text begin with ``bos``, a token of ``backend``."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, id_of(backend, bos))],
    )


def byte_level(
    model: models.BPE, *splits: Any, add_prefix_space: bool = False
) -> tokenizers.Tokenizer:
    """A byte-level tokenizer around ``model``, with GPT-2's splitting after other ``splits``."""
    backend = tokenizers.Tokenizer(model)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_]) if splits else bytes_
    backend.decoder = decoders.ByteLevel()
    return backend


def with_special_tokens(
    backend: tokenizers.Tokenizer, texts: Iterable[str]
) -> tokenizers.Tokenizer:
    """``backend`` in which ``texts`` are special tokens; new ones get ids over all others.

    Those that are special already keep what else is said of them.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    free = count(max(vocabulary.values(), default=-1) + 1)
    tokens = [
        (
            AddedToken(text, special=True, normalized=False),
            vocabulary[text] if text in vocabulary else next(free),
        )
        for text in texts
        if text not in special
    ]
    return with_tokens(backend, tokens)


def with_tokens(
    backend: tokenizers.Tokenizer, tokens: Sequence[tuple[AddedToken, int]]
) -> tokenizers.Tokenizer:
    """``backend`` with these tokens as its own, each with its id."""
    backend.add_tokens([token for token, _ in tokens])
    ids = {token.content: i for token, i in tokens}
    if all(backend.token_to_id(text) == i for text, i in ids.items()):
        return backend
    parsed = json.loads(backend.to_str())
    for token in parsed["added_tokens"]:
        token["id"] = ids.get(token["content"], token["id"])
    return backend_of(json.dumps(parsed))


def backend_of(content: str) -> tokenizers.Tokenizer:
    """The package's tokenizer of a ``tokenizer.json``, added tokens on the ids that it gives them.

    Where the package would number them otherwise, they are written into the vocabulary itself.
    """
    backend = tokenizers.Tokenizer.from_str(content)
    parsed = json.loads(content)
    ids = {token["content"]: token["id"] for token in parsed.get("added_tokens") or ()}
    if all(backend.token_to_id(text) == i for text, i in ids.items()):
        return backend
    # In the vocabulary an id is kept; only added tokens are numbered anew.
    parsed["model"]["vocab"] |= ids
    return tokenizers.Tokenizer.from_str(json.dumps(parsed))


def without_tokens(content: str, texts: Container[str]) -> str:
    """A ``tokenizer.json`` without some of its added tokens."""
    parsed = json.loads(content)
    parsed["added_tokens"] = [t for t in parsed["added_tokens"] if t["content"] not in texts]
    vocabulary = parsed["model"]["vocab"]
    parsed["model"]["vocab"] = {t: i for t, i in vocabulary.items() if t not in texts}
    return json.dumps(parsed, ensure_ascii=False)
