"""Parameters as a CPU reads them quickest token after token: copies, made once before the loop.

Values are those of the parameters as they lie. Programs for other devices hold none of this.
"""

from dataclasses import replace

import jax.numpy as jnp

from rlhf_jax.config import ModelConfig
from rlhf_jax.models import layout
from rlhf_jax.models.layers import accumulator
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.types import Params

FEW_ROWS = range(2, 33)
"""Numbers of rows at which a transposed kernel is quicker; one row reads weights as they lie."""
WIDE = 256
"""Width of a model from which transposed kernels pay; narrower ones gain nothing or lose."""


def prefers_transposed(rows: int, config: ModelConfig) -> bool:
    """Whether one CPU decodes so many rows quicker with transposed kernels."""
    # bfloat16 is multiplied by other kernels, and several devices split the plain layout.
    plain = accumulator(config.dtype) == config.dtype and layout.on_one_device()
    return plain and rows in FEW_ROWS and config.d_model >= WIDE


def prefers_rearranged(rows: int, config: ModelConfig) -> bool:
    """Whether one CPU decodes so many rows quicker with ``rearranged`` parameters."""
    # Of stacked layers each product would first cut its kernel out, again for every token.
    stacked = config.scan_layers and layout.on_one_device()
    return stacked or prefers_transposed(rows, config)


def rearranged(params: Params, rows: int, config: ModelConfig) -> Params:
    """``params`` as decoding steps of so many rows read them quickest on a CPU: copies."""
    apart = as_layout(params["trunk"], replace(config, scan_layers=False))
    params = params | {"trunk": apart}
    if not prefers_transposed(rows, config):
        return params
    return transpose_kernels(params) | (transposed_head(params) if config.tied else {})


def transposed_head(params: Params) -> Params:
    """A tied unembedding, which lies as [out, in] already."""
    return {"lm_head": {"transposed": params["trunk"]["wte"]}}


def transpose_kernels(params: Params) -> Params:
    """``params`` whose kernels are stored [out, in], under the name ``transposed``."""
    if not isinstance(params, dict):
        return params
    transposed = {
        name: transpose_kernels(leaf) for name, leaf in params.items() if name != "kernel"
    }
    if "kernel" in params:
        transposed["transposed"] = jnp.swapaxes(params["kernel"], -1, -2)
    return transposed
