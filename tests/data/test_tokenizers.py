"""Tokenizers: lossless, deterministic, and text never becomes a special token."""

import json
from pathlib import Path

import pytest
from hub_tokenizer import BEGIN, BYTES, TURN_END, write_tokenizer
from tokenizers import AddedToken

from rlhf_jax.data.chat import Message
from rlhf_jax.data.fates import of_prompts
from rlhf_jax.data.formats import Prompt
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.tokenizers import EOS, PAD, train_bpe
from rlhf_jax.errors import InputError

DATA = Path(__file__).parents[2] / "data"
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
    with pytest.raises(InputError, match=r"has no vocabulary: expected tokenizer.json"):
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


# --- what the hub holds ---------------------------------------------------------------------------

CHAT = "{% for m in messages %}{{ m.content }}<|turn_end|>{% endfor %}"
SETTINGS = {"eos_token": EOS}


def test_the_begin_of_text_stands_once_before_every_text(tmp_path):
    folder = write_tokenizer(tmp_path, special=(EOS, BEGIN), bos=BEGIN, tokenizer_config=SETTINGS)
    tokenizer = load_tokenizer(folder)
    a = BYTES.index("a")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (257, 256)
    assert tokenizer.encode_prompts(["a", "aa"]) == [[257, a], [257, a, a]]
    assert tokenizer.encode_answers(["a"], ["a"]) == [[a, 256]]
    assert tokenizer.encode_documents(["a", "", f"a{EOS}"]) == [
        [257, a, 256],
        [257, 256],
        [257, a, 256],
    ]
    assert tokenizer.encode_beginning("a") == [257, a] and tokenizer.encode("a") == [a]
    assert 257 not in tokenizer.encode(BEGIN)
    tokenizer.save(tmp_path / "saved", rows=258)
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode_prompts(["a"]) == [[257, a]] and again.digest == tokenizer.digest


@pytest.mark.parametrize("first", [None, True, False])
@pytest.mark.parametrize("processor", [None, BEGIN])
def test_add_bos_token_counts_more_than_the_post_processor(tmp_path, first, processor):
    settings = SETTINGS | {"bos_token": BEGIN}
    settings |= {} if first is None else {"add_bos_token": first}
    write_tokenizer(tmp_path, special=(EOS, BEGIN), bos=processor, tokenizer_config=settings)
    tokenizer = load_tokenizer(tmp_path)
    begins = processor is not None if first is None else first
    assert tokenizer.bos_id == (257 if begins else None)
    assert tokenizer.named_bos_id == 257
    tokenizer.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    assert saved["bos_token"] == BEGIN
    assert load_tokenizer(tmp_path / "saved").bos_id == tokenizer.bos_id


ENDS = {
    "generation_config": ({"generation_config": {"eos_token_id": [256, 258]}}, (256, 258)),
    "one": ({"generation_config": {"eos_token_id": 258}}, (256, 258)),
    "config": ({"config": {"eos_token_id": [258, 256]}}, (256, 258)),
    "generation before config": (
        {"generation_config": {"eos_token_id": [258]}, "config": {"eos_token_id": [257]}},
        (256, 258),
    ),
    "none": ({}, (256,)),
}


def test_an_end_that_the_vocabulary_lacks_is_passed_over_and_said(tmp_path, caplog):
    """GPT-2's 50256 stays in the config.json of many a smaller vocabulary."""
    config = {"eos_token_id": [256, 50256]}
    write_tokenizer(tmp_path, special=(EOS,), tokenizer_config=SETTINGS, config=config)
    assert load_tokenizer(tmp_path).end_ids == (256,)
    assert "config.json: eos_token_id 50256 is passed over" in caplog.text


@pytest.mark.parametrize("length, kept", [(4, [257, 3, 4, 5]), (2, [257, 5]), (1, [5])])
def test_a_prompt_that_is_cut_keeps_its_begin_of_text(tmp_path, length, kept):
    folder = write_tokenizer(tmp_path, special=(EOS, BEGIN), bos=BEGIN, tokenizer_config=SETTINGS)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.last_ids([257, 1, 2, 3, 4, 5], length) == kept
    assert tokenizer.last_ids([1, 2, 3, 4, 5], length) == [1, 2, 3, 4, 5][-length:]
    assert tokenizer.last_ids([257, 5], length) == ([257, 5] if length > 1 else [5])
    assert tokenizer.last_ids([257, 5], None) == [257, 5]


@pytest.mark.parametrize("files, ends", ENDS.values(), ids=ENDS)
def test_all_ends_of_a_model_are_read_and_saved(tmp_path, files, ends):
    write_tokenizer(tmp_path, special=(EOS, BEGIN, TURN_END), tokenizer_config=SETTINGS, **files)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.end_ids) == (256, ends)
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").end_ids == ends


def test_the_end_that_a_template_writes_ends_answers_too(tmp_path):
    settings = SETTINGS | {"chat_template": CHAT}
    tokenizer = load_tokenizer(
        write_tokenizer(tmp_path, special=(EOS, TURN_END), tokenizer_config=settings)
    )
    assert tokenizer.end_ids == (256, 257)
    assert tokenizer.encode_answers(["a"], ["a"])[0][-1] == 256
    chat = tokenizer.with_chat_prompts()
    assert chat.encode_answers(["a"], ["a"])[0][-1] == 257
    broken = settings | {"chat_template": "{{ raise_exception('no') }}"}
    write_tokenizer(tmp_path, special=(EOS, TURN_END), tokenizer_config=broken)
    assert load_tokenizer(tmp_path).end_ids == (256,)


@pytest.mark.parametrize("without", [(), (3,), (3, 200, 255)])
@pytest.mark.parametrize("special", [(), (EOS,)])
def test_padding_takes_a_free_id_in_a_vocabulary_with_holes(tmp_path, without, special):
    """The package counts tokens, which with holes gives the id of another one."""
    eos = special[0] if special else BYTES[254]
    write_tokenizer(tmp_path, without=without, special=special, tokenizer_config={"eos_token": eos})
    tokenizer = load_tokenizer(tmp_path)
    taken = {BYTES.index(char) for char in BYTES if BYTES.index(char) not in without}
    assert tokenizer.pad_id not in taken | {tokenizer.eos_id}
    assert tokenizer.vocab_size == tokenizer.pad_id + 1 > tokenizer.eos_id
    assert tokenizer.decode([BYTES.index("a"), tokenizer.pad_id, *without]) == "a"
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.pad_id, again.vocab_size) == (tokenizer.pad_id, tokenizer.vocab_size)
    tokenizer.save(tmp_path / "export", rows=tokenizer.pad_id)
    assert PAD not in (tmp_path / "export/tokenizer.json").read_text()


def test_characters_without_bytes_in_the_vocabulary_are_not_lost_silently(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, special=(EOS,), tokenizer_config=SETTINGS))
    assert not tokenizer.lacks("abc \u2581") and tokenizer.decode(tokenizer.encode("abc")) == "abc"
    holes = [BYTES.index("b"), BYTES.index("\xe9")]
    write_tokenizer(tmp_path, without=holes, special=(EOS,), tokenizer_config=SETTINGS)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("abc")) == "ac"
    assert tokenizer.lacks("abc") and not tokenizer.lacks("ac")
    assert tokenizer.lacks("\u9000")  # e9 80 80
    prompts = [Prompt("ac"), Prompt("abc")]
    fates = of_prompts(prompts, tokenizer, prompt_length=8)
    assert [fate.why for fate in fates] == [None, "characters that the tokenizer lacks"]


def test_added_tokens_keep_their_ids_in_a_vocabulary_with_holes(tmp_path):
    write_tokenizer(tmp_path, without=(3, 4), special=(EOS,), tokenizer_config=SETTINGS)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    flags = content["added_tokens"][0]
    content["added_tokens"].append(flags | {"id": 300, "content": TURN_END, "rstrip": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer._backend.token_to_id(TURN_END) == 300 and tokenizer.pad_id == 301
    assert tokenizer._markup._added[TURN_END].rstrip


OWN = "<|own|>"
PADDING = {
    "missing": ({}, PAD),
    "end of text": ({"pad_token": EOS}, PAD),
    "unknown": ({"pad_token": BEGIN, "unk_token": BEGIN}, PAD),
    "begin of text": ({"pad_token": {"content": BEGIN}, "bos_token": BEGIN}, PAD),
    "another end": ({"pad_token": TURN_END, "end_token_ids": [256, 258]}, PAD),
    "the template's end": ({"pad_token": TURN_END, "chat_template": CHAT}, PAD),
    "a letter": ({"pad_token": "!"}, PAD),
    "its own": ({"pad_token": OWN}, OWN),
    "new": ({"pad_token": "<pad>"}, "<pad>"),
    "in the template": ({"pad_token": OWN, "chat_template": f"{CHAT} {OWN}"}, PAD),
}


@pytest.mark.parametrize("settings, pad", PADDING.values(), ids=PADDING)
def test_padding_stands_for_nothing_else(tmp_path, settings, pad):
    special = (EOS, BEGIN, TURN_END, OWN)
    write_tokenizer(tmp_path, special=special, tokenizer_config=SETTINGS | settings)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_id == (259 if pad == OWN else 260)
    assert tokenizer._backend.id_to_token(tokenizer.pad_id) == pad
    assert tokenizer.pad_id not in tokenizer.end_ids
    assert tokenizer.decode(tokenizer.encode("a!")) == "a!"


NAMED = {
    "tokenizer_config": {"tokenizer_config": SETTINGS},
    "as an object": {"tokenizer_config": {"eos_token": {"content": EOS, "lstrip": False}}},
    "special_tokens_map": {"special_tokens_map": SETTINGS},
    "null": {"special_tokens_map": SETTINGS, "tokenizer_config": {"eos_token": None}},
    "generation_config": {"generation_config": {"eos_token_id": 256}},
    "config": {"config": {"eos_token_id": 256}, "tokenizer_config": {"model_max_length": 8}},
}


@pytest.mark.parametrize("files", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("whole", [True, False])
def test_the_end_of_text_is_found_where_a_folder_says_it(tmp_path, files, whole):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, special=(EOS,), tokenizer=whole, **files))
    assert (tokenizer.eos_id, tokenizer.end_ids, tokenizer.pad_id) == (256, (256,), 257)
    tokenizer.save(tmp_path / "saved", rows=257)
    assert load_tokenizer(tmp_path / "saved").eos_id == 256


def test_merges_beside_the_vocabulary(tmp_path):
    ab = {token: i for i, token in enumerate([*BYTES, EOS, "ab"])}
    write_tokenizer(tmp_path, special=(EOS,), tokenizer=False)
    (tmp_path / "vocab.json").write_text(json.dumps(ab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = load_tokenizer(tmp_path)  # GPT-2's class needs no other file
    assert tokenizer.encode("ab") == [257] and tokenizer.eos_id == 256
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert load_tokenizer(tmp_path).decode(load_tokenizer(tmp_path).encode("ab")) == " ab"
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(InputError, match=r"vocab.json: Qwen2Tokenizer splits texts"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "merges.txt").write_text("q zz\n")
    with pytest.raises(InputError, match=r"merges.txt does not fit vocab.json"):
        load_tokenizer(tmp_path)


def test_tokens_that_other_files_add_keep_their_ids(tmp_path):
    decoder = {
        "260": {"content": TURN_END, "special": True, "rstrip": True, "normalized": False},
        "257": {"content": "tool", "special": False, "normalized": False},
    }
    settings = SETTINGS | {"added_tokens_decoder": decoder}
    write_tokenizer(
        tmp_path, special=(EOS,), tokenizer_config=settings, added_tokens={"spoon": 259}
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("tool") == [257] and tokenizer.encode("spoon") == [259]
    assert 260 not in tokenizer.encode(TURN_END)
    assert tokenizer._markup._added[TURN_END].rstrip
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (261, 262)
    assert tokenizer.decode([257, 258, 259, 260]) == "toolspoon"


@pytest.mark.parametrize(
    "settings",
    [
        {"additional_special_tokens": [BEGIN, {"content": TURN_END}]},
        {"extra_special_tokens": {"begin": BEGIN, "end": TURN_END}},
        {"bos_token": BEGIN, "sep_token": TURN_END, "mask_token": "<not there>"},
    ],
)
def test_tokens_that_only_the_settings_call_special_are(tmp_path, settings):
    """In ``vocab.json`` they stand among all others; a template's are ids, a person's are text."""
    settings = (
        SETTINGS
        | settings
        | {"chat_template": "<|begin|>{{ messages[0].content }}", "unk_token": "!"}
    )
    write_tokenizer(
        tmp_path, special=(EOS, BEGIN, TURN_END), tokenizer=False, tokenizer_config=settings
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode_chat((Message("user", "!<|turn_end|>"),))[:2] == [257, BYTES.index("!")]
    assert not {257, 258} & set(tokenizer.encode(BEGIN + TURN_END))
    assert tokenizer.decode([257, *tokenizer.encode("a!"), 258]) == "a!"
    assert tokenizer.vocab_size == 260 and tokenizer.stray_special("a", "b<|begin|>") == BEGIN


def test_a_token_that_becomes_the_end_of_text_keeps_what_is_said_of_it(tmp_path):
    token = AddedToken(TURN_END, special=True, normalized=False, rstrip=True)
    write_tokenizer(
        tmp_path, special=(EOS,), added=[token], tokenizer_config={"eos_token": TURN_END}
    )
    assert load_tokenizer(tmp_path)._markup._added[TURN_END].rstrip


def test_templates_by_name(tmp_path):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT}]
    settings = SETTINGS | {"chat_template": named}
    write_tokenizer(tmp_path, special=(EOS, TURN_END), tokenizer_config=settings)
    assert load_tokenizer(tmp_path).chat_template == CHAT
    (tmp_path / "chat_template.json").write_text('{"chat_template": "new"}')
    assert load_tokenizer(tmp_path).chat_template == "new"
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert load_tokenizer(tmp_path).chat_template == "newer"


def test_several_templates_of_which_none_is_the_default_are_said(tmp_path, caplog):
    settings = SETTINGS | {"chat_template": [{"name": "tool_use", "template": "x"}]}
    write_tokenizer(tmp_path, special=(EOS, TURN_END), tokenizer_config=settings)
    assert load_tokenizer(tmp_path).chat_template is None
    assert "none of the chat templates tool_use is named default" in caplog.text


def test_merges_are_never_left_out_at_random(tmp_path):
    write_tokenizer(tmp_path, special=(EOS,), tokenizer_config=SETTINGS)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"] |= {"dropout": 1.0, "merges": ["a b"]}
    content["model"]["vocab"]["ab"] = 257
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).encode("ab") == [257]


def other_kind(content):
    return content | {"model": {"type": "WordLevel", "vocab": {EOS: 0, "a": 1}, "unk_token": "a"}}


@pytest.mark.parametrize(
    "change, match",
    [
        (other_kind, "tokenizer.json: the tokenizer is neither a byte-level.* WordLevel"),
        (lambda content: content | {"decoder": None}, "its decoder NoneType"),
    ],
)
def test_another_kind_of_vocabulary_is_refused(tmp_path, change, match):
    write_tokenizer(tmp_path, special=(EOS,), tokenizer_config=SETTINGS)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(change(content)))
    with pytest.raises(InputError, match=match):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name, match",
    [
        ("vocab.json", "has vocab.json, but no merges.txt beside it"),
        ("spiece.model", "has spiece.model, a Unigram model of SentencePiece"),
        ("README.md", "has no vocabulary"),
    ],
)
def test_a_vocabulary_that_is_not_read_is_named(tmp_path, name, match):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"{match}.*: expected tokenizer.json, or vocab.json"):
        load_tokenizer(tmp_path)


def test_tokens_beyond_the_embedding_are_named(tmp_path):
    write_tokenizer(tmp_path, special=(EOS, BEGIN, TURN_END), tokenizer_config=SETTINGS)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.beyond(257) == [BEGIN, TURN_END]
    assert tokenizer.beyond(259) == []  # padding needs no row


@pytest.mark.parametrize(
    "files, match",
    [
        ({"tokenizer_config": {"eos_token": "</s>"}}, r"the end of text, '</s>', is no token"),
        ({"generation_config": {"eos_token_id": ["2"]}}, r"eos_token_id is \['2'\], expected ids"),
        ({"generation_config": {"eos_token_id": [999]}}, r"names no end of text"),
        ({"tokenizer_config": []}, r"tokenizer_config.json is not a JSON object"),
        (
            {"tokenizer_config": SETTINGS | {"bos_token": "<s>", "add_bos_token": True}},
            r"the begin of text, '<s>', is no token",
        ),
        ({"tokenizer_config": {"eos_token": "a"}}, "'a', is a token that texts are made of"),
        ({"tokenizer_config": {"eos_token": ["a"]}}, r"found \['a'\], expected a token"),
        ({"tokenizer_config": SETTINGS | {"pad_token": {"id": 1}}}, r"found {'id': 1}, expected"),
        ({"tokenizer_config": SETTINGS | {"chat_template": 3}}, "chat_template is a number"),
        ({"added_tokens": {"<x>": "many"}}, "the id of '<x>' is 'many', expected a whole number"),
        ({"added_tokens": {"<x>": 5}}, "'<x>' is given the id 5, but the vocabulary has '&' there"),
        ({"added_tokens": {EOS: 300}}, r"is given the id 300, but the vocabulary has 256"),
    ],
)
def test_special_tokens_that_are_not_there(tmp_path, files, match):
    with pytest.raises(InputError, match=match):
        load_tokenizer(write_tokenizer(tmp_path, special=(EOS,), **files))


def test_tokens_with_other_letters_are_their_own_text(tmp_path):
    write_tokenizer(tmp_path, special=(EOS,), tokenizer_config=SETTINGS)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["\u2581the"] = 257
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).decode([257, BYTES.index("a")]) == "\u2581thea"
