"""The average of several trees of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.averaging import weighted_average


def test_each_parameter_is_the_weighted_sum_of_the_trees():
    rng = np.random.default_rng(0)
    trees = [{"a": rng.normal(size=(3, 2)), "b": {"c": rng.normal(size=4)}} for _ in range(3)]
    weights = (0.5, 0.7, -0.2)
    found = weighted_average(iter(jax.tree.map(jnp.float32, trees)), weights)
    expected = jax.tree.map(lambda *x: sum(w * y for w, y in zip(weights, x, strict=True)), *trees)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-6), found, expected)


def test_small_types_are_summed_in_float32_and_kept():
    """1 + 2⁻⁹ is no bfloat16: a sum in that type would lose each of the small ones."""
    trees = [{"w": jnp.array([x], jnp.bfloat16)} for x in (4.0, *[2.0**-7] * 4)]
    found = weighted_average(trees, [0.25] * 5)["w"]
    assert found.dtype == jnp.bfloat16 and float(found[0]) == 1.0 + 2.0**-7


def test_as_many_weights_as_trees():
    with pytest.raises(ValueError, match="zip"):
        weighted_average([{"w": jnp.ones(1)}] * 2, [1.0])
