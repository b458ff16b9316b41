"""Llama and the families that differ from it in a few traits: a table of differences.

Each is read and written by Llama's functions and says what it adds to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from rlhf_jax.config import ModelConfig, RotaryConfig
from rlhf_jax.errors import InputError, check
from rlhf_jax.interop.config_fields import (
    Fields,
    period,
    rotary,
    write_rotary,
)
from rlhf_jax.interop.family import Family, anything

SLIDING, FULL = "sliding_attention", "full_attention"


# --- Llama ------------------------------------------------------------------------------------


def read_llama(
    fields: Fields,
    traits: dict[str, Any],
    *,
    norm_eps: float = 1e-6,
    theta: float = 10_000.0,
    tied: bool = False,
    act: str = "silu",
    head_dim: int = 0,
    turns: RotaryConfig | None = None,
) -> dict[str, Any]:
    """Fields of ModelConfig that all of Llama's kin say alike; the rest are defaults of a family.

    Raises InputError for biases that a family has not, interleaved rotary pairs and the like.
    """
    fields.expect("hidden_act", act)
    fields.expect("attention_bias", False)
    fields.expect("mlp_bias", False)
    fields.expect("rope_interleaved", False)
    heads, width = fields.take("num_attention_heads"), fields.take("hidden_size")
    return traits | dict(
        n_layers=fields.take("num_hidden_layers"),
        d_model=width,
        n_heads=heads,
        n_kv_heads=fields.take("num_key_value_heads", heads),
        head_dim=fields.take("head_dim", head_dim or width // heads),
        d_ff=fields.take("intermediate_size"),
        context=fields.take("max_position_embeddings"),
        rotary=turns
        or rotary(fields, theta="rope_theta", fraction="partial_rotary_factor", base=theta),
        norm_eps=fields.take("rms_norm_eps", norm_eps),
        tied=fields.take("tie_word_embeddings", tied),
    )


def read_plain(fields: Fields, traits: dict[str, Any]) -> ModelConfig:
    """The shape of a Llama, a Qwen2 or a Qwen3. Raises InputError for sliding windows."""
    fields.expect("pretraining_tp", 1)
    fields.expect("use_sliding_window", False)
    fields.take("sliding_window", 0)  # without use_sliding_window it is not used
    kinds = set(fields.take("layer_types", [FULL]))
    if kinds != {FULL}:
        raise InputError(f"{fields.file}: layer_types {sorted(kinds)} are not supported")
    return ModelConfig(**read_llama(fields, traits))


def write_llama(c: ModelConfig) -> dict[str, Any]:
    """Llama's fields of a shape."""
    return {
        "num_hidden_layers": c.n_layers,
        "hidden_size": c.d_model,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.width,
        "intermediate_size": c.hidden,
        "max_position_embeddings": c.context,
        **write_rotary(c.rotary),
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "attention_bias": False,
    }


NORM_1, NORM_2 = "layers.{i}.input_layernorm", "layers.{i}.post_attention_layernorm"
LLAMA_TRAITS = dict(positions="rotary", norm="rms", activation="swiglu", bias="none")
LLAMA = Family(
    model_type="llama",
    causal="LlamaForCausalLM",
    classifier="LlamaForSequenceClassification",
    base="model",
    names={
        "wte": "embed_tokens",
        "ln_f": "norm",
        "ln_1": NORM_1,
        "ln_2": NORM_2,
        "attn.c_attn": "layers.{i}.self_attn",
        "attn.c_proj": "layers.{i}.self_attn.o_proj",
        "attn.q_norm": "layers.{i}.self_attn.q_norm",
        "attn.k_norm": "layers.{i}.self_attn.k_norm",
        "mlp.c_fc": "layers.{i}.mlp.up_proj",
        "mlp.c_gate": "layers.{i}.mlp.gate_proj",
        "mlp.c_proj": "layers.{i}.mlp.down_proj",
    },
    lm_head="lm_head",
    kernels="out_in",
    qkv="separate",
    read=partial(read_plain, traits=LLAMA_TRAITS),
    write=write_llama,
    traits=LLAMA_TRAITS,
    varies={"n_kv_heads": anything, "head_dim": anything},
)


def kin(
    model_type: str,
    prefix: str,
    read: Callable[..., ModelConfig],
    write: Callable[[ModelConfig], dict[str, Any]],
    *,
    differs: dict[str, Any],
    varies: dict[str, Callable[[Any], bool]],
    names: dict[str, str] | None = None,
    classifier: str = "",
    qkv: Literal["fused", "separate"] = "separate",
) -> Family:
    """A family that is Llama but for some traits; ``prefix`` begins its architectures."""
    traits = LLAMA_TRAITS | differs
    return LLAMA._replace(
        model_type=model_type,
        causal=f"{prefix}ForCausalLM",
        classifier=classifier or f"{prefix}ForSequenceClassification",
        names=dict(LLAMA.names) | (names or {}),
        qkv=qkv,
        read=partial(read, traits=traits),
        write=write,
        traits=traits,
        varies=dict(LLAMA.varies) | varies,
    )


QWEN2 = kin("qwen2", "Qwen2", read_plain, write_llama, differs={"bias": "qkv"}, varies={})
QWEN3 = kin("qwen3", "Qwen3", read_plain, write_llama, differs={"qk_norm": True}, varies={})


# --- Sliding windows and other patterns of layers -------------------------------------------------


def read_windows(
    fields: Fields, n_layers: int, *, size: int, kinds: Sequence[str]
) -> tuple[int, ...]:
    """Windows by ``layer_types`` (``kinds`` where there are none) and ``sliding_window``.

    Raises InputError for other kinds of layers, or as many as there are not.
    """
    window = fields.or_off("sliding_window", size)
    found = fields.take("layer_types", list(kinds))
    unknown = sorted({str(kind) for kind in found if kind not in (SLIDING, FULL)})
    check(not unknown, f"{fields.file}: layer_types {unknown} are not supported")
    check(
        len(found) == n_layers,
        f"{fields.file}: layer_types are {len(found)}, expected num_hidden_layers={n_layers}",
    )
    check(
        window > 0 or SLIDING not in found,
        f"{fields.file}: layer_types has {SLIDING}, but sliding_window is {window or None}",
    )
    return period([window if kind == SLIDING else 0 for kind in found])


def write_windows(c: ModelConfig) -> dict[str, Any]:
    """``layer_types`` and their one ``sliding_window``."""
    sizes = {kind.window for kind in c.layer_kinds if kind.window}
    if len(sizes) > 1:
        raise InputError(f"model.windows={c.windows}: transformers has one size for all layers")
    return {
        "layer_types": [SLIDING if kind.window else FULL for kind in c.layer_kinds],
        "sliding_window": sizes.pop() if sizes else None,
    }


def unstretched_heads(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
    """``found``, of a family that rotates all dimensions of a head whatever its config says."""
    fraction = found["rotary"].fraction
    check(fraction == 1.0, f"{fields.file}: partial_rotary_factor={fraction}, expected 1.0")
    return found


# --- Mistral, OLMo 2, SmolLM3 -------------------------------------------------------------------


def at_most_one(windows: tuple[int, ...]) -> bool:
    """Whether all layers have the same window, or none."""
    return len(set(windows)) < 2


def read_mistral(fields: Fields, traits: dict[str, Any]) -> ModelConfig:
    """The shape of a Mistral, all of whose layers see a window, or none."""
    found = unstretched_heads(fields, read_llama(fields, traits))
    window = fields.or_off("sliding_window", 4096)
    return ModelConfig(**found, windows=period([window]))


def write_mistral(c: ModelConfig) -> dict[str, Any]:
    """Mistral's fields of a shape."""
    return write_llama(c) | {"sliding_window": c.windows[0] if c.windows else None}


MISTRAL = kin(
    "mistral",
    "Mistral",
    read_mistral,
    write_mistral,
    differs={},
    varies={"windows": at_most_one},
)


def read_olmo2(fields: Fields, traits: dict[str, Any]) -> ModelConfig:
    """The shape of an OLMo 2."""
    return ModelConfig(**unstretched_heads(fields, read_llama(fields, traits, norm_eps=1e-5)))


AFTER = {
    "ln_1_after": "layers.{i}.post_attention_layernorm",
    "ln_2_after": "layers.{i}.post_feedforward_layernorm",
}
OLMO2 = kin(
    "olmo2",
    "Olmo2",
    read_olmo2,
    write_llama,
    differs={"norm_place": "after", "qk_norm": True, "qk_norm_over": "all"},
    varies={},
    names=AFTER,
)


def read_smollm3(fields: Fields, traits: dict[str, Any]) -> ModelConfig:
    """The shape of a SmolLM3: every fourth layer rotates nothing, or those that the config says."""
    fields.take("pretraining_tp", 1)  # of no effect in transformers' SmolLM3
    found = read_llama(fields, traits, theta=2_000_000.0, tied=True)
    found, layers = unstretched_heads(fields, found), range(found["n_layers"])
    every = fields.take("no_rope_layer_interval", 4)
    check(every > 0, f"{fields.file}: no_rope_layer_interval={every}, expected 1 or more")
    rotates = fields.take("no_rope_layers", [int((i + 1) % every != 0) for i in layers])
    check(
        len(rotates) >= len(layers) and all(each in (0, 1) for each in rotates),
        f"{fields.file}: no_rope_layers={rotates}, expected 0 or 1 for each layer",
    )
    slides = fields.take("use_sliding_window", False)
    by_default = [SLIDING if slides and not rotates[i] else FULL for i in layers]
    windows = read_windows(fields, len(layers), size=0, kinds=by_default)
    check(
        slides or not windows,
        f"{fields.file}: layer_types has {SLIDING}, but use_sliding_window is false",
    )
    theta = found["rotary"].theta
    thetas = period([theta if rotates[i] else 0.0 for i in layers], plain=theta)
    found["rotary"] = replace(found["rotary"], thetas=thetas)
    return ModelConfig(**found, windows=windows)


def write_smollm3(c: ModelConfig) -> dict[str, Any]:
    """SmolLM3's fields of a shape."""
    thetas = [kind.theta for kind in c.layer_kinds]
    if not {*thetas} <= {0.0, c.rotary.theta}:
        raise InputError(
            f"model.rotary.thetas={c.rotary.thetas}: SmolLM3's are {c.rotary.theta} or 0"
        )
    slides = any(kind.window for kind in c.layer_kinds)
    rotates = [int(theta > 0) for theta in thetas]
    more = {"no_rope_layers": rotates, "use_sliding_window": slides}
    return write_llama(c) | write_windows(c) | more


SMOLLM3 = kin(
    "smollm3",
    "SmolLM3",
    read_smollm3,
    write_smollm3,
    differs={},
    varies={"windows": anything, "thetas": anything},
)


def read_phi3(fields: Fields, traits: dict[str, Any]) -> ModelConfig:
    """The shape of a Phi-3 or Phi-4, which may rotate a part of each head.

    Raises InputError for rotary positions that are stretched (LongRoPE).
    """
    fields.take("original_max_position_embeddings", 4096)  # of LongRoPE, which is refused
    found = read_llama(fields, traits, norm_eps=1e-5)
    factor = found["rotary"].factor
    check(factor == 1.0, f"{fields.file}: rotary factor={factor}, but Phi-3 has none")
    return ModelConfig(**found, windows=period([fields.or_off("sliding_window", 0)]))


def write_phi3(c: ModelConfig) -> dict[str, Any]:
    """Phi-3's fields of a shape. Raises InputError for stretched rotary positions."""
    check(c.rotary.factor == 1.0, f"model.rotary.factor={c.rotary.factor}, but Phi-3 has none")
    share = {"partial_rotary_factor": c.rotary.fraction}
    return write_llama(c) | share | {"sliding_window": c.windows[0] if c.windows else None}


PHI3 = kin(
    "phi3",
    "Phi3",
    read_phi3,
    write_phi3,
    differs={},
    varies={"fraction": anything, "windows": at_most_one},
    names={
        "attn.c_attn": "layers.{i}.self_attn.qkv_proj",
        "mlp.c_gate": "layers.{i}.mlp.gate_up_proj[0]",
        "mlp.c_fc": "layers.{i}.mlp.gate_up_proj[1]",
    },
    qkv="fused",
)
