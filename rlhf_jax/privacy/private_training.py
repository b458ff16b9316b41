"""DP-SGD in a stage: batches, update and what they guarantee, instead of the ordinary ones."""

from collections.abc import Callable
from typing import Any

from rlhf_jax.config import OptimConfig, PrivacyConfig
from rlhf_jax.data.batches import Batches
from rlhf_jax.errors import check
from rlhf_jax.privacy.accounting import epsilon_of, noise_for
from rlhf_jax.privacy.dp_sgd import make_private_update_step
from rlhf_jax.privacy.poisson import PoissonBatches
from rlhf_jax.training.parallel import Parallel


def private_batches(batches: Batches, *, batch_size: int, seed: int) -> PoissonBatches:
    """The same rows, each drawn by chance: ``batch_size`` is what a step has on average."""
    return PoissonBatches(batches, expected_rows=batch_size, seed=seed)


def guarantee(config: PrivacyConfig, batches: PoissonBatches, steps: int) -> dict[str, Any]:
    """The noise that the budget asks for, and what it gives."""
    check(
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


def private_update(
    loss_fn: Callable,
    tx: Any,
    parallel: Parallel,
    optim: OptimConfig,
    batches: PoissonBatches,
    promised: dict[str, Any],
    *,
    frozen: Any,
) -> Callable:
    """The compiled step; ``loss_fn`` averages within an example."""
    check(
        parallel.row_shards == 1 and parallel.mode == "mesh",
        "DP-SGD runs on one device here: set --parallel.devices 1",
    )
    check(optim.accumulate == 1, "DP-SGD takes each batch in one pass: optim.accumulate must be 1")
    step = make_private_update_step(
        loss_fn,
        tx,
        clip_norm=promised["clip_norm"],
        noise_multiplier=promised["noise_multiplier"],
        expected_rows=batches.rate * batches.rows,
        ema_decay=optim.ema_decay,
    )
    return parallel.update(step, frozen=frozen)
