"""Saving and restoring a run, and taking the parameters of an earlier one.

Items of a checkpoint: ``params``, ``train`` (step and optimizer state), ``ema`` (when there is an
average), other trees of parameters that a stage keeps, and ``info`` (data iterators, extra values,
metrics). Every save happens, every load is
verified, a damaged step is reported and set aside, the best steps are kept beside the latest, and
a failed save is one sentence.
"""

import errno
import logging
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.errors import DivergedError, InputError, RunError
from rlhf_jax.runs.checkpoint_files import (
    Damaged,
    first_line,
    json_sha256,
    leaves_by_path,
    list_steps,
    on_host,
    read_info,
    read_items,
    remove_step,
    remove_temporary,
    start_write,
    to_closed_loop,
)
from rlhf_jax.runs.fingerprints import fingerprints
from rlhf_jax.runs.progress import say
from rlhf_jax.types import Params, TrainState

SCHEMA = 1
NO_TREES: Mapping[str, Params] = MappingProxyType({})
NOTHING: Mapping[int, Mapping[str, float]] = MappingProxyType({})


class Restored(NamedTuple):
    """What a resumed run goes on with."""

    step: int
    state: TrainState
    data: dict[str, Any]
    extra: dict[str, Any]
    trees: dict[str, Params]


class Checkpoints:
    """The checkpoints of one run; leaving the ``with`` block waits until the last is on disk.

    Args:
        folder: Made when missing; holds nothing else.
        keep_latest: How many of the newest steps to keep.
        keep_best: How many steps to keep besides, by ``best_metric``.
        best_metric: A name in ``save``'s metrics; steps without a finite value are never best.
        measured: Figures of steps that were measured after they were saved.
        otherwise: What a failed save leaves when no step was saved here before.

    Raises RunError when a save fails (disk full), from the next ``save``, ``wait`` or the end of
    the block, whichever comes first: the failed step leaves nothing behind.

    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_latest: int,
        keep_best: int,
        best_metric: str | None,
        best_mode: Literal["max", "min"],
        measured: Mapping[int, Mapping[str, float]] = NOTHING,
        otherwise: str = "there is no earlier checkpoint",
    ):
        if keep_latest < 1:
            raise InputError(f"keep_latest={keep_latest}: at least one checkpoint must be kept")
        self.folder = Path(folder).absolute()
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._best_metric, self._best_mode = best_metric, best_mode
        self._measured, self._otherwise = measured, otherwise
        self._scores: dict[int, float] = {}
        self._pending: tuple[int, Callable[[], Any]] | None = None

    def __enter__(self) -> "Checkpoints":
        self.folder.mkdir(parents=True, exist_ok=True)
        # Orbax logs pages of tracebacks for a failure that it also raises.
        self._log_level = logging.getLogger("absl").level
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._report = report = sys.unraisablehook
        sys.unraisablehook = lambda raised: None if to_closed_loop(raised) else report(raised)
        if jax.process_index() == 0:
            # What a killed save has left; nobody else writes here, as the run's lock is held.
            remove_temporary(self.folder)
        for step in list_steps(self.folder):
            try:
                info = read_info(self.folder / str(step))
                # A run's last step is saved before it is measured, so that its figures stand in
                # DONE.
                info["metrics"] = {**self._measured.get(step, {}), **info["metrics"]}
                self._scores[step] = score(info)
            except Damaged:  # restore_latest reports it, if it comes to it
                self._scores[step] = -math.inf
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._pending and kind is KeyboardInterrupt:
            say(f"waiting until step {self._pending[0]} is saved (Ctrl-C again: it is given up)")
        try:
            self.wait()
        except RunError as failed:
            if kind is None:
                raise
            if not (is_disk_full(error) and is_disk_full(failed.__cause__)):
                say(str(failed))  # the error that ended the block is the one to report
        finally:
            logging.getLogger("absl").setLevel(self._log_level)
            if kind is None:  # after a failure the parts report for a while
                sys.unraisablehook = self._report

    def latest_step(self) -> int | None:
        """The newest step that is completely on disk."""
        return max(list_steps(self.folder), default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data: Mapping[str, Any],
        extra: Mapping[str, Any],
        metrics: Mapping[str, Any],
        trees: Mapping[str, Params] = NO_TREES,
    ) -> None:
        """Copy ``state`` to the host and write it in the background as checkpoint ``step``.

        ``data`` and ``extra`` are JSON-able (floats come back bit for bit), ``metrics`` numbers or
        device scalars, ``trees`` parameters besides those of the state. The state may be donated to
        the next update at once. Waits for the previous save first. A step that is already there is
        left as it is.
        """
        # One save at a time: two would hold two copies of the state on the host.
        self.wait()
        if step in list_steps(self.folder):
            return
        info = {
            "schema": SCHEMA,
            "step": step,
            "data": data,
            "extra": extra,
            # JSON has no NaN, and a step without a finite figure is never best.
            "metrics": {k: float(v) for k, v in metrics.items() if math.isfinite(v)},
            "best": [self._best_metric, self._best_mode],
        }
        try:
            finish = start_write(self.folder / str(step), to_items(state, trees), info)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not is_disk_full(error):
                raise  # not the disk's fault
            raise self._save_error(step, error) from error
        self._pending = step, finish
        self._scores[step] = score(info)

    def wait(self) -> None:
        """Return when the save under way is on disk; then delete what need not be kept."""
        if self._pending is None:
            return
        (step, finish), self._pending = self._pending, None
        try:
            finish()
        except Exception as error:
            raise self._save_error(step, error) from error
        if jax.process_index() == 0:
            # Only now, when the new step is whole on disk, may an old one go.
            kept = self._kept_steps()
            for old in set(list_steps(self.folder)) - kept:
                remove_step(self.folder / str(old))

    def restore_latest(
        self, like: TrainState, trees: Mapping[str, Params] = NO_TREES
    ) -> Restored | None:
        """The newest intact checkpoint, laid out as these; None when nothing was saved.

        ``like`` holds arrays or ``jax.ShapeDtypeStruct`` with shardings: the device count may
        differ from that of the save. A damaged step is reported and renamed ``N.damaged``.

        Raises InputError for a checkpoint of other shapes, RunError when all are damaged.
        """
        self.wait()
        steps = list_steps(self.folder)
        # The newest that is intact: a flipped bit must not cost the whole run.
        for step in reversed(steps):
            path = self.folder / str(step)
            try:
                return restore(path, like, trees)
            except Damaged as reason:
                say(f"{reason}; skipped, and renamed to {step}.damaged")
                if jax.process_index() == 0:
                    shutil.rmtree(self.folder / f"{step}.damaged", ignore_errors=True)
                    path.rename(self.folder / f"{step}.damaged")
        if steps:
            raise RunError(
                f"every checkpoint in {self.folder} is damaged; remove the folder to start anew"
            )
        return None

    def is_best(self, metrics: Mapping[str, Any]) -> bool:
        """Whether a step with these figures is among the best that are kept."""
        best = [self._best_metric, self._best_mode]
        mine = score({"best": best, "metrics": metrics})
        # An equal figure is no reason to save another step.
        better = sum(other >= mine for other in self._scores.values())
        return math.isfinite(mine) and better < self._keep_best

    def _kept_steps(self) -> set[int]:
        steps = list_steps(self.folder)
        scored = [(self._scores.get(step, -math.inf), step) for step in steps]
        ranked = sorted(pair for pair in scored if pair[0] > -math.inf)
        best = ranked[-self._keep_best :] if self._keep_best else []
        # The newest to go on from, the best to be used as models.
        return {*steps[-self._keep_latest :], *(step for _, step in best)}

    def _save_error(self, step: int, error: Exception) -> RunError:
        self._scores.pop(step, None)
        if jax.process_index() == 0:
            remove_temporary(self.folder)  # also gives the space back
        previous = self.latest_step()
        what = f"no space left while saving step {step} in {self.folder}"
        if not is_disk_full(error):
            what = f"cannot save step {step} in {self.folder} ({first_line(error)})"
        if previous is None:
            return RunError(f"{what}; {self._otherwise}")
        return RunError(f"{what}; the previous checkpoint, step {previous}, is intact")


def load_params(
    folder: Path,
    *,
    step: int | Literal["latest", "best"] = "latest",
    ema: bool = False,
    shardings: Callable[[Params], Params] | None = None,
) -> Params:
    """Verified parameters from a folder of checkpoints, as a nested dict on the default device.

    "best" is by the metric the run was saved with; ``ema`` takes the average of the weights.
    ``shardings`` says of a tree of shapes where it shall lie: then only those parts are read.
    Raises InputError when the step is missing or damaged: no other step is taken in its place.
    """
    folder = Path(folder).absolute()
    steps = list_steps(folder)
    if not steps:
        raise InputError(f"{folder}: expected a folder of checkpoints, found no checkpoint")
    try:
        chosen = steps[-1] if step == "latest" else step
        if step == "best":
            chosen = best_step(folder, steps)
        if chosen not in steps:
            raise InputError(f"{folder}: no checkpoint of step {chosen}, only of {steps}")
        path = folder / str(chosen)
        info = read_info(path)
        item = "ema" if ema else "params"
        if not any(name.startswith(f"{item}/") for name in info["leaves"]):
            raise InputError(f"{path} has no average of the weights (optim.ema_decay was 0)")
        # The tree is made from the record of leaves, so that no model need be built to read one.
        shapes = saved_shapes(info["leaves"], item)
        if shardings is None:
            like = jax.tree.map(on_host, shapes)
            return jax.device_put(read_items(path, info, {item: like})[item])
        return read_items(path, info, {item: abstract(shapes, shardings)})[item]
    except Damaged as reason:
        raise InputError(f"{reason}; choose another step or make the run again") from reason


def saved_shapes(leaves: dict[str, Any], item: str) -> Params:
    """The nested dict of shapes that an item of parameters was saved with."""
    tree: Params = {}
    for name, leaf in leaves.items():
        first, *path, last = name.split("/")
        if first == item:
            branch = tree
            for key in path:
                branch = branch.setdefault(key, {})
            branch[last] = jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))
    return tree


def abstract(shapes: Params, shardings: Callable[[Params], Params]) -> Params:
    """Shapes of parameters with where ``shardings`` puts them."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings(shapes)
    )


def params_sha256(params: Params) -> str:
    """A fingerprint of parameters: paths, dtypes, shapes and bits, wherever the arrays live."""
    return json_sha256(fingerprints(leaves_by_path(params)))


def to_items(state: TrainState, trees: Mapping[str, Params] = NO_TREES) -> dict[str, Any]:
    """A train state, and other trees, as the items of a checkpoint, each read alone."""
    items = {
        "params": state.params,
        "train": {"step": state.step, "opt_state": state.opt_state},
        **trees,
    }
    return items if state.ema_params is None else items | {"ema": state.ema_params}


def restore(path: Path, like: TrainState, trees: Mapping[str, Params] = NO_TREES) -> Restored:
    """A train state and trees of these structures, types and places.

    Raises Damaged or InputError.
    """
    info = read_info(path)
    targets = to_items(like, trees)
    # Before anything large is read, and leaf by leaf, by name.
    check_leaves(path, info["leaves"], leaves_by_path(targets))
    # Where the run says nothing, as for a counter, the first device has it.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    there = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), targets
    )
    items = read_items(path, info, there)
    state = TrainState(params=items["params"], ema_params=items.get("ema"), **items["train"])
    others = {name: items[name] for name in trees}
    return Restored(info["step"], state, info["data"], info["extra"], others)


def check_leaves(path: Path, saved: dict[str, Any], targets: dict[str, Any]) -> None:
    """Raise InputError for the first leaf that this run lacks, adds, or has in another shape."""
    for name in (*saved, *targets):
        if name not in targets:
            raise InputError(f"checkpoint {path} has {name}, which this run has not")
        if name not in saved:
            raise InputError(f"checkpoint {path} has no {name}, which this run needs")
        before, now = saved[name], targets[name]
        if (tuple(before["shape"]), before["dtype"]) != (tuple(now.shape), str(now.dtype)):
            raise InputError(
                f"checkpoint {path}: {name} is {before['dtype']}{before['shape']}, "
                f"but this run expects {now.dtype}{list(now.shape)}"
            )


def score(info: dict[str, Any]) -> float:
    """Larger is better; −∞ when the step has no value of the metric."""
    metric, mode = info["best"]
    value = info["metrics"].get(metric)
    return -math.inf if value is None else value if mode == "max" else -value


def best_step(
    folder: Path, steps: list[int], *, measured: Mapping[int, Mapping[str, float]] = NOTHING
) -> int:
    """The best of ``steps`` by the metric that they were saved with.

    ``measured``: figures of steps that were measured after they were saved.
    """
    scores = []
    for step in steps:
        info = read_info(folder / str(step))
        info["metrics"] = {**measured.get(step, {}), **info["metrics"]}
        scores.append((score(info), step))
    best, step = max(scores)
    if best == -math.inf:
        raise InputError(
            f"{folder}: of the steps {', '.join(map(str, steps))} none has a held-out figure that "
            "would decide which is best"
        )
    return step


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the disk was full, also deep in the causes of an error."""
    while error is not None:
        # Tensorstore raises ValueError with the system's message in its text.
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_finite(params: Params, step: int) -> None:
    """Raise DivergedError if the update of ``step`` left a parameter of this process not finite."""
    # Each process looks at its own parts, which is all of them together.
    parts = [part.data for leaf in jax.tree.leaves(params) for part in leaf.addressable_shards]
    if not all(np.isfinite(np.asarray(part)).all() for part in parts):
        raise DivergedError(
            f"parameters are not finite after step {step}: the same command with a lower "
            "--optim.lr goes on from the checkpoint before (or from the start, if there is none)"
        )
