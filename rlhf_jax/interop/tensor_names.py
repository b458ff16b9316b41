"""Where each of our parameters lies in a Hugging Face checkpoint, and in what shape."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.interop.family import PART, Family
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.types import Params


class Tensors(NamedTuple):
    """One of our parameters and the tensors it is made of in the file."""

    path: tuple[str, ...]
    names: tuple[str, ...]
    read: Callable[..., Any]
    """(tensors...) -> parameter."""
    write: Callable[[Any], tuple[Any, ...]]


def tensors_of(
    family: Family, config: ModelConfig, params: Params, *, bare: bool
) -> Iterator[Tensors]:
    """Where each parameter of ``params`` (arrays or shapes, unrolled layers) lies."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = tuple(key.key for key in path)
        if keys == ("head", "bias"):
            continue  # a classifier of transformers has none; rlhf_jax.json keeps it
        yield _place(family, config, keys, leaf.ndim, bare)


def _place(family: Family, c: ModelConfig, path: tuple[str, ...], ndim: int, bare: bool) -> Tensors:
    transposed = Tensors(path, (), lambda x: x.T, lambda x: (x.T,))
    same = Tensors(path, (), lambda x: x, lambda x: (x,))
    # Heads are torch.nn.Linear in every family, also in GPT-2, whose other layers are Conv1D.
    if path[0] == "lm_head":
        return transposed._replace(names=(f"{family.lm_head}.weight",))
    if path[0] == "head":
        return transposed._replace(names=("score.weight",))
    keys = path[1:]
    layer = keys[0].removeprefix("block_") if keys[0].startswith("block_") else None
    modules = keys[1:] if layer is not None else keys
    if modules[-1] in ("kernel", "bias", "scale"):
        modules, kind = modules[:-1], modules[-1]
    else:
        kind = "embedding"
    ours = ".".join(modules)
    prefix = "" if bare else f"{family.base}."
    theirs = prefix + family.names[ours].format(i=layer)
    suffix = "bias" if kind == "bias" else "weight"
    if ours == "attn.c_attn" and family.qkv != "fused":
        return _split_qkv(family, c, path, theirs, suffix)
    is_transposed = kind == "kernel" and family.kernels == "out_in"
    return (transposed if is_transposed else same)._replace(names=(f"{theirs}.{suffix}",))


def _split_qkv(family: Family, c: ModelConfig, path, module: str, suffix: str) -> Tensors:
    """Our [in, q | k | v] from torch's [out, in], interleaved head by head or in three parts."""
    if family.qkv == "per_head":
        heads = (c.n_heads, 3, c.width)

        def read(x):
            return x.reshape(*heads, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape).T

        def write(x):
            y = x.T.reshape(3, c.n_heads, c.width, *x.T.shape[1:])
            return (y.swapaxes(0, 1).reshape(x.T.shape),)

        return Tensors(path, (f"{module}.{suffix}",), read, write)
    ends = (c.n_heads * c.width, (c.n_heads + c.kv_heads) * c.width)
    names = tuple(f"{module}.{part}_proj.{suffix}" for part in "qkv")

    def write_three(x):
        return x[..., : ends[0]].T, x[..., ends[0] : ends[1]].T, x[..., ends[1] :].T

    return Tensors(path, names, lambda *parts: np.concatenate(parts).T, write_three)


def in_parts(names: Iterable[str], family: Family) -> Iterator[str]:
    """``names`` of a file, with those of its parts instead of a stacked tensor's."""
    for name in names:
        module = name.split(".")[-2] if "." in name else ""
        for k in range(family.stacked.get(module, 0)):
            yield name.replace(f".{module}.", f".{module}[{k}].")
        if module not in family.stacked:
            yield name


def whole(name: str) -> str:
    """The name in the file of a tensor, which may be a part of another."""
    return PART.sub(r"\1", name)


def part_of(name: str, family: Family) -> tuple[int, int]:
    """(which, of how many) parts of a tensor in the file: (0, 1) of one that is no part."""
    match = PART.search(name)
    return (int(match[2]), family.stacked[match[1]]) if match else (0, 1)


def stacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``tensors`` with their parts put together again."""
    parts: dict[str, list[str]] = {}
    for name in tensors:
        parts.setdefault(whole(name), []).append(name)
    together = {name: [tensors[one] for one in sorted(found)] for name, found in parts.items()}
    return {name: x[0] if len(x) == 1 else np.concatenate(x) for name, x in together.items()}


def parameter_shapes(config: ModelConfig, vocab_size: int, kind: Literal["lm", "scalar"]) -> Params:
    """Shapes of our parameters, layers unrolled."""
    # A checkpoint has its tensors layer by layer, whether the model here scans over them or not.
    config = replace(config, scan_layers=False)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    shapes = jax.eval_shape(make_language_model(config, vocab_size).init, key)
    if kind == "lm":
        return shapes
    return jax.eval_shape(make_scalar_model(config, vocab_size).init, key, shapes["trunk"])


def at(tree: Params, path: tuple[str, ...]) -> Any:
    """The subtree or leaf of a nested dict at a path of keys."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Params, path: tuple[str, ...], leaf: Any) -> None:
    """Set the leaf at a path of keys, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
