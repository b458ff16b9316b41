"""The doctor: what must hold of every RLHF run, measured on your model, data and devices.

    python -m experiments.doctor --config configs/quickstart.py
    python -m experiments.doctor --init runs/sft --reward runs/reward --prompts prompts.jsonl

It takes the command line of experiments.instructgpt or of experiments.ppo, reads the run folders
that this names, and writes nothing. What a chain has not trained yet is freshly initialised: most
invariants hold for any parameters. Exit code 0 only if every check that could run has passed.
"""

import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments import pretrain
from rlhf_jax import cli
from rlhf_jax.config import (
    CombineConfig,
    InstructGPTConfig,
    ParallelConfig,
    PPOConfig,
    RewardConfig,
    SFTConfig,
    TextDataConfig,
)
from rlhf_jax.config.data import column_names
from rlhf_jax.config.rewards import reward_source
from rlhf_jax.data.formats import Prompt, iterate
from rlhf_jax.doctor.checks import examine
from rlhf_jax.doctor.invariants import Finding
from rlhf_jax.doctor.patient import Patient
from rlhf_jax.errors import InputError, RunError, check
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.runs import progress
from rlhf_jax.runs.fit import fit_prompts
from rlhf_jax.runs.kept_steps import kept_step, run_of
from rlhf_jax.runs.startup import start
from rlhf_jax.runs.trained import (
    Trained,
    load_trained,
    load_value_init,
    merged,
    same_tokenizer,
    with_adapters,
    with_zero_head,
)
from rlhf_jax.tasks.task import read_task, write
from rlhf_jax.training.corpora import load_corpora
from rlhf_jax.training.parallel import make_parallel


def run(config: InstructGPTConfig | PPOConfig) -> list[Finding]:
    """Examine, print the findings, and raise RunError if a check failed or none ran."""
    began = time.monotonic()
    process = config.ppo.run if isinstance(config, InstructGPTConfig) else config.run
    start(tune_malloc=process.tune_malloc, compile_cache=process.compile_cache)
    # Mistakes are looked for, not rounding: accelerators would round float32 products by default.
    with jax.default_matmul_precision("highest"), tempfile.TemporaryDirectory() as scratch:
        patient = admit(config, Path(scratch))
        findings = examine(patient)
    print_findings(patient, findings, time.monotonic() - began)
    ran = [finding for finding in findings if finding.passed is not None]
    failed = [finding.name for finding in ran if not finding.passed]
    if failed or not ran:
        raise RunError(f"{len(failed)} of {len(ran)} checks failed: {'; '.join(failed)}")
    return findings


# --- who is examined ------------------------------------------------------------------------------


def admit(config: InstructGPTConfig | PPOConfig, scratch: Path) -> Patient:
    """Models and data that ``config`` names; a chain need not have been run to its end."""
    if isinstance(config, PPOConfig):
        ppo, fresh = config, ()
        ppo = with_first_model(ppo)
        policy = load_trained(ppo.init, flag="init")
        reward = load_trained(ppo.reward[0], flag="reward", kind="scalar")
        sft, ranked = record(ppo.init, SFTConfig), record(ppo.reward[0], RewardConfig)
        comparisons, columns = (ranked.data, ranked.columns) if ranked else (None, "")
    else:
        c = files = config.resolve()
        # Written elsewhere: the doctor leaves nothing in a chain's folder.
        if not (c.dir / "data").is_dir():
            write(read_task(c.task, c.source), scratch / "data")
            files = replace(config, dir=scratch).resolve()
        ppo = replace(c.ppo, prompts=files.ppo.prompts)
        sft = replace(c.sft, data=files.sft.data)
        comparisons, columns = c.reward.data, c.reward.columns
        policy, reward, fresh = chain_models(c, replace(files.pretrain.data, cache=scratch))
    value = reward
    if ppo.value_init is not None:
        value = load_value_init(ppo.value_init)
    if ppo.value_head == "zero":
        value = with_zero_head(value)
    same_tokenizer(policy, reward, ("init", "reward"))
    same_tokenizer(policy, value, ("init", "value-init"))
    ppo = fit_prompts(
        ppo,
        iterate(ppo.prompts, Prompt, columns=column_names(ppo.columns)),
        policy.tokenizer,
        trained=(ppo.init, *ppo.reward),
        context=min(policy.model.context, reward.model.context, value.model.context),
        stage="doctor",
    )
    trained, value = (with_adapters(m, ppo.lora, seed=ppo.run.seed) for m in (policy, value))
    return Patient(ppo, policy, reward, trained, value, fresh, sft, comparisons, columns)


def with_first_model(config: PPOConfig) -> PPOConfig:
    """``config`` with the first of its reward models alone. Raises InputError if it has none."""
    models = [path for path in config.reward if reward_source(path).kind == "model"]
    check(
        len(models) > 0,
        f"--reward {' '.join(map(str, config.reward))}: the doctor examines a reward model, and "
        "none is named",
    )
    if len(config.reward) > 1:
        progress.say(f"of {len(config.reward)} rewards the doctor examines {models[0]}")
    return replace(config, reward=(models[0],), combine=CombineConfig())


def chain_models(
    c: InstructGPTConfig, text: TextDataConfig
) -> tuple[Trained, Trained, tuple[str, ...]]:
    """(policy, reward model, which of them are not trained) of a chain run up to any stage."""
    # What is not trained yet is drawn: most invariants hold of any parameters.
    k_policy, k_reward = jax.random.split(jax.random.key(c.seed))
    fresh: tuple[str, ...] = ()
    if is_finished(c.ppo.init):
        policy = load_trained(c.ppo.init, flag="init")
    else:
        fresh += ("policy",)
        one = make_parallel(ParallelConfig(devices=1, hosts="off"))
        pretraining = replace(c.pretrain, data=text)
        policy = merged(
            pretrain.starting_point(pretraining, load_corpora(text, flag="pretrain.data"), one)
        )
        if policy.params is None:
            lm = make_language_model(policy.model, policy.vocab_size)
            policy = policy._replace(params=lm.init(k_policy))
    (reward,) = c.ppo.reward
    if is_finished(reward):
        return policy, load_trained(reward, flag="reward", kind="scalar"), fresh
    scalar = make_scalar_model(policy.model, policy.vocab_size)
    params = scalar.init(k_reward, policy.params["trunk"])
    return policy, policy._replace(params=params, kind="scalar"), (*fresh, "reward")


def is_finished(folder: Path) -> bool:
    """Whether a folder, or a step of a run, has a model."""
    final = (folder / "model.json").is_file() and (folder / "final").is_dir()
    return final or kept_step(folder) is not None


def record(folder: Path, config_class: type):
    """The config that a run folder was made with; None if it keeps none that can be read."""
    with suppress(InputError, FileNotFoundError):  # the rows that need it will say "not run"
        saved = cli.read_json(run_of(folder) / "config.json")
        return saved if isinstance(saved, config_class) else None


# --- the table ------------------------------------------------------------------------------------


def print_findings(p: Patient, findings: list[Finding], seconds: float) -> None:
    """Print what was examined and what was found."""
    runs = {"policy": p.ppo.init, "reward": p.ppo.reward[0]}
    states = [
        f"{name}: random parameters, {run} is not finished" if name in p.fresh else f"{name}: {run}"
        for name, run in runs.items()
    ]
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    console = Console()
    for line in (*states, f"devices: {devices}; {seconds:.0f} s"):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("check", "measured", "bound", "result"):
        table.add_column(column, overflow="fold", no_wrap=column == "check")
    results = {True: "pass", False: "[bold red]FAIL[/]", None: "not run"}
    for finding in findings:
        measured = finding.measured if finding.passed is not None else finding.advice
        table.add_row(finding.name, measured, finding.bound, results[finding.passed])
    console.print(table)
    for finding in findings:
        if finding.passed is False:
            line = f"FAIL {finding.name}: {finding.advice}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def config_class(argv: list[str]) -> type[Any]:
    """A preset of the whole chain is read as the chain, anything else as one PPO stage."""
    with suppress(InputError):  # the command line is read again, and says it
        preset, _ = cli.take_preset(argv)
        if preset is not None and isinstance(cli.read_preset(preset), InstructGPTConfig):
            return InstructGPTConfig
    return PPOConfig


if __name__ == "__main__":
    cli.main(run, config_class(sys.argv[1:]))
