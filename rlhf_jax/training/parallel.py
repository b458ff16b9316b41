"""The one place that knows devices: a pure step becomes a program over all of them.

``mesh`` (default) is ``jax.jit`` over a device mesh, the batch split along its ``data`` axis;
``pmap`` is the second mode for data parallelism. Both run the same pure step: in mesh mode it sees
the global batch, under pmap each device sees its rows and sums go through ``axis_name``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rlhf_jax.config import ParallelConfig
from rlhf_jax.errors import InputError

AXIS = "data"


class Parallel(NamedTuple):
    mode: str
    mesh: Mesh

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, axis: int) -> NamedSharding:
        """Rows of ``axis`` spread over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))

    def check_batch(self, name: str, rows: int) -> None:
        if rows % self.num_devices:
            raise InputError(
                f"{name}={rows} is not divisible by the {self.num_devices} devices; "
                f"choose a multiple of {self.num_devices} or set --parallel.devices"
            )

    def shard(self, batch: PyTree, axis: int = 0) -> PyTree:
        """Put host arrays on the devices, split along ``axis``."""
        return jax.device_put(batch, self.split(axis))

    def replicate(self, tree: PyTree) -> PyTree:
        """A copy on every device; an array that occurs twice in ``tree`` is put there once."""
        leaves, treedef = jax.tree.flatten(tree)
        distinct = {id(leaf): leaf for leaf in leaves}
        placed = jax.device_put(distinct, self.replicated)
        return treedef.unflatten([placed[id(leaf)] for leaf in leaves])

    def update(
        self, step: Callable[..., Any], *, frozen: PyTree = None, batch_axis: int = 0
    ) -> Callable[..., Any]:
        """Compile ``step(state, batch, key, frozen, *, axis_name) -> (state, metrics)``.

        Returns a function of the first three. The state is replicated and donated: its buffers are
        reused for the new state. ``frozen`` parameters are not.
        """
        if self.mode == "pmap":
            return self._pmap_update(step, frozen, batch_axis)
        compiled = jax.jit(
            step,
            in_shardings=(
                *(self.replicated, self.split(batch_axis)),
                *(self.replicated, self.replicated),
            ),
            out_shardings=(self.replicated, self.replicated),
            donate_argnums=0,
        )
        # A batch that another program made lies where that program left it.
        return lambda state, batch, key: compiled(state, self.shard(batch, batch_axis), key, frozen)

    def function(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function of sharded or replicated arrays (rollouts, evaluation)."""
        return jax.jit(fn)

    def _pmap_update(self, step, frozen, batch_axis):
        mapped = jax.pmap(
            partial(step, axis_name=AXIS),
            axis_name=AXIS,
            in_axes=(None, batch_axis, None, None),
            out_axes=None,  # sums are global, so every device holds the same state
            devices=list(self.mesh.devices.flat),
            donate_argnums=0,
        )
        n = self.num_devices

        def spread(x):
            shape = x.shape
            rows = (n, shape[batch_axis] // n)
            return np.asarray(x).reshape(*shape[:batch_axis], *rows, *shape[batch_axis + 1 :])

        return lambda state, batch, key: mapped(state, jax.tree.map(spread, batch), key, frozen)


def make_parallel(config: ParallelConfig) -> Parallel:
    """A mesh over the first ``config.devices`` visible devices (0: all)."""
    visible = jax.devices()
    if config.devices > len(visible):
        raise InputError(
            f"parallel.devices={config.devices}, but only {len(visible)} are visible: {visible}"
        )
    devices = visible[: config.devices or len(visible)]
    # Auto: JAX's default axis type, Explicit, would reject ordinary code such as wte[tokens].
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return Parallel(config.mode, mesh)
