"""The device mesh: which device stands where on the axes data, fsdp and tensor.

data    copies of the model, each with its own rows
fsdp    rows and parameters split over the same devices; weights are gathered layer by layer
tensor  heads and features split: neighbours that exchange activations within a layer
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from rlhf_jax.config import ParallelConfig
from rlhf_jax.errors import InputError, check
from rlhf_jax.models.layout import AXES


def mesh_shape(config: ParallelConfig, devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) of ``devices`` devices; ``data`` 0 takes what the others leave."""
    inner = config.fsdp * config.tensor
    data = config.data or max(devices // inner, 1)
    check(
        data * inner == devices,
        f"parallel.data={data} x parallel.fsdp={config.fsdp} x parallel.tensor={config.tensor} = "
        f"{data * inner}, but there are {devices} devices",
    )
    return data, config.fsdp, config.tensor


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of ``devices``, laid out so that inner axes are neighbours on a TPU's torus."""
    shape = mesh_shape(config, len(devices))
    if devices[0].platform == "tpu":
        # The order of jax.devices() says nothing of the torus; this knows its links.
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        array = np.array(devices).reshape(shape)
    # Auto: JAX's default axis type, Explicit, would reject ordinary code such as wte[tokens].
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def chosen_devices(config: ParallelConfig) -> list[jax.Device]:
    """The first ``config.devices`` visible devices (0: all), over all processes."""
    visible = jax.devices()
    if config.devices > len(visible):
        raise InputError(
            f"parallel.devices={config.devices}, but only {len(visible)} are visible: {visible}"
        )
    return visible[: config.devices or len(visible)]
