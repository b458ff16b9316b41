"""Conversations, and chat templates: the text an instruction-tuned model was trained on.

Messages stay messages until a template renders them: what a person wrote is never read as markup,
and nothing stands between the template's header and the first word of an answer but what the
template puts there. Rendering follows transformers' ``apply_chat_template``.
"""

import datetime
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlhf_jax.errors import InputError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TURNS = re.compile(f"({HUMAN}|{ASSISTANT})")
SPEAKERS = {"user": HUMAN, "assistant": ASSISTANT, "tool": "\n\nTool:", "tools": "\n\nTools:"}

HIDDEN, FILLED = "\ue000", "\ue001"
"""Private-use characters, as many as what they hide or stand for."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """system, user, assistant, tool (what a function returned), or tools (which there are)."""
    content: str
    """Of the role tools: a list of functions, as JSON."""
    more: str = ""
    """What a template is given beside these two, an object as JSON: which functions are called."""

    def as_dict(self) -> dict[str, Any]:
        """As files hold it, and as templates are given it."""
        named = {"role": self.role, "content": self.content}
        return named | json.loads(self.more) if self.more else named

    @property
    def shown(self) -> str:
        """What people read of it: calls of functions as JSON."""
        return " ".join(filter(None, (self.content, self.more)))

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> "Message":
        """What ``as_dict`` wrote."""
        more = {name: part for name, part in written.items() if name not in ("role", "content")}
        as_text = json.dumps(more, ensure_ascii=False) if more else ""
        return cls(written["role"], written["content"], as_text)


Conversation = tuple[Message, ...]


def uses_tools(value: str | Conversation) -> bool:
    """Whether functions are offered, called or answer in a conversation."""
    return not isinstance(value, str) and any(
        message.role in ("tool", "tools") or message.more for message in value
    )


# --- As plain text ----------------------------------------------------------------------------


def write_turns(conversation: Conversation) -> str:
    """Every turn of a conversation, as one string."""
    return "".join(_turn(message, first=n == 0) for n, message in enumerate(conversation))


def _turn(message: Message, *, first: bool) -> str:
    if message.role == "system":
        # Not glued to the answer before it.
        return message.content if first else f"\n\n{message.content}"
    return f"{SPEAKERS[message.role]} {message.shown}"


def as_text(value: str | Conversation) -> str:
    r"""The plain string of a prompt, an answer or a whole conversation.

    ``\n\nHuman: ...`` for the user, ``\n\nAssistant: ...`` for the assistant, a system message
    as it stands. A prompt ends in ``\n\nAssistant:``, or in the message that is to be continued;
    an answer, which the assistant begins and ends, comes without that mark: prompt and answer
    together are the whole. Functions and calls of them stand there for people to read, as JSON: no
    model is shown them so.
    """
    if isinstance(value, str):
        return value
    if value[-1].role != "assistant":
        return write_turns(value) + ASSISTANT
    text = write_turns(value)
    return text.removeprefix(ASSISTANT) if value[0].role == "assistant" else text


def as_json(value: str | Conversation) -> str | list[dict[str, Any]]:
    """What a row of a file holds of a prompt or an answer: the text, or messages by their names."""
    return value if isinstance(value, str) else [message.as_dict() for message in value]


def written_turns(text: str) -> Conversation | None:
    """The conversation that ``write_turns`` writes as ``text``; None if it is not one."""
    before, *turns = TURNS.split(text)
    # Only what ``write_turns`` itself would write counts: other uses of the words stay text.
    if before or not turns or turns[0] != HUMAN:
        return None
    pairs = zip(turns[0::2], turns[1::2], strict=True)
    conversation = tuple(
        Message("user" if speaker == HUMAN else "assistant", content.removeprefix(" "))
        for speaker, content in pairs
    )
    return conversation if write_turns(conversation) == text else None


def written_prompt(text: str) -> str | Conversation:
    """The conversation that a prompt writes down from ``Human:`` to ``Assistant:``, or the text."""
    asked = text.rstrip(" ")
    if not asked.endswith(ASSISTANT):
        return text
    return written_turns(asked.removesuffix(ASSISTANT)) or text


def as_conversation(prompt: str | Conversation) -> Conversation:
    """The messages of a prompt: those that it is or writes down, or else one of the user.

    A text that holds turns among other words is all the user's, without spaces around it.
    """
    if isinstance(prompt, str):
        prompt = written_prompt(prompt)
    return (Message("user", prompt.strip()),) if isinstance(prompt, str) else prompt


# --- In a model's template --------------------------------------------------------------------


class ChatTemplate(NamedTuple):
    """A template with what it may write."""

    source: str
    """Jinja, as transformers' tokenizers carry it."""
    names: tuple[tuple[str, str], ...]
    """``bos_token`` and others, by name."""
    specials: tuple[str, ...]
    """All special tokens."""
    now: datetime.datetime
    """What ``strftime_now`` says: frozen, so that the same rows give the same ids next day."""


class Rendered(NamedTuple):
    """Text with its outline: of the same length, special spellings in messages hidden."""

    text: str
    outline: str


class Piece(NamedTuple):
    """A special token that the template made, or text between two."""

    special: bool
    text: str


def render_prompt(template: ChatTemplate, conversation: Conversation) -> Rendered:
    """A conversation up to where the assistant's answer begins, or goes on.

    Raises InputError if the template refuses.
    """
    open_answer = conversation[-1].role != "assistant"
    if not open_answer and not conversation[-1].content:
        return render_prompt(template, conversation[:-1])
    if open_answer:
        rendered = _render(template, conversation, open_answer=True)
        _check_functions(template, conversation, rendered.text, open_answer=True)
    else:
        rendered = _left_open(template, conversation)
    _check_whole(rendered.text, conversation)
    return rendered


def render_answer(template: ChatTemplate, conversation: Conversation, answer: Message) -> Rendered:
    """What the template writes after ``render_prompt``: the answer and what ends it.

    Raises InputError if it refuses, and if it does not render an answer after its prompt: then
    what is taught would not be what is sampled.
    """
    before, asked = "", conversation
    if conversation[-1].role == "assistant":
        before, asked = conversation[-1].content, conversation[:-1]
    answered = (*asked, answer._replace(content=before + answer.content))
    prompt = render_prompt(template, conversation)
    whole = _render(template, answered, open_answer=False)
    _check_functions(template, answered, whole.text, open_answer=False)
    if not _begins(whole, prompt) and asked is conversation:
        # Some templates write a system message elsewhere once there is an answer. What counts is
        # what they write after the last message.
        prompt = _behind(_filled(template, conversation, len(asked) - 1, open_answer=True))
        whole = _behind(_filled(template, answered, len(asked) - 1, open_answer=False))
    if not _begins(whole, prompt):
        same = common_prefix(whole.text, prompt.text)
        raise InputError(
            "the chat template does not put an answer where it asks for one: the prompt goes on "
            f"with {prompt.text[same : same + 40]!r}, the same with its answer with "
            f"{whole.text[same : same + 40]!r}; what is taught would not be what is sampled"
        )
    start = len(prompt.text)
    return Rendered(whole.text[start:], whole.outline[start:])


def _check_whole(text: str, conversation: Conversation) -> None:
    """Raise InputError for a message that the template leaves out, white space aside.

    Of the assistant's earlier ones some templates keep the last words only, on purpose.
    """
    # White space is laid out anew by templates, so it is taken out on both sides, when it must be.
    solid = None
    for role, content, _ in conversation:
        if role in ("assistant", "tools") or content.strip() in text:
            continue
        solid = "".join(text.split()) if solid is None else solid
        if "".join(content.split()) not in solid:
            raise InputError(
                f"the chat template leaves out the {role}'s message {content[:40]!r}, expected "
                "rows without it or with its words in another message"
            )


def _check_functions(
    template: ChatTemplate, conversation: Conversation, text: str, *, open_answer: bool
) -> None:
    """Raise InputError for functions or calls of them that ``text`` would be the same without.

    Many templates know of none, and say nothing.
    """
    for n, message in enumerate(conversation):
        before, after = conversation[:n], conversation[n + 1 :]
        if message.role == "tools":
            what, without = "functions that may be called", (*before, *after)
        elif "tool_calls" in message.as_dict():
            what, without = "the calls of functions", (*before, message._replace(more=""), *after)
        else:
            continue
        try:
            same = _fill(template, without, open_answer) == text
        except InputError:
            continue  # a template that is not content without them writes them
        if same:
            raise InputError(
                f"the chat template leaves out {what}: expected a model whose template writes "
                "them, or rows without them"
            )


def _begins(whole: Rendered, beginning: Rendered) -> bool:
    return all(map(str.startswith, whole, beginning))


def _filled(
    template: ChatTemplate, conversation: Conversation, n: int, *, open_answer: bool
) -> Rendered:
    """Rendered with other letters in message ``n``: its own may be the template's too."""
    message = conversation[n]._replace(content=FILLED * len(conversation[n].content))
    conversation = (*conversation[:n], message, *conversation[n + 1 :])
    return _render(template, conversation, open_answer=open_answer)


def _behind(rendered: Rendered) -> Rendered:
    """What comes after the letters that fill a message."""
    end = rendered.text.rfind(FILLED) + 1
    return Rendered(rendered.text[end:], rendered.outline[end:])


def pieces_of(rendered: Rendered, specials: Sequence[str]) -> list[Piece]:
    """Special tokens of the template, and the text between them."""
    pieces, end = [], 0
    for match in special_pattern(tuple(specials)).finditer(rendered.outline):
        if match.start() > end:
            pieces.append(Piece(False, rendered.text[end : match.start()]))
        pieces.append(Piece(True, match[0]))
        end = match.end()
    if end < len(rendered.text):
        pieces.append(Piece(False, rendered.text[end:]))
    return pieces


@lru_cache(maxsize=64)
def special_pattern(specials: tuple[str, ...]) -> re.Pattern:
    """Finds special tokens; of two at one place the longer."""
    # A regular expression takes the first alternative that fits.
    longest_first = sorted(specials, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _left_open(template: ChatTemplate, conversation: Conversation) -> Rendered:
    """Rendered up to the end of the last message, as ``continue_final_message`` does."""
    content = conversation[-1].content
    whole = _render(template, conversation, open_answer=False)
    _check_functions(template, conversation, whole.text, open_answer=False)
    filled = _filled(template, conversation, len(conversation) - 1, open_answer=False).text
    start = filled.find(FILLED)
    kept = next((x for x in (content, content.strip()) if whole.text.startswith(x, start)), None)
    if start < 0 or kept is None or whole.text[:start] != filled[:start]:
        raise InputError("the chat template changes the last message, which is to be continued")
    end = start + len(kept)
    return Rendered(whole.text[:end], whole.outline[:end])


def _render(template: ChatTemplate, conversation: Conversation, *, open_answer: bool) -> Rendered:
    """Rendered twice where a message spells special tokens, to see where the template's own lie."""
    pattern = special_pattern(template.specials)

    def hide(text: str) -> str:
        return pattern.sub(lambda match: HIDDEN * len(match[0]), text)

    # A user who types <|im_end|> must not end a turn: only what the template wrote is special.
    hidden = tuple(Message(role, hide(content), hide(more)) for role, content, more in conversation)
    text = _fill(template, conversation, open_answer)
    outline = text if hidden == conversation else _fill(template, hidden, open_answer)
    if len(outline) != len(text):
        raise InputError("the chat template changes with special tokens inside a message")
    return Rendered(text, outline)


def _fill(template: ChatTemplate, conversation: Conversation, open_answer: bool) -> str:
    tools = [json.loads(message.content) for message in conversation if message.role == "tools"]
    try:
        return _compiled(template.source, template.now).render(
            messages=[message.as_dict() for message in conversation if message.role != "tools"],
            # Templates ask whether these are none, so they are there.
            tools=tools[0] if tools else None,
            documents=None,
            add_generation_prompt=open_answer,
            **dict(template.names),
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        raise InputError(f"the chat template does not take this conversation: {error}") from error


@lru_cache(maxsize=8)
def _compiled(source: str, now: datetime.datetime) -> jinja2.Template:
    """In the environment that transformers renders templates in."""
    # Templates come with strangers' models: sandboxed, they reach no attribute or file.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    names: dict[str, Any] = environment.globals
    names |= {"raise_exception": _refuse, "strftime_now": now.strftime}
    return environment.from_string(source)


class GenerationBlock(Extension):
    """``{% generation %}`` marks the assistant's words: rendered as if the tags were not there."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an attribute of the instance

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the tags, up to ``{% endgeneration %}``."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str):
    raise jinja2.TemplateError(message)


def common_prefix(a: Sequence, b: Sequence) -> int:
    """How many leading characters, or items, are equal."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))
