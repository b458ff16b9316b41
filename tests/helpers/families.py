"""The shape of each family's models, parameters for them without a program, greedy answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import ModelConfig, RotaryConfig
from rlhf_jax.interop.tensor_names import parameter_shapes
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.rollouts.generate import generate, row_keys

SHAPES = {
    "gpt2": ModelConfig(n_layers=2, d_model=16, n_heads=2, context=32),
    "neox": ModelConfig(
        n_layers=2,
        d_model=16,
        n_heads=2,
        positions="rotary",
        rotary=RotaryConfig(fraction=0.5),
        activation="gelu",
        parallel_residual=True,
        tied=False,
    ),
    "llama": ModelConfig(
        n_layers=2,
        d_model=16,
        n_heads=4,
        n_kv_heads=2,
        d_ff=24,
        positions="rotary",
        rotary=RotaryConfig(theta=500.0, factor=8.0, original_context=16),
        norm="rms",
        activation="swiglu",
        bias="none",
        tied=False,
    ),
}
SHAPES["qwen2"] = dataclasses.replace(SHAPES["llama"], bias="qkv", tied=True)
SHAPES["qwen3"] = dataclasses.replace(SHAPES["llama"], head_dim=8, qk_norm=True)
SHAPES["mistral"] = dataclasses.replace(SHAPES["llama"], windows=(3,))
SHAPES["olmo2"] = dataclasses.replace(
    SHAPES["llama"], norm_place="after", qk_norm=True, qk_norm_over="all"
)
SHAPES["smollm3"] = dataclasses.replace(
    SHAPES["llama"],
    rotary=RotaryConfig(theta=500.0, thetas=(500.0, 0.0)),
    windows=(0, 3),
    tied=True,
)
SHAPES["phi3"] = dataclasses.replace(
    SHAPES["llama"], rotary=RotaryConfig(theta=500.0), windows=(3,), export_as="phi3"
)
SHAPES["gemma2"] = dataclasses.replace(
    SHAPES["llama"],
    rotary=RotaryConfig(theta=500.0),
    windows=(3, 0),
    score_width=10,
    score_cap=5.0,
    logit_cap=3.0,
    norm="rms_offset",
    norm_place="both",
    activation="geglu",
    scale_embedding=True,
    tied=True,
)
SHAPES["gemma3"] = dataclasses.replace(
    SHAPES["gemma2"],
    rotary=RotaryConfig(theta=500.0, thetas=(50.0, 500.0), factor=8.0, stretch="all"),
    score_cap=0.0,
    logit_cap=0.0,
    qk_norm=True,
)


def random_params(config, kind="lm", vocab_size=31):
    """Parameters without compiling a program that makes them."""
    shapes = parameter_shapes(dataclasses.replace(config, scan_layers=False), vocab_size, kind)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    return params | {"trunk": as_layout(params["trunk"], config)}


def greedy(model, tokens, *, length):
    lm = make_language_model(model.model, model.vocab_size)
    generation = generate(
        lm,
        model.params,
        tokens,
        jnp.ones(tokens.shape, bool),
        row_keys(jax.random.key(0), len(tokens)),
        length=length,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        end_ids=(-1,),
        pad_id=0,
        at_once=1.0,
    )
    return np.asarray(generation.responses)
