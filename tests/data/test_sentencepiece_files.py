"""SentencePiece's own files, and pieces with scores, are read as SentencePiece reads them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from sentencepieces import TEXT

from rlhf_jax.data.sentencepiece import PieceKind, ScoredPiece, from_scores
from rlhf_jax.data.sentencepiece_model import read_pieces
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.vocabularies import Scored, tokenizer_of
from rlhf_jax.errors import InputError

DATA = Path(__file__).parents[2] / "data"
LLAMA = dict(
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    vocab_size=400,
    user_defined_symbols=["<|turn|>"],
)
"""How Llama 2's and Mistral's were trained; Gemma's differs in the prefix."""
TEXTS = [
    *("Is it nice?", " hello", "a  b   c", "\n\ntwo\nlines", "你好 😀", "12345", "", " "),
    *("Hello! It is the cat.", "<s></s><0x0A>"),
]


def train(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        hard_vocab_limit=False,
        **LLAMA | changes,
    )
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("changes", [{}, {"add_dummy_prefix": False}], ids=["llama", "gemma"])
def test_texts_have_the_ids_of_sentencepiece(tmp_path, changes):
    theirs = train(tmp_path, **changes)
    ours = load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id())
    for text in TEXTS:
        assert ours.encode_beginning(text) == [theirs.bos_id(), *theirs.encode(text)], text
        assert ours.decode(ours.encode(text)) == text
    turn = theirs.piece_to_id("<|turn|>")
    assert ours.encode("a<|turn|>").count(turn) == 1 and ours.decode([turn]) == "<|turn|>"


SETTINGS = {
    "legacy": ({}, "<s>▁Hi", "▁Hi"),
    "not legacy": ({"legacy": False}, "<s>▁Hi", "Hi"),
    "no prefix": ({"add_prefix_space": False}, "<s>Hi", "Hi"),
    "no begin": ({"add_bos_token": False}, "▁Hi", "▁Hi"),
}


@pytest.mark.parametrize("settings, begins, behind", SETTINGS.values(), ids=SETTINGS)
def test_the_settings_say_where_a_space_is_put(tmp_path, settings, begins, behind):
    """As transformers' class of Llama takes them; behind special tokens only if legacy."""
    train(tmp_path)
    template = {"chat_template": "{{ eos_token }}Hi{% for m in messages %}{% endfor %}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | template))
    tokenizer = load_tokenizer(tmp_path)
    spelled = lambda ids: "".join(map(tokenizer._backend.id_to_token, ids))
    assert spelled(tokenizer.encode_beginning("Hi")) == begins
    pieces = tokenizer._markup.pieces("</s>Hi")
    assert spelled(tokenizer._markup.ids(pieces)) == f"</s>{behind}"


def test_tokens_that_are_added_beside_it_keep_their_ids(tmp_path):
    theirs = train(tmp_path)
    more = theirs.get_piece_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"spoon": more}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("spoon") == [more] and tokenizer.pad_id == more + 1
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").digest == tokenizer.digest


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"model_type": "unigram", "vocab_size": 300}, "is a model of Unigram, expected BPE"),
        ({"normalization_rule_name": "nfkc"}, "asks for a normalization of letters"),
        ({"remove_extra_whitespaces": True}, "asks for spaces to be taken out"),
        ({"byte_fallback": False}, "asks for no bytes for letters without a token"),
        ({"treat_whitespace_as_suffix": True}, "asks for the sign of a space behind words"),
        ({"user_defined_symbols": ["▁▁"]}, r"takes spaces together .*'▁▁'.* write one with"),
    ],
)
def test_models_that_would_be_read_otherwise_are_refused(tmp_path, changes, match):
    train(tmp_path, **changes)
    with pytest.raises(InputError, match=rf"tokenizer\.model.* {match}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-20], lambda data: b"aGk= 0\nYQ== 1\n" * 9, lambda data: b""],
    ids=["cut off", "tiktoken's", "empty"],
)
def test_a_file_of_another_kind_is_named(tmp_path, damage):
    train(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        InputError, match=r"tokenizer\.model is no model of SentencePiece .*write a"
    ):
        read_pieces(path)


# --- Pieces with scores ---------------------------------------------------------------------------


def merged(text, scores):
    """SentencePiece's rule, step by step: the best of neighbouring pairs becomes one."""
    pieces = list(text)
    while True:
        pairs = [
            (scores[a + b], -n) for n, (a, b) in enumerate(pairwise(pieces)) if a + b in scores
        ]
        if not pairs:
            return pieces
        n = -max(pairs)[1]
        pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]


def stories():
    """The pieces of a real Llama, whose file writes spaces as they are."""
    rows = map(json.loads, (DATA / "model_stories260k/vocab.jsonl").read_text().splitlines())
    pieces = [ScoredPiece(row["piece"].replace(" ", "▁"), row["score"], 1) for row in rows]
    kinds = [PieceKind.UNKNOWN, *[PieceKind.CONTROL] * 2, *[PieceKind.BYTE] * 256]
    named = [piece._replace(text=piece.text.strip()) for piece in pieces[:3]] + pieces[3:]
    return [
        piece._replace(kind=kind)
        for piece, kind in zip(named, kinds + [1] * (len(named) - len(kinds)), strict=True)
    ]


@pytest.mark.parametrize("text", ["Once upon a time there was", "aaaaabbbbb", "the thethe  the"])
def test_the_best_pair_becomes_one_piece(text):
    pieces = stories()
    backend = from_scores(pieces, "never")
    text = text.replace(" ", "▁")
    scores = {piece.text: piece.score for piece in pieces if piece.kind == 1}
    assert backend.encode(text.replace("▁", " ")).tokens == merged(text, scores)


def test_a_real_llama_wrote_these_ids():
    reference = json.loads((DATA / "model_stories260k/reference.json").read_text())
    pieces = stories()
    tokenizer = tokenizer_of(
        [piece.text for piece in pieces],
        Scored(pieces, "always"),
        special=["<unk>", "<s>", "</s>"],
        eos="</s>",
        bos="<s>",
        begins=True,
        chat_template=None,
    )
    story = reference["greedy_text"].removeprefix(" ")
    assert tokenizer.encode_beginning(story) == reference["greedy_ids"]
    assert tokenizer.decode_answer(reference["greedy_ids"][1:], before=1) == story
