"""Tokens in files: for their owner's eyes only, whole or not there at all."""

import os
import string
from pathlib import Path

from rlhf_jax.errors import InputError

SHORTEST = 16
"""Characters of a token. One that is made here has 43."""
LETTERS = frozenset(string.ascii_letters + string.digits + string.punctuation)


def check_token(token: str, where: str) -> str:
    """The token, if it can be one; ``where`` is the flag or file that a refusal names."""
    if len(token) < SHORTEST:
        raise InputError(f"{where}: found {len(token)} characters, expected at least {SHORTEST}")
    if not LETTERS.issuperset(token):
        raise InputError(f"{where}: expected letters, digits and punctuation of ASCII, no spaces")
    return token


def is_there(path: Path) -> bool:
    """Whether there is something of that name, be it a link to nothing."""
    return os.path.lexists(path)


def write_secret(path: Path, token: str) -> None:
    """A new file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def opener(name: str, flags: int) -> int:
        # "x" refuses what is there already, a link to somewhere else included.
        return os.open(name, flags, 0o600)

    with open(path, "x", opener=opener) as file:
        file.write(token)


def read_secret(path: Path) -> str:
    """The token in a file. Raises InputError if it holds none, or others can read it."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path}: it is a link to a file that is not there")
    if not path.is_file():
        raise InputError(f"{path}: expected a file with a token")
    if path.stat().st_mode & 0o077:
        raise InputError(
            f"{path}: others on this machine can read it: delete it and a new token is made, "
            f"or chmod 600 {path} to keep this one"
        )
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a token ({error})") from None
    if not token:
        raise InputError(f"{path}: it is empty: delete it and a new token is made")
    return check_token(token, str(path))
