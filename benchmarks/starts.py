"""How long a first step takes at the first start on a machine, and at the second.

    python -m benchmarks.starts --suite generate pretrain ppo --shape tiny

Each start is a process of its own, with the same inputs. The first finds an empty compilation
cache, the second what the first has left there. Tracing is Python's part and is done every time.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.cases import Case, make_cases
from benchmarks.config import BenchmarkConfig
from benchmarks.run import ROOT, Side, pinned, quiet_environment
from rlhf_jax.cli import main
from rlhf_jax.planning.report import table

CACHE_EVERYTHING = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""As ``training/startup.py`` sets it for the experiments."""


def run(config: BenchmarkConfig) -> None:
    """Measure two starts of each case and print them."""
    rows = []
    for case in make_cases(config):
        first, second = two_starts(case, config.cores)
        for part in first:
            figures = (
                f"{first[part]:.1f}",
                f"{second[part]:.1f}",
                f"{second[part] / first[part]:.2f}",
            )
            rows.append([case.name, part, *figures])
    print(table(["", "", "first start", "second start", "second / first"], rows))


def two_starts(case: Case, cores: int) -> tuple[dict[str, float], dict[str, float]]:
    """Programs compiled and seconds, of the first start and of the second.

    Seconds of tracing, of compiling (or loading), and of all until the first repetition is done.
    """
    environment = quiet_environment(cores, "cpu") | CACHE_EVERYTHING
    with tempfile.TemporaryDirectory() as folder:
        arguments = [case.to_json(), folder]
        export = [sys.executable, "-m", "benchmarks.export", *arguments]
        subprocess.run(export, cwd=ROOT, env=environment, check=True)
        cache = Path(folder, "cache")
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        command = pinned([sys.executable, "-m", "benchmarks.ours", *arguments], cores)
        found = []
        for name in ("first", "second"):
            known = count_programs(cache)
            worker = Side(command, ROOT, environment, Path(folder, f"{name}.log"))
            try:
                told = worker.ask("prepare")
            finally:
                worker.close()
            found.append(
                {
                    "programs compiled": count_programs(cache) - known,
                    "tracing, s": told["trace_seconds"],
                    "compiling or loading, s": told["compile_seconds"] - told["trace_seconds"],
                    "until the first repetition is done, s": told["prepare_seconds"]
                    + told["first_seconds"],
                }
            )
    return found[0], found[1]


def count_programs(cache: Path) -> int:
    """Programs in the compilation cache."""
    return len(list(cache.glob("*-cache")))


if __name__ == "__main__":
    main(run, BenchmarkConfig)
