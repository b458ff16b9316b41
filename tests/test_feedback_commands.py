"""The command line of the loop: what needs no model."""

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from feedback_site import ROOT, fill, labeler

from configs import quickstart
from experiments import feedback
from rlhf_jax.cli import load
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

    started = []
    monkeypatch.setattr(feedback.subprocess, "Popen", started.append)
    monkeypatch.setattr(sys, "argv", ["feedback", "run", "--run", "run", "--rounds", "2"])
    feedback.start("serve")
    assert started[0][-5:] == ["serve", "--run", "run", "--rounds", "2"]


def test_run_ends_when_a_part_of_it_does(config, monkeypatch):
    config.sft.mkdir(parents=True)
    code = {"serve": "raise SystemExit(3)"}
    started = []

    def start(command):
        program = code.get(command, "import time; time.sleep(600)")
        started.append(feedback.subprocess.Popen([sys.executable, "-c", program]))
        return started[-1]

    monkeypatch.setattr(feedback, "start", start)
    monkeypatch.setattr(feedback.signal, "signal", lambda *_: None)
    with pytest.raises(RunError, match="serve ended with status 3"):
        feedback.run(config)
    assert len(started) == 3 and all(process.poll() is not None for process in started)


def test_nobody_takes_the_name_of_an_import(config):
    database = open_database(config.place)
    with pytest.raises(InputError, match="for imports"):
        accounts.add_labeler(database, "import 7")
    fill(database, 1)
    ann = labeler(database)
    task = queue.take_task(database, ann)
    with pytest.raises(InputError, match="kind"):
        submissions.submit(database, ann, submission="x" * 8, task=task.id, kind="import", body={})
