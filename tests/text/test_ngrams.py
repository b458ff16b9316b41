"""The byte n-gram model: against counting by hand, normalised, and better with more context."""

from collections import Counter

import numpy as np
import pytest

from rlhf_jax.text.ngrams import train_ngrams

TEXTS = ["abracadabra", "abba cadabra", "banana", "猫在桌子上", ""]


def slow_probability(texts, history: bytes, byte: int, order: int) -> float:
    """Witten-Bell by its formula, one byte at a time."""
    p = 1 / 256
    for n in range(1, order + 1):
        if n - 1 > len(history):
            break
        h = history[len(history) - (n - 1) :]
        after = Counter()
        for text in texts:
            data = text.encode()
            for i in range(len(data) - n + 1):
                if data[i : i + n - 1] == h:
                    after[data[i + n - 1]] += 1
        if after:
            total, kinds = sum(after.values()), len(after)
            p = (after[byte] + kinds * p) / (total + kinds)
    return p


@pytest.mark.parametrize("order", [1, 3, 5])
def test_equals_the_formula(order):
    model = train_ngrams(TEXTS, order=order)
    for text, context in (("cabana", ""), ("dabra!", "abraca"), ("桌子", "猫"), ("zz", "qq")):
        bits, length = model.bits(text, context)
        data, start = (context + text).encode(), len(context.encode())
        slow = [
            -np.log2(slow_probability(TEXTS, data[:i], data[i], order))
            for i in range(start, len(data))
        ]
        assert length == len(text.encode())
        assert bits == pytest.approx(sum(slow), rel=1e-9)


def test_probabilities_sum_to_one():
    for history in ("abra", "", "xyz", "cad"):
        total = sum(slow_probability(TEXTS, history.encode(), b, 4) for b in range(256))
        assert total == pytest.approx(1)


def test_no_ngram_crosses_two_texts():
    apart, joined = train_ngrams(["ab", "cd"], order=2), train_ngrams(["abcd"], order=2)
    assert apart.bits("c", "b")[0] > joined.bits("c", "b")[0]


def test_context_and_training_help():
    text = "the cat sat on the mat and the dog sat on the log " * 20
    known, other = train_ngrams([text], order=5), train_ngrams(["zxq" * 300], order=5)
    assert known.bits("sat on", "the cat ")[0] < other.bits("sat on", "the cat ")[0]
    unigram = train_ngrams([text], order=1).bits("sat on", "the cat ")[0]
    assert known.bits("sat on", "the cat ")[0] < unigram / 3
    assert known.bits("") == (0.0, 0)
