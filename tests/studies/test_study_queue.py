"""Jobs in processes: their order, what fails, and what happens when somebody stops them."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny

from rlhf_jax.config import RewardConfig, RunConfig
from rlhf_jax.studies.launchers import ThisMachine, log_of, share_of_processors
from rlhf_jax.studies.plan import Job
from rlhf_jax.studies.queue import Queue, Stopped, last_line


@pytest.fixture(autouse=True)
def helpers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", tiny.process_environment()["PYTHONPATH"])


def job(folder, label, *needs, task=""):
    config = RewardConfig(run=RunConfig(dir=folder / label, wandb=task))
    return Job(label, 0, "fake_stage", config, tuple(folder / each for each in needs), "")


def queue(jobs, *, parallel=1, then=lambda job: [], launcher=None):
    left = lambda jobs: f"{len(jobs)} steps"
    launcher = launcher or ThisMachine(parallel)
    return Queue(jobs, launcher, parallel=parallel, then=then, left=left)


def starts(folder, label):
    diary = folder / label / "diary"
    return diary.read_text().count("started") if diary.exists() else 0


def test_jobs_run_after_what_they_need_and_failures_are_told(tmp_path, capfd):
    """Two failures of a job are one too many; what needs it is not started, the others are."""
    jobs = [
        job(tmp_path, "once", task="1"),
        job(tmp_path, "after", "once"),
        job(tmp_path, "always", task="9"),
        job(tmp_path, "in_vain", "always"),
        job(tmp_path, "alone"),
    ]
    ended = []
    more = {"alone": [job(tmp_path, "more")]}

    def then(job):
        ended.append(job.label)
        return more.get(job.label, [])

    found = queue(jobs, parallel=2, then=then)
    found.run()
    assert {path.name for path in found.done} == {"once", "after", "alone", "more"}
    why = {path.name: why for path, why in found.failed.items()}
    log = log_of(jobs[2])
    assert why == {
        "always": f"exit code 3: broken for the 2. time ({log})",
        "in_vain": "needs always, which failed",
    }
    assert sorted(ended) == sorted(["once", "after", "always", "in_vain", "alone", "more"])
    assert ended.index("once") < ended.index("after")
    assert [starts(tmp_path, label) for label in ("once", "always", "in_vain")] == [2, 2, 0]
    said = capfd.readouterr().err
    assert "once ended with exit code 3: broken for the 1. time; started once more" in said
    assert "4 of 6 runs done" in said and "2 failed" in said


def test_what_is_done_is_not_run_again(tmp_path):
    done = job(tmp_path, "done")
    done.folder.mkdir()
    (done.folder / "DONE").write_text("{}")
    found = queue([done, job(tmp_path, "next", "done")])
    found.run()
    assert starts(tmp_path, "done") == 0 and starts(tmp_path, "next") == 1


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_who_stops_it_stops_its_children_and_the_next_goes_on(tmp_path, number, code):
    jobs = [job(tmp_path, "long", task="stay"), job(tmp_path, "next", "long")]

    def stop():
        while not (tmp_path / "long" / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    killer = threading.Thread(target=stop)
    killer.start()
    with pytest.raises(Stopped) as stopped:
        queue(jobs).run()
    killer.join()
    assert stopped.value.code == code and signal.getsignal(number) is before
    assert starts(tmp_path, "next") == 0
    again = queue(jobs)
    again.run()
    assert {path.name for path in again.done} == {"long", "next"} and not again.failed


def test_a_run_that_another_process_holds_is_waited_for(tmp_path):
    """A child that outlived its study, which was killed: two would fight for one folder."""
    held = job(tmp_path, "held")
    held.folder.mkdir()
    lock = (held.folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def finish():
        time.sleep(0.5)
        (held.folder / "DONE").write_text("{}")
        lock.close()

    thread = threading.Thread(target=finish)
    thread.start()
    found = queue([held])
    found.run()
    thread.join()
    assert found.done == {held.folder} and starts(tmp_path, "held") == 0


def test_processors_are_shared_evenly(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 7})
    assert share_of_processors(0, 1) == set()  # all of them, as they are
    assert [share_of_processors(slot, 2) for slot in (0, 1)] == [{0, 1}, {2, 5}]
    assert share_of_processors(0, 9) == set()  # fewer processors than jobs: each has all


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == "it said nothing"
    log.write_text("a\n10 %\r20 %\rdone\n\n")
    assert last_line(Path(log)) == "done"
