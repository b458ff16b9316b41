"""The stages of InstructGPT up to PPO, in their order, and DPO."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from rlhf_jax.config.bounds import (
    BatchRows,
    BlockTokens,
    Bounds,
    Count,
    CountOrZero,
    PositiveOrZero,
    ShareBelowOne,
    check_bounds,
)
from rlhf_jax.config.data import TextDataConfig, TokenizerConfig, column_names, is_file
from rlhf_jax.config.effect import Main, idle, never, only
from rlhf_jax.config.model import LoRAConfig, ModelConfig
from rlhf_jax.config.preferences import PairLossConfig
from rlhf_jax.config.privacy import PrivacyConfig
from rlhf_jax.config.sampling import SamplingConfig, check_several
from rlhf_jax.config.training import (
    UNTRAINED,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    check_microbatches,
)
from rlhf_jax.errors import check

SHAPE = only(init=None, but=("dropout", "attention", "scan_layers", "remat", "logit_rows", "dtype"))
"""Settings of ModelConfig that a model that is there already has."""


@dataclass(frozen=True)
class PretrainConfig:
    """Language modelling on raw text."""

    run: Annotated[RunConfig, never("keep_best")] = field(
        default_factory=lambda: RunConfig(dir=Path("runs/pretrain"))
    )
    init: Main[Path | None] = None
    """Go on from this model: its shape and tokenizer are taken, and of ``model`` only dropout,
    attention, scan_layers, remat, logit_rows and dtype. None starts from random parameters."""
    data: TextDataConfig = field(default_factory=TextDataConfig)
    tokenizer: Annotated[TokenizerConfig, only(init=None)] = field(default_factory=TokenizerConfig)
    model: Annotated[ModelConfig, SHAPE, never("unused_rows", "pooling", "lora_scale")] = field(
        default_factory=ModelConfig
    )
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=4e-3, warmup_share=0.05, weight_decay=0.05)
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: Main[BatchRows] = 16
    """Rows per step over all devices."""
    steps: Main[Count] = 1000
    """Updates, each on a batch."""
    eval_batches: Count = 32
    """Held-out batches per corpus at each evaluation."""

    def __post_init__(self):
        check_bounds(self)
        if self.init is None and self.data.block_size is not None:
            self.model.check_context(**{"data.block_size": self.data.block_size})
        check_microbatches("batch_size", self.batch_size, self.optim)


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/sft")))
    init: Main[Path] = Path("runs/pretrain")
    """Run folder, step that a run has kept (RUN@STEP, RUN@latest, RUN@best), Hugging Face folder or
    .gguf file: parameters, model shape and tokenizer."""
    data: Main[Path] = Path("demonstrations.jsonl")
    """Demonstrations: a file, folder or pattern (docs/data.md)."""
    columns: str = ""
    """Other names for columns, as READ_AS=COLUMN: prompt=question,completion=good."""
    heldout_fraction: ShareBelowOne = 0.05
    """Share of the demonstrations that is held out, chosen by a hash of the prompt; 0: none."""
    cache: Path = Path(".cache/datasets")
    """Where prepared data sets are kept (TFDS); any stage may share it."""
    prompt_length: Main[Count | None] = None
    """Longer prompts keep their end. None: what the data need within the model's context."""
    response_length: Main[Count | None] = None
    """With its end of text; demonstrations of longer ones are left out. None: as prompt_length."""
    block_size: BlockTokens | None = None
    """Demonstrations are packed into rows of this many tokens. None: prompt_length +
    response_length."""
    allow_cut: bool = False
    """Go on although more than 2 % of the rows are cut, or left out for their length."""
    target: Literal["response", "turns", "all"] = "response"
    """What is learnt: a conversation's last answer, all turns of the assistant, or all tokens."""
    pretrain_mix: Main[ShareBelowOne] = 0.1
    """Rows of pretraining text beside each SFT batch, as a share of all (InstructGPT: 10 %)."""
    pretrain_data: Annotated[TextDataConfig, idle(pretrain_mix=0)] = field(
        default_factory=TextDataConfig
    )
    dropout: ShareBelowOne = 0.0
    """Of this stage (InstructGPT: 0.2 on residuals)."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    """Of the demonstrations; then each has a row of its own, and pretrain_mix must be 0."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1.5e-3))
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: Main[BatchRows] = 16
    """Packed rows per step over all devices."""
    epochs: Main[Count] = 2
    """Passes over the demonstrations."""

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)
        prompt, response, block = self.prompt_length, self.response_length, self.block_size
        check(
            prompt is None or response is None or block is None or prompt + response <= block,
            f"prompt_length={self.prompt_length} + response_length={self.response_length} is over "
            f"block_size={self.block_size}",
        )
        check(
            not self.privacy.epsilon or (self.pretrain_mix == 0 and self.target != "turns"),
            f"privacy.epsilon={self.privacy.epsilon} needs pretrain_mix 0, and a target that is "
            "not turns: only demonstrations are accounted for, each as one example",
        )
        check_microbatches("batch_size", self.batch_size, self.optim)


@dataclass(frozen=True)
class LabelerConfig:
    """The simulated person: gold score plus Bradley-Terry noise."""

    agreement: Annotated[float, Bounds(0.5, 1, over=True, below=True)] = 0.726
    """Rate at which two such labelers order a pair alike; sets the noise (InstructGPT: 72.6 %)."""
    tie_width: PositiveOrZero = 0.05
    """Responses whose utility differs by less share a rank (in units of the noise)."""

    def __post_init__(self):
        check_bounds(self, "labeler.")


@dataclass(frozen=True)
class CompareConfig:
    """Collecting comparisons: K sampled responses of each prompt, ranked by a labeler."""

    run: Annotated[RunConfig, UNTRAINED, never("tensorboard", "wandb", "trackio")] = field(
        default_factory=lambda: RunConfig(dir=Path("runs/comparisons"))
    )
    init: Main[Path] = Path("runs/sft")
    """The model that answers."""
    task: Main[str] = "sentiment"
    """A module of rlhf_jax/tasks, or a .py file of your own: its gold scorer ranks."""
    source: Main[Path] = Path("data")
    """Folder of the raw data, from which the gold scorer learns."""
    prompts: Main[Path] = Path("prompts.jsonl")
    """What is asked: rows with a prompt."""
    columns: str = ""
    """Other names for columns, such as prompt=question."""
    labeler: LabelerConfig = field(default_factory=LabelerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_prompts: Main[Count] = 1200
    """Prompts whose comparisons are for training."""
    heldout_prompts: Count = 200
    """Prompts whose comparisons are kept to measure the reward model."""
    responses_per_prompt: Main[Annotated[int, Bounds(2)]] = 6
    """K of InstructGPT's K-wise loss (4 to 9 there)."""
    prompts_per_batch: BatchRows = 32
    """Prompts that are answered at once, each with all its answers."""
    prompt_length: Count | None = None
    """None: what the prompts need within the model's context."""
    response_length: Main[Count | None] = None
    """None: as ``init`` was trained, if it says so."""
    allow_cut: bool = False
    """Go on although more than 2 % of the prompts are cut."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)
        check_several("responses_per_prompt", self.sampling)


@dataclass(frozen=True)
class RewardConfig:
    """Reward model on ranked comparisons."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/reward")))
    init: Main[Path] = Path("runs/sft")
    """The reward model starts from this model."""
    data: Main[Path] = Path("comparisons.jsonl")
    """A file or folder, or the name of a set of human preferences under ``source``:
    pref_hh_harmless, pref_pandalm, rank_mqm_wmt23_zh_en, honesty_truthfulqa."""
    columns: Annotated[str, only(data=is_file)] = ""
    """Other names for columns of data and heldout: prompt=question,chosen=good,rejected=bad."""
    source: Annotated[Path, idle(data=is_file)] = Path("data")
    """Folder of the named sets."""
    folds: CountOrZero = 0
    """Cross-validation of a named set: parts into which its documents, dialogues, instructions or
    questions are dealt; 0: the set's own split."""
    fold: CountOrZero = 0
    """Which part is held out, from 0."""
    pairing: Literal["prompt", "shuffled"] = "prompt"
    """All pairs of a prompt as one batch element, or each pair for itself (an ablation: a batch is
    then ``batch_size`` pairs)."""
    head: Literal["normal", "zero"] = "normal"
    """The new head starts from N(0, 1/√(d+1)), as OpenAI's released reward models, or from 0: all
    answers score alike then, and few comparisons need not undo what a random head says of them."""
    pooling: Literal["last", "mean"] = "last"
    """A score is the head's output at the answer's last token, as in InstructGPT, or its mean over
    the answer's tokens: no token has to gather what the others say, which takes many comparisons to
    learn. transformers has no model with the mean, so that one is not exported."""
    length_control: bool = False
    """Train beside a term b · log length, b fitted on the labels alone, that is then left out: what
    length explains is not learnt."""
    heldout: Main[Path | None] = None
    """Held-out comparisons; None holds out ``heldout_fraction`` of ``data``."""
    heldout_fraction: Annotated[ShareBelowOne, only(heldout=None), only(data=is_file)] = 0.1
    """Share of the prompts that is held out, chosen by a hash; 0: none."""
    demonstrations: Annotated[Path | None, only(privacy__epsilon=0)] = None
    """These score 0 on average after normalisation (InstructGPT); None: the responses of data."""
    unit_std: bool = False
    """Divide by the within-prompt standard deviation, which gives kl_coef a fixed scale."""
    normalise_rows: Annotated[CountOrZero, only(privacy__epsilon=0)] = 0
    """Comparisons, and demonstrations, on which mean and spread are measured; 0: all."""
    cache: Path = Path(".cache/datasets")
    """Where prepared data sets are kept (TFDS); any stage may share it."""
    prompt_length: Main[Count | None] = None
    """Longer prompts keep their end. None: what the data need within the model's context."""
    response_length: Main[Count | None] = None
    """Longer answers keep their beginning. None: as prompt_length."""
    allow_cut: bool = False
    """Go on although more than 2 % of the rows are cut."""
    dropout: ShareBelowOne = 0.0
    """Share of units that are dropped in training; 0 as in InstructGPT."""
    packing: bool | None = None
    """Updates read the real tokens of prompts and answers alone, several answers in a row, in
    blocks of rows; False: a padded row for each. None: what is less work for this data, which the
    stage says; and padded where devices share the weights, which each block gathers anew."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    """Of the comparisons, an example being a prompt with its responses; the score is then not
    normalised, as its mean and spread would tell of them."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.1, warmup_share=0.05)
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: Main[BatchRows] = 4
    """Prompts per step, each with all its K-choose-2 pairs."""
    epochs: Main[Count] = 2
    """Passes over the comparisons."""

    def __post_init__(self):
        check_bounds(self)
        column_names(self.columns)
        check(
            self.folds == 0 == self.fold or (self.folds >= 2 and 0 <= self.fold < self.folds),
            f"fold={self.fold} of folds={self.folds}: expected one of 0 to folds - 1, of 2 or more",
        )
        check(
            not self.privacy.epsilon or not (self.unit_std or self.length_control),
            "privacy.epsilon excludes unit_std and length_control: both are measured on the "
            "comparisons without noise",
        )
        check(
            not self.privacy.epsilon or self.pairing == "prompt",
            "privacy.epsilon protects prompts: pairing must be prompt",
        )
        check(
            not self.packing or not (self.dropout or self.privacy.epsilon),
            f"packing=True excludes dropout={self.dropout} and privacy.epsilon="
            f"{self.privacy.epsilon}: expected 0 of both",
        )
        check_microbatches("batch_size", self.batch_size, self.optim)


@dataclass(frozen=True)
class DPOConfig(PairLossConfig):
    """Direct preference optimisation on ranked comparisons: no reward model, no sampling."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/dpo")))
    init: Main[Path] = Path("runs/sft")
    """Policy and reference start from this run."""
    data: Main[Path] = Path("comparisons.jsonl")
    """Comparisons: a file, folder or pattern."""
    columns: str = ""
    """Other names for columns of data and heldout: prompt=question,chosen=good,rejected=bad."""
    heldout: Main[Path | None] = None
    """Held-out comparisons; None holds out ``heldout_fraction`` of ``data``."""
    heldout_fraction: Annotated[ShareBelowOne, only(heldout=None)] = 0.1
    """Share of the prompts that is held out, chosen by a hash; 0: none."""
    cache: Path = Path(".cache/datasets")
    """Where prepared data sets are kept (TFDS); any stage may share it."""
    prompt_length: Main[Count | None] = None
    """Longer prompts keep their end. None: what the data need within the model's context."""
    response_length: Main[Count | None] = None
    """Longer answers keep their beginning. None: as prompt_length."""
    allow_cut: bool = False
    """Go on although more than 2 % of the rows are cut."""
    packing: bool | None = None
    """Updates read the real tokens of prompts and answers alone, several answers in a row, in
    blocks of rows; False: a padded row for each. None: what is less work for this data, which the
    stage says; and padded where devices share the weights, which each block gathers anew."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0, warmup_share=0.05)
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: Main[BatchRows] = 4
    """Prompts per step, each with all its K-choose-2 pairs."""
    epochs: Main[Count] = 1
    """Passes over the comparisons."""

    def __post_init__(self):
        super().__post_init__()
        column_names(self.columns)
        check_microbatches("batch_size", self.batch_size, self.optim)

    @property
    def prefix(self) -> str:
        """A stage's own fields have none."""
        return ""
