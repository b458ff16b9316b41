"""Results as JSON and as a table in Markdown."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.config import BenchmarkConfig
from benchmarks.limits import limit_seconds
from benchmarks.ratios import Ratio, pairwise_ratio
from rlhf_jax.cli import to_dict

NOTE = """\
Ratios are theirs : ours, the median of neighbouring repetitions with quartiles in brackets: over 1,
ours is quicker (memory: smaller). On a machine that others use too, trust CPU seconds more than
wall seconds. The limit counts matrix products at the best GEMM rate of either side and the bytes
that must be read; ours and theirs are fractions of it.
"""


def write_results(
    results: Sequence[dict[str, Any]],
    config: BenchmarkConfig,
    *,
    commit: str,
    machine: dict[str, Any],
) -> Path:
    """COMMIT.json, to which a later call adds its cases, and COMMIT.md; returns the first."""
    settings = to_dict(config)
    for name in ("out", "baseline_python", "against"):
        settings[name] = None if settings[name] is None else Path(settings[name]).name
    other = "PyTorch" if config.against is None else "another checkout"
    added = [{**r, "against": other, "machine": machine, "config": settings} for r in results]
    path = config.out / f"{commit}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text())["results"] if path.exists() else []
    new = {key(result) for result in added}
    kept = [result for result in known if key(result) not in new]
    data = {"commit": commit, "results": kept + added}
    path.write_text(json.dumps(data, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(data))
    return path


def key(result: dict[str, Any]) -> tuple[str, str, int]:
    """What tells results apart: case, opponent, cores."""
    return result["name"], result["against"], result["machine"]["used"]


def column(result: dict[str, Any], side: str, name: str) -> list[float]:
    """A figure of one side in each turn."""
    return [turn[name] for turn in result["turns"][side]]


def ratio(result: dict[str, Any], name: str) -> Ratio:
    """Theirs by ours, over all pairs of turns."""
    return pairwise_ratio(column(result, "theirs", name), column(result, "ours", name))


def fraction_of_limit(result: dict[str, Any], side: str) -> float:
    """The limit by the median time: 1 could not be quicker."""
    gflops = max(result["gemm_gflops"].values())
    limit = limit_seconds(Case(**result["case"]), gflops=gflops, gbs=result["stream_gbs"])
    return limit / statistics.median(column(result, side, "wall"))


def markdown(data: dict[str, Any]) -> str:
    """The results as a table."""
    lines = [f"# Benchmarks at {data['commit']}", "", NOTE]
    lines += [
        "| case | against | cores | ours, s | wall ratio | CPU ratio | memory ratio | ours, MiB "
        "| compile, s | of the limit: ours / theirs | GEMM GFLOP/s ours / theirs | stream GB/s |",
        "|" + " --- |" * 12,
    ]
    for r in data["results"]:
        peak, gemm = r["peak_mib"], r["gemm_gflops"]
        cells = [
            r["name"],
            r["against"],
            str(r["machine"]["used"]),
            f"{statistics.median(column(r, 'ours', 'wall')):.3f}",
            str(ratio(r, "wall")),
            str(ratio(r, "cpu")),
            f"{peak['theirs'] / peak['ours']:.2f}",
            f"{peak['ours']:.0f}",
            f"{r['first']['ours']['compile_seconds']:.1f}",
            f"{fraction_of_limit(r, 'ours'):.2f} / {fraction_of_limit(r, 'theirs'):.2f}",
            f"{gemm['ours']:.0f} / {gemm['theirs']:.0f}",
            f"{r['stream_gbs']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    machines = {json.dumps(r["machine"], sort_keys=True) for r in data["results"]}
    lines += ["", *(f"- {describe_machine(json.loads(m))}" for m in sorted(machines))]
    return "\n".join(lines) + "\n"


def describe_machine(machine: dict[str, Any]) -> str:
    """A machine in words."""
    card = f"{machine['accelerator']}; " if "accelerator" in machine else ""
    return (
        f"{card}{machine['processor']} ({', '.join(machine['instructions'])}), "
        f"{machine['used']} of {machine['cores']} cores, load {machine['load_at_end']} at the end, "
        f"Python {machine['python']}"
    )
