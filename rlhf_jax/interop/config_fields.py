"""Strict reading of a ``config.json``: a field that changes the outputs is never passed over."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlhf_jax.config import RotaryConfig
from rlhf_jax.errors import InputError, check

KINDS: dict[type, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "a string"},
    **{dict: "an object", list: "a list"},
}
"""What an error calls the types of JSON and GGUF."""


class Fields:
    """A ``config.json`` of which every field must be read, expected or known to be harmless."""

    def __init__(self, values: Mapping[str, Any], file: str):
        self._values, self.given, self.file = dict(values), {*values}, file

    def take(self, name: str, default: Any = None, *, kind: type = int) -> Any:
        """The field's value, of the default's type; without one a ``kind`` of number over 0."""
        value = self._values.pop(name, None)
        if value is None and default is None:
            raise InputError(f"{self.file}: the field {name!r} is missing")
        if value is None:
            return default
        kind = kind if default is None else type(default)
        kinds = (int, float) if kind is float else kind
        # To Python true is a 1, which no number field means.
        fits = isinstance(value, kinds) and (isinstance(value, bool) == (kind is bool))
        fits &= not isinstance(value, float) or math.isfinite(value)
        if not fits or (default is None and value <= 0):
            over = " over 0" if default is None else ""
            raise InputError(f"{self.file}: {name}={value!r}, expected {KINDS[kind]}{over}")
        return value

    def or_off(self, name: str, default: Any) -> Any:
        """The field's value over 0; 0 if it is null, and the default only where it is missing."""
        if name in self._values and self._values[name] is None:
            return 0
        value = self.take(name, default)
        if name in self.given and value <= 0:
            raise InputError(f"{self.file}: {name}={value!r}, expected a number over 0 or null")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """The field, if it is there and not null, must have one of these values."""
        value = self._values.pop(name, None)
        if value is not None and value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise InputError(f"{self.file}: {name}={value!r} is not supported, only {choices}")

    def done(self) -> None:
        """Raise InputError naming the fields that nobody read."""
        harmless = {*DESCRIPTIONS.split(), *SAMPLING.split()}
        unknown = {
            name: value
            for name, value in self._values.items()
            # null is how older versions write a field that they do not use.
            if value is not None and name not in harmless and value not in NEUTRAL.get(name, ())
        }
        if unknown:
            fields = ", ".join(f"{name}={value!r}" for name, value in sorted(unknown.items()))
            raise InputError(
                f"{self.file}: not supported: {fields}; remove what does not change the outputs"
            )


DESCRIPTIONS = """
_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
_flash_attn_2_enabled _name_or_path _num_labels architectures attention_dropout
attention_probs_dropout_prob attn_implementation attn_pdrop author auto_map bos_token_id
cache_implementation chunk_size_feed_forward classifier_dropout created_date custom_pipelines
dtype embd_pdrop eos_token_id finetuning_task gradient_checkpointing hidden_dropout
hidden_dropout_prob id2label initializer_range is_decoder is_llama_config label2id language
license max_sequence_length max_window_layers model_max_length model_type n_ctx num_labels
output_attentions output_hidden_states output_past pad_token_id predict_special_tokens
problem_type resid_pdrop return_dict sep_token_id seq_length summary_activation
summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params
tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config transformers_version
unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache xla_device
"""
"""Fields that only describe, or that change nothing in inference."""
SAMPLING = """
bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens min_length
no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix
remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature
top_k top_p typical_p
"""
"""Defaults of transformers' ``generate``, which older versions kept in config.json: how to sample
is said by our own flags."""
LOCAL_THETA = "rope_local_base_freq"
"""Where configs from before transformers 5 have the θ of Gemma 3's sliding layers."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "cross_attention_hidden_size": (0,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": ({},),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
}
"""Fields that would change the model, and the values with which they do not."""

ACTIVATIONS: dict[str, Literal["gelu_tanh", "gelu"]] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}


def activation(fields: Fields, name: str, *, default: str) -> Literal["gelu_tanh", "gelu"]:
    """Our name of a field's activation. Raises InputError for any but GELU, exact or not."""
    value = fields.take(name, default)
    if value not in ACTIVATIONS:
        raise InputError(f"{fields.file}: {name}={value!r} is not supported, only {[*ACTIVATIONS]}")
    return ACTIVATIONS[value]


def rotary(
    fields: Fields, *, theta: str, fraction: str, share: float = 1.0, base: float = 10_000.0
) -> RotaryConfig:
    """Rotary settings from transformers 5's ``rope_parameters``, or from the fields before it.

    ``share`` and ``base`` are the family's own fraction and θ where the config says none.
    """
    nested = Fields(fields.take("rope_parameters", {}), f"{fields.file}: rope_parameters")
    older = fields.take("rope_scaling", {})
    base, share = fields.take(theta, base), fields.take(fraction, share)
    base = float(nested.take("rope_theta", base))
    share = float(nested.take("partial_rotary_factor", share))
    scaling = nested
    if older:
        scaling = Fields(older, f"{fields.file}: rope_scaling")
        # Where a config has both, the newer one may not say anything else.
        nested.expect("rope_type", older.get("rope_type", "default"))
        nested.done()
    kind = scaling.take("type", "default")
    kind = scaling.take("rope_type", kind)
    if kind == "default":
        scaling.done()
        return RotaryConfig(theta=base, fraction=share)
    if kind not in ("llama3", "linear"):
        raise InputError(
            f"{fields.file}: rotary scaling {kind!r} is not supported, only 'default', 'linear' or "
            "'llama3'"
        )

    def number(name: str) -> float:
        return float(scaling.take(name, kind=float))

    if kind == "linear":
        factor = number("factor")
        scaling.done()
        return RotaryConfig(theta=base, fraction=share, factor=factor, stretch="all")
    config = RotaryConfig(
        theta=base,
        fraction=share,
        factor=number("factor"),
        low_frequency_factor=number("low_freq_factor"),
        high_frequency_factor=number("high_freq_factor"),
        original_context=scaling.take("original_max_position_embeddings"),
    )
    scaling.done()
    return config


def rotary_by_kind(fields: Fields, *, base: float, local: float) -> tuple[RotaryConfig, float]:
    """(settings of full layers, θ of sliding ones) of a family that turns them differently.

    ``base`` and ``local`` are the θ of both where the config says none. Raises InputError for
    sliding layers that are stretched.
    """
    nested = Fields(fields.take("rope_parameters", {}), f"{fields.file}: rope_parameters")
    names = {"full_attention": ("rope_theta", base), "sliding_attention": (LOCAL_THETA, local)}
    found = {}
    for kind, (theta, default) in names.items():
        given = {"rope_parameters": nested.take(kind, {}), theta: fields.take(theta, default)}
        if kind == "full_attention":
            given["rope_scaling"] = fields.take("rope_scaling", {})
        one = Fields(given, f"{fields.file}: {kind}")
        found[kind] = rotary(one, theta=theta, fraction="partial_rotary_factor")
    nested.done()
    sliding, full = found["sliding_attention"], found["full_attention"]
    plain = RotaryConfig(theta=sliding.theta)
    check(
        sliding == plain
        and full.fraction == 1.0
        and (full.factor == 1.0 or full.theta != plain.theta),
        f"{fields.file}: rotary positions of sliding layers are stretched, or rotate a part of a "
        "head, which is not supported",
    )
    return full, sliding.theta


def write_rotary(rotary: RotaryConfig) -> dict[str, Any]:
    """The spelling that transformers 4 and 5 both read."""
    if rotary.factor == 1.0:
        return {"rope_theta": rotary.theta, "rope_scaling": None}
    if rotary.stretch == "all":
        scaling = {"rope_type": "linear", "factor": rotary.factor}
        return {"rope_theta": rotary.theta, "rope_scaling": scaling}
    scaling = {
        "rope_type": "llama3",
        "factor": rotary.factor,
        "low_freq_factor": rotary.low_frequency_factor,
        "high_freq_factor": rotary.high_frequency_factor,
        "original_max_position_embeddings": rotary.original_context,
    }
    return {"rope_theta": rotary.theta, "rope_scaling": scaling}


def period(values: Sequence[Any], plain: Any = 0) -> tuple[Any, ...]:
    """The first values that the others repeat, one of each layer; none if all are ``plain``."""
    length = next(
        n
        for n in range(1, len(values) + 1)
        if all(value == values[i % n] for i, value in enumerate(values))
    )
    return () if set(values) == {plain} else tuple(values[:length])
