"""A task through all stages, small: Chinese survives, metrics and baselines arrive."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from experiments import evaluate, instructgpt
from experiments import task as task_files
from rlhf_jax.cli import load
from rlhf_jax.config import EvaluateConfig, InstructGPTConfig, RunConfig, TaskConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.tasks.task import find_task

ROOT = Path(__file__).parents[2]


LINES = {
    "sft_tatoeba_zh_en/pairs.jsonl": 1500,
    "sft_ntrex_zh_en/pairs.jsonl": 200,
    "text_zh_novels/xiyouji.txt": 1400,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.part_of_the_data(tmp_path_factory.mktemp("data"), LINES)


def small(name: str, source: Path, folder: Path, **measured) -> InstructGPTConfig:
    """The task's preset on real data, with a few steps of a toy model per stage."""
    preset = load(InstructGPTConfig, ["--task", name])
    c = tiny.shrink(preset, folder / name, tiny.Task(source, folder / "none"), packing=True)
    return replace(
        c,
        sft=replace(c.sft, heldout_fraction=0.9, batch_size=64, epochs=1),
        # Such a model's answers are too alike for people who agree on 0.9 of them.
        compare=replace(c.compare, labeler=replace(c.compare.labeler, agreement=0.7)),
        evaluate=replace(c.evaluate, num_prompts=8, best_of=(2,), batch_size=8, **measured),
    )


@pytest.mark.slow
def test_a_task_runs_through_all_stages(source, tmp_path):
    name = "translation"
    summary = instructgpt.run(small(name, source, tmp_path, alpaca_eval=True))
    done = summary["stages"]["evaluate"]
    assert set(done["policies"]) == {"sft", "ppo", "best_of_2"}
    metric = "chrf"
    for row in (*done["policies"].values(), *done["baselines"].values()):
        assert 0 <= row["metrics"][metric]["mean"] <= 100
        assert 0 <= row["win_rate_at_equal_length"]["mean"] <= 1
    folder = tmp_path / name
    for loss in done["text"].values():
        bits = {k: v for k, v in loss.items() if k.endswith("bits_per_byte")}
        assert len(bits) >= 2 and all(0 < v < 20 for v in bits.values())
        assert {k for k in loss if k.endswith("/perplexity")}
    exported = json.loads((folder / "evaluate" / "alpaca_eval_ppo.json").read_text())
    assert len(exported) == 8 and exported[0]["generator"] == "ppo"
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert metric in report
    rows = [json.loads(x) for x in (folder / "comparisons" / "train.jsonl").open()]
    assert all(row["prompt"].startswith("Chinese: ") for row in rows)
    words = {key.split("/")[1] for key in done["text"]["ppo"] if key.endswith("word_perplexity")}
    assert words == {"english"}, "Chinese is not cut into words"
    shown = [json.loads(x) for x in (folder / "evaluate" / "samples.jsonl").open()]
    chinese = shown[0]["prompt"].split()[1]
    assert chinese in report and not chinese.isascii()


@pytest.mark.slow
def test_an_evaluation_samples_nothing_twice(source, tmp_path, monkeypatch):
    """Metrics, significance and baselines; another evaluation reads the shared answers."""
    tokenizer = train_bpe(["Chinese: 我们的猫 English: our cat"] * 9, vocab_size=300)
    for name in ("sft", "ppo"):
        tiny.save_model(tmp_path / name, tokenizer, context=96)
    tiny.save_model(tmp_path / "reward", tokenizer, kind="scalar", context=96)
    build = find_task("translation")
    rows = build(source).prompts["evaluation"][:12]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in rows))
    config = EvaluateConfig(
        run=RunConfig(dir=tmp_path / "first", tensorboard=False),
        policies=(tmp_path / "sft", tmp_path / "ppo"),
        reward=(tmp_path / "reward",),
        task="translation",
        source=source,
        prompts=prompts,
        cache=tmp_path / "answers",
        best_of=(2,),
        prompt_length=64,
        response_length=16,
        batch_size=8,
    )
    first = evaluate.run(config)
    row = first["policies"]["ppo"]
    assert {"bleu", "chrf", "exact"} <= set(row["metrics"])
    assert row["win_rate"]["wins"] + row["win_rate"]["ties"] + row["win_rate"]["losses"] == 12
    assert 0 <= row["gold_difference"]["p"] <= 1 and "wins" in row["win_rate_by_reward_model"]
    assert set(first["baselines"]) == {"copy", "memory"}

    def never(*arguments, **options):
        raise AssertionError("sampled again")

    monkeypatch.setattr("rlhf_jax.inference.sampler.generate", never)
    again = evaluate.run(replace(config, run=replace(config.run, dir=tmp_path / "second")))
    assert again["policies"] == first["policies"]
    with pytest.raises(InputError, match=r"--pass-k: the gold score of task translation is not"):
        evaluate.run(replace(config, pass_k=(1,), run=replace(config.run, dir=tmp_path / "third")))


@pytest.mark.slow
def test_a_verifiable_task_needs_no_reward_model(tmp_path):
    """A program rewards PPO: nobody compares, and the evaluation tells pass@k of each policy."""
    c = small("arithmetic", tmp_path / "no data", tmp_path, pass_k=(1, 4))
    summary = instructgpt.run(c)
    assert set(summary["stages"]) == {"pretrain", "sft", "ppo", "evaluate"}
    assert not (c.dir / "comparisons").exists() and not (c.dir / "reward").exists()
    done = summary["stages"]["evaluate"]
    assert set(done["policies"]) == {"sft", "ppo"}, "none is the best of several"
    for row in done["policies"].values():
        assert set(row["pass_at"]) == {"1", "4"} and row["pass_at"]["1"]["n"] == 8
        assert not {"score", "win_rate_by_reward_model"} & set(row)
    assert "pass@4" in (c.dir / "report.html").read_text(encoding="utf-8")
    with_model = replace(c, ppo=replace(c.ppo, reward=(Path("any"), *c.ppo.reward))).resolve()
    assert with_model.ppo.reward == (c.dir / "reward", Path("gold:arithmetic"))
    assert with_model.evaluate.reward == (c.dir / "reward",)


def test_passes_are_of_as_many_answers_of_each_policy():
    """The baseline has more answers than asked for; a score between 0 and 1 is no pass."""
    config = EvaluateConfig(pass_k=(1, 2), pass_samples=3)
    gold = np.array([[1.0, 0, 0, 1, 1], [0, 0, 0, 1, 1]])
    others = len(evaluate.Answers._fields) - 1
    answers = evaluate.Answers([["a"] * 5] * 2, *[gold] * others)
    found = evaluate.describe_passes(answers, config)
    means = {k: figure["mean"] for k, figure in found.items()}
    assert means == {"1": pytest.approx(1 / 6), "2": pytest.approx(1 / 3)}
    with pytest.raises(InputError, match=r"gold scorer gave \[0.5\]: expected 0 or 1"):
        evaluate.describe_passes(answers._replace(gold=gold / 2), config)


@pytest.mark.slow
def test_the_files_of_a_task_alone(tmp_path, capsys):
    task_files.run(TaskConfig(name="translation", source=ROOT / "data", out=tmp_path / "data"))
    assert "demonstrations: 16,795" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert {"demonstrations.jsonl", "prompts_news.jsonl", "corpus_novel.txt"} <= names


@pytest.mark.slow
def test_another_tasks_corpora_are_refused(tmp_path):
    config = load(InstructGPTConfig, ["--config", str(ROOT / "configs" / "quickstart.py")])
    config = replace(config, task="instructions", source=ROOT / "data", dir=tmp_path / "run")
    with pytest.raises(InputError, match="task instructions has gutenberg, wikipedia, but reviews"):
        instructgpt.run(config)
    assert not (tmp_path / "run").exists()
