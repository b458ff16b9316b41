"""Models of every family with adapters, and their logits."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from families import SHAPES, random_params

from rlhf_jax.config import LoRAConfig
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.lora import add_adapters

LORA = LoRAConfig(rank=3, alpha=6.0, targets="attn/.*")
SCALE = LORA.alpha / LORA.rank
VOCAB = 31


def adapted(name, *, scan=False, lora=LORA, random=True, dtype="float32"):
    """Model config and parameters with adapters that do something."""
    config = dataclasses.replace(SHAPES[name], scan_layers=scan, lora_scale=SCALE, dtype=dtype)
    base = jax.tree.map(lambda x: x.astype(dtype) / 4, random_params(config, vocab_size=VOCAB))
    params = add_adapters(jax.random.key(1), base, config, lora)
    if random:
        noise = iter(jax.random.split(jax.random.key(2), 100))
        fill = lambda path, x: (
            0.3 * jax.random.normal(next(noise), x.shape) if path[-1].key == "lora_b" else x
        )
        params = jax.tree_util.tree_map_with_path(fill, params)
    return config, base, params


def logits(config, params, vocab_size=VOCAB):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 9)), jnp.int32)
    read = jax.jit(partial(make_language_model(config, vocab_size).logits, start=0))
    return read(params, tokens, jnp.ones(tokens.shape, bool))
