"""Loops compile in their first step only, and an update never waits for the host."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import quickstart
from experiments import ppo, reward, sft
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.runs.stage import Stage
from rlhf_jax.training.parallel import Parallel

pytestmark = pytest.mark.slow
COMPILED = "/jax/core/compile/backend_compile_duration"
STEPS = 4
RUN = {"sft": sft.run, "reward": reward.run, "ppo": ppo.run}


def make_stages(folder: Path) -> dict:
    """Configs of four steps each, from models with random parameters; no evaluation on the way."""
    task = tiny.make_task(folder)
    c = tiny.shrink(quickstart.get_config(), folder / "chain", task, d_model=16, packing=True)
    tiny.write_data(c)
    c = c.resolve()
    tokenizer = load_tokenizer(task.tokenizer)
    lm = tiny.save_model(folder / "lm", tokenizer)
    scalar = tiny.save_model(folder / "scalar", tokenizer, kind="scalar")
    rows = [
        {"prompt": f"Write a positive review: film {n}", "responses": ["a b", "c"], "ranks": [0, 1]}
        for n in range(8)
    ]
    tiny.write_rows(folder / "comparisons.jsonl", rows)
    data = folder / "comparisons.jsonl"
    run = lambda stage: replace(stage.run, eval_every=1000, save_every=2, seed=7)
    adam = replace(c.sft.optim, optimizer="adamw")
    return {
        "sft": replace(c.sft, run=run(c.sft), init=lm, optim=adam, epochs=STEPS),
        "reward": replace(
            c.reward, run=run(c.reward), init=lm, data=data, heldout=data, optim=adam, epochs=2
        ),
        "ppo": replace(c.ppo, run=run(c.ppo), init=lm, reward=(scalar,), iterations=STEPS),
    }


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return make_stages(tmp_path_factory.mktemp("loops"))


@pytest.fixture
def compiled(monkeypatch):
    """Names of the programs that each step of a stage compiled."""
    names, per_step = [], []
    steps = Stage.steps

    def listen(event, seconds, **facts):
        if event == COMPILED:
            names.append(facts.get("fun_name"))

    def counted(self, total):
        for step in steps(self, total):
            before = len(names)
            yield step
            per_step.append(names[before:])

    monkeypatch.setattr(Stage, "steps", counted)
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield per_step
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", list(RUN))
def test_only_the_first_step_compiles(stages, compiled, name):
    RUN[name](stages[name])
    assert len(compiled) == STEPS
    assert compiled[0], "the first step must compile, or nothing is counted"
    assert compiled[1:] == [[]] * (STEPS - 1)


@pytest.mark.multidevice
def test_updates_fetch_nothing(tmp_path):
    """No array is read by Python or NumPy during an update: the loop runs ahead of the device."""
    done = subprocess.run(
        [sys.executable, __file__, tmp_path],
        env=tiny.process_environment(JAX_NUM_CPU_DEVICES="2"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {name: STEPS for name in RUN}


# --- run as a process -----------------------------------------------------------------------------


class Fetched(Exception):
    """An array was read while an update ran."""


def forbid_fetching() -> dict[str, int]:
    """Make every update raise Fetched when it reads an array on the host; counts the updates.

    On CPU JAX's transfer guard sees no transfer. With two devices an array is no plain buffer, so
    whoever reads it goes through these two methods.
    """
    array = type(jnp.zeros(1))
    value, convert, update = array._value, array.__array__, Parallel.update
    state = {"inside": False, "updates": 0}

    def check():
        if state["inside"]:
            raise Fetched

    def guarded(self, *arguments, **options):
        step = update(self, *arguments, **options)

        def run(*inputs):
            state["inside"] = True
            try:
                with jax.transfer_guard_device_to_host("disallow"):
                    return step(*inputs)
            finally:
                state["inside"] = False
                state["updates"] += 1

        return run

    array._value = property(lambda self: (check(), value.fget(self))[1])
    array.__array__ = lambda self, *a, **k: (check(), convert(self, *a, **k))[1]
    Parallel.update = guarded
    return state


def control(state) -> None:
    """The check itself works: NumPy's and Python's ways of reading a sharded array raise."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    array = jax.device_put(np.arange(4.0), split)
    total = jax.jit(jnp.sum, out_shardings=jax.NamedSharding(mesh, jax.P()))(array)
    for read in (lambda: np.asarray(array), lambda: float(total), lambda: np.array(total)):
        state["inside"] = True
        try:
            read()
        except Fetched:
            continue
        finally:
            state["inside"] = False
        raise AssertionError("a read of an array went unseen")


if __name__ == "__main__":
    configs = make_stages(Path(sys.argv[1]))
    state = forbid_fetching()
    control(state)
    counts = {}
    for name, config in configs.items():
        state["updates"] = 0
        RUN[name](config)
        counts[name] = state["updates"]
    print(json.dumps(counts))
