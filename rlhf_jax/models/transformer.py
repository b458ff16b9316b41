"""GPT-2's trunk: a decoder-only transformer with an explicit KV cache.

    h₀ = wte[tokens] + wpe[positions]
    x ← x + c_proj(attention(ln_1(x)));  x ← x + c_proj(gelu(c_fc(ln_2(x))))      for each block
    hidden = ln_f(h_N)

(Radford et al. 2019; names and layout of OpenAI's release.) The module is used through
``init``/``apply`` only; its variables are ``params`` alone. The cache is an argument and a result.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.types import Params

NEGATIVE = -1e30
"""A masked attention score: finite, so that a row which sees nothing stays finite too."""


def residual_stddev(config: ModelConfig) -> float:
    """GPT-2 scales the two projections back into the residual stream by 1/√(2 n_layers)."""
    return 0.02 / (2 * config.n_layers) ** 0.5


class KeyValues(NamedTuple):
    """Keys and values of one layer (or, scanned, of all layers stacked in front)."""

    keys: Float[Array, "*N B H S Dh"]
    values: Float[Array, "*N B H S Dh"]


def normal_init(stddev: float):
    return nn.initializers.normal(stddev)


class LayerNorm(nn.Module):
    """(x − mean) / √(var + 1e-5) · scale + bias, with the two-pass biased variance of PyTorch.

    Written out because the gradient of Flax's own takes 2.5 times as long on CPU.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * scale[None, None] + bias[None, None]


class Dense(nn.Module):
    """x W + b, with W stored [in, out] as GPT-2 does.

    Rows are flattened to one axis first: on CPU the gradient of a three-dimensional product takes
    2.5 times as long. ``dtype`` is that of the operands; the product accumulates in float32.
    """

    features: int
    dtype: str
    stddev: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T In"]) -> Float[Array, "B T Out"]:
        kernel = self.param("kernel", normal_init(self.stddev), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y = jnp.dot(rows, kernel.astype(self.dtype), preferred_element_type=jnp.float32)
        return (y + bias[None]).reshape(*x.shape[:-1], self.features)


class Attention(nn.Module):
    config: ModelConfig
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        attend: Bool[Array, "B 1 T S"],
        cache: KeyValues | None,
        index: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        c = self.config
        B, T, D = x.shape
        dtype = jnp.dtype(c.dtype)
        qkv = Dense(3 * D, c.dtype, 0.02, name="c_attn")(x).astype(dtype)
        # [B, H, T, Dh]: with [B, T, H, Dh] the cached scores are 13 to 20 times slower on CPU.
        heads = lambda y: y.reshape(B, T, c.n_heads, D // c.n_heads).transpose(0, 2, 1, 3)
        q, k, v = map(heads, jnp.split(qkv, 3, axis=-1))
        if cache is not None:
            at = (0, 0, index, 0)
            k = jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), at)
            v = jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), at)
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(attend, scores / jnp.sqrt(D / c.n_heads), NEGATIVE)
        weights = jax.nn.softmax(scores, axis=-1)
        weights = nn.Dropout(self.dropout, deterministic=self.dropout == 0)(weights)
        out = jnp.einsum(
            "bhqk,bhkd->bhqd", weights.astype(dtype), v, preferred_element_type=jnp.float32
        )
        out = out.transpose(0, 2, 1, 3).reshape(B, T, D)
        return Dense(D, c.dtype, residual_stddev(c), name="c_proj")(out), KeyValues(k, v)


class MLP(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        x = jax.nn.gelu(Dense(4 * c.d_model, c.dtype, 0.02, name="c_fc")(x), approximate=True)
        return Dense(c.d_model, c.dtype, residual_stddev(c), name="c_proj")(x)


class Block(nn.Module):
    config: ModelConfig
    dropout: float

    @nn.compact
    def __call__(self, x, attend, cache, index):
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        attended, keys_values = Attention(self.config, self.dropout, name="attn")(
            LayerNorm(name="ln_1")(x), attend, cache, index
        )
        x = x + drop(attended)
        x = x + drop(MLP(self.config, name="mlp")(LayerNorm(name="ln_2")(x)))
        return x, keys_values


class Transformer(nn.Module):
    """Tokens to hidden states after ``ln_f``, with the keys and values of every layer.

    ``dropout`` is separate from ``config.dropout``: 0 everywhere but in a training step.
    """

    config: ModelConfig
    vocab_size: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Bool[Array, "B 1 T S"],
        cache: tuple[KeyValues, ...] | KeyValues | None = None,
        index: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[KeyValues, ...] | KeyValues]:
        c = self.config
        wte = self.param("wte", normal_init(0.02), (self.vocab_size, c.d_model))
        wpe = self.param("wpe", normal_init(0.02), (c.context, c.d_model))
        x = wte[tokens] + wpe[positions]
        x = nn.Dropout(self.dropout, deterministic=self.dropout == 0)(x)
        block = nn.remat(Block) if c.remat else Block
        if c.scan_layers:
            blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, 0, nn.broadcast),
                length=c.n_layers,
            )
            x, keys_values = blocks(c, self.dropout, name="blocks")(x, attend, cache, index)
        else:
            layers = []
            for i in range(c.n_layers):
                layer_cache = None if cache is None else cache[i]
                x, layer = block(c, self.dropout, name=f"block_{i}")(x, attend, layer_cache, index)
                layers.append(layer)
            keys_values = tuple(layers)
        return LayerNorm(name="ln_f")(x), keys_values


def causal_mask(mask: Bool[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Each token attends to the real tokens up to itself."""
    T = mask.shape[1]
    return (jnp.tril(jnp.ones((1, T, T), bool)) & mask[:, None, :])[:, None]


def packed_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Causal within a segment: documents packed in one row do not see each other."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return causal_mask(segment_ids > 0) & same[:, None]


def positions_of(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Number of real tokens before each token, so that padding shifts nothing."""
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def stack_blocks(params: Params, n_layers: int) -> Params:
    """Parameters of unrolled layers (``block_0`` ...) stacked as the scanned model has them."""
    rest = {k: v for k, v in params.items() if not k.startswith("block_")}
    blocks = [params[f"block_{i}"] for i in range(n_layers)]
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_blocks(params: Params, n_layers: int) -> Params:
    """The inverse of ``stack_blocks``, bit for bit."""
    rest = {k: v for k, v in params.items() if k != "blocks"}
    layer = lambda i: jax.tree.map(lambda leaf: leaf[i], params["blocks"])
    return rest | {f"block_{i}": layer(i) for i in range(n_layers)}


def as_layout(params: Params, config: ModelConfig) -> Params:
    """``params`` of either layout in the one that ``config.scan_layers`` asks for."""
    if config.scan_layers and "block_0" in params:
        return stack_blocks(params, config.n_layers)
    if not config.scan_layers and "blocks" in params:
        return unstack_blocks(params, config.n_layers)
    return params
