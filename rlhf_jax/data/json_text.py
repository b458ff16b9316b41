"""JSON as files hold it: an error says where it stands, and no key is lost in silence."""

import json
from typing import Any

from rlhf_jax.errors import InputError


def parse_json(text: str, where: str) -> Any:
    """The value that ``text`` is. Raises InputError, beginning with ``where``, if it is none."""
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except KeyError as error:
        raise InputError(f"{where}: the key {error} stands twice in one object") from None
    except json.JSONDecodeError as error:
        at = f"{where}, line {error.lineno}" if "\n" in text else where
        message = f"{at}: broken JSON at column {error.colno}: {error.msg}"
        raise InputError(message) from error
    except ValueError:  # of thousands of digits
        raise InputError(f"{where}: holds a number that is too long to read") from None
    except RecursionError as error:
        raise InputError(f"{where}: JSON is nested too deeply") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys, none of which overwrites another."""
    # Python keeps the last of two equal keys in silence: half of a row would be lost.
    members = dict(pairs)
    if len(members) < len(pairs):
        raise KeyError(next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n])))
    return members
