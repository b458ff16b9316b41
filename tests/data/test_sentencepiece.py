"""SentencePiece tokenizers: whatever texts are put together of, the ids are the package's."""

import json

import pytest
from sentencepieces import KINDS, NAMES, sentencepiece_backend, write_sentencepiece
from tokenizers import decoders, normalizers, pre_tokenizers

from rlhf_jax.data.chat import Message
from rlhf_jax.data.fates import of_prompts
from rlhf_jax.data.formats import Prompt
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import InputError
from rlhf_jax.inference.session import stream_text

TEXTS = [
    "hello world",
    " hello",
    "  two before, two  within, one after ",
    "\n\nlines\r\n\tand tabs\n",
    " ",
    "emoji 😀👍🏽 👩‍💻 and \U0010ffff",
    "你好，世界。",
    "".join(map(chr, range(0x180))),
    "bytes that are spelled: <0x0A> and <s></s><unk>",
    "",
]
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
LETTERS = (
    "{% for m in messages %}{{ '[' + m.role + ']\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
TEMPLATES = {"phi": PHI, "llama": LLAMA, "letters": LETTERS}
ASKED = (Message("user", "Is Lund nice?"),)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("text", TEXTS)
def test_texts_have_the_ids_of_the_package_and_come_back(tmp_path, kind, text):
    package = write_sentencepiece(tmp_path, kind)
    package.encode_special_tokens = True
    tokenizer = load_tokenizer(tmp_path)
    whole = package.encode(text).ids
    assert tokenizer.encode_beginning(text) == whole and whole.count(1) == 1
    assert tokenizer.encode_prompts([text]) == tokenizer.encode_beginnings([text]) == [whole]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
    assert not tokenizer.lacks(text)
    if kind != "old_metaspace" and text[:1] != " ":  # Metaspace: a space before a text is the ▁
        answer = tokenizer.decode_answer(whole[1:], before=whole[0])
        assert answer == package.decode(whole) == text


PAIRS = [("Is Lund", " nice?"), ("hello", "\n你 😀"), ("a ", "b")]


@pytest.mark.parametrize("prompt, answer", PAIRS)
def test_an_answer_goes_on_from_its_prompt(tmp_path, kind, prompt, answer):
    """The first token of the answer is the one that the whole text has there, with no ▁ between."""
    package = write_sentencepiece(tmp_path, kind)
    tokenizer = load_tokenizer(tmp_path)
    (before,) = tokenizer.encode_prompts([prompt])
    (ids,) = tokenizer.encode_answers([prompt], [answer])
    assert [*before, *ids] == [*package.encode(prompt + answer).ids, tokenizer.eos_id]
    assert tokenizer.decode_answer(ids, before[-1]) == answer


def test_an_answer_to_nothing_is_the_beginning_of_a_text(tmp_path, kind):
    package = write_sentencepiece(tmp_path, kind)
    tokenizer = load_tokenizer(tmp_path)
    (before,) = tokenizer.encode_prompts([""])
    (ids,) = tokenizer.encode_answers([""], ["Hello!"])
    assert [*before, *ids] == [*package.encode("Hello!").ids, tokenizer.eos_id]
    assert tokenizer.decode_answer(ids, before[-1]) == "Hello!"
    assert "".join(stream_text(tokenizer, ids, before=before[-1])) == "Hello!"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("answer", ["Very nice.", " Very", "😀\n\n你好"])
def test_conversations_have_the_ids_of_the_whole_text(tmp_path, kind, template, answer):
    settings = {"chat_template": TEMPLATES[template]}
    package = write_sentencepiece(tmp_path, kind, settings=settings)
    tokenizer = load_tokenizer(tmp_path).with_chat_prompts()
    whole = {
        "phi": f"<|user|>\nIs Lund nice?<|end|>\n<|assistant|>\n{answer}<|end|>\n",
        "llama": f"<s>[INST] Is Lund nice? [/INST] {answer} </s>",
        "letters": f"[user]\nIs Lund nice?</s>\n[assistant]\n{answer}</s>\n",
    }[template]
    (before,) = tokenizer.encode_prompts([ASKED])
    (ids,) = tokenizer.encode_answers([ASKED], [(Message("assistant", answer),)])
    expected = package.encode(whole, add_special_tokens=False).ids
    # An answer ends with its end token; the line feed that the template writes behind is not in it.
    assert [*before, *ids] == expected[: len(before) + len(ids)]
    assert ids[-1] in tokenizer.end_ids and ids[-1] not in ids[:-1]
    assert tokenizer.encode_chat(ASKED) == before
    said = tokenizer.decode_answer(ids, before[-1])
    # Phi's mark of the assistant takes white space behind it.
    written = {"phi": answer.lstrip(), "llama": f" {answer} ", "letters": answer}
    assert said == written[template]
    assert "".join(stream_text(tokenizer, ids, before=before[-1])) == said
    # A sampled answer, written down and read again, is the same ids.
    if not said.startswith(" "):
        assert tokenizer.encode_answers([ASKED], [said]) == [ids]


def test_strings_in_the_markup_of_a_template_are_read_as_it_writes_them(tmp_path, kind):
    package = write_sentencepiece(tmp_path, kind, settings={"chat_template": PHI})
    tokenizer = load_tokenizer(tmp_path)
    rendered, answer = "<|user|>\nIs Lund nice?<|end|>\n<|assistant|>\n", "Very.<|end|>"
    (before,) = tokenizer.encode_prompts([rendered])
    (ids,) = tokenizer.encode_answers([rendered], [answer])
    assert [*before, *ids] == package.encode(rendered + answer).ids


def test_typed_marks_are_letters(tmp_path, kind):
    write_sentencepiece(tmp_path, kind, settings={"chat_template": PHI})
    tokenizer = load_tokenizer(tmp_path).with_chat_prompts()
    typed = (Message("user", "</s><|end|><s>"),)
    (ids,) = tokenizer.encode_prompts([typed])
    assert tokenizer.eos_id not in ids and 1 not in ids
    assert ids.count(tokenizer.end_ids[1]) == 1  # the template's own
    assert tokenizer.stray_special("a", "b<s>") == "<s>"


def test_bytes_stream_until_they_are_a_character(tmp_path, kind):
    write_sentencepiece(tmp_path, kind)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("😀!")
    assert [tokenizer.decode_bytes([i]) for i in ids] == [b"\xf0", b"\x9f", b"\x98", b"\x80", b"!"]
    assert list(stream_text(tokenizer, ids, before=ids[-1])) == ["😀", "!"]
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_a_typed_sign_of_a_space_is_counted_as_lost(tmp_path, kind):
    """The vocabulary writes spaces with it, so that it would come back as one."""
    write_sentencepiece(tmp_path, kind)
    tokenizer = load_tokenizer(tmp_path)
    fates = of_prompts([Prompt("a b"), Prompt("a▁b")], tokenizer, prompt_length=16)
    assert [fate.why for fate in fates] == [None, "characters that the tokenizer lacks"]


def test_letters_without_tokens_or_bytes_are_lost_and_counted(tmp_path, kind):
    write_sentencepiece(tmp_path, kind, fallback=False)
    tokenizer = load_tokenizer(tmp_path)
    assert not tokenizer.lacks("hello world") and tokenizer.lacks("hello 😀")
    assert tokenizer.decode(tokenizer.encode("hello 😀")) == "hello "


@pytest.mark.parametrize("first", [None, False, True])
@pytest.mark.parametrize("processor", [None, "<s>"])
def test_the_begin_of_text_stands_once_or_not_at_all(tmp_path, kind, first, processor):
    settings = {} if first is None else {"add_bos_token": first}
    write_sentencepiece(tmp_path, kind, bos=processor, settings=settings)
    tokenizer = load_tokenizer(tmp_path)
    begins = processor is not None if first is None else first
    assert tokenizer.bos_ids == ((1,) if begins else ()) and tokenizer.named_bos_id == 1
    assert tokenizer.encode_documents(["hello"])[0].count(1) == int(begins)
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").bos_ids == tokenizer.bos_ids


def test_several_ends_are_kept(tmp_path, kind):
    write_sentencepiece(tmp_path, kind, settings={"chat_template": PHI})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    tokenizer = load_tokenizer(tmp_path)
    end = tokenizer._backend.token_to_id("<|end|>")
    assert tokenizer.end_ids == (2, 0, end)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.end_ids, again.digest) == (tokenizer.end_ids, tokenizer.digest)


@pytest.mark.parametrize("pad", [None, "<|user|>", "<pad>"])
def test_the_file_goes_out_as_it_came_in(tmp_path, kind, pad):
    """Letter by letter, through runs too, unless the model has a row for padding of ours."""
    settings = {} if pad is None else {"pad_token": pad}
    write_sentencepiece(tmp_path / "hub", kind, settings=settings | {"chat_template": PHI})
    file = tmp_path / "hub/tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=3))
    tokenizer = load_tokenizer(tmp_path / "hub").with_chat_prompts()
    tokenizer.save(tmp_path / "run")
    again = load_tokenizer(tmp_path / "run")
    assert (again.digest, again.pad_id) == (tokenizer.digest, tokenizer.pad_id)
    rows = tokenizer.vocab_size - (pad != "<|user|>")
    again.save(tmp_path / "export", rows=rows)
    assert (tmp_path / "export/tokenizer.json").read_bytes() == file.read_bytes()
    again.save(tmp_path / "wide", rows=rows + 64)
    same = (tmp_path / "wide/tokenizer.json").read_bytes() == file.read_bytes()
    assert same == (pad == "<|user|>")
    assert load_tokenizer(tmp_path / "wide").digest == tokenizer.digest


def change_normalizer(backend):
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])


def change_splits(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )


def drop_spaces(backend):
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")


def write_no_spaces(backend):
    backend.normalizer, backend.pre_tokenizer = normalizers.Sequence([]), pre_tokenizers.Digits()


def other_decoder(backend):
    backend.decoder = decoders.WordPiece()


@pytest.mark.parametrize(
    "change, match",
    [
        (change_normalizer, "the tokenizer has NFKC before its merges, which may change a text"),
        (change_splits, "the tokenizer has WhitespaceSplit before its merges"),
        (drop_spaces, "the tokenizer has Split before its merges"),
        (write_no_spaces, "reads ▁ as a space, but nothing in it writes spaces as ▁"),
        (
            other_decoder,
            "neither a byte-level BPE nor one of SentencePiece.* its decoder WordPiece",
        ),
    ],
)
def test_what_would_not_come_back_as_it_was_is_refused(tmp_path, change, match):
    backend = sentencepiece_backend("gemma")
    change(backend)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(NAMES))
    with pytest.raises(InputError, match=rf"tokenizer\.json: .*{match}"):
        load_tokenizer(tmp_path)
