"""DPO as a stage: it learns to order answers, starts at ln 2, resumes, and leaves its reference."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from precision import SAME, in_float64, log_ratio_bound

from experiments import dpo
from rlhf_jax.config import DPOConfig, LoRAConfig, OptimConfig, RunConfig
from rlhf_jax.data.batches import comparison_batches
from rlhf_jax.data.formats import read_comparisons
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.checkpoints import load_params, params_sha256
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.training import preference_optimization
from rlhf_jax.training.preference_optimization import sequence_logprobs

GOOD, BAD = " good film .", " bad film ."


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    tokenizer = train_bpe(["a good film . a bad film ."] * 4, vocab_size=300)
    tiny.save_model(folder / "lm", tokenizer, context=32)
    rows = [
        {"prompt": f"film {n}:", "responses": [BAD, GOOD, " film"], "ranks": [2, 0, 1]}
        for n in range(40)
    ]
    tiny.write_rows(folder / "rows.jsonl", rows)
    return DPOConfig(
        run=RunConfig(dir=folder / "run", save_every=3, log_every=1, tensorboard=False),
        init=folder / "lm",
        data=folder / "rows.jsonl",
        cache=folder / "cache",
        prompt_length=12,
        response_length=12,
        optim=OptimConfig(lr=1e-2, schedule="constant", weight_decay=0.0),
    )


def into(config, name, **changes):
    run = replace(config.run, dir=config.run.dir.with_name(name), **changes.pop("run", {}))
    return replace(config, run=run, **changes)


@pytest.mark.slow
def test_it_learns_the_order_and_starts_at_ln_2(config):
    before = params_sha256(load_params(config.init / "final"))
    done = dpo.run(config)
    rows = [json.loads(line) for line in (config.run.dir / "metrics.jsonl").open()]
    # β times the log-ratios of two answers: −log σ moves by half of that at 0.
    model, tokens = load_trained(config.init, flag="init"), config.response_length
    sizes = dict(length=config.prompt_length + tokens, outputs=model.vocab_size)
    bound = 2 * config.beta * log_ratio_bound(model.model, tokens=tokens, **sizes)
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=bound)
    assert rows[0]["margin"] == pytest.approx(0, abs=bound)
    assert done["heldout"]["eval/accuracy"] == 1.0 and done["heldout"]["eval/margin"] > 0.3
    assert params_sha256(load_params(config.init / "final")) == before != done["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LoRAConfig(), LoRAConfig(rank=2)], ids=["full", "lora"])
def test_a_stopped_run_goes_on_to_the_same_bits(config, lora):
    whole = dpo.run(into(config, f"whole{lora.rank}", lora=lora))
    name = f"stopped{lora.rank}"
    with pytest.raises(SystemExit):
        dpo.run(into(config, name, lora=lora, run={"stop_after": 4}))
    assert dpo.run(into(config, name, lora=lora))["params_sha256"] == whole["params_sha256"]
    assert whole["heldout"]["eval/margin"] > 0


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.cases(1)
def test_updates_read_what_packing_says(config, packing, monkeypatch):
    read = []
    packed = preference_optimization.packed_logprobs
    reading = lambda *args, **more: read.append(1) or packed(*args, **more)
    monkeypatch.setattr(preference_optimization, "packed_logprobs", reading)
    once = {"stop_after": 1}
    with pytest.raises(SystemExit):
        dpo.run(into(config, f"packing_{packing}", packing=packing, run=once))
    assert len(read) == 2 * packing  # the reference, and the policy's loss


@pytest.mark.usefixtures("float64")
def test_sequence_logprobs_is_the_sum_over_the_response(config):
    """Token by token, each scored by a pass over what stands before it."""
    trained = in_float64(load_trained(config.init, flag="init"))
    lm = make_language_model(trained.model, trained.vocab_size)
    rows = read_comparisons(config.data)[:2]
    batch = next(
        comparison_batches(
            rows, trained.tokenizer, query_length=12, response_length=12, batch_size=2, seed=None
        )
    )
    found = jax.jit(partial(sequence_logprobs, lm))(trained.params, batch)
    logits_of = jax.jit(partial(lm.logits, start=0))
    pad = trained.tokenizer.pad_id
    for b, row in enumerate(rows):
        for k, response in enumerate(row.responses):
            ids = trained.tokenizer.encode(row.prompt)
            total = 0.0
            for token in [*trained.tokenizer.encode(response), trained.tokenizer.eos_id]:
                # Padded to one shape, so that one program scores them all.
                before = jnp.array([[*ids, *[pad] * (24 - len(ids))]])
                logits = logits_of(trained.params, before, jnp.arange(24)[None] < len(ids))
                total += float(jax.nn.log_softmax(logits[0, len(ids) - 1])[token])
                ids = [*ids, token]
            assert float(found[b, k]) == pytest.approx(total, rel=SAME)
