"""The same work on our side and in PyTorch, in turns, with what the machine could do.

    python -m benchmarks.run --suite generate ppo --shape tiny
    python -m benchmarks.run --suite pretrain --shape gpt2 --cores 1
    python -m benchmarks.run --suite ppo --against ../another-checkout

Each case has one process per side. Both are made ready and run once; then they take turns A B A B,
one repetition at a time, and the median of the ratios of neighbours counts. Writes
benchmarks/results/COMMIT.json and .md.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, make_cases
from benchmarks.config import BenchmarkConfig
from benchmarks.table import write_results
from rlhf_jax.cli import main
from rlhf_jax.errors import InputError, RunError

ROOT = Path(__file__).parents[1]
TOLERANCE = {"float32": 1e-4, "tf32": 2e-3, "bfloat16": 2e-2}
"""Relative difference of losses from the same weights, at which the work is not the same."""


class Side:
    """A worker process and the lines it is told and answers."""

    def __init__(self, command: list[str], cwd: Path, environment: dict, log: Path):
        self.log = log
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )

    def ask(self, order: str) -> dict[str, Any]:
        """Have the worker do something, and read its answer. Raises RunError if it died."""
        try:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self.log.read_text()[-2000:]
            raise RunError(f"the worker {self.log.stem} died:\n{tail}")
        return json.loads(line)

    def close(self) -> None:
        """End the worker."""
        self.process.kill()
        self.process.wait()


def run(config: BenchmarkConfig) -> None:
    """Measure all cases and write the results."""
    theirs = baseline_python(config)
    results = []
    for case in make_cases(config):
        print(case.name, flush=True)
        results.append(measure(case, config, theirs))
    path = write_results(results, config, commit=commit(ROOT), machine=machine(config))
    print(path.with_suffix(".md").read_text(), end="")


def baseline_python(config: BenchmarkConfig) -> Path:
    """The interpreter of the other side. Raises InputError if it is not there."""
    if config.against is not None:
        if not (config.against / "benchmarks/ours.py").is_file():
            raise InputError(f"--against {config.against}: no checkout with benchmarks/ours.py")
        return Path(sys.executable)
    python = config.baseline_python or ROOT / ".venv-torch/bin/python"
    if not python.is_file():
        raise InputError(
            f"--baseline-python {python}: no such file; make test-torch makes .venv-torch"
        )
    return python


def measure(case: Case, config: BenchmarkConfig, python: Path) -> dict[str, Any]:
    """One case: checks, repetitions of both sides, limits."""
    environment = quiet_environment(config.cores, config.device)
    name = "ours" if config.against else "theirs"
    root = (config.against or ROOT).resolve()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [case.to_json(), folder]
        export = [sys.executable, "-m", "benchmarks.export", *arguments]
        subprocess.run(export, cwd=ROOT, env=environment, check=True)
        logs = Path(folder)
        a = Side(
            pinned([sys.executable, "-m", "benchmarks.ours", *arguments], config.cores),
            *(ROOT, environment, logs / "ours.log"),
        )
        b = Side(
            # The interpreter is not resolved: a link's place tells Python its environment.
            pinned([str(python.absolute()), "-m", f"benchmarks.{name}", *arguments], config.cores),
            *(root, environment, logs / "theirs.log"),
        )
        try:
            sides = {"ours": a, "theirs": b}
            first = {side: worker.ask("prepare") for side, worker in sides.items()}
            check_equal(case, first)
            turns = {side: [] for side in sides}
            for _ in range(config.repeats):
                for side, worker in sides.items():
                    turns[side].append(worker.ask("repeat"))
            check_made(case, turns)
            peaks = {side: worker.ask("peak")["peak_mib"] for side, worker in sides.items()}
            limits = [worker.ask("limits") for worker in sides.values()]
        finally:
            a.close()
            b.close()
    return {
        "name": case.name,
        "case": asdict(case),
        "first": first,
        "turns": turns,
        "peak_mib": peaks,
        "gemm_gflops": {s: x["gemm_gflops"] for s, x in zip(sides, limits, strict=True)},
        "stream_gbs": max(x["stream_gbs"] for x in limits),
    }


def check_equal(case: Case, first: dict[str, Any]) -> None:
    """Raise RunError unless both sides found the same figures from the same weights."""
    ours, theirs = (first[side]["checks"] for side in ("ours", "theirs"))
    for name, figure in ours.items():
        allowed = TOLERANCE[case.dtype] * max(abs(theirs[name]), 1e-2)
        if abs(figure - theirs[name]) > allowed:
            raise RunError(f"{case.name}: {name} is {figure} here and {theirs[name]} there")


def check_made(case: Case, turns: dict[str, list[dict]]) -> None:
    """Raise RunError unless both sides sampled as many tokens (where both say how many)."""
    for ours, theirs in zip(turns["ours"], turns["theirs"], strict=True):
        if ours.get("tokens", 0) != theirs.get("tokens", ours.get("tokens", 0)):
            raise RunError(f"{case.name}: {ours['tokens']} tokens here, {theirs['tokens']} there")


def quiet_environment(cores: int, device: str) -> dict[str, str]:
    """Threads as many as cores; no thread spins while it waits for the other side's turn."""
    backend = "cuda" if device == "gpu" else os.environ.get("JAX_PLATFORMS", "cpu")
    threads = str(cores or os.cpu_count())
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    hide = {"OPENBLAS_CORETYPE"}
    return {k: v for k, v in os.environ.items() if k not in hide} | {
        **dict.fromkeys(names, threads),
        "KMP_BLOCKTIME": "0",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "JAX_PLATFORMS": backend,
        # Both sides are on the card at once.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def pinned(command: list[str], cores: int) -> list[str]:
    """``command`` on the last ``cores`` processors only."""
    if not cores:
        return command
    allowed = sorted(os.sched_getaffinity(0))[-cores:]
    return ["taskset", "-c", ",".join(map(str, allowed)), *command]


def commit(root: Path) -> str:
    """Short hash of HEAD, with a mark when files differ from it."""

    def git(*words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", "HEAD") + dirty


def machine(config: BenchmarkConfig) -> dict[str, Any]:
    """The kind of machine, never its name."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line.split(":", 1)[1].strip() for line in facts.splitlines() if ":" in line]
    keys = [line.split(":", 1)[0].strip() for line in facts.splitlines() if ":" in line]
    table = dict(zip(keys, lines, strict=True))
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "processor": table.get("model name", platform.processor()),
        "instructions": [flag for flag in wanted if flag in table.get("flags", "").split()],
        "cores": os.cpu_count(),
        "used": config.cores or os.cpu_count(),
        "load_at_end": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **({"accelerator": accelerator()} if config.device == "gpu" else {}),
    }


def accelerator() -> str:
    """The kind of the card and its driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    main(run, BenchmarkConfig)
