"""Run by test_topologies.py: trains, saves and restores on several device layouts in turn.

python topology_worker.py JOBS [PORT PROCESSES RANK]

``JOBS`` is a JSON list of [FOLDER, ACTION, DEVICES, [DATA, FSDP, TENSOR]]. ``save`` trains 2 steps
and saves, then trains 2 more; ``restore`` restores and trains the same 2. For each job a line is
printed: the losses of the last 2 steps, a fingerprint, bytes read, bytes in all. In float64, so
that all layouts give the same losses.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.config import ModelConfig, OptimConfig, ParallelConfig
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.runs.checkpoints import Checkpoints, params_sha256
from rlhf_jax.training.hosts import connect
from rlhf_jax.training.optimizers import make_optimizer, make_state
from rlhf_jax.training.parallel import Parallel, make_parallel
from rlhf_jax.training.updates import make_update_step
from rlhf_jax.types import LMBatch

B, T, V = 16, 16, 1024
MODEL = ModelConfig(n_layers=1, d_model=128, n_heads=8, context=T, dtype="float64")


def batch(step: int, rows: np.ndarray) -> LMBatch:
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, V, (B, T)).astype(np.int32)
    mask = np.arange(T)[None] < rng.integers(2, T + 1, B)[:, None]
    whole = LMBatch(
        tokens,
        mask & (np.arange(T) > 0)[None],
        mask.astype(np.int32),
        np.tile(np.arange(T, dtype=np.int32), (B, 1)),
    )
    return jax.tree.map(lambda x: x[rows], whole)


def read_bytes() -> int:
    """Bytes this process has asked the kernel for, since it started."""
    return int(Path("/proc/self/io").read_text().split()[1])


def run(folder: Path, action: str, parallel: Parallel) -> list:
    lm = make_language_model(MODEL, V)
    tx = make_optimizer(OptimConfig(weight_decay=0.0), 10, updates_per_step=1)

    def loss_fn(params, rows, key, count):
        return lm_loss(lm.packed_logits(params, rows, None), rows, count=count)

    update = parallel.update(
        make_update_step(loss_fn, count_targets, tx, accumulate=1, ema_decay=0.9)
    )
    params = parallel.init(lm.init, jax.random.key(0 if action == "save" else 1))
    state = parallel.init(partial(make_state, tx=tx, ema_decay=0.9), params)
    frame = dict(keep_latest=2, keep_best=0, best_metric=None, best_mode="max")
    done, read = 0, 0
    with Checkpoints(folder, **frame) as checkpoints:
        if action == "restore":
            before = read_bytes()
            state = checkpoints.restore_latest(state).state
            read, done = read_bytes() - before, 2
        losses, fingerprint = [], None
        for step in range(done, 4):
            rows = parallel.shard(batch(step, parallel.rows(B)))
            if step == 2:
                fingerprint = params_sha256(state.params)
            state, metrics = update(state, rows, jax.random.key(step))
            losses.append(float(metrics["loss"]))
            if step == 1:
                checkpoints.save(2, state, data={}, extra={}, metrics={})
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    return [losses[-2:], fingerprint, read, size]


def main(jobs, port=None, processes=1, rank=0) -> None:
    where = {}
    if port is not None:
        where = dict(coordinator=f"127.0.0.1:{port}", processes=int(processes))
        where |= dict(process_id=int(rank))
    for folder, action, devices, (data, fsdp, tensor) in json.loads(jobs):
        sizes = dict(devices=devices, data=data, fsdp=fsdp, tensor=tensor)
        config = ParallelConfig(**sizes, **where)
        connect(config)
        print(json.dumps(run(Path(folder), action, make_parallel(config))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
