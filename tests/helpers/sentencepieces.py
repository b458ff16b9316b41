"""Tiny tokenizers of SentencePiece's kinds, trained here, in folders as the hub holds them."""

import json
from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

TEXT = [
    "Is Lund nice? Very nice, and the cat sat on the mat.\nIs it?  Yes:   it is. hello world",
    "user assistant model system [INST] hello [/INST] hi  there\n\nHello! 你好 [world]",
] * 4
KINDS = ("legacy", "first", "always", "split", "gemma", "old_metaspace")
"""Llama 2's, Mistral's and Phi-3's normalizer; their newer files; Metaspace's ways; Gemma's."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
TURNS = {"<|user|>": {"rstrip": True}, "<|assistant|>": {"rstrip": True}, "<|end|>": {}}


@cache
def pieces_of_text():
    """(pieces, merges): learnt within words, as SentencePiece does it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(pair) for pair in model["merges"]]


def sentencepiece_backend(kind, *, fallback=True, bos="<s>", turns=True):
    """The package's tokenizer of one of the kinds."""
    pieces, merges = pieces_of_text()
    names = [*NAMES.values(), *(BYTES if fallback else []), *pieces]
    vocabulary = {token: i for i, token in enumerate(names)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback)
    backend = tokenizers.Tokenizer(model)
    space = normalizers.Replace(" ", "▁")
    if kind == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    elif kind == "gemma":
        backend.normalizer = space
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        scheme = {"first": "first"}.get(kind, "always")
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, kind == "split")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [] if kind == "gemma" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    if kind == "old_metaspace":
        backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in NAMES.values()])
    if turns:
        backend.add_special_tokens(
            [AddedToken(name, normalized=False, **flags) for name, flags in TURNS.items()]
        )
    if bos is not None:
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 1)]
        )
    return backend


def write_sentencepiece(folder, kind, *, settings=None, **options):
    """The backend, which is saved in ``folder`` with its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = sentencepiece_backend(kind, **options)
    backend.save(str(folder / "tokenizer.json"))
    content = json.dumps(NAMES | (settings or {}))
    (folder / "tokenizer_config.json").write_text(content)
    return backend
