"""A whole study of a toy model, and one that is killed in the middle: the same rows."""

import importlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from little_chain import little_quickstart

from rlhf_jax.cli import load
from rlhf_jax.config import StudyConfig
from rlhf_jax.studies.conduct import Conducted
from rlhf_jax.studies.plan import evaluation
from rlhf_jax.studies.results import read_results, rows_of_seed
from rlhf_jax.studies.study import Arm, Study, read_study

DOC = tiny.ROOT / "docs" / "studies.md"
FILE = '''
"""Does a program's reward teach a toy model anything?"""

from pathlib import Path

from test_study_run import toy_study


def get_study():
    return toy_study(Path({folder!r}))
'''


def toy_study(folder: Path) -> Study:
    """Two arms; a function rewards PPO, so that neither comparisons nor a reward model are made."""
    reward = folder / "reward.py"
    reward.write_text(
        "def long(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
    )
    scratch, source = Path(tempfile.mkdtemp(dir=folder)), folder / "source"
    base = replace(little_quickstart(scratch / "chain"), source=source)
    if not source.exists():  # a run that reads it may be at work
        (scratch / "source").rename(source)
    rewards = (Path(f"{reward}:long"),)
    no_values = dict(value_trunk="none", whiten_advantages=False, ptx_coef=0.0)
    ppo = replace(base.ppo, reward=rewards, iterations=4, **no_values)
    ppo = replace(ppo, advantage="rloo", samples_per_prompt=2)
    base = replace(base, ppo=ppo, evaluate=replace(base.evaluate, num_prompts=8, reward=()))
    return Study(
        question="?",
        base=base,
        arms=(Arm("sft"), Arm("ppo", lambda chain: chain.ppo)),
        baseline="sft",
        compared=("gold", "kl"),
        axes=("kl", "gold"),
    )


def without_times(rows):
    told_apart = ("seconds", "commit", "machine")  # commit: a tree that is edited meanwhile
    return [{k: v for k, v in row.items() if k not in told_apart} for row in rows]


@pytest.mark.slow
def test_a_study_that_is_killed_has_the_rows_of_one_that_is_not(tmp_path):
    """kill -9 at a random moment, of the study and not of its child, which goes on alone."""
    file = tmp_path / "toy.py"
    file.write_text(FILE.format(folder=str(tmp_path)))
    config = StudyConfig(file=file, seeds=1, dir=tmp_path / "here", results=tmp_path / "results")
    conducted = Conducted(toy_study(tmp_path), config)
    conducted.data = conducted.prepare_data()
    plan = conducted.plans[0]
    assert [job.label for job in plan.jobs] == ["pretrain", "sft", "ppo"]
    last = evaluation(plan, [*plan.policies.values()], conducted.root)
    for job in (*plan.jobs, last):  # in this process, whom nobody kills
        importlib.import_module(job.module).run(job.config)
    expected = rows_of_seed(conducted.study, plan, last, data=conducted.data)
    assert [row["arm"] for row in expected] == ["sft", "ppo"]
    assert abs(expected[0]["figures"]["kl"]) < 1e-4 and expected[0]["figures"]["tax"] == 0
    assert expected[1]["figures"]["tax"] != 0 and "arm" in expected[1]["seconds"]
    assert expected[0]["seconds"].keys() == {"pretrain", "sft", "evaluate"}

    there = ["--dir", str(tmp_path / "there"), "--results", str(tmp_path / "results")]
    command = [sys.executable, "-m", "experiments.study", str(file), "--seeds", "1", *there]
    path = os.pathsep.join((tiny.process_environment()["PYTHONPATH"], str(Path(__file__).parent)))
    environment = tiny.process_environment(PYTHONPATH=path)
    start = lambda: subprocess.Popen(
        command, cwd=tiny.ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    first = start()
    chance = random.Random(os.getpid())
    while not list((tmp_path / "there").rglob("config.json")):  # its first stage has begun
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 8))
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start()
    said = second.communicate(timeout=300)[1]
    assert second.returncode == 0, said
    rows = read_results(tmp_path / "results" / "toy.jsonl")
    assert without_times(rows) == without_times(expected)
    assert "2 pairs" not in (tmp_path / "results" / "toy.md").read_text()
    assert not Conducted(read_study(file), config).jobs()  # nor are they run on another machine


@pytest.mark.slow
def test_the_documents_study_is_short_and_runs_dry(tmp_path, capsys, monkeypatch):
    text = re.search(r"```python\n(.*?)```", DOC.read_text(), re.S)[1]
    assert len(text.strip().splitlines()) <= 30
    file = tmp_path / "mine.py"
    file.write_text(text)
    monkeypatch.chdir(tiny.ROOT)
    study = importlib.import_module("experiments.study")
    words = [
        "--dry-run",
        "True",
        "--seeds",
        "6",
        "--dir",
        str(tmp_path),
        "--results",
        str(tmp_path),
    ]
    study.run(load(StudyConfig, [str(file), *words]))
    said = capsys.readouterr().out
    assert "mine: 4 arms, 6 seeds; 0 rows are there; 42 runs are missing" in said
    assert "nobody has timed yet" in said and [*tmp_path.iterdir()] == [file]


@pytest.mark.slow
def test_commands_of_what_is_missing_are_told_in_an_order_that_works(tmp_path, capsys):
    """And read back: each names a stage and a file with the config that the study would give it."""
    file = tmp_path / "toy.py"
    file.write_text(FILE.format(folder=str(tmp_path)))
    config = StudyConfig(
        file=file, seeds=2, dir=tmp_path / "here", results=tmp_path / "results", commands=True
    )
    study = importlib.import_module("experiments.study")
    study.run(config)
    lines = capsys.readouterr().out.splitlines()
    stages = ["pretrain", "sft", "ppo", "evaluate"]
    labels = [f"seed {seed}: {stage}" for seed in range(2) for stage in stages]
    assert [line.rpartition("  # ")[2] for line in lines] == labels
    conducted = Conducted(read_study(file), config)
    jobs = {job.name: job for job in conducted.jobs()}
    for line in lines:
        python, m, module, flag, preset = shlex.split(line.partition("  # ")[0])
        assert (python, m, flag) == ("python", "-m", "--config")
        name = line.rpartition("  # ")[2]
        if name in jobs:
            assert module == jobs[name].module
            assert load(type(jobs[name].config), ["--config", preset]) == jobs[name].config
        else:
            assert module == "experiments.evaluate" and Path(preset).is_file()
    # Their data lie there, and nothing has been run.
    assert list((tmp_path / "here").rglob("prompts_ppo.jsonl"))
    assert not list((tmp_path / "here").rglob("metrics.jsonl"))


def test_how_long_it_takes_is_told_from_rows(tmp_path, monkeypatch):
    """Each label's mean of what rows say, over the runs that are missing."""
    monkeypatch.setattr("rlhf_jax.studies.conduct.check_current", lambda *_: None)
    file = tmp_path / "toy.py"
    seconds = {"pretrain": 60.0, "sft": 60.0, "evaluate": 30.0}
    rows = [
        dict(arm=arm, seed=0, figures={}, digest="", runs={}, data="", changes={}, seconds=each)
        for arm, each in (("sft", seconds), ("ppo", seconds | {"arm": 150.0}))
    ]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = StudyConfig(file=file, seeds=3, dir=tmp_path / "runs", results=tmp_path)
    said = Conducted(toy_study(tmp_path), config).outlook()
    assert "2 rows are there; 8 runs are missing (0 are done, 2 are evaluations); 10 min" in said
