"""A default that stands beside a config's own is the same one: neither is changed alone."""

import inspect

import pytest

from rlhf_jax.config import DPOConfig, KLConfig, PPOConfig
from rlhf_jax.config.site import ServeConfig
from rlhf_jax.feedback.web.app import create_app
from rlhf_jax.feedback.web.site import Site
from rlhf_jax.objectives.policy_losses import policy_loss, ppo_loss
from rlhf_jax.objectives.preference_losses import dpo_loss
from rlhf_jax.objectives.rewards import kl_penalised_rewards

SERVE = ServeConfig()
OTHER_NAMES = {"per_second": SERVE.requests_per_second, "lease_seconds": 60 * SERVE.lease_minutes}


@pytest.mark.parametrize(
    "function, config, shared",
    [
        (dpo_loss, DPOConfig(), {"loss", "label_smoothing", "per_token", "sft_coef"}),
        (policy_loss, PPOConfig(), {"ratio", "clip_eps_high", "dual_clip"}),
        (ppo_loss, PPOConfig(), {"ratio", "clip_eps_high", "dual_clip"}),
        (kl_penalised_rewards, KLConfig(), {"estimator"}),
        (Site, SERVE, {"url", "dialogue", "scrub", "proxies"}),
        (create_app, SERVE, {"host"}),
    ],
)
def test_without_options_it_is_what_a_config_has(function, config, shared):
    """A loss without options is its paper's, and so is a stage's by default."""
    parameters = inspect.signature(function).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    both = {name: value for name, value in defaults.items() if hasattr(config, name)}
    both.pop("guide", None)  # a file there, its contents here
    assert shared <= both.keys()
    assert both == {name: getattr(config, name) for name in both}


def test_defaults_of_other_names_and_units():
    parameters = inspect.signature(Site).parameters
    assert {name: parameters[name].default for name in OTHER_NAMES} == OTHER_NAMES
