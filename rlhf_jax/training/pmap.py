"""Data parallelism by ``jax.pmap``: the same pure step, mapped over the devices."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

AXIS = "data"


def pmap_program(step: Callable[..., Any], devices: Sequence[jax.Device], batch_axis: int) -> Any:
    """``step(state, batch, key, frozen)``; the batch has an axis of devices before its rows."""
    return jax.pmap(
        partial(step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, batch_axis, None, None),
        out_axes=None,  # sums are global, so every device holds the same state
        devices=devices,
        donate_argnums=0,
    )


def pmap_update(
    step: Callable[..., Any], frozen: PyTree, devices: Sequence[jax.Device], batch_axis: int
) -> Callable[..., Any]:
    """``(state, batch, key) -> (state, metrics)``; the state is whole on every device, donated."""
    mapped = pmap_program(step, devices, batch_axis)

    def spread(x):
        shape = x.shape
        # On the host: a reshape of a placed array would move it between devices.
        rows = (len(devices), shape[batch_axis] // len(devices))
        return np.asarray(x).reshape(*shape[:batch_axis], *rows, *shape[batch_axis + 1 :])

    return lambda state, batch, key: mapped(state, jax.tree.map(spread, batch), key, frozen)
