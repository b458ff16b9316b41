"""No expression of the project takes more than linear time, whatever it is given."""

import ast
import re
import time

import patterns
import pytest

SHAPES = 10
TIMES = 8
"""How many times as long the longer text is."""
LONGEST_RATIO = 22
"""Of the processor's time for the longer text to that for the shorter: 8 where the time is linear,
64 where it grows with the square. Other work changes either by less than the 2.75 times between."""
ENOUGH = 200_000
"""Nanoseconds of the shorter, so that the clock and calls do not count."""
MOST = 1 << 17


def nanoseconds(pattern: patterns.Pattern, text: str, repeats: int) -> int:
    """The processor's time, the quickest of several."""
    times = []
    for _ in range(repeats):
        before = time.thread_time_ns()
        pattern.run(text)
        times.append(time.thread_time_ns() - before)
    return min(times)


def ratio(pattern: patterns.Pattern, unit: str) -> float:
    """How much longer ``TIMES`` the text takes, followed by what may not fit."""
    text = lambda count: unit * (count // len(unit)) + "\x00"
    count = 1 << 10
    while count < MOST and nanoseconds(pattern, text(count), 1) < ENOUGH:
        count *= 2
    for repeats in (2, 4, 8):  # other processes disturb
        short = nanoseconds(pattern, text(count), repeats)
        found = nanoseconds(pattern, text(TIMES * count), repeats) / max(short, ENOUGH // 2)
        if found <= LONGEST_RATIO:
            break
    return found


BUILT = {
    "rlhf_jax.config.model: targets": "an operator's own expression",
    "rlhf_jax.data.chat: '|'.join(map(re.escape, longest_first)) or '(?!)'": "words",
    "rlhf_jax.models.lora: config.targets": "an operator's own expression",
    "rlhf_jax.interop.peft: f'(.*\\\\.)?({pattern})$'": "a file's expression, on names of kernels",
    "rlhf_jax.text.personal_data: f\"{BEFORE}(?:{'|'.join(forms)}){AFTER}\"": "in the rules",
    "rlhf_jax.tasks.arithmetic: form": "in FORM_READERS and WORDING_READERS",
    "rlhf_jax.tasks.constraints: re.escape(keyword)": "a word",
    "rlhf_jax.tasks.constraints: forms.get(marker, re.escape(marker))": "a word",
    "rlhf_jax.tasks.constraints: f'\\\\s?{re.escape(section_spliter)}\\\\s?\\\\d+\\\\s?'": "a word",
    "rlhf_jax.tasks.constraints: word": "a word",
    "rlhf_jax.text.language_detection: f'[{span}]'": "a set of characters",
    "rlhf_jax.tasks.safety_sets: whole.format('|'.join(words))": "words",
    "rlhf_jax.training.sharding: f'(.*/)?{pattern}'": "in PATTERNS",
}
"""Expressions that are built when they are used, and why they are no others than those here."""


SLOW = [
    pytest.param(module, marks=() if module.endswith("personal_data") else pytest.mark.slow)
    for module in patterns.modules()
]


@pytest.mark.parametrize("module", SLOW)
def test_the_time_is_linear_in_the_text(module):
    found, built = patterns.patterns(module)
    for pattern in {(each.compiled, each.method): each for each in found}.values():
        for unit in patterns.shapes(pattern.compiled, SHAPES):
            times = ratio(pattern, unit)
            assert times <= LONGEST_RATIO, (pattern.where, pattern.compiled.pattern, unit, times)
    known = [each.removeprefix(f"{module}: ") for each in BUILT if each.startswith(f"{module}: ")]
    # Written anew, as Pythons do not agree on the quotes of an f-string.
    assert set(built) == {f"{module}: {ast.unparse(ast.parse(each))}" for each in known}


@pytest.mark.slow
@pytest.mark.parametrize("slow", [r"[\w.+-]+@", r"<!--.*?-->", r"\s+$", r"\[.*?\]"])
def test_the_test_sees_what_is_slow(slow):
    pattern = patterns.Pattern("here", re.compile(slow), "search")
    found = max(ratio(pattern, unit) for unit in patterns.shapes(pattern.compiled, SHAPES))
    assert found > LONGEST_RATIO
