"""One device, eight as a mesh, eight under pmap, and micro-batches compute the same update."""

import json
import subprocess
import sys

import pytest
import tiny
from precision import SAME

from rlhf_jax.config import ParallelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.training.parallel import make_parallel


@pytest.mark.multidevice
def test_every_layout_agrees_with_one_device():
    """With SGD, unequal masks, global whitening and ptx; bugs 13 and 29. Rollouts are the same
    samples with the same log-probs, values and scores."""
    done = subprocess.run(
        [sys.executable, tiny.HELPERS / "parallel_worker.py"],
        env=tiny.process_environment(JAX_NUM_CPU_DEVICES="8", JAX_ENABLE_X64="1"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rollouts, ended = found.pop("rollouts"), found.pop("rows that ended")
    # Each device ends its own loop, where the weights are not split: there they must meet.
    exchanges = found.pop("exchanges")
    assert exchanges["8 x data"] == 0 < exchanges["8 x tensor"]
    assert len(found) == 18 and len(rollouts) == 5 and 32 < ended < 64
    for layout, (parameters, metrics) in found.items():
        assert parameters < SAME, (layout, parameters)
        assert metrics < SAME, (layout, metrics)
    for layout, (tokens, difference) in rollouts.items():
        assert tokens == 0, (layout, tokens)
        assert difference < SAME, (layout, difference)


def test_batch_must_divide_by_the_devices():
    mesh = type("Mesh", (), {"shape": {"data": 4, "fsdp": 2, "tensor": 8}})()
    parallel = make_parallel(ParallelConfig())._replace(mesh=mesh)
    with pytest.raises(InputError, match="batch_size=12 is not divisible by the 8 parts"):
        parallel.check_batch("batch_size", 12)


def test_too_many_devices_asked_for():
    with pytest.raises(InputError, match=r"parallel\.devices=99, but only"):
        make_parallel(ParallelConfig(devices=99))
