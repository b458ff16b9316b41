"""What a process does before its first array: programs are kept, apart for each kind of machine."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny

from rlhf_jax import cli
from rlhf_jax.config import TaskConfig
from rlhf_jax.runs.startup import collect_seldom, machine_key

PROGRAM = """
import gc, json, pathlib, sys
import jax
from rlhf_jax.runs.startup import start
before = gc.get_freeze_count()
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
start(tune_malloc=True, compile_cache=pathlib.Path(sys.argv[1]))
# Python 3.12 begins with some hundred.
assert before < 1_000 and gc.get_freeze_count() > 10_000 and gc.get_threshold() == (50_000, 20, 50)
print(float(jax.jit(lambda x: x * 2 + 1)(3.0)))
print(json.dumps([hits.count(f"/jax/compilation_cache/cache_{x}") for x in ("hits", "misses")]))
"""


def run(folder, **environment) -> tuple[int, int]:
    """(programs found, programs compiled) of a process that starts with this folder."""
    kept = {k: v for k, v in tiny.process_environment().items() if "CACHE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    value, counts = done.stdout.splitlines()
    assert float(value) == 7.0
    return tuple(json.loads(counts))


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path):
    found, compiled = run(tmp_path)
    assert found == 0 and compiled > 0
    assert [path.name for path in tmp_path.iterdir()] == [machine_key()]
    assert run(tmp_path) == (compiled, 0)


@pytest.mark.slow
def test_the_users_own_folder_stays(tmp_path):
    run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "change, same",
    [(("MHz : 2600", "MHz : 3100"), True), (("avx2", "avx512f"), False), (("X", "Y"), False)],
)
def test_machines_differ_by_what_programs_may_use(tmp_path, change, same):
    """Not by the clock's speed of the moment; only the first processor counts."""
    file = tmp_path / "cpuinfo"
    text = "processor : 0\nmodel name : X\ncpu MHz : 2600\nflags : sse avx2\n\nprocessor : 1\n"
    file.write_text(text)
    before = machine_key(file)
    file.write_text(text.replace(*change))
    assert (machine_key(file) == before) is same
    assert machine_key(Path(tmp_path / "absent")) != before


INTERRUPTED = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(10)
"""


def test_ctrl_c_during_the_imports_is_one_line(tmp_path):
    """No exception: extension modules that are interrupted by one as they start up crash."""
    (tmp_path / "jax.py").write_text(INTERRUPTED)
    environment = tiny.process_environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{tiny.ROOT}")
    command = [sys.executable, "-m", "experiments.sft"]
    # Whoever runs the tests in the background of a shell ignores Ctrl-C, and so would the process.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    output = dict(capture_output=True, text=True)
    done = subprocess.run(command, env=environment, preexec_fn=heed, **output)
    assert (done.returncode, done.stderr, done.stdout) == (130, "\nstopped: Ctrl-C\n", "")


@pytest.mark.parametrize(
    "error, code, said",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            1,
            "no space left on device (a/b)",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 1, "not a directory (a/b)"),
        (ConnectionError("no answer"), 1, "no answer"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, None),
    ],
)
def test_what_a_user_can_cause_is_one_line(monkeypatch, capsys, error, code, said):
    def run(config):
        raise error

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["task"])
    with pytest.raises(SystemExit) as stop:
        cli.main(run, TaskConfig)
    assert stop.value.code == code
    assert capsys.readouterr().err == ("" if said is None else f"stopped: {said}\n")


@pytest.mark.slow
def test_a_stage_starts_without_scipys_slow_parts():
    """``import scipy`` and ``scipy.stats`` in the library, never ``from scipy import stats``."""
    slow = {f"scipy.{name}" for name in ("stats", "optimize", "special", "sparse")}
    program = f"import sys, experiments.ppo; sys.exit(bool({slow} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", program], env=tiny.process_environment(), check=True)


def test_what_a_second_stage_leaves_behind_can_still_be_collected():
    """What lives at the first start of a process, the imports, is never looked through again."""
    collect_seldom()
    kept, of_a_stage = gc.get_freeze_count(), [[] for _ in range(1000)]
    collect_seldom()
    assert gc.get_freeze_count() <= kept and len(of_a_stage) == 1000
