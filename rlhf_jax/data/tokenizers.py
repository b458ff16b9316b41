"""Byte-level BPE (Radford et al. 2019, section 2.2): trained here, or GPT-2's own vocabulary.

Text that people type never becomes a special token: ``<|endoftext|>`` in a document is encoded as
the characters it is made of, and only the program appends the end-of-text id. Padding has an id of
its own, so that the end of a text can be learnt.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers, trainers

from rlhf_jax.data.chat import render_chat
from rlhf_jax.data.files import write_atomically
from rlhf_jax.data.formats import as_messages
from rlhf_jax.errors import InputError

EOS = "<|endoftext|>"
PAD = "<|padding|>"
MAX_PIECE = 16
"""Longest trained piece in bytes: no entry is spent on a row of dashes."""


class Tokenizer:
    """Text to ids and back, exact for every UTF-8 text: ``decode(encode(text)) == text``.

    Ids of ``eos_id`` and ``pad_id`` are never made by ``encode`` and never shown by ``decode``.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos: str,
        pad: str,
        chat_template: str | None = None,
        chat_prompts: bool = False,
    ):
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise InputError("the tokenizer is not a byte-level BPE, which this project needs")
        # Not part of the saved file, so it is set on every tokenizer, wherever it came from.
        backend.encode_special_tokens = True
        backend.add_special_tokens([eos, pad])
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._specials = {"eos_token": eos, "pad_token": pad}
        self.chat_template = chat_template
        """Jinja template of conversations, as transformers' tokenizers carry it, or None."""
        self.chat_prompts = chat_prompts
        """Prompts of every stage are conversations in that template."""
        if chat_prompts and chat_template is None:
            raise InputError("chat prompts were asked for, but the tokenizer has no chat template")
        self.eos_id: int = backend.token_to_id(eos)
        self.pad_id: int = backend.token_to_id(pad)
        if self.eos_id == self.pad_id:
            raise InputError(f"padding and end of text are both {eos!r}, they must differ")

    @property
    def vocab_size(self) -> int:
        """Number of ids, padding and end of text included: ids are 0 ... vocab_size - 1."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokenizer: equal exactly when two tokenizers encode alike."""
        content = self._backend.to_str() + json.dumps(self._specials)
        if self.chat_prompts:
            content += self.chat_template
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without an end-of-text id."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text, on several threads."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [each.ids for each in encoded]

    def encode_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt up to where its answer begins, in the chat template if so set."""
        if not self.chat_prompts:
            return self.encode_batch(prompts)
        return [self.encode_chat(as_messages(prompt)) for prompt in prompts]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins.

        ``messages`` have ``role`` and ``content``. Special tokens are those of the template: what a
        person wrote stays text. Raises InputError without a template, or if it refuses.
        """
        if self.chat_template is None:
            raise InputError("the tokenizer has no chat template")
        tokens = {
            token.content: i
            for i, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        }
        return [
            i
            for special, text in render_chat(
                self.chat_template, messages, [*tokens], **self._specials
            )
            for i in ([tokens[text]] if special else self.encode(text))
        ]

    def decode_bytes(self, ids: Iterable[int] | Int[np.ndarray, "_"]) -> bytes:
        """Bytes of ``ids``, special ids left out; may end in the middle of a character.

        Ids over the vocabulary have no text: models with unused rows of embedding may sample them.
        Raises InputError for a negative id.
        """
        ids = [int(i) for i in ids]
        if ids and min(ids) < 0:
            raise InputError(f"token id {min(ids)} is negative")
        return b"".join(self._bytes[i] for i in ids if i < len(self._bytes))

    def decode(self, ids: Iterable[int] | Int[np.ndarray, "_"]) -> str:
        """Text of ``ids``, special ids left out; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def _bytes(self) -> list[bytes]:
        special = self._backend.get_added_tokens_decoder()
        table = []
        for i in range(self.vocab_size):
            if i in special:
                token = special[i]
                table.append(b"" if token.special else token.content.encode())
            else:
                # Some vocabularies have holes: an id without a token has no text.
                table.append(bytes(BYTE_OF[char] for char in self._backend.id_to_token(i) or ""))
        return table

    def save(self, folder: str | os.PathLike, *, rows: int | None = None) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

        transformers reads them. A padding id that a model of ``rows`` rows does not have is left
        out.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self._specials}
        if self.chat_prompts:
            settings["chat_prompts"] = True
        content = self._backend.to_str()
        if rows is not None and self.pad_id >= rows:
            del settings["pad_token"]
            parsed = json.loads(content)
            added = [token for token in parsed["added_tokens"] if token["id"] != self.pad_id]
            content = json.dumps(parsed | {"added_tokens": added}, ensure_ascii=False)
        if self.chat_template is not None:
            write_atomically(folder / "chat_template.jinja", self.chat_template)
        write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=2))
        write_atomically(folder / "tokenizer.json", content)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Tokenizer":
        """Read what ``save`` wrote, or a byte-level tokenizer saved by transformers.

        A tokenizer without padding, or with padding equal to end of text, gets an id for padding.
        Raises InputError, naming the file, for anything else.
        """
        folder = Path(folder)
        settings = _read_json(folder / "tokenizer_config.json")
        eos, pad = (_content(settings.get(name)) for name in ("eos_token", "pad_token"))
        if eos is None:
            raise InputError(f"{folder / 'tokenizer_config.json'}: eos_token is missing")
        content = _read(folder / "tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the package raises bare Exception for a malformed file
            message = f"{folder / 'tokenizer.json'} is not a tokenizer: {error}"
            raise InputError(message) from error
        template = settings.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            template = _read(folder / "chat_template.jinja")
        if isinstance(template, list):  # several by name
            template = {each["name"]: each["template"] for each in template}.get("default")
        pad = PAD if pad in (None, eos) else pad
        chat_prompts = settings.get("chat_prompts", False)
        return cls(backend, eos=eos, pad=pad, chat_template=template, chat_prompts=chat_prompts)

    def with_chat_prompts(self) -> "Tokenizer":
        """The same with prompts in the chat template. Raises InputError without one."""
        return Tokenizer(
            self._backend,
            eos=self._specials["eos_token"],
            pad=self._specials["pad_token"],
            chat_template=self.chat_template,
            chat_prompts=True,
        )


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most ``vocab_size`` ids, padding and end of text included.

    All 256 bytes are in the alphabet. The same texts give the same tokenizer; few texts may give
    fewer ids than asked for. Raises InputError if ``vocab_size`` < 258.
    """
    if vocab_size < 258:
        raise InputError(f"vocab_size={vocab_size} is under 258: 256 bytes, padding, end of text")
    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(BYTE_OF),
        max_token_length=MAX_PIECE,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, eos=EOS, pad=PAD)


def load_gpt2(folder: str | os.PathLike) -> Tokenizer:
    """GPT-2's vocabulary from ``encoder.json`` and ``vocab.bpe``: end of text 50256, padding 50257.

    Padding is one id more than GPT-2 has, so an imported model needs 50,258 rows of embedding.
    """
    folder = Path(folder)
    vocabulary = _read_json(folder / "encoder.json")
    lines = _read(folder / "vocab.bpe").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if EOS not in vocabulary:
        raise InputError(f"{folder / 'encoder.json'}: {EOS} is missing, so this is not GPT-2's")
    return Tokenizer(_byte_level(models.BPE(vocab=vocabulary, merges=merges)), eos=EOS, pad=PAD)


def bpe_from_vocabulary(
    tokens: Sequence[str],
    merges: Sequence[str],
    *,
    special: Sequence[str],
    eos: str,
    pre: str,
    chat_template: str | None,
) -> Tokenizer:
    """A byte-level BPE from its vocabulary; ``pre`` says what else splits a text before BPE.

    Raises InputError for a ``pre`` that is not known.
    """
    splits = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}
    if pre not in splits:
        raise InputError(f"pre-tokenizer {pre!r} is not supported, only {[*splits]}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    backend = _byte_level(models.BPE(vocab=vocabulary, merges=pairs), *splits[pre])
    backend.add_special_tokens(list(special))
    return Tokenizer(backend, eos=eos, pad=PAD, chat_template=chat_template)


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer in a folder: a saved one, or GPT-2's vocabulary files."""
    path = Path(path)
    if (path / "tokenizer.json").is_file():
        return Tokenizer.load(path)
    if (path / "encoder.json").is_file():
        return load_gpt2(path)
    found = "is not a folder" if not path.is_dir() else "has neither"
    raise InputError(f"{path} {found}: expected tokenizer.json, or encoder.json and vocab.bpe")


def _byte_level(model: models.BPE, *splits: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_]) if splits else bytes_
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte: itself if visible, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    chars = {chr(byte): byte for byte in visible}
    return chars | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


BYTE_OF = _byte_alphabet()


def _content(token: str | dict | None) -> str | None:
    """A token in transformers' files is a string or ``{"content": ...}``."""
    return token["content"] if isinstance(token, dict) else token


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> dict:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
