"""Run folders: one stage, one config, one process; and stopping by signal."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_jax.cli import read_json, to_dict
from rlhf_jax.config import PretrainConfig, RunConfig
from rlhf_jax.errors import DivergedError, InputError, RunError
from rlhf_jax.runs import records as run_records
from rlhf_jax.runs.folder import open_run
from rlhf_jax.runs.inputs import InputFile
from rlhf_jax.runs.records import diff_config, environment, read_run
from rlhf_jax.runs.signals import StopRequest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"run": {"dir": "runs/sft", "seed": 0}, "optim": {"lr": 1e-3, "b1": 0.9}, "sizes": [1, 2]}


def open_sft(folder, config=CONFIG, ignore=("run.dir",), stage="sft", **more):
    kind = {"stage": stage, "config": config, "config_class": "SFTConfig"}
    return open_run(folder, **kind, ignore=ignore, **more)


def changed(**optim):
    return {**CONFIG, "optim": {**CONFIG["optim"], **optim}}


def python(code, *arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_fresh_run_records_what_it_depends_on(tmp_path):
    with open_sft(tmp_path / "a" / "sft") as run:
        assert run.done is None and run.checkpoints == tmp_path / "a" / "sft" / "checkpoints"
    saved = json.loads((run.folder / "config.json").read_text())
    assert saved["schema"] == 1 and saved["stage"] == "sft" and saved["config"] == CONFIG
    assert saved["config_class"] == "SFTConfig" and saved["argv"] == sys.argv
    assert saved["versions"]["jax"] and len(saved["devices"]) >= 1
    digest = saved["config_digest"]
    with open_sft(tmp_path / "b", config=dict(reversed(CONFIG.items()))) as run:
        assert json.loads((run.folder / "config.json").read_text())["config_digest"] == digest
    with open_sft(tmp_path / "c", config=changed(lr=2e-3)) as run:
        assert json.loads((run.folder / "config.json").read_text())["config_digest"] != digest


def test_the_saved_config_is_a_preset(tmp_path):
    config = PretrainConfig(run=RunConfig(dir=tmp_path), steps=7)
    open_run(
        tmp_path,
        stage="pretrain",
        config=to_dict(config),
        config_class=type(config).__name__,
        ignore=(),
    ).close()
    assert read_json(tmp_path / "config.json") == config


def test_resume_needs_the_same_models(tmp_path):
    """Wherever they are now; what is gone is not asked for, and older runs did not say."""

    def open_it(init, digest):
        models = {"init": InputFile(init, digest)} if digest else {}
        given = {**CONFIG, "init": init}
        open_sft(tmp_path, given, ("init", "run.dir"), models=models).close()

    open_it("a", "1" * 64)
    open_it("moved", "1" * 64)
    saved = (tmp_path / "config.json").read_text()
    assert read_run(tmp_path, stage="sft").models == {"init": InputFile("a", "1" * 64)}
    with pytest.raises(InputError, match=r"init was a \(1{12}\), now b \(2{12}\)"):
        open_it("b", "2" * 64)
    with pytest.raises(InputError, match=r"--init a has changed since \(1{12} then, 2{12} now\)"):
        open_it("a", "2" * 64)
    assert (tmp_path / "config.json").read_text() == saved
    open_it("gone", None)
    record = json.loads(saved)
    del record["models"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    open_it("b", "2" * 64)


def test_resume_needs_the_same_config(tmp_path):
    open_sft(tmp_path).close()
    first = (tmp_path / "config.json").read_text()
    open_sft(tmp_path, {**CONFIG, "run": {"dir": "elsewhere", "seed": 0}}).close()
    assert (tmp_path / "config.json").read_text() == first
    with pytest.raises(InputError) as raised:
        open_sft(tmp_path, {**changed(lr=2e-3), "sizes": [1, 2, 3]})
    message = str(raised.value)
    assert "optim.lr was 0.001, now 0.002; sizes was [1, 2], now [1, 2, 3]" in message
    assert "optim.b1" not in message and "run.seed" not in message
    open_sft(tmp_path, changed(lr=2e-3, b1=0.8), ignore=("run", "optim")).close()


def test_a_field_that_came_later_counts_as_its_default(tmp_path):
    """A run of an older version resumes; a value that it cannot have had is named."""
    open_sft(tmp_path).close()
    defaults = {"optim": {"lr": 9.0, "eps": 1e-8}, "sizes": [], "attention": "whole"}
    newer = changed(eps=1e-8) | {"attention": "whole"}
    open_sft(tmp_path, newer, defaults=defaults).close()
    assert json.loads((tmp_path / "config.json").read_text())["config"] == newer
    (tmp_path / "config.json").unlink()
    open_sft(tmp_path).close()
    with pytest.raises(InputError, match='attention was absent, now "fused" ') as raised:
        open_sft(tmp_path, newer | {"attention": "fused"}, defaults=defaults)
    assert "eps" not in str(raised.value)
    with pytest.raises(InputError, match=r"optim\.lr was 0\.001, now 9\.0"):
        open_sft(tmp_path, changed(lr=9.0), defaults=defaults)


def test_diff_of_configs():
    rows = diff_config({"a": {"x": 1, "y": 1}, "ax": 1}, {"a": {"x": True, "z": 2}}, ignore=())
    assert rows == [
        ("a.x", "1", "true"),
        ("a.y", "1", "absent"),
        ("ax", "1", "absent"),
        ("a.z", "absent", "2"),
    ]
    # "a" ignores a.x and a.y, but not ax.
    assert diff_config({"a": {"x": 1}, "ax": 1}, {}, ignore=["a"]) == [("ax", "1", "absent")]


def test_folder_of_another_stage_or_another_person(tmp_path):
    open_sft(tmp_path / "run").close()
    with pytest.raises(InputError, match="belongs to stage 'sft', not 'reward'"):
        open_sft(tmp_path / "run", stage="reward")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"not a run folder and not empty \(it holds thesis.tex\)"):
        open_sft(tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match=r"config\.json: not a config saved by this project"):
        open_sft(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    with pytest.raises(InputError, match="is a file"):
        open_sft(tmp_path / "home" / "thesis.tex")
    with pytest.raises(InputError, match=r"run folder .*tex/a/b: .*thesis\.tex is a file"):
        open_sft(tmp_path / "home" / "thesis.tex" / "a" / "b")


def test_a_read_only_disk(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    folder = tmp_path / "run"
    expected = f"run folder {folder} cannot be written: read-only file system \\({folder}\\)"
    with pytest.raises(InputError, match=expected):
        open_sft(folder)


def test_finished_run_is_recognised(tmp_path):
    with open_sft(tmp_path) as run:
        run.finish({"loss": 1.5})
        assert run.done == {"loss": 1.5}
    with open_sft(tmp_path) as run:
        assert run.done == {"loss": 1.5}
    assert not (tmp_path / "FAILED").exists()
    assert read_run(tmp_path, stage="sft").done == {"loss": 1.5}


def test_failure_leaves_its_reason_until_the_restart(tmp_path):
    with pytest.raises(RunError), open_sft(tmp_path):
        raise RunError("loss is nan at step 3")
    assert (tmp_path / "FAILED").read_text() == "RunError: loss is nan at step 3\n"
    with pytest.raises(KeyboardInterrupt), open_sft(tmp_path):
        assert not (tmp_path / "FAILED").exists()
        raise KeyboardInterrupt
    assert not (tmp_path / "FAILED").exists()


def test_read_run(tmp_path):
    with pytest.raises(InputError, match=r"found no config\.json"):
        read_run(tmp_path, stage=None)
    open_sft(tmp_path).close()
    saved = read_run(tmp_path, stage="sft")
    here = CONFIG | {"run": CONFIG["run"] | {"dir": str(tmp_path)}}
    assert saved.config == here and saved.done is None
    assert saved.checkpoints == tmp_path / "checkpoints"
    with pytest.raises(InputError, match="belongs to stage 'sft', expected a run of 'reward'"):
        read_run(tmp_path, stage="reward")
    for text in ("{", "[]", '{"stage": "sft"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match="not a config saved by this project"):
            read_run(tmp_path, stage="sft")


HOLD = """
import sys, time
from pathlib import Path
from rlhf_jax.runs.folder import open_run
run = open_run(Path(sys.argv[1]), stage="sft", config={}, config_class="SFTConfig", ignore=())
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_two_processes_on_one_folder(tmp_path):
    process = python(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n", process.stderr.read()
    with pytest.raises(RunError, match=f"in use by another process .pid {process.pid} on"):
        open_sft(tmp_path, {})
    process.send_signal(signal.SIGKILL)
    process.communicate()
    open_sft(tmp_path, {}).close()  # a kill releases it


def test_a_refused_start_does_not_keep_the_lock(tmp_path):
    open_sft(tmp_path).close()
    with pytest.raises(InputError):
        open_sft(tmp_path, changed(lr=1))
    open_sft(tmp_path).close()


def test_version_of_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "run_records.py"
    module.write_text("x = 1")
    monkeypatch.setattr(run_records, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run_records.git_version() is None
    git("init")
    git("commit", "--allow-empty", "-m", "zero")
    assert run_records.git_version() is None  # somebody else's repository
    rows = tmp_path / "docs" / "results" / "x.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("1\n")
    git("add", "run_records.py", "docs")
    git("commit", "-m", "one")
    rows.write_text("1\n2\n")  # as a study adds them
    assert run_records.git_version() == {"sha": git("rev-parse", "HEAD"), "dirty": False}
    module.write_text("x = 2")
    assert run_records.git_version() == {"sha": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 0, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_asks_the_loop_to_stop(number, code, word, capfd):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.requested and stop.exit_code == code
    assert signal.getsignal(number) is before
    assert f"{word}: finishing this step, then saving" in capfd.readouterr().err


def test_what_a_scheduler_starts_again_has_a_code_of_its_own():
    with StopRequest(preempted_code=85) as stop:
        assert stop.exit_code == 0  # of a run that stops by itself, after --run.stop-after
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.exit_code == 85


def test_second_interrupt_stops_at_once():
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_after_a_nan_another_learning_rate_goes_on(tmp_path):
    """As the message advises; it is recorded, and nothing else may change."""
    folder = tmp_path / "sft"
    with pytest.raises(DivergedError), open_sft(folder, config=changed(lr=1e30)):
        raise DivergedError("loss is nan at step 2")
    tunable = ("optim.lr",)
    for other in (changed(lr=1e-4, b1=0.5), changed(b1=0.5)):
        with pytest.raises(InputError, match=r"optim\.b1 was 0\.9, now 0\.5"):
            open_sft(folder, config=other, tunable=tunable)
    with open_sft(folder, config=changed(lr=1e-4), tunable=tunable):
        pass
    why = "DivergedError: loss is nan at step 2"
    assert read_run(folder, stage=None).retuned == [
        {"why": why, "changed": {"optim.lr": ["1e+30", "0.0001"]}}
    ]
    with pytest.raises(InputError, match=r"optim\.lr was 0\.0001"):  # it goes on now
        open_sft(folder, config=changed(lr=1e-5), tunable=tunable)
    with pytest.raises(DivergedError), open_sft(folder, config=changed(lr=1e-4)):
        raise DivergedError("loss is nan at step 9")
    open_sft(folder, config=changed(lr=1e-5), tunable=tunable).close()
    assert len(read_run(folder, stage=None).retuned) == 2
