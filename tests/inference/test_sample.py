"""Talking to a checkpoint: lines, commands, Ctrl-C, and characters whose bytes come one by one."""

import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from rlhf_jax.config import SampleConfig
from rlhf_jax.data.chat import Message
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.inference.session import Session, answer_lines, obey, respond, stream_text

TOKENIZER = train_bpe([""], vocab_size=258)
"""A token is a byte."""
TEXT = "电影很好 🎬 é\n"
NAMES = "temperature, top-k, top-p, response-length, seed"


def bytes_of(text):
    return TOKENIZER.encode(text)


def session(*, chat=False, text=TEXT, **settings):
    made = SampleConfig(**settings)
    return Session(made, TOKENIZER, chat, lambda ids, number: bytes_of(text))


def other_settings(config):
    """As ``make_answer``: says what it was given."""
    return lambda ids, number: bytes_of(f"{config.sampling.temperature} {config.seed} {number}")


def test_a_character_appears_whole():
    pieces = list(stream_text(TOKENIZER, bytes_of(TEXT)))
    assert len(bytes_of(TEXT)) > len(TEXT) and pieces == list(TEXT)


@pytest.mark.parametrize("spoilt", [b"a\xff b", b"\xe7\x94", b"\xe7a\x94\x94", b"\x80" * 3 + b"ok"])
def test_bytes_of_no_character_hold_nothing_back(spoilt):
    """They are what ``decode`` makes of them, as soon as it is certain."""
    id_of = {TOKENIZER.decode_bytes([i]): i for i in range(TOKENIZER.vocab_size)}
    ids = [id_of[bytes([byte])] for byte in spoilt]
    pieces = list(stream_text(TOKENIZER, ids))
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert max(map(len, stream_text(TOKENIZER, [*ids, *bytes_of("x" * 9)]))) <= 2


def test_piped_lines_are_answered_one_by_one(capsys):
    answer_lines(session(text="yes"), [b"one\r\n", b"\n", "二\n".encode(), b"three"])
    assert capsys.readouterr().out == "yes\nyes\nyes\n"
    with pytest.raises(InputError, match="standard input, line 2: not UTF-8"):
        answer_lines(session(), io.BytesIO(b"one\n\xff\n"))


def test_commands(capsys):
    held = obey(session(text="yes"), "how?", other_settings)
    assert held.messages == (Message("user", "how?"), Message("assistant", "yes"))
    held = obey(held, "/again", other_settings)
    assert len(held.messages) == 2 and held.number == 2
    held = obey(held, "/set temperature 0.25", other_settings)
    held = obey(held, "/set seed 9", other_settings)
    held = obey(held, " /home is a path", other_settings)
    assert held.messages[-2:] == (
        Message("user", "/home is a path"),
        Message("assistant", "0.25 9 2"),
    )
    capsys.readouterr()
    assert obey(held, "/show", other_settings) == held
    shown = capsys.readouterr().out.split()
    assert shown[:2] == ["temperature", "0.25"] and shown[-2:] == ["seed", "9"]
    obey(held, "/help", other_settings)
    assert "/again" in capsys.readouterr().out
    assert obey(held, "/new", other_settings).messages == ()
    assert obey(session(chat=True), "/system be kind", other_settings).config.system == "be kind"


@pytest.mark.parametrize(
    "line, message",
    [
        ("/agian", "/agian is no command: /help, /new"),
        ("/again", "nothing was answered yet"),
        ("/system x", "without a chat template"),
        ("/set", f"/set : expected one of {NAMES}, and a value"),
        ("/set colour 3", f"/set colour 3: expected one of {NAMES}"),
        ("/set seed", "/set seed: expected"),
        ("/set temperature hot", "--sampling.temperature hot: expected a number, 0 or more"),
        ("/set top-p 0", "--sampling.top-p 0: expected a number"),
        ("/set response-length 1.5", "--response-length 1.5: expected a whole number"),
    ],
)
def test_a_wrong_command_is_a_sentence(line, message):
    with pytest.raises(InputError, match=message):
        obey(session(), line, other_settings)


def test_an_answer_is_no_order_to_the_terminal(capsys):
    held = respond(session(text="\x1b[2J\ta\r\x07\x9b"), "p")
    assert capsys.readouterr().out == "␛[2J\ta␍␇\ufffd\n"
    assert held.messages[-1].content == "\x1b[2J\ta\r\x07\x9b"
    respond(session(text=""), "p")
    assert capsys.readouterr().out == "(nothing: the model ended at once)\n"


STUB = """
import fcntl, signal, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C typed there is a signal to this process
sys.path[:0] = ["tests/inference", "tests/helpers"]
import test_sample
from rlhf_jax.inference.session import Session, converse
from rlhf_jax.config import SampleConfig

def make_answer(config):
    def answer(ids, number):
        for token in test_sample.bytes_of("好的" if number else "slow" * 99):
            time.sleep(0 if number else 0.05)
            yield token
    return answer

signal.signal(signal.SIGINT, signal.default_int_handler)
config = SampleConfig()
converse(Session(config, test_sample.TOKENIZER, False, make_answer(config)), make_answer)
"""


def wait_for_sleep(pid):
    """Until a process has waited for a tenth of a second, and not for a processor."""
    asleep, began = 0, time.monotonic()
    while asleep < 10:
        assert time.monotonic() - began < 120
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_ctrl_c_ends_an_answer_and_ctrl_d_the_session():
    """In a terminal, with a line of Chinese that is typed, corrected and recalled."""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", STUB],
        cwd=tiny.ROOT,
        env=tiny.process_environment(),
        start_new_session=True,
        **dict.fromkeys(("stdin", "stdout", "stderr"), its_end),
    )
    os.close(its_end)
    seen = b""

    def until(text):
        nonlocal seen
        began = time.monotonic()
        while text.encode() not in seen:
            assert time.monotonic() - began < 120, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 4096)
        before, _, seen = seen.partition(text.encode())
        return before.decode()

    def press(keys):
        os.write(terminal, keys.encode())

    banner = until("\n> ")
    assert "/help shows the commands" in banner
    press("电影院\x7f好\n")  # a backspace takes back a whole character
    until("slow")
    press("\x03")
    until("[stopped]")
    until("\n> ")
    press("\x1b[A\n")  # the line before
    assert "电影好" in until("\n好的")
    until("\n> ")
    press("half a line")
    until("half a line")
    wait_for_sleep(process.pid)  # for keys; a signal before that would wait for the next key
    press("\x03")
    until("(Ctrl-D or /quit leaves)")
    until("\n> ")
    press('"""one\ntwo"""\n')
    until("\n好的")
    until("\n> ")
    press("\x04")
    assert process.wait(60) == 0
    os.close(terminal)
