"""One readable script per stage and study; ``python -m experiments.NAME`` starts it."""

import sys


def one_line_for_ctrl_c(kind, error, trace) -> None:
    """Imports take seconds, before ``cli.main`` is there to say it."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped: Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = one_line_for_ctrl_c
