"""The families of models this trunk can be: their ``config.json`` and the names of their tensors.

A family is a row of data: where each of our parameters lies in a Hugging Face checkpoint, and two
functions between its ``config.json`` and ModelConfig.
"""

from collections.abc import Mapping
from typing import Any, Literal

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import InputError, check
from rlhf_jax.interop.config_fields import Fields, activation, rotary, write_rotary
from rlhf_jax.interop.family import Family, anything
from rlhf_jax.interop.gemma import GEMMA2, GEMMA3
from rlhf_jax.interop.llama_kin import LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3, SMOLLM3

# --- GPT-2 ------------------------------------------------------------------------------------


def read_gpt2(fields: Fields) -> ModelConfig:
    """The shape of a GPT-2. Raises InputError for a field that changes its attention."""
    fields.expect("scale_attn_weights", True)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    fields.expect("add_cross_attention", False)
    fields.expect("reorder_and_upcast_attn", False, True)  # the same numbers in float32
    width = fields.take("n_embd")
    return ModelConfig(
        n_layers=fields.take("n_layer"),
        d_model=width,
        n_heads=fields.take("n_head"),
        d_ff=fields.take("n_inner", 4 * width),
        context=fields.take("n_positions"),
        activation=activation(fields, "activation_function", default="gelu_new"),
        norm_eps=fields.take("layer_norm_epsilon", 1e-5),
        tied=fields.take("tie_word_embeddings", True),
    )


def write_gpt2(c: ModelConfig) -> dict[str, Any]:
    """GPT-2's fields of a shape."""
    names = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
    return {
        "n_layer": c.n_layers,
        "n_embd": c.d_model,
        "n_head": c.n_heads,
        "n_inner": c.hidden,
        "n_positions": c.context,
        "activation_function": names[c.activation],
        "layer_norm_epsilon": c.norm_eps,
    }


GPT2 = Family(
    model_type="gpt2",
    causal="GPT2LMHeadModel",
    classifier="GPT2ForSequenceClassification",
    base="transformer",
    names={
        "wte": "wte",
        "wpe": "wpe",
        "ln_f": "ln_f",
        **{
            name: "h.{i}." + name
            for name in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        },
    },
    lm_head="lm_head",
    kernels="in_out",
    qkv="fused",
    read=read_gpt2,
    write=write_gpt2,
    varies={"activation": ("gelu_tanh", "gelu").__contains__},
)

# --- GPT-NeoX, Pythia -------------------------------------------------------------------------


def read_neox(fields: Fields) -> ModelConfig:
    """The shape of a GPT-NeoX (Pythia). Raises InputError where attention has no biases."""
    fields.expect("attention_bias", True)
    return ModelConfig(
        n_layers=fields.take("num_hidden_layers"),
        d_model=fields.take("hidden_size"),
        n_heads=fields.take("num_attention_heads"),
        d_ff=fields.take("intermediate_size"),
        context=fields.take("max_position_embeddings"),
        positions="rotary",
        rotary=rotary(fields, theta="rotary_emb_base", fraction="rotary_pct", share=0.25),
        activation=activation(fields, "hidden_act", default="gelu"),
        norm_eps=fields.take("layer_norm_eps", 1e-5),
        parallel_residual=fields.take("use_parallel_residual", True),
        tied=fields.take("tie_word_embeddings", False),
    )


def write_neox(c: ModelConfig) -> dict[str, Any]:
    """GPT-NeoX's fields of a shape, with the names of before transformers 5."""
    names = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
    spelled = write_rotary(c.rotary)
    return {
        "num_hidden_layers": c.n_layers,
        "hidden_size": c.d_model,
        "num_attention_heads": c.n_heads,
        "intermediate_size": c.hidden,
        "max_position_embeddings": c.context,
        "rotary_emb_base": spelled["rope_theta"],
        "rotary_pct": c.rotary.fraction,
        "rope_scaling": spelled["rope_scaling"],
        "hidden_act": names[c.activation],
        "layer_norm_eps": c.norm_eps,
        "use_parallel_residual": c.parallel_residual,
        "attention_bias": True,
    }


NEOX = Family(
    model_type="gpt_neox",
    causal="GPTNeoXForCausalLM",
    classifier="GPTNeoXForSequenceClassification",
    base="gpt_neox",
    names={
        "wte": "embed_in",
        "ln_f": "final_layer_norm",
        "ln_1": "layers.{i}.input_layernorm",
        "ln_2": "layers.{i}.post_attention_layernorm",
        "attn.c_attn": "layers.{i}.attention.query_key_value",
        "attn.c_proj": "layers.{i}.attention.dense",
        "mlp.c_fc": "layers.{i}.mlp.dense_h_to_4h",
        "mlp.c_proj": "layers.{i}.mlp.dense_4h_to_h",
    },
    lm_head="embed_out",
    kernels="out_in",
    qkv="per_head",
    read=read_neox,
    write=write_neox,
    traits={"positions": "rotary"},
    varies={
        "activation": ("gelu_tanh", "gelu").__contains__,
        "parallel_residual": anything,
        "fraction": anything,
    },
)

# --- All ----------------------------------------------------------------------------------------

FAMILIES = {
    family.model_type: family
    for family in (GPT2, NEOX, LLAMA, QWEN2, QWEN3, MISTRAL, OLMO2, SMOLLM3, PHI3, GEMMA2, GEMMA3)
}
"""Those that compute less come before those that could express it too."""


def family_of_checkpoint(config: Mapping[str, Any], file: str) -> Family:
    """The family that ``config.json`` names. Raises InputError listing the known ones."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(f"{file}: model_type {model_type!r} is not supported, only {[*FAMILIES]}")
    return FAMILIES[model_type]


def check_classifier(c: ModelConfig, kind: Literal["lm", "scalar"]) -> None:
    """Raise InputError for a reward model that no classifier of transformers computes."""
    check(
        kind == "lm" or c.pooling == "last",
        "the score of this reward model is the mean over an answer's tokens (--pooling mean): "
        "transformers' classifiers read the last one alone, so it is not exported",
    )


def family_of_model(c: ModelConfig) -> Family:
    """The family that can express ``c``: so that an export loads as what it computes."""
    able = [family for family in FAMILIES.values() if family.has(c)]
    for family in able:
        if c.export_as in ("", family.model_type):
            return family
    if able:
        return able[0]
    raise InputError(f"no model of transformers is like {c}")
