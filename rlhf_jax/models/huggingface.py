"""Hugging Face checkpoints in and out: ``config.json`` and safetensors, without torch."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models.families import family_of_model
from rlhf_jax.models.pretrained import (
    Imported,
    Place,
    Source,
    import_model,
    on_default_device,
)
from rlhf_jax.models.tensor_layout import Tensors, at, tensors_of
from rlhf_jax.models.transformer import unstack_blocks
from rlhf_jax.types import Params

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
SHARD_BYTES = 5 * 10**9


def is_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether ``folder`` looks like what ``save_pretrained`` writes."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        return False
    return "model_type" in _read_json(folder / "config.json")


# --- Reading ----------------------------------------------------------------------------------


def load_pretrained(folder: str | os.PathLike, place: Place = on_default_device) -> Imported:
    """The model in ``folder``. Raises InputError as ``import_model``, and for damaged files."""
    folder = Path(folder)
    where = _index(folder)
    bias = folder / "rlhf_jax.json"

    def shape(name: str) -> tuple[int, ...]:
        with _open(where[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def read(name: str) -> np.ndarray:
        # Opened for each tensor: a closed file gives its mapped pages back.
        with _open(where[name]) as file:
            return file.get_tensor(name).astype(np.float32, copy=False)

    return import_model(
        Source(
            file=str(folder),
            config=_read_json(folder / "config.json"),
            names=where.keys(),
            shape=shape,
            read=read,
            head_bias=_read_json(bias)["head_bias"] if bias.is_file() else 0.0,
        ),
        place,
    )


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
    kind: Literal["lm", "scalar"],
    dtype: Literal["float32", "bfloat16", "float16"],
    eos_id: int,
    pad_id: int | None,
) -> None:
    """Write ``config.json``, ``generation_config.json`` and the weights for transformers and vLLM.

    A classifier of transformers has no bias: a reward model's is kept in ``rlhf_jax.json``.
    """
    folder = Path(folder)
    family = family_of_model(config)
    trunk = params["trunk"]
    if "blocks" in trunk:
        trunk = unstack_blocks(trunk, config.n_layers)
    parts = {"lm": ("lm_head",), "scalar": ("head",)}[kind]
    params = {"trunk": trunk} | {name: params[name] for name in parts if name in params}
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
        if config.unused_rows:
            rows = len(trunk["wte"])
            generation["suppress_tokens"] = list(range(rows - config.unused_rows, rows))
        _write_json(folder / "generation_config.json", generation)
    else:
        _write_json(folder / "rlhf_jax.json", {"head_bias": float(params["head"]["bias"][0])})


def _write_weights(folder: Path, plan: Sequence[Tensors], params: Params, dtype: str) -> None:
    """One file, or shards of at most SHARD_BYTES with their index."""
    shards: list[list[Tensors]] = [[]]
    size = total = 0
    for entry in plan:
        bytes_ = at(params, entry.path).size * np.dtype(DTYPES[dtype]).itemsize
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
            parts = entry.write(np.asarray(at(params, entry.path)))
            for tensor, part in zip(entry.names, parts, strict=True):
                tensors[tensor] = np.ascontiguousarray(part.astype(DTYPES[dtype]))
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
