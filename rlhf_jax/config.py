"""Every default value of the project: one frozen dataclass per stage, checked when it is made.

A preset in ``configs/*.py`` returns one of these from ``get_config()``; ``rlhf_jax.cli`` parses the
command line over it. Fields are documented by the string below them, which is also their help text.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro

from rlhf_jax.errors import InputError


def check(condition: bool, message: str) -> None:
    """Raise ``InputError(message)`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def check_microbatches(name: str, rows: int, optim: "OptimConfig") -> None:
    """Raise unless ``rows`` split evenly into the optimizer's micro-batches."""
    check(
        rows % optim.accumulate == 0,
        f"{name}={rows} is not a multiple of optim.accumulate={optim.accumulate}",
    )


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary positions (Su et al. 2021), with Llama 3's stretching to longer contexts."""

    theta: float = 10_000.0
    fraction: float = 1.0
    """Share of a head's dimensions that is rotated (GPT-NeoX: 0.25)."""
    factor: float = 1.0
    """Slow frequencies are divided by this (Llama 3.1: 8); 1 is plain rotary."""
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """A pre-LN decoder. The defaults are GPT-2 (Radford et al. 2019): learned positions, LayerNorm,
    biases everywhere, tied embeddings; the other values make it GPT-NeoX, Llama or Qwen."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    n_kv_heads: int = 0
    """Heads of keys and values, each shared by n_heads / n_kv_heads queries; 0: n_heads."""
    head_dim: int = 0
    """0: d_model / n_heads."""
    d_ff: int = 0
    """Width inside the MLP; 0: 4 d_model."""
    context: int = 256
    """Longest sequence in tokens (rows of the position table)."""
    positions: Literal["learned", "rotary"] = "learned"
    rotary: RotaryConfig = field(default_factory=RotaryConfig)
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    activation: Literal["gelu_tanh", "gelu", "swiglu"] = "gelu_tanh"
    bias: Literal["all", "qkv", "none"] = "all"
    """Of dense layers: everywhere (GPT-2, GPT-NeoX), at the queries, keys and values (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm of each head's query and key before they are rotated (Qwen3)."""
    parallel_residual: bool = False
    """x + attention(ln_1(x)) + mlp(ln_2(x)) (GPT-NeoX), not one after the other."""
    tied: bool = True
    """The unembedding is the transposed embedding; otherwise a matrix of its own."""
    lora_scale: float = 1.0
    """α / r of the low-rank adapters that parameters may hold; stages set it (see LoRAConfig)."""
    dropout: float = 0.0
    """On the embedding sum, attention weights and both residual outputs; only while training."""
    scan_layers: bool = False
    """Compile one layer and loop over stacked parameters: small programs for deep models."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, more time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products. Parameters, normalisation, softmax and losses stay float32."""

    def __post_init__(self):
        check(
            self.head_dim > 0 or self.d_model % self.n_heads == 0,
            f"model.d_model={self.d_model} is not a multiple of model.n_heads={self.n_heads}",
        )
        check(
            self.n_heads % self.kv_heads == 0,
            f"model.n_heads={self.n_heads} is not a multiple of model.n_kv_heads={self.kv_heads}",
        )
        check(0.0 <= self.dropout < 1.0, f"model.dropout={self.dropout} is not in [0, 1)")
        check(
            self.n_layers > 0 and self.context > 0, "model.n_layers and model.context must be > 0"
        )

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def width(self) -> int:
        """Dimensions of one head."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def hidden(self) -> int:
        """Dimensions inside the MLP."""
        return self.d_ff or 4 * self.d_model


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): W + (α / r) A B; nothing else of the trunk is trained."""

    rank: int = 0
    """r; 0 trains all weights."""
    alpha: float = 16.0
    targets: str = ".*"
    """Regular expression over a block's dense layers: attn/c_attn (queries, keys and values),
    attn/c_proj, mlp/c_fc, mlp/c_gate, mlp/c_proj."""

    def __post_init__(self):
        check(self.rank >= 0, f"lora.rank={self.rank} must be >= 0")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW or Muon with global-norm clipping, a schedule, optionally an average of the weights."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon (Jordan et al. 2024) updates the trunk's kernels along orthogonalised momentum and the
    rest by AdamW."""
    lr: float = 1e-3
    adam_lr: float = 0.0
    """With muon: learning rate of what is no kernel (embeddings, biases, normalisation, heads)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    """Steps from ``warmup_init`` x lr up to lr. In PPO a step is an iteration, not a minibatch."""
    warmup_init: float = 0.0
    """First learning rate of the warm-up, as a share of lr (InstructGPT's PPO: 0.1)."""
    final_lr: float = 0.1
    """Last learning rate, as a share of lr (InstructGPT: cosine to 10 %)."""
    weight_decay: float = 0.05
    """Decoupled; matrices only: not biases, normalisation, nor embeddings."""
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Global norm of the gradient after accumulation; 0 turns clipping off."""
    accumulate: int = 1
    """Micro-batches per step (in PPO per minibatch, those of the policy's optimizer count for
    both): gradients are summed, then divided once by the global count."""
    ema_decay: float = 0.0
    """e <- decay e + (1 - decay) p after each step; 0 keeps no average (InstructGPT: 0.992)."""

    def __post_init__(self):
        check(self.lr > 0, f"optim.lr={self.lr} must be > 0")
        check(
            self.optimizer == "adamw" or self.adam_lr > 0,
            f"optim.optimizer=muon needs optim.adam_lr > 0, found {self.adam_lr}",
        )
        check(0 <= self.ema_decay < 1, f"optim.ema_decay={self.ema_decay} is not in [0, 1)")
        check(self.accumulate >= 1, f"optim.accumulate={self.accumulate} must be >= 1")


@dataclass(frozen=True)
class ParallelConfig:
    """How a step is laid over devices."""

    mode: Literal["mesh", "pmap"] = "mesh"
    devices: int = 0
    """How many of the visible devices to use; 0 uses all."""


@dataclass(frozen=True)
class RunConfig:
    """Where a stage writes, and how often."""

    dir: Path = Path("runs/run")
    """The stage's own folder. The same command resumes what is unfinished in it."""
    seed: int = 0
    data_seed: int = 0
    """Order of the data, apart from ``seed`` so that ablations see the same batches."""
    save_every: int = 200
    """Steps between checkpoints (the last step is always saved); transformers: save_steps."""
    keep_latest: int = 2
    """How many of the newest checkpoints to keep; transformers: save_total_limit."""
    keep_best: int = 1
    """How many more to keep, the best by the stage's held-out figure (if one was measured)."""
    log_every: int = 20
    eval_every: int = 200
    stop_after: int = 0
    """Stop, saved and resumable, after this many steps of this process; 0 never stops."""
    tensorboard: bool = True
    wandb: str = ""
    """Project name; empty turns Weights & Biases off."""
    compile_cache: Path | None = None
    """Folder for compiled programs, so that a second start compiles nothing."""
    tune_malloc: bool = True
    """Keep freed memory in the process (glibc only): about 1.25x faster steps on CPU."""


@dataclass(frozen=True)
class TokenizerConfig:
    path: Path | None = None
    """A saved tokenizer or a GPT-2 vocabulary folder; None trains one on the text."""
    vocab_size: int = 4096
    """Of a tokenizer trained here, with padding and end-of-text included."""


@dataclass(frozen=True)
class TextDataConfig:
    path: tuple[Path, ...] = ()
    """.txt, .jsonl or folders of them, one corpus each."""
    weights: tuple[float, ...] = ()
    """Share of each corpus in the mix; empty mixes by size."""
    heldout: tuple[Path, ...] = ()
    """One held-out file per corpus; empty holds out ``heldout_fraction`` of the documents."""
    heldout_fraction: float = 0.02
    block_size: int = 64
    """Tokens per packed row."""
    cache: Path = Path(".cache/datasets")
    """Where prepared data sets live."""

    def __post_init__(self):
        for name in ("weights", "heldout"):
            given = getattr(self, name)
            check(
                not given or not self.path or len(given) == len(self.path),
                f"data.{name} has {len(given)} entries for {len(self.path)} of data.path",
            )


@dataclass(frozen=True)
class PretrainConfig:
    """Language modelling on raw text."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/pretrain")))
    init: Path | None = None
    """Go on from this model: its shape and tokenizer are taken, and of ``model`` only dropout,
    scan_layers, remat and dtype. None starts from random parameters."""
    data: TextDataConfig = field(default_factory=TextDataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=4e-3, warmup_steps=50, weight_decay=0.05)
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: int = 16
    """Rows per step over all devices."""
    steps: int = 1000
    eval_batches: int = 32
    """Held-out batches per corpus at each evaluation."""

    def __post_init__(self):
        if self.init is None:
            self.check_context(self.model)
        check_microbatches("batch_size", self.batch_size, self.optim)

    def check_context(self, model: ModelConfig) -> None:
        """Raise unless a row of text fits into the model."""
        check(
            self.data.block_size <= model.context,
            f"data.block_size={self.data.block_size} is over model.context={model.context}",
        )


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/sft")))
    init: Path = Path("runs/pretrain")
    """Run folder of pretraining: parameters, model shape and tokenizer."""
    data: Path = Path("demonstrations.jsonl")
    heldout_fraction: float = 0.05
    cache: Path = Path(".cache/datasets")
    prompt_length: int = 16
    """Longer prompts keep their end."""
    response_length: int = 32
    block_size: int = 64
    """Demonstrations are packed into rows of this many tokens."""
    target: Literal["response", "all"] = "response"
    """Tokens that carry the loss."""
    pretrain_mix: float = 0.1
    """Rows of pretraining text beside each SFT batch, as a share of all (InstructGPT: 10 %)."""
    pretrain_data: TextDataConfig = field(default_factory=TextDataConfig)
    dropout: float = 0.0
    """Of this stage (InstructGPT: 0.2 on residuals)."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1.5e-3))
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: int = 16
    epochs: int = 2

    def __post_init__(self):
        check(
            self.prompt_length + self.response_length <= self.block_size,
            f"prompt_length={self.prompt_length} + response_length={self.response_length} is over "
            f"block_size={self.block_size}",
        )
        check(0 <= self.pretrain_mix < 1, f"pretrain_mix={self.pretrain_mix} is not in [0, 1)")
        check_microbatches("batch_size", self.batch_size, self.optim)


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float = 0.7
    """Divides the logits in sampling and in every log-probability of PPO; 0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this mass; 1 keeps all."""

    def __post_init__(self):
        check(self.temperature >= 0, f"temperature={self.temperature} must be >= 0")
        check(0 < self.top_p <= 1, f"top_p={self.top_p} is not in (0, 1]")


@dataclass(frozen=True)
class LabelerConfig:
    """The simulated person: gold score plus Bradley-Terry noise."""

    agreement: float = 0.726
    """Rate at which two such labelers order a pair alike; sets the noise (InstructGPT: 72.6 %)."""
    tie_width: float = 0.05
    """Responses whose utility differs by less share a rank (in units of the noise)."""


@dataclass(frozen=True)
class CompareConfig:
    """Collecting comparisons: K sampled responses of each prompt, ranked by a labeler."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/comparisons")))
    init: Path = Path("runs/sft")
    source: Path = Path("data")
    """Folder of the raw data, from which the gold scorer learns."""
    prompts: Path = Path("prompts.jsonl")
    labeler: LabelerConfig = field(default_factory=LabelerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_prompts: int = 1200
    heldout_prompts: int = 200
    responses_per_prompt: int = 6
    """K of InstructGPT's K-wise loss (4 to 9 there)."""
    prompts_per_batch: int = 32
    prompt_length: int = 16
    response_length: int = 32
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self):
        check(
            self.responses_per_prompt >= 2,
            f"responses_per_prompt={self.responses_per_prompt}: at least 2 can be compared",
        )


@dataclass(frozen=True)
class RewardConfig:
    """Reward model on ranked comparisons."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/reward")))
    init: Path = Path("runs/sft")
    data: Path = Path("comparisons.jsonl")
    heldout: Path | None = None
    """Held-out comparisons; None holds out ``heldout_fraction`` of ``data``."""
    heldout_fraction: float = 0.1
    demonstrations: Path | None = None
    """These score 0 on average after normalisation (InstructGPT); None: the responses of data."""
    unit_std: bool = False
    """Divide by the within-prompt standard deviation, which gives kl_coef a fixed scale."""
    normalise_rows: int = 0
    """Comparisons, and demonstrations, on which mean and spread are measured; 0: all."""
    cache: Path = Path(".cache/datasets")
    prompt_length: int = 16
    response_length: int = 32
    dropout: float = 0.0
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.1, warmup_steps=20)
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: int = 4
    """Prompts per step, each with all its K-choose-2 pairs."""
    epochs: int = 2

    def __post_init__(self):
        check_microbatches("batch_size", self.batch_size, self.optim)


@dataclass(frozen=True)
class KLConfig:
    coef: float = 0.02
    """β: weight of the per-token penalty (InstructGPT: 0.02 for unscaled rewards)."""
    target: float = 0.0
    """Nats per episode that the adaptive controller holds; 0 keeps the coefficient fixed."""
    horizon: float = 10_000.0
    """Episodes over which the adaptive controller acts (Ziegler et al. 2019)."""


@dataclass(frozen=True)
class PPOConfig:
    """PPO on the reward model's score with a per-token KL penalty, and PPO-ptx."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/ppo"), save_every=5))
    init: Path = Path("runs/sft")
    """Policy and reference start from this run."""
    reward: Path = Path("runs/reward")
    value_init: Path | None = None
    """The value network starts from this reward or value model; None: from ``reward``."""
    prompts: Path = Path("prompts.jsonl")
    cache: Path = Path(".cache/datasets")
    prompt_length: int = 16
    response_length: int = 32
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    value_trunk: Literal["separate", "shared"] = "separate"
    """A value network of its own from the reward model (InstructGPT), or a head on the policy."""
    iterations: int = 24
    batch_size: int = 128
    """Episodes per iteration over all devices."""
    ppo_epochs: int = 1
    num_minibatches: int = 4
    kl: KLConfig = field(default_factory=KLConfig)
    gamma: float = 1.0
    lam: float = 0.95
    clip_eps: float = 0.2
    value_clip_eps: float = 0.2
    vf_coef: float = 1.0
    """Weight of the value loss; with a separate trunk it only scales that trunk's gradient."""
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = None
    """Score of an episode that does not end (Ziegler et al. 2019: -1); None leaves the score."""
    recompute_logprobs: bool = False
    """Take the old log-probs from a forward pass instead of from the sampler."""
    ptx_coef: float = 0.0
    """γ of PPO-ptx: weight of the pretraining gradient in each minibatch; 0 is plain PPO."""
    ptx_batch_size: int = 32
    """Rows of pretraining text per minibatch."""
    ptx_data: TextDataConfig = field(default_factory=TextDataConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """On the policy and on the value network, which then share their frozen weights with the
    reference and the reward model where these are the same."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=3e-4, schedule="linear", warmup_steps=3, final_lr=0.2, weight_decay=0.0, eps=1e-5
        )
    )
    value_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-3, schedule="linear", warmup_steps=3, final_lr=0.2, weight_decay=0.0, eps=1e-5
        )
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    min_reward_accuracy: float = 0.6
    """PPO does not start on a reward model whose held-out pair accuracy is below this."""
    force: bool = False
    """Start all the same."""

    def __post_init__(self):
        check(
            self.batch_size % self.num_minibatches == 0,
            f"batch_size={self.batch_size} is not a multiple of "
            f"num_minibatches={self.num_minibatches}",
        )
        minibatch_size = self.batch_size // self.num_minibatches
        check_microbatches("batch_size / num_minibatches", minibatch_size, self.optim)
        check_microbatches("ptx_batch_size", self.ptx_batch_size, self.optim)
        check(self.sampling.temperature > 0, "PPO needs sampling.temperature > 0")
        check(
            self.sampling.top_k == 0 and self.sampling.top_p == 1.0,
            "PPO samples from the whole distribution: sampling.top_k must be 0 and top_p 1, "
            "or the log-probs would be of another density",
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """Comparing policies on held-out prompts and text."""

    run: RunConfig = field(default_factory=lambda: RunConfig(dir=Path("runs/evaluate")))
    policies: tuple[Path, ...] = ()
    """Run folders to compare; the first is the baseline (SFT)."""
    text_only: tuple[Path, ...] = ()
    """Run folders whose loss on held-out text is measured besides."""
    reward: Path = Path("runs/reward")
    source: Path = Path("data")
    """Folder of the raw data, from which the gold scorer and the judges learn."""
    prompts: Path = Path("prompts.jsonl")
    text: TextDataConfig = field(default_factory=TextDataConfig)
    num_prompts: int = 256
    best_of: tuple[int, ...] = (4, 16)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompt_length: int = 16
    response_length: int = 32
    batch_size: int = 256
    """Responses sampled at a time."""
    text_batches: int = 32
    """Held-out batches of 16 rows per corpus."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class SampleConfig:
    """Talking to a checkpoint in the terminal."""

    init: Path = Path("runs/quickstart/ppo")
    """Run folder of any finished language-model stage, Hugging Face checkpoint or .gguf file."""
    chat: bool = True
    """Hold a conversation by the tokenizer's chat template, if it has one."""
    system: str = ""
    """With a chat template: the system message."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    response_length: int = 32
    seed: int = 0


@dataclass(frozen=True)
class ConvertConfig:
    """Weights from and to Hugging Face."""

    direction: tyro.conf.Positional[Literal["from-hf", "to-hf"]] = "from-hf"
    source: tyro.conf.Positional[Path] = Path("checkpoint")
    """from-hf: a folder with config.json and safetensors, or a .gguf file; to-hf: a run folder."""
    out: Path = Path("runs/imported")
    """from-hf: the run folder to make; to-hf: the folder to write."""
    part: Literal["model", "value"] = "model"
    """to-hf: what the stage made, or the value network of a PPO run."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """to-hf: of the weights written."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """from-hf: of matrix products; the weights stay float32."""
    scan_layers: bool = False
    """from-hf: as model.scan_layers."""
    remat: bool = False
    """from-hf: as model.remat."""

    @property
    def run(self) -> RunConfig:
        return RunConfig(dir=self.out)


@dataclass(frozen=True)
class HarnessConfig:
    """Tasks of lm-evaluation-harness on a checkpoint."""

    init: Path = Path("runs/quickstart/ppo")
    """Run folder of any finished language-model stage, Hugging Face checkpoint or .gguf file."""
    tasks: tuple[str, ...] = ()
    include_path: Path | None = None
    """Folder with tasks of your own (YAML)."""
    num_fewshot: int | None = None
    """Examples before each question; None: as the task says."""
    limit: int = 0
    """Questions per task; 0: all."""
    batch_size: int = 16
    max_gen_toks: int = 64
    """Length of generated answers where the task does not say."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the results."""

    def __post_init__(self):
        check(self.batch_size >= 1, f"batch_size={self.batch_size} must be >= 1")


@dataclass(frozen=True)
class InstructGPTConfig:
    """All stages in a row, in sub-folders of one run folder."""

    dir: Path = Path("runs/instructgpt")
    seed: int = 0
    source: Path = Path("data")
    """Folder of the raw data."""
    corpora: tuple[str, ...] = ("gutenberg", "reviews", "polarity")
    """Text of pretraining, ptx and the alignment tax, in the order of the mixing weights."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    reward_init: Path | None = None
    """Run folder the reward model (and so the value network) starts from; None: this run's SFT."""
    ablations: bool = False
    """Also train SFT without the pretraining mix and PPO without ptx: the alignment tax."""

    def resolve(self) -> "InstructGPTConfig":
        """Every stage with its folder, seed and inputs filled in from ``dir`` and ``seed``."""
        data = self.dir / "data"

        def stage(config, name, **inputs):
            run = replace(config.run, dir=self.dir / name, seed=self.seed)
            return replace(config, run=run, **inputs)

        def text(config):
            path = tuple(data / f"corpus_{name}.txt" for name in self.corpora)
            heldout = tuple(data / f"heldout_{name}.txt" for name in self.corpora)
            return replace(config, path=path, heldout=heldout)

        return replace(
            self,
            pretrain=stage(self.pretrain, "pretrain", data=text(self.pretrain.data)),
            sft=stage(
                self.sft,
                "sft",
                init=self.dir / "pretrain",
                data=data / "demonstrations.jsonl",
                pretrain_data=text(self.sft.pretrain_data),
            ),
            compare=stage(
                self.compare,
                "comparisons",
                init=self.dir / "sft",
                source=self.source,
                prompts=data / "prompts_comparisons.jsonl",
            ),
            reward=stage(
                self.reward,
                "reward",
                init=self.reward_init or self.dir / "sft",
                data=self.dir / "comparisons" / "train.jsonl",
                heldout=self.dir / "comparisons" / "heldout.jsonl",
                demonstrations=data / "demonstrations.jsonl",
            ),
            ppo=stage(
                self.ppo,
                "ppo",
                init=self.dir / "sft",
                reward=self.dir / "reward",
                prompts=data / "prompts_ppo.jsonl",
                ptx_data=text(self.ppo.ptx_data),
            ),
            evaluate=stage(
                self.evaluate,
                "evaluate",
                policies=(self.dir / "sft", self.dir / "ppo"),
                text_only=(self.dir / "pretrain",),
                reward=self.dir / "reward",
                source=self.source,
                prompts=data / "prompts_evaluation.jsonl",
                text=text(self.evaluate.text),
            ),
        )
