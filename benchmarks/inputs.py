"""Inputs of a case, the same numbers on both sides (NumPy, fixed seeds)."""

import numpy as np

from benchmarks.cases import EOS, SHAPES, Case


def tokens(case: Case, rows: int, width: int, seed: int) -> np.ndarray:
    """Random ids [rows, width] without the end of text."""
    rng = np.random.default_rng(seed)
    return rng.integers(EOS + 1, SHAPES[case.shape].vocab_size, (rows, width)).astype(np.int32)


def prompts(case: Case) -> np.ndarray:
    """The prompts of a case."""
    return tokens(case, case.batch, case.prompt, seed=1)


def answers(case: Case) -> np.ndarray:
    """Fixed responses on which both sides must agree before any is sampled."""
    return tokens(case, case.batch, case.length, seed=2)


def rows(case: Case) -> np.ndarray:
    """Training rows [batch, length]; in reward modelling rows 2 i and 2 i + 1 are one pair."""
    return tokens(case, case.batch, case.length, seed=3)


def targets(case: Case, ids: np.ndarray) -> np.ndarray:
    """True on tokens with a loss: all but the first, in SFT the second half of a row."""
    column = np.arange(case.length)[None]
    counted = column >= (case.length // 2 if case.suite == "sft" else 1)
    return np.broadcast_to(counted, ids.shape)
