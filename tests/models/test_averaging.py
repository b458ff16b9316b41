"""The average of several trees of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from precision import assert_same

from rlhf_jax.models.averaging import slerp, spherical_average, weighted_average


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


# --- on the sphere --------------------------------------------------------------------------------


def drawn(n, seed=0):
    """(start, n models that were trained from it): their task vectors differ in length."""
    rng = np.random.default_rng(seed)
    tree = lambda size: {"a": size * rng.normal(size=(3, 2)), "b": {"c": size * rng.normal(size=4)}}
    start = tree(5.0)
    add = lambda size: jax.tree.map(np.add, start, tree(size))
    return start, [add(0.1 * (m + 1)) for m in range(n)]


def on_device(trees):
    return jax.tree.map(jnp.asarray, trees)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.9])
def test_two_policies_are_merged_along_the_sphere_about_their_start(float64, share):
    start, models = drawn(2)
    start, models = on_device((start, models))
    found = spherical_average(start, iter(models), (1 - share, share))
    by_hand = lambda *x: reference.slerp(*map(np.asarray, x), share)
    jax.tree.map(assert_same, found.params, jax.tree.map(by_hand, start, *models))
    assert found.straight == 0


def test_further_models_come_in_one_after_the_other(float64):
    """Each with its share of what has come in so far: 1/M of the last, as in the paper."""
    start, models = drawn(3)
    found = spherical_average(*on_device((start, models)), (0.5, 0.3, 0.2))
    pair = jax.tree.map(lambda *x: reference.slerp(*x, 0.3 / 0.8), start, *models[:2])
    expected = jax.tree.map(lambda *x: reference.slerp(*x, 0.2), start, pair, models[2])
    jax.tree.map(assert_same, found.params, expected)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)])
def test_a_model_of_weight_one_is_the_result_to_the_bit(weights):
    start, models = jax.tree.map(jnp.float32, drawn(len(weights)))
    found = spherical_average(start, models, weights).params
    only = models[weights.index(1.0)]
    jax.tree.map(np.testing.assert_array_equal, found, only)


def test_task_vectors_at_right_angles_keep_their_length(float64):
    """Of the linear mean 1/√2 would be left: what WARP does it for."""
    start, e = jnp.full(2, 7.0), np.eye(2)
    mixed, line = slerp(start, start + e[0], start + e[1], share=0.5)
    assert_same(jnp.linalg.norm(mixed - start), np.float64(1))
    assert line == 0


@pytest.mark.parametrize(
    "second",
    [[0.0, 0.0], [2.0, 0.0], [-0.5, 0.0]],
    ids=["not trained", "the same way", "the opposite way"],
)
def test_without_an_angle_it_is_the_straight_line_and_that_is_counted(float64, second):
    """No 0/0, and no vector of any length in a direction that rounding has chosen."""
    start, first = jnp.asarray([3.0, -1.0]), jnp.asarray([1.0, 0.0])
    trees = {"w": start + first}, {"w": start + jnp.asarray(second)}
    found = spherical_average({"w": start}, trees, (0.75, 0.25))
    assert_same(found.params["w"], start + 0.75 * first + 0.25 * jnp.asarray(second))
    assert found.straight == 1


def test_a_small_angle_is_no_matter_of_rounding(float64):
    """Near 0 and π arccos of a product would know Ω to half of the digits."""
    for angle in (1e-6, np.pi - 1e-6):
        e = jnp.asarray([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
        mixed, line = slerp(jnp.zeros(2), e[0], e[1], share=0.5)
        half = np.array([np.cos(angle / 2), np.sin(angle / 2)])
        assert line == 0
        np.testing.assert_allclose(mixed, half, atol=1e-9)


def test_small_types_are_merged_in_float32_and_kept():
    start, models = drawn(2)
    small = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (start, models))
    found = spherical_average(small[0], small[1], (0.5, 0.5)).params
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), small)
    expected = jax.tree.map(lambda *x: reference.slerp(*x, 0.5), wide[0], *wide[1])
    for f, e in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert f.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(f), e, rtol=2.0**-8)
