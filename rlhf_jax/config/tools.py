"""What is done with a finished model: evaluation, conversation, conversion."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rlhf_jax.config.bounds import (
    BatchRows,
    Count,
    CountOrZero,
    Seed,
    check_bounds,
)
from rlhf_jax.config.data import TextDataConfig, column_names, is_file
from rlhf_jax.config.effect import Main, idle, never, only
from rlhf_jax.config.rewards import CombineConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import UNTRAINED, ParallelConfig, RunConfig
from rlhf_jax.errors import check


@dataclass(frozen=True)
class EvaluateConfig:
    """Comparing policies on held-out prompts and text."""

    run: Annotated[RunConfig, UNTRAINED] = field(
        default_factory=lambda: RunConfig(dir=Path("runs/evaluate"))
    )
    suite: Main[Literal["task", "safety"]] = "task"
    """The task's own prompts and metrics, or toxicity, bias, truthfulness and harmlessness."""
    suite_rows: Annotated[CountOrZero, only(suite="safety")] = 0
    """Rows of each set in the safety suite; 0: all."""
    policies: Main[tuple[Path, ...]] = ()
    """Run folders, steps of them (RUN@STEP), Hugging Face folders or .gguf files to compare; the
    first is the baseline (SFT). Sizes may differ, tokenizers not."""
    text_only: Annotated[tuple[Path, ...], only(suite="task")] = ()
    """Models whose loss on held-out text is measured besides; any tokenizer."""
    reward: Main[tuple[Path, ...]] = (Path("runs/reward"),)
    """Reward model with the policies' tokenizer, or several: picks the best of n and a second win
    rate, or judges harmlessness (suite safety, which takes one). Empty: there is none."""
    combine: Annotated[CombineConfig, only(suite="task"), idle(reward=())] = field(
        default_factory=CombineConfig
    )
    second_reward: Annotated[Path | None, only(suite="task")] = None
    """Another reward model (of harmlessness, say) that scores the same answers beside it."""
    task: Main[Annotated[str, only(suite="task")]] = "sentiment"
    """A module of rlhf_jax/tasks, or a .py file of your own: gold scorer, judges, metrics."""
    source: Main[Path] = Path("data")
    """Folder of the raw data, from which the gold scorer and the judges learn."""
    prompts: Main[Annotated[Path, only(suite="task")]] = Path("prompts.jsonl")
    """Rows with a prompt; every policy answers the first ``num_prompts``."""
    columns: Annotated[str, only(suite="task")] = ""
    """Other names for columns of the prompts, such as prompt=question."""
    text: Annotated[TextDataConfig, only(suite="task")] = field(default_factory=TextDataConfig)
    num_prompts: Main[Annotated[Count, only(suite="task")]] = 256
    """Prompts that each policy answers."""
    best_of: Main[
        Annotated[
            tuple[Count, ...], only(suite="task"), idle(sampling__temperature=0), idle(reward=())
        ]
    ] = (4, 16)
    """Also measure the best of so many answers, as the reward model scores them."""
    best_of_curve: Annotated[
        tuple[Count, ...], only(suite="task"), idle(sampling__temperature=0), idle(reward=())
    ] = ()
    """Also gold and score of the best of so many answers by each reward model for itself, over all
    choices of so many among the largest of these numbers: 1, 2, 4 to 512, say. Unbiased."""
    pass_k: Main[Annotated[tuple[Count, ...], only(suite="task")]] = ()
    """Also measure pass@k: how often one of k answers is right, by the gold scorer of a task whose
    scores are 0 and 1. Unbiased (Chen et al. 2021)."""
    pass_samples: Annotated[Count | None, idle(pass_k=())] = None
    """Answers of each policy to each prompt that pass@k is told from; more make it surer. None: as
    many as the largest of pass_k."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompt_length: Count | None = None
    """In tokens; a longer prompt loses its beginning. None: what the prompts need within the
    models' context (suite safety: all that the answers leave of it)."""
    response_length: Count | None = None
    """None: as the first policy that says so was trained."""
    batch_size: BatchRows = 256
    """Responses sampled at a time."""
    text_batches: Annotated[Count, only(suite="task"), idle(text__path=())] = 32
    """Held-out batches of 16 rows per corpus."""
    cache: Path | None = None
    """Folder of answers that evaluations share, so that none is sampled twice; None: the run's."""
    alpaca_eval: Annotated[bool, only(suite="task")] = False
    """Also write each policy's answers as AlpacaEval's outputs, alpaca_eval_NAME.json."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)
        check(
            len(self.best_of) > 0,
            "best_of is empty: expected numbers of answers, 1 for none but the first",
        )
        check(
            isinstance(self.reward, tuple),
            f"reward={self.reward}: expected one or several in a tuple, (Path('runs/reward'),)",
        )
        check(
            len(self.reward) > 0 or (self.second_reward is None and self.suite == "task"),
            f"reward is empty, but there is a second_reward ({self.second_reward}) or suite="
            f"{self.suite} needs one: give --reward",
        )
        check(
            self.suite == "task" or len(self.reward) == 1,
            f"reward names {len(self.reward)}: suite={self.suite} takes one",
        )
        self.combine.check_number(len(self.reward))
        most, samples = max(self.pass_k, default=0), self.samples_for_pass
        check(
            samples >= most,
            f"pass_k={most} cannot be told from pass_samples={samples} answers to a prompt: "
            "expected at least as many",
        )
        check(
            most < 2 or self.sampling.temperature > 0,
            f"pass_k={most}, but sampling.temperature=0: all answers to a prompt would be the same",
        )
        check(
            samples <= self.batch_size,
            f"batch_size={self.batch_size} holds no {samples} answers to a prompt (pass_k, "
            "pass_samples)",
        )
        check(
            self.suite == "safety" or not self.reward or self.samples_for_best <= self.batch_size,
            f"batch_size={self.batch_size} holds no {self.samples_for_best} answers to a prompt "
            "(best_of, best_of_curve)",
        )

    @property
    def samples_for_best(self) -> int:
        """Answers of the first policy to each prompt among which reward models pick."""
        return max((*self.best_of, *self.best_of_curve), default=1)

    @property
    def samples_for_pass(self) -> int:
        """Answers to each prompt that pass@k is told from; 0 where nobody asks for it."""
        most = max(self.pass_k, default=0)
        return self.pass_samples or most if most else 0


def are_files(data: tuple[str, ...]) -> bool:
    """Whether every name is that of a file, and none of a public set."""
    return all(is_file(Path(path)) for path in data)


@dataclass(frozen=True)
class AuditConfig:
    """A reward model against human preferences."""

    reward: tuple[Path, ...] = (Path("runs/reward"),)
    """Run folder of a reward model, or a Hugging Face checkpoint with a scalar head. Or the runs of
    a cross-validation: each is scored on the fold that it has not seen, and all are one result."""
    data: tuple[str, ...] = ("pref_llmbar",)
    """Names of sets of human preferences under ``source``, or files of comparisons."""
    columns: Annotated[str, only(data=are_files)] = ""
    """Other names for columns: prompt=question,chosen=good,rejected=bad."""
    source: Annotated[Path, idle(data=are_files)] = Path("data")
    """Folder of the named sets."""
    prompt_length: Count | None = None
    """In tokens; what is cut is counted. With the response it must fit the model's context. None
    is what the reward model was trained with, which only a run folder tells."""
    response_length: Count | None = None
    """Longer answers keep their beginning. None: as the reward model was trained."""
    batch_size: BatchRows = 32
    """Prompts per batch."""
    out: Path | None = None
    """JSON file for the results."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)
        check(len(self.reward) > 0, "reward is empty: give --reward FOLDER")
        check(len(self.data) > 0, "data is empty: give --data NAME or FILE")


@dataclass(frozen=True)
class PreviewConfig:
    """What would be learnt from a file."""

    init: Path = Path("runs/pretrain")
    """Run folder, Hugging Face checkpoint or .gguf file, whose tokenizer and context are taken."""
    data: Path = Path("demonstrations.jsonl")
    """File, folder or pattern; or a named set of preferences, as the reward model takes it."""
    columns: Annotated[str, only(data=is_file)] = ""
    """Other names for columns, as the stages have it: prompt=question,chosen=good,rejected=bad."""
    source: Path = Path("data")
    """Folder of the named sets."""
    as_: Annotated[
        Literal["demonstrations", "comparisons", "prompts", "text"] | None, tyro.conf.arg(name="as")
    ] = None
    """What a stage would read the rows as: SFT demonstrations, reward model and DPO comparisons,
    PPO prompts, pretraining text. None: what the first row is."""
    target: Literal["response", "turns"] = "response"
    """Of demonstrations, as SFT has it: a conversation's last answer, or all of the assistant's."""
    rows: CountOrZero = 8
    """How many are shown, from the first on (of text: documents of each file); 0: all. The counts
    are of all rows."""
    prompt_length: Count | None = None
    """As the stages have it. None: what the data need within the model's context."""
    response_length: Count | None = None
    """As the stages have it."""
    allow_cut: bool = False
    """As the stages have it: does not say that they would refuse these rows."""
    json: bool = False
    """One object a row, and the counts last, for programs."""

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)


@dataclass(frozen=True)
class TaskConfig:
    """The files of a task alone, for stages that are started one by one."""

    name: tyro.conf.Positional[str] = "sentiment"
    """A module of rlhf_jax/tasks, or a .py file of your own."""
    source: Path = Path("data")
    """Folder of the raw data."""
    out: Path = Path("runs/task/data")
    """Folder to write demonstrations, prompts and text to."""


@dataclass(frozen=True)
class SampleConfig:
    """Talking to a checkpoint in the terminal."""

    init: Path = Path("runs/quickstart/ppo")
    """Run folder of any language model, step of one (RUN@STEP), Hugging Face checkpoint or .gguf
    file."""
    chat: bool = True
    """Hold a conversation by the tokenizer's chat template, if it has one."""
    system: Annotated[str, only(chat=True)] = ""
    """With a chat template: the system message."""
    sampling: Annotated[SamplingConfig, never("at_once")] = field(default_factory=SamplingConfig)
    response_length: Count = 32
    """Tokens of an answer at most."""
    seed: Seed = 0
    """Of the sampled tokens."""
    compile_cache: Path | None = RunConfig.compile_cache
    """As run.compile_cache of a stage."""

    def __post_init__(self):
        check_bounds(self)


@dataclass(frozen=True)
class HarnessConfig:
    """Tasks of lm-evaluation-harness on a checkpoint."""

    init: Path = Path("runs/quickstart/ppo")
    """Run folder of any language model, step of one (RUN@STEP), Hugging Face checkpoint or .gguf
    file."""
    tasks: tuple[str, ...] = ()
    """Names that lm-evaluation-harness knows."""
    include_path: Path | None = None
    """Folder with tasks of your own (YAML)."""
    num_fewshot: CountOrZero | None = None
    """Examples before each question; None: as the task says."""
    limit: CountOrZero = 0
    """Questions per task; 0: all."""
    batch_size: BatchRows = 16
    """Requests that are scored at once."""
    max_gen_toks: Count = 64
    """Length of generated answers where the task does not say."""
    seed: Seed = 0
    """Of few-shot examples and sampled answers."""
    out: Path | None = None
    """JSON file for the results."""

    def __post_init__(self):
        check_bounds(self)


@dataclass(frozen=True)
class ReportConfig:
    """A report of run folders."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Whole chains (runs/quickstart) or single stages (runs/quickstart/ppo)."""
    out: Path = Path("report.html")
    """The page; its CSVs go to a folder beside it."""
