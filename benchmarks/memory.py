"""Where the memory of a PPO iteration with four networks goes.

    python -m benchmarks.memory --shape gpt2

Prints what arithmetic says (weights of policy, value, reference and reward model; Adam's moments
and the gradients of the first two; float32), the arrays that JAX holds between iterations, and the
resident memory of this process in each phase. ``--suite memory`` of benchmarks.run compares the
peak with TRL's.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import jax

from benchmarks.cases import SHAPES, Case, make_cases
from benchmarks.config import BenchmarkConfig
from benchmarks.export import config_of, export
from benchmarks.ours import compilation
from benchmarks.ours_ppo import make_ppo
from rlhf_jax.cli import main
from rlhf_jax.errors import check
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.planning.report import table
from rlhf_jax.runs.startup import start

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def run(config: BenchmarkConfig) -> dict[str, float]:
    """MiB by what they are for, and by phase."""
    check(STATUS.is_file(), "benchmarks.memory reads /proc, which this system does not have")
    check(config.variant == ("separate",), "benchmarks.memory is for --variant separate")
    start(tune_malloc=True, compile_cache=None)
    jax.devices()
    (case,) = make_cases(replace(config, suite=("memory",)))
    before = resident("VmRSS")
    networks = count_parameters(case) * 4 / 2**20
    rows = {
        "weights of four networks": 2 * networks,
        "Adam's moments of policy and value model": 2 * networks,
        "gradients of policy and value model": networks,
    }
    rows["arithmetic"] = sum(rows.values())
    with tempfile.TemporaryDirectory() as folder:
        export(case, Path(folder))
        peaks = {"making the random weights": peak()}
        work = make_ppo(case, Path(folder), compilation())
        peaks["loading and placing them"] = peak()
        for phase in ("first iteration, with compilation", "second iteration"):
            work.repeat()
            peaks[phase] = peak()
    rows["arrays held between iterations"] = sum(x.nbytes for x in jax.live_arrays()) / 2**20
    rows["process before the first array"] = before
    rows |= {f"peak: {phase}": mib for phase, mib in peaks.items()}
    print(f"{case.name}; resident memory includes the process itself\n")
    whole = rows["arithmetic"]
    lines = [[name, f"{mib:,.0f}", f"{mib / whole:.2f}"] for name, mib in rows.items()]
    print(table(["", "MiB", "of arithmetic"], lines))
    return rows


def count_parameters(case: Case) -> int:
    """Of a language model and a scalar model together."""
    config, vocab_size, key = config_of(case), SHAPES[case.shape].vocab_size, jax.random.key(0)
    lm = jax.eval_shape(make_language_model(config, vocab_size).init, key)
    scalar = jax.eval_shape(make_scalar_model(config, vocab_size).init, key, lm["trunk"])
    return sum(leaf.size for leaf in jax.tree.leaves((lm, scalar)))


def resident(line: str) -> float:
    """A figure of /proc/self/status, in MiB."""
    (found,) = (row for row in STATUS.read_text().splitlines() if row.startswith(f"{line}:"))
    return int(found.split()[1]) / 2**10


def peak() -> float:
    """Largest resident memory since this was asked last, in MiB."""
    mib = resident("VmHWM")
    CLEAR.write_text("5")  # the peak starts anew from what is resident
    return mib


if __name__ == "__main__":
    main(run, BenchmarkConfig)
