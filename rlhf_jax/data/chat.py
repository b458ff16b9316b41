"""Chat templates: a conversation as the text an instruction-tuned model was trained on."""

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlhf_jax.errors import InputError

STAND_IN = "\ue000"
"""A private-use character, of the length of what it hides."""


def render_chat(
    template: str, messages: Sequence[Mapping[str, str]], specials: Sequence[str], **tokens: str
) -> Iterator[tuple[bool, str]]:
    """The rendered conversation in pieces: (is a special token, text).

    Only the template makes special tokens: the same spelling inside a message is text. So the
    template is rendered twice, once with those spellings hidden, to see where its own lie.
    """
    longest_first = sorted(specials, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    hide = lambda text: pattern.sub(lambda match: STAND_IN * len(match[0]), text)
    hidden = [{**message, "content": hide(message["content"])} for message in messages]
    text = _render(template, messages, tokens)
    outline = _render(template, hidden, tokens)
    if len(outline) != len(text):
        raise InputError("the chat template changes with special tokens inside a message")
    end = 0
    for match in pattern.finditer(outline):
        if match.start() > end:
            yield False, text[end : match.start()]
        yield True, match[0]
        end = match.end()
    if end < len(text):
        yield False, text[end:]


def _render(template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str]) -> str:
    # The environment that transformers renders templates in.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, ensure_ascii=False, **options
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=messages, add_generation_prompt=True, **tokens)
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template does not take this conversation: {error}") from error


def _refuse(message: str):
    raise jinja2.TemplateError(message)
