"""No expression of the project takes more than linear time, whatever it is given."""

import time

import patterns
import pytest

SHAPES = 10
LONGEST_RATIO = 2.5
"""Of the time for a text to that for its half; 4 where the time grows with the square."""
ENOUGH = 400_000
"""Nanoseconds of the half, so that the clock and calls do not count."""
MOST = 1 << 20


def nanoseconds(pattern: patterns.Pattern, text: str, repeats: int) -> int:
    """The processor's time, the quickest of several."""
    times = []
    for _ in range(repeats):
        before = time.thread_time_ns()
        pattern.run(text)
        times.append(time.thread_time_ns() - before)
    return min(times)


def ratio(pattern: patterns.Pattern, unit: str) -> float:
    """How much longer twice the text takes, followed by what may not fit."""
    text = lambda count: unit * (count // len(unit)) + "\x00"
    count = 1 << 11
    while count < MOST and nanoseconds(pattern, text(count), 1) < ENOUGH:
        count *= 2
    for repeats in (2, 4, 8, 16):  # other processes disturb
        half = nanoseconds(pattern, text(count), repeats)
        found = nanoseconds(pattern, text(2 * count), repeats) / half
        if found <= LONGEST_RATIO:
            break
    return found


def of_patterns(names):
    found, _ = patterns.patterns(names)
    return [pytest.param(each, id=each.where) for each in found]
