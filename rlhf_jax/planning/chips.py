"""TPU topologies that need not be there, and the public figures of their chips."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from rlhf_jax.errors import InputError


class Chip(NamedTuple):
    """Published peaks (cloud.google.com/tpu/docs), which no program reaches."""

    hbm: float
    """Bytes."""
    flops: float
    """bfloat16 operations per second."""
    bandwidth: float
    """Bytes per second between HBM and the chip's cores."""
    interconnect: float
    """Bytes per second of all a chip's links together, in one direction."""
    devices: int
    """JAX devices on one chip."""


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1.2e12, 300e9, 1),
    "v5e": Chip(16 * 2**30, 197e12, 0.82e12, 200e9, 1),
    "v5p": Chip(95 * 2**30, 459e12, 2.77e12, 600e9, 1),
    "v6e": Chip(32 * 2**30, 918e12, 1.64e12, 448e9, 1),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as v5e:4x4. Raises InputError for another form."""
    kind = topology.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+x\d+(x\d+)?", topology):
        raise InputError(
            f"--topology {topology}: expected KIND:AxB or KIND:AxBxC with a kind of {list(CHIPS)}"
        )
    return CHIPS[kind]


def devices_of(topology: str) -> Sequence[jax.Device]:
    """The devices of a TPU topology, to compile for. Raises InputError without libtpu."""
    chip_of(topology)
    # libtpu asks the cloud which TPU it runs on, and locks it; nothing is run here.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # several classes, for a missing plugin and for a bad shape
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"--topology {topology} cannot be described ({first}); libtpu is needed: "
            'pip install -c constraints.txt -e ".[tpu]"'
        ) from error
