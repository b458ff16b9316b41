"""Stopping a run politely: finish the step, save, exit."""

import os
import signal

import jax


class StopRequest:
    """SIGINT and SIGTERM set a flag that the loop reads; a second Ctrl-C stops at once.

        with StopRequest() as stop:
            for step in ...:
                ...
                if stop.requested:
                    save; break
        if stop.requested:
            raise SystemExit(stop.exit_code)

    SIGTERM is a scheduler taking the machine back: the run is saved, so the exit code is 0, or
    what this scheduler wants to see (``preempted_code``) to start the job again.
    Ctrl-C is a person: 130, as shells expect, so that a script of several stages stops too.
    With several processes JAX's runtime listens to SIGTERM itself, and this class to nothing.
    """

    def __init__(self, *, preempted_code: int = 0):
        self.requested = False
        self.exit_code = 0
        self.preempted_code = preempted_code

    def __enter__(self) -> "StopRequest":
        numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.exit_code = 130 if number == signal.SIGINT else self.preempted_code
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        again = " (again: stop at once)" if number == signal.SIGINT else ""
        # Not print: the handler may have interrupted a print that holds the stream's lock.
        os.write(2, f"\n{name}: finishing this step, then saving{again}\n".encode())
