"""A tokenizer around a vocabulary that a file lists whole, as GGUF does."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from rlhf_jax.data.byte_level import begin_with, byte_level
from rlhf_jax.data.sentencepiece import Prefix, ScoredPiece, from_scores
from rlhf_jax.data.tokenizers import PAD, Tokenizer
from rlhf_jax.errors import InputError


class Merged(NamedTuple):
    """Byte-level BPE: pieces are made by merges."""

    merges: Sequence[str]
    pre: str
    """What else splits a text before BPE, by llama.cpp's name."""

    def backend(self, tokens: Sequence[str]) -> tokenizers.Tokenizer:
        """The package's tokenizer.

        Raises InputError for a ``pre`` that is not known, and for a merge that is no pair of
        tokens.
        """
        splits = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}
        if self.pre not in splits:
            raise InputError(f"pre-tokenizer {self.pre!r} is not supported, only {[*splits]}")
        vocabulary = {token: i for i, token in enumerate(tokens)}
        pairs: list[Any] = [tuple(merge.split(" ")) for merge in self.merges]
        try:
            model = models.BPE(vocab=vocabulary, merges=pairs)
        except Exception as error:  # the package raises bare Exception
            raise InputError(f"the merges do not fit the tokens: {error}") from error
        return byte_level(model, *splits[self.pre])


class Scored(NamedTuple):
    """SentencePiece's BPE: of neighbouring pieces those become one that score highest as one."""

    pieces: Sequence[ScoredPiece]
    prefix: Prefix

    def backend(self, tokens: Sequence[str]) -> tokenizers.Tokenizer:
        """The package's tokenizer, whose pieces are ``tokens``. Raises InputError."""
        return from_scores(self.pieces, self.prefix)


def tokenizer_of(
    tokens: Sequence[str],
    how: Merged | Scored,
    *,
    special: Sequence[str],
    eos: str,
    chat_template: str | None,
    added: Sequence[str] = (),
    ends: Sequence[int] = (),
    bos: str | None = None,
    begins: bool = False,
) -> Tokenizer:
    """The tokenizer of a vocabulary, whose texts are made of its tokens as ``how`` says.

    ``added`` tokens are whole wherever a text has them; ``begins``: every text begins with ``bos``.
    Raises InputError for a vocabulary of which no tokenizer can be made.
    """
    backend = how.backend(tokens)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    if begins and bos is not None:
        begin_with(backend, bos)
    names = {} if bos is None else {"bos_token": bos}
    return Tokenizer(backend, eos=eos, pad=PAD, names=names, ends=ends, chat_template=chat_template)
