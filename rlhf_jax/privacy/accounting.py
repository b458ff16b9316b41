"""What DP-SGD guarantees: ε at δ by Google's dp-accounting. Needs the extra ``privacy``.

Each step takes every example with probability q, independently (Poisson sampling), and releases
the noisy sum. Adding or removing one example then changes any outcome's probability by at most e^ε,
but for δ.
"""

from functools import lru_cache

from rlhf_jax.errors import InputError

LEAST, MOST = 0.2, 1000.0
"""Noise multipliers that are considered."""
PRECISION = 1.01
"""Noise is found up to this factor."""
INTERVAL, COARSE = 1e-4, 1e-3
"""Grids of privacy losses: the package's own, and one on which ε takes a tenth of the time and is a
little too high (nothing at 8, 1.4 % at 0.3)."""


def accounting():
    """The package, or InputError with the way to install it."""
    try:
        import dp_accounting
        from dp_accounting import pld
    except ModuleNotFoundError as error:
        raise InputError("privacy.epsilon needs dp-accounting: pip install -e '.[privacy]'") from (
            error
        )
    return dp_accounting, pld.PLDAccountant


def event(noise_multiplier: float, *, rate: float, steps: int):
    """What DP-SGD did, in the accountant's terms: ``steps`` Gaussian sums over Poisson samples."""
    dp, _ = accounting()
    # Noise is in units of the clip norm, so the norm itself does not matter here.
    one = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier))
    return dp.SelfComposedDpEvent(one, steps)


@lru_cache
def epsilon_of(
    noise_multiplier: float, *, rate: float, steps: int, delta: float, interval: float = INTERVAL
) -> float:
    """ε that ``steps`` steps with this noise have at δ, by the privacy loss distribution."""
    _, accountant = accounting()
    found = accountant(value_discretization_interval=interval)
    found.compose(event(noise_multiplier, rate=rate, steps=steps))
    return float(found.get_epsilon(delta))


def noise_for(epsilon: float, *, rate: float, steps: int, delta: float) -> float:
    """A noise multiplier whose ε at δ is at most ``epsilon``, and at most 1 % more than needed.

    ε falls with the noise: bisection on the coarse grid, which asks for a little too much, then
    down as far as the fine one allows. Raises InputError if no noise up to 1,000 is enough.
    """
    run = dict(rate=rate, steps=steps, delta=delta)
    # Asked first, as bisection needs one end that holds.
    if epsilon_of(MOST, **run) > epsilon:
        raise InputError(f"privacy.epsilon={epsilon} is out of reach at delta={delta}")
    low, enough = LEAST, MOST
    while enough / low > PRECISION:
        # In the logarithm: what counts is the factor between the ends.
        middle = (low * enough) ** 0.5
        holds = epsilon_of(middle, **run, interval=COARSE) <= epsilon
        low, enough = (low, middle) if holds else (middle, enough)
    while enough / PRECISION > LEAST and epsilon_of(enough / PRECISION, **run) <= epsilon:
        enough /= PRECISION
    return enough
