"""The command line of the loop: what needs no model."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from feedback_site import ROOT, fill, labeler

from configs import quickstart
from experiments.feedback import __main__ as feedback
from experiments.feedback import processes as feedback_processes
from rlhf_jax.cli import load, main
from rlhf_jax.config import FeedbackConfig, InstructGPTConfig
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.feedback import accounts, queue, submissions
from rlhf_jax.feedback.database import StoreUnavailable, open_database
from rlhf_jax.feedback.labels import rankings, read_labels


@pytest.fixture
def config(tmp_path):
    (tmp_path / "run").mkdir()
    return FeedbackConfig(run=tmp_path / "run")


def test_import_export_and_import_again(config, tmp_path, capsys):
    rows = [
        {"prompt": "mail jo@x.org", "responses": [" a", " b", " c"], "ranks": [0, 1, 1]},
        {"prompt": "p", "chosen": " yes", "rejected": " no", "labeler": "7"},
    ]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):  # the second time nothing is new
        feedback.run(replace(config, command="import", file=source))
    database = open_database(config.place)
    made = [(x.prompt, x.ranks) for x in rankings(read_labels(database))]
    assert made == [("mail [EMAIL]", (0, 1, 1)), ("p", (0, 1))]
    assert queue.count_open(database) == 0
    names = {row["name"]: row["revoked"] for row in accounts.list_accounts(database)}
    assert set(names) == {"import ", "import 7"} and all(names.values())

    feedback.run(replace(config, command="export", format="argilla", file=out))
    other = replace(config, store=str(tmp_path / "other.sqlite"))
    feedback.run(replace(other, command="import", file=out))
    copied = rankings(read_labels(open_database(other.place)))
    assert [(x.prompt, x.ranks) for x in copied] == made
    feedback.run(replace(config, command="export", format="trl-preference"))
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["chosen"] for row in printed] == [" a", " a", " yes"]


def test_bad_rows_are_named_and_nothing_is_stored(config, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p"}\n')
    with pytest.raises(InputError, match=r"in.jsonl, line 2: found the keys prompt"):
        feedback.run(replace(config, command="import", file=source))
    assert not config.dir.exists()


@pytest.mark.parametrize(
    "row,reason",
    [
        ({"prompt": "a" * 1_000_001}, "text of 1000001 characters, expected at most 1000000"),
        ({"labeler": "l" * 201}, "labeler: found 201 characters, expected at most 200"),
        ({"labeler": "a\x00b"}, "labeler: .* holds a NUL"),
        ({"labeler": "a\u202eb"}, "labeler: found an invisible"),
        ({"responses": list("abcdefghij"), "ranks": [*range(10)]}, "found 10 answers"),
    ],
)
def test_imports_name_file_line_and_limit(config, tmp_path, row, reason):
    source = tmp_path / "in.jsonl"
    good = {"prompt": "p", "responses": ["a", "b"], "ranks": [0, 1]}
    source.write_text(json.dumps(good) + "\n" + json.dumps(good | row) + "\n")
    with pytest.raises(InputError, match=rf"in.jsonl, line 2: .*{reason}"):
        feedback.run(replace(config, command="import", file=source))
    assert not config.dir.exists()


READING = ("export", "import", "serve", "simulate", "verdict", "ask", "sample", "update", "answer")


@pytest.mark.parametrize("command", READING)
def test_nothing_is_made_in_a_run_that_is_not_there(command, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "p", "chosen": " a", "rejected": " b"}\n')
    mistyped = FeedbackConfig(command=command, run=tmp_path / "quikstart", file=source)
    with pytest.raises(InputError, match="quikstart"):
        feedback.run(mistyped)
    assert list(tmp_path.iterdir()) == [source]


def test_who_only_reads_makes_no_store(config, tmp_path):
    with pytest.raises(InputError, match="run: it has no labels yet"):
        feedback.run(replace(config, command="export"))
    (config.run / "DONE").touch()
    row = {"prompt": "p", "gold": 0.0, "score": 0.0}
    rows = [row | {"policy": name, "response": name} for name in ("a", "b")]
    (config.run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="nothing was asked"):
        feedback.run(replace(config, command="verdict"))
    assert not config.dir.exists()
    elsewhere = tmp_path / "other.sqlite"
    with pytest.raises(InputError, match=r"other.sqlite: no such label store"):
        feedback.run(replace(config, command="export", store=str(elsewhere)))
    assert not elsewhere.exists()
    for content in (b"", b"not a database, but longer than the header of one" * 9):
        elsewhere.write_bytes(content)
        with pytest.raises((InputError, RunError), match=r"other.sqlite"):
            feedback.run(replace(config, command="export", store=str(elsewhere)))
        assert elsewhere.read_bytes() == content


def test_an_export_makes_its_folder_or_says_why_not(config, tmp_path):
    open_database(config.place)
    out = tmp_path / "not" / "there" / "rows.jsonl"
    feedback.run(replace(config, command="export", file=out))
    assert out.read_text() == ""
    for path, message in (
        (out / "below.jsonl", "rows.jsonl is a file"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "is a device"),
    ):
        with pytest.raises(InputError, match=message):
            feedback.run(replace(config, command="export", file=path))
    with pytest.raises(StoreUnavailable, match=r"rows.jsonl"):
        open_database(out / "store.sqlite")


@pytest.mark.parametrize("command", ["serve", "run"])
def test_a_taken_port_is_named_before_anything_is_made(config, command):
    (config.sft / "final").mkdir(parents=True)
    pytest.importorskip("uvicorn", reason="the site needs the extra feedback")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = replace(config.serve, port=port)
        with pytest.raises(InputError, match=rf"{port}: cannot listen.*another --serve.port"):
            feedback.run(replace(config, command=command, serve=serve))
    assert not config.dir.exists()
    # The flag that it advises is one.
    assert load(FeedbackConfig, ["serve", "--serve.port", "8421"]).serve.port == 8421


def test_what_is_missing_is_said(config):
    (config.sft / "checkpoints").mkdir(parents=True)  # unfinished
    for command in ("run", "sample", "update", "answer"):
        with pytest.raises(InputError, match="no finished sft"):
            feedback.run(replace(config, command=command))
    with pytest.raises(InputError, match="--file"):
        feedback.run(replace(config, command="import"))
    with pytest.raises(InputError, match="choice=disagreement needs ensemble"):
        replace(config, ensemble=1)


def test_flags_and_presets(monkeypatch):
    preset = ["--config", str(ROOT / "configs" / "quickstart.py")]
    config = load(FeedbackConfig, ["update", *preset, "--rounds", "4", "--serve.port", "99"])
    assert (config.command, config.rounds, config.serve.port) == ("update", 4, 99)
    own = quickstart.get_config()
    assert (config.reward.optim, config.ppo.kl) == (own.reward.optim, own.ppo.kl)
    assert config.ppo.kl != FeedbackConfig().ppo.kl
    chain = InstructGPTConfig(dir=config.run).resolve()
    stage = config.ppo_stage(3)
    assert stage.reference == chain.sft.run.dir and stage.init == config.policy(2)
    assert stage.iterations == config.iterations
    assert stage.ptx_data.path == chain.ppo.ptx_data.path
    first, second = config.reward_stage(3, 0), config.reward_stage(3, 1)
    assert first.init == chain.sft.run.dir and first.run.seed != second.run.seed

    monkeypatch.setattr(sys, "argv", ["feedback", "run", "--run", "run", "--rounds", "2"])
    assert feedback_processes.program("serve")[-5:] == ["serve", "--run", "run", "--rounds", "2"]


UP = "import os; os.write(1, b'up\\n'); "
SLEEP = "import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {UP}{SLEEP}"


def run_stubs(*commands, forever=False, **code):
    """``run_together`` of stubs, as a process that leads a group: each prints "up", then runs."""
    stubs = {name: UP + code.get(name, SLEEP) for name in commands}
    program = f"""
import signal, sys
from experiments.feedback import processes as feedback_processes
sys.argv = ["feedback.py", "run", "--run", "my runs/x"]
feedback_processes.program = lambda command: [sys.executable, "-c", {stubs!r}[command]]
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, and so by all below it
feedback_processes.run_together({commands!r}, forever={forever}, open_site="OPEN")
"""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, process_group=0, **pipes)
    for _ in commands:
        assert process.stdout.readline() == "up\n"
    return process


GO_ON = "feedback: to go on: python -m experiments.feedback run --run 'my runs/x'"


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)]
)
def test_ctrl_c_ends_all_with_a_line_each_and_the_command_to_go_on(number, status):
    """The whole group gets it, as from a terminal."""
    process = run_stubs("serve", "answer", "update")
    os.killpg(process.pid, number)
    said = process.communicate(timeout=30)[1].splitlines()
    assert process.returncode == status
    ended = [f"feedback: {name}: ended" for name in ("serve", "answer", "update")]
    assert said[-4:] == [*ended, GO_ON]
    assert said[:-4] == [STOPPING] * (number == signal.SIGINT)


STOPPING = "feedback: Ctrl-C: stopping; training finishes its step and saves (again: at once)"


def test_a_second_ctrl_c_waits_for_nobody():
    process = run_stubs("serve", "update", update=STUBBORN)
    assert process.stdout.readline() == "up\n"  # it does not heed SIGTERM any more
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr.readline().strip() == STOPPING
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=30)[1].splitlines()
    assert process.returncode == 130
    assert said[-3:] == [
        "feedback: serve: ended",
        "feedback: update: killed; it goes on from what it had saved",
        GO_ON,
    ]


def test_run_ends_when_a_part_of_it_fails():
    process = run_stubs("serve", "answer", "update", serve="raise SystemExit(3)")
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and "serve ended with status 3; what it said is above" in said
    assert "feedback: answer: ended\nfeedback: update: ended" in said


def test_after_the_rounds_the_site_stays_for_people():
    process = run_stubs("serve", "update", forever=True, update="")
    line = process.stderr.readline()
    assert line == "feedback: the rounds are done; the site stays open until Ctrl-C (later: OPEN)\n"
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[1].splitlines()[-1] == GO_ON
    process = run_stubs("serve", "update", update="")
    said = process.communicate(timeout=30)[1].splitlines()
    assert process.returncode == 0
    assert said[0] == "feedback: the rounds are done; the site opens again with: OPEN"
    assert said[1:] == ["feedback: serve: ended", "feedback: update: ended"]


def test_bare_it_asks_which_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["feedback"])
    with pytest.raises(SystemExit) as end:
        main(feedback.ask_for_command, FeedbackConfig)
    said = capsys.readouterr().err
    assert end.value.code == 2 and re.fullmatch(r"error: which command\?.*--help.*\n", said)


def test_nobody_takes_the_name_of_an_import(config):
    database = open_database(config.place)
    with pytest.raises(InputError, match="for imports"):
        accounts.add_labeler(database, "import 7")
    fill(database, 1)
    ann = labeler(database)
    task = queue.take_task(database, ann)
    with pytest.raises(InputError, match="kind"):
        submissions.submit(database, ann, submission="x" * 8, task=task.id, kind="import", body={})
