"""The sentiment task: no text serves two ends, gold scorer and judges are fair, files are whole."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from rlhf_jax.data.formats import read_demonstrations, read_prompts, read_texts
from rlhf_jax.errors import InputError
from rlhf_jax.tasks import sentiment
from rlhf_jax.tasks.sentiment_scores import (
    NEGATIVE,
    POSITIVE,
    GoldScorer,
    GoldWeights,
    Lexicon,
    make_judges,
    read_lexicons,
)
from rlhf_jax.text.classifier import TextClassifier, calibrate, train_classifier, words

DATA = Path(__file__).parents[2] / "data"
ROOT = DATA.parent
PROMPT = POSITIVE + "this is a"


@pytest.fixture(scope="module")
def data():
    return sentiment.build(DATA)


@pytest.fixture(scope="module")
def sentences():
    reviews = sentiment.read_labelled(DATA / "sft_movie_reviews")
    rows = sentiment.read_labelled(DATA / "sft_sentence_polarity")
    return sentiment.split_sentences(sentiment.not_quoted(rows, reviews))


@pytest.fixture(scope="module")
def reviews():
    return sentiment.split_reviews(sentiment.read_labelled(DATA / "sft_movie_reviews"))


@pytest.fixture
def small(tmp_path):
    """A data folder of a few made-up rows in each place."""
    folder = tmp_path / "data"
    for name in ("sft_sentence_polarity", "sft_movie_reviews", "text_gutenberg", "lexicons"):
        (folder / name).mkdir(parents=True)
    row = lambda n, kind: {
        "text": f"{kind} film number {n} is {'good fine' if n % 2 else 'bad poor'} word{n % 7} .",
        "label": "pos" if n % 2 else "neg",
    }
    dump = lambda rows: "".join(json.dumps(r) + "\n" for r in rows)
    (folder / "sft_sentence_polarity/a.jsonl").write_text(dump(row(n, f"a{n}") for n in range(150)))
    (folder / "sft_sentence_polarity/b.jsonl").write_text(dump(row(n, f"b{n}") for n in range(150)))
    (folder / "sft_movie_reviews/a.jsonl").write_text(dump(row(n, f"m{n}") for n in range(60)))
    book = "\n<|endoftext|>\n".join(f"passage {n}\n\nof a book" for n in range(60))
    (folder / "text_gutenberg/book.txt").write_text(book)
    (folder / "lexicons/opinion_positive.txt").write_text("good\nfine\n")
    (folder / "lexicons/opinion_negative.txt").write_text("bad\n")
    (folder / "lexicons/vader_lexicon.txt").write_text("good\t1.9\t0.5\t[1]\nbad\t-2.5\t1\t[2]\n")
    (folder / "lexicons/afinn_111.txt").write_text("good\t3\nbad\t-3\n")
    return folder


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_sentence_and_review_serves_exactly_one_end(sentences, reviews):
    for parts, source in ((sentences, "sft_sentence_polarity"), (reviews, "sft_movie_reviews")):
        used = [sentiment.normalised(row.text) for part in parts for row in part]
        assert len(used) == len(set(used))
        everything = sentiment.read_labelled(DATA / source)
        assert len(used) >= 0.999 * len(everything)
        assert set(used) <= {sentiment.normalised(row.text) for row in everything}


@pytest.mark.slow
def test_no_line_of_a_review_is_also_a_labelled_sentence(sentences, reviews):
    """Pang and Lee's two sets overlap in a few sentences."""
    lines = {sentiment.normalised(x) for part in reviews for r in part for x in r.text.split("\n")}
    assert not lines & {sentiment.normalised(row.text) for part in sentences for row in part}


@pytest.mark.slow
def test_no_prompt_is_shared_by_two_lists(data):
    lists = dict(data.prompts)
    lists["demonstrations"] = [
        row.prompt.replace(NEGATIVE, POSITIVE) for row in data.demonstrations
    ]
    lists = {name: {prompt.lower() for prompt in prompts} for name, prompts in lists.items()}
    names = list(lists)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not lists[first] & lists[second], (first, second)


@pytest.mark.slow
def test_evaluation_prompts_begin_no_other_labelled_sentence(data, sentences):
    starts = {
        POSITIVE + sentiment.prefix(row.text)
        for part in (sentences.gold, sentences.judge, sentences.demonstrations)
        for row in part
    }
    assert not starts & {*data.prompts["evaluation"], *data.prompts["validation"]}


@pytest.mark.slow
def test_text_to_learn_from_is_neither_held_out_nor_seen_by_the_scorers(data, sentences, reviews):
    for name, documents in data.corpora.items():
        assert not set(documents) & set(data.heldout[name])
    polarity, long = set(data.corpora["polarity"]), set(data.corpora["reviews"])
    assert polarity == {row.text for row in sentences.demonstrations}
    assert not polarity & {row.text for part in sentences[:4] for row in part}
    assert not long & {row.text for part in (reviews.gold, reviews.judge) for row in part}
    assert {row.text for row in sentences.evaluation} == set(data.heldout["polarity"])


@pytest.mark.slow
def test_prompts_are_distinct_many_and_say_something(data):
    wanted = {"evaluation": 400, "validation": 128, "comparisons": 1400, "ppo": 3072}
    assert set(data.prompts) == set(wanted)
    for name, prompts in data.prompts.items():
        assert len(prompts) == len(set(prompts)) >= wanted[name]
        for prompt in prompts:
            start = prompt.removeprefix(POSITIVE)
            assert prompt.startswith(POSITIVE) and len(start.split()) == 3 and len(words(start)) > 1


@pytest.mark.slow
def test_lists_are_in_random_order(data):
    """Whoever takes the first thousand must not get an alphabet's or a file's beginning."""
    for prompts in data.prompts.values():
        first = prompts[: len(prompts) // 2]
        later = sum(prompt.removeprefix(POSITIVE)[0] > "m" for prompt in first) / len(first)
        assert 0.3 < later < 0.7
    asked = [row.prompt.startswith(POSITIVE) for row in data.demonstrations[:1000]]
    assert 0.45 < np.mean(asked) < 0.55


@pytest.mark.slow
def test_demonstrations_are_the_sentences_with_the_sentiment_that_people_gave(data, sentences):
    short = [row for row in sentences.demonstrations if len(row.text.split()) <= 23]
    assert len(data.demonstrations) == 3762
    for made, row in zip(data.demonstrations, short, strict=True):
        assert made.prompt.startswith(POSITIVE if row.positive else NEGATIVE)
        assert sentiment.full_text(made.prompt, made.completion) == row.text
        assert 3 <= len(made.completion.split()) <= 20


def test_repeated_texts_are_read_once(small):
    rows = sentiment.read_labelled(small / "sft_sentence_polarity")
    file = small / "sft_sentence_polarity/c.jsonl"
    file.write_text(json.dumps({"text": rows[0].text.upper() + "  ", "label": "pos"}) + "\n")
    assert sentiment.read_labelled(small / "sft_sentence_polarity") == rows


# --- gold scorer ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_gold_and_judge_agree_with_people_on_unseen_sentences(data, sentences):
    """Measured 0.748 and 0.742 on these; the standard error is 0.015."""
    rows = [*sentences.evaluation, *sentences.validation]
    texts, labels = [row.text for row in rows], np.array([row.positive for row in rows])
    assert np.mean((data.gold.classifier.logits(texts) > 0) == labels) >= 0.74
    prompts = [POSITIVE + sentiment.prefix(text) for text in texts]
    rest = [text[len(sentiment.prefix(text)) :] for text in texts]
    assert np.mean(data.judges["classifier"](prompts, rest) == labels) >= 0.72


@pytest.mark.slow
def test_gold_logits_are_calibrated_on_unseen_sentences(data, sentences):
    """Calibrating once more changes them little; without calibration the slope is 2 or more."""
    rows = [*sentences.evaluation, *sentences.validation]
    logits = data.gold.classifier.logits([row.text for row in rows])
    slope, offset = calibrate(logits, np.array([row.positive for row in rows]))
    assert 0.75 < slope < 1.25 and abs(offset) < 0.3


@pytest.mark.slow
def test_gold_prefers_good_to_bad(data):
    ranked = [
        " moving and funny film with wonderful performances .",
        " film about a man and a woman .",
        " dull , lifeless and predictable mess .",
    ]
    scores = data.gold([PROMPT] * 3, ranked)
    assert scores[0] > scores[1] + 0.3 and scores[1] > scores[2] + 0.3
    flipped = data.gold([PROMPT.replace("positive", "negative")] * 3, ranked)
    np.testing.assert_allclose(flipped, -scores + 2 * (scores + flipped) / 2)
    assert flipped[2] > flipped[0] + 1


@pytest.mark.parametrize(
    "cheat",
    [
        "",
        " .",
        " great .",
        " best the best the best best best best the best the best is the great like the best .",
        " moving film with wonderful performances , moving film with wonderful performances , "
        "moving film with wonderful performances , moving film with wonderful performances .",
        " wonderful moviendly perforgances , beauticious and excerestingly heartlropped .",
    ],
)
@pytest.mark.slow
def test_cheats_do_not_pay(data, cheat):
    honest = " moving film with wonderful performances ."
    good, bad = data.gold([PROMPT] * 2, [honest, cheat])
    assert bad < good - 0.3


TOY = GoldScorer(
    classifier=TextClassifier({"good": 0, "good film": 1}, np.ones(2), np.array([3.0, 1.0]), -1.0),
    known_words=frozenset(["a", "good", "film", "it", "s", "and", "this", "is", "so"]),
    weights=GoldWeights(repeated=2.0, non_words=3.0, too_short=0.8, min_words=4, unfinished=0.5),
)


def gold(response, start="this is", ask=POSITIVE):
    return TOY([ask + start], [response])[0]


@pytest.mark.parametrize(
    ("response", "logit", "penalty"),
    [
        (" a film and it .", -1.0, 0.0),
        (" a good , so it .", 2.0, 0.0),
        (" a good film it .", -1 + 4 / 2**0.5, 0.0),
        (" a film and it so .", -1.0, 0.0),  # more words than the least are no bonus
        (" a film and it . ", -1.0, 0.0),
        (" a film and it", -1.0, 0.5),
        (" a film and a .", -1.0, 2.0 * 1 / 6),
        (" a film and this .", -1.0, 2.0 * 1 / 6),  # the prompt's words count
        (" a xfilm and it .", -1.0, 3.0 * 1 / 6),
        (" a 1984 and it .", -1.0, 0.0),
        (" a film's so and .", -1.0, 0.0),
        (" a film'x so and .", -1.0, 3.0 * 1 / 7),
        (" a film it .", -1.0, 0.8 / 4),
        ("", -1.0, 0.8 + 0.5),
        (" .", -1.0, 0.8),
    ],
)
def test_gold_by_hand(response, logit, penalty):
    liking = 2 / (1 + np.exp(-logit)) - 1
    assert gold(response) == pytest.approx(liking - penalty)
    assert gold(response, ask=NEGATIVE) == pytest.approx(-liking - penalty)


def test_gold_reads_prefix_and_response_as_one_text():
    assert gold(" film and it so .", start="a good") == pytest.approx(
        np.tanh((-1 + 4 / 2**0.5) / 2)
    )
    assert sentiment.full_text(PROMPT, "-grade film .") == "this is a-grade film ."
    with pytest.raises(InputError, match=r"'Tell a joke'.*Write a positive review"):
        sentiment.full_text("Tell a joke", ".")


@pytest.mark.slow
def test_gold_does_not_depend_on_the_batch(data):
    prompts = data.prompts["evaluation"][:400]
    responses = [row.completion for row in data.demonstrations[:400]]
    together = data.gold(prompts, responses)
    alone = [data.gold([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    np.testing.assert_array_equal(together, alone)
    assert data.gold([], []).shape == (0,)


@pytest.mark.slow
def test_scoring_costs_the_same_for_each_text(data):
    """Calls of functions, which a busy machine does not change: 770 for each when written."""
    rows = (data.demonstrations * 3)[:3000]

    def calls(rows):
        count = 0

        def counting(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(counting)
        try:
            data.gold([row.prompt for row in rows], [row.completion for row in rows])
        finally:
            sys.setprofile(None)
        return count

    few, many = calls(rows[:300]), calls(rows)
    assert many < 12 * few
    assert many < 1000 * len(rows), many / len(rows)


# --- classifier -----------------------------------------------------------------------------------

TEXTS = ["good good film", "bad film", "a good one", "bad bad day", "so good", "not bad"]
LABELS = [True, False, True, False, True, False]


def toy_classifier(**changes):
    settings = {"loss_weight": 2.0, "min_count": 1, "calibrate_on": 6, "folds": 2} | changes
    return train_classifier(TEXTS, LABELS, np.arange(1.0, 7.0), **settings)


def test_logits_by_hand():
    classifier = TextClassifier(
        {"good": 0, "good film": 1, "film": 2},
        np.array([1.0, 2.0, 3.0]),
        np.array([1.0, 10.0, 100.0]),
        7.0,
    )
    logits = classifier.logits(["Good FILM, good film", "unknown", "", "film-good"])
    unit = np.array([1, 2, 3]) / 14**0.5
    expected = [7 + unit @ [1, 10, 100], 7, 7, 7 + (1 * 1 + 3 * 100) / 10**0.5]
    np.testing.assert_allclose(logits, expected)


def test_words_are_runs_of_letters_and_digits():
    assert words("It's -- well , co-written_by J.R. in '99 ! café") == (
        ["it's", "well", "co", "written", "by", "j", "r", "in", "99", "café"]
    )


def test_training_minimises_the_weighted_objective():
    """Against the objective written out, at the weights before calibration and around them."""
    classifier = toy_classifier()
    idf = classifier.idf
    signs, sample_weights = np.where(LABELS, 1, -1), np.arange(1.0, 7.0)
    rows = []
    for text in TEXTS:
        tokens = text.split()
        found = {*tokens, *(f"{a} {b}" for a, b in pairwise(tokens))}
        row = np.array([idf[i] * (t in found) for t, i in classifier.vocabulary.items()])
        rows.append(row / np.linalg.norm(row))
    x = np.array(rows)

    def objective(w, bias):
        return 2.0 * sample_weights @ np.log1p(np.exp(-signs * (x @ w + bias))) + w @ w / 2

    # Calibration scaled w: the scale that fits the objective best undoes it.
    def scaled(parameters):
        return objective(parameters[0] * classifier.weights, parameters[1])

    scale, bias = minimize(scaled, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9}).x
    w, best = scale * classifier.weights, scaled([scale, bias])
    rng = np.random.default_rng(0)
    for _ in range(50):
        step = 1e-2 * rng.normal(size=len(w))
        assert objective(w + step, bias) > best - 1e-7


def test_idf_and_min_count():
    classifier = toy_classifier(min_count=2)
    assert set(classifier.vocabulary) == {"good", "bad", "film"}
    assert classifier.idf[classifier.vocabulary["good"]] == pytest.approx(np.log(7 / 4) + 1)
    assert classifier.idf[classifier.vocabulary["film"]] == pytest.approx(np.log(7 / 3) + 1)


def test_calibrate_recovers_slope_and_offset():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=40_000)
    labels = rng.random(40_000) < 1 / (1 + np.exp(-(3.0 * logits - 0.5)))
    slope, offset = calibrate(logits, labels)
    assert slope == pytest.approx(3.0, abs=0.1) and offset == pytest.approx(-0.5, abs=0.05)


def test_calibration_judges_by_unseen_sentences():
    """Labels at random: what the classifier learnt by heart must count for nothing."""
    rng = np.random.default_rng(1)
    texts = [f"word{n} other{n % 50}" for n in range(400)]
    labels = (rng.random(400) < 0.5).tolist()
    settings = {"loss_weight": 10.0, "min_count": 1, "calibrate_on": 400, "folds": 4}
    classifier = train_classifier(texts, labels, np.ones(400), **settings)
    assert np.abs(classifier.logits(texts)).mean() < 0.3


def test_long_reviews_do_not_calibrate_sentences():
    """Reviews tell it all, sentences nothing; reviews are all negative, sentences 80 % positive."""
    rng = np.random.default_rng(2)
    positive = rng.random(400) < 0.8
    sentences = [
        sentiment.Labelled(f"word{rng.integers(50)} other{rng.integers(50)}", bool(label))
        for label in positive
    ]
    reviews = [sentiment.Labelled(f"word{n % 50} awful", False) for n in range(200)]
    classifier = sentiment.train(sentences, reviews)
    chance = 1 / (1 + np.exp(-classifier.logits([row.text for row in sentences])))
    assert chance.mean() == pytest.approx(positive.mean(), abs=0.03)
    # The other way round: what reviews are sure of must not pass for certainty about sentences.
    reviews = [
        sentiment.Labelled(f"{'good' if n % 2 else 'bad'} w{n}", n % 2 > 0) for n in range(900)
    ]
    sentences = [
        sentiment.Labelled(f"{'good' if rng.random() < 0.5 else 'bad'} s{n}", bool(label))
        for n, label in enumerate(rng.random(400) < 0.5)
    ]
    assert abs(sentiment.train(sentences, reviews).logits(["good"])[0]) < 1


# --- judges ---------------------------------------------------------------------------------------


def test_judges_by_hand():
    lexicons = {
        "vader": Lexicon({"good": 2.0, "bad": -3.0}),
        "hu_liu": Lexicon({"good": 1.0, "fine": 1.0, "bad": -1.0}),
        "afinn": Lexicon({"good": 3.0, "bad": -3.0}),
    }
    judges = make_judges(TOY.classifier, lexicons)
    responses = [" good good .", " bad fine .", " nothing .", " bad film ."]
    scores = {name: judge([PROMPT] * 4, responses) for name, judge in judges.items()}
    np.testing.assert_allclose(scores["classifier"], [1, 0, 0, 0])
    np.testing.assert_allclose(scores["vader"], [4 / 31**0.5, -3 / 24**0.5, 0, -3 / 24**0.5])
    np.testing.assert_allclose(scores["hu_liu"], [1, 0.5, 0.5, 0])
    np.testing.assert_allclose(scores["afinn"], [1, 0, 0.5, 0])
    judged = judges["hu_liu"]([POSITIVE + "bad bad but"], [" good ."])
    np.testing.assert_allclose(judged, [0])


def test_lexicons_of_the_data_folder():
    lexicons = read_lexicons(DATA / "lexicons")
    assert lexicons["vader"].valences["great"] == 3.1
    assert lexicons["afinn"].valences["awful"] == -3
    assert (
        lexicons["hu_liu"].valences["adore"] == 1 and lexicons["hu_liu"].valences["abnormal"] == -1
    )


@pytest.mark.slow
def test_judges_lean_the_way_people_do(data, sentences):
    rows = sentences.evaluation
    prompts = [POSITIVE + sentiment.prefix(row.text) for row in rows]
    rest = [row.text[len(sentiment.prefix(row.text)) :] for row in rows]
    positive = np.array([row.positive for row in rows])
    for judge in data.judges.values():
        scores = judge(prompts, rest)
        assert scores[positive].mean() > scores[~positive].mean() + 0.15


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_written_files_are_what_the_stages_read(data, tmp_path):
    sentiment.write(data, tmp_path)
    for name, prompts in data.prompts.items():
        read = read_prompts(tmp_path / f"prompts_{name}.jsonl")
        assert [row.prompt for row in read] == prompts
    read = read_demonstrations(tmp_path / "demonstrations.jsonl")
    assert [row[:2] for row in read] == [row[:2] for row in data.demonstrations]
    for kind, texts in (("corpus", data.corpora), ("heldout", data.heldout)):
        for name, documents in texts.items():
            read = read_texts(tmp_path / f"{kind}_{name}.txt")
            assert [row.text for row in read] == documents
    assert len(list(tmp_path.iterdir())) == 1 + 4 + 6


@pytest.mark.slow
def test_writing_is_deterministic_and_leaves_nothing_half_written(small, tmp_path, monkeypatch):
    """In other processes, where sets of strings have another order; scores to the last bit."""
    program = (
        "import sys; from pathlib import Path; from rlhf_jax.tasks import sentiment as s\n"
        "d = s.build(Path(sys.argv[1])); s.write(d, Path(sys.argv[2]))\n"
        "p = d.prompts['ppo']\n"
        "print(d.gold(p, [' good film .'] * len(p)).sum().hex(), 'jax' in sys.modules)"
    )
    outputs = []
    for run in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": run, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, str(small), str(tmp_path / run)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] and outputs[0].endswith("False\n")
    files = sorted(file.name for file in (tmp_path / "1").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "2").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()

    def no_space(self, *args, **kwargs):
        raise OSError("No space left on device")

    before = (tmp_path / "1/prompts_ppo.jsonl").read_bytes()
    monkeypatch.setattr(os, "replace", no_space)
    data = sentiment.build(small)
    data.prompts["ppo"].pop()
    with pytest.raises(OSError, match="No space"):
        sentiment.write(data._replace(demonstrations=[]), tmp_path / "1")
    assert (tmp_path / "1/demonstrations.jsonl").read_text()
    assert (tmp_path / "1/prompts_ppo.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sft_sentence_polarity/a.jsonl", '{"text": "x", "label": "good"}\n', r"line 1.*'good'"),
        ("sft_movie_reviews/a.jsonl", '{"text": "x"}\n', "line 1.*label is None"),
        ("sft_movie_reviews/a.jsonl", '{"text": 1, "label": "pos"}\n', "line 1.*a string"),
        ("lexicons/afinn_111.txt", "good\t3\nbad\n", r"afinn_111.txt, line 2: found 'bad'"),
        ("lexicons/vader_lexicon.txt", "good\tvery\n", r"vader_lexicon.txt, line 1"),
        ("lexicons/opinion_negative.txt", None, "opinion_negative.txt cannot be read"),
        ("text_gutenberg/book.txt", None, "text_gutenberg has no"),
    ],
)
def test_wrong_data_is_named(small, file, text, message):
    if text is None:
        (small / file).unlink()
    else:
        (small / file).write_text(text)
    with pytest.raises(InputError, match=message):
        sentiment.build(small)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"sft_sentence_polarity does not exist"):
        sentiment.build(tmp_path)
