"""InstructGPT, all stages in a row, each in its own sub-folder of one run folder.

    python -m experiments.instructgpt --config configs/quickstart.py
    python -m experiments.instructgpt --task translation

raw text → pretraining → SFT on demonstrations → K ranked answers per prompt → reward model →
PPO-ptx → evaluation → report. Every stage can be killed; the same command goes on from there.
"""

import json
import time
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from experiments import compare, convert, evaluate, ppo, pretrain, report, reward, sft
from rlhf_jax.cli import main, to_dict
from rlhf_jax.config import InstructGPTConfig
from rlhf_jax.config.effect import value_of
from rlhf_jax.data.files import write_atomically
from rlhf_jax.errors import check
from rlhf_jax.evaluation.numbers import show
from rlhf_jax.report.drawing import load_matplotlib
from rlhf_jax.report.page import BROUGHT_IN
from rlhf_jax.runs.progress import peak_memory
from rlhf_jax.runs.records import config_digest, environment
from rlhf_jax.runs.trained import check_model
from rlhf_jax.tasks.task import check_corpora, check_leaks, read_task, write
from rlhf_jax.training.hosts import several


def run(config: InstructGPTConfig) -> dict:
    """All stages, the summary and the report; what is finished already is not done again."""
    started = time.monotonic()
    c = config.resolve()
    models = (c.pretrain, c.sft) if c.init is None else (c.conversion,)
    every = (*models, c.compare, c.reward, c.ppo, c.evaluate)
    check(
        not any(several(stage.parallel) for stage in every),
        "the chain runs in one process, as comparisons and evaluation do: start its stages one by "
        "one, training on all hosts, those two on one (--STAGE.parallel.hosts off of every stage "
        "keeps a chain on its own host)",
    )
    load_matplotlib()  # the report needs it: better missed now than after an hour

    check_models(c)
    check_lengths(c)

    # Data: the task's demonstrations, prompts and text, as files that the stages read
    task = read_task(c.task, c.source)
    check_corpora(task, c.corpora, c.task)
    if c.has_reward_model:
        compare.check_enough(len(task.prompts["comparisons"]), c.compare, f"task {c.task}")
    check(
        c.init is not None or len(task.demonstrations) > 0,
        f"task {c.task} has no demonstrations to fine-tune on: give a model that follows "
        "instructions already, --init MODEL",
    )
    # Once: it compares every text with every other.
    if not (c.dir / "data").is_dir():
        check_leaks(task, c.task)
    write(task, c.dir / "data")

    # Stages
    if c.init is None:
        summaries = {"pretrain": pretrain.run(c.pretrain), "sft": sft.run(c.sft)}
    else:
        summaries = {"sft": convert.from_hf(c.conversion)}
    if c.has_reward_model:  # else programs reward PPO, and nobody compares answers
        summaries["comparisons"] = compare.run(c.compare)
        summaries["reward"] = reward.run(c.reward)
    summaries["ppo"] = ppo.run(c.ppo)
    if c.ablations:
        # The alignment tax: SFT without pretraining text, and PPO without its ptx term
        # In folders of their own, with all else equal: what they differ in is what the tax is of.
        plain_sft, plain_ppo = c.dir / "sft_without_mix", c.dir / "ppo_without_ptx"
        summaries["sft_without_mix"] = sft.run(
            replace(c.sft, run=replace(c.sft.run, dir=plain_sft), pretrain_mix=0.0)
        )
        summaries["ppo_without_ptx"] = ppo.run(
            replace(c.ppo, run=replace(c.ppo.run, dir=plain_ppo), ptx_coef=0.0)
        )
        c = replace(
            c,
            evaluate=replace(
                c.evaluate,
                policies=(*c.evaluate.policies, plain_ppo),
                text_only=(*c.evaluate.text_only, plain_sft),
            ),
        )
    summaries["evaluate"] = evaluate.run(c.evaluate)

    # Save
    seconds = round(sum(summary["seconds"] for summary in summaries.values()), 1)
    summary = {
        "schema": 1,
        "config_digest": config_digest(to_dict(config)),
        **environment(),
        "seconds": seconds,
        "wall_seconds_of_this_process": round(time.monotonic() - started, 1),
        "peak_memory_mib": round(peak_memory()),
        "stages": summaries,
    }
    write_atomically(c.dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    report.write([c.dir], c.dir / "report.html")
    print_summaries(summaries, seconds, c.dir)
    return summary


def check_models(c: InstructGPTConfig) -> None:
    """Raise InputError if a model that a stage is to start from, or to use, is none (yet)."""
    for flag in OTHER_MODELS:
        path = value_of(c, flag)
        if path is not None:
            check_model(path, flag=flag.replace("_", "-"))


OTHER_MODELS = (
    *("init", "pretrain.init", "reward_init", "ppo.reference", "ppo.value_init"),
    *("ppo.second_reward.model", "evaluate.second_reward"),
)
"""Fields of a chain that name models besides its own."""


def check_lengths(c: InstructGPTConfig) -> None:
    """Raise InputError if a later stage asks for more tokens than the first one's model can read.

    Of a model that is there already (``init``, ``pretrain.init``) the stages see for themselves.
    """
    if c.init is not None or c.pretrain.init is not None:
        return
    for name in ("sft", "compare", "reward", "ppo", "evaluate"):
        lengths = {f"{name}.{n}": getattr(getattr(c, name), n) for n in LENGTHS}
        c.pretrain.model.check_context(**lengths)
    for name, used in (("sft.pretrain_data", c.sft.pretrain_mix), ("ppo.ptx_data", c.ppo.ptx_coef)):
        size = value_of(c, name).block_size
        c.pretrain.model.check_context(**{f"{name}.block_size": size if used and size else 0})


LENGTHS = ("prompt_length", "response_length")


def print_summaries(summaries: dict, seconds: float, folder) -> None:
    """The closing table: each stage, what it took and the number that matters."""
    table = Table(title="InstructGPT", title_justify="left")
    for column in ("stage", "seconds", "units/s", "result"):
        table.add_column(column, overflow="fold")  # a path is of no use in part
    start = BROUGHT_IN if "source" in summaries["sft"] else "SFT"
    for name, s in summaries.items():
        unit = next((u for u in ("episodes", "tokens") if u in s), None)
        rate = f"{s[unit] / max(s['seconds'], 1e-9):,.0f} {unit}" if unit else ""
        table.add_row(name, f"{s['seconds']:.0f}", rate, headline(name, s, start))
    table.add_row("total", f"{seconds:.0f}", "", f"{folder}/report.html")
    Console().print(table)


def headline(name: str, s: dict, start: str) -> str:
    """What of a stage stands in the closing table; ``start`` is what PPO began with."""
    if name == "comparisons":
        return f"{s['comparisons']} prompts ranked; noise ceiling {s['noise_ceiling']:.3f}"
    if name == "evaluate":
        rows = s["policies"]
        policy = rows.get("ppo", next(reversed(rows.values())))
        win, kl = policy["win_rate"], policy["kl"]["mean"]
        passes = [rows[s["baseline"]].get("pass_at", {}), policy.get("pass_at", {})]
        rates = "; ".join(
            f"pass@{k} {passes[0][k]['mean']:.3f} → {passes[1][k]['mean']:.3f}" for k in passes[1]
        )
        wins = f"PPO wins {show(win, decimals=2)} against {start}"
        return f"{wins}, KL {kl:.1f} nats" + (f"; {rates}" if rates else "")
    heldout = s.get("heldout", {})
    figures = {k.removeprefix("eval/"): v for k, v in heldout.items() if "nats" not in k}
    return ", ".join(f"{k} {v:.3f}" for k, v in figures.items())


if __name__ == "__main__":
    main(run, InstructGPTConfig)
