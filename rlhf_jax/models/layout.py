"""Where activations lie on a device mesh: hints to the compiler, which change no value.

    data, fsdp   rows of the batch
    tensor       heads, features inside the MLP, vocabulary; between blocks positions (sequence
                 parallelism, Korthikanti et al. 2022), so that what is kept for the backward pass
                 is split too

One token per row is different (Pope et al. 2022): moving its activations is cheaper than gathering
the weights, so features lie where the weights' are, on ``fsdp``, and only ``data`` splits the rows.
Outside a mesh with a ``tensor`` axis (one device, pmap) these functions return their argument.
"""

import math
from collections.abc import Callable, Mapping

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")


def fit(spec: tuple, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """``spec`` without the mesh axes that are not in ``sizes`` or do not divide their dimension."""
    fitted = []
    for names, dimension in zip(spec, shape, strict=False):
        kept, parts = [], 1
        for name in names_of(names):
            if name not in sizes:
                continue
            count = parts * sizes[name]
            if dimension % count == 0:
                kept.append(name)
                parts = count
        fitted.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    return PartitionSpec(*fitted)


def axis_sizes() -> dict[str, int]:
    """The mesh axes that arrays may be split over, with their sizes; none under pmap.

    Inside ``on_own_rows`` the axis of the rows is not among them: there a device has its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "tensor" not in mesh.axis_names:
        return {}
    return {name: mesh.shape[name] for name in mesh.axis_names if name not in mesh.manual_axes}


def on_one_device() -> bool:
    """Whether what is traced lies on one device: no mesh, pmap, or a mesh of one."""
    return math.prod(axis_sizes().values()) == 1


def row_shards(rows: int) -> int:
    """Among how many groups of devices ``rows`` rows of a batch are split."""
    sizes = axis_sizes()
    return math.prod(sizes[name] for name in names_of(fit((ROWS,), (rows,), sizes)[0]))


def names_of(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one dimension of a spec."""
    return (axes,) if isinstance(axes, str) else axes or ()


def split(x: Array, *spec) -> Array:
    """``x`` with its dimensions split over the mesh axes that ``spec`` names."""
    if on_one_device():
        return x
    return jax.lax.with_sharding_constraint(x, fit(spec, x.shape, axis_sizes()))


def residual(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The stream between blocks: rows over devices, and positions too where there are several."""
    return split(x, "data", None, "fsdp") if x.shape[1] == 1 else split(x, ROWS, "tensor", None)


def table(x: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> Float[Array, "V D"]:
    """Embeddings, gathered to whole rows before many tokens are looked up in them."""
    return split(x, "tensor", "fsdp" if tokens.shape[1] == 1 else None)


def looked_up(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Each part of the table gives the rows it has, and the parts are summed."""
    return x if x.shape[1] == 1 else split(x, ROWS, None, None)


def gathered(
    kernel: Float[Array, "In Out"], x: Float[Array, "B T In"], *, inner: int
) -> Float[Array, "In Out"]:
    """A kernel whose parts of ``fsdp`` are brought together before many tokens pass it.

    ``tensor`` splits its outputs, or with ``inner`` 1 its inputs. Said of the cast kernel, so that
    half the bytes move; and its gradient is then summed into parts, not made from all the tokens.
    """
    if x.shape[1] == 1:
        return kernel
    return split(kernel, "tensor", None) if inner else split(kernel, None, "tensor")


def heads(x: Float[Array, "*N B H T Dh"]) -> Float[Array, "*N B H T Dh"]:
    """Queries, keys and values of one layer, or of all layers stacked in front."""
    return split(x, *[None] * (x.ndim - 4), ROWS, "tensor", None, None)


def on_own_rows_and_heads(attend: Callable, *, rows: int, kv_heads: int) -> Callable:
    """``attend`` (queries, keys, values [B H T Dh]; two of [B T]) on what each device has of them.

    For kernels that the compiler cannot split. Queries are split as their keys and values are.
    """
    if on_one_device():
        return attend
    sizes = axis_sizes()
    of_heads = fit((ROWS, "tensor"), (rows, kv_heads), sizes)
    of_rows = fit((ROWS,), (rows,), sizes)
    specs = (of_heads, of_heads, of_heads, of_rows, of_rows)
    # A kernel does not say which mesh axes its result varies over, so that cannot be checked.
    return jax.shard_map(attend, in_specs=specs, out_specs=of_heads, check_vma=False)


def on_own_rows(function: Callable, *, rows: int, own: int) -> Callable:
    """``function(*whole, *own rows)`` on each device of a mesh that splits rows alone (``data``).

    The last ``own`` arguments and all results have rows in front, ``rows`` of them at the least.
    Devices never wait for each other: a loop inside ends when a device's own rows have ended. Where
    weights are split too, ``function`` is as it was: XLA's partitioner aborts on gathers by index
    when one axis of the mesh is taken from it and others are not (jaxlib 0.10).
    """
    sizes = axis_sizes()
    count = sizes.get("data", 1)
    if count == 1 or count != math.prod(sizes.values()) or rows % count:
        return function

    def split_over_data(*arguments):
        specs = [PartitionSpec()] * (len(arguments) - own) + [PartitionSpec("data")] * own
        return jax.shard_map(
            function,
            in_specs=tuple(specs),
            out_specs=PartitionSpec("data"),
            # The loop's condition differs from device to device, which the check would refuse.
            check_vma=False,
        )(*arguments)

    return split_over_data


def features(x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """Inside the MLP."""
    return split(x, "data" if x.shape[1] == 1 else ROWS, None, "tensor")


def head_features(x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """Of all heads, before they are told apart and after they are joined.

    Without it the gradients of attention's kernels are made whole where ``tensor`` splits finer
    than the parts of the fused queries, keys and values.
    """
    return x if x.shape[1] == 1 else split(x, ROWS, None, "tensor")


def logits(x: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    """Of one position per row the sampler needs the whole row, once the weights have been used."""
    if x.ndim == 2:
        return split(split(x, "data", "tensor"), ROWS, None)
    return split(x, ROWS, None, "tensor")
