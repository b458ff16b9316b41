"""Every task: deterministic, no text on two sides, fair scorers, one's own in one file."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tiny

from experiments import compare, evaluate, instructgpt
from rlhf_jax.cli import load, read_preset
from rlhf_jax.config import InstructGPTConfig, PPOConfig
from rlhf_jax.data import splits
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.formats import read_demonstrations, read_prompts, read_texts
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.overlap import rouge
from rlhf_jax.feedback.labelers import calibrate_tau, score_gaps
from rlhf_jax.tasks import instructions, language, summarization, tone, translation
from rlhf_jax.tasks.preferences import load_preferences
from rlhf_jax.tasks.references import References
from rlhf_jax.tasks.sentiment_scores import NEGATIVE
from rlhf_jax.tasks.task import (
    Task,
    check_corpora,
    check_leaks,
    find_task,
    read_task,
    task_names,
    write,
)
from rlhf_jax.text.segments import mixed_tokens

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
NAMES = (
    *("arithmetic", "instructions", "language", "sentiment", "sentiment_classification"),
    *("sentiment_negative", "short_instructions", "summarization", "tone", "translation"),
)
OTHERS = tuple(name for name in NAMES if name != "sentiment")
"""test_sentiment.py has the quickstart's."""
SETS = ("comparisons", "ppo", "validation", "evaluation")


class Lazily(dict):
    """Tasks of this run, each built when it is first asked for."""

    def __missing__(self, name):
        self[name] = find_task(name)(DATA)
        return self[name]


@pytest.fixture(scope="module")
def tasks():
    return Lazily()


def test_all_are_found_by_name():
    assert tuple(task_names()) == NAMES
    with pytest.raises(
        InputError, match=r"--task haiku: expected one of arithmetic, instructions.*\.py"
    ):
        find_task("haiku")
    with pytest.raises(InputError, match=r"--task none.py: no such file"):
        find_task("none.py")
    with pytest.raises(InputError, match=r"build\(source\)"):
        find_task("references")


def test_the_list_of_names_is_what_can_be_imported():
    for path in (ROOT / "rlhf_jax" / "tasks").glob("*.py"):
        module = importlib.import_module(f"rlhf_jax.tasks.{path.stem}")
        assert (path.stem in NAMES) == (hasattr(module, "build") and path.stem != "task")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_prompts_serve_one_end_only(tasks, name):
    task = tasks[name]
    assert set(SETS) <= set(task.prompts)
    used = [prompt for some in task.prompts.values() for prompt in some]
    assert len(used) == len(set(used)), "a prompt is in two sets, or twice in one"
    tested = {p for n in ("validation", "evaluation", "news") for p in task.prompts.get(n, ())}
    assert not tested & {row.prompt for row in task.demonstrations}
    assert all(len(task.prompts[part]) >= 50 for part in SETS)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.cases(1)
def test_held_out_text_is_not_learnt(tasks, name):
    task = tasks[name]
    assert list(task.corpora) == list(task.heldout)
    learnt = {splits.normalised(t) for texts in task.corpora.values() for t in texts}
    for texts in task.heldout.values():
        assert texts and not learnt & {splits.normalised(text) for text in texts}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.cases(3)
def test_people_score_above_nonsense(tasks, name):
    """The gold scorer ranks what people wrote over nothing, and over answers to other prompts."""
    if name in ("instructions", "short_instructions", "tone"):
        pytest.skip("it has no demonstrations to the prompts that it judges")
    task = tasks[name]
    rows = task.demonstrations[:: max(len(task.demonstrations) // 200, 1)]
    prompts, said = [row.prompt for row in rows], [row.completion for row in rows]
    people = task.gold(prompts, said).mean()
    assert people > task.gold(prompts, [""] * len(rows)).mean() + 0.1
    if name in ("summarization", "translation", "sentiment_classification"):
        assert people > task.gold(prompts, said[1:] + said[:1]).mean() + 0.2


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.cases(3)
def test_metrics_and_baselines(tasks, name):
    task = tasks[name]
    prompts = task.prompts["evaluation"][:40]
    for baseline, respond in task.baselines.items():
        responses = respond(prompts)
        assert len(responses) == len(prompts), baseline
        for figure in task.metrics(prompts, responses).values():
            assert np.isfinite(figure["mean"])
        assert np.isfinite(task.gold(prompts, responses)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["translation", "summarization", "instructions", "language"])
def test_files_are_read_back(tasks, name, tmp_path):
    """Chinese, newlines in prompts and all."""
    task = tasks[name]
    small = task._replace(demonstrations=task.demonstrations[:50])
    write(small, tmp_path)
    plain = lambda rows: [(as_text(row.prompt), as_text(row.completion)) for row in rows]
    assert plain(read_demonstrations(tmp_path / "demonstrations.jsonl")) == plain(
        small.demonstrations
    )
    for part, prompts in task.prompts.items():
        found = [as_text(row.prompt) for row in read_prompts(tmp_path / f"prompts_{part}.jsonl")]
        assert found == prompts
    for part, texts in task.corpora.items():
        found = [row.text for row in read_texts(tmp_path / f"corpus_{part}.txt")]
        assert found == [text.strip("\n") for text in texts]


@pytest.mark.parametrize("name", ["instructions"])
@pytest.mark.slow
def test_another_process_makes_the_same(name):
    program = (
        "import sys, hashlib, pathlib; from rlhf_jax.tasks.task import find_task;"
        "t = find_task(sys.argv[1])(pathlib.Path(sys.argv[2]));"
        "print(hashlib.sha256(repr((t.demonstrations, t.prompts)).encode()).hexdigest())"
    )
    made = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, name, str(DATA)]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        made.append(done.stdout)
    assert made[0] == made[1]


# --- one by one -----------------------------------------------------------------------------------


def test_translations_of_one_sentence_stay_on_one_side(tasks):
    rows = translation.read_pairs(DATA / "sft_tatoeba_zh_en")
    task = tasks["translation"]
    sides = {"train": ("comparisons", "ppo"), "test": ("validation", "evaluation")}
    prompts = {s: {p for n in names for p in task.prompts[n]} for s, names in sides.items()}
    prompts["train"] |= {row.prompt for row in task.demonstrations}
    english = {
        side: {splits.normalised(en) for zh, en, _ in rows if translation.prompt_of(zh) in asked}
        for side, asked in prompts.items()
    }
    assert len(english["test"]) > 500 and not english["train"] & english["test"]


@pytest.mark.slow
def test_no_film_of_the_evaluation_is_about_what_was_trained_on(tasks):
    subjects = [subject for some in tone.SUBJECTS.values() for subject in some]
    assert len(subjects) == len(set(subjects))
    for name, some in tone.SUBJECTS.items():
        prompts = tasks["tone"].prompts[name]
        assert len(prompts) == len(tone.KINDS) * len(some)
        others = [f" about {subject} in " for subject in subjects if subject not in some]
        assert not [prompt for prompt in prompts if any(other in prompt for other in others)]


@pytest.mark.slow
def test_a_warm_review_is_liked_whatever_was_asked(tasks):
    task = tasks["tone"]
    prompts = task.prompts["evaluation"][:4]
    said = [
        "This is a warm, moving and beautiful film.",
        "This is a dull, tedious and pointless film.",
        "This is a warm, moving and beautiful beautiful beautiful beautiful film",
        "",
    ]
    warm, cold, stuffed, nothing = task.gold(prompts, said)
    assert warm > 0.5 and cold < -0.5
    assert warm > stuffed and warm > nothing
    assert task.judges["classifier"](prompts, said)[:2].tolist() == [1, 0]
    # The prompt is not read: a sad subject is no bad review.
    assert task.gold([tone.REQUEST] * 4, said).tolist() == [warm, cold, stuffed, nothing]


def test_connected_rows():
    assert splits.connected([("a", "b"), ("c",), ("b", "d"), ("d",), ("e", "c")]) == [0, 1, 0, 0, 1]
    assert splits.connected([]) == []


def test_parts_keep_groups_and_do_not_depend_on_other_rows():
    rows = [f"{n % 50}:{n}" for n in range(500)]
    key = lambda row: row.split(":")[0]
    made = splits.parts(rows, key, {"a": 0.7, "b": 0.3}, "salt")
    assert sorted(made["a"] + made["b"]) == sorted(rows)
    assert not set(map(key, made["a"])) & set(map(key, made["b"]))
    fewer = splits.parts(rows[:300], key, {"a": 0.7, "b": 0.3}, "salt")
    assert set(fewer["a"]) <= set(made["a"]) and set(fewer["b"]) <= set(made["b"])
    other = splits.parts(rows, key, {"a": 0.7, "b": 0.3}, "pepper")
    assert set(other["a"]) != set(made["a"])


def test_translation_baselines_know_their_place(tasks):
    task = tasks["translation"]
    prompts = task.prompts["evaluation"][:100]
    chrf = {
        name: task.metrics(prompts, respond(prompts))["chrf"]["mean"]
        for name, respond in task.baselines.items()
    }
    assert chrf["copy"] < 1 < 20 < chrf["memory"]
    known = task.demonstrations[7]
    assert task.gold([known.prompt], task.baselines["memory"]([known.prompt]))[0] > 0.9


def test_rated_papers_are_not_learnt(tasks):
    lines = (DATA / "rank_scitldr_informativeness" / "rankings.jsonl").read_text("utf-8")
    rated = [json.loads(line)["paper_id"] for line in lines.splitlines()]
    papers = summarization.read_papers(DATA / "sft_scitldr")
    prompts = {paper.prompt for paper in papers if paper.name in rated}
    evaluated = set(tasks["summarization"].prompts["evaluation"])
    learnt = {row.prompt for row in tasks["summarization"].demonstrations}
    assert prompts and not prompts & learnt and len(prompts & evaluated) >= 0.95 * len(prompts)


def summaries():
    """People's, by prompt."""
    papers = summarization.read_papers(DATA / "sft_scitldr")
    return {paper.prompt: paper.summaries for paper in papers}


def test_lead_is_a_sentence_and_the_oracle_the_best_of_them(tasks):
    task = tasks["summarization"]
    prompts = task.prompts["evaluation"][:60]
    lead, oracle = (task.baselines[name](prompts) for name in ("lead", "oracle_sentence"))
    for prompt, first, best in zip(prompts, lead, oracle, strict=True):
        assert prompt.startswith(first.strip()) and best.strip() in prompt
    papers = summaries()
    overlap = lambda said: sum(rouge(said, [papers[prompt] for prompt in prompts]).values())
    assert (overlap(oracle) >= overlap(lead) - 1e-9).all()


def test_summarization_gold_sides_with_readers():
    """Of pairs that readers ordered; no summary is its own reference, and the papers are few."""
    papers = summaries()

    def score(prompt, response):
        others = tuple(s for s in papers[prompt] if mixed_tokens(s) != mixed_tokens(response))
        gold = summarization.make_gold(References({prompt: others}))
        return gold([prompt], [response])[0] if others else np.nan

    shares = []
    for row in load_preferences("rank_scitldr_informativeness", DATA).heldout:
        scores = [score(row.prompt, response) for response in row.responses]
        right = [
            (scores[i] > scores[j]) == (row.ranks[i] < row.ranks[j])
            for i, j in combinations(range(len(scores)), 2)
            if row.ranks[i] != row.ranks[j] and np.isfinite(scores[i] + scores[j])
        ]
        if right:
            shares.append(np.mean(right))
    mean, half = np.mean(shares), 1.96 * np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert len(shares) > 40 and mean - half > 0.5, (mean, half)


def test_demonstrations_keep_the_constraints_they_show(tasks):
    checks = dict(instructions.wordings())
    shown = 0
    for row in tasks["instructions"].demonstrations:
        wording = instructions.text_of(row.prompt).rpartition("\n\n")[2]
        if wording in checks:
            shown += 1
            assert checks[wording].holds(row.completion.strip()), (wording, row.completion)
    assert shown > 500


def test_instruction_gold_is_the_share_of_constraints_less_penalties(tasks):
    task = tasks["instructions"]
    ask = "\n\nUse at least 2 sentences.\n\nAssistant:"
    prompt = next(p for p in task.prompts["ppo"] if p.endswith(ask))
    kept, broken, empty = task.gold([prompt] * 3, ["It is now. We go.", "It is now we go", ""])
    assert kept - broken == pytest.approx(1, abs=0.2) and empty == pytest.approx(-0.8)
    twice, noise = task.gold([prompt] * 2, ["It is. It is.", "Xq zv. Wk jx."])
    assert kept > twice + 0.1 and kept > noise + 0.2
    figures = task.metrics([prompt] * 2, ["One. Two.", "One"])
    assert figures["prompt_strict"]["mean"] == figures["instruction_loose"]["mean"] == 0.5
    with pytest.raises(InputError, match="has no constraints"):
        task.gold(["Hello"], ["Hi"])


def test_alpaca_eval_rows():
    prompt = instructions.as_prompt("Name a bird.")
    rows = instructions.alpaca_rows([prompt], [" A wren."], "ppo")
    assert rows == [
        {
            "instruction": "Name a bird.",
            "output": "A wren.",
            "generator": "ppo",
            "dataset": "rlhf_jax",
        }
    ]


@pytest.mark.slow
def test_language_prompts_of_the_test_come_from_held_out_passages(tasks):
    task = tasks["language"]
    flat = lambda texts: " ".join(" ".join(texts).split())
    heldout = {name: flat(texts) for name, texts in task.heldout.items()}
    for prompt in task.prompts["evaluation"][:100]:
        assert any(prompt in text for text in heldout.values())
    for start, rest in language.cut_sentences("话说天下大势，分久必合，合久必分。" * 2):
        assert (start + rest) in "话说天下大势，分久必合，合久必分。" and rest


@pytest.mark.slow
def test_language_gold_likes_text_over_noise_and_over_repetition(tasks):
    task = tasks["language"]
    prompts = task.prompts["evaluation"][:50]
    people = task.baselines["same_end"](prompts)
    noise = ["".join(chr(33 + (7 * i) % 90) for i in range(60))] * 50
    loops = [" the the the the the the the the"] * 50
    for judge in (task.gold, *task.judges.values()):
        assert judge(prompts, people).mean() > judge(prompts, noise).mean() + 2
        assert judge(prompts, people).mean() > judge(prompts, loops).mean()


@pytest.mark.slow
def test_negative_prompts_turn_the_score(tasks):
    task = tasks["sentiment_negative"]
    for prompts in task.prompts.values():
        assert all(prompt.startswith(NEGATIVE) for prompt in prompts)
    prompt = NEGATIVE + "this is a"
    good, bad = task.gold([prompt] * 2, [" great and moving film .", " boring and dull film ."])
    assert bad > 0.2 > -0.2 > good


def test_classification_is_judged_by_the_label(tasks):
    task = tasks["sentiment_classification"]
    row = next(row for row in task.demonstrations if row.completion == " negative")
    scores = task.gold([row.prompt] * 4, [" negative", " positive .", " bad", ""])
    assert scores.tolist() == [1.0, -1.0, -1.5, -1.5]
    accuracy = lambda name: task.metrics(
        task.prompts["evaluation"], task.baselines[name](task.prompts["evaluation"])
    )["accuracy"]["mean"]
    assert accuracy("bag_of_words") > 0.7 > 0.6 > accuracy("positive")


# --- one's own ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_task_of_ones_own_is_one_file(tmp_path, monkeypatch):
    """The file that docs/tasks.md shows, with as many couplets as it says: a chain could begin."""
    tiny.write_own_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    rng, words = np.random.default_rng(0), ["day", "way", "night", "light", "rose", "nose"]
    line = lambda: " ".join(rng.choice(words, int(rng.integers(3, 9))))
    rows = [{"prompt": f"{n} {line()}", "completion": f" {line()}"} for n in range(6300)]
    Path("my_data").mkdir()
    Path("my_data/couplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    config = load(InstructGPTConfig, ["--config", "rhymes.py"])
    c = config.resolve()
    task = read_task(c.task, c.source)
    assert isinstance(task, Task) and set(SETS) <= set(task.prompts)
    assert read_task(c.task, c.source) is task, "made once for a whole chain"
    check_corpora(task, c.corpora, c.task)
    check_leaks(task, c.task)
    compare.check_enough(len(task.prompts["comparisons"]), c.compare, c.task)
    write(task, c.dir / "data")
    assert c.sft.data.is_file() and all(path.is_file() for path in c.pretrain.data.path)

    # Labelers of its gold scores can agree as often as they should.
    prompts = task.prompts["comparisons"][:100]
    answers = [row["completion"] for row in rows[:600]]
    gold = task.gold([p for p in prompts for _ in range(6)], answers).reshape(100, 6)
    grouped = [answers[n : n + 6] for n in range(0, 600, 6)]
    gaps = score_gaps(list(gold), grouped)
    assert calibrate_tau(gaps, agreement=c.compare.labeler.agreement, tie_width=0.0) > 0
    with pytest.raises(InputError, match=r"has 900 prompts for comparisons; .* 1000"):
        compare.check_enough(900, c.compare, c.task)

    # A chain says so before it trains.
    many = replace(config, compare=replace(config.compare, num_prompts=5000))
    with pytest.raises(InputError, match=r"prompts for comparisons; .* 5000"):
        instructgpt.run(many)
    assert not c.pretrain.run.dir.exists()

    # Where the baseline's answers are all worth the same, a gain has no unit.
    same = np.zeros((3, 1))
    for gold, given in ((same, False), (np.array([[0.0], [0.5], [1.0]]), True)):
        base = evaluate.Answers([["a line"]] * 3, same, same, same, gold, same, same, same, same)
        row = evaluate.describe_text(prompts[:3], answers[:3], base, task)
        assert ("gold_gain_in_sd" in row) == given
        assert all(np.isfinite(row[name]["mean"]) for name in ("gold", "win_rate"))


def test_wrong_tasks_are_named(tasks, tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match=r"expected a function build"):
        find_task(str(tmp_path / "empty.py"))
    with pytest.raises(InputError, match=r"task translation has english, chinese, novel, but"):
        check_corpora(tasks["translation"], ("english", "gutenberg"), "translation")
    with pytest.raises(InputError, match="has no reference"):
        tasks["translation"].gold(["Chinese: 你好吗\nEnglish"], ["Hi"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_preset_fits_the_task(tasks, name):
    config = load(InstructGPTConfig, ["--task", name, "--seed", "3"])
    assert config.task == name and config.seed == 3
    task = tasks[name]
    check_corpora(task, config.corpora, name)
    assert set(config.corpora) == set(task.corpora)
    c = config.resolve()
    assert c.compare.task == c.evaluate.task == config.task
    wanted = c.compare.num_prompts + c.compare.heldout_prompts
    assert wanted <= len(task.prompts["comparisons"])
    context = c.pretrain.model.context  # of a model that is brought in, its own
    assert c.ppo.prompt_length + c.ppo.response_length <= context or config.init
    preset = read_preset(str(ROOT / "configs" / "tasks" / f"{name}.py"))
    assert replace(preset, seed=3) == config, "--task takes the preset of that name"


def test_task_on_the_command_line():
    assert load(PPOConfig, ["--task=translation"]).prompt_length == 48
    given = ["--config", str(ROOT / "configs/quickstart.py"), "--task", "my_task.py"]
    assert load(InstructGPTConfig, given).task == "my_task.py"
    with pytest.raises(InputError, match="unknown flag --task"):
        load(PPOConfig, ["--task", "nothing"])
