"""Hugging Face checkpoints in and out: ``config.json`` and safetensors, without torch."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import InputError
from rlhf_jax.interop.families import check_classifier, family_of_model
from rlhf_jax.interop.pretrained import (
    Imported,
    Place,
    Source,
    check_finite,
    import_model,
    on_default_device,
    shape_of,
)
from rlhf_jax.interop.tensor_names import Tensors, at, stacked, tensors_of, whole
from rlhf_jax.interop.weight_files import (
    HEAD_BIAS,
    find_weights,
    head_bias,
    open_weights,
    read_json,
)
from rlhf_jax.models.transformer import unstack_blocks
from rlhf_jax.types import Params

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
READ_DTYPES = ("F64", "F32", "F16", "BF16")
"""Names of safetensors; what quantisation writes (I8, U8, F8_E4M3) is no weight by itself."""
SHARD_BYTES = 5 * 10**9


def is_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether ``folder`` looks like what ``save_pretrained`` writes, its weights here or not."""
    path = Path(folder) / "config.json"
    return path.is_file() and "model_type" in read_json(path)


# --- Reading ----------------------------------------------------------------------------------


def read_shape(folder: str | os.PathLike) -> tuple[ModelConfig, int]:
    """(shape, rows of embedding) of the model in ``folder``, without its weights."""
    _, shape, vocab_size = shape_of(read_json(Path(folder) / "config.json"), str(folder))
    return shape, vocab_size


def load_pretrained(folder: str | os.PathLike, place: Place = on_default_device) -> Imported:
    """The model in ``folder``. Raises InputError as ``import_model``, and for damaged files."""
    folder = Path(folder)
    weights = find_weights(folder)

    def shape(name: str) -> tuple[int, ...]:
        with open_weights(weights.files[name]) as file:
            return tuple(file.get_slice(weights.prefix + name).get_shape())

    def read(name: str) -> np.ndarray:
        # Opened for each tensor: a closed file gives its mapped pages back.
        with open_weights(weights.files[name]) as file:
            dtype = file.get_slice(weights.prefix + name).get_dtype()
            if dtype not in READ_DTYPES:
                raise InputError(
                    f"{weights.files[name]}: {name} is stored as {dtype}, only "
                    f"{', '.join(READ_DTYPES)} are read; export the model without quantisation"
                )
            return file.get_tensor(weights.prefix + name).astype(np.float32, copy=False)

    imported = import_model(
        Source(
            file=str(folder),
            config=read_json(folder / "config.json"),
            names=weights.files.keys(),
            shape=shape,
            read=read,
            head_bias=head_bias(folder),
        ),
        place,
    )
    return imported._replace(unread=weights.unread, prefix=weights.prefix)


# --- Writing ----------------------------------------------------------------------------------


def save_pretrained(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: Params,
    *,
    kind: Literal["lm", "scalar"],
    dtype: Literal["float32", "bfloat16", "float16"],
    bos_id: int | None,
    end_ids: Sequence[int],
    pad_id: int | None,
) -> None:
    """Write ``config.json``, ``generation_config.json`` and the weights for transformers and vLLM.

    Sampling stops at all of ``end_ids``; the first ends a plain text. A classifier of transformers
    has no bias: a reward model's is kept in ``rlhf_jax.json``. Raises InputError, before anything
    is written, for values that ``dtype`` cannot hold, and by ``check_classifier``.
    """
    check_classifier(config, kind)
    folder, family = Path(folder), family_of_model(config)
    trunk = params["trunk"]
    if "blocks" in trunk:
        trunk = unstack_blocks(trunk, config.n_layers)
    kept = ("trunk", {"lm": "lm_head", "scalar": "head"}[kind])
    params = {name: (params | {"trunk": trunk})[name] for name in kept if name in params}
    raw = {
        "architectures": [family.classifier if kind == "scalar" else family.causal],
        "model_type": family.model_type,
        "vocab_size": len(trunk["wte"]),
        **family.write(config),
        "tie_word_embeddings": config.tied,
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": bos_id,
        "eos_token_id": end_ids[0],
        "pad_token_id": pad_id,
        "use_cache": True,
    }
    if kind == "scalar":
        raw |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    plan = list(tensors_of(family, config, params, bare=False))
    for entry in plan:
        parts = entry.write(np.asarray(at(params, entry.path)))
        for name, part in zip(entry.names, parts, strict=True):
            _check_holds(name, part, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, plan, params, dtype)
    _write_json(folder / "config.json", raw)
    if kind == "lm":
        generation = {
            "bos_token_id": bos_id,
            "eos_token_id": list(end_ids),
            "pad_token_id": pad_id,
            "do_sample": True,
        }
        if config.unused_rows:
            rows = len(trunk["wte"])
            generation["suppress_tokens"] = list(range(rows - config.unused_rows, rows))
        _write_json(folder / "generation_config.json", generation)
    else:
        _write_json(folder / HEAD_BIAS, {"head_bias": float(params["head"]["bias"][0])})


def _check_holds(name: str, value: np.ndarray, dtype: str) -> None:
    """Raise InputError for values that are no finite numbers, or would be none in ``dtype``."""
    check_finite(name, value)
    with np.errstate(over="ignore"):
        if np.isfinite(np.array([value.min(), value.max()]).astype(DTYPES[dtype])).all():
            return
        count = int((~np.isfinite(value.astype(DTYPES[dtype]))).sum())
    raise InputError(
        f"{dtype} cannot hold {count} of {value.size} values of {name}, which reach "
        f"{np.abs(value).max():.6g}; export with another --dtype"
    )


def _write_weights(folder: Path, plan: Sequence[Tensors], params: Params, dtype: str) -> None:
    """One file, or shards of at most SHARD_BYTES with their index."""
    shards: list[list[Tensors]] = [[]]
    size = total = 0
    for entry in plan:
        bytes_ = at(params, entry.path).size * np.dtype(DTYPES[dtype]).itemsize
        # The parts of a tensor follow each other and stay together.
        begins = not (shards[-1] and whole(entry.names[0]) == whole(shards[-1][-1].names[0]))
        if size + bytes_ > SHARD_BYTES and shards[-1] and begins:
            shards, size = [*shards, []], 0
        shards[-1].append(entry)
        size, total = size + bytes_, total + bytes_
    weight_map = {}
    for number, entries in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # transformers expects this name where there is no index.
        name = "model.safetensors" if len(shards) == 1 else name
        tensors = {}
        for entry in entries:
            parts = entry.write(np.asarray(at(params, entry.path)))
            for tensor, part in zip(entry.names, parts, strict=True):
                tensors[tensor] = np.ascontiguousarray(part.astype(DTYPES[dtype]))
        tensors = stacked(tensors)
        # transformers asks whose layout a file has.
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
