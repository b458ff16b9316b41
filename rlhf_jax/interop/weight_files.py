"""Which files of a Hugging Face folder hold its weights, and which of them each tensor is in.

Chosen as transformers chooses: ``model.safetensors`` if it is there, else the shards that
``model.safetensors.index.json`` names. What else lies in the folder is not read, and is told.
"""

import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from rlhf_jax.errors import InputError, check, check_fetched

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD_BIAS = "rlhf_jax.json"
"""Where an export keeps the bias of a scalar head, for which transformers has no place."""
WRAPPERS = ("module.", "_orig_mod.")
"""Put before the name of every tensor by DistributedDataParallel and by torch.compile."""
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
UNFINISHED = ("*.incomplete", "*.part", "*.partial", "*.crdownload", "*.aria2", "*.tmp")
"""As programs that download name a file until it is whole."""


class Weights(NamedTuple):
    """Where the tensors of a folder lie."""

    files: dict[str, Path]
    """The file of each tensor, by its name without ``prefix``."""
    unread: tuple[str, ...]
    """Names of other safetensors files and indices beside them."""
    prefix: str = ""
    """What wrappers have put before the name of every tensor."""


def find_weights(folder: Path) -> Weights:
    """The weights of ``folder``. Raises InputError if they are not there, or not whole."""
    single, index = folder / SINGLE, folder / INDEX
    present = sorted(folder.glob("*.safetensors"))
    # A single file wins over an index: transformers reads it so too.
    if not single.is_file() and index.is_file():
        files = _in_shards(index)
    elif single.is_file() or len(present) == 1:
        single = single if single.is_file() else present[0]
        files = dict.fromkeys(_names(single), single)
    else:
        raise InputError(_why_not(folder, present))
    check(bool(files), f"{folder}: there is not one tensor in its weights")
    used = set(files.values())
    unread = [path.name for path in present if path not in used]
    # An index that names other files is of another version of the model, and is worth a word.
    if index.is_file() and single in used and set(weight_map(index).values()) != {single.name}:
        unread.append(index.name)
    prefix = wrapped_in(files)
    return Weights({k.removeprefix(prefix): v for k, v in files.items()}, tuple(unread), prefix)


def wrapped_in(names: Collection[str]) -> str:
    """The ``WRAPPERS`` before all of ``names``, which the outermost begins; empty without any."""
    prefix = ""
    while wrappers := [w for w in WRAPPERS if all(name.startswith(prefix + w) for name in names)]:
        prefix += wrappers[0]
    return prefix


def open_weights(path: Path):
    """A safetensors file. Raises InputError if it is damaged, or only a pointer to it."""
    check_fetched(path)
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file: {error}; was its download broken off?"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``. Raises InputError for anything else."""
    check_fetched(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    check(isinstance(value, dict), f"{path} holds a {type(value).__name__}, expected an object")
    return value


def head_bias(folder: Path) -> float:
    """The bias of a scalar head that an export has kept beside its weights; 0 of others' models."""
    path = folder / HEAD_BIAS
    if not path.is_file():
        return 0.0
    bias = read_json(path).get("head_bias")
    number = isinstance(bias, int | float) and not isinstance(bias, bool)
    if bias is None or not number or not math.isfinite(bias):
        raise InputError(f"{path}: head_bias is {bias!r}, expected a number")
    return float(bias)


def weight_map(index: Path) -> dict[str, str]:
    """Tensor → shard, as an index says. Raises InputError for a shard outside of its folder."""
    shard_of = read_json(index).get("weight_map")
    strings = isinstance(shard_of, dict) and all(isinstance(x, str) for x in shard_of.values())
    if not shard_of or not strings:
        raise InputError(f"{index}: expected weight_map to give each tensor's file")
    for name in sorted(set(shard_of.values())):
        # An index comes from strangers: it may name no file outside of its folder.
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        check(inside, f"{index} names {name!r}, which is outside of its folder")
    return shard_of


def _in_shards(index: Path) -> dict[str, Path]:
    """The file of each tensor of all shards, those that the index forgets too."""
    expected = {tensor: index.parent / name for tensor, name in weight_map(index).items()}
    shards = sorted(set(expected.values()))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise InputError(
            f"{index} names {missing[0]}, which is not there (missing: {len(missing)} of "
            f"{len(shards)} files); was the download broken off?"
        )
    shard_of: dict[str, Path] = {}
    for shard in shards:
        for tensor in _names(shard):
            twice = shard_of.setdefault(tensor, shard)
            check(twice == shard, f"{tensor} is in {twice} and in {shard}, expected in one of them")
    absent = [tensor for tensor, shard in expected.items() if shard_of.get(tensor) != shard]
    if absent:
        raise InputError(
            f"{index} says that {absent[0]} is in {expected[absent[0]].name}, where it is not"
            f" ({len(absent)} of {len(expected)} tensors are not where it says): is it of "
            "another model?"
        )
    return shard_of


def _names(path: Path) -> Iterable[str]:
    with open_weights(path) as file:
        return list(file.keys())


def _why_not(folder: Path, present: list[Path]) -> str:
    """Why there are no weights to read, and what to do about it."""

    def matching(patterns: Iterable[str]) -> list[str]:
        return sorted(path.name for pattern in patterns for path in folder.glob(pattern))

    if present:
        names = ", ".join(path.name for path in present[:3])
        return (
            f"{folder} has {len(present)} safetensors files ({names} ...), but neither {SINGLE} "
            f"nor {INDEX}, which says what is in each of them"
        )
    if unfinished := matching(UNFINISHED):
        return f"{folder}: the download of {unfinished[0]} has not finished"
    if files := matching(("*.gguf",)):
        return f"{folder} holds its weights as {files[0]}: give that file instead of its folder"
    if others := matching(OTHER_FORMATS):
        return (
            f"{folder} holds its weights as {others[0]}; only safetensors are read (other files "
            "can run code). Where torch and transformers are installed: "
            f'AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained("NEW_FOLDER")'
        )
    return f"{folder} has a config.json, but no weights: expected {SINGLE} or {INDEX}"
