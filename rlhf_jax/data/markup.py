"""Special tokens and letters: what a chat template writes as ids, and what people typed.

A special token is one where the template made it, or a text in the template's own markup spells it.
Everywhere else its letters are letters.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import AddedToken

from rlhf_jax.data.byte_level import id_of
from rlhf_jax.data.chat import (
    FILLED,
    ChatTemplate,
    Conversation,
    Message,
    Piece,
    Rendered,
    pieces_of,
    render_answer,
    render_prompt,
    special_pattern,
)
from rlhf_jax.data.spelling import Place, Spelling
from rlhf_jax.errors import InputError


class Markup:
    """The special tokens of a vocabulary, and the template that writes them, if there is one."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        spelling: Spelling,
        template: str | None,
        names: Mapping[str, str],
        now: datetime.datetime,
    ):
        """``names`` are the special tokens that a template calls by name; ``now`` is its time."""
        self._backend, self._spelling = backend, spelling
        self._source, self._names, self._now = template, tuple(names.items()), now

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """All special tokens, as they are written."""
        return tuple(token.content for token in self._added.values() if token.special)

    @cached_property
    def _added(self) -> dict[str, AddedToken]:
        added = self._backend.get_added_tokens_decoder().values()
        return {token.content: token for token in added}

    def find(self, text: str) -> str | None:
        """The first special token that a text spells, or None."""
        match = special_pattern(self.specials).search(text)
        return match[0] if match else None

    def pieces(self, text: str) -> list[Piece]:
        """The pieces of a text in markup: every special token that it spells is one."""
        return pieces_of(Rendered(text, text), self.specials)

    def prompt(self, conversation: Conversation) -> list[Piece]:
        """A conversation up to where the assistant's answer begins, or goes on.

        Raises InputError without a template, or if it refuses.
        """
        return pieces_of(render_prompt(self._template, conversation), self.specials)

    def answer(self, conversation: Conversation, answer: Message) -> list[Piece]:
        """What the template writes after ``prompt(conversation)``. Raises InputError."""
        return pieces_of(render_answer(self._template, conversation, answer), self.specials)

    @cached_property
    def _template(self) -> ChatTemplate:
        if self._source is None:
            raise InputError("the tokenizer has no chat template")
        return ChatTemplate(self._source, self._names, self.specials, self._now)

    def ids(self, pieces: Sequence[Piece], after: Sequence[Piece] = ()) -> list[int]:
        """Ids of rendered text; white space that a special token strips has none.

        ``after`` is what stands before it, whose last token may strip too.
        """
        special = self._added
        ids: list[int] = []
        place, strips = _behind(after, special)
        for piece, following in zip(pieces, (*pieces[1:], None), strict=True):
            if piece.special:
                ids.append(id_of(self._backend, piece.text))
                place, strips = Place.SPECIAL, special[piece.text].rstrip
                continue
            text = piece.text.lstrip() if strips else piece.text
            if following is not None and special[following.text].lstrip:
                text = text.rstrip()
            ids += self._spelling.ids(text, place)
            # White space in two pieces after one token belongs to it all the same.
            place, strips = Place.INSIDE if text else place, strips and not text
        return ids

    def is_markup(self, prompt: str | Conversation) -> bool:
        """Whether a string ends as the template's own prompts do.

        Where that is no special token, the words before a user's message stand in it, too.
        """
        if not isinstance(prompt, str):
            return False
        # Compared with what the template itself writes, as every family has its own signs.
        head, ending = self._frame
        written = prompt.rstrip()
        if not ending or not written.endswith(ending):
            return False
        marked = self.find(ending) is not None
        return marked or (bool(head) and head in written.removesuffix(ending))

    @cached_property
    def example(self) -> str:
        """How the template renders a short prompt, with the day if it writes one; else empty."""
        return "".join(piece.text for piece in self._probe(self.prompt, (Message("user", "a"),)))

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The special token that the template writes after an answer, if it does."""
        asked, answer = Message("user", "a"), Message("assistant", "b")
        pieces = self._probe(self.answer, (asked,), answer)
        return tuple(piece.text for piece in pieces if piece.special)[:1]

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """What the template writes before a user's words, special tokens aside, and behind them."""
        # A private-use character, which no template writes, marks where the user's words stand.
        pieces = self._probe(self.prompt, (Message("user", FILLED),))
        head = next((x.text.partition(FILLED)[0] for x in pieces if FILLED in x.text), "")
        behind = "".join(piece.text for piece in pieces).rpartition(FILLED)[2]
        return head.strip(), behind.rstrip()

    def _probe(self, render: Callable[..., list[Piece]], *conversation: Any) -> list[Piece]:
        """What the template makes of a short conversation; nothing if there is none, or it refuses.

        That is said when a prompt is rendered: a plain text needs no template.
        """
        if self._source is None:
            return []
        try:
            return render(*conversation)
        except InputError:
            return []


def _behind(pieces: Sequence[Piece], special: Mapping[str, AddedToken]) -> tuple[Place, bool]:
    """What a text after these pieces stands behind, and whether that takes white space from it."""
    place, strips = Place.BEGINNING, False
    for piece in pieces:
        if piece.special:
            place, strips = Place.SPECIAL, special[piece.text].rstrip
        elif piece.text.strip() or (piece.text and not strips):
            place, strips = Place.INSIDE, False
    return place, strips
