"""What is typed to a model, or piped to it: prompts, commands, and answers as they grow.

Lines are edited and recalled as in a shell (readline, where Python has it); the history is that of
the session and written nowhere. Ctrl-C ends an answer, not the session; Ctrl-D leaves.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from rlhf_jax.cli import with_flags
from rlhf_jax.config import SampleConfig
from rlhf_jax.config.effect import value_of
from rlhf_jax.data.chat import Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError, check

HELP = '''\
/help             this
/new              forget the conversation
/again            answer the last prompt anew
/system TEXT      begin anew with this system message; without a text, with none
/set NAME VALUE   change a setting: temperature, top-k, top-p, response-length, seed
/show             the settings
/quit or Ctrl-D   leave
Ctrl-C ends an answer. """ begins a prompt of several lines, and ends it.
A prompt that begins with a slash is typed with a space before it.'''
COMMANDS = ("/help", "/new", "/again", "/system", "/set", "/show", "/quit")
SETTINGS = ("sampling.temperature", "sampling.top-k", "sampling.top-p", "response-length", "seed")
MANY_LINES = '"""'
VISIBLE = {n: 0x2400 + n for n in range(32) if chr(n) not in "\n\t"} | {127: 0x2421}
VISIBLE |= {n: 0xFFFD for n in range(128, 160)}
"""Control characters would be orders to the terminal: their pictures are shown instead."""


class Session(NamedTuple):
    """A conversation and how it is held."""

    config: SampleConfig
    tokenizer: Tokenizer
    chat: bool
    """Whether the model is spoken to through its template."""
    answer: Callable[[list[int], int], Iterable[int]]
    """(ids of the prompt, its number) → ids of the answer, one by one."""
    messages: tuple[Message, ...] = ()
    """Since the system message."""
    number: int = 0
    """Of prompts answered so far: each has random numbers of its own."""

    def ids(self, messages: tuple[Message, ...]) -> list[int]:
        """What the model reads: the conversation, or the last message alone."""
        if not self.chat:
            return self.tokenizer.encode_beginning(messages[-1].content)
        system = (Message("system", self.config.system),) if self.config.system else ()
        return self.tokenizer.encode_chat((*system, *messages))

    def respond(self, prompt: str, write: Callable[[str], Any]) -> "Session":
        """The session after an answer, which is written as it is sampled.

        Ctrl-C ends the answer; as far as it came it stays in the conversation.
        """
        messages = (*self.messages, Message("user", prompt))
        text = ""
        try:
            ids = self.ids(messages)
            answer = self.answer(ids, self.number)
            for piece in stream_text(self.tokenizer, answer, before=ids[-1] if ids else None):
                text += piece
                write(piece)
        except KeyboardInterrupt:
            write(" [stopped]")
        messages = (*messages, Message("assistant", text))
        return self._replace(messages=messages, number=self.number + 1)


def stream_text(
    tokenizer: Tokenizer, ids: Iterable[int], *, before: int | None = None
) -> Iterator[str]:
    """Text as it grows: a character appears when its last byte is there, never a part of it.

    Bytes that belong to no character are U+FFFD, as in ``tokenizer.decode_answer``; ``before`` is
    the last id of the prompt, if it has any.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    space = tokenizer.space_behind(tokenizer.pad_id if before is None else before)
    for token in ids:
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            # Only what comes first can be the space that stands for a beginning.
            text, space = text.removeprefix(space), ""
            if text:
                yield text
    if text := decoder.decode(b"", final=True):
        yield text


# --- lines that are piped -------------------------------------------------------------------------


def answer_lines(session: Session, lines: Iterable[bytes]) -> None:
    """Answer each line by itself; the answers alone are printed. Empty lines are passed over."""
    for number, line in enumerate(lines, start=1):
        try:
            prompt = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input, line {number}: not UTF-8 ({error.reason})") from None
        if prompt.strip():
            session = session.respond(prompt, write)._replace(messages=())
            write("\n")


def write(text: str) -> None:
    """Print at once, without a line feed: the answer grows."""
    print(text, end="", flush=True)


# --- lines that are typed -------------------------------------------------------------------------


def converse(session: Session, make_answer: Callable[[SampleConfig], Any]) -> None:
    """Answer what is typed until Ctrl-D or /quit; ``make_answer`` serves other settings."""
    edit_lines()
    how = "one conversation" if session.chat else "no chat template: each prompt by itself"
    print(f"{session.config.init} ({how}). /help shows the commands, Ctrl-D leaves.")
    while (line := read_prompt()) is not None:
        if not line.strip():
            continue
        if line.split()[0] in ("/quit", "/exit"):
            return
        try:
            session = obey(session, line, make_answer)
        except InputError as error:
            print(f"error: {error}")


def obey(session: Session, line: str, make_answer: Callable[[SampleConfig], Any]) -> Session:
    """The session after a command or a prompt. Raises InputError for a command that is none."""
    if not line.startswith("/"):
        return respond(session, line.removeprefix(" ") if line.startswith(" /") else line)
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/again":
        check(bool(session.messages), "/again: nothing was answered yet")
        *before, prompt, _ = session.messages
        # The count of prompts goes on: the same number would draw the same answer.
        return respond(session._replace(messages=tuple(before)), prompt.content)
    if command in ("/set", "/system"):
        session = change(session, command, rest, make_answer)
    elif command == "/new":
        session = session._replace(messages=())
        print("The conversation begins anew.")
    elif command in ("/show", "/help"):
        print(HELP if command == "/help" else list_settings(session))
    else:
        raise InputError(f"{command} is no command: {', '.join(COMMANDS)} are")
    return session


def respond(session: Session, prompt: str) -> Session:
    """An answer in the terminal, where it cannot be an order to it."""
    session = session.respond(prompt, lambda text: write(text.translate(VISIBLE)))
    print("" if session.messages[-1].content else "(nothing: the model ended at once)")
    return session


def change(
    session: Session, command: str, rest: str, make_answer: Callable[[SampleConfig], Any]
) -> Session:
    """The session with another setting, which may be what its flag may be, or system message.

    Raises InputError for another name or value.
    """
    if command == "/system":
        check(session.chat, "/system: this model is spoken to without a chat template")
        print("The conversation begins anew.")
        return session._replace(config=replace(session.config, system=rest), messages=())
    name, _, value = rest.partition(" ")
    flags = [flag for flag in SETTINGS if name in (flag, flag.rpartition(".")[2])]
    known = ", ".join(flag.rpartition(".")[2] for flag in SETTINGS)
    check(
        len(flags) == 1 and value != "",
        f"/set {rest}: expected one of {known}, and a value",
    )
    config = with_flags(session.config, [f"--{flags[0]}", value.strip()])
    return session._replace(config=config, answer=make_answer(config))


def list_settings(session: Session) -> str:
    """Every setting as it is now."""
    values = {flag: value_of(session.config, flag.replace("-", "_")) for flag in SETTINGS}
    lines = [f"{flag.rpartition('.')[2]:17} {value}" for flag, value in values.items()]
    if session.chat:
        lines.append(f"{'system':17} {session.config.system or '(none)'}")
        lines.append(f"{'messages':17} {len(session.messages)}")
    return "\n".join(lines)


def read_prompt() -> str | None:
    """What is typed next; None at the end of input. Ctrl-C takes back the line."""
    try:
        line = input("> ")
        if not line.startswith(MANY_LINES):
            return line
        lines = [line.removeprefix(MANY_LINES)]
        while not lines[-1].rstrip().endswith(MANY_LINES):
            lines.append(input("... "))
        return "\n".join(lines).rstrip().removesuffix(MANY_LINES).strip("\n")
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print("\n(Ctrl-D or /quit leaves)")
    except UnicodeDecodeError:
        print("error: that was not UTF-8; the terminal's encoding must be")
    return ""


def edit_lines() -> None:
    """Editing and history of ``input``, and Tab for commands, where Python was built with them."""
    with suppress(ImportError):
        import readline

        def found(text: str, n: int) -> str | None:
            return [*(command for command in COMMANDS if command.startswith(text)), None][n]

        readline.set_completer_delims(" \n")
        readline.set_completer(found)
        readline.parse_and_bind("tab: complete")
