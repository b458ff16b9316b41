"""Real trained weights, exports, and every way a checkpoint can be wrong."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import SHAPES, greedy, random_params
from precision import in_float64
from safetensors.numpy import load_file, save_file

from rlhf_jax.config import ModelConfig, RotaryConfig
from rlhf_jax.errors import InputError
from rlhf_jax.interop import huggingface
from rlhf_jax.interop.config_fields import Fields
from rlhf_jax.interop.families import GPT2
from rlhf_jax.interop.gguf import unpair
from rlhf_jax.interop.huggingface import load_pretrained, save_pretrained
from rlhf_jax.interop.pretrained import shape_of
from rlhf_jax.interop.tensor_names import parameter_shapes
from rlhf_jax.models.attention import segments_from_mask
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.transformer import Transformer, as_layout, positions_of

DATA = Path(__file__).parents[2] / "data"
SORT = DATA / "model_gpt2_sort"


def resolved(config):
    """With what 0 stands for filled in."""
    sizes = dict(n_kv_heads=config.kv_heads, head_dim=config.width, d_ff=config.hidden)
    sizes["score_width"] = config.score_width or config.width
    return dataclasses.replace(config, scan_layers=False, **sizes)


def assert_as_written(found, written, atol):
    """What another program computed in float32. Ours does not round: on every processor the
    distance is that of the file's numbers from the exact ones."""
    np.testing.assert_allclose(found, np.array(written), rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_gpt2_sort_has_the_activations_that_pytorch_computed():
    reference = json.loads((SORT / "reference.json").read_text())
    model = in_float64(load_pretrained(SORT))
    tokens = jnp.array(reference["idx"], jnp.int32)
    mask = jnp.ones(tokens.shape, bool)
    module = Transformer(model.model, model.vocab_size)
    inputs = (tokens, positions_of(mask), segments_from_mask(mask))
    (hidden, _), found = module.apply(
        {"params": model.params["trunk"]}, *inputs, capture_intermediates=True
    )
    for i in range(3):
        block = found["intermediates"][f"block_{i}"]["__call__"][0][0]
        assert_as_written(block, reference[f"block{i}"], 2e-5)
    assert_as_written(hidden, reference["ln_f"], 2e-5)
    lm = make_language_model(model.model, model.vocab_size)
    logits = lm.logits(model.params, tokens, mask, start=0)
    assert_as_written(logits, reference["lm_head"], 2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_gpt2_sort_sorts_500_of_500():
    letters = jnp.asarray(np.random.default_rng(0).integers(0, 3, (500, 6)), jnp.int32)
    found = greedy(in_float64(load_pretrained(SORT)), letters, length=6)
    np.testing.assert_array_equal(found, np.sort(letters, axis=1))


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """karpathy's stories260K: from llama2.c's layout (stacked, paired rotary) to Hugging Face's."""
    source = DATA / "model_stories260k"
    folder = tmp_path_factory.mktemp("stories260k")
    c = json.loads((source / "config.json").read_text())
    raw = load_file(source / "model.safetensors")
    layer = {
        "attention_norm.weight": ("input_layernorm.weight", None),
        "wq": ("self_attn.q_proj.weight", c["n_heads"]),
        "wk": ("self_attn.k_proj.weight", c["n_kv_heads"]),
        "wv": ("self_attn.v_proj.weight", None),
        "wo": ("self_attn.o_proj.weight", None),
        "ffn_norm.weight": ("post_attention_layernorm.weight", None),
        "w1": ("mlp.gate_proj.weight", None),
        "w2": ("mlp.down_proj.weight", None),
        "w3": ("mlp.up_proj.weight", None),
    }
    tensors = {
        "model.embed_tokens.weight": raw["tok_embeddings.weight"],
        "model.norm.weight": raw["norm.weight"],
    }
    for ours, (theirs, heads) in layer.items():
        for i, value in enumerate(raw[ours]):
            value = unpair(value, heads) if heads else value
            tensors[f"model.layers.{i}.{theirs}"] = np.ascontiguousarray(value)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c["vocab_size"],
        "hidden_size": c["dim"],
        "intermediate_size": c["hidden_dim"],
        "num_hidden_layers": c["n_layers"],
        "num_attention_heads": c["n_heads"],
        "num_key_value_heads": c["n_kv_heads"],
        "max_position_embeddings": c["max_seq_len"],
        "rms_norm_eps": c["norm_eps"],
        "rope_theta": c["rope_theta"],
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return load_pretrained(folder), json.loads((source / "reference.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_stories260k_has_its_logits(stories):
    model, reference = in_float64(stories[0]), stories[1]
    tokens = jnp.array([reference["greedy_ids"][:8]], jnp.int32)
    lm = make_language_model(model.model, model.vocab_size)
    logits = lm.logits(model.params, tokens, jnp.ones((1, 8), bool), start=0)
    assert_as_written(logits[0], reference["logits_of_first_8_positions"], 1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_stories260k_tells_its_story(stories):
    model, reference = in_float64(stories[0]), stories[1]
    ids = reference["greedy_ids"]
    found = greedy(model, jnp.array([ids[:1]], jnp.int32), length=len(ids) - 1)
    assert found[0].tolist() == ids[1:]
    lines = (DATA / "model_stories260k" / "vocab.jsonl").read_text().splitlines()
    pieces = [json.loads(line)["piece"] for line in lines]
    text = "".join(pieces[i] for i in found[0]).replace("<0x0A>", "\n")
    assert text == reference["greedy_text"]
    assert text.startswith(" Once upon a time, there was a little girl named Lily.")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["lm", "scalar"])
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.cases(11)
def test_every_family_survives_the_way_out_and_in(name, kind, scanned, tmp_path):
    config = dataclasses.replace(SHAPES[name], scan_layers=scanned)
    params = random_params(config, kind)
    options = dict(kind=kind, dtype="float32", bos_id=None, end_ids=(0,), pad_id=1)
    save_pretrained(tmp_path, config, params, **options)
    again = load_pretrained(tmp_path)
    assert resolved(again.model) == resolved(config) and again.vocab_size == 31
    save_pretrained(tmp_path / "again", again.model, again.params, **options)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    unrolled = params | {"trunk": as_layout(params["trunk"], again.model)}
    jax.tree.map(np.testing.assert_array_equal, again.params, unrolled)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_shards_are_written_and_read(name, tmp_path, monkeypatch):
    """Both parts of a tensor that holds two of ours are in one."""
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 4000)
    config = SHAPES[name]
    params = random_params(config)
    save_pretrained(
        tmp_path, config, params, kind="lm", dtype="float32", bos_id=None, end_ids=(0,), pad_id=None
    )
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3 and all(path.stat().st_size < 8000 for path in shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path).params, params)
    shards[1].unlink()
    with pytest.raises(InputError, match=f"{shards[1].name}, which is not there"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_rounded_once(dtype, tmp_path):
    config = SHAPES["gpt2"]
    params = random_params(config)
    save_pretrained(
        tmp_path, config, params, kind="lm", dtype=dtype, bos_id=None, end_ids=(0,), pad_id=None
    )
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path).params, rounded)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n"
WRONG = {
    "architecture": (
        lambda f: edit_config(f, model_type="bloom"),
        r"model_type 'bloom' is not supported, only \['gpt2', 'gpt_neox', 'llama'",
    ),
    "task": (
        lambda f: edit_config(f, architectures=["GPT2ForTokenClassification"]),
        "architecture 'GPT2ForTokenClassification' is not supported",
    ),
    "labels": (
        lambda f: edit_config(f, architectures=["GPT2ForSequenceClassification"], num_labels=3),
        "has 3 labels, a reward model has 1",
    ),
    "unknown field": (
        lambda f: edit_config(f, alibi=True, use_logn=2),
        "not supported: alibi=True, use_logn=2",
    ),
    "field's value": (
        lambda f: edit_config(f, scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx=True is not supported, only False",
    ),
    "activation": (
        lambda f: edit_config(f, activation_function="relu"),
        "activation_function='relu' is not supported",
    ),
    "missing field": (
        lambda f: edit_config(f, n_embd=None),
        "the field 'n_embd' is missing",
    ),
    "shape": (
        lambda f: edit_config(f, vocab_size=4),
        r"lm_head.weight has shape \(3, 48\), but the config asks for \(4, 48\)",
    ),
    "missing tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop("transformer.h.1.ln_2.bias")),
        "missing transformer.h.1.ln_2.bias",
    ),
    "extra tensor": (
        lambda f: edit_tensors(f, lambda t: t.update(adapter=np.zeros(2, np.float32))),
        "extra adapter",
    ),
    "head tied in the config only": (
        lambda f: edit_config(f, tie_word_embeddings=True),
        "lm_head.weight differs from transformer.wte.weight",
    ),
    "truncated file": (
        lambda f: (f / "model.safetensors").write_bytes(
            (SORT / "model.safetensors").read_bytes()[:-100]
        ),
        "is not a whole safetensors file",
    ),
    "inf": (
        lambda f: edit_tensors(f, lambda t: t["transformer.ln_f.bias"].__setitem__(3, np.inf)),
        "transformer.ln_f.bias has 1 of 48 values that are inf or NaN",
    ),
    "quantised": (
        lambda f: edit_tensors(
            f, lambda t: t.update({"transformer.wpe.weight": np.ones((11, 48), np.int8)})
        ),
        "transformer.wpe.weight is stored as I8, only F64, F32, F16, BF16 are read",
    ),
    "pointer instead of weights": (
        lambda f: (f / "model.safetensors").write_text(POINTER),
        "model.safetensors is a Git LFS pointer, .*: run git lfs pull",
    ),
    "pointer instead of config": (
        lambda f: (f / "config.json").write_text(POINTER),
        "config.json is a Git LFS pointer",
    ),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "holds its weights as pytorch_model.bin; only safetensors are read",
    ),
    "GGUF": (
        lambda f: (f / "model.safetensors").rename(f / "model.gguf"),
        "holds its weights as model.gguf: give that file",
    ),
    "unfinished download": (
        lambda f: (f / "model.safetensors").rename(f / "model.safetensors.incomplete"),
        "the download of model.safetensors.incomplete has not finished",
    ),
    "several files": (
        lambda f: (
            [save_file({}, f / name) for name in ("a.safetensors", "b.safetensors")]
            and (f / "model.safetensors").unlink()
        ),
        "has 2 safetensors files .*, but neither model.safetensors nor",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "config.json, but no weights"),
    "field's type": (
        lambda f: edit_config(f, n_embd="48"),
        "n_embd='48', expected a whole number over 0",
    ),
    "no object": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json holds a list, expected an object",
    ),
    "pruned": (
        lambda f: edit_config(f, pruned_heads={"0": [1]}, quantization_config={"bits": 4}),
        "not supported: pruned_heads={'0': \\[1\\]}, quantization_config={'bits': 4}",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_checkpoint_is_refused_by_name(name, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(SORT, folder)
    spoil, message = WRONG[name]
    spoil(folder)
    with pytest.raises(InputError, match=message):
        load_pretrained(folder)


def sharded(folder, monkeypatch):
    """A model in several files, what their index says, and the model."""
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 4000)
    params = random_params(SHAPES["gpt2"])
    options = dict(kind="lm", dtype="float32", bos_id=None, end_ids=(0,), pad_id=None)
    save_pretrained(folder, SHAPES["gpt2"], params, **options)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return index["weight_map"], params


def rewrite_index(folder, names):
    text = json.dumps({"weight_map": names})
    (folder / "model.safetensors.index.json").write_text(text)


TENSOR = "transformer.h.1.mlp.c_fc.weight"
WRONG_INDEX = {
    "another shard": (
        lambda names: names | {TENSOR: names["transformer.wte.weight"]},
        f"says that {TENSOR} is in .*, where it is not .1 of ",
    ),
    "no such tensor": (
        lambda names: names | {"transformer.h.9.ln_1.bias": names[TENSOR]},
        "says that transformer.h.9.ln_1.bias is in .*, where it is not",
    ),
    "a tensor more in a shard": (
        lambda names: {k: v for k, v in names.items() if k != "transformer.ln_f.bias"},
        None,
    ),
    "a shard less": (
        lambda names: {k: v for k, v in names.items() if v != names[TENSOR]},
        "missing .*transformer.h.1.mlp",
    ),
    "outside": (
        lambda names: names | {TENSOR: "../model.safetensors"},
        "names '../model.safetensors', which is outside of its folder",
    ),
    "empty": (lambda names: {}, "expected weight_map to give each tensor's file"),
    "no map": (lambda names: [TENSOR], "expected weight_map to give each tensor's file"),
}


@pytest.mark.parametrize("name", WRONG_INDEX)
def test_an_index_must_fit_its_shards(name, tmp_path, monkeypatch):
    names, params = sharded(tmp_path, monkeypatch)
    change, message = WRONG_INDEX[name]
    rewrite_index(tmp_path, change(names))
    if message is None:
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path).params, params)
        return
    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path, monkeypatch):
    names, _ = sharded(tmp_path, monkeypatch)
    shard = tmp_path / names["transformer.wte.weight"]
    tensors = load_file(shard) | load_file(tmp_path / names[TENSOR])
    save_file(tensors, shard)
    with pytest.raises(InputError, match=r"h\.\d\..* is in .* and in .*, expected in one of them"):
        load_pretrained(tmp_path)


def test_of_two_sets_of_weights_that_of_transformers_is_read_and_the_other_told(
    tmp_path, monkeypatch
):
    """model.safetensors before an index; an index before whatever it does not name."""
    names, older = sharded(tmp_path, monkeypatch)
    shards = sorted(set(names.values()))
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "consolidated.safetensors")
    found = load_pretrained(tmp_path)
    assert found.unread == ("consolidated.safetensors",)
    jax.tree.map(np.testing.assert_array_equal, found.params, older)

    monkeypatch.undo()
    newer = jax.tree.map(lambda x: x + 1, older)
    options = dict(kind="lm", dtype="float32", bos_id=None, end_ids=(0,), pad_id=None)
    save_pretrained(tmp_path, SHAPES["gpt2"], newer, **options)
    found = load_pretrained(tmp_path)
    index = "model.safetensors.index.json"
    assert found.unread == ("consolidated.safetensors", *shards, index)
    jax.tree.map(np.testing.assert_array_equal, found.params, newer)
    rewrite_index(tmp_path, dict.fromkeys(names, "model.safetensors"))
    assert index not in load_pretrained(tmp_path).unread


@pytest.mark.parametrize("dtype, value", [("float16", 65520.0), ("bfloat16", 3.4e38)])
@pytest.mark.parametrize("kind", ["lm", "scalar"])
def test_values_that_the_export_cannot_hold_are_refused(dtype, value, kind, tmp_path):
    params = random_params(SHAPES["llama"], kind)
    kernel = params["trunk"]["block_1"]["attn"]["c_attn"]["kernel"]
    # Two of the keys: queries are 4 heads of 4, keys 2.
    params["trunk"]["block_1"]["attn"]["c_attn"]["kernel"] = kernel.at[3, 17:19].set(-value)
    options = dict(kind=kind, bos_id=None, end_ids=(0,), pad_id=None)
    message = rf"{dtype} cannot hold 2 of 128 values of model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(InputError, match=message):
        save_pretrained(tmp_path / "out", SHAPES["llama"], params, dtype=dtype, **options)
    assert not (tmp_path / "out").exists()
    save_pretrained(tmp_path / "out", SHAPES["llama"], params, dtype="float32", **options)


def test_the_largest_values_of_a_format_are_exported(tmp_path):
    params = random_params(SHAPES["gpt2"])
    params["trunk"]["ln_f"]["scale"] = jnp.full(16, 65504.0)
    options = dict(kind="lm", dtype="float16", bos_id=None, end_ids=(0,), pad_id=None)
    save_pretrained(tmp_path, SHAPES["gpt2"], params, **options)
    assert load_pretrained(tmp_path).params["trunk"]["ln_f"]["scale"].max() == 65504


HUB = {
    "distilgpt2": (
        "gpt2",
        dict(_num_labels=1, n_ctx=32, summary_activation=None, task_specific_params={"a": 1}),
    ),
    "a GPT-2 inside an old config of transformers 4": (
        "gpt2",
        dict(
            **dict(_attn_implementation="eager", torchscript=False, use_bfloat16=False),
            **dict(pruned_heads={}, tie_encoder_decoder=False, is_encoder_decoder=False),
            **dict(max_length=20, min_length=0, do_sample=False, num_beams=1, top_k=50, top_p=1.0),
            **dict(bad_words_ids=None, prefix=None, author="A", created_date="2021-04-28"),
        ),
    ),
    "gpt-neox-20b": ("neox", dict(attention_probs_dropout_prob=0, hidden_dropout_prob=0)),
    "dolly": ("neox", dict(custom_pipelines={"text-generation": {}}, gradient_checkpointing=False)),
    "Llama 1, 2": ("llama", dict(max_sequence_length=2048, pretraining_tp=1, max_length=4096)),
    "SmolLM": ("llama", dict(is_llama_config=True, rope_interleaved=False, mlp_bias=False)),
    "unsloth": ("llama", dict(unsloth_version="2024.9", unsloth_fixed=True, mlp_bias=None)),
    "Qwen2.5": (
        "qwen2",
        dict(max_window_layers=28, sliding_window=131072, use_sliding_window=False),
    ),
    "DeepSeek-R1-Distill-Qwen": ("qwen2", dict(use_mrope=False, sliding_window=4096)),
    "Qwen3": ("qwen3", dict(attention_dropout=0.0, layer_types=["full_attention"] * 2)),
}


@pytest.mark.parametrize("name", HUB)
def test_fields_that_change_nothing_are_passed_over(name, tmp_path):
    shape, fields = HUB[name]
    params = random_params(SHAPES[shape])
    options = dict(kind="lm", dtype="float32", bos_id=None, end_ids=(0,), pad_id=None)
    save_pretrained(tmp_path, SHAPES[shape], params, **options)
    edit_config(tmp_path, **fields)
    found = load_pretrained(tmp_path)
    assert resolved(found.model) == resolved(SHAPES[shape])


LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 32,
}


def read_fields(shape, **changes):
    family = huggingface.family_of_model(SHAPES[shape])
    fields = Fields(family.write(SHAPES[shape]) | {"tie_word_embeddings": True} | changes, "c.json")
    config = family.read(fields)
    fields.done()
    return config


@pytest.mark.parametrize(
    "shape, changes, message",
    [
        ("llama", dict(rope_scaling={"type": "yarn", "factor": 2.0}), "rotary scaling 'yarn'"),
        ("llama", dict(rope_scaling={"rope_type": "llama3"}), "'factor' is missing"),
        ("qwen2", dict(use_mrope=True), "use_mrope=True"),
        ("qwen2", dict(use_sliding_window=True), "use_sliding_window=True is not supported"),
        (
            "qwen2",
            dict(rope_scaling={"rope_type": "default", "mrope_section": [16, 24]}),
            r"rope_scaling: not supported: mrope_section=\[16, 24\]",
        ),
        ("qwen3", dict(layer_types=["sliding_attention"]), "layer_types .* are not supported"),
        ("llama", dict(attention_bias=True), "attention_bias=True is not supported"),
        ("llama", dict(logits_scaling=8.0, embedding_multiplier=12.0), "embedding_multiplier=12.0"),
        ("llama", dict(final_logit_softcapping=30.0), "final_logit_softcapping"),
        ("llama", dict(rms_norm_eps=float("nan")), "rms_norm_eps=nan, expected a number"),
        ("llama", dict(num_hidden_layers=0), "num_hidden_layers=0, expected a whole number over 0"),
        ("llama", dict(head_dim=7), "heads of 7 dimensions rotates 7: expected an even number"),
        ("llama", dict(partial_rotary_factor=0.1), "rotates 0: expected an even number, 2 or more"),
        (
            "llama",
            dict(rope_scaling=LLAMA3 | {"low_freq_factor": 4.0}),
            "low_frequency_factor=4.0 is not below high_frequency_factor=4.0",
        ),
        ("gpt2", dict(add_cross_attention=True), "add_cross_attention=True is not supported"),
        ("mistral", dict(sliding_window=0), "sliding_window=0, expected a number over 0 or null"),
        ("mistral", dict(layer_types=["full_attention"] * 2), "not supported: layer_types="),
        ("olmo2", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5, expected 1.0"),
        ("smollm3", dict(use_sliding_window=False), "but use_sliding_window is false"),
        ("smollm3", dict(no_rope_layers=[1]), r"no_rope_layers=\[1\], expected 0 or 1 for each"),
        ("smollm3", dict(no_rope_layer_interval=-1), "no_rope_layer_interval=-1, expected 1 or"),
        (
            "smollm3",
            dict(layer_types=["full_attention", "chunked_attention"]),
            r"layer_types \['chunked_attention'\] are not supported",
        ),
        (
            "phi3",
            dict(rope_scaling={"rope_type": "longrope", "short_factor": [1.0]}),
            "rotary scaling 'longrope' is not supported",
        ),
        ("phi3", dict(rope_scaling={"type": "linear", "factor": 2.0}), "factor=2.0, but Phi-3 has"),
        ("gemma2", dict(sliding_window=None), "sliding_attention, but sliding_window is None"),
        ("gemma2", dict(layer_types=["full_attention"]), "are 1, expected num_hidden_layers=2"),
        ("gemma2", dict(hidden_activation="gelu"), "hidden_activation='gelu' is not supported"),
        ("gemma2", dict(attn_logit_softcapping=-5.0), "attn_logit_softcapping=-5.0, expected a nu"),
        ("gemma2", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True is"),
        (
            "gemma3",
            dict(sliding_window_pattern=-2),
            "sliding_window_pattern=-2, expected 1 or more",
        ),
        ("gemma3", dict(rope_parameters={"rope_theta": 5.0}), "not supported: rope_theta=5.0"),
        (
            "gemma3",
            dict(rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
            "rotary positions of sliding layers are stretched",
        ),
        ("gpt2", dict(layer_norm_epsilon="tiny"), "layer_norm_epsilon='tiny', expected a number"),
    ],
)
def test_fields_that_change_the_model_are_refused_by_name(shape, changes, message):
    with pytest.raises(InputError, match=message):
        read_fields(shape, **changes)


@pytest.mark.parametrize(
    "shape, change, message",
    [
        ("gemma2", dict(windows=(3, 5)), r"windows=\(3, 5\): transformers has one size"),
        ("smollm3", dict(windows=(3, 5)), r"windows=\(3, 5\): transformers has one size"),
        ("smollm3", dict(rotary=RotaryConfig(thetas=(5.0, 0.0))), "SmolLM3's are 10000.0 or 0"),
        ("phi3", dict(rotary=RotaryConfig(factor=2.0)), "factor=2.0, but Phi-3 has none"),
        ("gemma3", dict(windows=()), "Gemma 3 has one for layers with a window and 500.0 for"),
        ("gemma3", dict(rotary=RotaryConfig(thetas=(0.0, 10_000.0))), "Gemma 3 has one for layers"),
    ],
)
def test_layers_that_a_family_cannot_say_are_not_exported(shape, change, message):
    config = dataclasses.replace(SHAPES[shape], **change)
    with pytest.raises(InputError, match=message):
        huggingface.family_of_model(config).write(config)


SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=7,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)


def test_what_a_config_of_llamas_kin_leaves_out_is_as_in_its_family():
    read = lambda kind, **more: shape_of(SMALL | {"model_type": kind} | more, "c.json")[1]
    assert read("mistral").windows == (4096,) and read("mistral", sliding_window=None).windows == ()
    assert read("olmo2").norm_eps == 1e-5
    smol = read("smollm3")
    assert smol.tied and smol.rotary.thetas == (2e6, 2e6, 2e6, 0.0) and smol.windows == ()
    sliding = read("smollm3", use_sliding_window=True, sliding_window=9)
    assert sliding.windows == (0, 0, 0, 9)
    gemma = read("gemma2")
    assert (gemma.windows, gemma.score_width) == ((4096, 0), 256)
    assert (gemma.score_cap, gemma.logit_cap, gemma.tied) == (50.0, 30.0, True)
    off = read("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (off.score_cap, off.logit_cap) == (0.0, 0.0)
    gemma = read("gemma3_text")
    assert gemma.windows == (4096,) * 5 + (0,) and gemma.rotary.theta == 1e6
    assert gemma.rotary.thetas == (1e4,) * 5 + (1e6,)
    assert (gemma.score_cap, gemma.logit_cap) == (0.0, 0.0)
    older = dict(rope_local_base_freq=500, rope_theta=9000, sliding_window_pattern=2)
    gemma = read("gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8}, **older)
    assert gemma.rotary.thetas == (500.0, 9000.0) and gemma.windows == (4096, 0)
    assert (gemma.rotary.factor, gemma.rotary.stretch) == (8.0, "all")


@pytest.mark.parametrize("kind", ["mistral", "smollm3", "phi3"])
def test_a_checkpoint_that_computes_what_another_family_does_goes_out_as_it_came(kind):
    """Also where nothing of its own is left, as in a Mistral without a window."""
    plain = dict(model_type=kind, sliding_window=None, no_rope_layers=[1] * 7, pad_token_id=0)
    plain = plain if kind == "smollm3" else {k: v for k, v in plain.items() if "rope" not in k}
    _, shape, _ = shape_of(SMALL | plain, "c.json")
    family = huggingface.family_of_model(shape)
    assert family.model_type == shape.export_as == kind
    written = family.write(shape) | {k: SMALL[k] for k in ("vocab_size",)}
    again = shape_of(written | {"model_type": kind, "tie_word_embeddings": shape.tied}, "c.json")
    assert resolved(again[1]) == resolved(shape)
    other = dataclasses.replace(shape, qk_norm=True)
    assert huggingface.family_of_model(other).model_type == "qwen3"


def test_a_stacked_tensor_must_have_whole_parts(tmp_path):
    options = dict(kind="lm", dtype="float32", bos_id=None, end_ids=(0,), pad_id=1)
    save_pretrained(tmp_path, SHAPES["phi3"], random_params(SHAPES["phi3"]), **options)
    name = "model.layers.1.mlp.gate_up_proj.weight"
    assert load_file(tmp_path / "model.safetensors")[name].shape == (48, 16)
    edit_tensors(tmp_path, lambda t: t.update({name: t[name][:-1].copy()}))
    with pytest.raises(InputError, match=f"{name} has 47 rows, expected a multiple of 2"):
        load_pretrained(tmp_path)


def test_what_the_model_s_own_checks_refuse_is_named_by_its_file():
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 3, "n_positions": 8}
    with pytest.raises(InputError, match=r"^folder: model\.d_model=16 is not a multiple"):
        shape_of(config | {"vocab_size": 9}, "folder")


def test_what_a_config_leaves_out_is_as_in_its_family():
    """GPT2Config has gelu_new, GPTNeoXConfig gelu and a quarter of each head rotated."""
    assert read_fields("gpt2", activation_function=None).activation == "gelu_tanh"
    neox = read_fields("neox", hidden_act=None, rotary_pct=None)
    assert (neox.activation, neox.rotary.fraction) == ("gelu", 0.25)


@pytest.mark.parametrize(
    "change",
    [
        dict(parallel_residual=True),
        dict(positions="rotary", norm="rms"),
        dict(qk_norm=True),
        dict(n_kv_heads=1),
        dict(windows=(4,)),
        dict(logit_cap=30.0),
    ],
)
def test_a_shape_that_no_family_has_is_not_exported(change, tmp_path):
    config = dataclasses.replace(SHAPES["gpt2"], **change)
    params = random_params(config)
    with pytest.raises(InputError, match="no model of transformers is like"):
        save_pretrained(
            tmp_path / "x",
            config,
            params,
            kind="lm",
            dtype="float32",
            bos_id=None,
            end_ids=(0,),
            pad_id=None,
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_every_combination_of_a_shape_is_one_family_or_none():
    """No two families claim one shape, so an export cannot load as something else."""
    values = {
        "positions": ("learned", "rotary"),
        "norm": ("layer", "rms"),
        "activation": ("gelu_tanh", "swiglu"),
        "bias": ("all", "qkv", "none"),
        "qk_norm": (False, True),
        "parallel_residual": (False, True),
    }
    gemma = dict(
        norm="rms_offset",
        norm_place="both",
        activation="geglu",
        scale_embedding=True,
        logit_cap=9.0,
    )
    changes = [{}, dict(windows=(4,)), dict(windows=(4, 0)), gemma, gemma | dict(windows=(4, 0))]
    changes += [gemma | dict(norm_place="before"), dict(scale_embedding=True), dict(score_width=9)]
    changes += [dict(norm_place=place, qk_norm_over="all") for place in ("before", "after")]
    shapes = {
        ModelConfig(**dict(zip(values, combination, strict=True)) | change)
        for combination in itertools.product(*values.values())
        for change in changes
    }
    claimed = 0
    for config in shapes:
        if config.qk_norm_over == "all" and not config.qk_norm:
            continue  # says nothing
        try:
            family = huggingface.family_of_model(config)
        except InputError:
            continue
        claimed += 1
        fields = Fields(family.write(config) | {"tie_word_embeddings": True}, "config.json")
        assert resolved(family.read(fields)) == resolved(config)
        fields.done()
    # GPT-NeoX has both kinds of residual, Gemma 2 and 3 all windows and none.
    assert claimed == 6 + len(["mistral", "smollm3", "olmo2"]) + 2 * 2


@pytest.mark.parametrize(
    "layers,width,parameters",
    [
        (12, 768, 124_439_808),
        (24, 1024, 354_823_168),
        (36, 1280, 774_030_080),
        (48, 1600, 1_557_611_200),
    ],
)
@pytest.mark.cases(1)
def test_the_four_sizes_of_gpt2_have_their_numbers_of_parameters(layers, width, parameters):
    fields = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "n_positions": 1024}
    config = GPT2.read(Fields(fields | {"activation_function": "gelu_new"}, "config.json"))
    shapes = parameter_shapes(config, 50257, "lm")
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


MEASURE = """
import sys, threading, time
import jax
from rlhf_jax.interop.huggingface import load_pretrained

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("RssAnon")).split()[1])

load_pretrained(sys.argv[1])  # what is compiled and imported does not count
start, peak, done = anonymous(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
params = load_pretrained(sys.argv[2]).params
done = True
watcher.join()
weights = sum(x.nbytes for x in jax.tree.leaves(params))
print((peak - start) / weights)
"""


@pytest.mark.slow
def test_an_import_needs_no_more_than_1_3_times_its_weights(tmp_path):
    options = dict(kind="lm", dtype="float32", bos_id=None, end_ids=(0,), pad_id=None)
    small = SHAPES["llama"]
    large = dataclasses.replace(small, n_layers=6, d_model=512, n_heads=8, d_ff=2048)
    for name, config, vocab_size in (("small", small, 31), ("large", large, 20_000)):
        params = random_params(config, vocab_size=vocab_size)
        save_pretrained(tmp_path / name, config, params, **options)
    command = [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(found.stdout) <= 1.3
