"""What tells one model from another, wherever its folder is: digests of weights and settings."""

import hashlib
from contextlib import suppress
from pathlib import Path

from rlhf_jax.data.hub import local_model
from rlhf_jax.errors import InputError
from rlhf_jax.interop.huggingface import is_checkpoint
from rlhf_jax.interop.peft import base_of, is_adapter
from rlhf_jax.interop.weight_files import find_weights
from rlhf_jax.runs.checkpoint_files import json_sha256
from rlhf_jax.runs.inputs import file_sha256
from rlhf_jax.runs.kept_steps import kept_digest, kept_step, run_of
from rlhf_jax.runs.records import read_done


def model_digest(path: Path) -> str | None:
    """What tells one model from another, wherever its folder is: a digest of its weights.

    That of a finished run, or of a step that it has kept, is of the parameters, a checkpoint's that
    of its files of weights. None where there is none of them.
    """
    try:
        path = local_model(path)
    except InputError:  # who loads it says what is wrong
        return None
    kept = kept_step(path)
    if kept is not None:
        return kept_digest(kept)
    done = read_done(path)
    if done is not None:
        return done.get("params_sha256")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if is_checkpoint(path):
        with suppress(InputError):  # who loads it says what is wrong
            files = sorted(set(find_weights(path).files.values()))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest() if files else None


SETTINGS_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "rlhf_jax.json"),
    *("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "chat_template.jinja"),
)
"""What a folder of Hugging Face says of a model besides its weights."""


def settings_digest(path: Path) -> str | None:
    """What tells models of the same weights apart; None of a single file.

    That is shape, tokenizer, chat template, and the model below an adapter. A single file is read
    whole by ``model_digest``.
    """
    try:
        path = run_of(local_model(path))
    except InputError:
        return None
    if (path / "model.json").is_file():
        files = [path / "model.json", *sorted((path / "tokenizer").glob("*"))]
    else:
        files = [path / name for name in SETTINGS_FILES if (path / name).is_file()]
    digests: list[list[str | None]] = [[file.name, file_sha256(file)] for file in files]
    if is_adapter(path):
        base = base_of(path)
        digests += [[base, model_digest(Path(base)), settings_digest(Path(base))]] if base else []
    return json_sha256(digests) if digests else None
