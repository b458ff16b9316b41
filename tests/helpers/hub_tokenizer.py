"""The tokenizer of a checkpoint as the hub holds it, with every file as a test wants it."""

import json

from tokenizers import processors

from rlhf_jax.data.byte_level import BYTE_OF
from rlhf_jax.data.tokenizers import train_bpe

BYTES = sorted(BYTE_OF)
BEGIN, TURN_END = "<|begin|>", "<|turn_end|>"


def write_tokenizer(folder, *, without=(), special=(), added=(), bos=None, tokenizer=True, **files):
    """A checkpoint's tokenizer: an alphabet of bytes on ids 0 ... 255, then special tokens.

    ``files`` are JSON files by their names.
    """
    folder.mkdir(exist_ok=True)
    vocabulary = {token: i for i, token in enumerate([*BYTES, *special]) if i not in without}
    backend = trained_on(vocabulary)
    backend.add_special_tokens(list(special))
    backend.add_tokens(list(added))
    if bos is not None:
        pair = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[pair]
        )
    if tokenizer:
        backend.save(str(folder / "tokenizer.json"))
    else:
        files["vocab"] = vocabulary
        (folder / "merges.txt").write_text("#version: 0.2\n")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def trained_on(vocabulary):
    """The package's own BPE of a vocabulary, without merges."""
    made = json.loads(train_bpe(["ab"], vocab_size=258)._backend.to_str())
    made["model"] |= {"vocab": vocabulary, "merges": []}
    made["added_tokens"] = []
    return type(train_bpe(["ab"], vocab_size=258)._backend).from_str(json.dumps(made))
