"""From named tensors and a ``config.json`` to a model: every tensor is checked, none is guessed.

Tensors are read one after the other, so that the whole model is in memory once. A missing, extra
or misshapen tensor is an error, never a model with random parts.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.errors import InputError, check
from rlhf_jax.interop.config_fields import Fields
from rlhf_jax.interop.families import Family, family_of_checkpoint, family_of_model
from rlhf_jax.interop.tensor_names import (
    at,
    in_parts,
    parameter_shapes,
    part_of,
    put,
    tensors_of,
    whole,
)
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.types import Params

BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Masks that old checkpoints carry along; rotary frequencies too."""


class Source(NamedTuple):
    """A checkpoint of any format, under the names of Hugging Face."""

    file: str
    """For messages."""
    config: Mapping[str, Any]
    """As ``config.json``."""
    names: Collection[str]
    shape: Callable[[str], tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    """A tensor in float32."""
    head_bias: float
    """Of a scalar head; formats without one have 0."""


class Imported(NamedTuple):
    """A model that others trained, under our names."""

    model: ModelConfig
    vocab_size: int
    params: Params
    """{"trunk", "lm_head"?}, or {"trunk", "head"} of a sequence classifier with one label."""
    unread: tuple[str, ...] = ()
    """Files of weights that lie beside those that were read."""
    prefix: str = ""
    """What stood before the name of every tensor and was left out."""


Place = Callable[[tuple[str, ...], np.ndarray], jax.Array]
"""Puts the parameter at a path where it shall lie, on one device or in parts on several."""


def on_default_device(path: tuple[str, ...], value: np.ndarray) -> jax.Array:
    """The default place of an imported parameter; its path does not matter."""
    return jnp.asarray(value)


def import_model(source: Source, place: Place = on_default_device) -> Imported:
    """The model in ``source``, in float32, each parameter placed before the next is read.

    Raises InputError for an unknown architecture or config field, and for a tensor that is missing,
    extra, of another shape, or that has values which are no finite numbers.
    """
    family, config, vocab_size = shape_of(source.config, source.file)
    kind = _kind(source, family)
    source = _in_parts(source, family) if family.stacked else source
    # A trunk that was saved alone lacks the name of the part that it is of the whole model.
    bare = not any(name.startswith(f"{family.base}.") for name in source.names)
    shapes = parameter_shapes(config, vocab_size, kind)
    plan = list(tensors_of(family, config, shapes, bare=bare))
    _check_names(source, family, plan, tied=config.tied)
    params: Params = {}
    # The largest first: its temporary copies are gone before the memory fills.
    for entry in sorted(plan, key=lambda entry: -at(shapes, entry.path).size):
        expected = jax.eval_shape(entry.write, at(shapes, entry.path))
        for name, part in zip(entry.names, expected, strict=True):
            _check_shape(source, name, part.shape)
        # Where one of our kernels is several of theirs, they are joined here.
        value = np.ascontiguousarray(entry.read(*map(source.read, entry.names)))
        check_finite(f"{source.file}: {' + '.join(entry.names)}", value)
        # Waited for: else copies to the device would pile up in the host's memory.
        put(params, entry.path, place(entry.path, value).block_until_ready())
        del value  # before the next is read
    if kind == "scalar":
        params["head"]["bias"] = jnp.full(1, source.head_bias, jnp.float32)
    return Imported(config, vocab_size, params | {"trunk": as_layout(params["trunk"], config)})


def _in_parts(source: Source, family: Family) -> Source:
    """``source`` as if each part of a stacked tensor were one of its own."""

    def shape(name: str) -> tuple[int, ...]:
        (rows, *rest), (_, count) = source.shape(whole(name)), part_of(name, family)
        check(
            rows % count == 0,
            f"{source.file}: {whole(name)} has {rows} rows, expected a multiple of {count}",
        )
        return (rows // count, *rest)

    def read(name: str) -> np.ndarray:
        k, count = part_of(name, family)
        return np.split(source.read(whole(name)), count)[k]

    return source._replace(names=[*in_parts(source.names, family)], shape=shape, read=read)


def shape_of(config: Mapping[str, Any], file: str) -> tuple[Family, ModelConfig, int]:
    """(family, shape, rows of embedding) by a ``config.json``, each field of which is known."""
    family = family_of_checkpoint(config, file)
    fields = Fields(config, file)
    vocab_size = fields.take("vocab_size")
    try:
        shape = family.read(fields)
    except InputError as error:  # of the model's own checks, which know no file
        named = str(error).startswith(file)
        raise error if named else InputError(f"{file}: {error}") from None
    fields.done()
    if family_of_model(shape) is not family:
        shape = replace(shape, export_as=family.model_type)
    return family, shape, vocab_size


def check_finite(name: str, value: np.ndarray) -> None:
    """Raise InputError if there is an inf or a NaN in ``value``."""
    # The extremes first, which need no memory; they are NaN if any value is.
    if value.size and not np.isfinite([value.min(), value.max()]).all():
        count = int((~np.isfinite(value)).sum())
        raise InputError(f"{name} has {count} of {value.size} values that are inf or NaN")


def _kind(source: Source, family: Family) -> Literal["lm", "scalar"]:
    named = (source.config.get("architectures") or [family.causal])[0]
    if named == family.classifier:
        labels = len(source.config.get("id2label") or ()) or source.config.get("num_labels", 2)
        if labels != 1:
            raise InputError(f"{source.file}: {named} has {labels} labels, a reward model has 1")
        return "scalar"
    bare = family.causal.replace("LMHeadModel", "Model").replace("ForCausalLM", "Model")
    if named not in (family.causal, bare):
        raise InputError(
            f"{source.file}: architecture {named!r} is not supported, only "
            f"{family.causal!r} and {family.classifier!r}"
        )
    return "lm"


def _check_names(source: Source, family: Family, plan, *, tied: bool) -> None:
    wanted = {name for entry in plan for name in entry.names}
    missing = sorted(wanted - set(source.names))
    ignored = {name for name in source.names if name.endswith(BUFFERS) or "rotary_emb" in name}
    extra = sorted(set(source.names) - wanted - ignored)
    head = f"{family.lm_head}.weight"
    if tied and head in extra:
        embedding = next(entry.names[0] for entry in plan if entry.path[-1] == "wte")
        if not np.array_equal(source.read(head), source.read(embedding)):
            raise InputError(
                f"{source.file}: {head} differs from {embedding}, but the config ties them"
            )
        extra.remove(head)
    unlike = [f"{word} {_some(names)}" for word, names in (("missing", missing), ("extra", extra))]
    unlike = [text for text, names in zip(unlike, (missing, extra), strict=True) if names]
    if unlike:
        raise InputError(f"{source.file}: the tensors do not fit the config: {'; '.join(unlike)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_shape(source: Source, name: str, expected: tuple[int, ...]) -> None:
    shape = source.shape(name)
    if shape != expected:
        raise InputError(
            f"{source.file}: {name} has shape {shape}, but the config asks for {expected}"
        )
