"""Adapters of PEFT and ours: the same logits, whoever wrote the folder."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
torch = pytest.importorskip("torch", reason="needs PyTorch: make test-torch")
peft = pytest.importorskip("peft", reason="needs PEFT: make test-torch")
import transformers as hf  # noqa: E402

from rlhf_jax.config import LoRAConfig  # noqa: E402
from rlhf_jax.interop.huggingface import load_pretrained  # noqa: E402
from rlhf_jax.interop.peft import load_adapter, read_adapter, save_adapter  # noqa: E402
from rlhf_jax.models.heads import make_language_model, make_scalar_model  # noqa: E402
from rlhf_jax.models.lora import add_adapters  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    # Warnings of theirs about theirs.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out:UserWarning"),
]

VOCAB, PAD = 61, 60
COMMON = dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, pad_token_id=PAD)
SHARED = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=48)
MODELS = {
    "gpt2": (hf.GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=48, **COMMON), "c_attn"),
    "neox": (hf.GPTNeoXConfig(**SHARED, **COMMON), "query_key_value"),
    "llama": (hf.LlamaConfig(num_key_value_heads=2, **SHARED, **COMMON), "q_proj"),
}
TOKENS = np.random.default_rng(0).integers(1, VOCAB - 1, (3, 17)).astype(np.int32)


def torch_model(auto, name, folder, **more):
    torch.manual_seed(0)
    config = MODELS[name][0]
    config.update(more)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def torch_logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS).long()).logits.numpy()


def our_logits(model, params):
    lm = make_language_model(model, VOCAB)
    return lm.logits(params, jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool), start=0)


@pytest.mark.parametrize("name", MODELS)
def test_peft_runs_our_adapters(name, tmp_path):
    torch_model(hf.AutoModelForCausalLM, name, tmp_path / "base")
    base = load_pretrained(tmp_path / "base")
    lora = LoRAConfig(rank=3, alpha=6.0)
    params = add_adapters(jax.random.key(0), base.params, base.model, lora)
    fill = lambda path, x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 0.3 * fill(path, x) if path[-1].key == "lora_b" else x, params
    )
    model = replace(base.model, lora_scale=2.0)
    out = tmp_path / "adapter"
    save_adapter(out, model, params, vocab_size=VOCAB, kind="lm", base=str(tmp_path / "base"))
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(out).eval()
    found = our_logits(model, params)
    scale = np.abs(found).max()
    np.testing.assert_allclose(found, torch_logits(loaded), rtol=0, atol=1e-5 * scale)
    assert np.abs(found - our_logits(base.model, base.params)).max() > 0.05 * scale


@pytest.mark.parametrize("everywhere", [True, False], ids=["every layer", "one projection"])
@pytest.mark.parametrize("name", MODELS)
def test_adapters_that_peft_made(name, everywhere, tmp_path):
    model = torch_model(hf.AutoModelForCausalLM, name, tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear" if everywhere else [MODELS[name][1]],
        init_lora_weights=False,  # B random too
        task_type="CAUSAL_LM",
        use_rslora=everywhere,
        rank_pattern={} if everywhere else {r".*\.1\..*": 2},
        alpha_pattern={} if everywhere else {r".*\.1\..*": 3},
    )
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    base = load_pretrained(tmp_path / "base")
    adapter = read_adapter(tmp_path / "adapter")
    params, kind = load_adapter(adapter, base.model, VOCAB, base.params)
    found = our_logits(replace(base.model, lora_scale=adapter.scale), params)
    expected = torch_logits(adapted)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert kind == "lm"


def test_a_reward_model_as_an_adapter_with_its_head(tmp_path):
    """Both ways: PEFT trains a classifier's head whole, beside the adapters."""
    kind = hf.AutoModelForSequenceClassification
    model = torch_model(kind, "gpt2", tmp_path / "base", num_labels=1)
    config = peft.LoraConfig(
        r=4, target_modules=["c_attn"], init_lora_weights=False, task_type="SEQ_CLS"
    )
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    base = load_pretrained(tmp_path / "base")
    adapter = read_adapter(tmp_path / "adapter")
    params, found_kind = load_adapter(adapter, base.model, VOCAB, base.params)
    assert found_kind == "scalar"
    shape = replace(base.model, lora_scale=adapter.scale)
    score = make_scalar_model(shape, VOCAB).score
    found = score(params, jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool), None)
    np.testing.assert_allclose(found, torch_logits(adapted)[:, 0], rtol=1e-5, atol=1e-5)
    out = tmp_path / "out"
    save_adapter(out, shape, params, vocab_size=VOCAB, kind="scalar", base=str(tmp_path / "base"))
    again = peft.AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=1).eval()
    np.testing.assert_allclose(torch_logits(again), torch_logits(adapted), rtol=1e-5, atol=1e-5)
