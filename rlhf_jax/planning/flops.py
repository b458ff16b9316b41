"""Operations of a program's matrix products, counted in what is traced, before any compiler."""

import math
from typing import Any

from jax.extend.core import jaxprs_in_params


def count_flops(jaxpr: Any) -> int:
    """2 · B · M · N · K of every product; a scan counts as often as it runs, a while loop once.

    What is recomputed in the backward pass counts again.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += dot_flops(equation)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            total += times * count_flops(inner)
    return total


def dot_flops(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
