"""One device, eight as a mesh, eight under pmap, and micro-batches compute the same update."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import CACHE

from rlhf_jax.config import ParallelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.training.parallel import make_parallel

HERE = pathlib.Path(__file__).parent


@pytest.mark.multidevice
def test_every_layout_agrees_with_one_device():
    """With SGD to 1e-6, unequal masks, global whitening and ptx; bugs 13 and 29."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(HERE.parent),
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    }
    done = subprocess.run(
        [sys.executable, HERE / "parallel_worker.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 12
    for layout, (parameters, metrics) in found.items():
        assert parameters < 1e-6, (layout, parameters)
        assert metrics < 1e-4, (layout, metrics)


def test_batch_must_divide_by_the_devices():
    parallel = make_parallel(ParallelConfig())._replace(mesh=type("Mesh", (), {"size": 8})())
    with pytest.raises(InputError, match="batch_size=12 is not divisible by the 8 devices"):
        parallel.check_batch("batch_size", 12)


def test_too_many_devices_asked_for():
    with pytest.raises(InputError, match=r"parallel\.devices=99, but only"):
        make_parallel(ParallelConfig(devices=99))
