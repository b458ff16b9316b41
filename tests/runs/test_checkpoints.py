"""Checkpoints: exact resume, damage, kill -9, a full disk, other device counts."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.errors import InputError, RunError
from rlhf_jax.runs import checkpoints as module
from rlhf_jax.runs.checkpoints import Checkpoints, load_params, params_sha256
from rlhf_jax.types import TrainState

ROOT = Path(__file__).resolve().parents[2]
# Two optimizers in a partition: masked leaves, empty states and NamedTuples, as in PPO.
TX = optax.partition(
    {"a": optax.adamw(1e-2), "b": optax.chain(optax.clip(1.0), optax.adam(1e-2))},
    lambda params: {"policy": "a", "value": "b"},
)


@pytest.fixture
def state():
    params = {
        "policy": {"w": jnp.arange(12.0).reshape(3, 4) / 7, "b": jnp.ones(4, jnp.bfloat16)},
        "value": {"w": jnp.linspace(0, 1, 5)},
    }
    return TrainState(jnp.int32(0), params, TX.init(params), jax.tree.map(jnp.copy, params))


@jax.jit
def update(state):
    loss = lambda p: sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in jax.tree.leaves(p))
    updates, opt_state = TX.update(jax.grad(loss)(state.params), state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = jax.tree.map(lambda e, p: (0.9 * e + 0.1 * p).astype(e.dtype), state.ema_params, params)
    return TrainState(state.step + 1, params, opt_state, ema)


donating_update = jax.jit(update, donate_argnums=0)


def open_folder(folder, *, keep_latest=2, keep_best=0, best_metric=None, best_mode="max"):
    return Checkpoints(
        folder,
        keep_latest=keep_latest,
        keep_best=keep_best,
        best_metric=best_metric,
        best_mode=best_mode,
    )


def save(checkpoints, step, state, *, data=None, extra=None, metrics=None):
    checkpoints.save(step, state, data=data or {}, extra=extra or {}, metrics=metrics or {})


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def steps_in(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def flip_a_byte(folder):
    """In the largest file of the item: array data."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def python(code, *arguments, env=None):
    """A process of its own, from the root of the source tree."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_resume_is_exact_to_the_bit(tmp_path, state):
    straight = state
    for _ in range(4):
        straight = update(straight)
    with open_folder(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state) is None
        half = update(update(state))
        # 0.1 is not a float32 and 2**127 + 1 not a float: neither may pass through one.
        extra = {"kl_coef": 0.1, "counter": 2**127 + 1, "order": [3, 1], 7: None}
        save(checkpoints, 2, half, data={"index": 5}, extra=extra)
    abstract = jax.eval_shape(lambda: state)
    with open_folder(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(abstract)
    assert restored.step == 2 and restored.data == {"index": 5}
    assert restored.extra == {"kl_coef": 0.1, "counter": 2**127 + 1, "order": [3, 1], "7": None}
    assert_same_bits(restored.state, half)
    assert_same_bits(update(update(restored.state)), straight)


def test_donating_the_state_during_a_save_changes_nothing(tmp_path, state):
    state = update(state)
    expected = jax.tree.map(lambda x: np.array(x), state)
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 1, state)
        for _ in range(20):
            state = donating_update(state)
        restored = checkpoints.restore_latest(state)
        # And a restored state may be donated too.
        donating_update(checkpoints.restore_latest(state).state)
    assert_same_bits(restored.state, expected)


def test_no_average_of_the_weights(tmp_path, state):
    state = state._replace(ema_params=None)
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 1, state)
        checkpoints.wait()
        assert_same_bits(checkpoints.restore_latest(state).state, state)
    with pytest.raises(InputError, match="no average of the weights"):
        load_params(tmp_path, ema=True)


def test_every_save_in_quick_succession_happens(tmp_path, state):
    with open_folder(tmp_path, keep_latest=9) as checkpoints:
        for step in range(1, 6):
            save(checkpoints, step, state)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 1)])
def test_best_steps_are_kept_beside_the_latest(tmp_path, state, mode, best):
    rewards = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.5}
    options = dict(keep_latest=2, keep_best=1, best_metric="reward", best_mode=mode)
    with open_folder(tmp_path, **options) as checkpoints:
        for step, reward in rewards.items():
            save(checkpoints, step, state._replace(step=step), metrics={"reward": reward})
    with open_folder(tmp_path, **options) as checkpoints:  # remembers the metrics
        save(checkpoints, 5, state, metrics={"reward": float("nan")})
        save(checkpoints, 6, state)
    assert steps_in(tmp_path) == [best, 5, 6]
    assert not list(tmp_path.glob("*tmp*"))


def test_load_params_latest_best_and_average(tmp_path, state):
    later = update(state)
    options = dict(keep_latest=2, keep_best=1, best_metric="loss", best_mode="min")
    with open_folder(tmp_path, **options) as checkpoints:
        save(checkpoints, 1, state, metrics={"loss": 1.0})
        save(checkpoints, 2, later, metrics={"loss": 2.0})
    assert_same_bits(load_params(tmp_path), later.params)
    assert_same_bits(load_params(tmp_path, step="best"), state.params)
    assert_same_bits(load_params(tmp_path, step=1), state.params)
    assert_same_bits(load_params(tmp_path, ema=True), later.ema_params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(load_params(tmp_path)))
    with pytest.raises(InputError, match=r"no checkpoint of step 3, only of \[1, 2\]"):
        load_params(tmp_path, step=3)
    with pytest.raises(InputError, match="found no checkpoint"):
        load_params(tmp_path / "nowhere")


def test_a_metric_that_is_not_finite_is_never_best(tmp_path, state):
    later = update(state)
    options = dict(keep_latest=2, keep_best=1, best_metric="loss", best_mode="min")
    with open_folder(tmp_path, **options) as checkpoints:
        save(checkpoints, 1, state, metrics={"loss": jnp.float32(jnp.nan)})
        save(checkpoints, 2, later, metrics={"loss": jnp.float32(2.0)})
    assert_same_bits(load_params(tmp_path, step="best"), later.params)


def test_load_params_refuses_damaged_weights(tmp_path, state):
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 1, state)
        save(checkpoints, 2, state)
    flip_a_byte(tmp_path / "2" / "params")
    with pytest.raises(InputError, match=r"2 (is damaged|does not load)"):
        load_params(tmp_path)


@pytest.mark.parametrize("item", ["params", "train", "info"])
def test_a_flipped_bit_is_found_and_the_step_before_taken(tmp_path, state, item, capsys):
    w = jax.random.normal(jax.random.key(1), (300, 100))  # noise: the data file is not compressible
    params = {**state.params, "policy": {"w": w, "b": jnp.ones(4, jnp.bfloat16)}}
    big = TrainState(state.step, params, TX.init(params), None)
    big = big._replace(opt_state=jax.tree.map(lambda x: x + 1, big.opt_state))
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 1, big, extra={"kl_coef": 0.25})
        save(checkpoints, 2, big, extra={"kl_coef": 0.5})
    flip_a_byte(tmp_path / "2" / item)
    with open_folder(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(big)
        assert restored.step == 1 and restored.extra == {"kl_coef": 0.25}
        assert_same_bits(restored.state, big)
        message = capsys.readouterr().err
        assert f"{tmp_path}/2" in message and "renamed to 2.damaged" in message
        assert message.count("\n") == 1
        save(checkpoints, 2, big)  # the run comes to step 2 again
    assert steps_in(tmp_path) == [1, 2]
    assert (tmp_path / "2.damaged").is_dir()


@pytest.mark.parametrize("item", ["params", "train", "ema"])
def test_wrong_values_that_load_are_never_returned(tmp_path, state, item, capsys):
    """The checksum alone: files of another step are sound in themselves."""
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 1, state)
        save(checkpoints, 2, update(state))
    shutil.rmtree(tmp_path / "2" / item)
    shutil.copytree(tmp_path / "1" / item, tmp_path / "2" / item)
    with open_folder(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state).step == 1
        assert f"damaged: {item}/" in capsys.readouterr().err


def test_nothing_intact_is_an_error_not_a_fresh_start(tmp_path, state):
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 1, state)
    shutil.rmtree(tmp_path / "1" / "params")
    with open_folder(tmp_path) as checkpoints, pytest.raises(RunError, match="every checkpoint"):
        checkpoints.restore_latest(state)


def test_empty_step_and_leftovers_of_a_killed_save(tmp_path, state, capsys):
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 3, state)
    (tmp_path / "7").mkdir()
    (tmp_path / "9.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with open_folder(tmp_path) as checkpoints:
        assert not list(tmp_path.glob("*orbax-checkpoint-tmp"))
        assert checkpoints.restore_latest(state).step == 3
        assert checkpoints.latest_step() == 3
    assert "7 does not load" in capsys.readouterr().err


def test_other_shape_names_the_leaf_and_both_shapes(tmp_path, state):
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 1, state)
    wrong = jax.eval_shape(lambda: state)
    wrong.params["policy"]["w"] = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    expected = r"params/policy/w is float32\[3, 4\], but this run expects float32\[3, 5\]"
    with open_folder(tmp_path) as checkpoints:
        with pytest.raises(InputError, match=expected):
            checkpoints.restore_latest(wrong)
        with pytest.raises(InputError, match="has ema/policy/b, which this run has not"):
            checkpoints.restore_latest(state._replace(ema_params=None))
        extra = state._replace(params={**state.params, "lora": jnp.zeros(2)})
        with pytest.raises(InputError, match="has no params/lora"):
            checkpoints.restore_latest(extra)
    assert steps_in(tmp_path) == [1]


def test_fingerprint_depends_on_names_shapes_dtypes_and_bits():
    a = {"x": jnp.zeros((2, 3)), "y": jnp.ones(2)}
    fingerprint = params_sha256(a)
    assert fingerprint == params_sha256({"y": np.ones(2, np.float32), "x": np.zeros((2, 3), "f4")})
    others = [
        {"x": jnp.zeros((3, 2)), "y": jnp.ones(2)},
        {"x": jnp.zeros((2, 3), jnp.int32), "y": jnp.ones(2)},
        {"x": jnp.zeros((2, 3)), "z": jnp.ones(2)},
        {"x": -jnp.zeros((2, 3)), "y": jnp.ones(2)},
        {"x": jnp.zeros((2, 3)), "y": {"": jnp.ones(2)}},
    ]
    assert len({fingerprint, *map(params_sha256, others)}) == len(others) + 1


SAVE_AND_EXIT = """
import sys, jax.numpy as jnp
from rlhf_jax.runs.checkpoints import Checkpoints
from rlhf_jax.types import TrainState
from pathlib import Path
with Checkpoints(Path(sys.argv[1]), keep_latest=2, keep_best=0, best_metric=None,
                 best_mode="max") as checkpoints:
    state = TrainState(jnp.int32(3), {"w": jnp.arange(1e6)}, {}, None)
    checkpoints.save(3, state, data={}, extra={}, metrics={})
    if sys.argv[2] == "error":
        raise KeyError("the loop failed")
"""


@pytest.mark.slow
def test_exit_straight_after_the_last_save(tmp_path):
    expected = {"ok": 0, "error": 1}
    processes = {how: python(SAVE_AND_EXIT, tmp_path / how, how) for how in expected}
    state = TrainState(jnp.int32(0), {"w": jnp.zeros(10**6)}, {}, None)
    for how, process in processes.items():
        _, errors = process.communicate(timeout=60)
        assert process.returncode == expected[how], errors
        with open_folder(tmp_path / how) as checkpoints:
            restored = checkpoints.restore_latest(state)
        assert restored.step == 3
        np.testing.assert_array_equal(restored.state.params["w"], np.arange(1e6, dtype=np.float32))


SAVE_FOREVER = """
import sys, itertools, jax.numpy as jnp
from rlhf_jax.runs.checkpoints import Checkpoints
from rlhf_jax.types import TrainState
from pathlib import Path
with Checkpoints(Path(sys.argv[1]), keep_latest=2, keep_best=0, best_metric=None,
                 best_mode="max") as checkpoints:
    for step in itertools.count(1):
        params = {f"w{i}": jnp.arange(250_000) * step + i for i in range(20)}
        state = TrainState(jnp.int32(step), params, {}, None)
        checkpoints.save(step, state, data={"next": step + 1}, extra={}, metrics={})
        print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_in_the_middle_of_a_save(tmp_path):
    like = {f"w{i}": jnp.zeros(250_000, jnp.int32) for i in range(20)}  # 20 MB
    process = python(SAVE_FOREVER, tmp_path)
    for _ in range(3):
        dispatched = int(process.stdout.readline())
    while not list(tmp_path.glob("*.orbax-checkpoint-tmp")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open_folder(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(TrainState(jnp.int32(0), like, {}, None))
        assert not list(tmp_path.glob("*tmp*"))
    step = restored.step
    assert step >= dispatched - 1 and restored.data == {"next": step + 1}
    assert int(restored.state.step) == step
    for i in range(20):
        np.testing.assert_array_equal(
            restored.state.params[f"w{i}"], np.arange(250_000, dtype=np.int32) * step + i
        )


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"),
]


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("when", ["start", "save", "wait", "exit"])
def test_full_disk_reported(tmp_path, state, monkeypatch, error, when):
    def start(path, items, info):
        path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
        if when == "start":
            raise error
        return fail

    def fail():
        raise error

    def run():
        with open_folder(tmp_path) as checkpoints:
            save(checkpoints, 1, state)
            checkpoints.wait()
            monkeypatch.setattr(module, "start_write", start)
            save(checkpoints, 2, state)
            if when == "save":
                save(checkpoints, 3, state)
            if when == "wait":
                checkpoints.wait()

    with pytest.raises(RunError) as raised:
        run()
    assert str(raised.value) == (
        f"no space left while saving step 2 in {tmp_path}; the previous checkpoint, step 1, is "
        "intact"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


RUN_OUT_OF_SPACE = """
import resource, signal, sys, jax.numpy as jnp
from rlhf_jax.errors import RunError
from rlhf_jax.runs.checkpoints import Checkpoints
from rlhf_jax.types import TrainState
from pathlib import Path
state = lambda n: TrainState(jnp.int32(n), {"w": jnp.sin(jnp.arange(float(n)))}, {}, None)
if sys.argv[2] == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
try:
    with Checkpoints(Path(sys.argv[1]), keep_latest=2, keep_best=0, best_metric=None,
                     best_mode="max") as checkpoints:
        checkpoints.save(1, state(1000), data={}, extra={}, metrics={})
        checkpoints.save(2, state(3_000_000), data={}, extra={}, metrics={})
except RunError as error:
    print(error)
assert [path.name for path in Path(sys.argv[1]).iterdir()] == ["1"]
with Checkpoints(Path(sys.argv[1]), keep_latest=2, keep_best=0, best_metric=None,
                 best_mode="max") as checkpoints:
    checkpoints.save(3, state(1000), data={}, extra={}, metrics={})
    checkpoints.wait()
    assert checkpoints.restore_latest(state(1000)).step == 3
"""


@pytest.fixture
def small_disk(tmp_path):
    """8 MiB of memory as a disk where we may mount, else a limit on the size of a file."""
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    yield "mounted" if mounted else "limit"
    if mounted:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_really_full_disk(tmp_path, small_disk):
    process = python(RUN_OUT_OF_SPACE, tmp_path / "checkpoints", small_disk)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    what = "no space left while saving" if small_disk == "mounted" else "cannot save"
    assert output.startswith(f"{what} step 2 in {tmp_path}/checkpoints")
    assert output.endswith("the previous checkpoint, step 1, is intact\n")
    assert "Traceback" not in errors


RESTORE_ON_EIGHT = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from rlhf_jax.runs.checkpoints import Checkpoints, load_params, params_sha256
from rlhf_jax.types import TrainState
from pathlib import Path
mesh = Mesh(np.array(jax.devices()), ("data",))
split, replicated = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
abstract = lambda shape, sharding: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
params = {"w": abstract((16, 3), split), "b": abstract((3,), replicated)}
step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
with Checkpoints(Path(sys.argv[1]), keep_latest=2, keep_best=0, best_metric=None,
                 best_mode="max") as checkpoints:
    state = checkpoints.restore_latest(TrainState(step, params, {}, None)).state
    assert len(jax.devices()) == 8
    assert state.params["w"].sharding == split and state.params["b"].sharding == replicated
    np.testing.assert_array_equal(state.params["w"], np.arange(48).reshape(16, 3))
    assert params_sha256(state.params) == sys.argv[2] == params_sha256(load_params(sys.argv[1]))
    checkpoints.save(2, state._replace(step=state.step + 1), data={}, extra={}, metrics={})
"""


@pytest.mark.multidevice
def test_one_device_to_eight_and_back(tmp_path):
    params = {"w": jnp.arange(48.0).reshape(16, 3), "b": jnp.ones(3)}
    state = TrainState(jnp.int32(1), params, {}, None)
    with open_folder(tmp_path) as checkpoints:
        save(checkpoints, 1, state)
    flags = {"JAX_NUM_CPU_DEVICES": "8"}
    process = python(RESTORE_ON_EIGHT, tmp_path, params_sha256(params), env=flags)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    with open_folder(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(state)
    assert restored.step == 2 and int(restored.state.step) == 2
    assert_same_bits(restored.state.params, params)


def test_saving_blocks_the_loop_briefly(tmp_path):
    """1.3 M parameters with Adam's moments in 50 leaves each: 16 MB."""
    params = {f"w{i}": jnp.full((160, 160), float(i)) for i in range(50)}
    state = TrainState(jnp.int32(0), params, optax.adam(1e-3).init(params), None)
    blocked = []
    with open_folder(tmp_path) as checkpoints:
        for step in range(1, 5):
            checkpoints.wait()
            start = time.process_time()  # of this process: the machine may be busy
            save(checkpoints, step, state)
            blocked.append(time.process_time() - start)
    assert min(blocked) < 0.3
