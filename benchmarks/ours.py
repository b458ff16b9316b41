"""The worker of this project: ``python -m benchmarks.ours CASE FOLDER`` (see worker.py)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs
from benchmarks.cases import B1, B2, CLIP_NORM, EOS, EPS, LR, WEIGHT_DECAY, Case
from benchmarks.ours_ppo import make_ppo
from benchmarks.worker import GEMM_SIZE, Limits, Work, best_gbs, best_gflops, serve
from rlhf_jax.config import OptimConfig, ParallelConfig
from rlhf_jax.errors import check
from rlhf_jax.interop.huggingface import load_pretrained
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.objectives.language_losses import count_targets
from rlhf_jax.objectives.preference_losses import ranking_loss
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.rollouts.rollout import response_logprobs
from rlhf_jax.runs.startup import start
from rlhf_jax.training.optimizers import make_optimizer, make_state
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.updates import make_lm_loss, make_update_step
from rlhf_jax.types import Generation, LMBatch, QueryBatch

COMPILING, BY_XLA = "/jax/core/compile/", "backend_compile_duration"


def make_generation(case: Case, folder: Path) -> Work:
    """Sampling: a batch of answers, one after the other."""
    imported = load_pretrained(folder / "lm")
    config = replace(imported.model, dtype=case.arrays)
    lm = make_language_model(config, imported.vocab_size)
    parallel = make_parallel(ParallelConfig(devices=1))
    params = parallel.place(imported.params)
    queries = jnp.asarray(inputs.prompts(case))
    mask = jnp.ones(queries.shape, bool)
    options = dict(length=case.length, temperature=1.0, top_k=0, top_p=1.0, pad_id=EOS, at_once=1.0)
    # An id that no token has: nothing ends.
    options["end_ids"] = (EOS if case.end == "early" else -1,)
    sample = parallel.function(partial(generate, lm, **options))
    answers = jnp.asarray(inputs.answers(case))
    given = Generation(answers, jnp.ones(answers.shape, bool), jnp.zeros(answers.shape))
    batch = QueryBatch(queries, mask, jnp.arange(case.batch))
    logprobs = jax.jit(partial(response_logprobs, lm, temperature=1.0))(params, batch, given)
    seconds = compilation()
    count = iter(range(10**6))

    def repeat():
        keys = row_keys(jax.random.key(next(count)), case.batch)
        made = sample(params, queries, mask, keys)
        return {"tokens": int(made.mask.sum())}

    return Work(repeat, {"logprob": float(logprobs.mean())}, seconds)


def make_training(case: Case, folder: Path) -> Work:
    """A step of pretraining, SFT or reward modelling, as the experiments make it."""
    kind = "scalar" if case.suite == "reward" else "lm"
    imported = load_pretrained(folder / kind)
    config = replace(imported.model, dtype=case.arrays)
    optim = OptimConfig(
        lr=LR,
        schedule="constant",
        b1=B1,
        b2=B2,
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP_NORM,
    )
    parallel = make_parallel(ParallelConfig(devices=1))
    tx = make_optimizer(optim, 1000, updates_per_step=1)
    loss_fn, count_fn, batch = make_loss(case, config, imported.vocab_size)
    step = make_update_step(loss_fn, count_fn, tx, accumulate=1, ema_decay=0.0)
    update = parallel.update(step)
    state = parallel.place(make_state(imported.params, tx, ema_decay=0.0))
    del imported
    seconds = compilation()
    key = jax.random.key(0)
    loss = float(jax.jit(loss_fn)(state.params, batch, key, count_fn(batch))[0])
    held = [state]
    del state

    def repeat():
        state, metrics = update(held.pop(), batch, key)
        held.append(state)
        return {"loss": float(metrics["loss"])}

    return Work(repeat, {"loss": loss}, seconds)


def make_loss(case: Case, config: Any, vocab_size: int):
    """(loss, what it counts, batch) of a training suite."""
    ids = inputs.rows(case)
    if case.suite == "reward":
        model = make_scalar_model(config, vocab_size)
        pairs = jnp.asarray(ids), jnp.ones(ids.shape, bool)
        ranks = jnp.tile(jnp.arange(2), (case.batch // 2, 1))

        def reward_loss(params, batch, key, count):
            scores = model.score(params, *batch, None)
            return ranking_loss(scores.reshape(-1, 2), ranks, count=count)

        return reward_loss, lambda batch: jnp.float32(case.batch // 2), pairs
    lm = make_language_model(config, vocab_size)
    ones = np.ones(ids.shape, np.int32)
    positions = np.broadcast_to(np.arange(case.length, dtype=np.int32)[None], ids.shape)
    batch = LMBatch(*map(jnp.asarray, (ids, inputs.targets(case, ids), ones, positions)))

    return make_lm_loss(lm, training=False), count_targets, batch


def compilation() -> Callable[[], dict[str, float]]:
    """Seconds of tracing and compiling from now on, and those of tracing (with lowering) alone.

    A program that is traced inside another counts in both: the sum is a little too large.
    """
    total = {"compile_seconds": 0.0, "trace_seconds": 0.0}

    def listen(event, seconds, **_):
        if event.startswith(COMPILING):
            total["compile_seconds"] += seconds
            if not event.endswith(BY_XLA):
                total["trace_seconds"] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: total


def gemm(case: Case) -> float:
    """GFLOP/s of XLA's matrix product, the best of several."""
    n = GEMM_SIZE[case.device]
    a = jnp.ones((n, n), case.arrays)
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
    return best_gflops(lambda: product(a).block_until_ready(), n)


def stream(case: Case) -> float | None:
    """GB/s of reading a GPU's memory once; None on a CPU, whose own is measured without JAX."""
    if case.device == "cpu":
        return None
    x = jnp.ones(2**28, jnp.float32)
    read = jax.jit(jnp.sum)
    return best_gbs(lambda: read(x).block_until_ready(), x.nbytes)


def peak(case: Case) -> float | None:
    """MiB that the arrays on a GPU took at most; None on a CPU, where the process's count."""
    if case.device == "cpu":
        return None
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


def make(case: Case, folder: str) -> Work:
    """The work of a case on our side."""
    start(tune_malloc=True, compile_cache=None)
    if case.device == "gpu":
        # A GPU's "default" is tf32 for float32 products.
        exact = "highest" if case.dtype == "float32" else "tensorfloat32"
        jax.config.update("jax_default_matmul_precision", exact)
        check(jax.default_backend() == "gpu", "JAX finds no GPU: pip install -e '.[cuda]'")
    if case.suite == "generate":
        return make_generation(case, Path(folder))
    if case.unit == "episodes":
        return make_ppo(case, Path(folder), compilation())
    return make_training(case, Path(folder))


if __name__ == "__main__":
    serve(make, Limits(gemm, stream, peak))
