"""The side of the protocol that a worker has: one line of JSON in, one out.

``prepare`` builds the case and runs it once (compilation included), ``repeat`` runs it once more
and measures it, ``limits`` measures what the machine can do, ``peak`` tells the peak of resident
memory.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cases import Case, from_json


class Work(NamedTuple):
    """A case made ready."""

    repeat: Callable[[], dict[str, float]]
    """Does the work once, to the end; returns what it wants to tell (parts in seconds)."""
    checks: dict[str, float]
    """Figures that must be equal on both sides: losses before the first step, counts."""
    seconds: Callable[[], dict[str, float]]
    """``compile_seconds`` until the first repetition was done; ours: ``trace_seconds`` of them."""


class Limits(NamedTuple):
    """How a library finds out what the machine can do, and what it took of it."""

    gemm: Callable[[Case], float]
    """GFLOP/s of a square product."""
    stream: Callable[[Case], float | None]
    """GB/s of reading a GPU's memory."""
    peak: Callable[[Case], float | None]
    """MiB of a GPU's memory that arrays took at most."""


def serve(make: Callable[[Case, str], Work], limits: Limits) -> None:
    """Answer the parent until it closes the pipe. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    case, folder = from_json(sys.argv[1]), sys.argv[2]
    work = None
    for line in sys.stdin:
        order = line.strip()
        if order == "prepare":
            start = time.perf_counter()
            work = make(case, folder)
            made = time.perf_counter()
            work.repeat()
            first = time.perf_counter() - made
            answer: dict[str, Any] = {
                "checks": work.checks,
                **work.seconds(),
                "first_seconds": first,
                "prepare_seconds": made - start,
            }
        elif order == "repeat":
            answer = measured(work.repeat)
        elif order == "limits":
            rate = limits.stream(case)
            rate = stream() if rate is None else rate
            answer = {"gemm_gflops": limits.gemm(case), "stream_gbs": rate}
        else:
            mib = limits.peak(case)
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            answer = {"peak_mib": resident if mib is None else mib}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def measured(repeat: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Wall and CPU seconds (all threads) of one repetition."""
    wall, cpu = time.perf_counter(), time.process_time()
    told = repeat()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **told}


GEMM_SIZE = {"cpu": 2048, "gpu": 8192}
"""Rows of the square product that tells a device's rate."""


def best_gbs(read: Callable[[], Any], size: int) -> float:
    """``size`` bytes over the shortest of several reads, in GB/s."""
    return size / shortest(read) / 1e9


def best_gflops(product: Callable[[], Any], n: int) -> float:
    """2 n³ over the shortest of several products, in GFLOP/s."""
    return 2 * n**3 / shortest(product) / 1e9


def shortest(work: Callable[[], Any]) -> float:
    """Seconds of the shortest of several, after one that is not counted."""
    work()
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def stream(mebibytes: int = 256) -> float:
    """Reading memory once with one thread per core, the best of several, in GB/s."""
    threads = len(os.sched_getaffinity(0))
    parts = [np.ones(mebibytes * 2**18 // threads, np.float32) for _ in range(threads)]

    def read():
        readers = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    return best_gbs(read, sum(part.nbytes for part in parts))
