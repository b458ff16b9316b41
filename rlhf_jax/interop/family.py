"""What a family of models is: a row of data, how its checkpoints lie and what its trunks are."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from rlhf_jax.config import ModelConfig
from rlhf_jax.interop.config_fields import Fields

ANY = """
n_layers d_model n_heads d_ff context norm_eps tied rotary
unused_rows export_as pooling lora_scale dropout scan_layers remat attention logit_rows dtype
"""
"""Fields of ModelConfig that any family may have as it likes, or that are no part of a model."""
PART = re.compile(r"(?<![^.])([^.\[]+)\[(\d+)\]")
"""A part of a stacked tensor in a name, and its number."""
GPT2_TRAITS = vars(ModelConfig()) | {"thetas": (), "fraction": 1.0}
"""What a trunk is where its family does not say: the defaults of ModelConfig."""


def anything(value: Any) -> bool:
    """Of a field that a family's ``config.json`` says: it may have any value."""
    return True


class Family(NamedTuple):
    """How the models of one ``model_type`` lie in a checkpoint, and how their config reads."""

    model_type: str
    causal: str
    """Architecture with a language-model head; the reward model's has ``classifier``."""
    classifier: str
    base: str
    """Prefix of the trunk's tensors in a checkpoint with a head; the bare trunk's have none."""
    names: Mapping[str, str]
    """Our module → theirs, both dotted; {i} is the layer. Where one of their tensors holds several
    of ours, stacked, [k] behind its name says which."""
    lm_head: str
    kernels: Literal["in_out", "out_in"]
    """Layout of a dense layer's weight: GPT-2's Conv1D, or torch.nn.Linear's."""
    qkv: Literal["fused", "per_head", "separate"]
    """Queries, keys, values: one tensor as ours, one interleaved head by head, or three."""
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    traits: Mapping[str, Any] = {}
    """What its trunks always are, where that is not as in GPT-2: fields of ModelConfig."""
    varies: Mapping[str, Callable[[Any], bool]] = {}
    """Further fields that its config says (of ``rotary``: thetas and fraction), and whether it can
    say a value."""

    @property
    def stacked(self) -> dict[str, int]:
        """Of each of their modules that holds several of ours the last name, and how many."""
        found = [PART.search(name) for name in self.names.values()]
        return dict(Counter(match[1] for match in found if match))

    def has(self, c: ModelConfig) -> bool:
        """Whether ``c`` is a trunk of this family."""
        always = GPT2_TRAITS | dict(self.traits)
        found = {name: value for name, value in vars(c).items() if name not in ANY.split()}
        # 0, or nothing, in as many words.
        found["n_kv_heads"] *= c.kv_heads != c.n_heads
        found["head_dim"] *= c.width * c.n_heads != c.d_model
        found["windows"] *= any(c.windows)
        found["qk_norm_over"] = c.qk_norm_over if c.qk_norm else "head"
        if c.positions == "rotary":
            found |= {"thetas": c.rotary.thetas, "fraction": c.rotary.fraction}
        return all(
            self.varies[name](value) if name in self.varies else value == always[name]
            for name, value in found.items()
        )
