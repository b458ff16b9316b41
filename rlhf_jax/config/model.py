"""The shape of a model."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from rlhf_jax.config.bounds import (
    Bounds,
    ContextTokens,
    Count,
    CountOrZero,
    Finite,
    Positive,
    PositiveOrZero,
    ShareBelowOne,
    Width,
    WidthOrZero,
    check_bounds,
)
from rlhf_jax.config.effect import Main, idle
from rlhf_jax.errors import InputError, check


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary positions (Su et al. 2021), and how they are stretched to longer contexts."""

    theta: Positive = 10_000.0
    """θ: pair i of a head of width d turns by θ^(−2 i / d) per position (Su et al. 2021, §3.2.2:
    10,000)."""
    thetas: tuple[PositiveOrZero, ...] = ()
    """θ of each layer in turn, and then again from the first: 0 for a layer that rotates nothing
    (SmolLM3), another one for layers that see a window (Gemma 3); empty: theta everywhere."""
    fraction: Annotated[float, Bounds(0, 1, over=True)] = 1.0
    """Share of a head's dimensions that is rotated (GPT-NeoX: 0.25)."""
    factor: Positive = 1.0
    """Frequencies are divided by this (Llama 3.1: 8), in layers whose θ is theta; 1 is plain
    rotary."""
    stretch: Annotated[Literal["slow", "all"], idle(factor=1.0)] = "slow"
    """Which frequencies are divided: the slow ones (Llama 3.1), or all, which interpolates
    positions (Chen et al. 2023; Gemma 3)."""
    low_frequency_factor: Annotated[Positive, idle(factor=1.0), idle(stretch="all")] = 1.0
    """Wavelengths over original_context / this are stretched by ``factor`` (Llama 3.1)."""
    high_frequency_factor: Annotated[Positive, idle(factor=1.0), idle(stretch="all")] = 4.0
    """Wavelengths under original_context / this stay as they are (Llama 3.1)."""
    original_context: Annotated[Count, idle(factor=1.0), idle(stretch="all")] = 8192
    """Positions that the model was pretrained on before its context was stretched."""

    def __post_init__(self):
        check_bounds(self, "model.rotary.")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        check(
            self.factor == 1.0 or low < high,
            f"model.rotary.low_frequency_factor={low} is not below high_frequency_factor={high}",
        )

    def rotated(self, head_dim: int) -> int:
        """Leading dimensions of a head that are rotated, in pairs."""
        return int(head_dim * self.fraction)


class LayerKind(NamedTuple):
    """What layers of one model may differ in."""

    window: int
    """Tokens that a query sees, itself the last of them; 0: all."""
    theta: float
    """θ of its rotary positions; 0: it rotates nothing."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder.

    The defaults are GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each part of a
    block, biases everywhere, tied embeddings; the other values make it one of the other families.
    """

    n_layers: Main[Annotated[int, Bounds(1, 10_000)]] = 4
    """Blocks of attention and MLP."""
    d_model: Main[Width] = 128
    """Width between the blocks."""
    n_heads: Main[Width] = 4
    """Heads of attention per block."""
    n_kv_heads: WidthOrZero = 0
    """Heads of keys and values, each shared by n_heads / n_kv_heads queries; 0: n_heads."""
    head_dim: WidthOrZero = 0
    """0: d_model / n_heads."""
    d_ff: WidthOrZero = 0
    """Width inside the MLP; 0: 4 d_model."""
    context: Main[ContextTokens] = 256
    """Longest sequence in tokens (rows of the position table)."""
    positions: Literal["learned", "rotary"] = "learned"
    """Learned vectors that are added (GPT-2), or rotary angles (all the others)."""
    rotary: Annotated[RotaryConfig, idle(positions="learned")] = field(default_factory=RotaryConfig)
    windows: tuple[CountOrZero, ...] = ()
    """Tokens that a query of each layer in turn sees, itself the last of them, and then again from
    the first layer: 4096 (Mistral), 4096 0 (Gemma 2: every second layer); 0 and empty: all."""
    score_width: WidthOrZero = 0
    """Attention's scores are divided by its root; 0: the width of a head (Gemma has another)."""
    score_cap: PositiveOrZero = 0.0
    """Attention's scores x are c tanh(x / c) instead (Gemma 2: 50); 0: as they are."""
    logit_cap: PositiveOrZero = 0.0
    """The logits x are c tanh(x / c) instead (Gemma 2: 30); 0: as they are."""
    norm: Literal["layer", "rms", "rms_offset"] = "layer"
    """LayerNorm; RMSNorm without mean and bias (Zhang and Sennrich 2019); RMSNorm that is scaled by
    1 + w (Gemma)."""
    norm_place: Literal["before", "after", "both"] = "before"
    """x + f(norm(x)); x + norm(f(x)) (OLMo 2); x + norm(f(norm(x))) (Gemma 2 and 3)."""
    norm_eps: Annotated[float, Bounds(0, 1, over=True)] = 1e-5
    """Added to the variance, or to the mean square."""
    activation: Literal["gelu_tanh", "gelu", "swiglu", "geglu"] = "gelu_tanh"
    """GELU by its tanh approximation (GPT-2), exact GELU (NeoX), SwiGLU (Shazeer 2020; Llama), or
    GEGLU with the approximation (Gemma)."""
    bias: Literal["all", "qkv", "none"] = "all"
    """Of dense layers: everywhere (GPT-2, GPT-NeoX), at the queries, keys and values (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm of queries and keys before they are rotated."""
    qk_norm_over: Annotated[Literal["head", "all"], idle(qk_norm=False)] = "head"
    """Of each head by itself (Qwen3, Gemma 3), or of all heads together (OLMo 2)."""
    parallel_residual: bool = False
    """x + attention(ln_1(x)) + mlp(ln_2(x)) (GPT-NeoX), not one after the other."""
    tied: bool = True
    """The unembedding is the transposed embedding; otherwise a matrix of its own."""
    scale_embedding: bool = False
    """The embeddings are multiplied by √d_model where the model begins (Gemma)."""
    unused_rows: CountOrZero = 0
    """Last rows of the embedding that no token has: never sampled, no part of any log-prob. Stages
    set it (see tokenizer.multiple)."""
    export_as: str = ""
    """Which family an export is of (transformers' model_type), where several compute the same;
    empty: the plainest. Stages set it, for a checkpoint to go out as what it came in."""
    pooling: Literal["last", "mean"] = "last"
    """What a reward model's score is made of; stages set it (see RewardConfig)."""
    lora_scale: Finite = 1.0
    """α / r of the low-rank adapters that parameters may hold; stages set it (see LoRAConfig)."""
    dropout: ShareBelowOne = 0.0
    """On the embedding sum, attention weights and both residual outputs; only while training."""
    scan_layers: bool = False
    """Compile one layer and loop over stacked parameters: small programs for deep models. Sampling
    takes the layers one by one all the same, so that no cache is copied."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass of a block computes again, for memory: nothing; all but the results of
    products with weights; everything."""
    attention: Literal["plain", "fused"] = "plain"
    """How attention of more than one query per row is computed. fused: by a kernel that keeps no
    T x T scores, splash attention on TPUs and cuDNN on GPUs (bfloat16 only); plain on CPUs and
    where dropout is on."""
    logit_rows: CountOrZero = 0
    """Rows of logits (batch x positions, one position at least) that a language-model loss holds at
    a time, made again in the backward pass; 0: all. Saves memory where tokens x vocabulary is
    large, for a little time."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of matrix products. Parameters, normalisation, softmax and losses stay float32. float64 is
    for comparisons and needs JAX_ENABLE_X64=1, which makes the parameters float64 too."""

    def __post_init__(self):
        check_bounds(self, "model.")
        check(
            self.head_dim > 0 or self.d_model % self.n_heads == 0,
            f"model.d_model={self.d_model} is not a multiple of model.n_heads={self.n_heads}",
        )
        check(
            self.n_heads % self.kv_heads == 0,
            f"model.n_heads={self.n_heads} is not a multiple of model.n_kv_heads={self.kv_heads}",
        )
        rotated = self.rotary.rotated(self.width)
        check(
            self.positions == "learned" or (rotated > 0 and rotated % 2 == 0),
            f"model.rotary.fraction={self.rotary.fraction} of heads of {self.width} dimensions "
            f"rotates {rotated}: expected an even number, 2 or more",
        )

    def check_context(self, **lengths: int | None) -> None:
        """Raise InputError unless what has these lengths, one after the other, fits the context.

        Beyond it, positions would be read as the last row of the position table. None is a length
        that the data will tell.
        """
        known = {name: length for name, length in lengths.items() if length is not None}
        parts = " + ".join(f"{name}={length}" for name, length in known.items())
        check(sum(known.values()) <= self.context, f"{parts} is over model.context={self.context}")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def width(self) -> int:
        """Dimensions of one head."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def hidden(self) -> int:
        """Dimensions inside the MLP."""
        return self.d_ff or 4 * self.d_model

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        windows, thetas = self.windows or (0,), self.rotary.thetas or (self.rotary.theta,)
        layers = range(self.n_layers)
        return tuple(LayerKind(windows[i % len(windows)], thetas[i % len(thetas)]) for i in layers)


def check_pattern(targets: str) -> None:
    """Raise unless ``lora.targets`` is a regular expression."""
    try:
        re.compile(targets)
    except re.error as error:
        raise InputError(f"lora.targets={targets!r} is no regular expression: {error}") from None


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): W + (α / r) A B; nothing else of the trunk is trained."""

    rank: Main[CountOrZero] = 0
    """r: rank of the adapters; 0 trains all weights."""
    alpha: Annotated[Positive, idle(rank=0)] = 16.0
    """α: the adapters act as W + (α / r) A B (Hu et al. 2021, §4.1)."""
    targets: Annotated[str, idle(rank=0)] = ".*"
    """Regular expression over a block's dense layers: attn/c_attn (queries, keys and values),
    attn/c_proj, mlp/c_fc, mlp/c_gate, mlp/c_proj."""

    def __post_init__(self):
        check_bounds(self, "lora.")
        check_pattern(self.targets)
