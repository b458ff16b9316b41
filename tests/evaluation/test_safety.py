"""Bias and truthfulness by hand, the sets as they are, and the suite on tiny models."""

import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from precision import SAME, in_float64

from experiments import evaluate, safety
from rlhf_jax.config import EvaluateConfig, RunConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.bias import (
    binary_entropy_bits,
    chance_of_multiple_choice,
    multiple_choice,
    pair_bias,
)
from rlhf_jax.inference.text_logprobs import continuation_logprobs, make_logprob_scorer
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.tasks.safety_sets import RESPECTFUL, load_safety_sets, refuses
from rlhf_jax.text.segments import chinese_share

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sets():
    return load_safety_sets(ROOT / "data")


def test_entropy_by_hand():
    assert binary_entropy_bits(np.array([0.5, 0.0, 1.0])).tolist() == [1.0, 0.0, 0.0]
    assert binary_entropy_bits(np.array([0.25]))[0] == pytest.approx(2 - 0.75 * math.log2(3))


def test_pairs_by_hand():
    found = pair_bias(np.log([0.2, 0.1, 0.3, 0.1]), np.log([0.1, 0.2, 0.1, 0.1]))
    assert found["prefers_first"]["mean"] == (1 + 0 + 1 + 0.5) / 4
    expected = np.mean(binary_entropy_bits(np.array([2 / 3, 1 / 3, 3 / 4, 1 / 2])))
    assert found["entropy_bits"]["mean"] == pytest.approx(expected)


def test_multiple_choice_by_hand():
    right, wrong = [np.log([0.2, 0.3]), np.log([0.1])], [np.log([0.25]), np.log([0.05, 0.05])]
    found = multiple_choice(right, wrong, [0, 0])
    assert found["mc1"]["mean"] == 0.5
    assert found["mc2"]["mean"] == pytest.approx((0.5 / 0.75 + 0.1 / 0.2) / 2)
    assert multiple_choice(right, wrong, [1, 0])["mc1"]["mean"] == 1.0
    assert chance_of_multiple_choice([(2, 1), (1, 2)]) == pytest.approx(
        {"mc1": (1 / 2 + 1 / 3) / 2, "mc2": (2 / 3 + 1 / 3) / 2}
    )


def test_the_sets(sets):
    assert len(sets.crows) == 1206 and len(sets.winogender) == 192 and len(sets.questions) == 654
    for pair in sets.winogender:
        a, b = pair.first.split(), pair.second.split()
        assert len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) >= 1
    for question in sets.questions:
        assert question.right and question.wrong
        assert not set(question.right) & set(question.wrong)
    assert all(text.startswith(" ") for q in sets.questions for text in q.right + q.wrong)
    chinese = sets.chinese_beginnings
    assert len(chinese) == 256 and {len(text) for text in chinese} == {8}
    assert np.mean([chinese_share(text) for text in chinese]) > 0.8  # names are Latin
    assert not any(map(sets.toxicity.listed, chinese)), "what comes after is to be judged"


def test_toxicity_is_learnt_on_other_comments(sets):
    assert sets.toxicity.accuracy["mean"] - sets.toxicity.accuracy["ci"] > 0.7
    assert sets.toxicity.accuracy["n"] > 250
    kind, rude = sets.toxicity.probability(
        ["thank you, that was lovely", "you stupid fucking idiot"]
    )
    assert kind < 0.5 < 0.8 < rude
    rows = [json.loads(x) for x in (ROOT / "data/eval_toxicity_surge/comments.jsonl").open()]
    toxic = [sets.toxicity.listed(row["text"]) for row in rows if row["toxic"]]
    other = [sets.toxicity.listed(row["text"]) for row in rows if not row["toxic"]]
    assert np.mean(toxic) > 0.2 > 5 * np.mean(other)


def test_word_lists_take_whole_english_words_and_chinese_anywhere(sets):
    listed = sets.toxicity.listed
    assert listed("What an ASS.") and not listed("a classic assessment")
    assert listed("走开，你妈的！") and not listed("你妈妈做的饭真好吃"[2:])


def test_chinese_continuations_are_judged_by_the_list(sets):
    """Every second one has a listed word, every fourth one is English."""
    said = ["，走开，你妈的！", "的会议昨天在京举行。", "你妈的", " was held yesterday"]

    def answer(prompts, *, whole):
        assert whole
        return [said[n % 4] for n in range(len(prompts))]

    found = safety.toxicity(sets, answer)
    assert found["chinese_bad_words"]["mean"] == 0.5
    assert found["chinese_share"]["mean"] == 0.75
    assert "chinese_bad_words_respectful" not in found, "the respectful prompt is English"


def test_refusals():
    said = "I’m sorry, I can’t help with that."
    assert refuses(said) and refuses("I won't do it") and not refuses("Sure! You can do it.")


CONTEXT = 160


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("safety")
    words = ["Human Assistant: the cat he she they said", "Q: A: sentence in a polite manner"]
    tokenizer = train_bpe(words * 20, vocab_size=300)
    sft = tiny.save_model(folder / "sft", tokenizer, context=CONTEXT)
    params = jax.tree.map(lambda x: 3 * x, load_trained(sft, flag="init").params)
    tiny.save_model(folder / "ppo", tokenizer, context=CONTEXT, params=params)
    tiny.save_model(folder / "reward", tokenizer, kind="scalar", context=CONTEXT)
    return folder


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
def test_scores_are_sums_of_token_logprobs(runs):
    """In batches of any size and at any length, equal to one text alone without padding."""
    policy = in_float64(load_trained(runs / "sft", flag="init"))
    lm = make_language_model(policy.model, policy.vocab_size)
    pairs = [("the cat", " said the cat"), ("", "he she they " * 6), ("Q: the\nA:", " a")] * 3
    found = continuation_logprobs(policy, make_logprob_scorer(policy, batch_size=4), pairs)
    read = jax.jit(partial(lm.logits, start=0))
    for (context, text), value in zip(pairs, found, strict=True):
        before = policy.tokenizer.encode(context) or [policy.tokenizer.eos_id]
        ids = before + policy.tokenizer.encode(text)
        tokens = jnp.array([ids], jnp.int32)
        logits = read(policy.params, tokens, jnp.ones_like(tokens, bool))
        logprobs = np.asarray(jax.nn.log_softmax(logits[0]))
        start = len(before)
        slow = sum(logprobs[t - 1, ids[t]] for t in range(start, len(ids)))
        assert value == pytest.approx(float(slow), rel=SAME)


@pytest.mark.usefixtures("float64")
def test_a_context_over_the_models_is_cut_at_its_beginning(runs):
    policy = in_float64(load_trained(runs / "sft", flag="init"))
    score = make_logprob_scorer(policy, batch_size=2)
    long, short = ("the cat " * 200, " he"), ("the cat " * 190, " he")
    a, b = continuation_logprobs(policy, score, [long, short])
    assert a == pytest.approx(b, rel=SAME)


def suite(runs, folder, **changes):
    fields = dict(prompt_length=48, response_length=16, batch_size=8, suite_rows=12)
    return EvaluateConfig(
        run=RunConfig(dir=folder, tensorboard=False),
        suite="safety",
        policies=(runs / "sft", runs / "ppo"),
        reward=(runs / "reward",),
        source=ROOT / "data",
        **fields | changes,
    )


@pytest.mark.slow
def test_the_suite(runs, sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")  # a narrow terminal still names every measure
    runs = Path(shutil.copytree(runs, tmp_path / "runs"))
    config = suite(runs, tmp_path / "safety")
    done = evaluate.run(config)
    measures = done["policies"]["sft"]
    # Each policy's figures are its own.
    some = safety.limit(sets, config.suite_rows)
    for name, found in done["policies"].items():
        policy = load_trained(runs / name, flag="init")
        logprobs = partial(
            continuation_logprobs, policy, make_logprob_scorer(policy, batch_size=32)
        )
        for figure, value in safety.bias(some, logprobs).items():
            assert found[figure] == pytest.approx(value)
    differ = [name for name, found in measures.items() if found != done["policies"]["ppo"][name]]
    assert "winogender_entropy_bits" in differ and "harmless_reward" in differ
    for name, figure in measures.items():
        assert np.isfinite(figure["mean"]), name
        if name != "harmless_reward":
            assert 0 <= figure["mean"] <= 1, name
    respectful = [name for name in measures if name.endswith("_respectful")]
    assert len(respectful) == 7 and all(
        n.removesuffix("_respectful") in measures for n in respectful
    )
    # Random parameters are nearly indifferent to a pronoun.
    assert measures["winogender_entropy_bits"]["mean"] > 0.9
    assert done["unbiased_or_ignorant"]["mc1"] < 0.5
    page = (tmp_path / "safety" / "safety.html").read_text(encoding="utf-8")
    # Drawn with its names, policies told apart by a legend, and the same in words.
    assert all(f">{name}</text>" in page for name in measures if name != "harmless_reward")
    assert all(f"<span>{name}</span>" in page for name in ("sft", "ppo", "unbiased or ignorant"))
    bits = measures["winogender_entropy_bits"]["mean"]
    other = done["policies"]["ppo"]
    words = f"sft {bits:.3g}, ppo {other['winogender_entropy_bits']['mean']:.3g}, unbiased or"
    assert f"winogender_entropy_bits: {words} ignorant 1;" in page
    asked = measures["crows_prefers_first_respectful"]["mean"]
    other = other["crows_prefers_first_respectful"]["mean"]
    words = f"sft {asked:.3g}, ppo {other:.3g}, unbiased or ignorant 0.5"
    assert f"crows_prefers_first_respectful: {words};" in page
    assert "://" not in page.replace("http://www.w3.org", "")
    shown = capsys.readouterr().out
    assert all(name in shown for name in measures)
    assert evaluate.run(config) == json.loads(json.dumps(done)), "a finished suite is not run again"
    # A policy trained anew in the same folder is another: the figures are not its own.
    shutil.rmtree(runs / "sft")
    shutil.copytree(runs / "ppo", runs / "sft")
    with pytest.raises(InputError, match=r"another model: --policies .*sft has changed since"):
        evaluate.run(config)


def test_a_reward_model_that_knows_the_dialogues_is_refused(runs, tmp_path):
    """A fold of a cross-validation learnt from most of what the suite asks."""
    judge = tmp_path / "reward"
    shutil.copytree(runs / "reward", judge)
    trained = {"data": "pref_hh_harmless", "folds": 5, "fold": 0}
    record = {"stage": "reward", "config_class": "RewardConfig", "config": trained}
    (judge / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="learnt from dialogues that the suite asks"):
        evaluate.run(replace(suite(runs, tmp_path / "safety"), reward=(judge,)))


def test_missing_matplotlib_is_said_before_anything_is_measured(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install .rlhf_jax\[report\]"):
        evaluate.run(suite(runs, tmp_path / "safety"))
    assert not (tmp_path / "safety" / "measured.json").exists()


@pytest.mark.slow
def test_the_respectful_prompt_is_never_cut(runs, tmp_path, monkeypatch):
    """Whatever --prompt-length says; of red-team dialogues the end is kept, and that is said."""
    read, sampler = [], safety.make_sampler

    def recording(lm, tokenizer, *rest, **shape):
        sample = sampler(lm, tokenizer, *rest, **shape)

        def sampled(*inputs, **place):
            for batch in sample(*inputs, **place):
                queries, masks = batch.batch.queries, batch.batch.query_mask
                read.extend(tokenizer.decode(q[m]) for q, m in zip(queries, masks, strict=True))
                yield batch

        return sampled

    monkeypatch.setattr(safety, "make_sampler", recording)
    config = suite(runs, tmp_path / "safety", prompt_length=8, suite_rows=3)
    done = evaluate.run(replace(config, policies=config.policies[:1]))
    assert sum(text.startswith(RESPECTFUL) for text in read) == 3
    cuts = {name: done[f"sft_{name}"]["cut"] for name in ("beginnings", "chinese_beginnings")}
    assert cuts == {"beginnings": {}, "chinese_beginnings": {}}
    assert done["sft_dialogues"]["kept"] == 3 and done["sft_dialogues"]["cut"] == {"prompt": 3}


@pytest.mark.slow
def test_a_stopped_suite_goes_on_after_the_last_policy(runs, tmp_path, monkeypatch):
    config = suite(runs, tmp_path / "safety", suite_rows=3)
    measure, measured = safety.harmlessness, []

    def stopping(*inputs):
        measured.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(safety, "harmlessness", stopping)
        with pytest.raises(SystemExit):
            evaluate.run(config)
        assert len(measured) == 1
    monkeypatch.setattr(safety, "harmlessness", lambda *_: measured.append(2) or measure(*_))
    again = evaluate.run(config)
    whole = evaluate.run(suite(runs, tmp_path / "whole", suite_rows=3))
    assert measured == [1, 2, 2, 2] and again["policies"] == whole["policies"]
