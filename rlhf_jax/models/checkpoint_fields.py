"""Strict reading of a ``config.json``: a field that changes the outputs is never passed over."""

from collections.abc import Mapping
from typing import Any

from rlhf_jax.config import RotaryConfig
from rlhf_jax.errors import InputError


class Fields:
    """A ``config.json`` of which every field must be read, expected or known to be harmless."""

    def __init__(self, values: Mapping[str, Any], file: str):
        self._values, self.file = dict(values), file

    def take(self, name: str, default: Any = None) -> Any:
        """The field's value; without a default it must be there."""
        value = self._values.pop(name, None)
        if value is None and default is None:
            raise InputError(f"{self.file}: the field {name!r} is missing")
        return default if value is None else value

    def expect(self, name: str, *allowed: Any) -> None:
        """The field, if it is there, must have one of these values."""
        value = self._values.pop(name, allowed[0])
        if value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise InputError(f"{self.file}: {name}={value!r} is not supported, only {choices}")

    def done(self) -> None:
        """Raise InputError naming the fields that nobody read."""
        unknown = {
            k: v for k, v in self._values.items() if k not in HARMLESS.split() and v is not None
        }
        if unknown:
            fields = ", ".join(f"{name}={value!r}" for name, value in sorted(unknown.items()))
            raise InputError(
                f"{self.file}: not supported: {fields}; remove what does not change the outputs"
            )


HARMLESS = """
_name_or_path _attn_implementation_autoset architectures auto_map bos_token_id
chunk_size_feed_forward dtype eos_token_id finetuning_task gradient_checkpointing id2label
initializer_range is_decoder is_encoder_decoder is_llama_config label2id max_window_layers
model_type n_ctx num_labels output_attentions output_hidden_states output_past pad_token_id
predict_special_tokens problem_type return_dict sep_token_id summary_activation
summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params
tokenizer_class torch_dtype transformers.js_config transformers_version unk_token_id use_cache
attention_dropout attn_pdrop classifier_dropout embd_pdrop hidden_dropout resid_pdrop
"""
"""Fields that change nothing in inference, or that only describe."""

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def activation(fields: Fields, name: str) -> str:
    found = fields.take(name, "gelu")
    if found not in ACTIVATIONS:
        raise InputError(f"{fields.file}: {name}={found!r} is not supported, only {[*ACTIVATIONS]}")
    return ACTIVATIONS[found]


def rotary(fields: Fields, *, theta: str, fraction: str) -> RotaryConfig:
    """Rotary settings from transformers 5's ``rope_parameters``, or from the fields before it."""
    nested = fields.take("rope_parameters", {})
    base = float(nested.pop("rope_theta", fields.take(theta, 10_000.0)))
    share = float(nested.pop("partial_rotary_factor", fields.take(fraction, 1.0)))
    scaling = nested or fields.take("rope_scaling", {})
    fields.take("rope_scaling", {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RotaryConfig(theta=base, fraction=share)
    if kind != "llama3":
        raise InputError(
            f"{fields.file}: rotary scaling {kind!r} is not supported, only 'default' or 'llama3'"
        )
    return RotaryConfig(
        theta=base,
        fraction=share,
        factor=float(scaling["factor"]),
        low_frequency_factor=float(scaling["low_freq_factor"]),
        high_frequency_factor=float(scaling["high_freq_factor"]),
        original_context=int(scaling["original_max_position_embeddings"]),
    )


def write_rotary(rotary: RotaryConfig) -> dict[str, Any]:
    """The spelling that transformers 4 and 5 both read."""
    if rotary.factor == 1.0:
        return {"rope_theta": rotary.theta, "rope_scaling": None}
    scaling = {
        "rope_type": "llama3",
        "factor": rotary.factor,
        "low_freq_factor": rotary.low_frequency_factor,
        "high_freq_factor": rotary.high_frequency_factor,
        "original_max_position_embeddings": rotary.original_context,
    }
    return {"rope_theta": rotary.theta, "rope_scaling": scaling}
