"""Run by test_hosts.py: stages of tiny models, in float64, as one of several processes.

python hosts_worker.py FOLDER STAGES RUNS STEPS MODE DATA FSDP TENSOR [PORT PROCESSES RANK]

``MODE`` is "mesh"; "layouts": mesh, and then PPO in each of ``LAYOUTS`` too, in folders beside
``RUNS``; or "stopped": mesh, and each stage is stopped before it is finished, every other one by
``stop_after`` after a step, the others by a SIGTERM that one process gets.
"""

import contextlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import jax
import tiny

from configs import quickstart
from experiments import dpo, ppo, pretrain, reward, sft
from rlhf_jax.config import DPOConfig, LoRAConfig, ModelConfig, ParallelConfig

RUN = {
    "pretrain": pretrain.run,
    "sft": sft.run,
    "reward": reward.run,
    "dpo": dpo.run,
    "ppo": ppo.run,
}
ROWS = 4
LAYOUTS = {"alone": dict(devices=1), "pmap": dict(mode="pmap")}
MODEL = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=tiny.CONTEXT, dtype="float64")


def make_inputs(folder: Path) -> None:
    """Data, and models with random parameters, that all runs start from."""
    from rlhf_jax.data.tokenizer_files import load_tokenizer

    task = tiny.make_task(folder)
    c = tiny.shrink(quickstart.get_config(), folder / "chain", task, d_model=16)
    tiny.write_data(c)
    tokenizer = load_tokenizer(task.tokenizer)
    with jax.enable_x64(True):
        tiny.save_model(folder / "lm", tokenizer, model=MODEL)
        tiny.save_model(folder / "scalar", tokenizer, kind="scalar", model=MODEL)
    rows = [
        {"prompt": f"Write a positive review: film {n}", "responses": ["a b", "c"], "ranks": [0, 1]}
        for n in range(8)
    ]
    tiny.write_rows(folder / "comparisons.jsonl", rows)
    function = "def letters(prompts, responses):\n    return [len(x) / 30 for x in responses]\n"
    (folder / "letters.py").write_text(function)


def configs(folder: Path, runs: Path, steps: int, parallel: ParallelConfig) -> dict:
    task = tiny.Task(folder / "data", folder / "tokenizer")
    preset = quickstart.get_config()
    c = tiny.shrink(preset, folder / "chain", task, d_model=16, packing=True).resolve()

    def common(stage, name):
        run = replace(stage.run, dir=runs / name, eval_every=1, save_every=1, seed=7)
        return dict(run=run, parallel=parallel, init=folder / "lm")

    adam = replace(c.sft.optim, optimizer="adamw")
    ranked = folder / "comparisons.jsonl"
    pairs = dict(data=ranked, heldout=ranked, optim=adam, epochs=steps, batch_size=8)
    lengths = dict(prompt_length=tiny.PROMPT, response_length=tiny.RESPONSE, allow_cut=True)
    return {
        "pretrain": replace(
            c.pretrain,
            **common(c.pretrain, "pretrain") | {"init": None},
            tokenizer=replace(c.pretrain.tokenizer, path=folder / "tokenizer"),
            model=MODEL,
            optim=adam,
            steps=steps,
        ),
        "dpo": DPOConfig(
            **common(c.reward, "dpo"),
            **pairs,
            **lengths,
            cache=c.reward.cache,
            loss="ipo",
            sft_coef=0.5,
            lora=LoRAConfig(rank=2, alpha=4.0),
        ),
        "sft": replace(c.sft, **common(c.sft, "sft"), optim=adam, epochs=steps),
        "reward": replace(c.reward, **common(c.reward, "reward"), **pairs),
        "ppo": replace(
            c.ppo,
            **common(c.ppo, "ppo"),
            reward=(folder / "scalar", folder / "letters.py:letters"),
            iterations=steps,
            batch_size=ROWS * c.ppo.num_minibatches,
            ptx_batch_size=ROWS,
        ),
    }


def main(
    *, folder, stages, runs, steps, mode, data, fsdp, tensor, port=None, processes=1, rank=0
) -> None:
    stopped = mode == "stopped"
    sizes = dict(data=int(data), fsdp=int(fsdp), tensor=int(tensor))
    if port is not None:
        sizes |= dict(coordinator=f"127.0.0.1:{port}")
        sizes |= dict(processes=int(processes), process_id=int(rank))
    made = configs(Path(folder), Path(runs), int(steps), ParallelConfig(**sizes))
    names = stages.split(",")
    if stopped:
        for name in names[::2]:
            stop(name, made[name], after=1)
        if int(rank) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        # After the next step that no process has begun: the second, counted in each start.
        for name in names[1::2]:
            stop(name, made[name], after=0)
    for name in names:
        RUN[name](made[name])
    for layout, sizes in LAYOUTS.items() if mode == "layouts" else ():
        beside = Path(runs).with_name(layout)
        config = configs(Path(folder), beside, int(steps), ParallelConfig(**sizes))["ppo"]
        # Packed or not, an iteration is the same, and these compile sooner.
        RUN["ppo"](replace(config, packing=False))


def stop(name: str, config, *, after: int) -> None:
    with contextlib.suppress(SystemExit):
        RUN[name](replace(config, run=replace(config.run, stop_after=after)))
        raise AssertionError(f"{name} was not stopped")


if __name__ == "__main__":
    names = [
        "folder",
        "stages",
        "runs",
        "steps",
        "mode",
        "data",
        "fsdp",
        "tensor",
        "port",
        "processes",
        "rank",
    ]
    main(**dict(zip(names, sys.argv[1:], strict=False)))
