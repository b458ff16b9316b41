"""Tokenizers: lossless, deterministic, and text never becomes a special token."""

import json
from pathlib import Path

import pytest

from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.tokenizers import EOS, PAD, train_bpe
from rlhf_jax.errors import InputError

DATA = Path(__file__).parent.parent / "data"
HARD = [
    "",
    "plain words, 123 and   spaces \t\n\n end ",
    "".join(map(chr, range(0x180))),
    "😀👍🏽 👩‍💻 \U0010ffff",
    "你好，世界。床前明月光",
    "שלום \u202eright to left\u202c \u200f\u2066\u2069",
    "\ufeffbyte order mark, \u2028line separator, \x00 zero",
]


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer(DATA / "gpt2_bpe")


@pytest.fixture(scope="module")
def trained():
    text = (DATA / "text_gutenberg/alice.txt").read_text(encoding="utf-8")
    return train_bpe([text], vocab_size=600)


@pytest.fixture(params=["gpt2", "trained"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", HARD)
def test_every_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


def test_every_byte_has_an_id(tokenizer):
    single = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    assert {bytes([byte]) for byte in range(256)} <= set(single)


def test_partial_characters_stream_as_bytes(trained):
    ids = trained.encode("é😀")
    assert len(ids) == 6  # alice.txt has neither, so each byte is one id
    assert [trained.decode_bytes(ids[:n]) for n in (1, 4)] == [b"\xc3", "é".encode() + b"\xf0\x9f"]
    assert trained.decode(ids[:1]) == "\ufffd"


def test_special_text_stays_text(tokenizer):
    typed = f"a {EOS} b {PAD}{EOS}"
    ids = tokenizer.encode(typed)
    assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.encode_batch([typed]) == [ids]
    assert tokenizer.decode(ids) == typed


def test_special_text_stays_text_after_loading(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert tokenizer.eos_id not in load_tokenizer(tmp_path).encode(EOS)


def test_decode_leaves_special_ids_out(tokenizer):
    ids = [tokenizer.pad_id, *tokenizer.encode("ab"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "ab"


def test_padding_is_never_end_of_text(tokenizer):
    assert tokenizer.pad_id != tokenizer.eos_id
    assert max(tokenizer.pad_id, tokenizer.eos_id) < tokenizer.vocab_size


def test_gpt2_gives_the_known_ids(gpt2):
    cases = [json.loads(line) for line in (DATA / "gpt2_bpe/known_ids.jsonl").open()]
    assert len(cases) == 25
    for case in cases:
        assert gpt2.encode(case["text"]) == case["ids"]
        assert gpt2.decode(case["ids"]) == case["text"]
    assert gpt2.encode_batch([case["text"] for case in cases]) == [c["ids"] for c in cases]
    assert (gpt2.eos_id, gpt2.pad_id, gpt2.vocab_size) == (50256, 50257, 50258)


def test_training_is_deterministic_and_sized(trained):
    text = (DATA / "text_gutenberg/alice.txt").read_text(encoding="utf-8")
    again = train_bpe(iter([text]), vocab_size=600)
    assert again.digest == trained.digest
    assert trained.vocab_size == 600
    assert train_bpe([text[:5000]], vocab_size=600).digest != trained.digest


def test_training_compresses(trained):
    text = "Alice was beginning to get very tired of sitting by her sister on the bank"
    assert len(trained.encode(text)) < 0.6 * len(text)


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert loaded.digest == tokenizer.digest
    assert loaded.encode(HARD[2]) == tokenizer.encode(HARD[2])
    assert (loaded.eos_id, loaded.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert len(list((tmp_path / "new/folder").iterdir())) == 2  # no temporary file is left


def test_load_tokenizer_recognises_gpt2(gpt2):
    assert load_tokenizer(DATA / "gpt2_bpe").digest == gpt2.digest


@pytest.mark.parametrize("eos", [EOS, {"content": EOS, "lstrip": False}])
def test_a_saved_tokenizer_whose_padding_is_end_of_text_gets_its_own(trained, tmp_path, eos):
    trained.save(tmp_path)
    settings = {"eos_token": eos, "pad_token": eos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_id != loaded.eos_id == trained.eos_id


def test_bad_input(trained, tmp_path):
    with pytest.raises(InputError, match=r"vocab_size=257 is under 258"):
        train_bpe(["a"], vocab_size=257)
    with pytest.raises(InputError, match=r"missing is not a folder: expected tokenizer.json"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(InputError, match=r"has neither: expected tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"id -1 is negative"):
        trained.decode([-1])


def test_ids_of_unused_rows_have_no_text(trained):
    """Imported models have more rows of embedding than ids, and may sample them."""
    ids = trained.encode("text")
    assert trained.decode([*ids, trained.vocab_size, trained.vocab_size + 40]) == "text"


def test_broken_files(trained, tmp_path):
    trained.save(tmp_path)
    config, model = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    model.write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json is not a tokenizer"):
        load_tokenizer(tmp_path)
    trained.save(tmp_path)
    config.write_text("{}")
    with pytest.raises(InputError, match=r"names no end of text: expected eos_token"):
        load_tokenizer(tmp_path)
    config.write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config.json is not JSON"):
        load_tokenizer(tmp_path)
    config.unlink()
    with pytest.raises(InputError, match=r"names no end of text"):
        load_tokenizer(tmp_path)
