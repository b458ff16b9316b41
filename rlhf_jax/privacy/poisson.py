"""Batches as the privacy accountant assumes them: each row is in each batch with probability q."""

from typing import Any

import numpy as np
import scipy

from rlhf_jax.data.batches import Batches
from rlhf_jax.errors import InputError

ROWS = 8
"""Batches hold a multiple of this."""


class PoissonBatches:
    """An endless iterator of batches, filled up with empty rows to one of a few sizes; resumable.

    The rows of a batch follow from seed and step alone. A shuffled epoch, as ``Batches`` has, shows
    each row once: the usual ε of DP-SGD does not hold for it.

    Almost all draws are near their mean, but any number of rows may come, and none is left out:
    that would cost δ. So sizes are two standard deviations of a draw apart, and a batch has the
    least that holds it: a few programs are compiled, each when it first comes. Who can watch how
    long a step takes learns about how many rows it had; ε is of the model.
    """

    def __init__(self, batches: Batches, *, expected_rows: int, seed: int):
        self.data, self.report, self.rows = batches.data, batches.report, batches.rows
        self.seed = seed
        self._checksum = batches.get_state()["checksum"]
        if expected_rows > self.rows:
            raise InputError(f"batch_size={expected_rows} is over the {self.rows} examples")
        self.rate = expected_rows / self.rows
        # Of the number of rows that a step draws.
        spread = scipy.stats.binom(self.rows, self.rate).std()
        self.apart = ROWS * max(1, round(2 * spread / ROWS))
        self.step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each row is expected once."""
        return round(1 / self.rate)

    def __iter__(self) -> "PoissonBatches":
        return self

    def __next__(self) -> Any:
        # From seed and step alone: a resumed run draws what it would have drawn.
        rng = np.random.default_rng((self.seed, self.step))
        self.step += 1
        chosen = np.flatnonzero(rng.random(self.rows) < self.rate)
        size = self.apart * max(1, -(-len(chosen) // self.apart))
        # The row behind the last is the empty one, whose gradient is 0.
        index = np.append(chosen, np.full(size - len(chosen), self.rows))
        rows = (leaf[index] for leaf in self.data)
        return type(self.data)(*(x if x.dtype == bool else x.astype(np.int32) for x in rows))

    def get_state(self) -> dict:
        """Where the iterator stands, for JSON."""
        return {
            "step": self.step,
            "seed": self.seed,
            "rows": self.rows,
            "rate": self.rate,
            "checksum": self._checksum,
        }

    def set_state(self, state: dict) -> None:
        """Go on from ``state``. Raises InputError if it is of other data or another rate.

        So it does for a state without a checksum: versions that saved none held out other rows.
        """
        for name, value in self.get_state().items():
            if name != "step" and state.get(name) != value:
                raise InputError(
                    f"cannot resume the data: {name} was {state.get(name)} and is now {value}"
                )
        self.step = state["step"]
