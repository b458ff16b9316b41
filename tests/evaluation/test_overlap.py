"""ROUGE, BLEU and chrF: the packages' own numbers, Chinese, several references, equal lengths."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf as published_chrf

from rlhf_jax.evaluation.metrics import length_controlled_win_rate, mean_ci
from rlhf_jax.evaluation.overlap import corpus_overlap, jackknife_ci, rouge, sentence_chrf
from rlhf_jax.text.segments import chinese_share, mixed_tokens

TEXTS = [
    "The cat sat on the mat, didn't it?",
    "A model of 1.3B parameters improves ROUGE-2 by 3 points.",
    "the mat sat on the cat",
    "we improve a model",
]


def test_english_is_cut_as_rouge_score_does():
    published = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    for said in TEXTS:
        for reference in TEXTS:
            ours = rouge([said], [[reference]])
            for name, score in published.score(reference, said).items():
                assert ours[name][0] == pytest.approx(score.fmeasure, abs=1e-12)


def test_chinese_counts_by_characters():
    assert mixed_tokens("我爱GPT-2，你呢？") == ["我", "爱", "gpt", "2", "你", "呢"]
    assert chinese_share("我爱GPT-2，你呢？") == 4 / 6 and chinese_share("…") == 0
    scores = rouge(["我爱北京", "我爱北京"], [["我爱北京"], ["他在北京"]])
    assert scores["rouge1"].tolist() == [1.0, 0.5]
    # The bigrams of the two share one of three.
    assert scores["rouge2"][1] == pytest.approx(1 / 3)
    assert scores["rougeL"][1] == pytest.approx(0.5)


def test_the_best_reference_counts_for_each_figure():
    both = rouge(["a b c"], [["a x y", "c b z"]])
    each = [rouge(["a b c"], [[reference]]) for reference in ("a x y", "c b z")]
    for name in both:
        assert both[name][0] == max(scores[name][0] for scores in each)
    assert rouge([""], [["a"]])["rouge1"].tolist() == [0.0]


def test_recall_weighs_beta_times_as_much():
    """Half of the reference's four words, without a false one: P = 1, R = 1/2."""
    said, reference = "a b", "a b c d"
    assert rouge([said], [[reference]])["rouge1"][0] == pytest.approx(2 / 3)
    assert rouge([said], [[reference]], 2.0)["rouge1"][0] == pytest.approx(5 / 9)
    assert rouge([reference], [[said]], 2.0)["rouge1"][0] == pytest.approx(5 / 6)
    assert rouge(["x"], [[reference]], 2.0)["rouge1"][0] == 0.0


def test_chrf_is_sacrebleus():
    for said in TEXTS:
        ours = sentence_chrf([said], [TEXTS])[0]
        assert ours == pytest.approx(published_chrf(said, TEXTS).score / 100)
    assert sentence_chrf(["same"], [["same"]])[0] == pytest.approx(1.0)


def test_corpus_scores_carry_signature_and_interval():
    found = corpus_overlap(TEXTS, [[text] for text in TEXTS])
    assert found["bleu"]["mean"] == pytest.approx(100) and found["chrf"]["mean"] == 100
    assert "tok:13a" in found["bleu"]["signature"] and "version:" in found["chrf"]["signature"]
    worse = corpus_overlap(TEXTS, [[text] for text in TEXTS[::-1]])
    assert worse["bleu"]["mean"] < 30 and worse["bleu"]["ci"] >= 0


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=20)
    half = jackknife_ci(lambda rows: float(values[list(rows)].mean()), 20)
    assert half == pytest.approx(mean_ci(values)["ci"])
    many = np.random.default_rng(1).normal(size=2000)
    half = jackknife_ci(lambda rows: float(many[list(rows)].mean()), 2000)
    assert half == pytest.approx(mean_ci(many)["ci"], rel=0.4)


def test_length_controlled_win_rate_takes_out_what_length_explains():
    rng = np.random.default_rng(0)
    n = 4000
    lengths, base = rng.integers(5, 50, n) * 2, rng.integers(5, 50, n)
    ratio = np.log((lengths + 1) / (base + 1))
    # Wins are decided by length alone: at equal length, a coin.
    wins = (rng.random(n) < 1 / (1 + np.exp(-2 * ratio))).astype(float)
    assert wins.mean() > 0.65
    found = length_controlled_win_rate(wins, lengths, base)
    assert abs(found["mean"] - 0.5) < 2 * found["ci"] < 0.1
    assert found["length_effect"] == pytest.approx(2, abs=0.3)


def test_length_controlled_win_rate_is_the_win_rate_where_lengths_are_equal():
    wins = np.array([1, 1, 1, 0, 0.5] * 40)
    lengths = np.full(200, 10)
    found = length_controlled_win_rate(wins, lengths, lengths)
    assert found["mean"] == pytest.approx(0.7, abs=1e-4)
    assert found["ci"] == pytest.approx(1.96 * np.sqrt(0.7 * 0.3 / 200), rel=0.01)
    always = length_controlled_win_rate(np.ones(50), lengths[:50], lengths[:50])
    assert 0.9 < always["mean"] < 1 and np.isfinite(always["ci"])
