"""One checkpoint on disk: the only module that knows Orbax, with the checks Orbax lacks.

A checkpoint is a folder of separate items: trees of arrays and ``info`` (JSON), which holds the
shape, dtype and fingerprint of every leaf. Each process writes, and reads, the parts it holds.
Orbax writes under a temporary name and renames at the end, so a folder whose name is a number is
complete; a flipped bit in it Orbax would load in silence.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from rlhf_jax.runs.fingerprints import fingerprints

TEMPORARY = ".orbax-checkpoint-tmp"
CHUNK_BYTES = 2**25
"""Arrays are stored in pieces of at most this size."""


class Damaged(Exception):
    """A checkpoint that does not load, or holds other values than were saved."""


def start_write(path: Path, items: dict[str, Any], info: dict[str, Any]) -> Callable[[], Any]:
    """Copy ``items`` to the host and write them in the background; returns a function that waits.

    The function raises what went wrong. The arrays may be donated as soon as this returns.
    """
    whole = jax.process_count() == 1 and not any(map(in_parts, jax.tree.leaves(items)))
    if whole:
        # Copied now: the caller gives the buffers to the next update as soon as this returns.
        items = jax.tree.map(np.asarray, jax.device_get(items))
    info |= {"whole": whole, "leaves": fingerprints(leaves_by_path(items))}
    info = json.loads(json.dumps(info))  # as read back
    # Of the record itself too: a fingerprint in it that flipped would accuse a good array.
    info["sha256"] = json_sha256(info)
    with orbax_options():
        return ocp.save_checkpointables_async(str(path), items | {"info": info}).result


def to_closed_loop(unraisable: Any) -> bool:
    """Whether an error that nobody can catch is a part of a failed save reporting in vain.

    Orbax closes its event loop at the first part that fails, while the others are being written.
    """
    error = unraisable.exc_value
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def in_parts(leaf: Any) -> bool:
    """Whether a leaf lies in parts on several devices."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_replicated


def read_info(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint. Raises Damaged."""
    info = load(path, {"info": None})["info"]
    if info.get("sha256") != json_sha256({k: v for k, v in info.items() if k != "sha256"}):
        raise Damaged(f"checkpoint {path} is damaged: info is not what was saved")
    return info


def read_items(path: Path, info: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Items laid out as ``like``, every leaf verified. Raises Damaged.

    ``like`` gives for each item a tree of shapes with shardings: each process then reads the parts
    that lie on its devices; or of NumPy arrays, for whole arrays on the host.
    """
    if info.get("whole") and jax.process_count() == 1:
        # Devices that ask for their parts of one stored piece would each read all of it.
        items = jax.tree.map(placed_as, load(path, jax.tree.map(on_host, like)), like)
    else:
        items = load(path, like)
    prints = fingerprints(leaves_by_path(items))
    expected = {k: v for k, v in info["leaves"].items() if k.split("/")[0] in like}
    for name in sorted(expected.keys() | prints.keys()):
        if prints.get(name) != expected.get(name):
            raise Damaged(f"checkpoint {path} is damaged: {name} is not what was saved")
    return items


def on_host(leaf: Any) -> np.ndarray:
    """Asks Orbax for a NumPy array; it holds one element, whatever its shape."""
    # Orbax reads shape and type from an example; a real array of that shape would cost its memory.
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def placed_as(array: np.ndarray, like: Any) -> Any:
    """A copy where ``like`` says, for a train state owns its buffers; on the host ``array``."""
    on_devices = not isinstance(like, np.ndarray)
    return jax.device_put(array, like.sharding, may_alias=False) if on_devices else array


def list_steps(folder: Path) -> list[int]:
    """Complete checkpoints, oldest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if path.name.isdecimal())


def remove_step(path: Path) -> None:
    """Delete a checkpoint, all of it or nothing."""
    # Renamed first: a kill in the middle must not leave half a checkpoint under a step's name.
    doomed = path.with_name(f"{path.name}.deleted{TEMPORARY}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_temporary(folder: Path) -> None:
    """Remove what killed or failed saves left behind."""
    for path in folder.glob(f"*{TEMPORARY}*"):
        shutil.rmtree(path)


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """{"params/wte/embedding": leaf, ...}: the same names for dicts, lists and NamedTuples."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # By path and not by place: a NamedTuple with a new field keeps the names of the old ones.
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def json_sha256(value: Any) -> str:
    """SHA-256 of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def orbax_options() -> ocp.Context:
    """Without them Orbax writes a dict of strings and numbers as a tree of arrays."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="info")
    options = ocp.Context()
    options.checkpointables.registry = registry
    # Of parts that were saved as such a process reads its own; of others, the pieces they touch.
    options.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    return options


def load(path: Path, items: dict[str, Any]) -> dict[str, Any]:
    """Items as Orbax finds them. Raises Damaged for whatever goes wrong."""
    try:
        with orbax_options():
            return ocp.load_checkpointables(str(path), items)
    except MemoryError:
        raise
    except Exception as error:  # Orbax raises another class for each kind of missing file
        reason = first_line(error.__cause__ or error)
        raise Damaged(f"checkpoint {path} does not load ({reason})") from error


def first_line(error: BaseException) -> str:
    """Class and first line of an error, for a sentence."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
