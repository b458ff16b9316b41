"""The tutorials, typed from top to bottom: every command runs, smaller where it takes long."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from little_chain import little_quickstart
from local_server import free_port
from tiny import ROOT, process_environment

from experiments import instructgpt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.multiprocess,
    # A stage is run as a program in this process, which has imported it as a module.
    pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning"),
]
PAGES = ("quickstart", "your_data", "ablation", "people", "tpu_pod", "resume")
"""In the order of the site: later ones go on with the models of earlier ones."""
SMALL = {
    "pretrain": "--steps 4",
    "sft": "--epochs 4",
    "reward": "--epochs 1",
    "ppo": "--iterations 2 --batch-size 16 --force True",
    "feedback run": "--rounds 1 --simulated 3 --labels-per-round 8 --tasks-per-round 12 "
    "--iterations 1 --evaluation-prompts 8 --candidates 2 --epochs 1 "
    # The documented port may be taken, by a site or by another run of these tests.
    f"--serve.port {free_port()} "
    "--ppo.min-reward-accuracy 0 --ppo.allow-cut True --reward.allow-cut True",
}
"""Added to a command: the last of two equal flags counts."""
ELSEWHERE = (
    "make quickstart",  # the fixture's
    "-m pip",
    "experiments.plan",  # tests/planning compiles smaller ones
    "experiments.doctor",  # tests/doctor has all of its checks
    "device_count=8",  # test_parallel.py and test_hosts.py train on several devices,
    "for process in 0 1",  # and in two processes
    "feedback run --config configs/quickstart.py --labels-per-round 40",  # waits for people
)
"""In commands that are only read here, by test_commands.py."""
FEWER = {"for seed in 0 1 2;": "for seed in 0;", "range(3)": "range(1)"}
"""What a page says, and what is run: of three seeds the first."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy of the repository in which the little quickstart has run."""
    folder = tmp_path_factory.mktemp("tutorials")
    for name in ("data", "rlhf_jax"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("configs", "experiments"):
        shutil.copytree(ROOT / name, folder / name)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@" $SMALLER\n')
    python.chmod(0o755)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(folder / "exported" / "mail")
    instructgpt.run(little_quickstart(folder / "runs" / "quickstart"))
    return folder


def page_of(name: str) -> Path:
    (path,) = (ROOT / "docs").glob(f"[th]*/{name}.md")
    return path


def typed(page: Path) -> list[str]:
    """The commands of a page's blocks: lines, here-documents, and loops as a whole."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    text = "".join(blocks).replace("\\\n", " ")
    for said, fewer in FEWER.items():
        text = text.replace(said, fewer)
    whole = r"^(?:.*<<'END'\n(?:.*\n)*?END|for .*\n(?:.*\n)*?done(?:\nwait)?|.+)$"
    return re.findall(whole, text, re.M)


def smaller(command: str) -> str:
    """The flags of ``SMALL`` for the stage that the command runs."""
    found = re.search(r"-m experiments\.(?:proj\.\w+\.)?(\$?\w+(?: run)?)", command)
    name = "ppo" if found and found[1] == "$arm" else found and found[1]
    return SMALL.get(name, SMALL.get(str(name).split()[0], ""))


def run(command: str, place: Path, monkeypatch) -> None:
    """A stage in this process, where its programs are compiled already; all else by a shell."""
    alone = re.fullmatch(r"\.venv/bin/python -m (experiments\.\w+) ([^|<>`$]*)", command)
    if alone and alone[1] != "experiments.feedback":
        words = [*shlex.split(alone[2]), *smaller(command).split()]
        monkeypatch.setattr(sys, "argv", [alone[1], *words])
        try:
            runpy.run_module(alone[1], run_name="__main__")
        except SystemExit as stop:  # by --run.stop-after
            assert not stop.code, command
        return
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command],
        cwd=place,
        env=process_environment(PYTHONPATH=str(place), SMALLER=smaller(command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_runs(name, place, monkeypatch):
    monkeypatch.chdir(place)
    commands = typed(page_of(name))
    assert len(commands) > 2
    for command in commands:
        if not any(part in command for part in ELSEWHERE):
            run(command, place, monkeypatch)


def test_the_run_that_was_stopped_has_the_parameters_of_the_one_that_was_not(place):
    """As docs/howto/resume.md says, of the runs that the pages before have left."""
    done = [json.loads((place / f"runs/mine/{run}/DONE").read_text()) for run in ("sft", "stopped")]
    assert done[0]["params_sha256"] == done[1]["params_sha256"]


def test_every_tutorial_is_among_the_pages_and_what_is_left_out_stands_in_one():
    assert {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")} <= {*PAGES}
    text = "".join(page_of(name).read_text(encoding="utf-8") for name in PAGES)
    for said in (*ELSEWHERE, *FEWER):
        assert said in text.replace("\\\n", " "), said
