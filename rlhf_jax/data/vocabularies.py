"""A tokenizer around a vocabulary that a file lists whole, as GGUF does."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, models, pre_tokenizers

from rlhf_jax.data.byte_level import begin_with, byte_level
from rlhf_jax.data.tokenizers import PAD, Tokenizer
from rlhf_jax.errors import InputError


def bpe_from_vocabulary(
    tokens: Sequence[str],
    merges: Sequence[str],
    *,
    special: Sequence[str],
    eos: str,
    pre: str,
    chat_template: str | None,
    added: Sequence[str] = (),
    ends: Sequence[int] = (),
    bos: str | None = None,
    begins: bool = False,
) -> Tokenizer:
    """A byte-level BPE from its vocabulary; ``pre`` says what else splits a text before BPE.

    ``added`` tokens are whole wherever a text has them; ``begins``: every text begins with ``bos``.
    Raises InputError for a ``pre`` that is not known, and for a merge that is no pair of tokens.
    """
    splits = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}
    if pre not in splits:
        raise InputError(f"pre-tokenizer {pre!r} is not supported, only {[*splits]}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    try:
        model = models.BPE(vocab=vocabulary, merges=pairs)
    except Exception as error:  # the package raises bare Exception
        raise InputError(f"the merges do not fit the tokens: {error}") from error
    backend = byte_level(model, *splits[pre])
    backend.add_special_tokens(list(special))
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    if begins and bos is not None:
        begin_with(backend, bos)
    names = {} if bos is None else {"bos_token": bos}
    return Tokenizer(backend, eos=eos, pad=PAD, names=names, ends=ends, chat_template=chat_template)
