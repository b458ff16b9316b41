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
from typing import get_args

import pytest
from feedback_site import ROOT, fill, labeler

from configs import quickstart
from experiments.feedback import __main__ as feedback
from experiments.feedback import processes as feedback_processes
from experiments.feedback import stages
from rlhf_jax.cli import flag_names, load, main_of
from rlhf_jax.cli.fields import fields_of
from rlhf_jax.cli.presets import narrowed
from rlhf_jax.cli.subcommands import load_command, take_command
from rlhf_jax.config import (
    FeedbackConfig,
    FeedbackServeConfig,
    FeedbackUpdateConfig,
    InstructGPTConfig,
    ServeConfig,
)
from rlhf_jax.config.effect import value_of
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.feedback import accounts, queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labels import rankings, read_labels
from rlhf_jax.feedback.store import StoreUnavailable


@pytest.fixture
def config(tmp_path):
    (tmp_path / "run").mkdir()
    return FeedbackConfig(run=tmp_path / "run")


def do(command, config, **fields):
    """What the command does with all that it takes of ``config``, and these fields."""
    one = feedback.COMMANDS[command]
    one.run(replace(narrowed(config, one.config_class), **fields))


def test_import_export_and_import_again(config, tmp_path, capsys):
    rows = [
        {"prompt": "mail jo@x.org", "responses": [" a", " b", " c"], "ranks": [0, 1, 1]},
        {"prompt": "p", "chosen": " yes", "rejected": " no", "labeler": "7"},
    ]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):  # the second time nothing is new
        do("import", config, file=source)
    database = open_database(config.place)
    made = [(x.prompt, x.ranks) for x in rankings(read_labels(database))]
    assert made == [("mail [EMAIL]", (0, 1, 1)), ("p", (0, 1))]
    assert queue.count_open(database) == 0
    names = {row["name"]: row["revoked"] for row in accounts.list_accounts(database)}
    assert set(names) == {"import ", "import 7"} and all(names.values())

    do("export", config, format="argilla", file=out)
    other = replace(config, store=str(tmp_path / "other.sqlite"))
    do("import", other, file=out)
    copied = rankings(read_labels(open_database(other.place)))
    assert [(x.prompt, x.ranks) for x in copied] == made
    do("export", config, format="trl-preference")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["chosen"] for row in printed] == [" a", " a", " yes"]


def test_bad_rows_are_named_and_nothing_is_stored(config, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p"}\n')
    with pytest.raises(InputError, match=r"in.jsonl, line 2: found the keys prompt"):
        do("import", config, file=source)
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
        do("import", config, file=source)
    assert not config.dir.exists()


READING = ("export", "import", "serve", "simulate", "verdict", "ask", "sample", "update", "answer")


@pytest.mark.parametrize("command", READING)
def test_nothing_is_made_in_a_run_that_is_not_there(command, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "p", "chosen": " a", "rejected": " b"}\n')
    file = {"file": source} if command in ("export", "import") else {}
    with pytest.raises(InputError, match="quikstart"):
        do(command, FeedbackConfig(run=tmp_path / "quikstart"), **file)
    assert list(tmp_path.iterdir()) == [source]


def test_who_only_reads_makes_no_store(config, tmp_path):
    with pytest.raises(InputError, match="run: it has no labels yet"):
        do("export", config)
    (config.run / "DONE").touch()
    row = {"prompt": "p", "gold": 0.0, "score": 0.0}
    rows = [row | {"policy": name, "response": name} for name in ("a", "b")]
    (config.run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="nothing was asked"):
        do("verdict", config)
    assert not config.dir.exists()
    elsewhere = tmp_path / "other.sqlite"
    with pytest.raises(InputError, match=r"other.sqlite: no such label store"):
        do("export", config, store=str(elsewhere))
    assert not elsewhere.exists()
    for content in (b"", b"not a database, but longer than the header of one" * 9):
        elsewhere.write_bytes(content)
        with pytest.raises((InputError, RunError), match=r"other.sqlite"):
            do("export", config, store=str(elsewhere))
        assert elsewhere.read_bytes() == content


def test_an_export_makes_its_folder_or_says_why_not(config, tmp_path):
    open_database(config.place)
    out = tmp_path / "not" / "there" / "rows.jsonl"
    do("export", config, file=out)
    assert out.read_text() == ""
    for path, message in (
        (out / "below.jsonl", "rows.jsonl is a file"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "is a device"),
    ):
        with pytest.raises(InputError, match=message):
            do("export", config, file=path)
    with pytest.raises(StoreUnavailable, match=r"rows.jsonl"):
        open_database(out / "store.sqlite")


@pytest.mark.parametrize("command", ["serve", "run"])
def test_a_taken_port_is_named_before_anything_is_made(config, command):
    (stages.sft(config) / "final").mkdir(parents=True)
    pytest.importorskip("uvicorn", reason="the site needs the extra feedback")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = replace(config.serve, port=port)
        with pytest.raises(InputError, match=rf"{port}: cannot listen.*another --serve.port"):
            do(command, config, serve=serve)
    assert not config.dir.exists()
    # The flag that it advises is one.
    assert load(FeedbackServeConfig, ["--serve.port", "8421"]).serve.port == 8421


def test_what_is_missing_is_said(config):
    (stages.sft(config) / "checkpoints").mkdir(parents=True)  # unfinished
    for command in ("run", "sample", "update", "answer"):
        with pytest.raises(InputError, match="no finished sft"):
            do(command, config)
    with pytest.raises(InputError, match="--file"):
        do("import", config)
    with pytest.raises(InputError, match="choice=disagreement needs ensemble"):
        replace(config, ensemble=1)


PRESET = ["--config", str(ROOT / "configs" / "quickstart.py")]


def test_flags_and_presets():
    flags = ["--rounds", "4", "--tasks-per-round", "99"]
    config = load(FeedbackUpdateConfig, [*PRESET, *flags], resolve=stages.first_round)
    assert (config.rounds, config.tasks_per_round) == (4, 99)
    own = quickstart.get_config()
    assert (config.reward.optim, config.ppo.kl) == (own.reward.optim, own.ppo.kl)
    assert config.ppo.kl != FeedbackConfig().ppo.kl
    chain = InstructGPTConfig(dir=config.run).resolve()
    stage = stages.ppo_stage(config, 3)
    assert stage.reference == chain.sft.run.dir and stage.init == stages.policy(config, 2)
    assert stage.iterations == config.iterations
    assert stage.ptx_data.path == chain.ppo.ptx_data.path
    first, second = stages.reward_stage(config, 3, 0), stages.reward_stage(config, 3, 1)
    assert first.init == chain.sft.run.dir and first.run.seed != second.run.seed


@pytest.mark.parametrize("command", feedback.COMMANDS)
def test_a_chain_s_preset_serves_every_command(command):
    """With all that the command takes of it, and nothing else."""
    config_class = feedback.COMMANDS[command].config_class
    config = load_command(command, PRESET, feedback.COMMANDS)
    whole = quickstart.get_config().resolve().feedback
    assert type(config) is config_class
    for name, _ in fields_of(config):
        if hasattr(whole, name.partition(".")[0]):
            assert value_of(config, name) == value_of(whole, name), name


@pytest.mark.slow
def test_a_flag_is_the_same_in_every_command_that_takes_it():
    fields = dict(fields_of(FeedbackConfig()))
    for command in feedback.COMMANDS.values():
        config = command.config_class()
        for name, hint in fields_of(config):
            if name in fields:
                assert value_of(config, name) == value_of(FeedbackConfig(), name), name
                assert get_args(hint)[:1] == get_args(fields[name])[:1] or hint == fields[name]
    parts = (feedback.COMMANDS[name].config_class() for name in feedback_processes.PARTS)
    taken = {name for part in parts for name, _ in fields_of(part)}
    assert taken == {*fields}, "run takes what its parts take"


@pytest.mark.parametrize(
    "words, message",
    [
        ("serve --rounds 3", "--rounds is no flag of serve: run and update take it"),
        ("import --file f --format native", "--format is no flag of import: export takes it"),
        ("serve --run x --file=f", "--file is no flag of serve: export and import take it"),
        ("export --policies a b", "--policies is no flag of export: ask and verdict take it"),
        ("sample --ppo.kl.coef 1", "--ppo.kl.coef is no flag of sample: run and update take it"),
        ("--serve.port 1 ask", "--serve.port is no flag of ask: run, serve and simulate take it"),
        ("update --roundz 3", "unknown flag --roundz; did you mean --rounds? (--help all lists"),
        ("updat", "updat: there is no such command; expected run, serve, .*; did you mean update?"),
        ("export --format argila", "--format argila: expected native, .*; did you mean argilla?"),
        ("update --ppo.init m", "--ppo.init has no effect: where stages run in a row, it is "),
    ],
)
def test_what_a_command_does_not_take_is_refused(words, message):
    with pytest.raises(InputError) as error:
        name, rest = take_command(words.split(), feedback.COMMANDS)
        load_command(name, rest, feedback.COMMANDS)
    assert re.match(re.escape(message).replace(re.escape(".*"), ".*"), str(error.value))


@pytest.mark.parametrize(
    "words, command, rest",
    [
        ("serve --run x", "serve", "--run x"),
        ("--run run serve", "serve", "--run run"),
        ("--run=run update --rounds 2", "update", "--run=run --rounds 2"),
        ("--run run", None, "--run run"),
        ("--help export", "export", "--help"),
        ("-h", None, "-h"),
    ],
)
def test_the_command_may_stand_among_the_flags(words, command, rest):
    assert take_command(words.split(), feedback.COMMANDS) == (command, rest.split())


def test_each_part_of_a_run_gets_the_flags_that_it_takes(monkeypatch):
    flags = "--run run --rounds 2 --serve.port 8421 --ppo.kl.coef=0.1 --corpora a b --simulated 3"
    expected = {
        "serve": "--run run --serve.port 8421",
        "answer": "--run run",
        "simulate": "--run run --serve.port 8421 --simulated 3",
        "update": "--run run --rounds 2 --ppo.kl.coef=0.1 --corpora a b",
    }
    for words in (f"run {flags}", f"{flags} run"):
        monkeypatch.setattr(sys, "argv", ["feedback", *words.split()])
        for command, taken in expected.items():
            program = feedback_processes.program(command)
            assert program[1:] == ["-m", "experiments.feedback", command, *taken.split()]
    monkeypatch.setattr(sys, "argv", ["feedback", "run", "--task", "translation", "--rounds", "2"])
    preset, file = feedback_processes.program("answer")[4:]
    assert preset == "--config" and file.endswith("configs/tasks/translation.py")
    monkeypatch.setattr(sys, "argv", ["feedback", "run", "--task", "mine.py", *PRESET])
    assert feedback_processes.program("serve")[4:] == [*PRESET, "--task", "mine.py"]


@pytest.mark.parametrize("command", feedback.COMMANDS)
def test_help_of_a_command_shows_its_fields_alone(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    asked = [[command, "--help"], ["--help", command], [command, "--help", "all"], ["--help"]]
    pages = []
    for words in asked:
        monkeypatch.setattr(sys, "argv", ["feedback", *words])
        with pytest.raises(SystemExit) as end:
            main_of(feedback.COMMANDS, bare=feedback.BARE)
        assert end.value.code == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1] and f" {command} [--config FILE]" in pages[0]
    shown = re.findall(r"^  --([\w.-]+)(?: |$)", pages[2], re.M)
    config = feedback.COMMANDS[command].config_class()
    assert sorted(shown) == sorted(flag_names(config))
    assert len(pages[0].splitlines()) < 60
    assert re.search(rf"^  {command} +\w", pages[3], re.M)


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "fields, said",
    [
        ({}, "the guide of the task sentiment; --task NAME or --serve.guide FILE gives another"),
        ({"task": "mine.py"}, "the guide for any task, as mine.py has none; --task NAME or"),
        ({"serve": ServeConfig(guide=Path("mine.md"))}, "the guide mine.md\n"),
    ],
)
def test_serve_says_which_guide_labelers_read(config, fields, said, monkeypatch, capsys):
    web = pytest.importorskip("rlhf_jax.feedback.web.serve", reason="needs the extra feedback")
    monkeypatch.setattr(web, "serve", lambda site, listener, **names: listener.close())
    monkeypatch.setattr(web, "listen", lambda host, port: socket.socket())
    monkeypatch.chdir(config.run)
    Path("mine.md").write_text("Be kind.")
    do("serve", config, **fields)
    assert capsys.readouterr().err.startswith(f"feedback: labelers read {said}")


def test_bare_it_asks_which_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["feedback"])
    with pytest.raises(SystemExit) as end:
        main_of(feedback.COMMANDS, bare=feedback.BARE)
    said = capsys.readouterr().err
    assert end.value.code == 2 and re.fullmatch(r"error: which command\?.*--help.*\n", said)


def test_nobody_takes_the_name_of_an_import(config):
    database = open_database(config.place)
    with pytest.raises(InputError, match="for imports"):
        accounts.add_labeler(database, "import 7")
    fill(database, 1)
    ann = labeler(database)
    task = queue.lease_task(database, ann)
    with pytest.raises(InputError, match="kind"):
        submissions.submit(database, ann, submission="x" * 8, task=task.id, kind="import", body={})
