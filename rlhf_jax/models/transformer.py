"""A decoder-only transformer with an explicit KV cache: GPT-2, Llama, Gemma and others by config.

    h₀ = wte[tokens] + wpe[positions]
    x ← x + c_proj(attention(ln_1(x)));  x ← x + c_proj(gelu(c_fc(ln_2(x))))      for each block
    hidden = ln_f(h_N)

is GPT-2 (Radford et al. 2019; names and layout of OpenAI's release); what the other families
change is said where it is done. The module is used through ``init``/``apply`` only; its variables
are ``params`` alone. The cache is an argument and a result.
"""

from functools import partial
from operator import itemgetter
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.config.model import LayerKind
from rlhf_jax.models import layout
from rlhf_jax.models.attention import Segments, attention
from rlhf_jax.models.layers import (
    Dense,
    LayerNorm,
    RMSNorm,
    Rotation,
    normal_init,
    rotate,
    rotation,
)
from rlhf_jax.models.scoring import Scoring
from rlhf_jax.types import Params


def residual_stddev(config: ModelConfig) -> float:
    """GPT-2 scales the two projections back into the residual stream by 1/√(2 n_layers)."""
    return 0.02 / (2 * config.n_layers) ** 0.5


class KeyValues(NamedTuple):
    """Keys and values of one layer (or, scanned, of all layers stacked in front)."""

    keys: Float[Array, "*N B H S Dh"]
    values: Float[Array, "*N B H S Dh"]


def norm_layer(config: ModelConfig, name: str) -> nn.Module:
    """The normalisation that the config names."""
    if config.norm == "layer":
        return LayerNorm(config.norm_eps, name=name)
    return rms_norm(config, name)


def rms_norm(config: ModelConfig, name: str) -> RMSNorm:
    """RMSNorm, which queries and keys have whatever the other norms are."""
    return RMSNorm(config.norm_eps, float(config.norm == "rms_offset"), name=name)


def dense(config: ModelConfig, features: int, stddev: float, use_bias: bool, name: str) -> Dense:
    """A dense layer of the config's precision and adapters."""
    return Dense(features, config.dtype, stddev, use_bias, config.lora_scale, name=name)


class Layer(NamedTuple):
    """What a layer is told beside the residual stream."""

    segments: Segments
    turns: tuple[Rotation | None, ...]
    """Of each of the module's kinds, the rotation of heads; None rotates nothing."""
    number: Int[Array, ""] | None
    """Which of the kinds the layer is; None where there is one."""


class Attention(nn.Module):
    """softmax(q kᵀ / √Dh) v, grouped queries sharing keys and values (Ainslie 2023).

    ``c_attn`` makes queries, keys and values in that order, each split into heads from the left.
    """

    config: ModelConfig
    kinds: tuple[LayerKind, ...]
    """What the layer may be: one kind, or under a scan all those of the model."""
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer: Layer,
        cache: KeyValues | None,
        index: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Attention of T new positions to themselves and a cache, and the keys and values of both.

        ``cache`` and ``index`` are None where nothing came before.
        """
        c = self.config
        B, T, D = x.shape
        Dh = c.width
        sizes = (c.n_heads * Dh, c.kv_heads * Dh, c.kv_heads * Dh)
        qkv = dense(c, sum(sizes), 0.02, c.bias != "none", name="c_attn")(x)
        qkv = layout.head_features(qkv)
        q, k, v = jnp.split(qkv, (sizes[0], sizes[0] + sizes[1]), axis=-1)
        if c.qk_norm and c.qk_norm_over == "all":
            q, k = rms_norm(c, "q_norm")(q), rms_norm(c, "k_norm")(k)
        # [B, H, T, Dh]: with [B, T, H, Dh] the cached scores are 13 to 20 times slower on CPU.
        q, k, v = (y.reshape(B, T, -1, Dh).transpose(0, 2, 1, 3) for y in (q, k, v))
        if c.qk_norm and c.qk_norm_over == "head":
            q, k = rms_norm(c, "q_norm")(q), rms_norm(c, "k_norm")(k)
        drop = nn.Dropout(self.dropout, deterministic=False) if self.dropout else None
        if drop is not None and layer.number is not None:
            drop = partial(drop, rng=self.make_rng("dropout"))  # no key is made in a branch
        attend = [
            partial(self.attend, layer.segments, cache, index, drop, kind, turn)
            for kind, turn in zip(self.kinds, layer.turns, strict=True)
        ]
        if layer.number is None:
            out, keys_values = attend[0](q, k, v)
        else:
            out, keys_values = jax.lax.switch(layer.number, attend, q, k, v)
        out = out.transpose(0, 2, 1, 3).reshape(B, T, c.n_heads * Dh)
        project = dense(c, D, residual_stddev(c), c.bias == "all", name="c_proj")
        return project(layout.head_features(out)), keys_values

    def attend(self, segments, cache, index, drop, kind, turn, q, k, v):
        """What queries read in a layer of one kind, and the keys and values of all so far."""
        c = self.config
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        q, k, v = (layout.heads(x.astype(c.dtype)) for x in (q, k, v))
        if cache is not None:
            assert index is not None, "a cache is written to at an index"
            zero = jnp.zeros_like(index)  # of its type: float64 runs count in int64 elsewhere
            at = (zero, zero, index, zero)
            k = jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), at)
            v = jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), at)
        scoring = Scoring(c.score_width, c.score_cap, kind.window)
        fused = c.attention == "fused"
        out = attention(q, k, v, segments, drop, fused=fused, scoring=scoring, index=index)
        return out, KeyValues(k, v)


class MLP(nn.Module):
    """c_proj(gelu(c_fc(x))), or c_proj(f(c_gate(x)) · c_fc(x)) (Shazeer 2020).

    f is silu in SwiGLU and gelu in GEGLU.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Up to the inner width, activation (gated or not), and down again."""
        c = self.config
        bias = c.bias == "all"
        y = dense(c, c.hidden, 0.02, bias, name="c_fc")(x)
        if c.activation in ("swiglu", "geglu"):
            act = jax.nn.silu if c.activation == "swiglu" else jax.nn.gelu
            y = act(dense(c, c.hidden, 0.02, bias, name="c_gate")(x)) * y
        else:
            y = jax.nn.gelu(y, approximate=c.activation == "gelu_tanh")
        return dense(c, c.d_model, residual_stddev(c), bias, name="c_proj")(layout.features(y))


class Block(nn.Module):
    """One layer: x + attention, + MLP, each with norms where ``norm_place`` says."""

    config: ModelConfig
    kinds: tuple[LayerKind, ...]
    dropout: float

    @nn.compact
    def __call__(self, x, layer: Layer, cache, index):
        """The residual stream after the layer, and its keys and values."""
        c = self.config
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)

        def before(name, x):
            return x if c.norm_place == "after" else norm_layer(c, name)(x)

        def after(name, x):
            return x if c.norm_place == "before" else norm_layer(c, f"{name}_after")(x)

        attend = Attention(c, self.kinds, self.dropout, name="attn")
        attended, keys_values = attend(before("ln_1", x), layer, cache, index)
        # GPT-NeoX's MLP reads the same x as its attention, all others' what attention has left.
        residual = layout.residual(x + drop(after("ln_1", attended)))
        x = x if c.parallel_residual else residual
        out = residual + drop(after("ln_2", MLP(c, name="mlp")(before("ln_2", x))))
        return layout.residual(out), keys_values


def rematerialised(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """``block`` whose backward pass computes again what ``ModelConfig.remat`` says."""
    if remat == "none":
        return block
    policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    return nn.remat(block, policy=policies[remat])


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
        segments: Segments,
        cache: tuple[KeyValues, ...] | KeyValues | None = None,
        index: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[KeyValues, ...] | KeyValues]:
        """Hidden states after the last normalisation, and the keys and values of all layers.

        ``cache`` holds those of positions that came before, up to ``index``; both None: of none.
        """
        c = self.config
        wte = self.param("wte", normal_init(0.02), (self.vocab_size, c.d_model))
        # An imported model may have no row for the padding id, which is masked anyway.
        x = layout.looked_up(layout.table(wte, tokens).at[tokens].get(mode="clip"))
        if c.scale_embedding:
            x = x * c.d_model**0.5
        kinds = tuple(dict.fromkeys(c.layer_kinds))
        if c.positions == "learned":
            wpe = self.param("wpe", normal_init(0.02), (c.context, c.d_model))
            x = x + layout.table(wpe, tokens)[positions]
        turns = tuple(self.turn(kind, positions) for kind in kinds)
        x = layout.residual(nn.Dropout(self.dropout, deterministic=self.dropout == 0)(x))
        block = rematerialised(Block, c.remat)
        if c.scan_layers:
            # One program for all layers, which are told their kind where there are several.
            numbers = jnp.array([kinds.index(kind) for kind in c.layer_kinds], jnp.int32)
            blocks = nn.scan(
                block,
                # Parameters are stacked in front, and each layer has dropout of its own; segments,
                # rotations and index are the same for all, cache and kind are one per layer.
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(Layer._make((nn.broadcast, nn.broadcast, 0)), 0, nn.broadcast),
                length=c.n_layers,
            )
            layer = Layer(segments, turns, numbers if len(kinds) > 1 else None)
            x, keys_values = blocks(c, kinds, self.dropout, name="blocks")(x, layer, cache, index)
        else:
            layers = []
            for i, kind in enumerate(c.layer_kinds):
                layer_cache = None if cache is None else cache[i]
                layer = Layer(segments, (turns[kinds.index(kind)],), None)
                x, keys_values = block(c, (kind,), self.dropout, name=f"block_{i}")(
                    x, layer, layer_cache, index
                )
                layers.append(keys_values)
            keys_values = tuple(layers)
        return norm_layer(c, "ln_f")(x), keys_values

    def turn(self, kind: LayerKind, positions: Int[Array, "B T"]) -> Rotation | None:
        """By how much heads are rotated in layers of a kind; None where they are not."""
        c = self.config
        if c.positions == "learned" or kind.theta == 0:
            return None
        return rotation(c.rotary, c.width, kind.theta, positions)


def positions_of(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Number of real tokens before each token, so that padding shifts nothing."""
    # Padding on the left would count −1, which as an index is the last row of wpe.
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def stack_blocks(params: Params, n_layers: int) -> Params:
    """Parameters of unrolled layers (``block_0`` ...) stacked as the scanned model has them."""
    rest = {k: v for k, v in params.items() if not k.startswith("block_")}
    blocks = [params[f"block_{i}"] for i in range(n_layers)]
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_blocks(params: Params, n_layers: int) -> Params:
    """The inverse of ``stack_blocks``, bit for bit."""
    rest = {k: v for k, v in params.items() if k != "blocks"}
    stacked = params["blocks"]
    layers = [jax.tree.map(itemgetter(i), stacked) for i in range(n_layers)]
    return rest | {f"block_{i}": layer for i, layer in enumerate(layers)}


def as_layout(params: Params, config: ModelConfig) -> Params:
    """``params`` of either layout in the one that ``config.scan_layers`` asks for."""
    if config.scan_layers and "block_0" in params:
        return stack_blocks(params, config.n_layers)
    if not config.scan_layers and "blocks" in params:
        return unstack_blocks(params, config.n_layers)
    return params
