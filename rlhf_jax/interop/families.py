"""The families of models this trunk can be: their ``config.json`` and the names of their tensors.

A family is a row of data: where each of our parameters lies in a Hugging Face checkpoint, and two
functions between its ``config.json`` and ModelConfig.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.interop.config_fields import Fields, activation, rotary, write_rotary


class Family(NamedTuple):
    """How the models of one ``model_type`` lie in a checkpoint, and how their config reads."""

    model_type: str
    causal: str
    """Architecture with a language-model head; the reward model's has ``classifier``."""
    classifier: str
    base: str
    """Prefix of the trunk's tensors in a checkpoint with a head; the bare trunk's have none."""
    names: Mapping[str, str]
    """Our module → theirs, both dotted; {i} is the layer."""
    lm_head: str
    kernels: Literal["in_out", "out_in"]
    """Layout of a dense layer's weight: GPT-2's Conv1D, or torch.nn.Linear's."""
    qkv: Literal["fused", "per_head", "separate"]
    """Queries, keys, values: one tensor as ours, one interleaved head by head, or three."""
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]


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
)

# --- Llama, Qwen2, Qwen3 ----------------------------------------------------------------------


def read_llama(
    fields: Fields, *, bias: Literal["qkv", "none"] = "none", qk_norm: bool = False
) -> ModelConfig:
    """The shape of a Llama, and of Qwen, which adds biases (Qwen2) or norms of heads (Qwen3).

    Raises InputError for sliding windows, interleaved rotary pairs and other attention.
    """
    fields.expect("hidden_act", "silu")
    fields.expect("attention_bias", False)
    fields.expect("mlp_bias", False)
    fields.expect("pretraining_tp", 1)
    fields.expect("use_sliding_window", False)
    fields.expect("rope_interleaved", False)
    fields.take("sliding_window", 0)  # without use_sliding_window it is not used
    kinds = set(fields.take("layer_types", ["full_attention"]))
    if kinds != {"full_attention"}:
        raise InputError(f"{fields.file}: layer_types {sorted(kinds)} are not supported")
    heads, width = fields.take("num_attention_heads"), fields.take("hidden_size")
    return ModelConfig(
        n_layers=fields.take("num_hidden_layers"),
        d_model=width,
        n_heads=heads,
        n_kv_heads=fields.take("num_key_value_heads", heads),
        head_dim=fields.take("head_dim", width // heads),
        d_ff=fields.take("intermediate_size"),
        context=fields.take("max_position_embeddings"),
        positions="rotary",
        rotary=rotary(fields, theta="rope_theta", fraction="partial_rotary_factor"),
        norm="rms",
        norm_eps=fields.take("rms_norm_eps", 1e-6),
        activation="swiglu",
        bias=bias,
        qk_norm=qk_norm,
        tied=fields.take("tie_word_embeddings", False),
    )


def write_llama(c: ModelConfig) -> dict[str, Any]:
    """Llama's fields of a shape. Raises InputError for heads that rotate only in part."""
    if c.rotary.fraction != 1.0:
        raise InputError(f"model.rotary.fraction={c.rotary.fraction} does not exist in Llama")
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


LLAMA = Family(
    model_type="llama",
    causal="LlamaForCausalLM",
    classifier="LlamaForSequenceClassification",
    base="model",
    names={
        "wte": "embed_tokens",
        "ln_f": "norm",
        "ln_1": "layers.{i}.input_layernorm",
        "ln_2": "layers.{i}.post_attention_layernorm",
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
    read=read_llama,
    write=write_llama,
)
QWEN2 = LLAMA._replace(
    model_type="qwen2",
    causal="Qwen2ForCausalLM",
    classifier="Qwen2ForSequenceClassification",
    read=lambda fields: read_llama(fields, bias="qkv"),
)
QWEN3 = LLAMA._replace(
    model_type="qwen3",
    causal="Qwen3ForCausalLM",
    classifier="Qwen3ForSequenceClassification",
    read=lambda fields: read_llama(fields, qk_norm=True),
)

FAMILIES = {family.model_type: family for family in (GPT2, NEOX, LLAMA, QWEN2, QWEN3)}


def family_of_checkpoint(config: Mapping[str, Any], file: str) -> Family:
    """The family that ``config.json`` names. Raises InputError listing the known ones."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(f"{file}: model_type {model_type!r} is not supported, only {[*FAMILIES]}")
    return FAMILIES[model_type]


def family_of_model(c: ModelConfig) -> Family:
    """The family that can express ``c``: so that an export loads as what it computes."""
    shape = (c.positions, c.norm, c.activation == "swiglu", c.bias, c.qk_norm)
    equal_heads = c.kv_heads == c.n_heads and c.width * c.n_heads == c.d_model
    if (
        equal_heads
        and shape == ("learned", "layer", False, "all", False)
        and not c.parallel_residual
    ):
        return GPT2
    if equal_heads and shape == ("rotary", "layer", False, "all", False):
        return NEOX
    # Biases of queries, keys and values tell a Qwen2, norms of heads a Qwen3; no Llama has either.
    rows = {("none", False): LLAMA, ("qkv", False): QWEN2, ("none", True): QWEN3}
    if shape[:3] == ("rotary", "rms", True) and shape[3:] in rows and not c.parallel_residual:
        return rows[shape[3:]]
    raise InputError(f"no model of transformers is like {c}")
