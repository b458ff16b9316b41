"""Duplicates, long shared beginnings, and the leak check: it must fail loudly, and only then."""

import json
from pathlib import Path

import pytest

from experiments import clean, instructgpt, task
from rlhf_jax.config import CleanConfig, InstructGPTConfig, TaskConfig
from rlhf_jax.errors import InputError
from rlhf_jax.tasks.task import check_leaks, find_task, read_task
from rlhf_jax.text.duplicates import (
    check_no_leak,
    find_leaks,
    without_duplicates,
    without_shared_prefixes,
    words_of,
)

DATA = Path(__file__).parents[2] / "data"
STORY = (
    "Alice was beginning to get very tired of sitting by her sister on the bank and of having "
    "nothing to do once or twice she had peeped into the book her sister was reading"
)
LEAKY = """
import numpy as np
from rlhf_jax.data.formats import Demonstration
from rlhf_jax.tasks.task import Task, no_metrics

def build(source):
    what = (source / "what").read_text()
    return Task(
        demonstrations=[
            Demonstration("asked " * 20, "answered"), Demonstration("How so?", " Just so.")
        ],
        prompts={
            "comparisons": [f"compare {n}" for n in range(10_000)],
            "ppo": ["say A"],
            "evaluation": [{"prompt": "say a!", "short": "how  so?"}.get(what, "say b")],
            "news": ["Say a" if what == "further set" else "how so not"],
        },
        corpora={"text": ["one", "two"]},
        heldout={
            "text": ["Two." if what == "text" else "three"],
            "more": ["asked " * 20 if what == "demonstration" else "four"],
        },
        gold=lambda prompts, responses: np.zeros(len(prompts)),
        judges={},
        metrics=no_metrics,
        baselines={},
        words=str.split,
    )
"""
same = lambda text: text


def test_case_and_punctuation_do_not_make_a_new_text():
    rows = ["The cat.", "the CAT", "the cat sat", "猫。", "猫", "...", "..."]
    assert without_duplicates(rows, same) == ["The cat.", "the cat sat", "猫。", "...", "..."]


def test_shared_beginnings_are_kept_a_few_times():
    rows = [f"Translate this into French for me please: word{n}" for n in range(6)] + ["Translate"]
    kept = without_shared_prefixes(rows, same, words=7, most=2)
    assert kept == [*rows[:2], "Translate"]
    assert without_shared_prefixes(rows, same, words=9, most=2) == rows


def test_a_planted_leak_is_found():
    train = ["Something else entirely that nobody asked about at all, really nothing of it", STORY]
    test = ["A wholly new sentence that has more than thirteen words in it so that it is counted."]
    assert find_leaks(train, test) == []
    check_no_leak(train, test)
    leaked = [*test, STORY.upper() + " ?", "short"]
    with pytest.raises(InputError, match=r"1 of 3 test texts.*number 2 shares 100%.*alice was"):
        check_no_leak(train, leaked)
    with pytest.raises(InputError, match="1 of 1 test texts"):
        check_no_leak(["Short text!"], ["short text"])


def test_a_quotation_is_no_leak():
    """Less than half of the 13-grams."""
    words = STORY.split()
    partly = " ".join(words[:15] + [f"new{n}" for n in range(30)])
    assert find_leaks([STORY], [partly]) == []
    assert [leak.test for leak in find_leaks([STORY], [partly], covered=0.05)] == [0]


def test_chinese_is_compared_by_characters():
    novel = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。"
    assert [leak.covered for leak in find_leaks([novel], [novel.replace("，", "、")])] == [1.0]


DIALOGUES = {
    "cyrillic": ("Как тебя зовут?", "Меня зовут Анна.", "Сколько тебе лет?", "Где ты живёшь?"),
    "kana": ("おなまえは？", "アンナです。", "おいくつですか？", "どこにすんでいますか？"),
    "arabic": ("ما اسمك؟", "اسمي آنا.", "كم عمرك؟", "أين تسكن؟"),
    "devanagari": ("तुम कौन हो?", "मैं आना हूँ।", "कि", "की"),
    "accents": ("a ôté", "a été", "a ete", "naïf"),
}


@pytest.mark.parametrize("texts", DIALOGUES.values(), ids=DIALOGUES)
def test_every_script_has_words(texts):
    assert without_duplicates(texts, same) == list(texts)
    assert without_duplicates([texts[0], f"«{texts[0].upper()}»!"], same) == [texts[0]]
    assert [leak.test for leak in find_leaks(texts[1:], texts)] == [1, 2, 3]
    long = [" ".join([*texts, *texts[::-1], *texts, *texts[:2] * number]) for number in (1, 2)]
    assert [leak.covered for leak in find_leaks(long, long)] == [1, 1]
    assert find_leaks([long[0]], [" ".join(texts[::2])]) == []


def test_encodings_of_one_text_are_one():
    assert words_of("Cafe\u0301 ＡＢＣ ｶﾞ") == words_of("café abc ガ") == ["café", "abc", "ガ"]
    assert words_of("Straße naïve_x 我爱GPT-2 ไทย20 ❤️ ...") == [
        *("strasse", "naïve", "x", "我", "爱", "gpt", "2", "ไ", "ท", "ย", "20")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["summarization", "translation"])
def test_the_tasks_do_not_leak(name):
    """Nothing that is evaluated on is in the demonstrations, prompts of training or corpora.

    (The check found three papers that had been submitted twice, which no split by number parts.)
    """
    check_leaks(find_task(name)(DATA), name)


@pytest.mark.slow
def test_a_task_that_leaks_is_refused(tmp_path):
    """By the commands that write its files, before they do."""
    (tmp_path / "leaky.py").write_text(LEAKY)
    texts = r"leaky.py: 1 of 4 test texts are in the training"
    prompts = r"leaky.py: 1 of 2 prompts to evaluate on are prompts of demonstrations.*'how  so"
    found = dict.fromkeys(("text", "prompt", "demonstration", "further set"), texts)
    for what, message in (found | {"short": prompts}).items():
        (tmp_path / "what").write_text(what)
        config = TaskConfig(name=str(tmp_path / "leaky.py"), source=tmp_path, out=tmp_path / "out")
        with pytest.raises(InputError, match=message):
            task.run(config)
        chain = InstructGPTConfig(
            task=config.name, source=tmp_path, corpora=("text",), dir=tmp_path / "run"
        )
        with pytest.raises(InputError, match=message):
            instructgpt.run(chain)
        assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()
        read_task.cache_clear()
    (tmp_path / "what").write_text("nothing")
    check_leaks(find_task(str(tmp_path / "leaky.py"))(tmp_path), "leaky.py")


def test_the_command(tmp_path, capsys):
    rows = [
        {"prompt": "Mail ann@example.org", "completion": " done", "n": 1},
        {"prompt": "mail Ann@example.org!", "completion": " done", "n": 2},
        {"messages": [{"role": "user", "content": "电话13812345678"}]},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = CleanConfig(data=data, out=tmp_path / "clean.jsonl")
    counts = clean.run(config)
    made = [json.loads(line) for line in (tmp_path / "clean.jsonl").open(encoding="utf-8")]
    assert made == [
        {"prompt": "Mail [EMAIL]", "completion": " done", "n": 1},
        {"messages": [{"role": "user", "content": "电话[PHONE]"}]},
    ]
    assert counts["personal data replaced"] == 3 and counts["duplicates dropped"] == 1
    assert "kept: 2" in capsys.readouterr().out
    half = tmp_path / "half.jsonl"
    half.write_text('{"text": "whole"}\n{"text": {"deep": ["cut \\ud83d"]}}\n')
    with pytest.raises(InputError, match=r"half.jsonl, line 2: holds half a surrogate pair"):
        clean.run(CleanConfig(data=half, out=tmp_path / "other.jsonl"))
    with pytest.raises(InputError, match=r"below cannot be written: .*clean.jsonl is a file"):
        clean.run(CleanConfig(data=data, out=config.out / "below"))
    test = tmp_path / "test.jsonl"
    # A row that was cleaned when placeholders had these brackets: its words are what counts.
    test.write_text(json.dumps({"prompt": "mail <email>", "completion": "done"}) + "\n")
    leaking = CleanConfig(data=data, out=tmp_path / "other.jsonl", test=test)
    with pytest.raises(InputError, match="1 of 1 test texts are in the training text"):
        clean.run(leaking)
    assert not (tmp_path / "other.jsonl").exists()
    test.write_text(json.dumps({"prompt": "Mail Ann@Example.org", "completion": "done"}) + "\n")
    with pytest.raises(InputError, match="1 of 1 test texts are in the training text"):
        clean.run(leaking)
