"""DPO and its kin against loops, and what their metrics say of where the probability went."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from precision import SAME

from rlhf_jax.objectives.preference_losses import count_ranked, dpo_loss, pair_loss

pytestmark = pytest.mark.usefixtures("module_in_float64")
RANKS = np.array([[0, 1, 2], [1, 1, 0], [0, 1, -1], [0, 0, 0], [-1, -1, -1], [0, 0, 1]], np.int32)
LENGTHS = np.array([[3, 1, 7], [2, 2, 9], [5, 4, 0], [1, 2, 3], [0, 0, 0], [6, 8, 1]], np.int32)


def draw():
    """Log-probs of policy and reference, which are 0 of absent responses as masked sums are."""
    drawn = np.random.default_rng(16).normal(-9, 3, (2, *RANKS.shape))
    return [jnp.array(np.where(RANKS >= 0, x, 0.0)) for x in drawn]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=SAME, atol=SAME)


@pytest.mark.parametrize(
    "loss, beta, label_smoothing, per_token, sft_coef",
    [
        ("sigmoid", 0.3, 0.0, False, 0.0),
        ("sigmoid", 0.3, 0.2, False, 0.5),
        ("sigmoid", 2.0, 0.0, True, 0.0),
        ("robust", 0.3, 0.2, False, 0.0),
        ("ipo", 0.3, 0.0, False, 0.0),
        ("ipo", 0.3, 0.0, True, 1.0),
        ("hinge", 0.3, 0.0, False, 0.0),
    ],
)
@pytest.mark.cases(3)
def test_values_and_gradients_pair_by_pair(loss, beta, label_smoothing, per_token, sft_coef):
    """Bug 33, and mean for sum, a wrong target of IPO, robust without its division."""
    logprobs, ref_logprobs = draw()
    objective = partial(
        dpo_loss,
        beta=beta,
        loss=loss,
        label_smoothing=label_smoothing,
        per_token=per_token,
        sft_coef=sft_coef,
    )
    given = ref_logprobs, jnp.array(RANKS), jnp.array(LENGTHS)
    (found, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(logprobs, *given)
    total, expected = reference.dpo(
        *map(np.asarray, (logprobs, ref_logprobs, RANKS, LENGTHS)),
        loss=loss,
        beta=beta,
        epsilon=label_smoothing,
        per_token=per_token,
        sft=sft_coef,
    )
    close([found, metrics["loss"]], total)
    close(gradient, expected)

    # Parts of a batch are shares that add up, of every metric too
    parts = [
        objective(*(x[s] for x in (logprobs, *given)), count=count_ranked(given[1]))[1]
        for s in (slice(0, 2), slice(2, 6))
    ]
    for name, value in metrics.items():
        close(parts[0][name] + parts[1][name], value)


def test_dpo_of_the_reference_itself():
    """Bug 33: ln 2, and ∓β/2 on the log-probs, whatever they are."""
    logprobs, ranks = jnp.array([[-3.0, -80.0]]), jnp.array([[0, 1]])
    loss = lambda x: dpo_loss(x, logprobs, ranks, beta=0.1)[0]
    close(loss(logprobs), np.log(2))
    close(jax.grad(loss)(logprobs), [[-0.05, 0.05]])


def test_robust_is_unbiased_and_conservative_is_not():
    """Over labels of which ε are flipped, its mean is the loss of the true ones."""
    margin, epsilon = jnp.linspace(-3, 3, 7), 0.2
    loss = partial(pair_loss, beta=1.0, label_smoothing=epsilon)
    noisy = lambda name: (
        (1 - epsilon) * loss(margin, loss=name) + epsilon * loss(-margin, loss=name)
    )
    true = pair_loss(margin, loss="sigmoid", beta=1.0, label_smoothing=0.0)
    close(noisy("robust"), true)
    assert float(jnp.abs(noisy("sigmoid") - true).max()) > 0.1


def test_ipo_is_least_where_log_ratios_differ_by_1_over_2_beta():
    logprobs = jnp.array([[-4.0, -9.0]])
    away = lambda x: dpo_loss(x, logprobs, jnp.array([[0, 1]]), beta=0.1, loss="ipo")[0]
    at_target = logprobs + jnp.array([[2.0, -3.0]])  # 5 nats
    close(away(at_target), 0.0)
    close(jax.grad(away)(at_target), [[0.0, 0.0]])


def test_metrics_tell_where_the_probability_went():
    """Both answers grow less likely while the margin grows: likelihood displacement."""
    logprobs = jnp.log(jnp.array([[0.10, 0.05, 0.0001], [0.2, 0.1, 0.7]]))
    ref_logprobs = jnp.log(jnp.array([[0.20, 0.40, 0.1], [0.2, 0.1, 0.7]]))
    ranks = jnp.array([[0, 1, 2], [0, 0, 0]])  # the second query has no pair
    _, metrics = dpo_loss(logprobs, ref_logprobs, ranks, beta=1.0)
    log = np.log
    # Pairs (0, 1), (0, 2), (1, 2)
    chosen, rejected = (2 * log(0.10) + log(0.05)) / 3, (log(0.05) + 2 * log(0.0001)) / 3
    ref_chosen, ref_rejected = (2 * log(0.2) + log(0.4)) / 3, (log(0.4) + 2 * log(0.1)) / 3
    close(metrics["logprob_chosen"], chosen)
    close(metrics["logprob_rejected"], rejected)
    close(metrics["ref_logprob_chosen"], ref_chosen)
    close(metrics["ref_logprob_rejected"], ref_rejected)
    close(metrics["change_chosen"], chosen - ref_chosen)
    close(metrics["change_rejected"], rejected - ref_rejected)
    close(metrics["change_either"], log(0.1501 / 0.7))
    close(metrics["margin"], chosen - ref_chosen - rejected + ref_rejected)
    assert metrics["margin"] > 0 > metrics["change_chosen"]
