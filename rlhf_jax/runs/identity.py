"""What a run is of: fields of its config that count; models and files by their contents; a fork."""

import ast
import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from rlhf_jax.config import ConvertConfig
from rlhf_jax.config.effect import without_effect
from rlhf_jax.config.forks import name_of
from rlhf_jax.config.rewards import reward_source
from rlhf_jax.data.hub import pinned
from rlhf_jax.errors import check
from rlhf_jax.runs.checkpoint_files import json_sha256
from rlhf_jax.runs.inputs import SETTINGS, InputFile, contents_digest, files_digest
from rlhf_jax.runs.model_digests import model_digest, settings_digest
from rlhf_jax.tasks.preferences import is_name

STARTS_FROM = (
    *("init", "reference", "reward", "value_init", "second_reward", "second_reward.model"),
    *("policies", "text_only", "source", "base", "models"),
)
"""Fields that name a model, or several: their folders may be moved, but hold the same weights,
shape and tokenizer."""
READS = (
    *("data", "heldout", "demonstrations", "prompts", "task"),
    *("data.path", "data.heldout", "pretrain_data.path", "pretrain_data.heldout"),
    *("ptx_data.path", "ptx_data.heldout", "text.path", "text.heldout"),
)
"""Fields that name data, or several files of it: they may be moved, but hold the same bytes."""
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
"""The project's own, which run from a clone: what lies elsewhere is a fork."""
LENGTHS = ("steps", "epochs", "iterations")
"""Fields that say how long a run trains."""
MAY_CHANGE = (
    *(
        "run.dir",
        "run.save_every",
        "run.keep_latest",
        "run.keep_best",
        "run.log_every",
        "run.stop_after",
        "run.preempted_exit_code",
    ),
    *("run.profile", "run.tensorboard", "run.wandb", "run.trackio"),
    *("run.compile_cache", "run.tune_malloc"),
    *("parallel", "init", "reference", "force", "allow_cut", "cache"),
    *("data.cache", "text.cache", "pretrain_data.cache", "ptx_data.cache"),
)
"""Config fields that a resumed run may change: they do not change what it computes."""
AFTER_NAN = tuple(
    f"{optim}.{name}"
    for optim in ("optim", "value_optim")
    for name in ("lr", "adam_lr", "warmup_steps", "warmup_init", "final_lr", "clip_norm")
)
"""Config fields that may change after a NaN, which then are part of what was computed."""


def inputs(
    config: Any, fields: Sequence[str], digest: Callable[[Path], str | None]
) -> dict[str, InputFile]:
    """What the fields name and what is there, by the field; of several by ``field[n]``."""
    known_inputs = {}
    for name in fields:
        value = reduce(lambda of, part: getattr(of, part, None), name.split("."), config)
        paths = {name: value}
        if isinstance(value, tuple):
            paths = {f"{name}[{n}]": path for n, path in enumerate(value)}
        for label, configured in paths.items():
            path = _place(config, name, configured)
            known = digest(path) if path is not None else None
            if known is not None:
                # Of the hub with its commit: a branch goes on.
                kind = "dataset" if name in READS else "model"
                known_inputs[label] = InputFile(pinned(str(configured), kind), known)
    return known_inputs


def models_of(config: Any) -> dict[str, InputFile]:
    """The models that ``config`` names, by their weights, and by what else tells them apart.

    And the rewards that are no models.
    """
    settings = inputs(config, STARTS_FROM, settings_digest)
    settings = {f"{label}{SETTINGS}": model for label, model in settings.items()}
    return inputs(config, STARTS_FROM, model_digest) | settings | text_rewards_of(config)


def data_of(config: Any) -> dict[str, InputFile]:
    """The data that ``config`` names (``READS``, and its tokenizer), by their contents."""
    tokenizer = inputs(config, ("tokenizer.path",), files_digest)
    return inputs(config, READS, contents_digest) | tokenizer


def text_rewards_of(config: Any) -> dict[str, InputFile]:
    """The functions and gold scorers among ``config.reward``: names, and contents of their files.

    A file that is not there (any more) is not compared.
    """
    sources, rewards = getattr(config, "reward", ()), {}
    for n, path in enumerate(sources if isinstance(sources, tuple) else ()):
        source = reward_source(path)
        code = files_digest(source.place) if source.place.suffix == ".py" else ""
        if source.kind != "model" and code is not None:
            digest = json_sha256([source.kind, source.function or str(source.place.name), code])
            rewards[f"reward[{n}]"] = InputFile(str(path), digest)
    return rewards


def why_not_longer(config: Any) -> str:
    """Why a run of this config cannot be made longer afterwards; empty if it can.

    The longer run must take the steps that it would have taken from the start.
    """
    for name in ("optim", "value_optim"):
        optim = getattr(config, name, None)
        # An optimizer that nothing uses cannot have taken a step by its length.
        if optim is not None and without_effect(config, name):
            continue
        if optim is not None and optim.schedule != "constant":
            return f"the learning rates of {name}.schedule={optim.schedule} depend on its length"
        if optim is not None and optim.warmup_steps is None and optim.warmup_share > 0:
            return f"the warm-up of {name}.warmup_share={optim.warmup_share} depends on its length"
    privacy = getattr(config, "privacy", None)
    if privacy is not None and privacy.epsilon:
        return f"the noise of privacy.epsilon={privacy.epsilon} depends on its length"
    return ""


def fork_of(file: str, config: Any) -> dict[str, str] | None:
    """Name and digest of the code that runs, if ``file`` is none of the project's own experiments.

    The digest is of the syntax trees of the file and of the modules beside it that are in use: an
    edit makes another fork, a comment or a line break does not. Raises InputError for a fork's
    config in an experiment of the project's own, which would pass over what it adds.
    """
    path, name = Path(file).resolve(), name_of(type(config))
    if path.parent == EXPERIMENTS:
        own = ":" not in name
        check(own, f"{path.name} knows nothing of {name}: start the fork that this config is of")
        return None
    loaded = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    near = {Path(other).resolve() for other in loaded if other and other.endswith(".py")}
    # Not below it: there an environment may lie, whose modules are loaded when they are needed.
    files = sorted({path, *(other for other in near if other.parent == path.parent)})
    digest = hashlib.sha256()
    for each in files:
        tree = ast.parse(each.read_text(encoding="utf-8"))
        digest.update(f"{each.name} {ast.dump(tree)}".encode())
    return {"name": f"{path.parent.name}/{path.name}", "source": digest.hexdigest()}


def _place(config: Any, field: str, value: Any) -> Path | None:
    """Where the data lie: a file or folder, a named set below ``source``, or a task's own file."""
    if field == "task":
        return Path(value) if isinstance(value, str) and value.endswith(".py") else None
    if not isinstance(value, Path):
        return None
    if field == "reward" and reward_source(value).kind != "model":
        return None
    if field == "source" and not isinstance(config, ConvertConfig):
        return None  # of raw data
    named = field == "data" and hasattr(config, "source") and is_name(value)
    return config.source / value if named else value
