"""A checkpoint of one layout of devices goes on in any other."""

import json
import socket
import subprocess
import sys

import pytest
import tiny
from precision import SAME

WORKER = tiny.HELPERS / "topology_worker.py"


def run(folder, action, mesh, *, devices, processes=1):
    """What each process prints: losses of steps 2 and 3, fingerprint, bytes read, bytes in all."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in range(processes):
        several = [port, processes, rank] if processes > 1 else []
        command = [sys.executable, *map(str, [WORKER, folder, action, *mesh, *several])]
        environment = tiny.process_environment(JAX_NUM_CPU_DEVICES=str(devices), JAX_ENABLE_X64="1")
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(subprocess.Popen(command, env=environment, **pipes))
    results = []
    for process in started:
        out, error = process.communicate(timeout=400)
        assert process.returncode == 0, error[-3000:]
        results.append(json.loads(out.splitlines()[-1]))
    return results


@pytest.mark.multidevice
@pytest.mark.multiprocess
def test_saved_on_eight_devices_restored_on_any(tmp_path):
    ((losses, fingerprint, _, size),) = run(tmp_path, "save", (8, 1, 1), devices=8)
    for mesh, devices, processes in (((2, 2, 2), 8, 1), ((1, 1, 1), 1, 1), ((1, 2, 1), 1, 2)):
        for found, same, read, _ in run(
            tmp_path, "restore", mesh, devices=devices, processes=processes
        ):
            assert same == fingerprint, mesh
            assert found == pytest.approx(losses, rel=SAME), mesh
            assert read < 1.1 * size, (mesh, read, size)


@pytest.mark.multiprocess
def test_each_process_reads_its_part(tmp_path):
    """Saved in the parts of two devices; two processes read a half each, and go on alike."""
    ((losses, fingerprint, _, size),) = run(tmp_path, "save", (1, 2, 1), devices=2)
    for found, same, read, _ in run(tmp_path, "restore", (1, 2, 1), devices=1, processes=2):
        assert same == fingerprint
        assert found == pytest.approx(losses, rel=SAME)
        assert read < 0.7 * size, (read, size)
