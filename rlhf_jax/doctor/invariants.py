"""What must hold whatever the parameters: of a model, and the rows of the doctor's table.

Every check is a function of numbers, or of functions that give numbers: it knows no model. It
returns a ``Finding``. Gaps between logits are shares of the logits' standard deviation, so that
one bound serves every model.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Logits = Callable[[np.ndarray, np.ndarray], Any]
"""(tokens [B T], mask [B T]) -> logits [B T V]."""


class Finding(NamedTuple):
    """A row of the table."""

    name: str
    measured: str
    bound: str
    passed: bool | None
    """None: it could not be measured."""
    advice: str
    """What to do when it fails, or why it could not be measured."""


def at_most(name: str, value: Any, bound: float | int, advice: str) -> Finding:
    """Not a number is over every bound."""
    return Finding(name, in_two_figures(value), f"≤ {bound:g}", bool(value <= bound), advice)


def share_at_most(name: str, count: int, total: int, bound: float | int, advice: str) -> Finding:
    """``count`` of ``total`` things; a share of nothing fails."""
    limit = f"≤ {percent(bound)}" if bound else "none"
    passed = total > 0 and count / total <= bound
    return Finding(name, count_with_share(count, total), limit, passed, advice)


def share_at_least(name: str, count: int, total: int, bound: float | int, advice: str) -> Finding:
    """A finding that passes if ``count`` is a share of at least ``bound`` of ``total``, over 0."""
    limit = f"≥ {percent(bound)}" if bound < 1 else "all"
    passed = total > 0 and count / total >= bound
    return Finding(name, count_with_share(count, total), limit, passed, advice)


def in_two_figures(value: Any) -> str:
    """A whole number as it is, another with two figures."""
    return str(value) if isinstance(value, int) else f"{value:.2g}"


def not_run(name: str, reason: str) -> Finding:
    """A finding that says why nothing was examined."""
    return Finding(name, "not run", "", None, reason)


def percent(part: float | int) -> str:
    """A share with two figures below 10 %, whole percents above."""
    return f"{100 * part:.2g} %" if part < 0.1 else f"{100 * part:.0f} %"


def count_with_share(count: int, total: int) -> str:
    """A count with its share: "3 of 40 (7.5 %)"."""
    return f"{count:,} of {total:,} ({percent(count / max(total, 1))})"


def largest_gap(first: Any, second: Any, mask: Bool[np.ndarray, "..."]) -> float:
    """max |first − second| over the entries (or rows of entries) where ``mask``; NaN if none."""
    gaps = np.abs(np.asarray(first, float)[mask] - np.asarray(second, float)[mask])
    return float(gaps.max()) if gaps.size else float("nan")


def relative_gap(first: Any, second: Any, mask: Bool[np.ndarray, "..."]) -> float:
    """``largest_gap`` as a share of the standard deviation of ``second``."""
    spread = np.asarray(second, float)[mask].std()
    return float(largest_gap(first, second, mask) / spread) if spread else float("nan")


# --- the model ------------------------------------------------------------------------------------


def parameters_are_finite(leaves: Mapping[str, np.ndarray]) -> Finding:
    """No parameter is infinite or not a number."""
    wrong = {name: int((~np.isfinite(leaf)).sum()) for name, leaf in leaves.items()}
    first = next((name for name, count in wrong.items() if count), "")
    return share_at_most(
        "parameters not finite",
        sum(wrong.values()),
        sum(leaf.size for leaf in leaves.values()),
        0,
        f"{first} is damaged: take an earlier checkpoint, and lower the learning rate",
    )


def padding_changes_nothing(
    logits_of: Logits,
    tokens: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    *,
    pad_id: int,
    columns: int,
    bound: float | int,
) -> Finding:
    """``columns`` more pads on the left leave the logits of every real token as they are."""
    wider = [(0, 0), (columns, 0)]
    padded = logits_of(np.pad(tokens, wider, constant_values=pad_id), np.pad(mask, wider))
    return at_most(
        "left padding changes no logit",
        relative_gap(np.asarray(padded)[:, columns:], logits_of(tokens, mask), mask),
        bound,
        "count positions over real tokens (positions_of) and keep pads out of the attention",
    )


def batch_changes_nothing(
    logits_of: Logits,
    tokens: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    *,
    rows: int,
    bound: float | int,
) -> Finding:
    """Each of the first ``rows`` rows has the same logits alone as in the batch."""
    alone = [logits_of(tokens[n : n + 1], mask[n : n + 1]) for n in range(rows)]
    together = np.asarray(logits_of(tokens, mask))[:rows]
    return at_most(
        "row alone = row in a batch",
        relative_gap(np.concatenate([np.asarray(row) for row in alone]), together, mask[:rows]),
        bound,
        "something mixes the rows of a batch: a statistic over axis 0, or a wrong reshape",
    )


def cache_changes_nothing(
    cached: Float[np.ndarray, "B R V"],
    uncached: Float[np.ndarray, "B R V"],
    mask: Bool[np.ndarray, "B R"],
    *,
    bound: float | int,
) -> Finding:
    """Decoding with the cache gives the logits of one forward pass over the same tokens."""
    return at_most(
        "cached logits = uncached",
        relative_gap(cached, uncached, mask),
        bound,
        "compare prefill and decode with logits: the slot written, its mask, its position",
    )


def half_precision_is_close(
    half: Float[np.ndarray, "B T V"],
    full: Float[np.ndarray, "B T V"],
    mask: Bool[np.ndarray, "B T"],
    *,
    bound: float | int,
) -> Finding:
    """The same parameters in bfloat16 products give nearly the same logits."""
    return at_most(
        "bfloat16 logits = float32",
        relative_gap(half, full, mask),
        bound,
        "stay at model.dtype=float32, or look for activations that have grown huge",
    )
