"""The runs that one seed of a study takes: stages of its chain, each arm's own, one evaluation.

A run's folder ends with a digest of its config and of everything that it is made from, so that
arms share what is equal, and never what differs: the digest of a stage holds the folders of those
before it, and so their digests.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.cli import to_dict
from rlhf_jax.config import (
    DPOConfig,
    EvaluateConfig,
    InstructGPTConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from rlhf_jax.config.effect import without_effect
from rlhf_jax.errors import check
from rlhf_jax.runs.identity import MAY_CHANGE, READS, STARTS_FROM, inputs, text_rewards_of
from rlhf_jax.runs.inputs import contents_digest
from rlhf_jax.runs.model_digests import model_digest, settings_digest
from rlhf_jax.runs.records import config_digest, diff_config, dotted_fields
from rlhf_jax.studies.study import Arm, Study

STAGES = {"pretrain": "pretrain", "sft": "sft", "comparisons": "compare", "reward": "reward"}
"""Folder of each stage before the arms' own, and its name in a chain and among experiments."""
COMMANDS = {
    PPOConfig: "ppo",
    DPOConfig: "dpo",
    SFTConfig: "sft",
    RewardConfig: "reward",
    PretrainConfig: "pretrain",
}
"""Which stage a config is of."""
NOT_TOLD = tuple(name for name in MAY_CHANGE if name not in ("init", "reference"))
"""Config fields that are no part of what a run computes. Of models that it starts from, the folder
tells which they are."""
ROOT = "STUDY"
"""In digests, instead of the folder in which a study's runs lie."""


class Job(NamedTuple):
    """One run of a stage in a folder of its own."""

    label: str
    """Stage or arm, for people."""
    seed: int
    module: str
    """As in ``python -m module``."""
    config: Any
    needs: tuple[Path, ...]
    """Folders of the runs that must be finished before."""
    digest: str

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.config.run.dir

    @property
    def name(self) -> str:
        """``seed 3: grpo``."""
        return f"seed {self.seed}: {self.label}"


class SeedPlan(NamedTuple):
    """What one seed of a study takes, but for its evaluation."""

    seed: int
    jobs: tuple[Job, ...]
    """In an order in which each comes after what it needs."""
    sft: Path
    """Folder of the base chain's SFT model, with which the evaluation compares."""
    policies: dict[str, Path]
    """Folder of the policy of each arm that is no best-of-n."""
    rewards: dict[str, Path]
    """Folder of the reward model of each arm whose chain has one."""
    evaluate: EvaluateConfig
    """Without policies: how all of them are measured."""
    digests: dict[str, str]
    """Of each arm: all that its row depends on."""
    changes: dict[str, dict[str, Any]]
    """Of each arm: the fields in which its stage is not the base chain's, and its values there."""


def plan_seed(
    study: Study, seed: int, root: Path, *, arms: Sequence[Arm] | None = None
) -> SeedPlan:
    """The runs of these ``arms`` (all of the study's by default) for one seed, below ``root``."""
    arms = study.arms if arms is None else arms
    jobs: dict[Path, Job] = {}
    base = place_chain(study.base, seed, root, jobs)
    best_of = tuple(sorted({arm.best_of for arm in study.arms})) if base.has_reward_model else (1,)
    evaluate = replace(
        base.evaluate,
        best_of=best_of,
        best_of_curve=study.best_of_curve,
        text_only=(),
        policies=(),
        cache=root / f"seed{seed}" / "answers",
    )
    # Part of every row's digest: another judge or another prompt makes other figures.
    judges = digest_of(evaluate, "evaluate", root)
    policies, rewards, digests, changes = {}, {}, {}, {}
    wanted = [base.sft.run.dir, *evaluate.reward]
    for arm in arms:
        chain = place_arm(arm, study.base, seed, root, jobs)
        folder, changed = chain.sft.run.dir, {}
        if chain.has_reward_model:
            rewards[arm.name] = chain.reward.run.dir
        if arm.policy is not None:
            job = arm_job(arm, chain, seed, root)
            folder, changed = jobs.setdefault(job.folder, job).folder, changes_of(job.config, base)
        if arm.best_of == 1:
            policies[arm.name] = folder
        made_from = {"policy": jobs[folder].digest, "n": arm.best_of}
        if study.best_of_curve and arm.name in rewards:
            wanted.append(rewards[arm.name])
            if arm.policy is None:  # else the policy's digest knows it
                made_from["reward"] = jobs[rewards[arm.name]].digest
        digests[arm.name] = config_digest(made_from | judges)
        changes[arm.name] = changed | changes_between(base, chain) | changes_of_start(arm, study)
        wanted.append(folder)
    kept = needed(wanted, jobs)
    ordered = tuple(job for folder, job in jobs.items() if folder in kept)
    return SeedPlan(seed, ordered, base.sft.run.dir, policies, rewards, evaluate, digests, changes)


def evaluation(plan: SeedPlan, policies: Sequence[Path], root: Path) -> Job:
    """The evaluation of these policies, and of the SFT model before them: the baseline."""
    # An arm that trains nothing has the SFT model's folder, which is there already.
    models = tuple(dict.fromkeys((plan.sft, *policies)))
    config = replace(plan.evaluate, policies=models)
    if config.best_of_curve:
        own = [r for arm, r in plan.rewards.items() if plan.policies.get(arm) in policies]
        config = replace(config, reward=tuple(dict.fromkeys((*config.reward, *own))))
    before = (*models, *config.reward)
    return make_job("evaluate", plan.seed, "experiments.evaluate", config, root, before)


# --- where runs lie -------------------------------------------------------------------------------


def place_arm(
    arm: Arm, base: InstructGPTConfig, seed: int, root: Path, jobs: dict[Path, Job]
) -> InstructGPTConfig:
    """The chain of ``arm`` as ``place_chain`` gives it, after that which its reward model needs."""
    chain = arm.chain(base)
    if arm.reward_from is not None:
        other = place_chain(arm.reward_from(chain), seed, root, jobs)
        chain = replace(chain, reward_init=other.sft.run.dir)
    return place_chain(chain, seed, root, jobs)


def place_chain(
    chain: InstructGPTConfig, seed: int, root: Path, jobs: dict[Path, Job]
) -> InstructGPTConfig:
    """``chain`` with every stage's folder filled in, its runs added to ``jobs`` by folder."""
    base = root / "made"
    c = replace(chain, dir=base, seed=seed).resolve()
    places = {base / "data": data_folder(chain, root)}
    for name, field in STAGES.items():
        config = with_places(getattr(c, field), places)
        job = make_job(name, seed, f"experiments.{field}", config, root, jobs)
        # Of equal stages the first stays: arms that share a digest share a run.
        job = jobs.setdefault(job.folder, job)
        places[base / name] = job.folder
        c = replace(c, **{field: job.config})
    return replace(c, ppo=with_places(c.ppo, places), evaluate=with_places(c.evaluate, places))


def data_folder(chain: InstructGPTConfig, root: Path) -> Path:
    """Where the task's files lie, which all seeds read."""
    task = contents_digest(Path(chain.task)) if chain.task.endswith(".py") else None
    return root / f"data-{config_digest({'task': [chain.task, task, str(chain.source)]})[:12]}"


def arm_job(arm: Arm, chain: InstructGPTConfig, seed: int, root: Path) -> Job:
    """The run that trains an arm's policy."""
    assert arm.policy is not None
    config = arm.policy(chain)
    stage = next((name for kind, name in COMMANDS.items() if isinstance(config, kind)), "")
    check(
        stage != "",
        f"arm {arm.name}: its policy gives a {type(config).__name__}, expected one of "
        f"{', '.join(kind.__name__ for kind in COMMANDS)}",
    )
    # The seed is the study's: an arm's policy that set one would pair two different ones.
    config = replace(config, run=replace(config.run, seed=seed))
    module = arm.command or f"experiments.{stage}"
    stages = (getattr(chain, field).run.dir for field in STAGES.values())
    return make_job(arm.name, seed, module, config, root, stages)


def make_job(
    label: str, seed: int, module: str, config: Any, root: Path, before: Iterable[Path]
) -> Job:
    """A run of ``config`` in the folder that its digest names; it may need those ``before``."""
    config = replace(config, run=replace(config.run, dir=root))  # a config made from another's
    digest = config_digest(digest_of(config, module, root))
    stage = module.rpartition(".")[2]
    folder = root / f"seed{seed}" / f"{stage}-{digest[:12]}"
    named = paths_in(config)
    needs = tuple(each for each in before if any(path.is_relative_to(each) for path in named))
    config = replace(config, run=replace(config.run, dir=folder))
    return Job(label, seed, module, config, needs, digest)


def needed(folders: Sequence[Path], jobs: Mapping[Path, Job]) -> set[Path]:
    """The folders, and all that they are made from."""
    found: set[Path] = set()
    # Walked from the ends back: a stage that no arm's policy needs is not run.
    waiting = list(folders)
    while waiting:
        folder = waiting.pop()
        if folder in jobs and folder not in found:
            found.add(folder)
            waiting.extend(jobs[folder].needs)
    return found


# --- digests --------------------------------------------------------------------------------------


def digest_of(config: Any, module: str, root: Path) -> dict[str, Any]:
    """What tells one run from another: fields that are not at their defaults, and input files.

    A field at its default does not count, so that rows outlive fields that later versions add.
    """
    default = dotted_fields(to_dict(type(config)()))
    told = {
        name: in_root(value, root)
        for name, value in dotted_fields(to_dict(config)).items()
        if not any(name == field or name.startswith(f"{field}.") for field in NOT_TOLD)
        and (name not in default or value != default[name])
    }
    return {"module": module, "config": told, "inputs": outside_inputs(config, root)}


def in_root(value: Any, root: Path) -> Any:
    """``value`` of a config's JSON with paths below ``root`` as they are from there."""
    if isinstance(value, list):
        return [in_root(part, root) for part in value]
    if isinstance(value, str) and value.startswith(f"{root}/"):
        # So that the same study in another folder, or on another machine, has the same digests.
        return ROOT + value.removeprefix(str(root))
    return value


def outside_inputs(config: Any, root: Path) -> dict[str, str]:
    """Digests of models, data and functions that a config names and the study does not make."""

    def outside(digest):
        return lambda path: None if path.is_relative_to(root) else digest(path)

    inputs_read = inputs(config, STARTS_FROM, outside(model_digest))
    settings = inputs(config, STARTS_FROM, outside(settings_digest))
    inputs_read |= {f"{name}[settings]": source for name, source in settings.items()}
    inputs_read |= inputs(config, READS, outside(contents_digest)) | text_rewards_of(config)
    return {name: source.digest for name, source in inputs_read.items()}


def with_places(value: Any, places: Mapping[Path, Path]) -> Any:
    """``value``, a config, with the paths below each of ``places`` moved to where that lies."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        moved = {name: with_places(part, places) for name, part in fields.items()}
        # By identity: a config without such paths stays the same object, and its callers see that.
        changed = {name: part for name, part in moved.items() if part is not fields[name]}
        return replace(value, **changed) if changed else value
    if isinstance(value, tuple):
        moved = tuple(with_places(part, places) for part in value)
        return moved if any(a is not b for a, b in zip(moved, value, strict=True)) else value
    if isinstance(value, Path):
        for was, now in places.items():
            if value.is_relative_to(was):
                return now / value.relative_to(was)
    return value


def paths_in(value: Any) -> list[Path]:
    """All paths in a config."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [p for f in dataclasses.fields(value) for p in paths_in(getattr(value, f.name))]
    if isinstance(value, tuple):
        return [path for part in value for path in paths_in(part)]
    return [value] if isinstance(value, Path) else []


# --- what an arm changes --------------------------------------------------------------------------


def changes_of(config: Any, base: InstructGPTConfig) -> dict[str, Any]:
    """Fields in which an arm's stage is not the base chain's of its kind (of DPO: the defaults)."""
    stages = (base.ppo, base.sft, base.reward, base.pretrain)
    like = next((stage for stage in stages if type(stage) is type(config)), type(config)())
    places = ("run", "init", "value_init", "reward", "data", "heldout", "prompts")
    places += ("demonstrations", "ptx_data")
    return different(like, config, ignore=(*NOT_TOLD, *places))


def changes_between(base: InstructGPTConfig, chain: InstructGPTConfig) -> dict[str, Any]:
    """Fields of the stages before an arm's own in which its chain is not the base chain."""
    changes = {}
    for field in STAGES.values():
        both = getattr(base, field), getattr(chain, field)
        changed = different(*both, ignore=(*NOT_TOLD, "init", *READS))
        changes |= {f"{field}.{name}": value for name, value in changed.items()}
    return changes


def changes_of_start(arm: Arm, study: Study) -> dict[str, Any]:
    """Those of the chain that the arm's reward model starts from, where it is another one."""
    if arm.reward_from is None:
        return {}
    chain = arm.chain(study.base)
    changes = changes_between(chain, arm.reward_from(chain))
    return {f"reward_from.{name}": value for name, value in changes.items()}


def different(was: Any, now: Any, *, ignore: Sequence[str]) -> dict[str, Any]:
    """{field: new value} of every field that differs."""
    values = dotted_fields(to_dict(now))
    rows = diff_config(to_dict(was), to_dict(now), ignore=ignore)
    return {name: values.get(name) for name, _, _ in rows if not without_effect(now, name)}
