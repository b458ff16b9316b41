"""People in the loop: what each command of ``experiments.feedback`` is told.

A flag means the same in every command that takes it; ``run``, which starts the site, the answers,
the updates and the simulated labelers together, takes theirs, and a chain's preset says them all.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from rlhf_jax.config.bounds import Bounds, Count, CountOrZero, Share, check_bounds
from rlhf_jax.config.effect import Main, only
from rlhf_jax.config.ppo import PPOConfig
from rlhf_jax.config.sampling import SamplingConfig, check_several
from rlhf_jax.config.site import AddressConfig, ScrubConfig, ServeConfig
from rlhf_jax.config.stages import LabelerConfig, RewardConfig
from rlhf_jax.config.training import ParallelConfig
from rlhf_jax.errors import check


@dataclass(frozen=True)
class LoopConfig:
    """Where the labels are."""

    run: Main[Path] = Path("runs/quickstart")
    """Run folder of a chain, or for ask and verdict (and serve between them) of an evaluation. The
    labels are in its feedback/; of a chain sft/ and data/ are read."""
    store: str = ""
    """The labels: empty for feedback/store.sqlite in the run folder, or postgresql://..."""

    def __post_init__(self):
        check_bounds(self)

    @property
    def dir(self) -> Path:
        """The loop's own folder in that of the run."""
        return self.run / "feedback"

    @property
    def place(self) -> str:
        """Path or URL of the store."""
        return self.store or str(self.dir / "store.sqlite")


@dataclass(frozen=True)
class WithSeed(LoopConfig):
    """What commands share that draw at random."""

    seed: Annotated[int, Bounds(0, 2_000_000)] = 0
    """A round's stages have seeds of their own: 1000 of them for each."""


@dataclass(frozen=True)
class WithTask(LoopConfig):
    """What commands share that ask about a task."""

    task: Main[str] = "sentiment"
    """Its guide is what labelers read first; its gold scorer measures each round and stands behind
    the simulated labelers."""


@dataclass(frozen=True)
class WithGold(WithTask):
    """What commands share that score by a task's gold scorer."""

    source: Path = Path("data")
    """Folder of the raw data, from which the gold scorer learns."""


@dataclass(frozen=True)
class FeedbackServeConfig(WithTask):
    """The site, until it is stopped: labelling, chat, dashboard, team."""

    serve: ServeConfig = field(default_factory=ServeConfig)


@dataclass(frozen=True)
class ProgramsConfig:
    """Compiled programs and memory, as in every stage."""

    compile_cache: Path | None = Path(".cache/compiled")
    """Folder for compiled programs, one below it per kind of machine: a second start compiles
    nothing. None keeps none; JAX_COMPILATION_CACHE_DIR, where it is set, is used instead."""
    tune_malloc: bool = True
    """Keep freed memory in the process (glibc only): about 1.25x faster steps on CPU."""


@dataclass(frozen=True)
class AnswersConfig:
    """Lengths and devices of the policy that answers, those of PPO."""

    run: ProgramsConfig = field(default_factory=ProgramsConfig)
    prompt_length: Main[Count | None] = None
    """Longer prompts keep their end. None: what the prompts need within the model's context."""
    response_length: Main[Count | None] = None
    """None: as the policy or the SFT model was trained, if they say so."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self):
        check_bounds(self, "ppo.")


@dataclass(frozen=True)
class ScoresConfig:
    """Lengths and devices of the reward models, which choose by their disagreement."""

    prompt_length: Main[Count | None] = None
    """Longer prompts keep their end. None: as the reward model was trained."""
    response_length: Main[Count | None] = None
    """Longer answers keep their beginning. None: as the reward model was trained."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self):
        check_bounds(self, "reward.")


@dataclass(frozen=True)
class FeedbackSampleConfig(WithSeed):
    """Fill the queue once with answers of the newest policy."""

    serve: ScrubConfig = field(default_factory=ScrubConfig)
    prompts: Path | None = None
    """What is asked; None: the run's prompts for comparisons."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    responses_per_prompt: Annotated[int, Bounds(2, 9)] = 4
    """K: 4 to 9 in InstructGPT."""
    tasks_per_round: Count = 300
    """Prompts that each new policy answers for the queue."""
    candidates: Annotated[Count, only(choice="disagreement")] = 3
    """Prompts answered per task that is kept, when the choice is by disagreement."""
    choice: Literal["disagreement", "random"] = "disagreement"
    """Which prompts people see: those on whose answers the reward models disagree most, or any."""
    overlap: Share = 0.15
    """Share of the tasks that two labelers get, to measure their agreement."""
    ensemble: Count = 2
    """Reward models; PPO's is the first. They differ in seed."""
    reward: ScoresConfig = field(default_factory=ScoresConfig)
    ppo: AnswersConfig = field(default_factory=AnswersConfig)

    def __post_init__(self):
        super().__post_init__()
        check_several("responses_per_prompt", self.sampling)
        check(
            self.choice == "random" or self.ensemble >= 2,
            "choice=disagreement needs ensemble >= 2, or choose --choice random",
        )


@dataclass(frozen=True)
class FeedbackAnswerConfig(FeedbackSampleConfig):
    """Answer the chat by the newest policy and keep the queue filled, until stopped."""

    queue: CountOrZero = 50
    """More tasks are written when fewer than this are open."""
    chat_answers: Annotated[int, Bounds(2, 9)] = 2
    """Answers to each message of the chat, side by side."""


@dataclass(frozen=True)
class FeedbackUpdateConfig(FeedbackSampleConfig, WithGold):
    """Wait for labels, train a round on all of them, publish its policy, and again."""

    labels_per_round: Main[Count] = 250
    """New labels that a round waits for."""
    rounds: Main[CountOrZero] = 0
    """Rounds until the updates stop; 0 goes on until they are stopped. With ``run`` the site stays
    up for people, and ends where all labelers are simulated."""
    epochs: Count = 2
    """Passes of each reward model over all labels so far: the first rounds have few."""
    warmup_steps: CountOrZero = 5
    """Of the reward models."""
    iterations: Count = 12
    """PPO iterations per round."""
    evaluation_prompts: Count = 128
    """Prompts on which each new policy is measured."""
    gold: bool = True
    """Measure the gold score of each round; needs ``source``."""
    corpora: tuple[str, ...] = ("gutenberg", "reviews", "polarity")
    """Text of the ptx term, as in the chain."""
    # They have the fields that those above have, and more: what samples reads no other.
    reward: RewardConfig = field(  # ty: ignore[incompatible-attribute-override]
        default_factory=RewardConfig
    )
    ppo: PPOConfig = field(  # ty: ignore[incompatible-attribute-override]
        default_factory=PPOConfig
    )


@dataclass(frozen=True)
class FeedbackSimulateConfig(WithSeed, WithGold):
    """Label as programs over HTTP, as many as each round waits for, until stopped."""

    serve: AddressConfig = field(default_factory=AddressConfig)
    simulated: Main[CountOrZero] = 0
    """Labelers that are programs. They have the gold score, noise and a bias of their own, and
    label while the updates wait."""
    labeler: LabelerConfig = field(default_factory=LabelerConfig)
    """Noise of the simulated ones."""


@dataclass(frozen=True)
class FeedbackConfig(
    FeedbackUpdateConfig, FeedbackAnswerConfig, FeedbackSimulateConfig, FeedbackServeConfig
):
    """All of it on this machine: site, answers, updates, and simulated labelers if there are any.

    Sample answers, have people rank them, retrain, publish, and again.
    """

    serve: ServeConfig = field(default_factory=ServeConfig)


@dataclass(frozen=True)
class FeedbackExportConfig(LoopConfig):
    """All labels in one of the formats, to a file or to standard output."""

    format: Main[
        Literal[
            "native", "demonstrations", "trl-preference", "trl-unpaired", "label-studio", "argilla"
        ]
    ] = "native"
    """Of the rows (docs/feedback.md)."""
    file: Main[Path | None] = None
    """Is written; None: standard output."""


@dataclass(frozen=True)
class FeedbackImportConfig(LoopConfig):
    """Rankings of a file as labels; each labeler that it names gets a revoked account."""

    serve: ScrubConfig = field(default_factory=ScrubConfig)
    file: Main[Path | None] = None
    """Is read; any of the formats, by its keys."""


@dataclass(frozen=True)
class FeedbackVerdictConfig(LoopConfig):
    """Which policy people prefer, of those of an evaluation whose answers they ranked."""

    serve: ScrubConfig = field(default_factory=ScrubConfig)
    policies: Main[tuple[str, ...]] = ()
    """Whose answers are compared, the others with the first. Empty: all."""
    tasks_per_round: Main[Count] = 300
    """How many prompts, from the first one on."""


@dataclass(frozen=True)
class FeedbackAskConfig(FeedbackVerdictConfig):
    """An evaluation's answers onto the page: a task per prompt, for people to rank."""

    overlap: Share = 0.15
    """Share of the tasks that two labelers get, to measure their agreement."""
