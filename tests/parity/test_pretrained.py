"""Checkpoints that transformers makes: read, computed with, written back and read by it again."""

import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.interop.huggingface import load_pretrained, save_pretrained
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.types import LMBatch

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
torch = pytest.importorskip("torch", reason="needs PyTorch: make test-torch")
import transformers as hf  # noqa: E402

pytestmark = pytest.mark.torch

VOCAB, PAD = 97, 96
GPT2 = dict(n_layer=3, n_embd=48, n_head=4, n_positions=64)
NEOX = dict(num_hidden_layers=3, hidden_size=64, num_attention_heads=4, intermediate_size=256)
LLAMA = dict(
    num_hidden_layers=3,
    hidden_size=48,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=100,
)
LLAMA3_ROTARY = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
    rope_theta=500.0,
)
WINDOW = dict(sliding_window=5)
PHI3 = LLAMA | WINDOW | dict(head_dim=12, pad_token_id=PAD, partial_rotary_factor=0.5)
OLMO2 = LLAMA | dict(pad_token_id=PAD)
SMOLLM3 = LLAMA | WINDOW | dict(pad_token_id=PAD, no_rope_layer_interval=2, use_sliding_window=True)
GEMMA2 = (
    LLAMA
    | WINDOW
    | dict(
        head_dim=12,
        query_pre_attn_scalar=20,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    )
)
GEMMA3 = (
    LLAMA
    | WINDOW
    | dict(
        head_dim=12,
        query_pre_attn_scalar=20,
        sliding_window_pattern=2,
        tie_word_embeddings=False,
        rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=50.0),
            full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1000.0),
        ),
    )
)
MODELS = {
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, GPT2),
    "gpt2_untied": (
        hf.GPT2LMHeadModel,
        hf.GPT2Config,
        GPT2 | dict(tie_word_embeddings=False, n_inner=80),
    ),
    "neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, NEOX),
    "neox_sequential": (
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig,
        NEOX | dict(rotary_pct=1.0, use_parallel_residual=False, hidden_act="gelu_new"),
    ),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, LLAMA),
    "llama_tied": (
        hf.LlamaForCausalLM,
        hf.LlamaConfig,
        LLAMA | dict(tie_word_embeddings=True, head_dim=12),
    ),
    "llama3_rotary": (
        hf.LlamaForCausalLM,
        hf.LlamaConfig,
        LLAMA | dict(rope_parameters=LLAMA3_ROTARY),
    ),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, LLAMA),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, LLAMA | dict(head_dim=16)),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, LLAMA | WINDOW),
    "olmo2": (hf.Olmo2ForCausalLM, hf.Olmo2Config, OLMO2 | dict(tie_word_embeddings=True)),
    "smollm3": (hf.SmolLM3ForCausalLM, hf.SmolLM3Config, SMOLLM3),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, PHI3),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, GEMMA2),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, GEMMA3),
}
KIN = ("mistral", "olmo2", "smollm3", "phi3", "gemma2", "gemma3")
"""Families whose layers differ from Llama's, or from each other."""
CLASSIFIERS = {
    "gpt2": (hf.GPT2ForSequenceClassification, hf.GPT2Config, GPT2),
    "neox": (hf.GPTNeoXForSequenceClassification, hf.GPTNeoXConfig, NEOX),
    "llama": (hf.LlamaForSequenceClassification, hf.LlamaConfig, LLAMA),
    "qwen2": (hf.Qwen2ForSequenceClassification, hf.Qwen2Config, LLAMA),
    "qwen3": (hf.Qwen3ForSequenceClassification, hf.Qwen3Config, LLAMA | dict(head_dim=16)),
    "mistral": (hf.MistralForSequenceClassification, hf.MistralConfig, LLAMA | WINDOW),
    "olmo2": (hf.Olmo2ForSequenceClassification, hf.Olmo2Config, OLMO2),
    "smollm3": (hf.SmolLM3ForSequenceClassification, hf.SmolLM3Config, SMOLLM3),
    "phi3": (hf.Phi3ForSequenceClassification, hf.Phi3Config, PHI3),
    "gemma2": (hf.Gemma2ForSequenceClassification, hf.Gemma2Config, GEMMA2),
    "gemma3": (hf.Gemma3TextForSequenceClassification, hf.Gemma3TextConfig, GEMMA3),
}
# The full sizes: 124M to 162M parameters in the shapes of GPT-2, Pythia-160M and SmolLM2-135M.
SMOL = dict(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
)


def layers(count, width, *, heads, kv_heads, hidden, **more):
    """Fields of a config of Llama's kin."""
    return more | dict(
        num_hidden_layers=count,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=hidden,
    )


# The Llama is SmolLM2 itself (test_ecosystem.py).
LARGE = {
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, {}, 50257),
    "neox": (
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig,
        dict(
            num_hidden_layers=12,
            hidden_size=768,
            num_attention_heads=12,
            intermediate_size=3072,
        ),
        50304,
    ),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, SMOL | dict(tie_word_embeddings=True), 49152),
    "qwen3": (
        hf.Qwen3ForCausalLM,
        hf.Qwen3Config,
        SMOL | dict(tie_word_embeddings=True, head_dim=64),
        49152,
    ),
    # Widths of released models with fewer layers, and windows that 32 tokens pass.
    "mistral": (
        hf.MistralForCausalLM,
        hf.MistralConfig,
        layers(1, 4096, heads=32, kv_heads=8, hidden=2048, sliding_window=16),
        2048,
    ),
    "olmo2": (
        hf.Olmo2ForCausalLM,
        hf.Olmo2Config,
        layers(1, 2048, heads=16, kv_heads=16, hidden=8192, pad_token_id=0),
        4096,
    ),
    "smollm3": (
        hf.SmolLM3ForCausalLM,
        hf.SmolLM3Config,
        layers(4, 2048, heads=16, kv_heads=4, hidden=1024, pad_token_id=0),
        4096,
    ),
    "gemma2": (
        hf.Gemma2ForCausalLM,
        hf.Gemma2Config,
        layers(2, 2304, heads=8, kv_heads=4, hidden=3072, sliding_window=16),
        4096,
    ),
    "gemma3": (
        hf.Gemma3ForCausalLM,
        hf.Gemma3TextConfig,
        layers(7, 640, heads=4, kv_heads=1, hidden=2048, sliding_window=16),
        16384,
    ),
}


def make(folder: Path, row, *, vocab_size=VOCAB, noise=0.05, **more):
    """A random torch model of which also biases and norms are random, saved in ``folder``."""
    kind, config, sizes = row[:3]
    torch.manual_seed(0)
    ids = dict(bos_token_id=0, eos_token_id=0)
    model = kind(config(vocab_size=vocab_size, **ids, **(sizes | more))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = make(folder, MODELS[request.param])
    return model, load_pretrained(folder), folder


def torch_logits(model, tokens, mask=None):
    tokens = torch.tensor(np.asarray(tokens))
    inputs = {}
    if mask is not None:
        mask = torch.tensor(np.asarray(mask)).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = dict(attention_mask=mask, position_ids=positions)
    with torch.no_grad():
        return model(tokens, **inputs).logits.numpy()


def our_logits(imported, tokens, mask):
    lm = make_language_model(imported.model, imported.vocab_size)
    return jax.jit(partial(lm.logits, start=0))(imported.params, tokens, mask)


def random_tokens(seed, shape, vocab_size=VOCAB - 1):
    return jnp.asarray(np.random.default_rng(seed).integers(1, vocab_size, shape), jnp.int32)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits_of_every_family_agree_whatever_the_padding(pair, side):
    model, imported, _ = pair
    tokens = random_tokens(0, (3, 20))
    length, column = np.array([20, 13, 5])[:, None], np.arange(20)[None]
    if side == "none":
        mask = np.ones((3, 20), bool)
    else:
        mask = column < length if side == "right" else column >= 20 - length
    found = our_logits(imported, tokens, jnp.asarray(mask))
    expected = torch_logits(model, tokens, mask)
    assert np.abs(np.asarray(found) - expected)[mask].max() <= 1e-4
    assert np.abs(expected[mask]).max() > 0.5


def test_packed_documents_see_only_themselves(pair):
    model, imported, _ = pair
    tokens = random_tokens(1, (2, 24))
    ends = [(0, 10), (10, 17), (17, 24)]
    segments = np.concatenate([np.full(b - a, i + 1) for i, (a, b) in enumerate(ends)])
    positions = np.concatenate([np.arange(b - a) for a, b in ends])
    both = lambda row: jnp.asarray(np.stack([row, row]), jnp.int32)
    counted = jnp.ones((2, 24), bool)
    batch = LMBatch(tokens, counted, both(segments), both(positions))
    lm = make_language_model(imported.model, imported.vocab_size)
    found = np.asarray(lm.packed_logits(imported.params, batch, None))
    for start, end in ends:
        expected = torch_logits(model, tokens[:, start:end])
        np.testing.assert_allclose(found[:, start:end], expected, rtol=0, atol=1e-4)


def test_greedy_text_with_left_padding_is_the_same(pair):
    model, imported, _ = pair
    queries = random_tokens(2, (3, 9))
    mask = np.arange(9)[None] >= np.array([0, 4, 7])[:, None]
    expected = model.generate(
        torch.tensor(np.where(mask, queries, PAD)),
        attention_mask=torch.tensor(mask).long(),
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
    ).numpy()[:, 9:]
    found = generate(
        make_language_model(imported.model, imported.vocab_size),
        imported.params,
        jnp.where(mask, queries, PAD),
        jnp.asarray(mask),
        row_keys(jax.random.key(0), 3),
        length=16,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        end_ids=(-1,),
        pad_id=PAD,
        at_once=1.0,
    )
    np.testing.assert_array_equal(found.responses, expected)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def test_an_export_has_the_bits_of_the_import_and_loads_completely(pair, tmp_path):
    model, imported, folder = pair
    save_pretrained(
        tmp_path,
        imported.model,
        imported.params,
        kind="lm",
        dtype="float32",
        bos_id=None,
        end_ids=(0,),
        pad_id=None,
    )
    before, after = tensors(folder), tensors(tmp_path)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.tobytes() == after[name].tobytes(), name
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = random_tokens(3, (2, 20))
    np.testing.assert_array_equal(torch_logits(again, tokens), torch_logits(model, tokens))
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (tmp_path, folder))
    assert ours["architectures"] == theirs["architectures"]


@pytest.mark.parametrize(
    "name, side",
    [(n, side) for n in CLASSIFIERS for side in ("left", "right") if n not in KIN]
    + [(n, "left") for n in KIN],
)
def test_a_classifier_with_one_label_is_a_reward_model(name, side, tmp_path):
    model = make(tmp_path, CLASSIFIERS[name], num_labels=1, pad_token_id=PAD)
    imported = load_pretrained(tmp_path)
    length, column = np.array([20, 13, 5])[:, None], np.arange(20)[None]
    mask = column < length if side == "right" else column >= 20 - length
    tokens = jnp.where(mask, random_tokens(4, (3, 20)), PAD)
    expected = torch_logits(model, tokens, mask)[:, 0]
    scalar = make_scalar_model(imported.model, imported.vocab_size)
    found = scalar.score(imported.params, tokens, jnp.asarray(mask), None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    # And back, with a bias, which transformers' classifiers do not have.
    params = imported.params | {"head": imported.params["head"] | {"bias": jnp.full(1, 0.25)}}
    out = tmp_path / "out"
    save_pretrained(
        out,
        imported.model,
        params,
        kind="scalar",
        dtype="float32",
        bos_id=None,
        end_ids=(0,),
        pad_id=PAD,
    )
    before, after = tensors(tmp_path), tensors(out)
    assert before.keys() == after.keys()
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)
    again, info = type(model).from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_array_equal(torch_logits(again, tokens, mask)[:, 0], expected)
    assert float(load_pretrained(out).params["head"]["bias"][0]) == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_full_size_checkpoints_agree(name, tmp_path):
    row = LARGE[name]
    model = make(tmp_path / "in", row, vocab_size=row[3], noise=0.01)
    imported = load_pretrained(tmp_path / "in")
    size = sum(x.size for x in jax.tree.leaves(imported.params))
    assert size == sum(p.numel() for p in model.parameters())
    tokens = random_tokens(5, (2, 32), vocab_size=row[3])
    mask = jnp.asarray(np.arange(32)[None] >= np.array([0, 11])[:, None])
    found = np.asarray(our_logits(imported, tokens, mask))
    difference = np.abs(found - torch_logits(model, tokens, mask))[np.asarray(mask)]
    assert difference.max() <= 1e-4, difference.max()
    out = tmp_path / "out"
    save_pretrained(
        out,
        imported.model,
        imported.params,
        kind="lm",
        dtype="float32",
        bos_id=None,
        end_ids=(0,),
        pad_id=None,
    )
    before, after = tensors(tmp_path / "in"), tensors(out)
    assert before.keys() == after.keys()
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)
