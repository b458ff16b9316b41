"""Tokenizers in folders: a run's own, and what the Hugging Face hub holds.

transformers spreads a tokenizer over several files, and old models have only some of them. What is
read here, in the order in which it counts:

| | from |
| --- | --- |
| vocabulary | ``tokenizer.json``; ``vocab.json``, ``merges.txt``; ``encoder.json``, ``vocab.bpe``;
``tokenizer.model`` |
| added tokens | ``added_tokens_decoder`` of ``tokenizer_config.json``; ``added_tokens.json`` |
| end of text, begin of text, padding | ``tokenizer_config.json``; ``special_tokens_map.json`` |
| end of text without a name, further ends | ``generation_config.json``; ``config.json`` |
| chat template | ``chat_template.jinja``; ``chat_template.json``; ``tokenizer_config.json`` |
"""

import datetime
import json
import logging
import os
import re
from collections.abc import Mapping
from functools import partial
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
from rlhf_jax.data.files import type_name
from rlhf_jax.data.sentencepiece import PieceKind, Prefix, from_scores
from rlhf_jax.data.sentencepiece_model import read_pieces
from rlhf_jax.data.spelling import Spelling
from rlhf_jax.data.tokenizers import EOS, PAD, Tokenizer
from rlhf_jax.errors import InputError, check_fetched

log = logging.getLogger(__name__)

SPLITS_AS_GPT2 = ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer")
"""Classes of transformers whose ``vocab.json`` and ``merges.txt`` say all about them."""
OTHER_KINDS = {
    "vocab.json": "but no merges.txt beside it",
    "encoder.json": "but no vocab.bpe beside it",
    "spiece.model": "a Unigram model of SentencePiece, which is not read",
    "vocab.txt": "which is not read",
}
"""Vocabularies that are not read, and why."""
LISTS = ("additional_special_tokens", "extra_special_tokens")
NAMES = ("bos_token", "unk_token", "sep_token", "cls_token", "mask_token")


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer in a folder: one that ``Tokenizer.save`` wrote, transformers', or GPT-2's.

    Padding that is no token of its own (also end, begin or unknown, or one that the chat template
    writes) gets an id over all others. Raises InputError, naming the file, for what is neither
    byte-level BPE nor SentencePiece's, or has no end of text.
    """
    folder = Path(path)
    settings = _json_of(folder / "tokenizer_config.json")
    backend, own_eos = _backend(folder, settings)
    _check_spelling(folder, backend)
    as_read = backend.to_str()
    backend = with_tokens(backend, _added_tokens(folder, settings, backend))
    # Text that looks like a special token is text: nobody ends a turn by typing its mark.
    backend.encode_special_tokens = True
    backend = with_special_tokens(backend, _special(folder, settings, backend))
    named = _named(folder, settings)
    ends = _end_ids(folder, settings, backend)
    eos = named.pop("eos_token", None) or next(map(backend.id_to_token, ends), own_eos)
    pad = named.pop("pad_token", None)
    end = _checked_end(folder, backend, eos)
    _put_bos_first(folder, backend, settings.get("add_bos_token"), named.get("bos_token"))
    now, template = settings.get("strftime_now"), _chat_template(folder, settings)
    whole = folder / "tokenizer.json"
    with_padding = partial(
        Tokenizer,
        backend,
        eos=end,
        names=named,
        ends=[i for i in ends if i != backend.token_to_id(end)],
        chat_template=template,
        chat_prompts=settings.get("chat_prompts", False),
        now=datetime.datetime.fromisoformat(now) if now else None,
        source=_read(whole) if whole.is_file() and backend.to_str() == as_read else None,
    )
    if pad is not None and _is_padding(backend, pad, (end, *named.values())):
        tokenizer = with_padding(pad=PAD if pad in (template or "") else pad)
        if tokenizer.pad_id not in tokenizer.end_ids:
            return tokenizer
    return with_padding(pad=PAD)


def _why_none(folder: Path) -> str:
    """What is wrong with a folder without a vocabulary that can be read."""
    expected = (
        "expected tokenizer.json, or vocab.json and merges.txt, or encoder.json and vocab.bpe, or "
        "tokenizer.model"
    )
    if not folder.is_dir():
        return f"{folder} is not a folder: {expected}"
    other = next((name for name in OTHER_KINDS if (folder / name).is_file()), None)
    found = f"has {other}, {OTHER_KINDS[other]}" if other else "has no vocabulary"
    return f"{folder} {found}: {expected}"


def has_tokenizer(folder: str | os.PathLike) -> bool:
    """Whether there is a vocabulary in ``folder``."""
    vocabularies = ("tokenizer.json", "vocab.json", "encoder.json", "tokenizer.model")
    return any((Path(folder) / name).is_file() for name in vocabularies)


# --- Vocabulary -------------------------------------------------------------------------------


def _backend(folder: Path, settings: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, str | None]:
    """The vocabulary of a folder, and the end of text that goes without saying in such files."""
    whole = folder / "tokenizer.json"
    if whole.is_file():
        try:
            return backend_of(_read(whole)), None
        except InputError:
            raise
        except Exception as error:  # the package raises bare Exception for a malformed file
            raise InputError(f"{whole} is not a tokenizer: {error}") from error
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            # The end of text is what GPT-2's class of transformers takes.
            return _from_merges(folder / vocabulary, folder / merges, settings), EOS
    if (folder / "tokenizer.model").is_file():
        return _from_pieces(folder / "tokenizer.model", settings)
    raise InputError(_why_none(folder))


def _from_pieces(
    path: Path, settings: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, str | None]:
    """SentencePiece's own file, as transformers' class of Llama reads it."""
    pieces, bos, eos, prefix = read_pieces(path)
    # Where nothing is said it is legacy: a space before every text between special tokens.
    where: Prefix = "always" if settings.get("legacy") is not False else "first"
    prefix = prefix and settings.get("add_prefix_space") is not False
    try:
        backend = from_scores(pieces, where if prefix else "never")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    special = [p.text for p in pieces if p.kind in (PieceKind.UNKNOWN, PieceKind.CONTROL)]
    whole = [p.text for p in pieces if p.kind == PieceKind.USER_DEFINED]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, normalized=False) for text in whole])
    if bos is not None and settings.get("add_bos_token") is not False:
        begin_with(backend, bos)
    return backend, eos


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
    pairs: list[Any] = [
        tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")
    ]
    ids = _required_json(vocabulary)
    try:
        model = models.BPE(vocab=ids, merges=pairs)
    except Exception as error:  # as above: a pair that is no token
        raise InputError(f"{merges} does not fit {vocabulary.name}: {error}") from error
    return byte_level(model, add_prefix_space=settings.get("add_prefix_space", False))


def _check_spelling(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """Raise InputError for a vocabulary whose texts would not come back as they were."""
    try:
        Spelling(backend)
    except InputError as error:
        raise InputError(f"{folder / 'tokenizer.json'}: {error}") from None


def _added_tokens(
    folder: Path, settings: Mapping[str, Any], backend: tokenizers.Tokenizer
) -> list[tuple[AddedToken, int]]:
    """Tokens that the other files add to the vocabulary, and what they say of those in it."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    path = folder / "tokenizer_config.json"
    decoder = settings.get("added_tokens_decoder") or {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    declared = {
        text: (token, _id(i, path, backend, text))
        for i, token in decoder.items()
        for text in [_required_content(token, path)]
    }
    path = folder / "added_tokens.json"
    more = {text: _id(i, path, backend, text) for text, i in _json_of(path).items()}
    tokens = [
        (AddedToken(text, **{flag: token[flag] for flag in flags if flag in token}), i)
        for text, (token, i) in declared.items()
    ]
    tokens += [
        (AddedToken(text, normalized=False), i) for text, i in more.items() if text not in declared
    ]
    # What tokenizer.json has already said of a token counts.
    new = [(token, i) for token, i in tokens if token.content not in known]
    return sorted(new, key=lambda entry: entry[1])


def _id(value: Any, path: Path, backend: tokenizers.Tokenizer, text: str) -> int:
    """The id that a file gives a token. Raises InputError if the vocabulary says otherwise."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise InputError(f"{path}: the id of {text!r} is {value!r}, expected a whole number")
    held, own = backend.id_to_token(int(value)), backend.token_to_id(text)
    if held not in (None, text) or own not in (None, int(value)):
        other = f"has {own}" if own is not None else f"has {held!r} there"
        raise InputError(
            f"{path}: {text!r} is given the id {value}, but the vocabulary {other}: expected the "
            "files of one tokenizer"
        )
    return int(value)


# --- Special tokens ---------------------------------------------------------------------------


def _named(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name."""
    mapped = _json_of(folder / "special_tokens_map.json")
    names = ("eos_token", "pad_token", *NAMES)
    at, beside = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    named = {
        name: _content(settings.get(name), at) or _content(mapped.get(name), beside)
        for name in names
    }
    return {name: token for name, token in named.items() if token}


def _special(folder: Path, settings: Mapping[str, Any], backend: tokenizers.Tokenizer) -> list[str]:
    """Special tokens that the vocabulary may hold like others: all of the lists, and named ones."""
    listed: list[Any] = []
    for source in (settings, _json_of(folder / "special_tokens_map.json")):
        for name in LISTS:
            tokens = source.get(name) or ()
            listed += tokens.values() if isinstance(tokens, dict) else tokens
    more = [token for name, token in _named(folder, settings).items() if name in NAMES]
    known = [token for token in more if backend.token_to_id(token) is not None]
    texts = dict.fromkeys([*(_required_content(token, folder) for token in listed), *known])
    return [text for text in texts if not _is_piece(backend, text)]


def _is_piece(backend: tokenizers.Tokenizer, text: str) -> bool:
    """Whether texts are made of this token: it cannot be special, or texts would lose it."""
    return backend.encode(text, add_special_tokens=False).ids == [backend.token_to_id(text)]


def _end_ids(folder: Path, settings: Mapping[str, Any], backend: tokenizers.Tokenizer) -> list[int]:
    """``eos_token_id`` of a model: one id or several, all of which stop sampling.

    An id that no token has is passed over, and said: GPT-2's stays in many a config.json of a
    smaller vocabulary.
    """
    for name in ("generation_config.json", "config.json"):
        value = _json_of(folder / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in ids):
            raise InputError(f"{folder / name}: eos_token_id is {value!r}, expected ids")
        unknown = [i for i in ids if backend.id_to_token(i) is None]
        if unknown:
            log.warning(
                "%s: eos_token_id %s is passed over: the vocabulary has no such token",
                folder / name,
                ", ".join(map(str, unknown)),
            )
        return [i for i in ids if i not in unknown]
    return list(settings.get("end_token_ids", ()))


def _checked_end(folder: Path, backend: tokenizers.Tokenizer, eos: str | None) -> str:
    """``eos``. Raises InputError if it cannot be an end of text."""
    if eos is None:
        raise InputError(
            f"{folder} names no end of text: expected eos_token in tokenizer_config.json or "
            "special_tokens_map.json, or eos_token_id in generation_config.json or config.json"
        )
    if backend.token_to_id(eos) is None:
        raise InputError(f"{folder}: the end of text, {eos!r}, is no token of the vocabulary")
    if _is_piece(backend, eos):
        raise InputError(
            f"{folder}: the end of text, {eos!r}, is a token that texts are made of, expected a "
            "special one"
        )
    return eos


def _put_bos_first(
    folder: Path, backend: tokenizers.Tokenizer, first: bool | None, bos: str | None
) -> None:
    """``add_bos_token`` of ``tokenizer_config.json`` counts more than the post-processor."""
    begins = len(backend.encode("", add_special_tokens=True).ids) > 0
    if first and not begins and bos is not None:
        if backend.token_to_id(bos) is None:
            raise InputError(f"{folder}: the begin of text, {bos!r}, is no token of the vocabulary")
        begin_with(backend, bos)
    elif begins and first is not None and not first:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)  # which adds no token


def _is_padding(backend: tokenizers.Tokenizer, pad: str, others: tuple[str, ...]) -> bool:
    """Whether ``pad`` is a token that stands for nothing else."""
    if pad in others:
        return False
    i = backend.token_to_id(pad)
    if i is None:
        return True
    token = backend.get_added_tokens_decoder().get(i)
    return token is not None and token.special


# --- Files ------------------------------------------------------------------------------------


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return _read(folder / "chat_template.jinja")
    path = folder / "chat_template.json"  # of models that read more than text
    path = path if path.is_file() else folder / "tokenizer_config.json"
    template = _json_of(path).get("chat_template", settings.get("chat_template"))
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        template = {entry.get("name"): entry.get("template") for entry in template}
    if isinstance(template, dict):  # several by name
        if "default" not in template:
            names = ", ".join(map(str, template))
            log.warning("%s: none of the chat templates %s is named default", path, names)
        template = template.get("default")
    if not isinstance(template, str | None):
        raise InputError(f"{path}: chat_template is {type_name(template)}, expected a string")
    return template


def _content(token: Any, path: Path) -> str | None:
    """A token in transformers' files is a string or ``{"content": ...}``."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) and token is not None:
        raise InputError(f"{path}: found {token!r}, expected a token: a string, or its content")
    return text


def _required_content(token: Any, path: Path) -> str:
    text = _content(token, path)
    if text is None:
        raise InputError(f"{path}: found null, expected a token: a string, or its content")
    return text


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
        value = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value
