"""Labelers at the page while a round trains: answers per second, and how long people wait for one.

    python -m benchmarks.labelers                       # 50 labelers: a minute with, one without
    python -m benchmarks.labelers --labelers 10 --seconds 20

Server, labelers (threads that take a task, rank it, and take the next without a pause) and training
(the PPO of ``benchmarks.run --suite ppo``, again and again) share the same cores, as with
``experiments.feedback run`` on one machine. Writes benchmarks/results/labelers_COMMIT.json.
"""

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import make_cases
from benchmarks.config import BenchmarkConfig, LabelersConfig
from benchmarks.run import ROOT, Side, commit, machine, pinned, quiet_environment
from rlhf_jax.cli import main
from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import RunError
from rlhf_jax.feedback import accounts, queue
from rlhf_jax.feedback.client import Client
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.store import Database

SERVER = """
import sys
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.web.serve import listen, serve
from rlhf_jax.feedback.web.site import Site
site = Site(open_database(sys.argv[1]), per_second=1e6)
serve(site, listen("127.0.0.1", int(sys.argv[2])), token="x" * 16, host="127.0.0.1")
"""
START_SECONDS = 120.0


def run(config: LabelersConfig) -> None:
    """Measure with and without training beside it, print both and write them."""
    results = []
    for is_training in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(config, Path(folder), is_training=is_training))
        print(json.dumps(results[-1]), flush=True)
    facts = machine(BenchmarkConfig(cores=config.cores))
    name = commit(ROOT)
    body = {"commit": name, "machine": facts, "config": asdict(config) | {"out": config.out.name}}
    write_atomically(
        config.out / f"labelers_{name}.json", json.dumps(body | {"results": results}, indent=1)
    )


def measure(config: LabelersConfig, folder: Path, *, is_training: bool) -> dict[str, Any]:
    """Seconds of every answer of one server, by what was asked."""
    database = open_database(folder / "store.sqlite")
    with serving(folder, config.cores) as url, training(folder, config, is_training) as updates:
        people = [
            (Client(url, accounts.add_labeler(database, f"L{n}")[1]), [], [])
            for n in range(config.labelers)
        ]
        fill(database, config.tasks)
        end = time.monotonic() + config.seconds
        threads = [threading.Thread(target=label, args=(*each, end)) for each in people]
        started, trained = time.monotonic(), len(updates)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - started
        trained = len(updates) - trained
    waits = {"task": [x for each in people for x in each[1]]}
    waits |= {"label": [x for each in people for x in each[2]]}
    return {
        "training": is_training,
        "updates": trained,
        "seconds": round(seconds, 1),
        "per_second": round(sum(map(len, waits.values())) / seconds, 1),
        **{name: described(values) for name, values in waits.items()},
    }


def described(seconds: list[float]) -> dict[str, float]:
    """How many, with the median and the 99th percentile in milliseconds."""
    if not seconds:
        raise RunError("the tasks were used up, or nobody was answered: more --tasks or --seconds")
    quantiles = np.quantile(seconds, [0.5, 0.99])
    return {"count": len(seconds)} | {
        name: round(1e3 * float(value), 1)
        for name, value in zip(("p50_ms", "p99_ms"), quantiles, strict=True)
    }


def label(client: Client, tasks: list[float], labels: list[float], end: float) -> None:
    """Take and rank until the end; how long each answer took."""
    while time.monotonic() < end:
        before = time.monotonic()
        task = client.take()
        tasks.append(time.monotonic() - before)
        if task is None:
            return
        before = time.monotonic()
        client.rank(task, range(len(task.responses)), submission=secrets.token_hex(16))
        labels.append(time.monotonic() - before)


def fill(database: Database, count: int) -> None:
    """Tasks of four answers of some hundred characters."""
    words = "the answer of a policy to what somebody asked " * 8
    tasks = []
    for n in range(count):
        responses = [queue.Response(f" {k} {n} {words}", "p") for k in range(4)]
        tasks.append(queue.NewTask(f"prompt {n}", responses))
    queue.add_tasks(database, tasks)


@contextlib.contextmanager
def serving(folder: Path, cores: int) -> Generator[str]:
    """A site of its own process on a free port, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(folder / "store.sqlite"), str(port)]
    process = subprocess.Popen(pinned(command, cores), cwd=ROOT, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def training(folder: Path, config: LabelersConfig, is_training: bool) -> Generator[list]:
    """PPO beside it, if there is any; the list grows with each update."""
    done: list[dict] = []
    if not is_training:
        yield done
        return
    (case,) = make_cases(BenchmarkConfig(suite=("ppo",), shape=config.shape))
    environment = quiet_environment(config.cores, "cpu")
    arguments = [case.to_json(), str(folder)]
    export = [sys.executable, "-m", "benchmarks.export", *arguments]
    subprocess.run(export, cwd=ROOT, env=environment, check=True)
    command = pinned([sys.executable, "-m", "benchmarks.ours", *arguments], config.cores)
    side = Side(command, ROOT, environment, folder / "ours.log")
    side.ask("prepare")
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            done.append(side.ask("repeat"))

    thread = threading.Thread(target=train)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()
        side.close()


if __name__ == "__main__":
    main(run, LabelersConfig)
