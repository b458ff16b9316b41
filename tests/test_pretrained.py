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
from safetensors.numpy import load_file, save_file

from rlhf_jax.config import ModelConfig, RotaryConfig
from rlhf_jax.errors import InputError
from rlhf_jax.models import huggingface
from rlhf_jax.models.attention import real
from rlhf_jax.models.checkpoint_fields import Fields
from rlhf_jax.models.families import GPT2
from rlhf_jax.models.gguf import unpair
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.huggingface import load_pretrained, save_pretrained
from rlhf_jax.models.tensor_layout import parameter_shapes
from rlhf_jax.models.transformer import Transformer, as_layout, positions_of
from rlhf_jax.rollouts.generate import generate, row_keys

DATA = Path(__file__).parents[1] / "data"
SORT = DATA / "model_gpt2_sort"
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


def random_params(config, kind="lm", vocab_size=31):
    """Parameters without compiling a program that makes them."""
    shapes = parameter_shapes(dataclasses.replace(config, scan_layers=False), vocab_size, kind)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    return params | {"trunk": as_layout(params["trunk"], config)}


def resolved(config):
    """With what 0 stands for filled in."""
    sizes = dict(n_kv_heads=config.kv_heads, head_dim=config.width, d_ff=config.hidden)
    return dataclasses.replace(config, scan_layers=False, **sizes)


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
        eos_id=-1,
        pad_id=0,
    )
    return np.asarray(generation.responses)


def test_gpt2_sort_has_the_activations_that_pytorch_computed():
    reference = json.loads((SORT / "reference.json").read_text())
    model = load_pretrained(SORT)
    tokens = jnp.array(reference["idx"], jnp.int32)
    mask = jnp.ones(tokens.shape, bool)
    module = Transformer(model.model, model.vocab_size)
    inputs = (tokens, positions_of(mask), real(mask))
    (hidden, _), found = module.apply(
        {"params": model.params["trunk"]}, *inputs, capture_intermediates=True
    )
    for i in range(3):
        block = found["intermediates"][f"block_{i}"]["__call__"][0][0]
        np.testing.assert_allclose(block, reference[f"block{i}"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(hidden, reference["ln_f"], rtol=0, atol=2e-5)
    lm = make_language_model(model.model, model.vocab_size)
    logits = lm.logits(model.params, tokens, mask, start=0)
    np.testing.assert_allclose(logits, reference["lm_head"], rtol=0, atol=2e-5)


def test_gpt2_sort_sorts_500_of_500():
    letters = jnp.asarray(np.random.default_rng(0).integers(0, 3, (500, 6)), jnp.int32)
    found = greedy(load_pretrained(SORT), letters, length=6)
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


def test_stories260k_has_its_logits(stories):
    model, reference = stories
    tokens = jnp.array([reference["greedy_ids"][:8]], jnp.int32)
    lm = make_language_model(model.model, model.vocab_size)
    logits = lm.logits(model.params, tokens, jnp.ones((1, 8), bool), start=0)
    expected = np.array(reference["logits_of_first_8_positions"])
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-4)


def test_stories260k_tells_its_story(stories):
    model, reference = stories
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
def test_every_family_survives_the_way_out_and_in(name, kind, scanned, tmp_path):
    config = dataclasses.replace(SHAPES[name], scan_layers=scanned)
    params = random_params(config, kind)
    options = dict(kind=kind, dtype="float32", eos_id=0, pad_id=1)
    save_pretrained(tmp_path, config, params, **options)
    again = load_pretrained(tmp_path)
    assert resolved(again.model) == resolved(config) and again.vocab_size == 31
    save_pretrained(tmp_path / "again", again.model, again.params, **options)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    unrolled = params | {"trunk": as_layout(params["trunk"], again.model)}
    jax.tree.map(np.testing.assert_array_equal, again.params, unrolled)


def test_shards_are_written_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 4000)
    config = SHAPES["llama"]
    params = random_params(config)
    save_pretrained(tmp_path, config, params, kind="lm", dtype="float32", eos_id=0, pad_id=None)
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
    save_pretrained(tmp_path, config, params, kind="lm", dtype=dtype, eos_id=0, pad_id=None)
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path).params, rounded)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


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


@pytest.mark.parametrize(
    "change",
    [
        dict(parallel_residual=True),
        dict(positions="rotary", norm="rms"),
        dict(qk_norm=True),
        dict(n_kv_heads=1),
    ],
)
def test_a_shape_that_no_family_has_is_not_exported(change, tmp_path):
    config = dataclasses.replace(SHAPES["gpt2"], **change)
    params = random_params(config)
    with pytest.raises(InputError, match="no model of transformers is like"):
        save_pretrained(
            tmp_path / "x", config, params, kind="lm", dtype="float32", eos_id=0, pad_id=None
        )
    assert not (tmp_path / "x").exists()


def test_every_combination_of_a_shape_is_one_family_or_none():
    """No two families claim one shape, so an export cannot load as something else."""
    names = ("positions", "norm", "activation", "bias", "qk_norm", "parallel_residual")
    values = [
        ("learned", "rotary"),
        ("layer", "rms"),
        ("gelu_tanh", "swiglu"),
        ("all", "qkv", "none"),
        (False, True),
        (False, True),
    ]
    claimed = 0
    for combination in itertools.product(*values):
        config = ModelConfig(**dict(zip(names, combination, strict=True)))
        try:
            family = huggingface.family_of_model(config)
        except InputError:
            continue
        claimed += 1
        fields = Fields(family.write(config) | {"tie_word_embeddings": True}, "config.json")
        assert resolved(family.read(fields)) == resolved(config)
        fields.done()
    assert claimed == 6  # GPT-NeoX has both kinds of residual


@pytest.mark.parametrize(
    "layers,width,parameters",
    [
        (12, 768, 124_439_808),
        (24, 1024, 354_823_168),
        (36, 1280, 774_030_080),
        (48, 1600, 1_557_611_200),
    ],
)
def test_the_four_sizes_of_gpt2_have_their_numbers_of_parameters(layers, width, parameters):
    fields = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "n_positions": 1024}
    config = GPT2.read(Fields(fields | {"activation_function": "gelu_new"}, "config.json"))
    shapes = parameter_shapes(config, 50257, "lm")
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


MEASURE = """
import sys, threading, time
import jax
from rlhf_jax.models.huggingface import load_pretrained

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
    options = dict(kind="lm", dtype="float32", eos_id=0, pad_id=None)
    small = SHAPES["llama"]
    large = dataclasses.replace(small, n_layers=6, d_model=512, n_heads=8, d_ff=2048)
    for name, config, vocab_size in (("small", small, 31), ("large", large, 20_000)):
        params = random_params(config, vocab_size=vocab_size)
        save_pretrained(tmp_path / name, config, params, **options)
    command = [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(found.stdout) <= 1.3
