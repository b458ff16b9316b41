"""Models that a stage starts from: an earlier run, a Hugging Face checkpoint, or a GGUF file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from rlhf_jax.cli import from_dict, read_json
from rlhf_jax.config import LoRAConfig, ModelConfig, PPOConfig
from rlhf_jax.config.rewards import reward_source
from rlhf_jax.data.hub import local_model
from rlhf_jax.data.tokenizer_files import has_tokenizer, load_tokenizer
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError, check
from rlhf_jax.interop.gguf import is_gguf
from rlhf_jax.interop.huggingface import is_checkpoint
from rlhf_jax.interop.peft import is_adapter
from rlhf_jax.models.heads import make_scalar_model, zero_head
from rlhf_jax.models.lora import (
    adapter_rank,
    adapter_shapes,
    add_adapters,
    combine,
    has_adapters,
    merge_adapters,
    partition,
    share_equal,
)
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.runs.checkpoint_files import list_steps
from rlhf_jax.runs.checkpoints import load_params
from rlhf_jax.runs.foreign_models import (
    Shardings,
    adapter_base,
    load_checkpoint,
    load_gguf_file,
    read_checkpoint,
    with_adapter,
)
from rlhf_jax.runs.kept_steps import (
    Kept,
    is_run,
    kept_step,
    load_kept,
    number_of,
    run_of,
)
from rlhf_jax.runs.model_card import Kind, Trained, read_card
from rlhf_jax.runs.model_digests import model_digest
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.records import read_done, read_object, read_run
from rlhf_jax.training.hosts import agreed_time
from rlhf_jax.types import Params


def load_trained(
    path: Path,
    *,
    flag: str,
    kind: Kind = "lm",
    share: Trained | None = None,
    shardings: Shardings | None = None,
) -> Trained:
    """The model in a finished stage's run folder, a Hugging Face checkpoint, or a .gguf file.

    Or a step that a run has kept (runs/kept_steps.py), of PPO the network of this ``kind``.
    A language model's adapters are merged into its weights: the next stage adds its own. Those of
    a reward model stay apart, so that it can share the weights below them: what it has in common
    with ``share`` will be the same arrays.

    With ``shardings`` each process reads from a run only the parts that lie on its devices.
    Raises InputError naming ``flag`` if there is none, or one of another kind.
    """
    kept = kept_step(path)
    if kept is not None and kind == "scalar" and "value" in read_card(kept.run, flag):
        trained = load_value(path)
    else:
        trained = load_any(path, flag=flag, shardings=shardings)
    if trained.kind != kind:
        names = {"lm": "a language model", "scalar": "a reward or value model"}
        raise InputError(f"--{flag} {path} is {names[trained.kind]}, expected {names[kind]}")
    if share is not None:
        trained = trained._replace(params=share_equal(trained.params, share.params))
    return merged(trained) if kind == "lm" else trained


def training_config(path: Path) -> dict:
    """The config that a run folder's model was trained with; empty for a model from elsewhere."""
    run = run_of(path)
    return read_run(run, stage=None).config if is_run(run) else {}


def load_reader(path: Path, *, flag: str) -> Trained:
    """What ``load_any`` would load, without parameters where the rest can be read without them."""
    path = local_model(path)
    if is_adapter(path) or is_gguf(path):
        return load_any(path, flag=flag)
    if is_checkpoint(path):
        return read_checkpoint(path)
    path = run_of(path)
    card = read_card(path, flag)
    model = from_dict(ModelConfig, card["model"], str(path / "model.json"))
    tokenizer = load_tokenizer(path / "tokenizer")
    return Trained(model, card["vocab_size"], tokenizer, None, card["kind"])


def trained_lengths(path: Path) -> dict[str, int]:
    """prompt_length and response_length of a run folder's model; empty where none are known."""
    path = run_of(path)
    card = path / "model.json"
    known = read_object(card).get("lengths") if card.is_file() else None
    known = known or training_config(path)
    names = ("prompt_length", "response_length")
    lengths = {name: known[name] for name in names if known.get(name) is not None}
    return lengths if len(lengths) == len(names) else {}


def names_apart(paths: Iterable[Path]) -> dict[Path, str]:
    """A name for each folder: its own, with as many of those above it as tell all apart.

    runs/a/sft and runs/b/sft are ``a-sft`` and ``b-sft``.
    """
    parts = {path: path.absolute().parts[1:] for path in paths}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        names = {path: "-".join(folders[-length:]) for path, folders in parts.items()}
        if len(set(names.values())) == len(set(parts.values())):
            return names
    return {}


def load_by_name(
    paths: Sequence[Path], names: Mapping[Path, str], *, flag: str
) -> dict[str, Trained]:
    """Language models by their ``names_apart``. Raises InputError for one that is given twice."""
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    check(not twice, f"--{flag} names {', '.join(twice)} twice")
    return {names[path]: load_trained(path, flag=flag) for path in paths}


def merged(trained: Trained) -> Trained:
    """The same model without adapters."""
    params = merge_adapters(trained.params, trained.model.lora_scale)
    return trained._replace(params=params, model=replace(trained.model, lora_scale=1.0))


ADAPTERS = 2**31 - 1
"""Folded into a run's key for the adapters: no step has this number."""


def with_adapters(
    trained: Trained, config: LoRAConfig, *, seed: int, what: str = "model"
) -> Trained:
    """What a stage trains: with the adapters that ``config`` asks for.

    Adapters that are there already go on if they are of that rank, scale and place. Others are
    merged, which is said of ``what``, and without ``config.rank`` all weights train.
    """
    # Full training of a model with adapters starts from what it computes now: all of it is weights.
    if config.rank == 0:
        return merged(trained)
    whole, scale = merged(trained), config.alpha / config.rank
    key = jax.random.fold_in(jax.random.key(seed), ADAPTERS)
    add = partial(add_adapters, key, model=trained.model, config=config)
    if has_adapters(trained.params):
        # Shapes alone tell rank and place; nothing is drawn to compare.
        asked = adapter_shapes(jax.eval_shape(add, whole.params))
        if trained.model.lora_scale == scale and adapter_shapes(trained.params) == asked:
            return trained
        say(
            f"the {what}'s adapters (rank {adapter_rank(trained.params)}, scale "
            f"{trained.model.lora_scale:g}) are merged into its weights; new ones (rank "
            f"{config.rank}, scale {scale:g}) are trained"
        )
    model = replace(trained.model, lora_scale=scale)
    return trained._replace(params=add(whole.params), model=model)


def load_any(
    path: Path, *, flag: str, base: Path | None = None, shardings: Shardings | None = None
) -> Trained:
    """``load_trained`` of either kind.

    ``base`` is the model below a PEFT adapter, if it is not the one that the adapter names.
    """
    path = local_model(path)
    # Before a checkpoint: a folder may hold an adapter beside the config of its base model.
    if is_adapter(path):
        below = adapter_base(path, flag, base)
        return with_adapter(path, merged(load_any(below, flag=flag)))
    if is_gguf(path):
        return load_gguf_file(path)
    if is_checkpoint(path):
        return load_checkpoint(path, shardings)
    kept = kept_step(path)
    if kept is not None:
        return _load_step(kept, flag, shardings)
    return _load_run(path, flag, shardings)


def load_value(path: Path) -> Trained:
    """The value network in a checkpoint of a PPO run, the newest unless ``path`` names another."""
    kept = kept_step(path) or Kept(path, "latest")
    path = kept.run
    card = read_card(path, "source")
    if "value" not in card:
        raise InputError(f"{path} has no value network, expected a run folder of PPO")
    params = load_kept(kept)
    tokenizer = load_tokenizer(path / "tokenizer")
    network = "value" if "value" in params else "policy"  # a shared trunk: its head is in there
    params = params[network]
    if has_adapters(params):
        params = combine(frozen_below(path, network), params)
    model = card["value"] if network == "value" else card["model"]
    model = from_dict(ModelConfig, model, str(path / "model.json"))
    params = {name: params[name] for name in ("trunk", "head")}
    return Trained(model, card["vocab_size"], tokenizer, params, "scalar")


def _load_step(kept: Kept, flag: str, shardings: Shardings | None) -> Trained:
    """What a stage would have handed on after a step; of a reward model without normalisation."""
    card = read_card(kept.run, flag)
    model = from_dict(ModelConfig, card["model"], str(kept.run / "model.json"))
    params = load_kept(kept, shardings=shardings)
    params = params.get("policy", params)  # of PPO, beside the value network
    if has_adapters(params):
        params = combine(frozen_below(kept.run, "policy"), params)
    if card["kind"] == "scalar":
        say(f"{kept.run}@{kept.step}: its scores are not normalised, as a finished run's are")
    params |= {"trunk": as_layout(params["trunk"], model)}
    tokenizer = load_tokenizer(kept.run / "tokenizer")
    return Trained(model, card["vocab_size"], tokenizer, params, card["kind"])


def frozen_below(path: Path, network: Literal["policy", "value"]) -> Params:
    """The weights below the adapters of a run, of which its checkpoints hold the rest.

    ``network`` is of PPO; of another stage it is "policy". Raises InputError if the model that the
    weights are of is gone, or is another now.
    """
    saved, config = read_run(path, stage=None), read_json(path / "config.json")
    field, below = "init", config.init
    if network == "value":
        field, below = value_start(config, load_tokenizer(path / "tokenizer"))
    # By contents: the base may have been moved, but adapters on other weights are another model.
    was = saved.models.get(field)
    if was is not None and model_digest(below) != was.digest:
        raise InputError(
            f"{path}: the {network} network's adapters stand on {below} "
            f"({was.digest[:12]}), which is not there or holds another model now"
        )
    if field == "init":
        trained = load_trained(below, flag=field)
        trained = policy_as_value(trained) if network == "value" else trained
    elif field == "value_init":
        trained = load_value_init(below)
    else:
        flag = field.partition("[")[0].replace("_", "-")
        trained = load_trained(below, flag=flag, kind="scalar")
    trained = with_adapters(trained, config.lora, seed=config.run.seed, what=f"{network} network")
    frozen = partition(trained.params)[1]
    # A reward model's head trains, so that it is in the checkpoint, not below it.
    return {"trunk": frozen["trunk"]} if saved.stage == "reward" else frozen


def value_start(config: PPOConfig, tokenizer: Tokenizer) -> tuple[str, Path]:
    """The field of ``config`` that names what the value network starts from, and the model there.

    ``value_init``, else the first reward model of the policy's ``tokenizer``, else ``init``.
    """
    if config.value_init is not None:
        return "value_init", config.value_init
    for n, path in enumerate(config.reward):
        if reward_source(path).kind == "model":
            try:
                same = load_reader(path, flag="reward").tokenizer.digest == tokenizer.digest
            except InputError:  # it is gone, which the caller says
                same = True
            if same:
                return f"reward[{n}]", path
    return "init", config.init


def policy_as_value(policy: Trained) -> Trained:
    """A value network that starts as the policy, with a head of 0: so are its first values."""
    scalar = make_scalar_model(policy.model, policy.vocab_size)
    params = scalar.init(jax.random.key(0), policy.params["trunk"])
    return with_zero_head(policy._replace(params=params, kind="scalar"))


def with_zero_head(scalar: Trained) -> Trained:
    """A reward or value model of which all outputs are 0, on the trunk that it has."""
    return scalar._replace(params=zero_head(scalar.params))


def load_value_init(path: Path, **options: Any) -> Trained:
    """What ``--value-init`` names: a reward or value model, or a language model with a head of 0.

    ``options`` are those of ``load_trained``.
    """
    flag, kept = "value-init", kept_step(path)
    has_value = kept is not None and "value" in read_card(kept.run, flag)
    if has_value or load_reader(path, flag=flag).kind == "scalar":
        return load_trained(path, flag=flag, kind="scalar", **options)
    return policy_as_value(load_trained(path, flag=flag, **options))


def say_if_slow(model: ModelConfig) -> None:
    """Say that training in bfloat16 is no gain on the processor that this is."""
    if model.dtype == "bfloat16" and jax.default_backend() == "cpu":
        say(
            "note: model.dtype is bfloat16, and on both kinds of CPU that were measured, with "
            "instructions for it, a training step took 1.5 times as long as in float32 or more "
            "(docs/performance.md)"
        )


def for_run(trained: Trained, run_dir: Path) -> Trained:
    """``trained`` as a run takes it: a template writes the time at which the run began.

    That a template is not used is said, and that half precision is slow here.
    """
    say_if_slow(trained.model)
    tokenizer = trained.tokenizer
    if tokenizer.chat_template is not None and not tokenizer.chat_prompts:
        say(
            "prompts are plain text, though the model has a chat template; convert from-hf "
            "--chat-prompts True makes a model whose prompts are in it"
        )
    # A resumed run keeps the time of its start, or its prompts would change with the date.
    begun = run_dir / "tokenizer"
    now = load_tokenizer(begun).now if has_tokenizer(begun) else agreed_time(tokenizer.now)
    return trained._replace(tokenizer=tokenizer.at_time(now)) if now != tokenizer.now else trained


def same_shape(first: Trained, second: Trained, flags: Sequence[str]) -> None:
    """Raise InputError unless both models have the same parameters, whatever their values."""
    shapes = [jax.tree.map(np.shape, trained.params) for trained in (first, second)]
    check(shapes[0] == shapes[1], f"--{flags[0]} and --{flags[1]} are models of different shapes")


def same_tokenizer(first: Trained, second: Trained, flags: Sequence[str]) -> None:
    """Raise InputError unless both models read the same ids."""
    if first.tokenizer.digest != second.tokenizer.digest:
        raise InputError(f"--{flags[0]} and --{flags[1]} have different tokenizers")


def check_model(path: Path, *, flag: str) -> None:
    """Raise InputError, as loading it would, if ``path`` holds no model (yet). Loads nothing."""
    path = local_model(path)
    if is_adapter(path) or is_gguf(path) or is_checkpoint(path):
        return
    kept = kept_step(path)
    if kept is None:
        _check_finished(path, flag)
    else:
        number_of(kept)


def _check_finished(folder: Path, flag: str) -> None:
    if not (folder / "model.json").is_file() or not (folder / "final").is_dir():
        there = "" if folder.exists() else "nothing is there; "
        raise InputError(
            f"--{flag} {folder}: {there}expected the run folder of a finished stage, a Hugging "
            f"Face checkpoint (config.json and safetensors) or a .gguf file{steps_of(folder)}"
        )


def _load_run(folder: Path, flag: str, shardings: Shardings | None) -> Trained:
    _check_finished(folder, flag)
    card = read_card(folder, flag)
    model = from_dict(ModelConfig, card["model"], str(folder / "model.json"))
    done = read_done(folder) or {}
    step = done.get("steps")  # of two models a run that is being made longer has the shorter one's
    final = folder / "final"
    known = step if step in list_steps(final) else "latest"
    params = load_params(final, step=known, shardings=shardings)
    params |= {"trunk": as_layout(params["trunk"], model)}
    tokenizer = load_tokenizer(folder / "tokenizer")
    return Trained(model, card["vocab_size"], tokenizer, params, card["kind"])


def steps_of(folder: Path) -> str:
    """What a run that is not finished can be read as, for the end of a sentence."""
    steps = list_steps(folder / "checkpoints")
    words = " or ".join(f"{folder}@{step}" for step in ("latest", *steps))
    return f"; steps that this run has kept are given as {words}" if steps else ""
