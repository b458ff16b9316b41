"""A trace of some training steps: what the devices do, and when they wait for Python."""

from pathlib import Path

import jax


class Profiler:
    """Records ``steps`` steps of this process into ``folder``; not the first, which compiles."""

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        self._done, self._recording = 0, False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def step_done(self) -> None:
        """Begin after the first step, end ``steps`` steps later."""
        self._done += 1
        if self._steps and self._done == 1:
            wait()
            jax.profiler.start_trace(self._folder)
            self._recording = True
        elif self._done == self._steps + 1:
            self._stop()

    def _stop(self) -> None:
        if self._recording:
            wait()
            jax.profiler.stop_trace()
            self._recording = False


def wait() -> None:
    """Until the devices have done what was asked of them, so that a trace holds whole steps."""
    jax.block_until_ready(jax.live_arrays())
