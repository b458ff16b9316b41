"""Hugging Face checkpoints in and out: ``config.json`` and safetensors, without torch.

Tensors are read and written one after the other, so that the whole model is in memory once. Every
tensor is checked: a missing, extra or misshapen one is an error, never a model with random parts.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models.families import Family, Fields, family_of_checkpoint, family_of_model
from rlhf_jax.models.tensor_layout import Tensors, parameter_shapes, tensors_of
from rlhf_jax.models.transformer import as_layout, unstack_blocks
from rlhf_jax.types import Params

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SHARD_BYTES = 5 * 10**9
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Masks and frequencies that old checkpoints carry along."""


class Imported(NamedTuple):
    model: ModelConfig
    vocab_size: int
    params: Params
    """{"trunk", "lm_head"?}, or {"trunk", "head"} of a sequence classifier with one label."""


def is_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether ``folder`` looks like what ``save_pretrained`` writes."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        return False
    return "model_type" in _read_json(folder / "config.json")


# --- Reading ----------------------------------------------------------------------------------


def load_pretrained(folder: str | os.PathLike) -> Imported:
    """The model in ``folder``, in float32.

    Raises InputError for an unknown architecture or config field, a tensor that is missing, extra
    or of another shape, and a damaged file.
    """
    folder = Path(folder)
    file = str(folder / "config.json")
    raw = _read_json(folder / "config.json")
    family = family_of_checkpoint(raw, file)
    fields = Fields(raw, file)
    vocab_size = fields.take("vocab_size")
    config = family.read(fields)
    fields.done()
    kind = _kind(raw, family, file)
    where = _index(folder)
    bare = not any(name.startswith(f"{family.base}.") for name in where)
    shapes = parameter_shapes(config, vocab_size, kind)
    plan = list(tensors_of(family, config, shapes, bare=bare))
    _check_names(folder, family, plan, where, tied=config.tied)
    params: Params = {}
    for entry in plan:
        struct = _at(shapes, entry.path)
        expected = [part.shape for part in jax.eval_shape(entry.write, struct)]
        parts = [_read_tensor(where[n], n, s) for n, s in zip(entry.names, expected, strict=True)]
        _put(params, entry.path, jnp.asarray(np.ascontiguousarray(entry.read(*parts))))
    if kind == "scalar":
        extra = folder / "rlhf_jax.json"
        bias = _read_json(extra)["head_bias"] if extra.is_file() else 0.0
        params["head"]["bias"] = jnp.full(1, bias, jnp.float32)
    return Imported(config, vocab_size, params | {"trunk": as_layout(params["trunk"], config)})


def _kind(raw: dict, family: Family, file: str) -> Literal["lm", "scalar"]:
    named = (raw.get("architectures") or [family.causal])[0]
    if named == family.classifier:
        labels = len(raw.get("id2label", ())) or raw.get("num_labels", 2)
        if labels != 1:
            raise InputError(f"{file}: {named} has {labels} labels, a reward model has 1")
        return "scalar"
    known = (family.causal, family.causal.replace("LMHead", "").replace("ForCausalLM", ""))
    if named not in known and named != family.causal.replace("ForCausalLM", "Model"):
        raise InputError(
            f"{file}: architecture {named!r} is not supported, only "
            f"{family.causal!r} and {family.classifier!r}"
        )
    return "lm"


def _index(folder: Path) -> dict[str, Path]:
    """File of each tensor, whether there is one file or an index of shards."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _read_json(index)["weight_map"]
        missing = sorted({name for name in names.values() if not (folder / name).is_file()})
        if missing:
            raise InputError(f"{index} names {missing[0]}, which is not there")
        return {tensor: folder / name for tensor, name in names.items()}
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise InputError(f"{folder}: expected model.safetensors or its index, found {len(files)}")
    with _open(files[0]) as file:
        return dict.fromkeys(file.keys(), files[0])


def _check_names(folder: Path, family: Family, plan, where, *, tied: bool) -> None:
    wanted = {name for entry in plan for name in entry.names}
    missing = sorted(wanted - where.keys())
    ignored = lambda name: name.endswith(BUFFERS) or "rotary_emb" in name
    extra = sorted(name for name in where.keys() - wanted if not ignored(name))
    head = f"{family.lm_head}.weight"
    if tied and head in extra:
        embedding = next(entry.names[0] for entry in plan if entry.path[-1] == "wte")
        same = np.array_equal(
            _read_tensor(where[head], head), _read_tensor(where[embedding], embedding)
        )
        if not same:
            raise InputError(f"{folder}: {head} differs from {embedding}, but the config ties them")
        extra.remove(head)
    if missing or extra:
        some = lambda names: (
            ", ".join(names[:5]) + (f" and {len(names) - 5} more" * (len(names) > 5))
        )
        found = [
            f"{word} {some(names)}"
            for word, names in (("missing", missing), ("unexpected", extra))
            if names
        ]
        raise InputError(f"{folder}: tensors do not fit config.json: {'; '.join(found)}")


def _read_tensor(path: Path, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    # Opened for each tensor: a closed file gives its mapped pages back.
    with _open(path) as file:
        found = tuple(file.get_slice(name).get_shape())
        if shape is not None and found != shape:
            raise InputError(f"{path}: {name} has shape {found}, config.json asks for {shape}")
        return file.get_tensor(name).astype(np.float32)


def _open(path: Path):
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error


# --- Writing ----------------------------------------------------------------------------------


def save_pretrained(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: Params,
    *,
    dtype: Literal["float32", "bfloat16", "float16"],
    eos_id: int,
    pad_id: int | None,
) -> None:
    """Write ``config.json``, ``generation_config.json`` and the weights for transformers and vLLM.

    A classifier of transformers has no bias: a reward model's is kept in ``rlhf_jax.json``.
    """
    folder = Path(folder)
    family = family_of_model(config)
    kind = "scalar" if "head" in params else "lm"
    trunk = params["trunk"]
    if "blocks" in trunk:
        trunk = unstack_blocks(trunk, config.n_layers)
    params = params | {"trunk": trunk}
    raw = {
        "architectures": [family.classifier if kind == "scalar" else family.causal],
        "model_type": family.model_type,
        "vocab_size": len(trunk["wte"]),
        **family.write(config),
        "tie_word_embeddings": config.tied,
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "use_cache": True,
    }
    if kind == "scalar":
        raw |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, list(tensors_of(family, config, params, bare=False)), params, dtype)
    _write_json(folder / "config.json", raw)
    if kind == "lm":
        generation = {"eos_token_id": [eos_id], "pad_token_id": pad_id, "do_sample": True}
        _write_json(folder / "generation_config.json", generation)
    else:
        _write_json(folder / "rlhf_jax.json", {"head_bias": float(params["head"]["bias"][0])})


def _write_weights(folder: Path, plan: Sequence[Tensors], params: Params, dtype: str) -> None:
    """One file, or shards of at most SHARD_BYTES with their index."""
    shards: list[list[Tensors]] = [[]]
    size = total = 0
    for entry in plan:
        bytes_ = _at(params, entry.path).size * np.dtype(DTYPES[dtype]).itemsize
        if size + bytes_ > SHARD_BYTES and shards[-1]:
            shards, size = [*shards, []], 0
        shards[-1].append(entry)
        size, total = size + bytes_, total + bytes_
    weight_map = {}
    for number, entries in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else name
        tensors = {}
        for entry in entries:
            parts = entry.write(np.asarray(_at(params, entry.path)))
            for tensor, part in zip(entry.names, parts, strict=True):
                tensors[tensor] = np.ascontiguousarray(part.astype(DTYPES[dtype]))
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _at(tree: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: Params, path: tuple[str, ...], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
