"""The benchmark's arithmetic, that unequal work is refused, and one run of it against itself."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny

from benchmarks.cases import Case, make_cases
from benchmarks.compare import compare, verdict
from benchmarks.config import BenchmarkConfig
from benchmarks.limits import limit_seconds
from benchmarks.ratios import Ratio, pairwise_ratio
from benchmarks.run import check_equal, check_made
from benchmarks.table import key
from rlhf_jax.errors import InputError, RunError

ROOT = Path(__file__).parents[2]


def case(suite, **changes):
    facts = dict(suite=suite, shape="tiny", dtype="float32", batch=8, prompt=64, length=64)
    return Case(**(facts | changes))


def test_ratios_are_of_neighbours():
    """A machine that becomes three times slower half-way changes no ratio."""
    ours, theirs = [1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 6.0, 6.0]
    assert pairwise_ratio(theirs, ours) == Ratio(2.0, 2.0, 2.0)


def test_cases_of_a_command():
    config = BenchmarkConfig(suite=("generate", "ppo"), variant=("separate", "lora"))
    names = [c.name for c in make_cases(config)]
    assert names == [
        "generate tiny float32 1x64+64",
        "generate tiny float32 8x64+64",
        "generate tiny float32 32x64+64",
        "ppo tiny float32 16x32+32 separate",
        "ppo tiny float32 16x32+32 lora",
    ]


def test_limits():
    """Counted by hand for 4 layers of width 256 and 4,096 words."""
    trunk, head = 4 * 12 * 256**2, 4096 * 256
    training = limit_seconds(case("pretrain"), gflops=100, gbs=10)
    assert training == pytest.approx(6 * (trunk + head) * 8 * 64 / 100e9)
    cache = 2 * 4 * 256 * (64 + 63 / 2)
    one = limit_seconds(case("generate", batch=1), gflops=1e9, gbs=10)
    assert one == pytest.approx(63 * 4 * (trunk + head + cache) / 10e9, rel=1e-6)
    many = limit_seconds(case("generate"), gflops=1, gbs=1e9)
    assert many == pytest.approx(2 * 8 * (trunk * 64 + head + 63 * (trunk + head)) / 1e9)


def test_unequal_work_is_refused():
    first = {side: {"checks": {"loss": 8.5}} for side in ("ours", "theirs")}
    check_equal(case("pretrain"), first)
    first["ours"]["checks"]["loss"] = 8.51
    with pytest.raises(RunError, match=r"loss is 8\.51 here and 8\.5 there"):
        check_equal(case("pretrain"), first)


def test_as_many_tokens_on_both_sides():
    turns = {side: [{"wall": 1.0, "tokens": 512}] for side in ("ours", "theirs")}
    check_made(case("generate"), turns)
    del turns["theirs"][0]["tokens"]  # TRL does not say
    check_made(case("ppo"), turns)
    turns["theirs"][0]["tokens"] = 500
    with pytest.raises(RunError, match="512 tokens here, 500 there"):
        check_made(case("generate"), turns)


def test_only_changes_beyond_noise_count():
    assert verdict(Ratio(2.0, 1.9, 2.1), Ratio(2.5, 2.4, 2.6)) == "1.25 x quicker"
    assert verdict(Ratio(2.5, 2.4, 2.6), Ratio(2.0, 1.9, 2.1)) == "1.25 x slower"
    assert verdict(Ratio(2.0, 1.8, 2.2), Ratio(2.1, 2.0, 2.3)) == "no change beyond noise"


@pytest.mark.slow
def test_run_against_itself(tmp_path):
    """The whole command: both workers, equal losses, a file that compare reads."""
    command = ["benchmarks.run", "--suite", "reward", "ppo", "--shape", "nano", "--batch", "4"]
    options = ["--repeats", "3", "--length", "8", "--against", str(ROOT)]
    subprocess.run(
        [sys.executable, "-m", *command, *options, "--out", str(tmp_path)],
        cwd=ROOT,
        env=tiny.process_environment(),
        check=True,
        timeout=300,
    )
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text())["results"]
    assert [r["case"]["suite"] for r in results] == ["reward", "ppo"]
    assert len({key(r) for r in results}) == 2
    for r in results:
        assert r["first"]["ours"]["checks"] == r["first"]["theirs"]["checks"]
        assert [len(turns) for turns in r["turns"].values()] == [3, 3]
    lines = compare(str(path), str(path))
    assert sum("no change beyond noise" in line for line in lines) == 2


@pytest.mark.slow
def test_the_script_for_gpus_goes_through_its_steps(tmp_path):
    """On a processor: a step that fails and one for which no time is left do not end the others."""
    settings = dict(DEVICE="cpu", SHAPE="nano", AGAINST=".", PYTHON=sys.executable, LIMIT="300")
    settings |= dict(STEPS="facts generate", PYTHON_OF_TORCH="/bin/false")
    run = partial(
        subprocess.run, ["bash", "benchmarks/gpu.sh", str(tmp_path)], cwd=ROOT, capture_output=True
    )
    done = run(env=tiny.process_environment(**settings), text=True, timeout=300)
    facts, generate = (tmp_path / "summary.txt").read_text().splitlines()
    assert facts.startswith("facts: failed with status 1") and done.returncode == 1
    assert generate.startswith("generate: ok"), (tmp_path / "generate.log").read_text()
    (path,) = (tmp_path / "results").glob("*.json")
    assert len(json.loads(path.read_text())["results"]) == 3
    late = tiny.process_environment(**settings | dict(LIMIT="0", STEPS="smollm"))
    assert run(env=late, text=True).stdout == "smollm: not begun: no time, 0 s\n"


def test_what_is_of_gpus_alone_is_refused_without_one():
    with pytest.raises(InputError, match="--dtype tf32 is of GPUs"):
        BenchmarkConfig(dtype="tf32")
    with pytest.raises(InputError, match="--cores is of processors"):
        BenchmarkConfig(device="gpu", cores=1)
    (case,) = make_cases(BenchmarkConfig(suite=("sft",), device="gpu", dtype="tf32"))
    assert (case.name, case.arrays) == ("sft tiny tf32 8x0+128 on a GPU", "float32")


def printed(*command: str) -> str:
    """What a command of benchmarks/ prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=tiny.process_environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout


@pytest.mark.slow
def test_memory_of_four_networks():
    """What JAX holds between iterations is the state and both frozen networks, once."""
    text = printed("benchmarks.memory", "--shape", "nano")
    pattern = r"^\| (.+?) \| [\d,]+ \| ([\d.]+) \|$"
    shares = {name: float(share) for name, share in re.findall(pattern, text, re.M)}
    assert shares["arithmetic"] == 1
    assert shares["arrays held between iterations"] == pytest.approx(0.8, abs=0.03)
    phases = [share for name, share in shares.items() if name.startswith("peak: ")]
    assert len(phases) == 4 and min(phases) >= shares["process before the first array"]


@pytest.mark.slow
def test_a_second_start_compiles_nothing():
    command = "benchmarks.starts --suite reward --shape nano --batch 4 --length 8"
    pattern = r"^\| reward nano .+? \| (.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$"
    found = re.findall(pattern, printed(*command.split()), re.M)
    rows = {name: [float(first), float(second)] for name, first, second, _ in found}
    first, second = rows.pop("programs compiled")
    assert first > 0 and second == 0
    whole = rows.pop("until the first repetition is done, s")
    assert set(rows) == {"tracing, s", "compiling or loading, s"}
    assert all(0 < part[start] < whole[start] for part in rows.values() for start in (0, 1))
