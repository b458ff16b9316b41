"""DPO and its kin from text to gradients: one batch of TRL 1.16's trainer, ids included."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.torch_bridge import SINGLE, by_torch_name
from rlhf_jax.config import ModelConfig
from rlhf_jax.data.batches import comparison_batches
from rlhf_jax.data.formats import read_comparisons
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.interop.huggingface import save_pretrained
from rlhf_jax.models.heads import LanguageModel, make_language_model
from rlhf_jax.objectives.preference_losses import dpo_loss
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.training.preference_optimization import sequence_logprobs
from rlhf_jax.types import ComparisonBatch

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
EPSILON, ALPHA = 0.1, 0.7
KIN = {
    "sigmoid": (dict(loss_types=["sigmoid"]), {}),
    "ipo": (dict(loss_types=["ipo"]), dict(loss="ipo", per_token=True)),
    "hinge": (dict(loss_types=["hinge"]), dict(loss="hinge")),
    "robust": (
        dict(loss_types=["robust"], label_smoothing=EPSILON),
        dict(loss="robust", label_smoothing=EPSILON),
    ),
    "sigmoid per token": (dict(loss_types=["sigmoid_norm"]), dict(per_token=True)),
    "sigmoid and SFT, one row": (
        dict(loss_types=["sigmoid", "sft"], loss_weights=[1.0, ALPHA], rows=[1]),
        dict(sft_coef=ALPHA),
    ),
    "sigmoid and SFT": (
        dict(loss_types=["sigmoid", "sft"], loss_weights=[1.0, ALPHA]),
        dict(sft_coef=ALPHA),
    ),
}
"""Settings of TRL's trainer, and arguments of ``dpo_loss``."""


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
    common = dict(loss_weights=[1.0], label_smoothing=0.0)
    cases = json.dumps({name: common | settings for name, (settings, _) in KIN.items()})
    done = subprocess.run(
        [sys.executable, script, *(folder / n for n in names), "float32", str(BETA), cases],
        env=os.environ | {"PYTHONPATH": str(TRL)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "out.npz")


class Ours(NamedTuple):
    lm: LanguageModel
    params: dict
    batch: ComparisonBatch
    ref_logprobs: jax.Array

    def loss(self, rows=(), **arguments):
        """((loss, (metrics, log-probs)), gradient) of ``dpo_loss`` on these rows, or on all."""
        index = jnp.array(rows) if rows else slice(None)
        batch, ref_logprobs = jax.tree.map(lambda x: x[index], (self.batch, self.ref_logprobs))

        def loss_fn(params):
            logprobs = sequence_logprobs(self.lm, params, batch)
            given = logprobs, ref_logprobs, batch.ranks, batch.mask.sum(axis=2)
            loss, metrics = dpo_loss(*given, beta=BETA, **arguments)
            return loss, (metrics, logprobs)

        return jax.value_and_grad(loss_fn, has_aux=True)(self.params)


@pytest.fixture(scope="module")
def ours(folder):
    trained, reference = (load_trained(folder / n, flag="init") for n in ("policy", "reference"))
    rows = read_comparisons(folder / "rows.jsonl")
    lengths = dict(query_length=12, response_length=16, batch_size=len(ROWS), seed=None)
    batch = next(comparison_batches(rows, trained.tokenizer, **lengths))
    batch = jax.tree.map(jnp.asarray, batch)
    lm = make_language_model(trained.model, trained.vocab_size)
    ref_logprobs = sequence_logprobs(lm, reference.params, batch)
    return Ours(lm, trained.params, batch, ref_logprobs)


def gradients_of(theirs, name):
    prefix = f"{name}/grad/"
    return {k.removeprefix(prefix): theirs[k] for k in theirs if k.startswith(prefix)}


def test_dpo_from_text_to_gradients(ours, theirs):
    batch = jax.tree.map(np.asarray, ours.batch)
    assert batch.ranks.tolist() == [[0, 1]] * len(ROWS)

    # Ids: prompt, answer, one end of text; of the chosen answers first, as TRL stacks them
    ids = [[*q[qm], *r[k][m[k]]] for k in (0, 1) for q, qm, r, m in zip(*batch[:4], strict=True)]
    given, mask = theirs["batch/input_ids"], theirs["batch/attention_mask"].astype(bool)
    assert [list(row[m]) for row, m in zip(given, mask, strict=True)] == ids
    answers = theirs["batch/completion_mask"].sum(axis=1)
    assert answers.tolist() == batch.mask.sum(axis=2).T.reshape(-1).tolist()

    # Log-probs, loss, gradients
    (loss, (metrics, logprobs)), grads = ours.loss()
    SINGLE.agree("DPO loss (TRL)", loss, theirs["sigmoid/loss"])
    metric = lambda name: float(theirs[f"sigmoid/metric/{name}"])
    assert float(logprobs[:, 0].mean()) == pytest.approx(metric("logps/chosen"), rel=1e-5)
    assert float(metrics["logprob_chosen"]) == pytest.approx(metric("logps/chosen"), rel=1e-5)
    assert float(metrics["logprob_rejected"]) == pytest.approx(metric("logps/rejected"), rel=1e-5)
    for which in ("chosen", "rejected"):
        reward = BETA * float(metrics[f"change_{which}"])
        assert reward == pytest.approx(metric(f"rewards/{which}"), rel=1e-5)
    assert float(metrics["margin"]) == pytest.approx(metric("rewards/margins"), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(metric("rewards/accuracies"))
    expected = gradients_of(theirs, "sigmoid")
    SINGLE.agree("gradient of the DPO loss (TRL)", by_torch_name(grads), expected)


@pytest.mark.parametrize("name", [n for n in KIN if n not in ("sigmoid", "sigmoid and SFT")])
def test_kin_of_dpo(ours, theirs, name):
    """IPO per token and hinge, robust, DPO per token, RPO where no lengths differ."""
    settings, arguments = KIN[name]
    (loss, (metrics, _)), grads = ours.loss(settings.get("rows", ()), **arguments)
    SINGLE.agree("DPO's kin (TRL)", loss, theirs[f"{name}/loss"])
    assert float(metrics["margin"]) == pytest.approx(
        float(theirs[f"{name}/metric/rewards/margins"]), rel=1e-5
    )
    expected = gradients_of(theirs, name)
    SINGLE.agree("gradient of DPO's kin (TRL)", by_torch_name(grads), expected)


def test_trls_ipo_is_per_token(ours, theirs):
    """The papers' sums are another loss: their target is 1/(2β) for whole responses."""
    assert float(ours.loss(loss="ipo")[0][0]) > float(theirs["ipo/loss"]) + 1


def test_trls_sft_term_is_a_mean_over_the_batchs_tokens(ours, theirs):
    """Here each chosen answer weighs the same, there each token does."""
    (loss, (metrics, logprobs)), _ = ours.loss(sft_coef=ALPHA)
    lengths = ours.batch.mask.sum(axis=2)[:, 0]
    over_tokens = -logprobs[:, 0].sum() / lengths.sum()
    assert float(jnp.abs(metrics["sft_loss"] - over_tokens)) > 1e-2
    theirs_here = loss + ALPHA * (over_tokens - metrics["sft_loss"])
    SINGLE.agree("DPO's kin (TRL)", theirs_here, theirs["sigmoid and SFT/loss"])
