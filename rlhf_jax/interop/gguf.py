"""GGUF files (llama.cpp) of the Llama family: dequantised, under the names of Hugging Face.

llama.cpp rotates neighbouring pairs of a head's dimensions, Hugging Face its two halves, so the
rows of the query and key projections are put back in order.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.sentencepiece import PieceKind, ScoredPiece
from rlhf_jax.data.vocabularies import Merged, Scored
from rlhf_jax.errors import InputError, check, check_fetched
from rlhf_jax.interop.config_fields import KINDS
from rlhf_jax.interop.pretrained import Imported, Source, import_model

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

KNOWN = {
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
"""Fields of the architecture, after its name, and what Hugging Face calls them."""
REQUIRED = {
    "block_count": int,
    "embedding_length": int,
    "feed_forward_length": int,
    "attention.head_count": int,
    "context_length": int,
    "attention.layer_norm_rms_epsilon": float,
}
EOS = "tokenizer.ggml.eos_token_id"
GUESSED = (
    ": old files lack it, and llama.cpp guesses; convert the original again with today's "
    "convert_hf_to_gguf.py, or give its folder instead"
)
UNREADABLE = (ValueError, OSError, IndexError, KeyError, TypeError, OverflowError, MemoryError)
"""What gguf's reader meets in a file that is cut off, or none of its kind."""


class Vocabulary(NamedTuple):
    """The tokenizer inside a GGUF file."""

    tokens: list[str]
    how: Merged | Scored
    """How texts are made of them."""
    special: list[str]
    added: list[str]
    """Whole in every text too, but no special tokens: llama.cpp's "user defined"."""
    eos: str
    ends: list[int]
    """What else ends an answer."""
    bos: str | None
    begins: bool
    """Whether every text begins with ``bos``."""
    chat_template: str | None


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether this is a file whose name ends in .gguf."""
    return os.path.isfile(path) and str(path).endswith(".gguf")


class Header(NamedTuple):
    """The named fields of a GGUF file."""

    file: str
    fields: dict[str, Any]

    def need(self, name: str, kind: type, *, advice: str = "") -> Any:
        """The field's value. Raises InputError if it is missing or of another type."""
        value = self.fields.get(name)
        check(value is not None, f"{self.file}: the field {name!r} is missing{advice}")
        negative = kind is int and isinstance(value, int) and value < 0
        check(
            isinstance(value, kind) and not negative,
            f"{self.file}: {name} is {str(value)[:60]!r}, expected {KINDS[kind]}",
        )
        return value


def load_gguf(path: str | os.PathLike) -> tuple[Imported, Vocabulary]:
    """The model of a GGUF file in float32, and its vocabulary.

    Raises InputError for another architecture, tokenizer or quantisation, for a field that is
    missing, and as ``import_model`` does.
    """
    reader = _open(path)
    header = Header(str(path), {name: field.contents() for name, field in reader.fields.items()})
    architecture = header.need("general.architecture", str)
    check(
        architecture == "llama",
        f"{path}: architecture {architecture!r} is not supported in GGUF, only 'llama'",
    )
    parts = header.fields.get("split.count", 0)
    check(
        parts < 2,
        f"{path} is one of the {parts} files of a model: join them (llama-gguf-split --merge)",
    )
    vocabulary = _vocabulary(header)
    tensors = {_rename(tensor.name): tensor for tensor in reader.tensors}
    config = _config(header, tensors)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def read(name: str) -> np.ndarray:
        value = _dequantised(str(path), tensors[name])
        projection = name.split(".")[-2]
        return unpair(value, heads[projection]) if projection in heads else value

    def shape(name: str) -> tuple[int, ...]:
        # ggml lists dimensions from the innermost on.
        return tuple(int(n) for n in tensors[name].shape[::-1])

    source = Source(str(path), config, tensors.keys(), shape, read, head_bias=0.0)
    return import_model(source), vocabulary


def _dequantised(file: str, tensor: Any) -> np.ndarray:
    """A tensor of a GGUF file in float32. Raises InputError for a type without a rule."""
    # Here and not above: the package is an extra, and most runs read no GGUF.
    from gguf.quants import dequantize

    try:
        value = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise InputError(
            f"{file}: {tensor.name} is stored as {tensor.tensor_type.name}, which cannot be "
            "read; take the file in F16, BF16 or Q8_0"
        ) from None
    return value.astype(np.float32, copy=False)


def unpair(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (x0 y0 x1 y1 ...) of each head to (x0 x1 ... y0 y1 ...)."""
    # Of each head by itself: the rows of a projection are its heads, one after the other.
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _config(header: Header, names: Collection[str]) -> dict[str, Any]:
    """The fields of the architecture under the names of Hugging Face; what is left is refused."""
    harmless = {"rope.dimension_count", "attention.value_length"}
    own = {
        name.removeprefix("llama."): value
        for name, value in header.fields.items()
        if name.startswith("llama.")
    }
    for name, kind in REQUIRED.items():
        header.need(f"llama.{name}", kind)
    config: dict[str, Any] = {"model_type": "llama", "vocab_size": len(_tokens(header))}
    # Without the field every head has its own keys, as in llama.cpp; it is overwritten where given.
    config["num_key_value_heads"] = own["attention.head_count"]
    config |= {KNOWN[name]: value for name, value in own.items() if name in KNOWN}
    unknown = {name: v for name, v in own.items() if name not in KNOWN and name not in harmless}
    # llama.cpp counts rotated dimensions, Hugging Face their share of a head.
    width = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config["partial_rotary_factor"] = own.get("rope.dimension_count", width) / width
    # What is left under its own name is refused as an unknown field.
    return config | unknown | {"tie_word_embeddings": "lm_head.weight" not in names}


def _rename(name: str) -> str:
    parts = name.split(".")
    # blk.7.attn_q.weight → model.layers.7.self_attn.q_proj.weight
    layer = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    module, kind = parts[-2:]
    return f"{layer}{NAMES.get(module, module)}.{kind}"


def _tokens(header: Header) -> list[str]:
    return header.need("tokenizer.ggml.tokens", list)


def _vocabulary(header: Header) -> Vocabulary:
    found = header.need("tokenizer.ggml.model", str)
    check(
        found in ("gpt2", "llama"),
        f"{header.file}: tokenizer {found!r} is neither a byte-level BPE ('gpt2') nor "
        "SentencePiece's ('llama')",
    )
    tokens, kinds = _tokens(header), header.need("tokenizer.ggml.token_type", list)
    check(
        len(kinds) == len(tokens) == len(set(tokens)),
        f"{header.file}: expected as many different tokens as types of tokens, found "
        f"{len(set(tokens))} of {len(tokens)} and {len(kinds)}",
    )
    eos = _token_id(header, "eos", len(tokens))
    if eos is None:
        raise InputError(f"{header.file}: the field {EOS!r} is missing{GUESSED}")
    bos, turn = (_token_id(header, name, len(tokens)) for name in ("bos", "eot"))
    # llama.cpp's own default: texts of SentencePiece begin with it.
    begins = bool(header.fields.get("tokenizer.ggml.add_bos_token", found == "llama"))
    check(
        bos is not None or not begins,
        f"{header.file}: add_bos_token is true, but tokenizer.ggml.bos_token_id is missing",
    )

    def of_kind(kind: PieceKind) -> list[str]:
        return [token for token, k in zip(tokens, kinds, strict=True) if k == kind]

    unknown = of_kind(PieceKind.UNKNOWN) if found == "llama" else []
    return Vocabulary(
        tokens=tokens,
        how=_scored(header, kinds) if found == "llama" else _merged(header),
        special=of_kind(PieceKind.CONTROL) + unknown,
        added=of_kind(PieceKind.USER_DEFINED),
        eos=tokens[eos],
        # A chat model ends its turn with another token than a text.
        ends=[turn] if turn not in (None, eos) else [],
        bos=None if bos is None else tokens[bos],
        begins=begins,
        chat_template=header.fields.get("tokenizer.chat_template"),
    )


def _merged(header: Header) -> Merged:
    pre = header.need("tokenizer.ggml.pre", str, advice=GUESSED)
    return Merged(header.need("tokenizer.ggml.merges", list), pre)


def _scored(header: Header, kinds: Sequence[int]) -> Scored:
    tokens, scores = _tokens(header), header.need("tokenizer.ggml.scores", list)
    check(
        len(scores) == len(tokens),
        f"{header.file}: tokenizer.ggml.scores has {len(scores)} numbers, expected one for each of "
        f"the {len(tokens)} tokens",
    )
    prefix = header.fields.get("tokenizer.ggml.add_space_prefix", True)
    pieces = map(ScoredPiece, tokens, scores, kinds)
    # llama.cpp puts a space behind every special token, too.
    return Scored(list(pieces), prefix="always" if prefix else "never")


def _token_id(header: Header, name: str, count: int) -> int | None:
    """The id of a special token, if the file names it. Raises InputError for one of no token."""
    field = f"tokenizer.ggml.{name}_token_id"
    if header.fields.get(field) is None:
        return None
    token_id = header.need(field, int)
    check(token_id < count, f"{header.file}: {field} is {token_id}, but there are {count} tokens")
    return token_id


def _open(path: str | os.PathLike):
    check_fetched(Path(path))
    try:
        import gguf
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: reading GGUF needs the package gguf (pip install -e '.[gguf]')"
        ) from None
    try:
        return gguf.GGUFReader(path)
    except UNREADABLE as error:
        raise InputError(f"{path} is not a whole GGUF file: {error}") from error
