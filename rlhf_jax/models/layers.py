"""The layers a transformer is made of: dense, normalisation, rotary positions.

Names and layout are those of OpenAI's GPT-2; kernels are stored [in, out].
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlhf_jax.config import RotaryConfig
from rlhf_jax.models import layout
from rlhf_jax.models.products import transposed_product


def accumulator(dtype: str | np.dtype) -> np.dtype:
    """What products of operands of ``dtype`` are summed in: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def normal_init(stddev: float):
    """Initial values N(0, stddev²), cut nowhere."""
    return nn.initializers.normal(stddev)


class LayerNorm(nn.Module):
    """(x − mean) / √(var + ε) · scale + bias, with the two-pass biased variance of PyTorch.

    Written out because the gradient of Flax's own takes 2.5 times as long on CPU.
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """(x − mean) / √(var + ε) · scale + bias over the last axis, biased variance."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        # Two passes: the mean of squares less the square of the mean loses its digits for a large
        # mean.
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.eps) * scale[None, None] + bias[None, None]


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · scale (Zhang & Sennrich 2019); Gemma's scale is 1 + a parameter."""

    eps: float
    offset: float = 0.0
    """Added to the parameter, which begins at 1 less."""

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """x / √(mean x² + ε) · (offset + scale) over the last axis."""
        init = nn.initializers.constant(1.0 - self.offset)
        scale = self.offset + self.param("scale", init, (x.shape[-1],))
        scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
        return x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * scale


class Dense(nn.Module):
    """x W + b, with W stored [in, out] as GPT-2 does; with an adapter beside it, + s (x A) B.

    Rows are flattened to one axis first: on CPU the gradient of a three-dimensional product takes
    2.5 times as long. ``dtype`` is that of the operands; sums are ``accumulator(dtype)``. A kernel
    that ``transpose_kernels`` has transposed is used as it lies.
    """

    features: int
    dtype: str
    stddev: float
    use_bias: bool
    lora_scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T In"]) -> Float[Array, "B T Out"]:
        """x W + b, plus the low-rank adapter's product where the parameters hold one."""

        def product(rows, matrix):
            cast = (rows.astype(self.dtype), matrix.astype(self.dtype))
            return jnp.dot(*cast, preferred_element_type=accumulator(self.dtype))

        rows = x.reshape(-1, x.shape[-1])
        # ``param`` would ask for a kernel, which a transposed tree has not.
        if self.has_variable("params", "transposed"):
            transposed = self.get_variable("params", "transposed").astype(self.dtype)
            y = transposed_product(rows, transposed)
        else:
            kernel = self.param("kernel", normal_init(self.stddev), (x.shape[-1], self.features))
            inner = int(self.name == "c_proj")
            y = product(rows, layout.gathered(kernel.astype(self.dtype), x, inner=inner))
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            # (x A) B and not x (A B): two thin products instead of another kernel.
            y = y + self.lora_scale * product(product(rows, a), b)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))[None]
        return y.reshape(*x.shape[:-1], self.features)


def rotary_frequencies(config: RotaryConfig, head_dim: int, theta: float) -> Float[Array, "Half"]:
    """θ^(−2i/d) in radians per position, stretched in layers whose θ is the config's own.

    Of Llama 3 the slow ones: wavelengths over original_context / low_factor are divided by
    ``factor``, those under original_context / high_factor are kept, and between the two it is
    interpolated.
    """
    dim = config.rotated(head_dim)
    frequencies = 1.0 / theta ** (jnp.arange(0, dim, 2, dtype=float) / dim)
    if config.factor == 1.0 or theta != config.theta:
        return frequencies
    if config.stretch == "all":
        return frequencies / config.factor
    # How often a pair goes round within the context that the model was first trained with.
    turns = config.original_context * frequencies / (2 * math.pi)
    low, high = config.low_frequency_factor, config.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / config.factor)


Rotation = tuple[Float[Array, "B 1 T Half"], Float[Array, "B 1 T Half"]]
"""Cosine and sine of each position's angles."""


def rotation(
    config: RotaryConfig, head_dim: int, theta: float, positions: Int[Array, "B T"]
) -> Rotation:
    """Cosines and sines of the angles by which heads are rotated at each position."""
    frequencies = rotary_frequencies(config, head_dim, theta)
    angles = positions[:, None, :, None] * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B H T Dh"], turn: Rotation) -> Float[Array, "B H T Dh"]:
    """Rotary position embedding (Su et al. 2021): pair (i, i + d/2) rotated by its angle.

    Halves are paired, as GPT-NeoX and transformers do; the paper and GGUF pair neighbours.
    """
    cos, sin = turn
    half = cos.shape[-1]
    # GPT-NeoX rotates a part of each head only; the rest has no position.
    first, second, rest = jnp.split(x.astype(accumulator(x.dtype)), (half, 2 * half), axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin, rest)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def capped(x: Array, cap: float) -> Array:
    """c tanh(x / c), between −c and c; x itself for a ``cap`` of 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def longer(x: Array, *, axis: int, multiple: int) -> Array:
    """``x`` with zeros behind it up to the next multiple of a length."""
    return jnp.pad(x, [(0, -n % multiple if i == axis else 0) for i, n in enumerate(x.shape)])
