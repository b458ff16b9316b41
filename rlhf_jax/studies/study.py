"""What a study file says: a base chain, arms that differ from it, and what is measured of them.

def get_study() -> Study:
    return Study(
        question="Does a larger KL coefficient cost gold score?",
        base=quickstart.get_config(),
        arms=(Arm("ppo", lambda chain: chain.ppo), Arm("ppo_2", twice_the_coefficient)),
        baseline="ppo",
    )
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_jax.config import InstructGPTConfig
from rlhf_jax.errors import check
from rlhf_jax.python_files import in_file, load_file
from rlhf_jax.studies.measures import (
    Figures,
    Measured,
    Result,
    no_more_figures,
    standard_figures,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

RESERVED = ("pretrain", "sft", "comparisons", "reward", "evaluate", "arm")
"""In a row's seconds these are the stages that arms share, and the arm's own."""


def same(chain: InstructGPTConfig) -> InstructGPTConfig:
    """The base chain as it is."""
    return chain


@dataclass(frozen=True)
class Arm:
    """One of the policies that a study compares."""

    name: str
    policy: Callable[[InstructGPTConfig], Any] | None = None
    """The config of the stage that trains it (PPOConfig, DPOConfig, ...), made from the chain,
    whose stages name each other's folders: chain.ppo as it is, or changed. Its folder and seed are
    set by the study. None: the chain's SFT model."""
    best_of: int = 1
    """The answer that the base chain's reward model likes best among so many of the SFT model."""
    chain: Callable[[InstructGPTConfig], InstructGPTConfig] = same
    """What of the base chain is otherwise for this arm: another reward model, say. What comes out
    equal is shared with the other arms."""
    reward_from: Callable[[InstructGPTConfig], InstructGPTConfig] | None = None
    """The chain, made from the arm's, whose SFT model the reward model starts from: one of another
    size, say. None: the arm's own SFT model."""
    command: str | None = None
    """Module of the stage where it is a fork, as experiments.proj.rloo.ppo; None: the project's."""

    def __post_init__(self):
        check(
            NAME.fullmatch(self.name) is not None,
            f"arm {self.name!r}: expected a name of letters, digits, '_', '-' and '.'",
        )
        check(
            self.policy is None or self.name not in RESERVED,
            f"arm {self.name}: so is a stage of every chain called; expected another name for a "
            "policy of its own",
        )
        check(
            self.best_of == 1 or (self.policy is None and self.chain is same and self.best_of > 1),
            f"arm {self.name}: best_of={self.best_of} picks among answers of the base chain's SFT "
            "model: expected 2 or more, and no policy or chain of its own",
        )


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and how."""

    question: str
    base: InstructGPTConfig
    """The chain whose stages are run anew with each seed, and shared by its arms; its ``evaluate``
    measures them all."""
    arms: tuple[Arm, ...]
    baseline: str
    """The arm with which the others are compared."""
    compared: tuple[str, ...] = ("gold_in_sd", "kl")
    """Figures of which paired differences are told. All of them together are one family of Holm's
    correction."""
    design: str = ""
    """What a reader of the results must know besides: what is held equal, and what is not."""
    findings: str = ""
    """What the rows show and what not, of how many seeds: written when they are there."""
    measure: Callable[[Measured], Figures] = standard_figures
    """The figures of an arm of one seed, from its evaluation and its training."""
    derive: Callable[[Mapping[str, Result]], Mapping[str, Figures]] = no_more_figures
    """More figures of each arm, from those of all arms of one seed; made when the page is."""
    along: tuple[str, ...] = ()
    """Metrics of which a row keeps every logged value of the arm's training: objective/kl, say."""
    best_of_curve: tuple[int, ...] = ()
    """Numbers n of which a row keeps gold and score of the best of n by the arm's reward model."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What the page calls figures of the study's own."""
    tables: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By title, the figures of each table of the page, which has no others then; empty: one table
    of all."""
    draw: Callable[["Study", Mapping[str, Mapping[int, Result]], Path], None] | None = None
    """Draws the curves of {arm: {seed: result}}, beside the plot along ``axes``, as the path with
    .svg and .png."""
    axes: tuple[str, str] = ("kl", "gold_in_sd")
    """Figures along x and y of the plot."""

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        check(not twice, f"arms: {', '.join(twice)} is there twice")
        check(len(names) > 0, "arms is empty: expected at least one")
        check(
            self.baseline in names,
            f"baseline={self.baseline!r}: expected one of the arms, {', '.join(names)}",
        )
        check(
            self.base.has_reward_model or all(arm.best_of == 1 for arm in self.arms),
            "best_of picks by a reward model, but the base chain's ppo.reward names none",
        )
        check(
            not self.best_of_curve or all(arm.best_of == 1 for arm in self.arms),
            f"best_of_curve={self.best_of_curve} is measured by the reward model of each arm, "
            "best_of by the base chain's alone: expected one of the two",
        )


def read_study(path: Path) -> Study:
    """The study that a file's ``get_study`` gives."""
    flag = f"study {path}"
    module = load_file(path, flag=flag)
    check(
        callable(getattr(module, "get_study", None)),
        f"{flag}: expected a function get_study() in it",
    )
    study = in_file(path, module.get_study, flag=flag)
    check(
        isinstance(study, Study),
        f"{flag}: get_study gives a {type(study).__name__}, expected a Study "
        "(rlhf_jax/studies/study.py)",
    )
    return study
