"""A checkpoint of one layout of devices goes on in any other."""

import json
import socket
import subprocess
import sys

import pytest
import tiny
from precision import SAME

WORKER = tiny.HELPERS / "topology_worker.py"
HALVES = (1, 2, 1)
"""Two devices, of one process or of two, each with half of every large parameter."""


def run(jobs, *, devices, processes=1):
    """What each process prints for each job: losses of the last two steps, fingerprint, bytes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in range(processes):
        several = [port, processes, rank] if processes > 1 else []
        command = [sys.executable, *map(str, [WORKER, json.dumps(jobs), *several])]
        environment = tiny.process_environment(JAX_NUM_CPU_DEVICES=str(devices), JAX_ENABLE_X64="1")
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(subprocess.Popen(command, env=environment, **pipes))
    results = []
    for process in started:
        out, error = process.communicate(timeout=400)
        assert process.returncode == 0, error[-3000:]
        results.append([json.loads(line) for line in out.splitlines()[-len(jobs) :]])
    return results


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of the run that saved on eight devices, and of the one on two: what it printed, and what
    each process printed that went on from it. As few processes as there are kinds."""
    on_eight, on_two = (str(tmp_path_factory.mktemp(name)) for name in ("eight", "two"))
    ((eight, two, *restored),) = run(
        [
            (on_eight, "save", 8, (8, 1, 1)),
            (on_two, "save", 2, HALVES),
            (on_eight, "restore", 8, (2, 2, 2)),
            (on_eight, "restore", 1, (1, 1, 1)),
        ],
        devices=8,
    )
    jobs = [(folder, "restore", 2, HALVES) for folder in (on_eight, on_two)]
    by_processes = list(zip(*run(jobs, devices=1, processes=2), strict=True))
    return (eight, [*restored, *by_processes[0]]), (two, by_processes[1])


@pytest.mark.multidevice
@pytest.mark.multiprocess
def test_saved_on_eight_devices_restored_on_any(outcomes):
    """In another mesh, by one device, and by two processes."""
    (losses, fingerprint, _, size), restored = outcomes[0]
    assert len(restored) == 4
    for found, same, read, _ in restored:
        assert same == fingerprint
        assert found == pytest.approx(losses, rel=SAME)
        assert read < 1.1 * size, (read, size)


@pytest.mark.multiprocess
def test_each_process_reads_its_part(outcomes):
    """Saved in the parts of two devices; two processes read a half each, and go on alike."""
    (losses, fingerprint, _, size), restored = outcomes[1]
    assert len(restored) == 2
    for found, same, read, _ in restored:
        assert same == fingerprint
        assert found == pytest.approx(losses, rel=SAME)
        assert read < 0.7 * size, (read, size)
