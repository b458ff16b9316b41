"""Two processes of two devices are one process of four; a dead peer ends all, and all go on."""

import contextlib
import datetime
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import hosts_worker
import jax
import numpy as np
import pytest
import tiny
from local_server import free_port
from precision import SAME

from configs import quickstart
from experiments import instructgpt
from rlhf_jax.config import ParallelConfig
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.runs.checkpoints import load_params
from rlhf_jax.runs.fingerprints import partial_sum
from rlhf_jax.training import hosts
from rlhf_jax.training.hosts import cluster, connect, leave

WORKER = tiny.HELPERS / "hosts_worker.py"


def test_the_launcher_is_recognised():
    assert cluster({}) is None
    assert cluster({"SLURM_NTASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert cluster({"SLURM_NTASKS": "4"}) == "Slurm"
    assert cluster({"OMPI_COMM_WORLD_SIZE": "2"}) == "Open MPI"
    assert cluster({"TPU_WORKER_HOSTNAMES": "t1,t2"}) == "TPU pod"


def test_processes_need_a_coordinator():
    with pytest.raises(InputError, match=r"processes=2 needs parallel\.coordinator"):
        ParallelConfig(processes=2)
    with pytest.raises(InputError, match=r"process_id=2 is not in 0\.\.1"):
        ParallelConfig(coordinator="a:1", processes=2, process_id=2)


def test_alone_nothing_is_joined(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    connect(ParallelConfig(hosts="off"))


@pytest.mark.parametrize(
    "error, code, said",
    [
        (InputError("--data x does not exist"), 2, "process 0 of 1: --data x does not exist"),
        (RunError("loss is NaN"), 1, "process 0 of 1: loss is NaN"),
        (OSError(28, "No space left on device", "runs/x"), 1, "start all of them again"),
        (KeyboardInterrupt(), 130, "by Ctrl-C, without saving; start all of them again"),
        (ValueError("odd"), 1, "failed, and so ends all of them; start all of them again"),
    ],
)
def test_a_process_that_leaves_says_why_in_one_line(error, code, said, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    leave(error)
    lines = capsys.readouterr().err.splitlines()
    assert codes == [code] and lines[-1].startswith("stopped: process") and said in lines[-1]
    assert len(lines) == 1 or isinstance(error, ValueError)


def test_all_take_the_time_of_the_first(monkeypatch):
    here, first = datetime.datetime(2026, 3, 1, 0, 0, 5), datetime.datetime(2026, 2, 28, 23, 59, 59)
    assert hosts.agreed_time(here) == here  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    sent = []
    one_to_all = lambda value: sent.append(value) or sent[0]
    monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", one_to_all)
    assert [hosts.agreed_time(each) for each in (first, here)] == [first, first]


def test_the_chain_says_before_any_work_that_it_is_one_process(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(InputError, match="the chain runs in one process"):
        instructgpt.run(replace(quickstart.get_config(), dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int32", "float64"])
def test_shares_of_a_fingerprint_add_up_however_it_is_split(dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x = np.random.default_rng(0).normal(size=(6, 5, 8)).round().astype(kind)
    whole = partial_sum(x, (slice(None),) * 3, x.shape)
    for axis, cut in ((0, 2), (1, 3), (2, 5)):
        parts = []
        for bounds in (slice(0, cut), slice(cut, None)):
            index = tuple(bounds if a == axis else slice(None) for a in range(3))
            parts.append(partial_sum(x[index], index, x.shape))
        assert sum(parts) % 2**64 == whole
    swapped = x[::-1]
    assert partial_sum(swapped, (slice(None),) * 3, x.shape) != whole
    raw = np.ascontiguousarray(x).view(np.uint8).copy()
    raw.reshape(-1)[7 * x.dtype.itemsize] ^= 1
    assert partial_sum(raw.view(x.dtype).reshape(x.shape), (slice(None),) * 3, x.shape) != whole


# --- processes --------------------------------------------------------------------------------


def launch(folder, stages, runs, steps, mesh, *, processes, devices, mode="mesh"):
    """The processes of one run, with a log file each."""
    port, started = free_port(), []
    for rank in range(processes):
        several = [port, processes, rank] if processes > 1 else []
        arguments = [WORKER, folder, stages, runs, steps, mode, *mesh, *several]
        log = open(folder / f"log{rank}_{runs.name}", "a")  # noqa: SIM115
        started.append(
            subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env=tiny.process_environment(
                    JAX_NUM_CPU_DEVICES=str(devices),
                    JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
                    JAX_ENABLE_X64="1",
                ),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
    return started


def finish(started, seconds=900):
    try:
        return [process.wait(timeout=seconds) for process in started]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def log_of(folder, runs, rank=0):
    return (folder / f"log{rank}_{runs.name}").read_text()


def await_checkpoint(runs, started, step):
    """Wait until the checkpoint of ``step`` is complete."""
    end = time.monotonic() + 300
    while not (runs / "sft" / "checkpoints" / str(step)).is_dir():
        assert all(process.poll() is None for process in started), "ended too early"
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    hosts_worker.make_inputs(folder)
    return folder


def largest_gap(a, b):
    import jax

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def episodes(runs):
    """Responses and scores of every sample, and the figures of every iteration."""
    lines = lambda name: [json.loads(line) for line in (runs / "ppo" / name).open()]
    figures = ("objective/scores", "objective/kl", "objective/rlhf_reward", "response_length")
    return (
        [row["response"] for row in lines("samples.jsonl")],
        [row["score"] for row in lines("samples.jsonl")],
        [row[name] for row in lines("metrics.jsonl") for name in figures],
    )


STAGES = "pretrain", "sft", "reward", "dpo", "ppo"
STEPS = 3


@pytest.fixture(scope="module")
def one(inputs):
    """All stages in one process of four devices, and PPO there in other layouts as well."""
    runs = inputs / "one"
    options = dict(processes=1, devices=4, mode="layouts")
    started = launch(inputs, ",".join(STAGES), runs, STEPS, (2, 2, 1), **options)
    assert finish(started) == [0], log_of(inputs, runs)[-3000:]
    return runs


@pytest.mark.multidevice
def test_a_ppo_run_samples_and_scores_the_same_in_every_layout(one):
    """Rollout, rewards, update, and the figures of the rollout of what the update made.

    What each layout computes, that of tensors too, is held in test_parallel.py.
    """
    layouts = {name: one.with_name(name) for name in hosts_worker.LAYOUTS}
    found = {"2x2": episodes(one)} | {name: episodes(runs) for name, runs in layouts.items()}
    for name, parallel in hosts_worker.LAYOUTS.items():
        record = json.loads((layouts[name] / "ppo" / "config.json").read_text())["config"]
        assert parallel.items() <= record["parallel"].items()
    texts, scores, figures = found["alone"]
    assert len(texts) == 8 * (STEPS - 1) and len(figures) == 4 * STEPS
    for name, (other_texts, other_scores, other_figures) in found.items():
        assert other_texts == texts, name
        assert other_scores == pytest.approx(scores, rel=SAME, abs=SAME), name
        assert other_figures == pytest.approx(figures, rel=SAME, abs=SAME), name


@pytest.mark.multiprocess
def test_two_processes_stop_resume_and_train_as_one(inputs, one):
    """Every stage: same samples, same figures (held-out ones too), same parameters.

    Each is stopped, by ``stop_after`` or by a signal that one of the two gets, and started again.
    """
    two = inputs / "two"
    options = dict(processes=2, devices=2, mode="stopped")
    codes = finish(launch(inputs, ",".join(STAGES), two, STEPS, (2, 2, 1), **options))
    assert codes == [0, 0], log_of(inputs, two)[-3000:]
    said = log_of(inputs, two)
    for number, stage in enumerate(STAGES):
        step = (1, 2)[number % 2]
        assert f"{stage}: saved at step {step}; the same command goes on" in said
        assert f"{stage}: resumed after step {step}" in said
        done = [json.loads((runs / stage / "DONE").read_text()) for runs in (one, two)]
        if stage != "ppo":
            assert done[0]["heldout"] == pytest.approx(done[1]["heldout"], rel=SAME, abs=SAME)
    for stage in STAGES:
        gap = largest_gap(*(load_params(runs / stage / "final") for runs in (one, two)))
        assert gap < SAME, (stage, gap)
        rows = [
            [json.loads(line) for line in (runs / stage / "metrics.jsonl").open()]
            for runs in (one, two)
        ]
        for a, b in zip(*rows, strict=True):
            names = [name for name in a if name != "time" and "per_second" not in name]
            expected = pytest.approx({n: b[n] for n in names}, rel=SAME, abs=SAME)
            assert {n: a[n] for n in names} == expected
    samples = [(runs / "ppo" / "samples.jsonl").read_text() for runs in (one, two)]
    words = [[json.loads(line)["response"] for line in text.splitlines()] for text in samples]
    assert words[0] == words[1] and words[0]


@pytest.mark.multiprocess
def test_a_peer_that_dies_ends_all_and_the_same_command_goes_on(inputs):
    runs, mesh = inputs / "killed", (1, 4, 1)
    started = launch(inputs, "sft", runs, 500, mesh, processes=2, devices=2)
    await_checkpoint(runs, started, 2)
    started[1].kill()
    codes = finish(started)
    assert codes[0] not in (0, -signal.SIGKILL), codes
    said = log_of(inputs, runs)
    assert "lost another one" in said or "distributed service detected fatal errors" in said
    before = max(int(p.name) for p in (runs / "sft" / "checkpoints").iterdir() if p.name.isdigit())

    again = launch(inputs, "sft", runs, 500, mesh, processes=2, devices=2)
    await_checkpoint(runs, again, before + 2)
    assert "sft: resumed after step" in log_of(inputs, runs)
    again[1].send_signal(signal.SIGTERM)  # a preempted machine: all save and end well
    assert finish(again) == [0, 0], log_of(inputs, runs)[-2000:]
    assert "saved at step" in log_of(inputs, runs)
