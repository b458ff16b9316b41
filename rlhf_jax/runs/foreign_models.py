"""Models from elsewhere, with their tokenizers: Hugging Face, PEFT's adapters, GGUF."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.data.hub import local_model
from rlhf_jax.data.tokenizer_files import has_tokenizer, load_tokenizer
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.data.vocabularies import tokenizer_of
from rlhf_jax.errors import InputError, check
from rlhf_jax.interop.gguf import load_gguf
from rlhf_jax.interop.huggingface import load_pretrained, read_shape
from rlhf_jax.interop.peft import load_adapter, read_adapter
from rlhf_jax.interop.pretrained import Imported, on_default_device
from rlhf_jax.runs.model_card import Trained
from rlhf_jax.runs.progress import say
from rlhf_jax.training.parallel import place
from rlhf_jax.types import Params

Shardings = Callable[[Params], Params]
"""Where the parameters of a tree of shapes shall lie (Parallel.shardings)."""


def load_checkpoint(folder: Path, shardings: Shardings | None) -> Trained:
    """A checkpoint of Hugging Face; what its file holds and is not read is said."""

    def in_parts(names: tuple[str, ...], value: np.ndarray) -> jax.Array:
        assert shardings is not None
        tree: Any = value
        for name in reversed(names):
            tree = {name: tree}
        # Placed as it is read, so that no single device has to hold all of the model.
        return place(value, jax.tree.leaves(shardings(tree))[0])

    imported = load_pretrained(folder, on_default_device if shardings is None else in_parts)
    if imported.unread:
        say(f"{folder}: as transformers does, nothing is read of {', '.join(imported.unread)}")
    if imported.prefix:
        say(f"{folder}: all names of its tensors begin with {imported.prefix}, which is left out")
    return imported_model(folder, imported, load_tokenizer(folder))


def read_checkpoint(folder: Path) -> Trained:
    """``load_checkpoint`` without parameters."""
    model, rows = read_shape(folder)
    tokenizer = load_tokenizer(folder)
    return with_tokenizer(folder, Trained(model, rows, tokenizer, None, "lm"), tokenizer)


def adapter_base(folder: Path, flag: str, base: Path | None) -> Path:
    """The model that a PEFT adapter stands on: ``base``, or the one that it names."""
    named = read_adapter(folder).base
    below = local_model(base or Path(named))
    if not below.is_dir() or (not named and base is None):
        raise InputError(
            f"--{flag} {folder} is an adapter of {named!r}, which is no folder here; give "
            f"that model: python -m experiments.convert from-hf {folder} --base MODEL --out RUN"
        )
    return below


def with_adapter(folder: Path, below: Trained) -> Trained:
    """The model ``below`` with a PEFT adapter on it, which stays apart from its weights."""
    adapter = read_adapter(folder)
    params, kind = load_adapter(adapter, below.model, below.vocab_size, below.params)
    shape = replace(below.model, lora_scale=adapter.scale)
    trained = below._replace(model=shape, params=params, kind=kind)
    if not has_tokenizer(folder):
        return trained
    return with_tokenizer(folder, trained, load_tokenizer(folder))


def load_gguf_file(path: Path) -> Trained:
    """A .gguf file, with the vocabulary in it."""
    imported, vocabulary = load_gguf(path)
    try:
        tokenizer = tokenizer_of(**vocabulary._asdict())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return imported_model(path, imported, tokenizer)


def imported_model(path: Path, imported: Imported, tokenizer: Tokenizer) -> Trained:
    """What ``path`` holds as a model of ours: with a head it is a reward or value model."""
    kind = "scalar" if "head" in imported.params else "lm"
    trained = Trained(imported.model, imported.vocab_size, tokenizer, imported.params, kind)
    return with_tokenizer(path, trained, tokenizer)


def with_tokenizer(path: Path, trained: Trained, tokenizer: Tokenizer) -> Trained:
    """``trained`` with the tokenizer that stands at ``path``.

    Raises InputError for tokens that the embedding has no row for; padding needs none.
    """
    beyond = tokenizer.beyond(trained.vocab_size)
    names = ", ".join(map(repr, beyond[:5])) + (", ..." if len(beyond) > 5 else "")
    check(
        not beyond,
        f"{path}: the tokenizer has ids that the {trained.vocab_size} rows of the embedding do not "
        f"have: those of {names}; resize the embedding, or take these tokens out",
    )
    unused = max(0, trained.vocab_size - tokenizer.vocab_size)
    model = replace(trained.model, unused_rows=unused)
    return trained._replace(model=model, tokenizer=tokenizer)
