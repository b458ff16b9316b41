"""Do stages crash, and do killed ones end with the same bits? Hundreds of starts, run by hand.

    export PYTHONPATH=.:tests/helpers
    python tests/kills.py 300                      # so many starts, some hours
    python tests/kills.py 300 --folder /tmp/kills  # where its files lie

The shrunken stages of little_chain.py run once undisturbed. Then one after another is started with
another cache of compiled programs (filled, empty, or empty and filled by processes that are
killed), with freed memory that is overwritten or not, is killed at random moments, and started
again until it ends. A start counts as crashed if it ends by a signal that nobody sent, and a run as
different if its outcome is not that of the undisturbed one. With none in n, fewer than 3 in n are
likely (95 %). Whoever edits meanwhile runs it in a copy of the repository.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from conftest import pytest_configure
from little_chain import STAGES, little_quickstart, outcome, stages
from tiny import ROOT, process_environment, write_data

SECONDS = 1800
"""After which a start is given up: it hangs, or others have the processor (its log says)."""
GIVEN_UP = -99


class Trial(NamedTuple):
    """One run, from its first start to its end."""

    stage: str
    cache: str
    """"filled", "empty", or "half": those who filled it were killed."""
    overwritten: int
    """MALLOC_PERTURB_: the byte that freed memory is overwritten with; 0: it is left."""
    kills: list[float]
    """Seconds after the run's folder was there."""
    codes: list[int]
    """Exit codes of starts that were not killed; negative: a signal, or given up."""
    same: bool


def prepare(folder: Path) -> None:
    """Run every stage once, and scanned pretraining, and keep their configs and outcomes."""
    pytest_configure(None)
    c = little_quickstart(folder / "chain").resolve()
    write_data(c)
    found = {}
    for name, config in stages(c).items():
        STAGES[name].run(config)
        found[name] = outcome(config.run.dir)
    scanned = replace(
        c.pretrain,
        model=replace(c.pretrain.model, scan_layers=True),
        run=replace(c.pretrain.run, dir=folder / "chain" / "scanned"),
    )
    STAGES["pretrain"].run(scanned)
    found["scanned"] = outcome(scanned.run.dir)
    (folder / "outcomes.json").write_text(json.dumps(found))


def command(folder: Path, stage: str, out: Path) -> list[str]:
    module = {"comparisons": "compare", "scanned": "pretrain"}.get(stage, stage)
    preset = folder / "chain" / stage / "config.json"
    run = ["--run.dir", str(out), "--run.save-every", "1"]
    return [sys.executable, "-m", f"experiments.{module}", "--config", str(preset), *run]


def start(words: list[str], cache: Path, overwritten: int, errors: Path) -> subprocess.Popen:
    environment = process_environment(
        PYTHONFAULTHANDLER="1",
        JAX_COMPILATION_CACHE_DIR=str(cache),
        **({"MALLOC_PERTURB_": str(overwritten)} if overwritten else {}),
    )
    with errors.open("ab") as log:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log
        )


def wait(process: subprocess.Popen, seconds: float, until: Callable[[], bool]) -> int | None:
    """The exit code, or None if ``seconds`` passed or ``until`` came true before the end."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not until():
        time.sleep(0.01)
    return process.poll()


def one_trial(
    folder: Path, chance: random.Random, expected: dict[str, str], longest: dict
) -> Trial:
    """``longest`` are seconds that runs took after their folder was there, to aim the kills."""
    stage = chance.choice(list(expected))
    cache = chance.choice(["filled", "filled", "empty", "half"])
    overwritten = chance.choice([0, chance.randrange(1, 256)])
    programs, out = folder / f"cache_{cache}", folder / f"{stage}_{time.time_ns()}"
    if cache != "filled":
        shutil.rmtree(programs, ignore_errors=True)
    kills, codes, planned = [], [], 0 if cache == "empty" else chance.choice([1, 2])
    while not codes:
        errors = out.with_suffix(".log")
        process = start(command(folder, stage, out), programs, overwritten, errors)
        wait(process, SECONDS, (out / "config.json").exists)
        began = time.monotonic()
        after = chance.uniform(0, longest.get((stage, cache), 10.0))
        code = wait(process, after if len(kills) < planned else SECONDS, lambda: False)
        if code is None:
            process.kill()
            process.wait()
        if code is None and len(kills) < planned:
            kills.append(round(after, 2))
        else:
            codes.append(GIVEN_UP if code is None else code)
            longest[stage, cache] = time.monotonic() - began
    same = codes == [0] and outcome(out) == expected[stage]
    if same:
        shutil.rmtree(out)
        errors.unlink()
    return Trial(stage, cache, overwritten, kills, codes, same)


def report(trials: list[dict[str, Any]]) -> str:
    starts = sum(len(t["kills"]) + len(t["codes"]) for t in trials)
    kills = sum(len(t["kills"]) for t in trials)
    given_up = [t for t in trials if GIVEN_UP in t["codes"]]
    crashes = sum(any(code < 0 for code in t["codes"]) for t in trials if t not in given_up)
    other = [t for t in trials if not t["same"] and t not in given_up]
    bound = f"; none in n: under {3 / max(starts, 1):.1%} of starts, {3 / max(len(trials), 1):.1%}"
    return (
        f"{len(trials)} runs, {starts} starts, {kills} kills; {len(given_up)} not ended in "
        f"{SECONDS} s, {crashes} crashes, "
        f"{len(other)} not as undisturbed{'' if other else bound + ' of runs'}"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("starts", type=int)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/rlhf_jax_kills"))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    folder, log = asked.folder.absolute(), asked.folder / "trials.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    if not (folder / "outcomes.json").is_file():
        prepare(folder)
    expected = json.loads((folder / "outcomes.json").read_text())
    trials = [json.loads(line) for line in log.open()] if log.is_file() else []
    chance, longest = random.Random(asked.seed + len(trials)), {}
    while sum(len(t["kills"]) + len(t["codes"]) for t in trials) < asked.starts:
        trials.append(one_trial(folder, chance, expected, longest)._asdict())
        with log.open("a") as file:
            file.write(json.dumps(trials[-1]) + "\n")
        print(report(trials), flush=True)
    return int(any(not t["same"] for t in trials))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
