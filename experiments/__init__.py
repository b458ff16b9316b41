"""One readable script per stage and study; ``python -m experiments.NAME`` starts it."""

import os
import signal
import sys


def leave(number, frame) -> None:
    """Ctrl-C during imports, which take seconds: one line, and no exception.

    Extension modules that are interrupted while they initialise crash, or call it something else.
    """
    os.write(2, b"\nstopped: Ctrl-C\n")
    os._exit(130)


# Only of a command, before its own module is known; ``cli.main`` takes over.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
