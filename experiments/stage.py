"""The frame of a stage: run folder, resuming, logs, checkpoints, stopping. The loop stays outside.

    with Stage(config, "sft") as stage:
        if stage.summary is not None:  # finished earlier
            return stage.summary
        state = stage.restore(state, train=batches)
        for step in stage.steps(total):
            state, metrics = update(state, next(batches), fold_in(key, step))
            stage.log(metrics, tokens=...)
            stage.checkpoint(state)
        return stage.finish(state.params)
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax.cli import to_dict
from rlhf_jax.data.batches import Batches
from rlhf_jax.training.checkpoints import Checkpoints, params_sha256, save_params
from rlhf_jax.training.logs import MetricsLog, Progress, peak_rss_mib
from rlhf_jax.training.runs import open_run
from rlhf_jax.training.signals import StopRequest
from rlhf_jax.training.startup import start
from rlhf_jax.types import Metrics, Params, TrainState
