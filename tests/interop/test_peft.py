"""PEFT's adapter format: out and in again, and every way an adapter can be wrong."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from adapters import SCALE, VOCAB, adapted, logits
from families import SHAPES
from precision import float32_bound
from safetensors.numpy import load_file, save_file

from experiments import convert
from rlhf_jax.cli import load
from rlhf_jax.config import ConvertConfig, LoRAConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.interop.peft import WEIGHTS, load_adapter, read_adapter, save_adapter
from rlhf_jax.models.lora import add_adapters, partition
from rlhf_jax.runs.trained import load_trained

EVERYWHERE = LoRAConfig(rank=3, alpha=3 * SCALE)


def save(folder, name, *, lora=EVERYWHERE, kind="lm", **options):
    config, base, params = adapted(name, lora=lora, **options)
    if kind == "scalar":
        head = {"kernel": jnp.full((config.d_model, 1), 0.5), "bias": jnp.full(1, 0.25)}
        params = {"trunk": params["trunk"], "head": head}
    save_adapter(folder, config, params, vocab_size=VOCAB, kind=kind, base="base")
    return config, base, params


def read(folder, config, base):
    adapter = read_adapter(folder)
    params, kind = load_adapter(adapter, config, VOCAB, base)
    return dataclasses.replace(config, lora_scale=adapter.scale), params, kind


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "phi3"])
@pytest.mark.parametrize("lora", [EVERYWHERE, LoRAConfig(3, 3 * SCALE, "attn/c_attn")], ids=str)
@pytest.mark.cases(4)
def test_out_and_in_again_are_the_same_bits(name, lora, tmp_path):
    config, base, params = save(tmp_path / "a", name, lora=lora)
    again, found, kind = read(tmp_path / "a", config, base)
    assert again == config and kind == "lm"
    jax.tree.map(np.testing.assert_array_equal, found, params)
    save_adapter(tmp_path / "b", again, found, vocab_size=VOCAB, kind="lm", base="base")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_family_whose_modules_are_several_of_ours_is_refused(tmp_path):
    with pytest.raises(InputError, match="adapters of phi3 models are not exchanged with PEFT: it"):
        save(tmp_path, "phi3")


def test_scanned_layers_write_and_read_the_same(tmp_path):
    config, base, params = save(tmp_path, "llama", scan=True)
    _, found, _ = read(tmp_path, config, base)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_queries_keys_and_values_may_have_an_a_each(tmp_path):
    """W + s B A of every part, from adapters of different ranks, keys without any."""
    config, base, _ = adapted("llama", random=False)
    rng = np.random.default_rng(0)
    D, H, G, Dh = config.d_model, config.n_heads, config.kv_heads, config.width
    parts = {"q_proj": (2, H * Dh), "v_proj": (4, G * Dh)}
    tensors = {}
    for layer in range(2):
        for part, (rank, out) in parts.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            tensors[f"{module}.lora_A.weight"] = rng.normal(size=(rank, D)).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = rng.normal(size=(out, rank)).astype(np.float32)
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "rank_pattern": {"v_proj": 4},
        "alpha_pattern": {"v_proj": 12},
    }
    tmp_path.mkdir(exist_ok=True)
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    model, params, _ = read(tmp_path, config, base)
    assert model.lora_scale == 3.0
    layer = params["trunk"]["block_1"]["attn"]["c_attn"]
    delta = np.asarray(layer["lora_a"] @ layer["lora_b"]).T
    expected = np.zeros((H * Dh + 2 * G * Dh, D))
    for part, rows in (("q_proj", slice(0, H * Dh)), ("v_proj", slice(-G * Dh, None))):
        module = f"base_model.model.model.layers.1.self_attn.{part}"
        expected[rows] = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
    # Sums over a rank of 4 of products whose factors are up to 4
    np.testing.assert_allclose(delta, expected, rtol=0, atol=float32_bound(4, 4 * 4 * 4))
    save_adapter(tmp_path / "out", model, params, vocab_size=VOCAB, kind="lm", base="base")
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert written.keys() == tensors.keys()
    assert all(written[name].tobytes() == tensors[name].tobytes() for name in tensors)


def test_a_saved_head_makes_it_a_reward_model(tmp_path):
    config, base, params = save(tmp_path, "neox", kind="scalar")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    _, found, kind = read(tmp_path, config, base)
    assert kind == "scalar"
    jax.tree.map(np.testing.assert_array_equal, found, params)
    trainable, _ = partition(found)
    assert trainable.keys() == {"trunk", "head"}


def edit_config(**changes):
    def edit(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_tensors(change):
    def edit(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return edit


FIRST = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
WRONG = {
    "another method": (edit_config(peft_type="IA3"), "expected peft_type='LORA', found 'IA3'"),
    "DoRA": (edit_config(use_dora=True), "use_dora=True is not supported"),
    "biases": (edit_config(bias="all"), "bias='all' is not supported"),
    "a changed base": (edit_config(init_lora_weights="pissa"), "'pissa' changes the base model"),
    "two scales": (edit_config(alpha_pattern={"attn.c_proj": 1}), "only one for all modules"),
    "no rank": (edit_config(r=None), "r is None, expected a number over 0"),
    "another rank": (edit_config(r=4), "the rank is 4, but its lora_A has 3 rows"),
    "no alpha": (edit_config(lora_alpha="a"), "lora_alpha is 'a', expected a number over 0"),
    "no pattern": (
        edit_config(alpha_pattern={"(": 1}),
        "alpha_pattern: '(' is no regular expression",
    ),
    "an alpha of 0": (edit_config(alpha_pattern={"c_attn": 0}), "of 'c_attn' is 0, expected a"),
    "no base": (edit_config(base_model_name_or_path=3), "base_model_name_or_path is 3, expected"),
    "half a pair": (edit_tensors(lambda t: t.pop(FIRST)), "c_attn has only one of lora_A, lora_B"),
    "another width": (
        edit_tensors(lambda t: t.update({FIRST: np.zeros((3, 9), np.float32)})),
        "lora_A (3, 9) and lora_B (48, 3), but the base model's weight is (48, 16)",
    ),
    "another model's": (
        edit_tensors(lambda t: t.update({"base_model.model.model.x": np.zeros(1, np.float32)})),
        "no adapter of this gpt2 model: base_model.model.model.x",
    ),
    "truncated": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]),
        "is not a whole PEFT adapter",
    ),
}


def test_an_adapter_of_itself_is_refused(tmp_path):
    save(tmp_path, "gpt2")
    edit_config(base_model_name_or_path=str(tmp_path))(tmp_path)
    with pytest.raises(InputError, match="expected another model's folder"):
        load_trained(tmp_path, flag="init")


@pytest.mark.parametrize("bias", ["{}", '{"head_bias": "a"}', '{"head_bias": NaN}', "{"])
def test_a_bias_that_is_no_number_is_refused(tmp_path, bias):
    config, base, _ = save(tmp_path, "gpt2", kind="scalar")
    (tmp_path / "rlhf_jax.json").write_text(bias)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "rlhf_jax.json"))):
        read(tmp_path, config, base)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.cases(5)
def test_a_wrong_adapter_is_refused(name, tmp_path):
    config, base, _ = save(tmp_path, "gpt2")
    change, message = WRONG[name]
    change(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, config, base)


def test_scale_of_rank_stabilised_lora(tmp_path):
    save(tmp_path, "gpt2", lora=LoRAConfig(rank=4, alpha=4 * SCALE))
    edit_config(use_rslora=True, lora_alpha=6)(tmp_path)
    assert read_adapter(tmp_path).scale == 3.0


# --- through the command line -----------------------------------------------------------------


def to_convert(*argv):
    return convert.run(load(ConvertConfig, [*map(str, argv)]))


@pytest.fixture
def run_folder(tmp_path):
    """A finished run with adapters that do something, and its base model as a checkpoint."""
    tokenizer = train_bpe(["a good film . a bad film ."], vocab_size=280)
    tiny.save_model(tmp_path / "base", tokenizer, context=32)
    base = load_trained(tmp_path / "base", flag="init")
    to_convert("to-hf", tmp_path / "base", "--out", tmp_path / "hf")
    params = add_adapters(jax.random.key(0), base.params, base.model, EVERYWHERE)
    fill = lambda path, x: jnp.full_like(x, 0.05) if path[-1].key == "lora_b" else x
    params = jax.tree_util.tree_map_with_path(fill, params)
    model = dataclasses.replace(base.model, lora_scale=SCALE)
    tiny.save_model(tmp_path / "run", tokenizer, model=model, params=params)
    return tmp_path


@pytest.mark.slow
def test_adapters_leave_for_peft_and_come_back(run_folder):
    f = run_folder
    to_convert("to-hf", f / "run", "--out", f / "out", "--part", "adapter", "--base", f / "hf")
    expected, found = (load_trained(f / name, flag="init") for name in ("run", "out"))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    jax.tree.map(close, found.params, expected.params)
    to_convert("from-hf", f / "out", "--out", f / "again")
    jax.tree.map(close, load_trained(f / "again", flag="init").params, expected.params)
    to_convert("to-hf", f / "run", "--out", f / "merged")
    merged = load_trained(f / "merged", flag="init")
    close(logits_of(merged), logits_of(expected))
    assert np.abs(logits_of(merged) - logits_of(load_trained(f / "base", flag="init"))).max() > 0.01


def logits_of(trained):
    return np.asarray(logits(trained.model, trained.params, vocab_size=trained.vocab_size))


def test_what_is_missing_is_said(run_folder):
    f = run_folder
    with pytest.raises(InputError, match="has no adapters; --part model exports its weights"):
        to_convert("to-hf", f / "base", "--out", f / "out", "--part", "adapter")
    to_convert("to-hf", f / "run", "--out", f / "out", "--part", "adapter", "--base", "org/model")
    with pytest.raises(InputError, match="is an adapter of 'org/model', which is no folder here"):
        load_trained(f / "out", flag="init")
    to_convert("from-hf", f / "out", "--out", f / "again", "--base", f / "hf")
