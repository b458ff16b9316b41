"""The one place that knows devices: a pure step becomes a program over all of them.

``mesh`` (default) is ``jax.jit`` over a device mesh: rows of the batch and parameters are split
along its axes (training/mesh.py, training/sharding.py), and the step sees the global batch.
``pmap`` (training/pmap.py) is the second mode, for data parallelism: parameters lie whole on every
device, each sees its own rows, and sums go through ``axis_name``. Both run the same pure step.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rlhf_jax.config import ParallelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models.layout import ROWS, fit
from rlhf_jax.training.mesh import chosen_devices, make_mesh
from rlhf_jax.training.pmap import pmap_update
from rlhf_jax.training.sharding import shardings


class Parallel(NamedTuple):
    """The devices of a run, and how rows and parameters lie on them."""

    mode: str
    mesh: Mesh

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, axis: int) -> NamedSharding:
        """Rows of ``axis`` spread over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, ROWS))

    def shardings(self, tree: PyTree) -> PyTree:
        """Where the parameters, or the train state, of ``tree`` lie (arrays or shapes)."""
        return shardings(tree, self.mesh)

    def check_batch(self, name: str, rows: int) -> None:
        """Raise InputError for a number of rows that the devices cannot share evenly."""
        # JAX refuses an uneven split too, but its message names neither the flag nor a way out.
        if rows % self.row_shards:
            raise InputError(
                f"{name}={rows} is not divisible by the {self.row_shards} parts that rows are "
                f"split into (parallel.data x parallel.fsdp); choose a multiple of "
                f"{self.row_shards} or set --parallel.devices"
            )

    def rows(self, count: int) -> np.ndarray:
        """Numbers of those of ``count`` rows that this process holds."""
        # Asked of the sharding itself: on a pod, devices of one process need not be neighbours.
        places = self.split(0).addressable_devices_indices_map((count,)).values()
        return np.unique(np.concatenate([np.arange(count)[place] for place in places]))

    def shard(self, batch: PyTree, axis: int = 0) -> PyTree:
        """Put a batch on the devices, split along ``axis``; each process gives ``rows`` of it."""
        # A process holds its own rows only, which JAX joins to a global array without moving them.
        there = self.split(axis)
        if jax.process_count() == 1:
            return jax.tree.map(lambda x: jax.device_put(x, there), batch)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(there, np.asarray(x)), batch
        )

    def shard_whole(self, batch: PyTree) -> PyTree:
        """The same of a batch that every process has whole, split as far as its rows divide."""

        def put(x):
            return place(x, NamedSharding(self.mesh, fit((ROWS,), x.shape, self.mesh.shape)))

        return jax.tree.map(put, batch)

    def place(self, params: PyTree) -> PyTree:
        """Put parameters where they lie, part by part; an array that occurs twice is put once."""
        # By identity: where policy and reference are the same arrays, one copy lies on the devices.
        placed: dict[int, jax.Array] = {}

        def put(leaf, sharding):
            if id(leaf) not in placed:
                placed[id(leaf)] = place(leaf, sharding)
            return placed[id(leaf)]

        return jax.tree.map(put, params, self.shardings(params))

    def init(self, fn: Callable[..., PyTree], *inputs: Any) -> PyTree:
        """``fn(*inputs)``, a tree of parameters or a train state, made in parts where they lie."""
        # Shapes first: a model that is larger than one device is never whole on one.
        out = self.shardings(jax.eval_shape(fn, *inputs))
        return jax.jit(self.on_mesh(fn), out_shardings=out)(*inputs)

    def fetch(self, tree: PyTree) -> PyTree:
        """Whole NumPy arrays in every process: how every figure of a stage reaches the host.

        With several processes ``np.asarray`` of an array in parts raises, and only then.
        """
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    def local(self, tree: PyTree) -> PyTree:
        """NumPy arrays of the ``rows`` of a batch that this process holds: ``shard`` undone."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        tree = jax.jit(lambda x: x, out_shardings=self.split(0))(tree)

        def own_rows(leaf):
            parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
            return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

        return jax.tree.map(own_rows, tree)

    def on_mesh(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """``fn``, traced so that the hints of models/layout.py mean this mesh."""

        @wraps(fn)
        def traced(*inputs):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return fn(*inputs)

        return traced

    def function(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function of split or replicated arrays (rollouts, evaluation)."""
        return jax.jit(self.on_mesh(fn))

    def program(self, step: Callable[..., Any], state: PyTree, *, batch_axis: int = 0) -> Any:
        """``step(state, batch, key, frozen)`` as a program, which can also be lowered for a plan.

        The state is donated: its buffers are reused for the new state.
        """

        def split_step(state, batch, key, frozen):
            batch = jax.lax.with_sharding_constraint(batch, self.split(batch_axis))
            return step(state, batch, key, frozen)

        return jax.jit(
            self.on_mesh(split_step),
            # The new state lies where the old one did, so that donation can reuse its buffers.
            out_shardings=(self.shardings(state), self.replicated),
            donate_argnums=0,
        )

    def update(
        self, step: Callable[..., Any], *, frozen: PyTree = None, batch_axis: int = 0
    ) -> Callable[..., Any]:
        """Compile ``step(state, batch, key, frozen, *, axis_name) -> (state, metrics)``.

        Returns a function of the first three. The state is donated; ``frozen`` parameters are not.
        """
        if self.mode == "pmap":
            return pmap_update(step, frozen, list(self.mesh.devices.flat), batch_axis)
        # Where the state lies is known from its own leaves.
        programs: list[Any] = []  # made when the first state is seen

        def update(state, batch, key):
            if not programs:
                programs.append(self.program(step, state, batch_axis=batch_axis))
            return programs[0](state, batch, key, frozen)

        return update


def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds on its host, as one array in parts over all of them."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # in parts already
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    # From the host of each process only the parts of its own devices are sent.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def make_parallel(config: ParallelConfig) -> Parallel:
    """The mesh that ``config`` describes, over the first ``config.devices`` devices (0: all)."""
    if config.mode == "pmap" and jax.process_count() > 1:
        raise InputError(
            "--parallel.mode pmap is for one process; several need --parallel.mode mesh"
        )
    return Parallel(config.mode, make_mesh(config, chosen_devices(config)))
