"""GGUF files of the Llama family: weights back in Hugging Face's order, vocabulary, wrong files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import SHAPES, greedy, random_params

from rlhf_jax.errors import InputError
from rlhf_jax.interop.families import LLAMA
from rlhf_jax.interop.gguf import NAMES, load_gguf
from rlhf_jax.interop.tensor_names import at, parameter_shapes, tensors_of
from rlhf_jax.runs.trained import load_trained

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install -e '.[gguf]'")

ROTARY = dataclasses.replace(SHAPES["llama"].rotary, factor=1.0)
CONFIG = dataclasses.replace(
    SHAPES["llama"],
    d_model=32,
    d_ff=64,
    rotary=dataclasses.replace(SHAPES["llama"].rotary, factor=1.0),
)
TOKENS = ["<pad>", "<|end|>", *(chr(ord("!") + n) for n in range(94)), "ab", "abc"]
ROWS = len(TOKENS)


def pair(rows, heads):
    """Hugging Face's halves of a head as llama.cpp's neighbours: index arithmetic, row by row."""
    size = len(rows) // heads
    out = np.empty_like(rows)
    for head in range(heads):
        for i in range(size):
            half, offset = divmod(i, size // 2)
            out[head * size + 2 * offset + half] = rows[head * size + i]
    return out


def write(
    path,
    params,
    *,
    config=CONFIG,
    quantised=(),
    blocks=None,
    architecture="llama",
    tokenizer="gpt2",
    without="",
    tokens=TOKENS,
    pre="gpt-2",
    eos=1,
    kinds=(3, 3),
    vocabulary=None,
    scores=None,
    **fields,
):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rotary.theta)
    writer.add_vocab_size(ROWS)
    for name, value in fields.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([*kinds, *[1] * (ROWS - len(kinds))])
    for name, value in (vocabulary or {}).items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{name}", value)
    if scores is None:
        writer.add_token_merges(["a b", "ab c"])
    else:
        writer.add_token_scores(scores)
    writer.add_eos_token_id(eos)
    writer.kv_data[0].pop(without, None)
    theirs = {ours: llama_cpp for llama_cpp, ours in NAMES.items()}
    heads = {"q_proj": config.n_heads, "k_proj": config.kv_heads}
    shapes = parameter_shapes(config, ROWS, "lm")
    for entry in tensors_of(LLAMA, config, shapes, bare=False):
        values = entry.write(np.asarray(at(params, entry.path)))
        for name, value in zip(entry.names, values, strict=True):
            module, _, kind = name.rpartition(".")
            value = np.ascontiguousarray(value)
            if module.split(".")[-1] in heads:
                value = pair(value, heads[module.split(".")[-1]])
            if ".layers." in module:
                layer, _, rest = module.removeprefix("model.layers.").partition(".")
                name = f"blk.{layer}.{theirs[rest]}.{kind}"
            else:
                name = f"{theirs[module]}.{kind}"
            if blocks and name == blocks[0]:
                writer.add_tensor(name, blocks[2], raw_dtype=blocks[1])
            elif name in quantised:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, vocab_size=ROWS)


@pytest.mark.slow
def test_weights_are_put_back_in_order(params, tmp_path):
    write(tmp_path / "m.gguf", params)
    imported, vocabulary = load_gguf(tmp_path / "m.gguf")
    assert imported.vocab_size == ROWS and vocabulary.eos == "<|end|>"
    jax.tree.map(np.testing.assert_array_equal, imported.params, params)
    trained = load_trained(tmp_path / "m.gguf", flag="init")
    ids = trained.tokenizer.encode("abcab!")
    assert ids == [TOKENS.index("abc"), TOKENS.index("ab"), TOKENS.index("!")]
    assert trained.tokenizer.eos_id == 1
    answer = greedy(imported, jnp.array([ids], jnp.int32), length=4)
    assert answer.shape == (1, 4)


def test_quantised_blocks_are_rounded_to_a_255th(params, tmp_path):
    name = "blk.1.ffn_up.weight"
    write(tmp_path / "m.gguf", params, quantised=[name])
    imported, _ = load_gguf(tmp_path / "m.gguf")
    found = np.asarray(imported.params["trunk"]["block_1"]["mlp"]["c_fc"]["kernel"])
    exact = np.asarray(params["trunk"]["block_1"]["mlp"]["c_fc"]["kernel"])
    assert 0 < np.abs(found - exact).max() <= np.abs(exact).max() / 254 * 1.02
    other = imported.params["trunk"]["block_1"]["mlp"]["c_gate"]["kernel"]
    np.testing.assert_array_equal(other, params["trunk"]["block_1"]["mlp"]["c_gate"]["kernel"])


def halves(block, count):
    return block[: 2 * count].view(np.float16).astype(np.float32)


def nibbles(q):
    """16 bytes hold 32 numbers of 4 bits: the low ones first."""
    return np.concatenate([q & 15, q >> 4]).astype(np.float32)


def fifth_bits(q):
    """Bit j of the 32-bit number in four bytes is the fifth of number j."""
    word = int(q.view("<u4")[0])
    return np.array([16.0 * (word >> j & 1) for j in range(32)], np.float32)


def scales_and_minima(q):
    """Eight of 6 bits each in twelve bytes (ggml's get_scale_min_k4)."""
    scales = [q[j] & 63 for j in range(4)]
    scales += [(q[j + 4] & 15) | (q[j - 4] >> 6 << 4) for j in range(4, 8)]
    minima = [q[j + 4] & 63 for j in range(4)]
    minima += [(q[j + 4] >> 4) | (q[j] >> 6 << 4) for j in range(4, 8)]
    return np.float32(scales), np.float32(minima)


def k_block(block, *, fifth):
    """256 numbers as eight runs of 32, each with a scale and a minimum of its own."""
    (d, least), (scales, minima) = halves(block, 2), scales_and_minima(block[4:16])
    high, q = (block[16:48], block[48:]) if fifth else (None, block[16:])
    out = []
    for run in range(8):
        numbers = q[run // 2 * 32 :][:32] >> 4 * (run % 2) & 15
        numbers = numbers + (16 * (high >> run & 1) if fifth else 0)
        out.append(d * scales[run] * numbers.astype(np.float32) - least * minima[run])
    return np.concatenate(out)


def q6_k(block):
    """256 numbers of 6 bits, a scale for each 16 of them."""
    low, high, scales = block[:128], block[128:192], block[192:208].view(np.int8)
    d, out = block[208:210].view(np.float16).astype(np.float32)[0], np.empty(256, np.float32)
    for i in range(256):
        half, j = divmod(i, 128)
        four = low[64 * half + j % 64] >> 4 * (j // 64) & 15
        two = high[32 * half + j % 32] >> 2 * (j // 32) & 3
        out[i] = d * scales[i // 16] * (float(four | two << 4) - 32)
    return out


# How ggml-quants.c lays out a block, written down by itself.
KINDS = {
    "Q4_0": lambda b: halves(b, 1) * (nibbles(b[2:]) - 8),
    "Q4_1": lambda b: halves(b, 2)[0] * nibbles(b[4:]) + halves(b, 2)[1],
    "Q5_0": lambda b: halves(b, 1) * (nibbles(b[6:]) + fifth_bits(b[2:6].copy()) - 16),
    "Q5_1": lambda b: (
        halves(b, 2)[0] * (nibbles(b[8:]) + fifth_bits(b[4:8].copy())) + halves(b, 2)[1]
    ),
    "Q8_0": lambda b: halves(b, 1) * b[2:].view(np.int8).astype(np.float32),
    "Q4_K": lambda b: k_block(b, fifth=False),
    "Q5_K": lambda b: k_block(b, fifth=True),
    "Q6_K": q6_k,
}


@pytest.fixture(scope="module")
def wide():
    config = dataclasses.replace(CONFIG, n_layers=1, d_model=256, n_heads=2, n_kv_heads=1)
    return config, random_params(config, vocab_size=ROWS)


@pytest.mark.parametrize("name", KINDS)
def test_every_usual_kind_of_block_is_read(name, wide, tmp_path):
    """Of a query's projection, whose rows are also put back in order."""
    config, params = wide
    kind = gguf.GGMLQuantizationType[name]
    length, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (256 * 256 // length, size), np.uint8)
    # Any bytes are numbers but those of the scales, which shall be finite and small.
    count = 2 if name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else 1
    scales = rng.uniform(0.01, 0.1, (len(blocks), count)).astype(np.float16).view(np.uint8)
    place = slice(208, 210) if name == "Q6_K" else slice(0, 2 * count)
    blocks[:, place] = scales
    tensor = ("blk.0.attn_q.weight", kind, blocks.reshape(256, -1))
    write(tmp_path / "m.gguf", params, config=config, blocks=tensor)
    imported, _ = load_gguf(tmp_path / "m.gguf")
    found = np.asarray(imported.params["trunk"]["block_0"]["attn"]["c_attn"]["kernel"])
    expected = np.stack([KINDS[name](block) for block in blocks]).reshape(256, 256)
    np.testing.assert_allclose(pair(found[:, :256].T, 2), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(architecture="mamba"), "architecture 'mamba' is not supported"),
        (dict(tokenizer="bert"), "tokenizer 'bert' is neither a byte-level BPE"),
        (dict(expert_count=8), "expert_count=8"),
        (dict(pre="llama-bpe"), r"m\.gguf: pre-tokenizer 'llama-bpe' is not supported"),
    ],
)
def test_what_is_not_supported_is_named(params, tmp_path, options, message):
    write(tmp_path / "m.gguf", params, **options)
    with pytest.raises(InputError, match=message):
        load_trained(tmp_path / "m.gguf", flag="init")


REQUIRED = [
    "general.architecture",
    *(f"llama.{name}" for name in ("block_count", "embedding_length", "attention.head_count")),
    *(f"llama.{name}" for name in ("context_length", "attention.layer_norm_rms_epsilon")),
    *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges")),
    "tokenizer.ggml.eos_token_id",
]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(params, tmp_path, name):
    write(tmp_path / "m.gguf", params, without=name)
    with pytest.raises(InputError, match=f"the field '{name}' is missing"):
        load_gguf(tmp_path / "m.gguf")


def test_fields_with_a_default_may_be_missing(params, tmp_path):
    write(tmp_path / "m.gguf", params, without="llama.rope.freq_base")
    assert load_gguf(tmp_path / "m.gguf")[0].model.rotary.theta == 10_000
    write(tmp_path / "m.gguf", params, without="llama.vocab_size")
    assert load_gguf(tmp_path / "m.gguf")[0].vocab_size == ROWS


def test_begin_further_end_and_added_tokens_come_along(params, tmp_path):
    """Id 2, "!", is a begin of text here, 3 ends turns, and 4 is whole in every text."""
    named = dict(bos_token_id=2, add_bos_token=True, eot_token_id=3)
    tokens = [*TOKENS[:4], "<tool>", *TOKENS[5:]]
    write(tmp_path / "m.gguf", params, kinds=(3, 3, 3, 3, 4), tokens=tokens, vocabulary=named)
    tokenizer = load_trained(tmp_path / "m.gguf", flag="init").tokenizer
    assert tokenizer.bos_id == 2 and tokenizer.end_ids == (1, 3)
    assert tokenizer.encode("a<tool>b") == [TOKENS.index("a"), 4, TOKENS.index("b")]
    write(tmp_path / "m.gguf", params, vocabulary=dict(bos_token_id=0))
    assert load_trained(tmp_path / "m.gguf", flag="init").tokenizer.bos_id is None


SPELLED = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", *map(chr, range(ord("!"), ord("!") + 90))]
PIECES = dict(
    tokenizer="llama",
    tokens=[*SPELLED, "ab", "▁a", "zz"],
    kinds=(2, 3, 3, 6),
    scores=[0.0] * len(SPELLED) + [-2.0, -1.0, -3.0],
    eos=2,
    vocabulary={"bos_token_id": 1},
)
"""SentencePiece's: a space and an a go together before an a and a b do."""


@pytest.mark.parametrize("prefix", [None, True, False])
@pytest.mark.parametrize("begins", [None, True, False])
def test_a_vocabulary_of_sentencepiece_is_made_of_scores(params, tmp_path, prefix, begins):
    given = {"add_space_prefix": prefix, "add_bos_token": begins}
    given = {name: value for name, value in given.items() if value is not None}
    options = PIECES | {"vocabulary": PIECES["vocabulary"] | given}
    write(tmp_path / "m.gguf", params, **options)
    tokenizer = load_trained(tmp_path / "m.gguf", flag="init").tokenizer
    ids = {token: i for i, token in enumerate(PIECES["tokens"])}
    first = [ids["ab"]] if prefix is False else [ids["▁a"], ids["b"]]
    rest = [ids["▁a"], ids["b"], ids["<0x0A>"]]
    bos = [] if begins is False else [1]
    assert tokenizer.encode_prompts(["ab ab\n"]) == [[*bos, *first, *rest]]
    assert tokenizer.encode_answers(["ab"], [" ab\n"]) == [[*rest, 2]]
    assert tokenizer.decode(tokenizer.encode(" ab\n")) == " ab\n"
    assert tokenizer.stray_special("", "a<s>") == "<s>" and tokenizer.lacks("é")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(vocabulary=dict(add_bos_token=True)), "add_bos_token is true, but"),
        (dict(vocabulary=dict(eot_token_id=ROWS)), f"eot_token_id is {ROWS}, but there are {ROWS}"),
        (dict(PIECES, scores=[0.0]), f"scores has 1 numbers, expected .* the {ROWS} tokens"),
        (dict(eos=ROWS), f"eos_token_id is {ROWS}, but there are {ROWS} tokens"),
        (dict(tokens=TOKENS[:-1]), f"found {ROWS - 1} of {ROWS - 1} and {ROWS}"),
        (dict(tokens=[*TOKENS[:-1], "ab"]), f"found {ROWS - 1} of {ROWS} and {ROWS}"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(params, tmp_path, options, message):
    write(tmp_path / "m.gguf", params, **options)
    with pytest.raises(InputError, match=message):
        load_gguf(tmp_path / "m.gguf")


def test_a_quantisation_that_nobody_can_read_is_named(params, tmp_path, monkeypatch):
    def refuse(data, kind):
        raise NotImplementedError

    monkeypatch.setattr("gguf.quants.dequantize", refuse)
    write(tmp_path / "m.gguf", params)
    with pytest.raises(InputError, match=r"\.weight is stored as F32, which cannot be read"):
        load_gguf(tmp_path / "m.gguf")


def test_a_pointer_is_no_gguf_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=r"m\.gguf is a Git LFS pointer"):
        load_gguf(path)


def test_a_truncated_file(params, tmp_path):
    write(tmp_path / "m.gguf", params)
    data = (tmp_path / "m.gguf").read_bytes()
    cuts = [0, 3, 20, 300, 700, 1500, 3000, len(data) // 2, len(data) - 1]
    for cut in cuts:
        (tmp_path / "m.gguf").write_bytes(data[:cut])
        with pytest.raises(InputError, match="is not a whole GGUF file"):
            load_gguf(tmp_path / "m.gguf")
