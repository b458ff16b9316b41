"""The processes of ``experiments.feedback run``: started together, watched, and ended together.

Each has a process group of its own, so that Ctrl-C in the terminal reaches this one alone, which
ends the others and says of each how it ended, and with which command all go on.
"""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from rlhf_jax.cli import flags_for
from rlhf_jax.cli.subcommands import take_command
from rlhf_jax.config import (
    FeedbackAnswerConfig,
    FeedbackServeConfig,
    FeedbackSimulateConfig,
    FeedbackUpdateConfig,
)
from rlhf_jax.errors import RunError

PATIENCE = 300.0
"""Seconds that the processes get to end by themselves: a step of training and its save."""
POLL_SECONDS = 0.5

Processes = dict[str, subprocess.Popen]


def run_together(commands: Sequence[str], *, forever: bool, open_site: str) -> None:
    """Run these commands until the last of them ends, or until Ctrl-C or a signal.

    With ``forever`` the others stay when the last has ended. ``open_site`` is the command that
    opens the site again.
    """
    end_on_signals()
    processes: Processes = {}
    try:
        try:
            for command in commands:
                processes[command] = start(command)
            watch(processes, last=commands[-1])
            if forever:
                tell(f"the rounds are done; the site stays open until Ctrl-C (later: {open_site})")
                watch(processes, last="")
        except KeyboardInterrupt:
            tell("Ctrl-C: stopping; training finishes its step and saves (again: at once)")
            raise SystemExit(130) from None
        tell(f"the rounds are done; the site opens again with: {open_site}")
    except SystemExit:
        end_all(processes)
        tell(f"to go on: python -m experiments.feedback {shlex.join(sys.argv[1:])}")
        raise
    finally:
        end_all(processes)


def watch(processes: Processes, *, last: str) -> None:
    """Until ``last`` has ended. Raises RunError when one has failed, or another ends before."""
    while True:
        for command, process in processes.items():
            status = process.poll()
            if status:
                raise RunError(f"{command} ended with status {status}; what it said is above")
            if status == 0 and command == last:
                return
        time.sleep(POLL_SECONDS)


def start(command: str) -> subprocess.Popen:
    """Start one of the processes, in a group of its own."""
    return subprocess.Popen(program(command), stdin=subprocess.DEVNULL, process_group=0)


PARTS = {
    "serve": FeedbackServeConfig,
    "answer": FeedbackAnswerConfig,
    "simulate": FeedbackSimulateConfig,
    "update": FeedbackUpdateConfig,
}
"""What ``run`` is made of."""


def program(command: str) -> list[str]:
    """This program with another command, and those of its flags that this one takes."""
    _, flags = take_command(sys.argv[1:], ["run"])
    taken = flags_for(PARTS[command], flags)
    return [sys.executable, "-m", "experiments.feedback", command, *taken]


def end_all(processes: Processes) -> None:
    """Ask all to end, and say of each how it did. Ctrl-C does not wait any longer.

    A stage that trains finishes its step and saves; what does something else ends at once.
    """
    running = dict(processes)
    processes.clear()
    for process in running.values():
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    with suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
        for process in running.values():
            process.wait(max(0.0, deadline - time.monotonic()))
    for command, process in running.items():
        if process.poll() is None:
            process.kill()
            process.wait()
        tell(f"{command}: {how_it_ended(process.returncode)}")


def how_it_ended(status: int) -> str:
    """What became of a process, by its status."""
    if status in (0, -signal.SIGTERM):
        return "ended"
    if status == -signal.SIGKILL:
        return "killed; it goes on from what it had saved"
    return f"ended with status {status}"


def tell(text: str) -> None:
    """One line in the terminal."""
    with suppress(OSError):  # the terminal may be gone
        print(f"feedback: {text}", file=sys.stderr, flush=True)


def end_on_signals() -> None:
    """After SIGTERM, or when the terminal is closed, the others are ended too; the status is 0."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, lambda *_: sys.exit(0))
