"""How a layer scores keys: the arguments that every way of computing attention takes."""

from typing import NamedTuple


class Scoring(NamedTuple):
    """How a layer scores the keys that a query may read."""

    width: int = 0
    """q · k / √width; 0: the width of a head."""
    cap: float = 0.0
    """A score x is c tanh(x / c) instead (Gemma 2); 0: as it is."""
    window: int = 0
    """Keys that a query sees, itself the last of them; 0: all."""


ALL_KEYS = Scoring()
"""q · k / √Dh of every key up to the query itself."""
