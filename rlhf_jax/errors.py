"""The two errors a user meets: bad input, and a run that must stop."""


class InputError(ValueError):
    """Bad input: one sentence naming the file, line or flag, what was found, what was expected."""


class RunError(RuntimeError):
    """A run that cannot go on (NaN loss, disk full, gate not met): what, where, what next."""


def check(condition: bool, message: str) -> None:
    """Raise ``InputError(message)`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)
