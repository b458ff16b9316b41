"""What DP-SGD guarantees: ε at δ by Google's dp-accounting. Needs the extra ``privacy``.

Each step takes every example with probability q, independently (Poisson sampling), and releases
the noisy sum. Adding or removing one example then changes any outcome's probability by at most e^ε,
but for δ.
"""

from collections.abc import Callable

from rlhf_jax.errors import InputError

LEAST, MOST = 0.2, 1000.0
"""Noise multipliers that are considered."""
TAIL = 1e-12
"""Probability that a step draws more rows than a batch holds; what is over is left out, and the
steps' sum of this is added to δ."""


def accounting():
    """The package, or InputError with the way to install it."""
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ModuleNotFoundError as error:
        raise InputError("privacy.epsilon needs dp-accounting: pip install -e '.[privacy]'") from (
            error
        )
    return dp_accounting, pld.PLDAccountant, rdp.RdpAccountant


def event(noise_multiplier: float, *, rate: float, steps: int):
    dp = accounting()[0]
    one = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier))
    return dp.SelfComposedDpEvent(one, steps)


def epsilon_of(noise_multiplier: float, *, rate: float, steps: int, delta: float) -> float:
    """ε that ``steps`` steps with this noise have at δ, by the privacy loss distribution."""
    _, accountant, _ = accounting()
    found = accountant().compose(event(noise_multiplier, rate=rate, steps=steps))
    return float(found.get_epsilon(delta - steps * TAIL))


def renyi_bound(noise_multiplier: float, *, rate: float, steps: int, delta: float) -> float:
    """An ε that is surely enough, quickly computed (Mironov et al. 2019)."""
    _, _, accountant = accounting()
    found = accountant().compose(event(noise_multiplier, rate=rate, steps=steps))
    return float(found.get_epsilon(delta - steps * TAIL))


def noise_for(epsilon: float, *, rate: float, steps: int, delta: float) -> float:
    """A noise multiplier whose ε at δ is at most ``epsilon``, and at most 1 % more than needed.

    By bisection, as ε falls with the noise: first of the Rényi bound, which asks for a little too
    much, then of the exact ε below that. Raises InputError if no noise up to 1,000 is enough.
    """
    if steps * TAIL >= delta:
        raise InputError(f"privacy.delta={delta} is too small for {steps} steps")
    run = dict(rate=rate, steps=steps, delta=delta)
    if renyi_bound(MOST, **run) > epsilon:
        raise InputError(f"privacy.epsilon={epsilon} is out of reach at delta={delta}")
    enough = bisect(lambda noise: renyi_bound(noise, **run) <= epsilon, LEAST, MOST)
    return bisect(lambda noise: epsilon_of(noise, **run) <= epsilon, enough / 1.5, enough)


def bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """A number for which ``holds``, within 1 % of the least; it holds at ``high``."""
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
