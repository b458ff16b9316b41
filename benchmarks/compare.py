"""What changed between two results beyond noise: ``python -m benchmarks.compare A B``.

A and B are commits with a file in benchmarks/results/, or paths. Compared are the ratios to the
same baseline, so that a slower day changes nothing: a case counts as changed when the quartiles of
the two ratios do not overlap.
"""

import json
import sys
from pathlib import Path

from benchmarks.ratios import Ratio
from benchmarks.table import key, ratio

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict:
    """The results of a commit or a file, by case, opponent and cores."""
    path = Path(name) if name.endswith(".json") else RESULTS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json"))) or "none"
        raise SystemExit(f"error: {path}: no such file (results: {known})")
    results = json.loads(path.read_text())["results"]
    return {key(result): result for result in results}


def verdict(before: Ratio, after: Ratio) -> str:
    """Whether two ratios differ beyond their intervals, and by what factor."""
    if after.low > before.high:
        return f"{after.median / before.median:.2f} x quicker"
    if after.high < before.low:
        return f"{before.median / after.median:.2f} x slower"
    return "no change beyond noise"


def compare(first: str, second: str) -> list[str]:
    """Lines of a table of the cases that both have, and what only one has."""
    a, b = load(first), load(second)
    lines = [f"| case | {first} | {second} | wall | CPU |", "|" + " --- |" * 5]
    for name in sorted(a.keys() & b.keys()):
        wall = [ratio(side[name], "wall") for side in (a, b)]
        cpu = [ratio(side[name], "cpu") for side in (a, b)]
        label = f"{name[0]} against {name[1]}, cores: {name[2]}"
        lines.append(f"| {label} | {wall[0]} | {wall[1]} | {verdict(*wall)} | {verdict(*cpu)} |")
    lines += [f"only in {first}: {name[0]}" for name in sorted(a.keys() - b.keys())]
    lines += [f"only in {second}: {name[0]}" for name in sorted(b.keys() - a.keys())]
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m benchmarks.compare A B")
    print("\n".join(compare(*sys.argv[1:])))
