"""What a model is beside its parameters: its shape, its tokenizer, its kind, and their file."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import jax

from rlhf_jax.cli import to_dict
from rlhf_jax.config import ModelConfig
from rlhf_jax.data.files import write_atomically
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError
from rlhf_jax.runs.records import read_object
from rlhf_jax.types import Params

Kind = Literal["lm", "scalar"]
"""A language model, or a model with a scalar head (reward, value)."""


class Trained(NamedTuple):
    """A model that exists already."""

    model: ModelConfig
    vocab_size: int
    """Rows of the embedding: there may be more or fewer than the tokenizer has ids
    (``model.unused_rows``; padding that the model never sees)."""
    tokenizer: Tokenizer
    params: Params
    """None where there is only a shape, which nothing has trained yet."""
    kind: Kind


def save_model_card(
    folder: Path,
    model: ModelConfig,
    vocab_size: int,
    tokenizer: Tokenizer,
    *,
    kind: Kind,
    value: ModelConfig | None = None,
    lengths: Mapping[str, int] | None = None,
    average_of: Mapping[str, float] | None = None,
) -> None:
    """The model's shape and its tokenizer, which later stages read.

    ``value`` is the shape of PPO's value network; ``lengths`` are those of the prompts
    and answers that it learns from; ``average_of`` the weights of the models that it is made of.
    """
    # One process writes for all: the hosts share the folder.
    if jax.process_index() != 0:
        return
    tokenizer.save(folder / "tokenizer")
    card = {"model": to_dict(model), "vocab_size": vocab_size, "kind": kind}
    if value is not None:
        # Of the reward model that it may start from, but a value is a number per state.
        card["value"] = to_dict(replace(value, pooling="last"))
    if lengths is not None:
        card["lengths"] = dict(lengths)
    if average_of is not None:
        card["average_of"] = dict(average_of)
    write_atomically(folder / "model.json", json.dumps(card, indent=1))


def read_card(folder: Path, flag: str) -> dict:
    """model.json of a run folder. Raises InputError naming ``flag`` where there is none."""
    path = folder / "model.json"
    if not path.is_file():
        why = "found no model.json in it" if folder.exists() else "nothing is there"
        raise InputError(f"--{flag} {folder}: expected a run folder, {why}")
    return read_object(path, "model", "vocab_size", "kind")
