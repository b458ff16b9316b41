"""Logs: JSON lines that survive kills and resumes, the NaN watch, sinks, progress."""

import errno
import importlib.machinery
import json
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.config import RunConfig
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.runs import progress as progress_module
from rlhf_jax.runs.logs import MetricsLog, make_sinks, open_lines, read_rows
from rlhf_jax.runs.progress import (
    Progress,
    Throughput,
    clock,
    duration,
    fitting,
    named_number,
    peak_memory,
)


def open_log(folder, *, resume_step=None, watch=("loss", "grad_norm"), sinks=()):
    return MetricsLog(folder, resume_step=resume_step, watch=watch, sinks=sinks)


class Recorder:
    """A sink that remembers."""

    def __init__(self):
        self.rows, self.texts, self.closed = [], [], False

    def scalars(self, step, values):
        self.rows.append((step, dict(values)))

    def samples(self, step, rows):
        self.texts.append((step, list(rows)))

    def close(self):
        self.closed = True


def test_rows_of_device_arrays(tmp_path):
    with open_log(tmp_path) as log:
        log.scalars(1, {"loss": jnp.float32(2.5), "lr": 0.1})
        log.scalars(2, {"loss": jnp.float32(1.5), "objective/kl": jnp.float32(0.5)})
    first, second = read_rows(tmp_path / "metrics.jsonl")
    assert first == {"step": 1, "time": first["time"], "loss": 2.5, "lr": 0.1}
    assert second["step"] == 2 and second["objective/kl"] == 0.5
    assert 0 <= first["time"] <= second["time"] < 10


def test_metrics_are_fetched_one_call_late(tmp_path):
    log = open_log(tmp_path)
    log.scalars(1, {"loss": jnp.float32(2.5)})
    assert read_rows(tmp_path / "metrics.jsonl") == [] and log.latest == {}
    log.scalars(2, {"loss": jnp.float32(1.5)})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]
    assert log.latest == {"loss": 2.5}
    log.flush()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    log.flush()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2
    log.close()


@pytest.mark.parametrize("name", ["loss", "loss/policy_avg", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("write", [True, False])
def test_a_loss_that_is_not_finite_stops_before_the_save(tmp_path, name, value, write):
    saved = []

    def loop():
        with open_log(tmp_path) as log:
            for step in (1, 2, 3):
                bad = jnp.float32(value if step == 2 else 1.0)
                log.scalars(step, {name: bad, "lossy": float("nan")}, write=write)
                log.flush()
                saved.append(step)

    with pytest.raises(RunError, match=rf"{name} is {value} at step 2 \(batch 2"):
        loop()
    assert saved == [1]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == ([1, 2] if write else [])
    assert not write or (rows[1][name] is None and rows[0]["lossy"] is None)


def test_a_loss_that_is_not_finite_at_the_last_step(tmp_path):
    with pytest.raises(RunError, match="step 9"), open_log(tmp_path) as log:
        log.scalars(9, {"loss": jnp.float32(jnp.nan)})


def test_the_error_of_the_loop_comes_first(tmp_path):
    sink = Recorder()
    with pytest.raises(KeyError), open_log(tmp_path, sinks=[sink]) as log:
        log.scalars(9, {"loss": jnp.float32(jnp.nan)})
        raise KeyError
    assert sink.closed


def test_unwritten_steps_fetch_only_what_is_watched(tmp_path, monkeypatch):
    fetched = []
    real = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(sorted(tree)) or real(tree))
    with open_log(tmp_path) as log:
        log.scalars(1, {"loss": jnp.float32(1), "lr": jnp.float32(1)}, write=False)
        log.scalars(2, {"loss": jnp.float32(1), "lr": jnp.float32(1)})
    assert fetched == [["loss"], ["loss", "lr"]]
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [2]


def test_resume_rewinds_and_time_goes_on(tmp_path):
    with open_log(tmp_path) as log:
        log._start -= 100  # a hundred seconds ago
        for step in (0, 10, 20, 30):
            log.scalars(step, {"loss": 1.0 * step})
            log.samples(step, [{"prompt": "a", "response": f"{step}"}])
    with open_log(tmp_path, resume_step=20) as log:
        log.scalars(30, {"loss": 7.0})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0), (10, 10), (20, 20), (30, 7)]
    assert rows[2]["time"] <= rows[3]["time"] < 110
    assert [row["step"] for row in read_rows(tmp_path / "samples.jsonl")] == [0, 10, 20]
    with open_log(tmp_path, resume_step=None) as log:
        log.scalars(1, {"loss": 1.0})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1] and rows[0]["time"] < 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "time": 1.0}', "\0\0"])
def test_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "time": 0.5}\n{"step": 2, "time": 0.7}\n'
    path.write_text(whole + torn)
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    with open_log(tmp_path, resume_step=3) as log:
        log.scalars(3, {"loss": 1.0})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    assert path.read_text().startswith(whole)


def test_a_bad_line_elsewhere_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2: not JSON"):
        read_rows(path)


def test_rows_are_on_disk_at_once_and_strict_json(tmp_path):
    log = open_log(tmp_path)
    log.scalars(1, {"eval/ece": float("nan")})
    log.flush()
    log.samples(1, [{"prompt": "诗\n</script>", "score": float("inf")}])
    refuse = lambda word: pytest.fail(f"{word} is not JSON")
    for name, field in (("metrics", "eval/ece"), ("samples", "score")):
        line = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8")
        assert json.loads(line, parse_constant=refuse)[field] is None
    assert "诗" in line
    log.close()


def test_sinks_get_the_same_rows(tmp_path):
    sink = Recorder()
    with open_log(tmp_path, sinks=[sink]) as log:
        log.scalars(1, {"loss": jnp.float32(0.5)})
        log.samples(1, [{"prompt": "p"}])
    assert sink.rows == [(1, {"loss": 0.5})] and sink.texts == [(1, [{"prompt": "p"}])]
    assert sink.closed


def sinks_of(folder, *, resume_step=None, tensorboard=False, **projects):
    run = RunConfig(dir=folder, tensorboard=tensorboard, **projects)
    return make_sinks(run, "sft", config={"lr": 1.0}, resume_step=resume_step)


class Full:
    """A sink on a full disk: what is buffered fails again when it is closed."""

    def scalars(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    samples = close = scalars


@pytest.mark.parametrize("what", ["_metrics", "_samples", "_sinks"])
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, what):
    with pytest.raises(OSError, match="No space left") as raised, open_log(tmp_path) as log:
        setattr(log, what, [Full()] if what == "_sinks" else open_lines(Path("/dev/full")))
        log.scalars(1, {"loss": 1.0})
        log.samples(1, [{"prompt": "a"}])
        log.flush()
    assert raised.value.filename == (None if what == "_sinks" else "/dev/full")


def test_tensorboard_rewinds_too(tmp_path):
    Event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    for resume_step in (None, 1):
        with open_log(
            tmp_path, sinks=sinks_of(tmp_path, resume_step=resume_step, tensorboard=True)
        ) as log:
            log.scalars(2, {"loss": 0.5})
            log.samples(2, [{"response": "<b>&\n\n# no heading"}])
    events = []
    for path in sorted((tmp_path / "tb").iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            events.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    values = [(e.step, v.tag) for e in events for v in e.summary.value]
    assert values.count((2, "loss")) == 2
    starts = [e.step for e in events if e.session_log.status]
    assert starts == [0, 2]  # from where TensorBoard forgets what an earlier file said
    texts = [v.tensor.string_val[0] for e in events for v in e.summary.value if v.tensor.string_val]
    assert texts[0] == b'    {"response": "<b>&\\n\\n# no heading"}\n'  # an indented block


def test_without_tensorboardx_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sinks_of(tmp_path, tensorboard=True) == []
    assert capsys.readouterr().err == (
        "tensorboardX is not installed: metrics go to metrics.jsonl only\n"
    )
    assert sinks_of(tmp_path) == []


@pytest.mark.parametrize("tracker, named", [("wandb", "id"), ("trackio", "name")])
def test_trackers(tmp_path, monkeypatch, tracker, named):
    """With a module that stands in for the package: what is sent, once, and to which run."""
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = types.ModuleType(tracker)
    fake.__spec__ = importlib.machinery.ModuleSpec(tracker, None)
    fake.init = lambda **options: calls.append(options) or run
    fake.Table = lambda columns, data: (columns, data)
    monkeypatch.setitem(sys.modules, tracker, fake)
    for _ in range(2):
        (sink,) = sinks_of(tmp_path, resume_step=3, **{tracker: "project"})
        sink.scalars(3, {"loss": 1.0})
        sink.samples(3, [{"prompt": "a", "score": 1}, {"prompt": "b"}])
        sink.close()
    first, again = calls[0], calls[4]
    assert first["project"] == "project" and first["config"] == {"lr": 1.0}
    assert first[named] == again[named] and first["resume"] == "allow"
    assert tmp_path.name in first["name"]
    table = (["prompt", "score"], [["a", 1], ["b", None]])
    assert calls[1:4] == [(3, {"loss": 1.0}), (3, {"samples": table}), "end"]
    # Killed after step 3, going on from step 1: wandb.ai would drop the new steps 2 and 3.
    with open_log(tmp_path) as log:
        for step in (1, 2, 3):
            log.scalars(step, {"loss": 1.0 * step, "lr": float("nan")})
            log.samples(step, [{"prompt": f"{step}"}])
    calls.clear()
    (sink,) = sinks_of(tmp_path, resume_step=1, **{tracker: "project"})
    assert calls[0][named] != again[named]
    assert calls[1:] == [(1, {"loss": 1.0, "lr": None}), (1, {"samples": (["prompt"], [["1"]])})]
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(InputError, match=f"{tracker} is not installed"):
        sinks_of(tmp_path, **{tracker: "project"})


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


def test_progress_lines_without_a_terminal(monkeypatch, capsys):
    time = Clock(monkeypatch)
    with Progress("pretrain", 1200, start=100, seconds=10) as progress:
        for step in range(101, 1201):
            progress.update(step, loss=5.1234, **{"tok/s": 18420.0})
            time.now += 0.5
    lines = capsys.readouterr().err.splitlines()
    numbers = "loss 5.12, 18.4k tok/s"
    assert lines[0] == f"pretrain 101/1200 steps, 8 %, {numbers}"
    assert lines[1] == f"pretrain 121/1200 steps, 10 %, 9:00 left, 0.5 s/step, {numbers}"
    assert lines[-1] == f"pretrain 1200/1200 steps, 100 %, 0.5 s/step, {numbers}"
    assert len(lines) == 56  # every 20 steps


def test_progress_shows_where_it_stopped(monkeypatch, capsys):
    time = Clock(monkeypatch)
    progress = Progress("ppo", 10, start=0, unit="iteration", seconds=60)
    progress.update(1)
    time.now += 5
    progress.update(2, kl=0.01)
    progress.close()
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "ppo 1/10 iterations, 10 %",
        "ppo 2/10 iterations, 20 %, 0:40 left, 5 s/iteration, kl 0.01",
    ]


@pytest.mark.parametrize("columns", [60, 100])
def test_progress_bar_on_a_terminal(monkeypatch, capsys, columns):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (columns, 24))
    time = Clock(monkeypatch)
    with Progress("sft", 4, start=2) as progress:
        progress.update(3, loss=1.0)
        progress_module.say("a line above the bar")
        time.now += 0.012
        progress.update(4, loss=0.5)
    lines = re.split("[\r\n]", capsys.readouterr().err)
    assert any(re.fullmatch(r"sft 2/4 steps, 50 % \|█+ +\|", line) for line in lines)
    last = [line for line in lines if line.strip()][-1]
    assert re.fullmatch(r"sft 4/4 steps, 100 % \|█+\| 12 ms/step, loss 0.5", last)
    assert "a line above the bar" in lines and max(map(len, lines)) <= columns


def test_a_narrow_terminal_cuts_no_number_from_its_unit():
    parts = ["0:48 left", "3.4 s/step", "21.3 episodes/s"]
    assert [fitting(parts, n) for n in (5, 20, 21, 37, 38)] == [
        *("", "0:48 left", "0:48 left, 3.4 s/step", "0:48 left, 3.4 s/step"),
        "0:48 left, 3.4 s/step, 21.3 episodes/s",
    ]


def test_a_step_is_always_so_long(monkeypatch):
    """Never so many a second: 0.3 s/step cannot be taken for 0.3 steps/s."""
    said = [duration(seconds) for seconds in (0.0004, 0.012, 0.0999, 0.31, 12.4, 99.6, 1800)]
    assert said == ["0.4 ms", "12 ms", "0.1 s", "0.31 s", "12 s", "1.66 min", "30 min"]


def test_only_process_zero_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    progress_module.say("nothing")
    with Progress("sft", 1, start=0) as progress:
        progress.update(1)
    assert sinks_of(tmp_path, tensorboard=True, wandb="project") == []
    with pytest.raises(RunError), open_log(tmp_path) as log:
        log.samples(1, [{"prompt": "a"}])
        log.scalars(1, {"loss": 1.0})
        log.flush()
        assert log.latest == {"loss": 1.0}
        log.scalars(2, {"loss": float("nan")})  # every process must stop
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


def test_throughput_and_units(monkeypatch):
    time = Clock(monkeypatch)
    throughput = Throughput()
    for count, seconds, rate in ((999, 2, 0), (100, 2, 25), (300, 1, 80), (0, 5, 40)):
        throughput.add(count)
        time.now += seconds
        assert throughput.rate() == rate
    assert (
        named_number("ep/s", 3.14159) == "3.14 ep/s"
        and named_number("tok/s", 2.5e6) == "2.5M tok/s"
    )
    assert [clock(s) for s in (0, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]


def test_peak_memory_is_in_mebibytes():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells the peak a second way")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory() == pytest.approx(int(line.split()[1]) / 1024, rel=0.05)
