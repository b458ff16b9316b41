"""Gemma 2 and 3: Llama's kin with the longest list of differences."""

from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_jax.config import ModelConfig, RotaryConfig
from rlhf_jax.errors import InputError, check
from rlhf_jax.interop.config_fields import LOCAL_THETA, Fields, period, rotary_by_kind
from rlhf_jax.interop.family import anything
from rlhf_jax.interop.llama_kin import (
    AFTER,
    FULL,
    SLIDING,
    kin,
    read_llama,
    read_windows,
    unstretched_heads,
    write_llama,
    write_windows,
)


def read_gemma(
    fields: Fields,
    traits: dict[str, Any],
    *,
    caps: tuple[float, float],
    every: int,
    turns: RotaryConfig | None = None,
) -> ModelConfig:
    """What Gemma 2 and 3 say alike. Raises InputError for attention in both directions.

    ``caps`` of scores and logits, and which layers are full (``every`` second one, say), are those
    of configs that do not say.
    """
    gelu = "gelu_pytorch_tanh"
    fields.expect("hidden_activation", gelu)
    fields.expect("use_bidirectional_attention", False)
    found = read_llama(fields, traits, tied=True, act=gelu, head_dim=256, turns=turns)
    kinds = [SLIDING if (i + 1) % every else FULL for i in range(found["n_layers"])]
    return ModelConfig(
        **unstretched_heads(fields, found),
        windows=read_windows(fields, len(kinds), size=4096, kinds=kinds),
        score_width=fields.take("query_pre_attn_scalar", 256),
        score_cap=float(fields.or_off("attn_logit_softcapping", caps[0])),
        logit_cap=float(fields.or_off("final_logit_softcapping", caps[1])),
    )


def write_gemma(c: ModelConfig) -> dict[str, Any]:
    """Gemma 2's fields of a shape, Gemma 3's too but for θ."""
    sliding = write_windows(c)
    return write_llama(c) | {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": c.score_width or c.width,
        "attn_logit_softcapping": c.score_cap or None,
        "final_logit_softcapping": c.logit_cap or None,
        "layer_types": sliding["layer_types"],
        # transformers makes the mask of a window even where no layer has one.
        "sliding_window": sliding["sliding_window"] or c.context,
    }


GEMMA2 = kin(
    "gemma2",
    "Gemma2",
    partial(read_gemma, caps=(50.0, 30.0), every=2),
    write_gemma,
    differs={
        "norm": "rms_offset",
        "norm_place": "both",
        "activation": "geglu",
        "scale_embedding": True,
    },
    varies=dict.fromkeys(("windows", "score_width", "score_cap", "logit_cap"), anything),
    names=AFTER | {"ln_2": "layers.{i}.pre_feedforward_layernorm"},
)


def read_gemma3(fields: Fields, traits: dict[str, Any]) -> ModelConfig:
    """The shape of a Gemma 3 of text alone: full layers have another θ than sliding ones."""
    fields.take("_sliding_window_pattern", 6)  # said of layer_types that stand there too
    every = fields.take("sliding_window_pattern", 6)
    check(every > 0, f"{fields.file}: sliding_window_pattern={every}, expected 1 or more")
    turns, local = rotary_by_kind(fields, base=1_000_000.0, local=10_000.0)
    c = read_gemma(fields, traits, caps=(0.0, 0.0), every=every, turns=turns)
    thetas = [local if kind.window else turns.theta for kind in c.layer_kinds]
    return replace(c, rotary=replace(turns, thetas=period(thetas, plain=turns.theta)))


def write_gemma3(c: ModelConfig) -> dict[str, Any]:
    """Gemma 3's fields of a shape. Raises InputError for θ that do not follow the windows."""
    thetas = {bool(kind.window): kind.theta for kind in c.layer_kinds}
    follow = all(kind.theta == thetas[bool(kind.window)] for kind in c.layer_kinds)
    if not follow or thetas.get(False, c.rotary.theta) != c.rotary.theta or 0 in thetas.values():
        raise InputError(
            f"model.rotary.thetas={c.rotary.thetas}: Gemma 3 has one for layers with a window and "
            f"{c.rotary.theta} for the others"
        )
    return write_gemma(c) | {LOCAL_THETA: thetas.get(True, c.rotary.theta)}


GEMMA3 = kin(
    "gemma3_text",
    "Gemma3",
    read_gemma3,
    write_gemma3,
    differs=dict(GEMMA2.traits) | {"qk_norm": True},
    varies=dict(GEMMA2.varies) | {"thetas": anything},
    names=dict(GEMMA2.names),
    classifier="Gemma3TextForSequenceClassification",
)
