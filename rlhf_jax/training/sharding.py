"""Where parameters lie on a device mesh: one table by path, for every tree that holds them.

Optimizer moments, averages, gradients, references, reward and value models have the paths of the
parameters they belong to at the end of their own, so the same rules place them all. What no rule
names (counters, scales, scalar heads) is small and lies on every device.
"""

import re
from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rlhf_jax.models.layout import fit

RULES = (
    ("wte", ("tensor", "fsdp")),
    ("wpe", (None, "fsdp")),
    ("lm_head/kernel", ("fsdp", "tensor")),
    # Into a block: features of the result split. Out of it: features that are summed split.
    ("(c_attn|c_fc|c_gate)/kernel", ("fsdp", "tensor")),
    ("(c_attn|c_fc|c_gate)/bias", ("tensor",)),
    ("(c_attn|c_fc|c_gate)/lora_a", ("fsdp", None)),
    ("(c_attn|c_fc|c_gate)/lora_b", (None, "tensor")),
    ("c_proj/kernel", ("tensor", "fsdp")),
    ("c_proj/lora_a", ("tensor", None)),
    ("c_proj/lora_b", (None, "fsdp")),
)
"""(end of the path, mesh axis of each dimension); scanned layers have one more dimension before."""

PATTERNS = tuple((re.compile(f"(.*/)?{pattern}"), spec) for pattern, spec in RULES)


def spec_of(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Where the leaf at ``path`` lies on a mesh of ``sizes``: split as far as its shape allows."""
    for pattern, spec in PATTERNS:
        if pattern.fullmatch(path):
            # Scanned layers are one array with the layer in front, which no axis splits: each step
            # of the scan takes one layer from all devices.
            stacked = (None,) if "blocks" in path.split("/") else ()
            if len(stacked + spec) == len(shape):
                return fit(stacked + spec, shape, sizes)
    return PartitionSpec()


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """The sharding of every array (or shape) in a tree of parameters or a train state."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_of(name, leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def laid_out(params: PyTree) -> PyTree:
    """``params``, said to lie by the rules on the mesh of the program being traced.

    The gradient with respect to the argument then lies there too: it is summed into parts
    (reduce-scatter) and never whole on a device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "tensor" not in mesh.axis_names or mesh.size == 1:
        return params
    return jax.lax.with_sharding_constraint(params, shardings(params, mesh))
