"""Training on named human preferences, pairs for themselves, length control, and the audit.

In float64: a training's own figures and the audit's are of two programs (see precision.py).
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from precision import SAME

from experiments import audit, convert, reward
from rlhf_jax.config import (
    AuditConfig,
    ConvertConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RunConfig,
)
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.preference_audit import ordered_pairs
from rlhf_jax.models import heads
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.tasks.preferences import load_preferences

ROOT = Path(__file__).parents[2]
LENGTHS = dict(prompt_length=8, response_length=24)
MODEL = ModelConfig(n_layers=2, d_model=16, n_heads=2, context=tiny.CONTEXT, dtype="float64")
pytestmark = pytest.mark.usefixtures("module_in_float64")


@pytest.fixture(scope="module")
def sft(tmp_path_factory, module_in_float64):
    words = ["the film is", "and so on", "fine", "poor", "Chinese English Human Assistant 我们的"]
    tokenizer = train_bpe(words * 20, vocab_size=300)
    return tiny.save_model(tmp_path_factory.mktemp("sft") / "run", tokenizer, model=MODEL)


def config(sft, folder, **changes):
    run = RunConfig(dir=folder, tensorboard=False, eval_every=1000, save_every=1000)
    optim = OptimConfig(lr=1e-2, warmup_steps=0)
    base = RewardConfig(run=run, init=sft, optim=optim, batch_size=16, epochs=1, **LENGTHS)
    base = replace(base, allow_cut=True)  # people's rows are far longer than the tiny context
    return replace(base, source=ROOT / "data", cache=folder.parent / "cache", **changes)


def by_length_and_word(path, rows):
    """People who like *fine*, and longer answers much more."""
    rng = np.random.default_rng(0)
    lines = []
    for n in range(rows):
        answers, utilities = [], []
        for _ in range(2):
            count, fine = int(rng.integers(1, 8)), bool(rng.integers(2))
            answers.append(" " + " ".join(["fine" if fine else "poor"] + ["so"] * count))
            utilities.append(2 * fine + 4 * np.log1p(count) + rng.gumbel())
        better = int(np.argmax(utilities))
        lines.append({"prompt": f"p{n}", "responses": answers, "ranks": [better, 1 - better]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_length_control_leaves_the_words_and_takes_the_length(sft, tmp_path):
    data = by_length_and_word(tmp_path / "rows.jsonl", 1200)
    found = {}
    for control in (False, True):
        folder = tmp_path / f"control_{control}"
        done = reward.run(
            config(sft, folder, data=data, length_control=control, epochs=2, dropout=0.0)
        )
        assert (done["length_coef"] > 1) == control
        check = AuditConfig(reward=(folder,), data=(str(data),), **LENGTHS)
        found[control] = audit.run(check)[str(data)]
    plain, controlled = (found[c]["length_bias"]["correlation"] for c in (False, True))
    assert plain > 0.7 and controlled < plain - 0.3
    # Where lengths are equal only the word is left: of these pairs half have the same, and of the
    # others people take *fine* in 0.88, so that 0.69 is the best that can be.
    assert found[True]["by_length"]["as long"]["mean"] > 0.62
    assert found[False]["accuracy"]["mean"] > found[True]["accuracy"]["mean"]


@pytest.mark.slow
def test_packed_answers_make_the_same_reward_model(sft, tmp_path, monkeypatch):
    data = by_length_and_word(tmp_path / "rows.jsonl", 60)
    read, packed = [], heads.packed_scores
    reading = lambda *args: read.append(1) or packed(*args)
    monkeypatch.setattr(heads, "packed_scores", reading)
    done = [
        reward.run(config(sft, tmp_path / f"packing_{packing}", data=data, packing=packing))
        for packing in (True, False)
    ]
    assert [each["packing"] for each in done] == [True, False] and len(read) == 1
    assert done[0]["heldout"] == pytest.approx(done[1]["heldout"], rel=SAME, abs=SAME)


@pytest.mark.slow
def test_a_score_that_is_a_mean_learns_is_kept_and_is_not_exported(sft, tmp_path):
    rows = by_length_and_word(tmp_path / "rows.jsonl", 480).read_text().splitlines(keepends=True)
    data, heldout, folder = tmp_path / "data.jsonl", tmp_path / "heldout.jsonl", tmp_path / "mean"
    data.write_text("".join(rows[:400]))
    heldout.write_text("".join(rows[400:]))
    done = reward.run(config(sft, folder, data=data, heldout=heldout, pooling="mean", epochs=2))
    assert load_trained(folder, flag="reward", kind="scalar").model.pooling == "mean"
    found = audit.run(AuditConfig(reward=(folder,), data=(str(heldout),), **LENGTHS))
    accuracy = found[str(heldout)]["accuracy"]["mean"]
    assert accuracy == pytest.approx(done["heldout"]["eval/accuracy"], rel=SAME) and accuracy > 0.7
    with pytest.raises(InputError, match="mean over an answer's tokens"):
        convert.run(ConvertConfig("to-hf", folder, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_head_of_zero_has_no_opinion_of_the_first_batch(sft, tmp_path):
    data = by_length_and_word(tmp_path / "rows.jsonl", 60)
    first = {}
    for head in ("normal", "zero"):
        made = config(sft, tmp_path / head, data=data, head=head)
        reward.run(replace(made, run=replace(made.run, log_every=1)))
        rows = (tmp_path / head / "metrics.jsonl").read_text().splitlines()
        first[head] = json.loads(rows[0])
        last = json.loads(rows[-1])
    assert first["zero"]["loss"] == pytest.approx(np.log(2), rel=SAME)
    assert first["zero"]["margin"] == 0 and abs(first["normal"]["margin"]) > 1e-3
    # And comes by one: the last row is of the run with a head of zero.
    assert abs(last["margin"]) > 1e-3


@pytest.mark.slow
def test_a_named_set_is_trained_on_and_audited(sft, tmp_path, capsys):
    name = "pref_pandalm"
    done = reward.run(config(sft, tmp_path / "reward", data=Path(name), unit_std=True))
    assert done["gain"] > 1.5 or done["gain"] < 0.7
    assert 0.2 < done["heldout"]["eval/accuracy"] < 0.9
    out = tmp_path / "audit.json"
    check = AuditConfig(reward=(tmp_path / "reward",), data=(name,), source=ROOT / "data", out=out)
    found = audit.run(check)[name]
    assert json.loads(out.read_text())[name]["accuracy"] == found["accuracy"]
    # The audit scores the same held-out pairs as training's evaluation, at the same lengths.
    assert found["accuracy"]["mean"] == pytest.approx(done["heldout"]["eval/accuracy"], abs=SAME)
    assert found["ece"] == pytest.approx(done["heldout"]["eval/ece"], abs=SAME)
    assert 0.4 < found["bag_of_words"]["mean"] < 0.9 < 1 - found["ece"] + 0.5
    assert "ties" in found
    assert "two labelers" in capsys.readouterr().out


@pytest.mark.slow
def test_pairs_for_themselves_are_elements_of_their_own(sft, tmp_path):
    rows = [
        {"prompt": f"p{n}", "responses": ["a", "b", "c"], "ranks": [0, 1, 1]} for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = {}
    for pairing in ("prompt", "shuffled"):
        made = config(sft, tmp_path / pairing, data=tmp_path / "rows.jsonl", pairing=pairing)
        kept[pairing] = reward.run(made)["comparisons"]["kept"]
    assert kept == {"prompt": 36, "shuffled": 72}


@pytest.mark.slow
def test_a_model_that_says_no_lengths_is_audited_with_those_given(sft, tmp_path):
    tokenizer = load_tokenizer(sft / "tokenizer")
    check = AuditConfig(
        reward=(tiny.save_model(tmp_path / "scalar", tokenizer, kind="scalar"),),
        data=("pref_pandalm",),
        source=ROOT / "data",
        prompt_length=8,
    )
    with pytest.raises(InputError, match="give --prompt-length and --response-length"):
        audit.run(check)
    assert audit.run(replace(check, response_length=8))["pref_pandalm"]["accuracy"]["n"] == 146


@pytest.mark.slow
def test_folds_are_audited_as_one(sft, tmp_path):
    """Each model on the documents that it has not seen; all prompts count once."""
    name, runs = "rank_mqm_wmt23_zh_en", (tmp_path / "a", tmp_path / "b")
    made = [
        reward.run(config(sft, folder, data=Path(name), folds=2, fold=n, unit_std=n == 1))
        for n, folder in enumerate(runs)
    ]
    check = lambda *rewards: AuditConfig(reward=rewards, data=(name,), source=ROOT / "data")
    alone = [audit.run(check(folder))[name] for folder in runs]
    for done, found in zip(made, alone, strict=True):
        right = done["heldout"]["eval/accuracy"]
        assert found["accuracy"]["mean"] == pytest.approx(right, abs=SAME)
    both = audit.run(check(*runs))[name]
    whole = load_preferences(name, ROOT / "data")
    orders = np.array([row.ranks for row in whole.train + whole.heldout if len(row.ranks) == 10])
    assert both["accuracy"]["n"] > ordered_pairs(orders).prompt.size > 0
    for figure in ("accuracy", "bag_of_words", "above_bag_of_words", "always_longer"):
        n = [found[figure]["n"] for found in alone]
        mean = sum(found[figure]["mean"] * n for found, n in zip(alone, n, strict=True)) / sum(n)
        assert both[figure]["n"] == sum(n) and both[figure]["mean"] == pytest.approx(mean)
    gained = both["accuracy"]["mean"] - both["bag_of_words"]["mean"]
    assert both["above_bag_of_words"]["mean"] == pytest.approx(gained)
    with pytest.raises(InputError, match=r"different folds of rank_mqm.*found 0 of 2, 0 of 2"):
        audit.run(check(runs[0], runs[0]))
    with pytest.raises(InputError, match="different folds of pref_pandalm, found none, none"):
        audit.run(replace(check(*runs), data=("pref_pandalm",)))


@pytest.mark.slow
def test_a_finished_run_is_of_the_model_that_it_started_from(sft, tmp_path):
    """Another model in --init is said, not passed over; the same in another place is the same."""
    rows = by_length_and_word(tmp_path / "rows.jsonl", 40)
    made = config(sft, tmp_path / "reward", data=rows)
    tokenizer = load_tokenizer(sft / "tokenizer")
    first = tiny.save_model(tmp_path / "first", tokenizer)
    params = jax.tree.map(lambda x: 2 * x, load_trained(first, flag="init").params)
    other = tiny.save_model(tmp_path / "other", tokenizer, params=params)
    done = reward.run(replace(made, init=first))
    shutil.copytree(first, tmp_path / "moved")
    assert reward.run(replace(made, init=tmp_path / "moved")) == done
    convert.run(ConvertConfig("to-hf", other, out=tmp_path / "exported"))
    for init in (other, tmp_path / "exported"):
        with pytest.raises(InputError, match=f"another model: --init was .*now .*{init.name}"):
            reward.run(replace(made, init=init))
    assert reward.run(replace(made, init=first)) == done


def test_wrong_sets_are_named(sft, tmp_path):
    with pytest.raises(InputError, match="is for evaluation"):
        reward.run(config(sft, tmp_path / "a", data=Path("pref_llmbar")))
    with pytest.raises(InputError, match="has its own held-out part"):
        reward.run(config(sft, tmp_path / "b", data=Path("pref_pandalm"), heldout=Path("h.jsonl")))
    with pytest.raises(InputError, match="does not exist"):
        reward.run(config(sft, tmp_path / "c", data=Path("pref_nothing")))
    rows = by_length_and_word(tmp_path / "rows.jsonl", 8)
    with pytest.raises(InputError, match="--folds deals out a named set, --data is the file"):
        reward.run(config(sft, tmp_path / "d", data=rows, folds=2))
    with pytest.raises(InputError, match="30 groups of rows cannot be dealt to 31 folds"):
        reward.run(config(sft, tmp_path / "e", data=Path("rank_mqm_wmt23_zh_en"), folds=31))
    for wrong in (dict(folds=1), dict(fold=1), dict(folds=2, fold=2)):
        with pytest.raises(InputError, match="expected one of 0 to folds - 1"):
            config(sft, tmp_path / "f", **wrong)
    with pytest.raises(InputError, match="fold=-1: expected a whole number, 0 or more"):
        config(sft, tmp_path / "f", folds=2, fold=-1)
