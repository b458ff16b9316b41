"""LoRA adapters as PEFT keeps them: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT stores A as [r, in] and B as [out, r] under the module's name in transformers. Where one of our
dense layers is several of theirs (queries, keys and values of Llama), theirs have an A each: read,
they are stacked into one A of the summed rank, with B zero outside each one's own block.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import InputError, check, check_fetched
from rlhf_jax.interop.families import Family, check_classifier, family_of_model
from rlhf_jax.interop.pretrained import check_finite
from rlhf_jax.interop.tensor_names import Tensors, at, parameter_shapes, put, tensors_of
from rlhf_jax.interop.weight_files import HEAD_BIAS, head_bias, read_json
from rlhf_jax.models.lora import combine
from rlhf_jax.models.transformer import as_layout, unstack_blocks
from rlhf_jax.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "alora_invocation_tokens": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}
"""Settings that change what an adapter computes, and the value that leaves it plain LoRA."""


class Adapter(NamedTuple):
    """What a folder of PEFT holds, checked as far as it can be without the base model."""

    folder: Path
    base: str
    """``base_model_name_or_path``: a folder, or a name on the hub."""
    scale: float
    """α / r, or α / √r if ``use_rslora``."""
    tensors: dict[str, np.ndarray]


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter: it has an adapter_config.json."""
    return (Path(folder) / CONFIG).is_file()


# --- Reading --------------------------------------------------------------------------------------


def base_of(folder: str | os.PathLike) -> str:
    """The model that the adapter in ``folder`` names as the one below it; empty if none."""
    path = Path(folder) / CONFIG
    base = read_json(path).get("base_model_name_or_path") or ""
    itself = isinstance(base, str) and base and Path(base).resolve() == path.parent.resolve()
    check(
        isinstance(base, str) and not itself,
        f"{path}: base_model_name_or_path is {base!r}, expected another model's folder",
    )
    return base


def read_adapter(folder: str | os.PathLike) -> Adapter:
    """Raises InputError for damaged files and for what is not plain LoRA of one scale."""
    folder = Path(folder)
    check_fetched(folder / WEIGHTS)
    config = read_json(folder / CONFIG)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} is not a whole PEFT adapter: {error}") from error
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{folder / CONFIG}: expected peft_type='LORA', found {config.get('peft_type')!r}"
        )
    for name, plain in UNSUPPORTED.items():
        if config.get(name, plain) not in (plain, None):
            raise InputError(f"{folder / CONFIG}: {name}={config[name]!r} is not supported")
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"] not in (
        "gaussian",
        "orthogonal",
    ):
        raise InputError(
            f"{folder / CONFIG}: init_lora_weights={config['init_lora_weights']!r} changes the "
            "base model, which is not supported"
        )
    scale = _one_scale(folder, config, tensors)
    # Adapters train in float32, whatever the file has.
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        check_finite(f"{folder / WEIGHTS}: {name}", tensor)
    return Adapter(folder, base_of(folder), scale, tensors)


def _one_scale(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> float:
    """The scale of every module, which must be the same; its rank must be that of its tensor."""
    ranks = {
        name.removesuffix(".lora_A.weight"): len(tensor)
        for name, tensor in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    for module, rank in ranks.items():
        said = _setting(folder, config, "r", "rank_pattern", module)
        check(
            said == rank,
            f"{folder / CONFIG}: of {module} the rank is {said}, but its lora_A has {rank} rows",
        )
    # rsLoRA divides by √r, so that the update's size does not shrink with the rank.
    power = 0.5 if config.get("use_rslora") else 1.0
    scales = {
        _setting(folder, config, "lora_alpha", "alpha_pattern", module) / rank**power
        for module, rank in ranks.items()
    }
    if len(scales) > 1:
        raise InputError(
            f"{folder / CONFIG}: alpha_pattern and rank_pattern give the scales {sorted(scales)}, "
            "only one for all modules is supported"
        )
    return scales.pop() if scales else 1.0


def _setting(
    folder: Path, config: Mapping[str, Any], name: str, patterns: str, module: str
) -> int | float:
    """A number over 0 of one module, by the first pattern that fits it."""
    setting, where = config.get(name), name
    for pattern, value in (config.get(patterns) or {}).items():
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise InputError(
                f"{folder / CONFIG}: {patterns}: {pattern!r} is no regular expression: {error}"
            ) from None
        if fits:
            setting, where = value, f"{patterns} of {pattern!r}"
            break
    number = isinstance(setting, int | float) and not isinstance(setting, bool)
    if setting is None or not number or not 0 < setting < float("inf"):
        raise InputError(f"{folder / CONFIG}: {where} is {setting!r}, expected a number over 0")
    return setting


def load_adapter(
    adapter: Adapter, model: ModelConfig, vocab_size: int, params: Params
) -> tuple[Params, Literal["lm", "scalar"]]:
    """``params`` of the base model with the adapters, and the kind of model that it is then.

    A saved ``score`` head makes a language model a reward model. Raises InputError for a tensor
    that does not fit the base model.
    """
    family = family_of_model(model)
    # Emptied as layers take their pairs: what is left at the end belongs to no layer of this model.
    left = dict(adapter.tensors)
    found: Params = {}
    for entry, shapes in _kernels(family, model, vocab_size):
        pair = _read_pair(adapter, entry, shapes, left, family)
        if pair is not None:
            put(found, (*entry.path[:-1], "lora_a"), pair[0])
            put(found, (*entry.path[:-1], "lora_b"), pair[1])
    kind, parts = "lm", {k: params[k] for k in ("trunk", "lm_head", "head") if k in params}
    if "head" in parts:
        kind = "scalar"
    score = left.pop(f"{PREFIX}score.weight", None)
    if score is not None:
        if score.shape != (1, model.d_model):
            raise InputError(
                f"{adapter.folder / WEIGHTS}: score.weight has shape {score.shape}, expected "
                f"{(1, model.d_model)}"
            )
        bias = jnp.full(1, head_bias(adapter.folder), jnp.float32)
        head = {"kernel": jnp.asarray(score.T), "bias": bias}
        kind, parts = "scalar", {"trunk": params["trunk"], "head": head}
    if left or not found:
        names = ", ".join(sorted(left)[:5]) or "none"
        raise InputError(
            f"{adapter.folder / WEIGHTS}: tensors that are no adapter of this {family.model_type} "
            f"model: {names}"
        )
    adapters = as_layout(found["trunk"], model)
    return parts | {"trunk": combine(params["trunk"], adapters)}, kind


def _kernels(
    family: Family, model: ModelConfig, vocab_size: int
) -> Iterator[tuple[Tensors, list[tuple[int, int]]]]:
    """Where the kernel of each dense layer lies, and the (out, in) of each of their modules."""
    check(
        not family.stacked,
        f"adapters of {family.model_type} models are not exchanged with PEFT: it has one for "
        f"{', '.join(family.stacked)}, where ours are two; merge them (--part model)",
    )
    trunk = parameter_shapes(model, vocab_size, "lm")["trunk"]
    for entry in tensors_of(family, model, {"trunk": trunk}, bare=False):
        if entry.path[-1] == "kernel":
            theirs = jax.eval_shape(entry.write, at({"trunk": trunk}, entry.path))
            # GPT-2's Conv1D keeps [in, out], all others PyTorch's [out, in].
            swap = 1 if family.kernels == "out_in" else -1
            yield entry, [tensor.shape[::swap] for tensor in theirs]


def _read_pair(
    adapter: Adapter,
    entry: Tensors,
    shapes: list[tuple[int, int]],
    left: dict[str, np.ndarray],
    family: Family,
) -> tuple[Array, Array] | None:
    """A [in, r] and B [r, out] of one of our dense layers, taken from ``left``; None without."""
    parts = []
    for name, (outputs, inputs) in zip(entry.names, shapes, strict=True):
        module = PREFIX + name.removesuffix(".weight")
        a, b = (left.pop(f"{module}.lora_{x}.weight", None) for x in "AB")
        if a is None or b is None:
            check(a is b, f"{adapter.folder / WEIGHTS}: {module} has only one of lora_A, lora_B")
            a, b = np.zeros((0, inputs), np.float32), np.zeros((outputs, 0), np.float32)
        if a.shape[1] != inputs or b.shape != (outputs, len(a)):
            raise InputError(
                f"{adapter.folder / WEIGHTS}: {module} has lora_A {a.shape} and lora_B {b.shape}, "
                f"but the base model's weight is {(outputs, inputs)}"
            )
        parts.append((a, b))
    present = [a for a, _ in parts if len(a)]
    if not present:
        return None
    if all(np.array_equal(a, present[0]) for a in present):  # one A for all, as ours are written
        a, starts, rank = present[0], [0] * len(parts), len(present[0])
    else:
        starts = np.cumsum([0, *(len(a) for a, _ in parts)])[:-1].tolist()
        a, rank = np.concatenate([a for a, _ in parts]), sum(len(a) for a, _ in parts)
    blocks = []
    for (_, b), start in zip(parts, starts, strict=True):
        block = np.zeros((len(b), rank), np.float32)
        # Zero outside: a part of our layer then reads only the A that was its own.
        block[:, start : start + b.shape[1]] = b
        blocks.append(block if family.kernels == "out_in" else block.T)
    return jnp.asarray(a.T), jnp.asarray(np.ascontiguousarray(entry.read(*blocks)))


# --- Writing --------------------------------------------------------------------------------------


def save_adapter(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: Params,
    *,
    vocab_size: int,
    kind: Literal["lm", "scalar"],
    base: str,
) -> None:
    """Write the adapters of ``params`` (and a scalar head) for PEFT; ``base`` names their model.

    Raises InputError for a reward model whose score is a mean (``check_classifier``).
    """
    folder = Path(folder)
    family = family_of_model(config)
    check_classifier(config, kind)
    trunk = params["trunk"]
    trunk = unstack_blocks(trunk, config.n_layers) if "blocks" in trunk else trunk
    tensors: dict[str, np.ndarray] = {}
    for entry, _ in _kernels(family, config, vocab_size):
        layer = at({"trunk": trunk}, entry.path[:-1])
        if "lora_a" in layer:
            tensors |= _write_pair(entry, layer, family)
    if kind == "scalar":
        tensors[f"{PREFIX}score.weight"] = np.asarray(params["head"]["kernel"]).T
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name]
    ranks = {m: len(tensors[f"{m}.lora_A.weight"]) for m in modules}
    # PEFT has one rank and a list of exceptions: the most frequent makes the list short.
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT matches the end of a module's name, the same in every layer.
    suffixes = {module: ".".join(module.split(".")[-2:]) for module in modules}
    pattern = {suffixes[module]: rank for module, rank in ranks.items() if rank != usual}
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if kind == "scalar" else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": usual,
        "lora_alpha": config.lora_scale * usual,
        "rank_pattern": pattern,
        "alpha_pattern": {name: config.lora_scale * rank for name, rank in pattern.items()},
        "target_modules": sorted({*suffixes.values()}),
        "modules_to_save": ["score"] if kind == "scalar" else None,
        "fan_in_fan_out": family.kernels == "in_out",
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if kind == "scalar":
        bias = float(params["head"]["bias"][0])
        (folder / HEAD_BIAS).write_text(json.dumps({"head_bias": bias}) + "\n")


def _write_pair(entry: Tensors, layer: Params, family: Family) -> dict[str, np.ndarray]:
    """One A and B for each of their modules; a part keeps the ranks that reach it."""
    a = np.asarray(layer["lora_a"]).T
    parts = [np.asarray(b) for b in entry.write(np.asarray(layer["lora_b"]))]
    parts = parts if family.kernels == "out_in" else [b.T for b in parts]
    # A rank whose B is zero in a part says nothing there: so the stacked A is taken apart again.
    reached = [b.any(axis=0) for b in parts]
    if not any(ranks.any() for ranks in reached):  # fresh: B is zero everywhere
        reached = [np.ones(len(a), bool) for _ in parts]
    written = {}
    for name, b, ranks in zip(entry.names, parts, reached, strict=True):
        if ranks.any():
            module = PREFIX + name.removesuffix(".weight")
            written[f"{module}.lora_A.weight"] = a[ranks]
            written[f"{module}.lora_B.weight"] = b[:, ranks]
    return written
