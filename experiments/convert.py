r"""Weights in and out: a Hugging Face checkpoint or GGUF file to a run folder, and back.

    python -m experiments.convert from-hf DIR --out runs/gpt2
    python -m experiments.convert to-hf runs/quickstart/ppo --out exported/policy
    python -m experiments.convert to-hf runs/quickstart/ppo --out exported/value --part value
    python -m experiments.convert to-hf runs/sft_lora --out exported/adapter --part adapter \
        --base exported/pretrained
    python -m experiments.convert to-hf runs/quickstart/ppo --out exported/policy --push owner/name

A run folder made here serves like that of a finished stage. What is written loads in transformers
and vLLM; a reward or value model as ``*ForSequenceClassification`` with one label.
"""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
from safetensors import SafetensorError

from rlhf_jax.cli import main
from rlhf_jax.config import ConvertConfig
from rlhf_jax.data.files import check_writable
from rlhf_jax.data.hub import local_model
from rlhf_jax.errors import InputError, RunError, check, describe_os_error
from rlhf_jax.interop.huggingface import save_pretrained
from rlhf_jax.interop.peft import is_adapter, save_adapter
from rlhf_jax.interop.push import check_hub, push
from rlhf_jax.models.lora import has_adapters
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.runs.hub_card import Export, write_card
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import Trained, load_any, load_value, merged


def run(config: ConvertConfig) -> None:
    """Bring a model in, or take one out."""
    if config.direction == "from-hf":
        from_hf(config)
    else:
        to_hf(config)


def from_hf(config: ConvertConfig) -> dict:
    """A finished run folder with the checkpoint's parameters, shape and tokenizer."""
    with Stage(config, "convert", __file__) as stage:
        if stage.summary is not None:
            return stage.summary
        check(
            config.base is None or is_adapter(local_model(config.source)),
            f"--base {config.base} is the model below an adapter, but {config.source} is none",
        )
        check_sha256(config)
        source = load_any(config.source, flag="source", base=config.base)
        model = replace(
            source.model,
            dtype=config.compute_dtype,
            attention=config.attention,
            scan_layers=config.scan_layers,
            remat=config.remat,
        )
        tokenizer = source.tokenizer
        if config.chat_prompts:
            tokenizer = tokenizer.with_chat_prompts()
        save_model_card(config.out, model, source.vocab_size, tokenizer, kind=source.kind)
        trunk = as_layout(source.params["trunk"], model)
        return stage.finish(source.params | {"trunk": trunk}, source=str(config.source))


def check_sha256(config: ConvertConfig) -> None:
    """Raise InputError unless the source is the file that ``config.sha256``, if given, is of."""
    if not config.sha256:
        return
    path = config.source
    check(
        path.is_file(),
        f"--sha256 is of one file, but {path} is {'a folder' if path.is_dir() else 'not there'}",
    )
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    check(found == config.sha256, f"{path}: expected SHA-256 {config.sha256}, found {found}")


def to_hf(config: ConvertConfig) -> None:
    """The folder appears complete or not at all."""
    out = config.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists already; choose a folder that does not")
    if config.push:
        check_hub(config.push)
    # Beside it and renamed at the end: half an export would load as a whole model.
    partial = out.with_name(f".{out.name}.partial")
    check_writable(partial)
    if config.part == "value":
        trained = load_value(config.source)
    else:
        trained = load_any(config.source, flag="source")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(trained, partial, config)
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise RunError(f"cannot write --out {out}: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{config.source} -> {out}")
    if config.push:
        print(f"{out} -> {push(out, config.push, private=config.private)}")


def write(trained: Trained, folder: Path, config: ConvertConfig) -> None:
    """A model as a Hugging Face checkpoint, or its adapters alone as PEFT keeps them; its card."""
    export = Export(
        config.out.name,
        config.source,
        part=config.part,
        kind=trained.kind,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        context=trained.model.context,
        dtype="float32" if config.part == "adapter" else config.dtype,
    )
    write_card(folder, export, licence=config.license, evaluations=config.evaluation)
    tokenizer = trained.tokenizer
    if config.part == "adapter":
        check(
            has_adapters(trained.params),
            f"{config.source} has no adapters; --part model exports its weights",
        )
        save_adapter(
            folder,
            trained.model,
            trained.params,
            vocab_size=trained.vocab_size,
            kind=trained.kind,
            base=str(config.base or ""),
        )
        tokenizer.save(folder, rows=trained.vocab_size)
        return
    # Others' programs know no adapters inside a checkpoint.
    trained = merged(trained)
    save_pretrained(
        folder,
        trained.model,
        trained.params,
        kind=trained.kind,
        dtype=config.dtype,
        bos_id=tokenizer.named_bos_id,
        end_ids=tokenizer.end_ids,
        # An imported model may have no row for padding, and transformers would look for one.
        pad_id=tokenizer.pad_id if tokenizer.pad_id < trained.vocab_size else None,
    )
    tokenizer.save(folder, rows=trained.vocab_size)


if __name__ == "__main__":
    main(run, ConvertConfig)
