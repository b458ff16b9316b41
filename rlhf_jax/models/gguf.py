"""GGUF files (llama.cpp) of the Llama family: dequantised, under the names of Hugging Face.

llama.cpp rotates neighbouring pairs of a head's dimensions, Hugging Face its two halves, so the
rows of the query and key projections are put back in order.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.errors import InputError
from rlhf_jax.models.pretrained import Imported, Source, import_model

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
}


class Vocabulary(NamedTuple):
    """The tokenizer inside a GGUF file."""

    pre: str
    """How text is split before BPE, by llama.cpp's name."""
    tokens: list[str]
    merges: list[str]
    special: list[str]
    eos: str
    chat_template: str | None


def is_gguf(path: str | os.PathLike) -> bool:
    return os.path.isfile(path) and str(path).endswith(".gguf")


def load_gguf(path: str | os.PathLike) -> tuple[Imported, Vocabulary]:
    """The model of a GGUF file in float32, and its vocabulary.

    Raises InputError for another architecture or tokenizer, and as ``import_model`` does.
    """
    reader = _open(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        found = fields["general.architecture"]
        raise InputError(f"{path}: architecture {found!r} is not supported in GGUF, only 'llama'")
    config = _config(fields, {tensor.name for tensor in reader.tensors})
    tensors = {_rename(tensor.name): tensor for tensor in reader.tensors}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def read(name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = tensors[name]
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        projection = name.split(".")[-2]
        return unpair(value, heads[projection]) if projection in heads else value

    shape = lambda name: tuple(int(n) for n in tensors[name].shape[::-1])
    source = Source(str(path), config, tensors.keys(), shape, read, head_bias=0.0)
    return import_model(source), _vocabulary(path, fields)


def unpair(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (x0 y0 x1 y1 ...) of each head to (x0 x1 ... y0 y1 ...)."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _config(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    known = {
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "context_length": "max_position_embeddings",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "rope.freq_base": "rope_theta",
        "vocab_size": "vocab_size",
        "attention.key_length": "head_dim",
    }
    harmless = {"rope.dimension_count", "attention.value_length"}
    own = {name.removeprefix("llama."): v for name, v in fields.items() if name[:6] == "llama."}
    config: dict[str, Any] = {"model_type": "llama", "vocab_size": len(_tokens(fields))}
    config |= {known[name]: value for name, value in own.items() if name in known}
    unknown = {name: v for name, v in own.items() if name not in known and name not in harmless}
    width = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config["partial_rotary_factor"] = own.get("rope.dimension_count", width) / width
    # What is left under its own name is refused as an unknown field.
    return config | unknown | {"tie_word_embeddings": "output.weight" not in names}


def _rename(name: str) -> str:
    parts = name.split(".")
    layer = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    module, kind = parts[-2:]
    return f"{layer}{NAMES.get(module, module)}.{kind}"


def _tokens(fields: dict[str, Any]) -> list[str]:
    return fields["tokenizer.ggml.tokens"]


def _vocabulary(path: str | os.PathLike, fields: dict[str, Any]) -> Vocabulary:
    if fields["tokenizer.ggml.model"] != "gpt2":
        found = fields["tokenizer.ggml.model"]
        raise InputError(f"{path}: tokenizer {found!r} is no byte-level BPE, expected 'gpt2'")
    tokens, kinds = _tokens(fields), fields["tokenizer.ggml.token_type"]
    control = 3
    return Vocabulary(
        pre=fields["tokenizer.ggml.pre"],
        tokens=tokens,
        merges=fields["tokenizer.ggml.merges"],
        special=[token for token, kind in zip(tokens, kinds, strict=True) if kind == control],
        eos=tokens[fields["tokenizer.ggml.eos_token_id"]],
        chat_template=fields.get("tokenizer.chat_template"),
    )


def _open(path: str | os.PathLike):
    try:
        import gguf
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: reading GGUF needs the package gguf (pip install -e '.[gguf]')"
        ) from None
    try:
        return gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise InputError(f"{path} is not a whole GGUF file: {error}") from error
