"""Byte-level BPE (Radford et al. 2019, section 2.2): texts, prompts and answers as ids, and back.

SentencePiece's BPE too, which imported models have (see ``rlhf_jax/data/sentencepiece.py``).

Text that people type never becomes a special token: ``<|endoftext|>`` in a text is encoded as the
characters it is made of, and only the program, or a model's chat template, makes special tokens.
Rows where they were meant are found by ``stray_special``. Padding has an id of its own, so that the
end of a text can be learnt.
"""

import datetime
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
from tokenizers import models, trainers

from rlhf_jax.data.byte_level import (
    BYTE_OF,
    byte_level,
    id_of,
    with_special_tokens,
    without_tokens,
)
from rlhf_jax.data.chat import Conversation, Message, Piece, as_conversation, as_text, uses_tools
from rlhf_jax.data.files import write_atomically
from rlhf_jax.data.markup import Markup
from rlhf_jax.data.spelling import Place, Spelling
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
        names: Mapping[str, str] | None = None,
        ends: Sequence[int] = (),
        chat_template: str | None = None,
        chat_prompts: bool = False,
        now: datetime.datetime | None = None,
        source: str | None = None,
    ):
        """A tokenizer around ``backend``, whose end of text is ``eos``.

        ``names`` are further special tokens of templates (``bos_token`` and others); ``ends`` the
        ids besides ``eos`` that stop sampling; ``now`` what a template takes the time to be;
        ``source`` the ``tokenizer.json`` that ``backend`` is, letter by letter.
        """
        if eos == pad:
            raise InputError(f"padding and end of text are both {eos!r}, they must differ")
        self._source = source
        # Two ids: were padding the end of text, masking the one would mask the other.
        backend = with_special_tokens(backend, (eos, pad))
        # Not part of the saved file, so it is set on every tokenizer, wherever it came from.
        backend.encode_special_tokens = True
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # merges left out at random: a text has one encoding
        # What a file has set for another model's length; here lengths are cut by those who say so.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._spelling = Spelling(backend)
        self._specials = {"eos_token": eos, "pad_token": pad}
        self._names, self._ends = dict(names or {}), tuple(ends)
        self._now = now or datetime.datetime.now().replace(microsecond=0)
        self.chat_template = chat_template
        """Jinja template of conversations, as transformers' tokenizers carry it, or None."""
        self.chat_prompts = chat_prompts
        """Prompts of every stage are conversations in that template."""
        if chat_prompts and chat_template is None:
            raise InputError("chat prompts were asked for, but the tokenizer has no chat template")
        self.eos_id: int = id_of(backend, eos)
        """Ends a plain text."""
        self.pad_id: int = id_of(backend, pad)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id, padding and end of text included. There may be holes."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokenizer: equal exactly when two tokenizers encode alike.

        The day that a template may write is not in it (see ``example``): it changes no id's
        meaning. Nor are further ends of an answer.
        """
        # The end of text and padding too: with other ones the same texts have other ids.
        content = self._backend.to_str() + json.dumps(self._specials)
        if self.chat_prompts:
            content += self.chat_template or ""  # chat prompts have one
            content += json.dumps(self._names) if self._names else ""
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def bos_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text, as its post-processor says; mostly nothing."""
        # Asked by encoding: post-processors of every kind answer alike.
        plain = self._backend.encode("a", add_special_tokens=False).ids
        ids = self._backend.encode("a", add_special_tokens=True).ids
        starts = range(len(ids) - len(plain) + 1)
        return tuple(ids[: next((n for n in starts if ids[n : n + len(plain)] == plain), 0)])

    @property
    def bos_id(self) -> int | None:
        """What a plain text begins with, or None."""
        return self.bos_ids[0] if self.bos_ids else None

    @property
    def named_bos_id(self) -> int | None:
        """The begin of text that a text begins with, or that a template may write, or None."""
        name = self._names.get("bos_token")
        return self.bos_id if name is None else self._backend.token_to_id(name)

    @property
    def example(self) -> str:
        """How the template renders a short prompt, with the day if it writes one; else empty."""
        return self._markup.example

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """All ids that end an answer: ``eos_id`` first, then others, the template's own too."""
        return tuple(dict.fromkeys((self.eos_id, *self._ends, *self._template_ends)))

    @cached_property
    def _template_ends(self) -> tuple[int, ...]:
        """The special token that the template writes after an answer, if it does."""
        return tuple(id_of(self._backend, token) for token in self._markup.ends)

    @cached_property
    def _markup(self) -> Markup:
        names = self._names | self._specials
        return Markup(self._backend, self._spelling, self.chat_template, names, self._now)

    # --- Texts ------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as it goes on from other text: nothing before it, no end of text."""
        return self._spelling.ids(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text, on several threads."""
        return self._spelling.ids_of_each(texts)

    def encode_beginning(self, text: str) -> list[int]:
        """Ids of a plain text from its beginning: begin of text first, if the tokenizer has it."""
        return [*self.bos_ids, *self._spelling.ids(text, Place.BEGINNING)]

    def encode_beginnings(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode_beginning`` of each text, on several threads."""
        begun = self._spelling.ids_of_each(texts, Place.BEGINNING)
        return [[*self.bos_ids, *ids] for ids in begun]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts, each ending in exactly one end of text, also where it is spelled."""
        texts = [self._without_end(text)[0] for text in texts]
        return [[*ids, self.eos_id] for ids in self.encode_beginnings(texts)]

    # --- Prompts and answers ----------------------------------------------------------------------

    def encode_prompts(self, prompts: Sequence[str | Conversation]) -> list[list[int]]:
        """Ids of each prompt up to where its answer begins, in the chat template if so set.

        A string that is already in the template's markup is read as that: its special tokens are
        ids. Elsewhere they are letters (see ``stray_special``).
        """
        pieces = [self._prompt_pieces(prompt) for prompt in prompts]
        plain = [_plain(p) for p, parts in zip(prompts, pieces, strict=True) if parts is None]
        encoded = iter(self.encode_beginnings(plain))
        return [next(encoded) if parts is None else self._markup.ids(parts) for parts in pieces]

    def last_ids(self, prompt: Sequence[int], length: int | None) -> list[int]:
        """The end of a prompt's ids, begin of text before it if the prompt has it: ``length`` ids.

        The same is read where a policy is taught and where it is sampled.
        """
        if length is None or len(prompt) <= length:
            return list(prompt)
        # The begin of text stays in front: the model has never read a text without it.
        begins = self.named_bos_id is not None and prompt[0] == self.named_bos_id
        bos = list(prompt[:1]) if begins and length > 1 else []
        return [*bos, *prompt[len(prompt) - length + len(bos) :]]

    def encode_answers(
        self, prompts: Sequence[str | Conversation], answers: Sequence[str | Conversation]
    ) -> list[list[int]]:
        """Ids of each answer and of what ends it, as the policy would sample them after its prompt.

        A plain answer ends in ``eos_id``. In a chat template it has no space before its first word
        and ends in the template's own end token, or ``eos_id`` where the template has none. An end
        token that is spelled at the end of an answer is that end.
        """
        pairs = list(zip(prompts, answers, strict=True))
        before = [self._prompt_pieces(prompt) for prompt in prompts]
        plain = [
            self._without_end(_plain(answer))
            for (_, answer), made in zip(pairs, before, strict=True)
            if made is None
        ]
        # All plain answers in one call, on several threads; those in a template one by one.
        encoded = zip(self.encode_batch([text for text, _ in plain]), plain, strict=True)
        made = []
        for (prompt, answer), pieces in zip(pairs, before, strict=True):
            if pieces is None:
                ids, (text, end) = next(encoded)
                # An answer to nothing is itself the beginning of a text.
                ids = ids if as_text(prompt) else self._spelling.ids(text, Place.BEGINNING)
                made.append([*ids, end])
            else:
                ids = self._markup.ids(self._answer_pieces(prompt, answer), after=pieces)
                made.append(self._ended(ids))
        return made

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins, or goes on.

        Special tokens are those of the template: what a person wrote stays text. Raises InputError
        without a template, or if it refuses.
        """
        return self._markup.ids(self._markup.prompt(conversation))

    def stray_special(
        self, prompt: str | Conversation, answer: str | Conversation = ""
    ) -> str | None:
        """The special token that a row spells where it would be learnt as letters, or None.

        A person may write one in a message, where it stays text; in a prompt that is a string, a
        document, or an answer it is markup that was not meant as letters. Not where the prompt is
        in the template's markup, and not at the end of an answer.
        """
        if self._markup.is_markup(prompt):
            return self._behind_end(as_text(answer))
        text, _ = self._without_end(as_text(answer))
        found = self._markup.find(prompt) if isinstance(prompt, str) else None
        return found or self._markup.find(text)

    def lacks(self, text: str | Conversation) -> bool:
        """Whether characters of a text would be lost: the vocabulary has not all of their bytes."""
        return self._spelling.lacks(as_text(text))

    def _behind_end(self, answer: str) -> str | None:
        """The end token after which an answer in markup goes on, or None."""
        pieces = self._markup.pieces(answer)
        ends = [
            Piece(True, token) for token in map(self._backend.id_to_token, self.end_ids) if token
        ]
        for n, piece in enumerate(pieces):
            if piece in ends:
                more = any(each.special or each.text.strip() for each in pieces[n + 1 :])
                return piece.text if more else None
        return None

    def _prompt_pieces(self, prompt: str | Conversation) -> list[Piece] | None:
        """None for a plain prompt."""
        if isinstance(prompt, str) and self._markup.is_markup(prompt):
            pieces = self._markup.pieces(prompt)
            tokens = map(self._backend.id_to_token, self.bos_ids)
            bos = [Piece(True, token) for token in tokens if token]
            return pieces if pieces[: len(bos)] == bos else bos + pieces
        return self._markup.prompt(as_conversation(prompt)) if self.chat_prompts else None

    def _answer_pieces(self, prompt: str | Conversation, answer: str | Conversation) -> list[Piece]:
        if self._markup.is_markup(prompt):
            return self._markup.pieces(as_text(answer))
        conversation = as_conversation(prompt)
        message = _answer_message(answer)
        text, _ = self._without_end(message.content)
        if conversation[-1].role != "assistant" and isinstance(answer, str):
            text = text.removeprefix(" ")  # it joins plain strings
        return self._markup.answer(conversation, message._replace(content=text))

    def _without_end(self, text: str) -> tuple[str, int]:
        """A text and the id that ends it: the end token that it spells last, or end of text."""
        for i in self.end_ids:
            token = self._backend.id_to_token(i)
            if token and text.rstrip().endswith(token):
                return text.rstrip().removesuffix(token), i
        return text, self.eos_id

    def _ended(self, ids: list[int]) -> list[int]:
        """``ids`` up to and including the first end; with one where there is none."""
        end = next((n for n, i in enumerate(ids) if i in self.end_ids), None)
        if end is not None:
            return ids[: end + 1]
        return [*ids, (*self._template_ends, self.eos_id)[0]]

    # --- And back ---------------------------------------------------------------------------------

    def special_text(self, i: int) -> str | None:
        """How a special token is written; None for any other id."""
        return self._special_by_id.get(i)

    @cached_property
    def _special_by_id(self) -> dict[int, str]:
        added = self._backend.get_added_tokens_decoder()
        return {i: token.content for i, token in added.items() if token.special}

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

    def decode_answer(
        self, ids: Iterable[int] | Int[np.ndarray, "_"], before: int | np.integer
    ) -> str:
        """The text that ``encode_answers`` reads as ``ids`` after a prompt that ends in ``before``.

        Without the space that the vocabulary puts where a text begins, if it begins there.
        """
        return self.decode(ids).removeprefix(self.space_behind(before))

    def space_behind(self, before: int | np.integer) -> str:
        """The space that a text behind the id ``before`` begins with and is not its own, or ""."""
        if before in (self.pad_id, *self.bos_ids):  # before a row's first token there is padding
            return self._spelling.space_before(Place.BEGINNING)
        special = int(before) in self._special_by_id
        return self._spelling.space_before(Place.SPECIAL if special else Place.INSIDE)

    @cached_property
    def _bytes(self) -> list[bytes]:
        return self._spelling.table(self.vocab_size)

    def save(self, folder: str | os.PathLike, *, rows: int | None = None) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

        transformers reads them. A padding id that a model of ``rows`` rows does not have is left
        out.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self._specials,
            **self._names,
        }
        if self.chat_prompts:
            settings["chat_prompts"] = True
        if self._ends:
            settings["end_token_ids"] = [self.eos_id, *self._ends]
        if "strftime_now" in (self.chat_template or ""):
            settings["strftime_now"] = self._now.isoformat()
        without_padding = rows is not None and self.pad_id >= rows
        if without_padding:
            del settings["pad_token"]
        if self.chat_template is not None:
            write_atomically(folder / "chat_template.jinja", self.chat_template)
        write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=2))
        write_atomically(folder / "tokenizer.json", self._content(rows, without_padding))

    def _content(self, rows: int | None, without_padding: bool) -> str:
        """The ``tokenizer.json``: the one that was read, where it says the same."""
        pad = self._specials["pad_token"]
        if self._source is not None:
            # Of padding that is not in it the settings speak, and here it is given the same id
            # again. transformers would count, so where a model has a row for it, it is written.
            has_padding = pad in {token["content"] for token in _added_tokens(self._source)}
            if has_padding != without_padding or (rows is None and not has_padding):
                return self._source
        content = self._backend.to_str()
        return without_tokens(content, {pad}) if without_padding else content

    def beyond(self, rows: int) -> list[str]:
        """Tokens whose ids an embedding of ``rows`` rows does not have, padding aside."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        tokens = [token for token, i in vocabulary.items() if i >= rows and i != self.pad_id]
        return sorted(tokens, key=vocabulary.__getitem__)

    def with_chat_prompts(self) -> "Tokenizer":
        """The same with prompts in the chat template. Raises InputError without one."""
        return self._with(chat_prompts=True)

    @property
    def now(self) -> datetime.datetime:
        """What the template takes the time to be."""
        return self._now

    def at_time(self, now: datetime.datetime) -> "Tokenizer":
        """The same, whose template takes the time to be ``now``."""
        return self._with(now=now)

    def _with(self, **changes: Any) -> "Tokenizer":
        as_it_is: dict[str, Any] = dict(
            eos=self._specials["eos_token"],
            pad=self._specials["pad_token"],
            names=self._names,
            ends=self._ends,
            chat_template=self.chat_template,
            chat_prompts=self.chat_prompts,
            now=self._now,
            source=self._source,
        )
        return Tokenizer(self._backend, **(as_it_is | changes))


def _added_tokens(content: str) -> list[dict[str, Any]]:
    return json.loads(content).get("added_tokens") or []


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most ``vocab_size`` ids, padding and end of text included.

    All 256 bytes are in the alphabet. The same texts give the same tokenizer; few texts may give
    fewer ids than asked for. Raises InputError if ``vocab_size`` < 258.
    """
    if vocab_size < 258:
        raise InputError(f"vocab_size={vocab_size} is under 258: 256 bytes, padding, end of text")
    backend = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(BYTE_OF),
        max_token_length=MAX_PIECE,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, eos=EOS, pad=PAD)


def _answer_message(answer: str | Conversation) -> Message:
    """An answer, which in a chat template is one message of the assistant."""
    if isinstance(answer, str):
        return Message("assistant", answer)
    if len(answer) != 1 or answer[0].role != "assistant":
        roles = ", ".join(message.role for message in answer)
        raise InputError(f"an answer in a chat template is one message, found those of {roles}")
    return answer[0]


def _plain(value: str | Conversation) -> str:
    """``as_text`` of what a model without a chat template is shown. Raises InputError."""
    if uses_tools(value):
        raise InputError(
            "functions and their calls are written by a chat template, which this tokenizer does "
            "not use: expected rows without them, or a model with a template"
        )
    return as_text(value)
