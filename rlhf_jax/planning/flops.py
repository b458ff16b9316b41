"""Operations of a program's matrix products, counted in what is traced, before any compiler."""

import math
from typing import Any

from jax.extend.core import jaxprs_in_params


def count_flops(jaxpr: Any) -> int:
    """2 · B · M · N · K of every product; a scan counts as often as it runs, a while loop once.

    What is recomputed in the backward pass counts again. Of the branches of a condition, which may
    be one for each platform, the costliest counts; a kernel counts as what it replaces there.
    """
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = [count_flops(inner) for inner in jaxprs_in_params(equation.params)]
        if name == "dot_general":
            total += dot_flops(equation)
        elif name == "cond":
            total += max(inner)
        elif name != "pallas_call":  # whose body is one block's
            total += (equation.params["length"] if name == "scan" else 1) * sum(inner)
    return total


def dot_flops(equation: Any) -> int:
    """2 · elements of the result · length of the contraction, of one dot_general."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
