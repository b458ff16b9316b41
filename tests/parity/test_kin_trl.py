"""PPO's kin against TRL 1.16's GRPO and RLOO: advantages, losses, and gradients of log-probs."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.torch_bridge import ragged
from rlhf_jax.objectives.advantages import grpo, rloo
from rlhf_jax.objectives.policy_losses import kl_loss, policy_loss, token_weights

TRL = Path(sys.prefix) / "trl-1.16.0"
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not TRL.is_dir(), reason="needs TRL 1.16.0 beside 1.12.0: make test-torch"),
]
B, K, R, BETA = 6, 3, 9, 0.3
MASK = ragged((9, 1, 4, 7, 9, 2), R)
GROUPED = {
    "rloo": partial(rloo, group_size=K),
    "grpo": partial(grpo, group_size=K, scale="std"),
    "dr_grpo": partial(grpo, group_size=K, scale="none"),
}
KIN = {
    "GRPO": (dict(beta=BETA), dict(how="sequence_mean", beta=BETA)),
    "bnpo": (dict(loss_type="bnpo", beta=BETA), dict(how="token_mean", beta=BETA)),
    "Dr. GRPO": (dict(loss_type="dr_grpo"), dict(how="constant_length")),
    "DAPO": (
        dict(loss_type="dapo", epsilon_high=0.28),
        dict(how="token_mean", clip_eps_high=0.28),
    ),
    "dual clip": (dict(delta=1.5), dict(how="sequence_mean", dual_clip=1.5)),
    "GSPO": (
        dict(importance_sampling_level="sequence", beta=BETA),
        dict(how="sequence_mean", ratio="sequence", beta=BETA),
    ),
    # TRL bounds the ratio by ε_high itself, MiniMax 2025 (eq. 5) by 1 + ε_high, as clips are.
    "CISPO": (
        dict(loss_type="cispo", epsilon_high=1.4),
        dict(how="token_mean", kind="cispo", clip_eps_high=0.4),
    ),
}
"""Settings of TRL's trainer, and arguments of ``our_loss``."""


def draw():
    """Log-probs far enough apart for every bound to act, and 1e3 under the mask."""
    rng = np.random.default_rng(0)
    junk = lambda x: np.where(MASK, x, 1e3)
    old = -rng.exponential(2.0, (B, R))
    returns = rng.normal(size=(B // K, K))
    near = lambda width: junk(old + width * rng.normal(size=(B, R)))
    new, ref = near(0.4), near(0.5)
    return dict(new=new, old=junk(old), ref=ref, advantages=rng.normal(size=B), returns=returns)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kin")
    # TRL multiplies by the mask, and so must be given numbers there.
    at_zero = {
        name: x if x.shape[1:] != (R,) else np.where(MASK, x, 0) for name, x in draw().items()
    }
    np.savez(folder / "in.npz", **at_zero, mask=MASK)
    cases = {name: settings for name, (settings, _) in KIN.items()} | {"RLOO": dict(trainer="rloo")}
    script = Path(__file__).with_name("trl_kin.py")
    done = subprocess.run(
        [sys.executable, script, folder / "in.npz", folder / "out.npz", json.dumps(cases)],
        env=os.environ | {"PYTHONPATH": str(TRL)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "out.npz")


def our_loss(precision, *, how, beta=0.0, **options):
    """(loss, gradient with respect to the new log-probs)"""
    given, mask = {n: precision.jax(x) for n, x in draw().items()}, jnp.asarray(MASK)
    weights = token_weights(mask, how=how).astype(precision.name)
    advantages = jnp.where(mask, given["advantages"][:, None], jnp.nan)

    def loss(new):
        policy, _ = policy_loss(
            *(new, given["old"], advantages, mask), clip_eps=0.2, weights=weights, **options
        )
        betas = jnp.full(B, beta, new.dtype)
        kl, _ = kl_loss(new, given["ref"], betas, mask, estimator="k3", weights=weights)
        return policy + kl

    return jax.value_and_grad(loss)(given["new"])


@pytest.mark.parametrize("name", GROUPED)
def test_advantages(precision, theirs, name):
    rewards = np.where(np.arange(R) == 0, draw()["returns"].reshape(B, 1), 0)
    ours, _ = GROUPED[name](precision.jax(rewards), None, jnp.asarray(MASK))
    precision.agree(f"advantages ({name})", ours[:, 0], theirs[f"{precision.name}/{name}"].ravel())


@pytest.mark.parametrize("name", KIN)
def test_losses_and_gradients(precision, theirs, name):
    loss, gradient = our_loss(precision, **KIN[name][1])
    at = f"{precision.name}/{name}"
    precision.agree(f"loss of {name}", loss, theirs[f"{at}/loss"])
    precision.agree(f"gradient of {name} (log-probs)", gradient, theirs[f"{at}/grad"])


def test_the_bounds_act(theirs):
    """Otherwise nothing of them would have been compared."""
    losses = [float(theirs[f"float64/{name}/loss"]) for name in KIN]
    assert np.abs(np.subtract.outer(losses, losses) + np.eye(len(KIN))).min() > 1e-3


def test_trls_rloo_clips_the_ratio_of_a_whole_answer(precision, theirs):
    """exp(Σ log ρ) (line 1828): at π = π_old its gradient is that of ours, which clips per token.

    Here, off it, the gradients differ. That of ours is the gradient of a sum over tokens.
    """
    given, mask = {n: precision.jax(x) for n, x in draw().items()}, jnp.asarray(MASK)
    weights = token_weights(mask, how="sequence_sum").astype(precision.name)
    advantages = jnp.broadcast_to(given["advantages"][:, None], (B, R))
    ours = lambda new: policy_loss(
        new, given["old"], advantages, mask, clip_eps=0.2, weights=weights
    )[0]

    def rloo_loss(new):
        ratio = jnp.exp(jnp.where(mask, new - given["old"], 0).sum(axis=1))
        a = given["advantages"]
        return -jnp.minimum(ratio * a, ratio.clip(0.8, 1.2) * a).mean()

    loss, gradient = jax.value_and_grad(rloo_loss)(given["new"])
    at = f"{precision.name}/RLOO"
    precision.agree("RLOO of TRL, said again", loss, theirs[f"{at}/loss"])
    precision.agree("its gradient", gradient, theirs[f"{at}/grad"])
    on = [jax.grad(f)(given["old"]) for f in (ours, rloo_loss)]
    precision.agree("gradient of RLOO at the sampling policy", *on)
    assert np.abs(jax.grad(ours)(given["new"]) - gradient).max() > 0.05
