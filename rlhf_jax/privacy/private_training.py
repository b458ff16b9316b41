"""DP-SGD in a stage: batches, update and what they guarantee, where the config asks for it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from rlhf_jax.config import PrivacyConfig, RewardConfig, SFTConfig
from rlhf_jax.data.batches import Batches
from rlhf_jax.errors import check
from rlhf_jax.privacy.accounting import epsilon_of, noise_for
from rlhf_jax.privacy.dp_sgd import make_private_update_step
from rlhf_jax.privacy.poisson import PoissonBatches
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.training.updates import LossFn, update_step_of
from rlhf_jax.types import Params


def private_batches(batches: Batches, *, batch_size: int, seed: int) -> PoissonBatches:
    """The same rows, each drawn by chance: ``batch_size`` is what a step has on average."""
    return PoissonBatches(batches, expected_rows=batch_size, seed=seed)


def guarantee(config: PrivacyConfig, batches: PoissonBatches, steps: int) -> dict[str, Any]:
    """The noise that the budget asks for, and what it gives."""
    check(
        # With δ = 1/n, publishing one example of n in full would pass as private.
        config.delta < 1 / batches.rows,
        f"privacy.delta={config.delta} must be below 1 / {batches.rows} examples",
    )
    rate, delta = batches.rate, config.delta
    noise = noise_for(config.epsilon, rate=rate, steps=steps, delta=delta)
    return {
        "epsilon": epsilon_of(noise, rate=rate, steps=steps, delta=delta),
        "delta": config.delta,
        "noise_multiplier": noise,
        "clip_norm": config.clip_norm,
        "sampling_rate": batches.rate,
        "steps": steps,
        "examples": batches.rows,
        # Noise and draws follow from them: who has both can subtract the noise.
        "assumed": "secret run.seed and run.data_seed (config.json records them)",
    }


def make_update(
    config: SFTConfig | RewardConfig,
    batches: Batches | PoissonBatches,
    loss_fn: LossFn,
    count_fn: Callable[[Any], Any],
    tx: Any,
    parallel: Parallel,
    *,
    steps: int,
    frozen: Params | None,
) -> tuple[Callable, dict[str, Any]]:
    """The compiled step, and what it promises, for the summary: {} unless ``batches`` are private.

    Raises InputError for what DP-SGD does not run with here.
    """
    if not isinstance(batches, PoissonBatches):
        step = update_step_of(config.optim, loss_fn, count_fn, tx)
        return parallel.update(step, frozen=frozen), {}
    check(
        parallel.row_shards == 1 and parallel.mode == "mesh",
        "DP-SGD runs on one device here: set --parallel.devices 1",
    )
    check(
        config.optim.accumulate == 1,
        "DP-SGD takes each batch in one pass: optim.accumulate must be 1",
    )
    promised = guarantee(config.privacy, batches, steps)

    def mean_loss(params, example, key, count):
        # Within the example: a mean over the batch would tie its gradient to the other rows.
        return loss_fn(params, example, key, jnp.maximum(count_fn(example), 1))

    step = make_private_update_step(
        mean_loss,
        tx,
        clip_norm=promised["clip_norm"],
        noise_multiplier=promised["noise_multiplier"],
        expected_rows=batches.rate * batches.rows,
        ema_decay=config.optim.ema_decay,
    )
    return parallel.update(step, frozen=frozen), {"privacy": promised}
