"""Random weights of a case as Hugging Face checkpoints, which both sides start from.

    python -m benchmarks.export CASE FOLDER

writes FOLDER/lm and, where the case has them, FOLDER/scalar (reward and value model).
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models

from benchmarks.cases import EOS, SHAPES, Case, from_json
from rlhf_jax.config import ModelConfig
from rlhf_jax.interop.huggingface import save_pretrained
from rlhf_jax.models.heads import make_language_model, make_scalar_model

STRONG = 5.0
"""Far above the size of embeddings (0.02): what decides the token."""


def export(case: Case, folder: Path) -> None:
    """Write the weights that a case starts from under ``folder``."""
    shape, config = SHAPES[case.shape], config_of(case)
    key = jax.random.key(0)
    params = make_language_model(config, shape.vocab_size).init(key)
    if case.end == "early":
        # What stands at position p decides the token at p + 1.
        end_at(params["trunk"], case.prompt + case.answer_length - 2)
    save = partial(save_pretrained, dtype="float32", bos_id=None, end_ids=(EOS,), pad_id=EOS)
    save(folder / "lm", config, params, kind="lm")
    if case.suite in ("reward", "ppo", "memory"):
        scalar = make_scalar_model(config, shape.vocab_size)
        trunk = make_language_model(config, shape.vocab_size).init(jax.random.key(1))["trunk"]
        params = scalar.init(jax.random.key(2), trunk)
        save(folder / "scalar", config, params, kind="scalar")
        words = {f"<{i}>": i for i in range(shape.vocab_size)}
        Tokenizer(models.WordLevel(words, unk_token="<1>")).save(str(folder / "tokenizer.json"))


def config_of(case: Case) -> ModelConfig:
    """The shape of a case as our config."""
    shape = SHAPES[case.shape]
    return ModelConfig(
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_heads=shape.n_heads,
        context=shape.context,
    )


def end_at(trunk: dict, position: int) -> None:
    """Make the end of text certain from ``position`` on: a direction that only EOS reads."""
    width = trunk["wte"].shape[1]
    direction = np.where(np.arange(width) % 2, 1.0, -1.0) / np.sqrt(width)
    trunk["wte"] = trunk["wte"].at[EOS].set(jnp.asarray(direction, jnp.float32))
    trunk["wpe"] = trunk["wpe"].at[position:].add(jnp.asarray(STRONG * direction, jnp.float32))


if __name__ == "__main__":
    export(from_json(sys.argv[1]), Path(sys.argv[2]))
