"""Low-rank adapters (Hu et al. 2021): W + (α / r) A B, where only A and B are trained.

Adapters are leaves beside the kernel they adapt, ``lora_a`` [in, r] and ``lora_b`` [r, out]; a
dense layer that finds them uses them. The frozen part of a tree is the same arrays for every model
that is built on it, so a policy, its reference and a value network cost one copy of the weights.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from rlhf_jax.config import LoRAConfig, ModelConfig
from rlhf_jax.errors import InputError, check
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.types import Params

LEAVES = ("lora_a", "lora_b")
HEADS = ("head",)
"""Besides adapters, these parts of a tree train: a new scalar head has nothing to be frozen at."""


def add_adapters(
    key: Key[Array, ""], params: Params, model: ModelConfig, config: LoRAConfig
) -> Params:
    """``params`` with an adapter on each dense layer of the trunk that ``config.targets`` names.

    A ~ U(−1/√in, 1/√in) and B = 0, as in PEFT: nothing changes before the first step. The same
    adapters whether layers are scanned or not. Raises InputError if no layer is named, or all have
    fewer dimensions than ``config.rank``.
    """
    trunk = params["trunk"]
    # Numbered in the unrolled layout, so that a scanned model gets the same adapters.
    unroll = partial(as_layout, config=replace(model, scan_layers=False))
    target = re.compile(config.targets)
    known, chosen = set(), {}
    for number, (path, kernel) in enumerate(kernels(jax.eval_shape(unroll, trunk))):
        module = "/".join(path[1:])
        known.add(module)
        if target.fullmatch(module):
            chosen[path] = number, kernel
    if not chosen:
        raise InputError(
            f"lora.targets={config.targets!r} names no dense layer; there are {sorted(known)}"
        )
    full = max(min(kernel.shape) for _, kernel in chosen.values())
    check(
        config.rank <= full,
        f"lora.rank={config.rank}: expected at most {full}, the rank of the largest kernel that "
        "lora.targets names",
    )
    adapters: Params = {}
    for path, (number, kernel) in chosen.items():
        adapter = _adapter(jax.random.fold_in(key, number), kernel, config.rank)
        _insert(adapters, path, adapter)
    return params | {"trunk": combine(trunk, as_layout(adapters, model))}


def _adapter(key: Key[Array, ""], kernel: jax.ShapeDtypeStruct, rank: int) -> Params:
    inputs, outputs = kernel.shape
    bound = 1 / math.sqrt(inputs)
    a = jax.random.uniform(key, (inputs, rank), minval=-bound, maxval=bound)
    # B = 0 makes A B = 0: the model begins as the one it adapts.
    return {"lora_a": a, "lora_b": jnp.zeros((rank, outputs))}


def kernels(trunk: Params) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and kernel of every dense layer of an unrolled trunk, in a fixed order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(trunk):
        names = tuple(entry.key for entry in path)
        if names[-1] == "kernel":
            yield names[:-1], leaf


def has_adapters(params: Params) -> bool:
    """Whether any leaf is a matrix of an adapter."""
    return any(path[-1].key in LEAVES for path, _ in jax.tree_util.tree_leaves_with_path(params))


def adapter_shapes(params: Params) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shape of each adapter's two matrices, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = [(tuple(entry.key for entry in path), leaf) for path, leaf in leaves]
    return {path: leaf.shape for path, leaf in named if path[-1] in LEAVES}


def adapter_rank(params: Params) -> int:
    """r of the adapters of ``params``, which must have some; of several ranks the largest."""
    return max(s[-1] for path, s in adapter_shapes(params).items() if path[-1] == "lora_a")


def merge_adapters(params: Params, scale: float) -> Params:
    """Kernels W + scale · A B in place of kernels with adapters: the same outputs, one product."""

    def merge(tree):
        if not isinstance(tree, dict):
            return tree
        if "lora_a" in tree:
            # On TPUs the default precision of a product would change the merged model.
            update = jnp.matmul(tree["lora_a"], tree["lora_b"], precision="highest")
            kernel = tree["kernel"] + scale * update
            return {k: v for k, v in tree.items() if k not in LEAVES} | {"kernel": kernel}
        return {name: merge(branch) for name, branch in tree.items()}

    return merge(params)


def partition(params: Params) -> tuple[Params, Params]:
    """(what trains, what is frozen): adapters and heads train; without adapters, everything."""
    if not has_adapters(params):
        return params, {}
    trainable: Params = {}
    frozen: Params = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(entry.key for entry in path)
        trains = names[-1] in LEAVES or any(name in HEADS for name in names)
        _insert(trainable if trains else frozen, names, leaf)
    return trainable, frozen


def combine(frozen: Params | None, trainable: Params) -> Params:
    """The whole tree again; no array is copied."""
    if not isinstance(frozen, dict):
        return trainable
    # A dense layer has its kernel on one side and its adapters on the other.
    shared = {k: combine(frozen[k], trainable[k]) for k in frozen.keys() & trainable.keys()}
    return {**frozen, **trainable, **shared}


def share_equal(params: Params, other: Params) -> Params:
    """``params`` with the arrays of ``other`` wherever both hold the same bits at one path."""

    def share(mine, theirs):
        if isinstance(mine, dict) and isinstance(theirs, dict):
            return {k: share(v, theirs[k]) if k in theirs else v for k, v in mine.items()}
        if isinstance(mine, dict) or isinstance(theirs, dict) or mine.shape != theirs.shape:
            return mine
        # Arrays of several processes cannot be read, but they can be compared.
        equal = jnp.array_equal if in_processes(mine) else np.array_equal
        return theirs if bool(equal(mine, theirs)) else mine

    return share(params, other)


def in_processes(leaf: Any) -> bool:
    """Whether parts of a leaf lie with other processes, so that it cannot be read here."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _insert(tree: Params, path: tuple[str, ...], leaf: Params) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf
