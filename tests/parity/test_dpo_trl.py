"""DPO from text to gradients: one batch of TRL 1.16's trainer, ids included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.dpo import sequence_logprobs
from parity.torch_bridge import SINGLE, by_torch_name
from rlhf_jax.config import ModelConfig
from rlhf_jax.data.batches import comparison_batches
from rlhf_jax.data.formats import read_comparisons
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.interop.huggingface import save_pretrained
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.objectives.preference_losses import dpo_loss
from rlhf_jax.runs.trained import load_trained

TRL = Path(sys.prefix) / "trl-1.16.0"
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not TRL.is_dir(), reason="needs TRL 1.16.0 beside 1.12.0: make test-torch"),
]
CONFIG = ModelConfig(n_layers=2, d_model=32, n_heads=4, context=48)
BETA = 0.3
ROWS = [
    {"prompt": "once upon a time", "chosen": " there was a king", "rejected": " xyz"},
    {"prompt": "a queen", "chosen": " was", "rejected": " and a king and a queen there was"},
    {"prompt": "there", "chosen": " was a time", "rejected": " was a"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy and another reference, as Hugging Face checkpoints, and the rows."""
    folder = tmp_path_factory.mktemp("dpo")
    tokenizer = train_bpe(["once upon a time there was a king and a queen " * 20], vocab_size=280)
    lm = make_language_model(CONFIG, tokenizer.vocab_size)
    ids = dict(bos_id=None, end_ids=(tokenizer.eos_id,), pad_id=tokenizer.pad_id, dtype="float32")
    for seed, name in enumerate(("policy", "reference")):
        params = jax.tree.map(lambda x: 4 * x, lm.init(jax.random.key(seed)))
        save_pretrained(folder / name, CONFIG, params, kind="lm", **ids)
        tokenizer.save(folder / name)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    script = Path(__file__).with_name("trl_dpo.py")
    names = ("policy", "reference", "rows.jsonl", "out.npz")
    done = subprocess.run(
        [sys.executable, script, *(folder / name for name in names), "float32", str(BETA)],
        env=os.environ | {"PYTHONPATH": str(TRL)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "out.npz")


def test_dpo_from_text_to_gradients(folder, theirs):
    trained, reference = (load_trained(folder / n, flag="init") for n in ("policy", "reference"))
    tokenizer = trained.tokenizer
    rows = read_comparisons(folder / "rows.jsonl")
    batch = next(
        comparison_batches(
            rows, tokenizer, query_length=12, response_length=16, batch_size=len(ROWS), seed=None
        )
    )
    assert batch.ranks.tolist() == [[0, 1]] * len(ROWS)

    # Ids: prompt, answer, one end of text; of the chosen answers first, as TRL stacks them
    ours = [[*q[qm], *r[k][m[k]]] for k in (0, 1) for q, qm, r, m in zip(*batch[:4], strict=True)]
    given, mask = theirs["batch/input_ids"], theirs["batch/attention_mask"].astype(bool)
    assert [list(row[m]) for row, m in zip(given, mask, strict=True)] == ours
    answers = theirs["batch/completion_mask"].sum(axis=1)
    assert answers.tolist() == np.asarray(batch.mask).sum(axis=2).T.reshape(-1).tolist()

    # Log-probs, loss, gradients
    batch = jax.tree.map(jnp.asarray, batch)
    lm = make_language_model(trained.model, trained.vocab_size)
    ref_logprobs = sequence_logprobs(lm, reference.params, batch)

    def loss_fn(params):
        logprobs = sequence_logprobs(lm, params, batch)
        loss, metrics = dpo_loss(logprobs, ref_logprobs, batch.ranks, beta=BETA)
        return loss, (metrics, logprobs)

    grads, (metrics, logprobs) = jax.grad(loss_fn, has_aux=True)(trained.params)
    SINGLE.agree("DPO loss (TRL)", metrics["loss"], theirs["loss"])
    metric = lambda name: float(theirs[f"metric/{name}"])
    assert float(logprobs[:, 0].mean()) == pytest.approx(metric("logps/chosen"), rel=1e-5)
    assert float(logprobs[:, 1].mean()) == pytest.approx(metric("logps/rejected"), rel=1e-5)
    assert float(metrics["margin"]) == pytest.approx(metric("rewards/margins"), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(metric("rewards/accuracies"))
    expected = {k.removeprefix("grad/"): theirs[k] for k in theirs if k.startswith("grad/")}
    SINGLE.agree("gradient of the DPO loss (TRL)", by_torch_name(grads), expected)
