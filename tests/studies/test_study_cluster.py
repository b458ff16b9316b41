"""A study's jobs on a cluster: submitit's own processes, and a Slurm that keeps what it is told."""

import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
from test_study_queue import job, queue, starts

from rlhf_jax.config import ClusterConfig
from rlhf_jax.errors import InputError
from rlhf_jax.studies.launchers import Cluster, Stage, command_of, log_of
from rlhf_jax.studies.queue import Stopped

submitit = pytest.importorskip("submitit", reason="needs the extra slurm")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def helpers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", tiny.process_environment()["PYTHONPATH"])


def local(folder, jobs):
    cluster = Cluster(ClusterConfig(kind="local"), folder / "submitit", 2)
    return queue(jobs, parallel=2, launcher=cluster)


def test_jobs_run_after_what_they_need_and_failures_are_told(tmp_path, capfd):
    jobs = [
        job(tmp_path, "once", task="1"),
        job(tmp_path, "after", "once"),
        job(tmp_path, "always", task="9"),
        job(tmp_path, "in_vain", "always"),
    ]
    found = local(tmp_path, jobs)
    found.run()
    assert {path.name for path in found.done} == {"once", "after"}
    why = {path.name: why for path, why in found.failed.items()}
    log = log_of(jobs[2])
    assert why == {
        "always": f"exit code 3: broken for the 2. time ({log})",
        "in_vain": "needs always, which failed",
    }
    assert [starts(tmp_path, label) for label in ("once", "always", "in_vain")] == [2, 2, 0]
    assert "once is job " in capfd.readouterr().err


def test_what_is_out_of_time_saves_and_goes_on_as_the_same_job(tmp_path, capfd):
    """A cluster tells the process that runs the stage by SIGUSR2."""
    found = local(tmp_path, [job(tmp_path, "long", task="stay")])

    def out_of_time():
        while not (tmp_path / "long" / "ready").exists():
            time.sleep(0.05)
        (started,) = (started for _, started in found.running.values())
        controller = started.work._submitted._process.pid
        children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGUSR2)

    clock = threading.Thread(target=out_of_time)
    clock.start()
    found.run()
    clock.join()
    assert found.done == {tmp_path / "long"} and not found.failed
    assert capfd.readouterr().err.count("long is job") == 1
    # The second begins when the first has saved: two would fight for one folder.
    assert (tmp_path / "long" / "diary").read_text().split() == ["started", "saved", "started"]


def test_a_stage_has_saved_before_its_job_is_queued_again(tmp_path):
    """A cluster may kill the job, and begin it elsewhere, as soon as it is queued again."""
    (long,) = [job(tmp_path, "long", task="stay")]
    stage = Stage([sys.executable, *command_of(long)], log_of(long))
    at_work = threading.Thread(target=stage)
    at_work.start()
    while not (long.folder / "ready").exists():
        time.sleep(0.05)
    again = stage.checkpoint()
    assert (long.folder / "diary").read_text().split() == ["started", "saved"]
    at_work.join()
    assert again.function.command == stage.command


def test_who_stops_the_study_cancels_its_jobs(tmp_path):
    found = local(tmp_path, [job(tmp_path, "long", task="stay"), job(tmp_path, "next", "long")])

    def stop():
        while not (tmp_path / "long" / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=stop)
    killer.start()
    with pytest.raises(Stopped):
        found.run()
    killer.join()
    again = local(tmp_path, [job(tmp_path, "long", task="stay"), job(tmp_path, "next", "long")])
    again.run()
    assert {path.name for path in again.done} == {"long", "next"}
    assert (tmp_path / "long" / "diary").read_text().split() == ["started", "saved", "started"]
    assert starts(tmp_path, "next") == 1


SBATCH = """#!/bin/sh
cp "$1" {folder}/script
echo "Submitted batch job 4242"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
echo "4242_0|COMPLETED|n1"
echo "4242_1|FAILED|n2"
"""
SCANCEL = """#!/bin/sh
echo "$@" >> {folder}/cancelled
"""


def test_what_begins_together_is_one_array_of_slurm(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    programs = {"sbatch": SBATCH, "sacct": SACCT, "scancel": SCANCEL, "srun": "#!/bin/sh\n"}
    for name, text in programs.items():
        (tools / name).write_text(text.format(folder=tmp_path))
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    asked = ClusterConfig(
        kind="slurm", hours=1.5, cpus=8, memory_gb=64, gpus=1, partition="big", account="rl"
    )
    cluster = Cluster(asked, tmp_path / "submitit", 3)
    jobs = [job(tmp_path, "one"), job(tmp_path, "two")]
    first, second = cluster.start(jobs)
    script = (tmp_path / "script").read_text()
    for said in (
        *(
            "--array=0-1%2",
            "--job-name=rlhf_jax",
            "--time=90",
            "--cpus-per-task=8",
            "--mem=64GB",
            "--partition=big",
        ),
        *("--account=rl", "--gpus-per-node=1", "--signal=USR2@120"),
    ):
        assert f"#SBATCH {said}\n" in script, script
    assert log_of(jobs[0]).with_suffix(".json").is_file()
    first.send(signal.SIGTERM)
    assert (tmp_path / "cancelled").read_text() == "4242_0\n"
    # Slurm is asked once in a while; what has ended there without a result is a failure.
    second._submitted.done(force_check=True)
    assert second.exit_code() == 1


def test_a_cluster_that_is_not_here_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"--cluster\.kind slurm: .*srun"):
        Cluster(ClusterConfig(kind="slurm"), tmp_path, 1)
