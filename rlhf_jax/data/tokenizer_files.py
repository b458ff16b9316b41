"""Tokenizers in folders: a run's own, and what the Hugging Face hub holds.

transformers spreads a tokenizer over several files, and old models have only some of them. What is
read here, in the order in which it counts:

| | from |
| --- | --- |
| vocabulary | ``tokenizer.json``; ``vocab.json``, ``merges.txt``; ``encoder.json``, ``vocab.bpe`` |
| added tokens | ``added_tokens_decoder`` of ``tokenizer_config.json``; ``added_tokens.json`` |
| end of text, begin of text, padding | ``tokenizer_config.json``; ``special_tokens_map.json`` |
| end of text without a name, further ends | ``generation_config.json``; ``config.json`` |
| chat template | ``chat_template.jinja``; ``tokenizer_config.json`` |
"""

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, processors

from rlhf_jax.data.byte_level import (
    backend_of,
    begin_with,
    byte_level,
    with_special_tokens,
    with_tokens,
)
from rlhf_jax.data.tokenizers import EOS, PAD, Tokenizer
from rlhf_jax.errors import InputError, check_fetched

SPLITS_AS_GPT2 = ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer")
"""Classes of transformers whose ``vocab.json`` and ``merges.txt`` say all about them."""
LISTS = ("additional_special_tokens", "extra_special_tokens")
NAMES = ("bos_token", "unk_token", "sep_token", "cls_token", "mask_token")


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer in a folder: one that ``Tokenizer.save`` wrote, transformers', or GPT-2's.

    Padding that is no token of its own (also end, begin or unknown) gets an id over all others.
    Raises InputError, naming the file, for what is no byte-level tokenizer with an end of text.
    """
    folder = Path(path)
    settings = _json_of(folder / "tokenizer_config.json")
    backend = _backend(folder, settings)
    if backend is None:
        found = "has no vocabulary" if folder.is_dir() else "is not a folder"
        raise InputError(
            f"{folder} {found}: expected tokenizer.json, or vocab.json and merges.txt, or "
            "encoder.json and vocab.bpe"
        )
    backend = with_tokens(backend, _added_tokens(folder, settings, backend))
    backend.encode_special_tokens = True
    backend = with_special_tokens(backend, _special(folder, settings, backend))
    named = _named(folder, settings)
    ends = _end_ids(folder, settings)
    eos = named.pop("eos_token", None) or next(filter(None, map(backend.id_to_token, ends)), None)
    pad = named.pop("pad_token", None)
    if eos is None and not (folder / "tokenizer.json").is_file():
        eos = EOS  # what GPT-2's class of transformers takes
    _check_end(folder, backend, eos)
    _put_bos_first(folder, backend, settings.get("add_bos_token"), named.get("bos_token"))
    now = settings.get("strftime_now")
    made = dict(
        eos=eos,
        names=named,
        ends=[i for i in ends if i != backend.token_to_id(eos)],
        chat_template=_chat_template(folder, settings),
        chat_prompts=settings.get("chat_prompts", False),
        now=datetime.datetime.fromisoformat(now) if now else None,
    )
    if not _is_padding(backend, pad, (eos, *named.values())):
        pad = PAD
    tokenizer = Tokenizer(backend, pad=pad, **made)
    if tokenizer.pad_id in tokenizer.end_ids:
        tokenizer = Tokenizer(backend, pad=PAD, **made)
    return tokenizer


def has_tokenizer(folder: str | os.PathLike) -> bool:
    """Whether there is a vocabulary in ``folder``."""
    vocabularies = ("tokenizer.json", "vocab.json", "encoder.json")
    return any((Path(folder) / name).is_file() for name in vocabularies)


# --- Vocabulary -------------------------------------------------------------------------------


def _backend(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        try:
            return backend_of(_read(whole))
        except InputError:
            raise
        except Exception as error:  # the package raises bare Exception for a malformed file
            raise InputError(f"{whole} is not a tokenizer: {error}") from error
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            return _from_merges(folder / vocabulary, folder / merges, settings)
    return None


def _from_merges(
    vocabulary: Path, merges: Path, settings: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    """GPT-2's way of keeping a vocabulary: ids of tokens, and pairs that are merged, in order."""
    kind = settings.get("tokenizer_class") or SPLITS_AS_GPT2[0]
    if kind.removesuffix("Fast") not in SPLITS_AS_GPT2:
        raise InputError(
            f"{vocabulary}: {kind} splits texts before its merges, which vocab.json and merges.txt "
            "do not say; save it with transformers' fast tokenizer, which writes tokenizer.json"
        )
    lines = _read(merges).split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        model = models.BPE(vocab=_required_json(vocabulary), merges=pairs)
    except Exception as error:  # as above: a pair that is no token
        raise InputError(f"{merges} does not fit {vocabulary.name}: {error}") from error
    return byte_level(model, add_prefix_space=settings.get("add_prefix_space", False))


def _added_tokens(
    folder: Path, settings: Mapping[str, Any], backend: tokenizers.Tokenizer
) -> list[tuple[AddedToken, int]]:
    """Tokens that the other files add to the vocabulary, and what they say of those in it."""
    known = backend.get_added_tokens_decoder()
    decoder = settings.get("added_tokens_decoder") or {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    made = [
        (AddedToken(token["content"], **{k: token[k] for k in flags if k in token}), int(i))
        for i, token in decoder.items()
        if int(i) not in known
    ]
    said = {token.content for token, _ in made} | {token.content for token in known.values()}
    more = _json_of(folder / "added_tokens.json")
    made += [
        (AddedToken(text, normalized=False), i) for text, i in more.items() if text not in said
    ]
    return sorted(made, key=lambda each: each[1])


# --- Special tokens ---------------------------------------------------------------------------


def _named(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name."""
    mapped = _json_of(folder / "special_tokens_map.json")
    names = ("eos_token", "pad_token", *NAMES)
    named = {name: _content(settings.get(name)) or _content(mapped.get(name)) for name in names}
    return {name: token for name, token in named.items() if token}


def _special(folder: Path, settings: Mapping[str, Any], backend: tokenizers.Tokenizer) -> list[str]:
    """Special tokens that the vocabulary may hold like others: all of the lists, and named ones."""
    listed = []
    for found in (settings, _json_of(folder / "special_tokens_map.json")):
        for name in LISTS:
            tokens = found.get(name) or ()
            listed += tokens.values() if isinstance(tokens, dict) else tokens
    more = [token for name, token in _named(folder, settings).items() if name in NAMES]
    known = [token for token in more if backend.token_to_id(token) is not None]
    texts = dict.fromkeys([*map(_content, listed), *known])
    # A piece that a text is made of cannot be special: texts would lose it.
    return [
        text
        for text in texts
        if backend.encode(text, add_special_tokens=False).ids != [backend.token_to_id(text)]
    ]


def _end_ids(folder: Path, settings: Mapping[str, Any]) -> list[int]:
    """``eos_token_id`` of a model: one id or several, all of which stop sampling."""
    for name in ("generation_config.json", "config.json"):
        found = _json_of(folder / name).get("eos_token_id")
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
                raise InputError(f"{folder / name}: eos_token_id is {found!r}, expected ids")
            return ids
    return list(settings.get("end_token_ids", ()))


def _check_end(folder: Path, backend: tokenizers.Tokenizer, eos: str | None) -> None:
    if eos is None:
        raise InputError(
            f"{folder} names no end of text: expected eos_token in tokenizer_config.json or "
            "special_tokens_map.json, or eos_token_id in generation_config.json or config.json"
        )
    if backend.token_to_id(eos) is None:
        raise InputError(f"{folder}: the end of text, {eos!r}, is no token of the vocabulary")


def _put_bos_first(
    folder: Path, backend: tokenizers.Tokenizer, first: bool | None, bos: str | None
) -> None:
    """``add_bos_token`` of ``tokenizer_config.json`` counts more than the post-processor."""
    if first is None or (first and bos is None):
        return
    begins = len(backend.encode("", add_special_tokens=True).ids) > 0
    if first and not begins:
        if backend.token_to_id(bos) is None:
            raise InputError(f"{folder}: the begin of text, {bos!r}, is no token of the vocabulary")
        begin_with(backend, bos)
    elif begins and not first:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)


def _is_padding(backend: tokenizers.Tokenizer, pad: str | None, others: tuple[str, ...]) -> bool:
    """Whether ``pad`` is a token that stands for nothing else."""
    if pad is None or pad in others:
        return False
    i = backend.token_to_id(pad)
    token = backend.get_added_tokens_decoder().get(i)
    return i is None or (token is not None and token.special)


# --- Files ------------------------------------------------------------------------------------


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return _read(folder / "chat_template.jinja")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        return {each["name"]: each["template"] for each in template}.get("default")
    return template


def _content(token: str | dict | None) -> str | None:
    """A token in transformers' files is a string or ``{"content": ...}``."""
    return token["content"] if isinstance(token, dict) else token


def _read(path: Path) -> str:
    check_fetched(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _json_of(path: Path) -> dict:
    """The object in a file; empty where there is no such file."""
    return _required_json(path) if path.is_file() else {}


def _required_json(path: Path) -> dict:
    try:
        found = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object")
    return found
