"""The library without experiments: what docs/library.md shows, run as it stands."""

import re

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax.config import ModelConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.interop.huggingface import save_pretrained
from rlhf_jax.models.heads import make_language_model


@pytest.mark.slow
def test_ppo_as_a_library_in_forty_lines(tmp_path):
    page = (tiny.ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 40

    tokenizer = train_bpe(["The film is one that she said was a good one ."] * 4, vocab_size=280)
    model = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=16)
    params = make_language_model(model, tokenizer.vocab_size).init(jax.random.key(0))
    ids = dict(bos_id=None, end_ids=tokenizer.end_ids, pad_id=tokenizer.pad_id)
    save_pretrained(tmp_path, model, params, kind="lm", dtype="float32", **ids)
    tokenizer.save(tmp_path)

    printed = []
    code = code.replace("path/to/gpt2", str(tmp_path)).replace("range(20)", "range(2)")
    names = {"print": lambda *values: printed.append(values)}
    exec(compile(code, "docs/library.md", "exec"), names)
    assert [row[0] for row in printed] == [0, 1] and np.isfinite(np.array(printed)).all()
    assert all(-5 <= row[1] <= 0 for row in printed), "the mean of the rewards"
    assert abs(printed[0][2]) < 1e-3, "the policy starts as its reference"
    moved = jax.tree.map(
        lambda a, b: float(abs(a - b).max()), names["state"].params["policy"], params
    )
    assert max(jax.tree.leaves(moved)) > 1e-4
