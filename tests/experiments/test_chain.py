"""The whole chain, small: every stage stopped and started again ends with the same parameters."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from little_chain import STAGES, little_quickstart, outcome, stages
from precision import float32_bound, log_ratio_bound, network_terms
from tiny import process_environment, save_model

from experiments import compare, evaluate, instructgpt, ppo, pretrain, sft
from rlhf_jax.cli import read_preset, to_dict
from rlhf_jax.config import CombineConfig, TextDataConfig
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.inference import judged_answers
from rlhf_jax.runs.checkpoints import load_params

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def no_kl(c):
    """Of the SFT model to itself."""
    e, outputs = c.evaluate, c.pretrain.tokenizer.vocab_size
    length = e.prompt_length + e.response_length
    return log_ratio_bound(c.pretrain.model, length, outputs, tokens=e.response_length)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """One uninterrupted run."""
    c = little_quickstart(tmp_path_factory.mktemp("chain") / "run")
    summary = instructgpt.run(c)
    return c, summary


def test_summary(chain):
    c, summary = chain
    on_disk = json.loads((c.dir / "summary.json").read_text())
    assert on_disk["stages"]["ppo"]["params_sha256"] == summary["stages"]["ppo"]["params_sha256"]
    for key in ("config_digest", "git", "versions", "peak_memory_mib", "seconds"):
        assert key in on_disk
    final = load_params(c.dir / "sft" / "final")
    sizes = [leaf.size for leaf in jax.tree.leaves(final)]
    assert on_disk["stages"]["sft"]["parameters"] == sum(sizes)
    policies = on_disk["stages"]["evaluate"]["policies"]
    assert set(policies) == {"sft", "ppo", "best_of_2"}
    assert policies["sft"]["kl"]["mean"] == pytest.approx(0, abs=no_kl(c))
    assert policies["sft"]["win_rate"]["mean"] == 0.5
    assert on_disk["stages"]["comparisons"]["noise_ceiling"] > 0.5
    text = on_disk["stages"]["evaluate"]["text"]
    changes = on_disk["stages"]["evaluate"]["text_change"]
    assert set(changes) == {"sft", "ppo"} and len(changes["ppo"]) == 2 * len(c.corpora)
    for model, figures in changes.items():
        for name, change in figures.items():
            assert change["mean"] == pytest.approx(text[model][name] - text["pretrain"][name])
    assert (c.dir / "report.html").stat().st_size > 1000


def test_a_finished_chain_is_not_run_again(chain):
    c, summary = chain
    again = instructgpt.run(c)
    assert again["stages"] == json.loads(json.dumps(summary["stages"]))


def test_every_step_is_logged_once(chain):
    c, _ = chain
    for name in ("pretrain", "sft", "reward", "ppo"):
        rows = [json.loads(line) for line in (c.dir / name / "metrics.jsonl").open()]
        steps = [row["step"] for row in rows if "lr" in row]
        assert steps == list(range(1, steps[-1] + 1))


@pytest.mark.parametrize("name", ["pretrain", "sft", "reward", "ppo"])
def test_stopped_and_resumed(chain, name, tmp_path):
    """Bug 48: parameters, optimizer, keys, data cursor, KL coefficient and EMA all come back.

    In between the folder of the chain is moved, and the stage goes on by its own config.json.
    """
    c, _ = chain
    shutil.copytree(c.dir, tmp_path / "was", ignore=shutil.ignore_patterns(name))

    def stopping(base: Path):
        config = stages(replace(c, dir=base).resolve())[name]
        return replace(config, run=replace(config.run, stop_after=5))

    with pytest.raises(SystemExit) as stop:
        STAGES[name].run(stopping(tmp_path / "was"))
    assert stop.value.code == 0 and not (tmp_path / "was" / name / "DONE").exists()
    folder = (tmp_path / "was").rename(tmp_path / "is") / name
    moved = read_preset(str(folder / "config.json"))
    assert moved == stopping(tmp_path / "is")
    STAGES[name].run(moved)
    assert outcome(folder) == outcome(c.dir / name) and not (tmp_path / "was").exists()


def kept(folder: Path, batch: int) -> bool:
    """Whether a stage at work has left what the same command goes on from: of answers a batch."""
    answers = folder / "responses.jsonl"
    if answers.exists():
        return answers.read_bytes().count(b"\n") >= batch
    return any(path.name.isdecimal() for path in folder.glob("checkpoints/*"))


@pytest.mark.parametrize("name", list(STAGES))
def test_killed_and_resumed(chain, name, tmp_path):
    """kill -9 once something is kept; the same command ends as if nothing had been."""
    c, _ = chain
    record = json.loads((c.dir / name / "config.json").read_text())
    preset = tmp_path / "config.json"
    preset.write_text(json.dumps(record))
    module = "compare" if name == "comparisons" else name
    command = [sys.executable, "-m", f"experiments.{module}", "--config", str(preset)]
    command += ["--run.dir", str(tmp_path / name), "--run.save-every", "1"]
    environment = process_environment()
    start = dict(cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, **start)
    end, batch = time.monotonic() + 300, c.compare.prompts_per_batch
    while not kept(tmp_path / name, batch) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = subprocess.run(command, **start, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    said = done.stderr.decode()
    done_before = int(re.search(rf"{name} (\d+)/", said)[1]) - 1
    assert done_before > 0, "nothing was left to go on from, or the signal came too late"
    assert outcome(tmp_path / name) == outcome(c.dir / name)


def test_a_chain_stopped_by_sigterm_goes_on(chain, tmp_path):
    """Stopped in pretraining and in PPO; the same command ends as if nothing had been.

    After each stop the folder is moved, and the command names its new place.
    """
    c, summary = chain
    preset, folder = tmp_path / "preset.json", tmp_path / "run"
    preset.write_text(json.dumps({"config_class": "InstructGPTConfig", "config": to_dict(c)}))
    command = [sys.executable, "-m", "experiments.instructgpt", "--config", str(preset)]
    start = dict(cwd=ROOT, env=process_environment(), stdout=subprocess.DEVNULL)
    start |= dict(stderr=subprocess.PIPE, text=True)
    for stage in ("pretrain", "ppo"):
        process = subprocess.Popen([*command, "--dir", str(folder)], **start)
        began = time.monotonic()
        # The folder is made before the first step is compiled, which takes far longer than this
        # loop: the signal finds a stage that is at work.
        while not (folder / stage / "checkpoints").is_dir():
            assert process.poll() is None and time.monotonic() - began < 300
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors[-3000:]
        assert f"{stage}: saved at step 1;" in errors and not (folder / stage / "DONE").exists()
        folder = folder.rename(tmp_path / f"moved_in_{stage}")
    done = subprocess.run([*command, "--dir", str(folder)], **start, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ppo: resumed after step 1" in done.stderr
    for stage in STAGES:
        assert outcome(folder / stage) == outcome(c.dir / stage), stage
    ended = json.loads((folder / "summary.json").read_text())["stages"]["evaluate"]
    assert ended["policies"] == json.loads(json.dumps(summary["stages"]["evaluate"]["policies"]))
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("steps, stop_after, recorded", [(2, 6, 2), (5, 3, 2)])
def test_a_profile_holds_whole_steps_but_not_the_first(
    chain, tmp_path, steps, stop_after, recorded
):
    """Also of a run that is stopped before; a profile changes nothing that is computed."""
    c, _ = chain
    config = stages(c.resolve())["pretrain"]
    process = replace(config.run, dir=tmp_path / "pretrain", profile=steps, stop_after=stop_after)
    with pytest.raises(SystemExit):
        pretrain.run(replace(config, run=process))
    (path,) = (tmp_path / "pretrain" / "profile").glob("plugins/profile/*/*.xplane.pb")
    lines = [
        line
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
    ]
    events = [event for line in lines for event in line.events]
    numbers = sorted(dict(event.stats)["step_num"] for event in events if event.name == "pretrain")
    assert numbers == list(range(1, 1 + recorded))
    assert sum("Execute" in event.name for event in events) >= recorded
    if stop_after > steps:
        pretrain.run(replace(config, run=replace(process, profile=0, stop_after=0)))
        assert outcome(tmp_path / "pretrain") == outcome(c.dir / "pretrain")


def test_sampling_is_profiled_as_training_is(chain, tmp_path):
    c, _ = chain
    config = stages(c.resolve())["comparisons"]
    folder = tmp_path / "comparisons"
    compare.run(replace(config, run=replace(config.run, dir=folder, profile=1)))
    assert len(list(folder.glob("profile/plugins/profile/*/*.xplane.pb"))) == 1
    assert outcome(folder) == outcome(c.dir / "comparisons")


def test_another_config_or_stage_is_refused(chain):
    c, _ = chain
    r = c.resolve()
    with pytest.raises(InputError, match="steps=8, now 9, but cannot be made longer"):
        pretrain.run(replace(r.pretrain, steps=9))
    with pytest.raises(InputError, match="belongs to stage 'pretrain'"):
        sft.run(replace(r.sft, run=r.pretrain.run))


def test_the_gate(chain, tmp_path):
    """PPO refuses a reward model below the bar, and says how to go on."""
    c, _ = chain
    config = c.resolve().ppo
    weak = replace(
        config,
        run=replace(config.run, dir=tmp_path / "ppo"),
        force=False,
        min_reward_accuracy=0.999,
    )
    with pytest.raises(RunError, match=r"min_reward_accuracy=0\.999.*--force True"):
        ppo.run(weak)


def test_not_a_number_stops_the_run(chain, tmp_path):
    """The step is named and no state after it is saved."""
    c, _ = chain
    config = c.resolve().pretrain
    wild = replace(
        config,
        run=replace(config.run, dir=tmp_path / "nan", save_every=1),
        optim=replace(config.optim, optimizer="adamw", lr=1e30, warmup_steps=0),
    )
    with pytest.raises(RunError, match=r"is (nan|inf) at step \d"):
        pretrain.run(wild)
    assert (tmp_path / "nan" / "FAILED").exists() and not (tmp_path / "nan" / "DONE").exists()


def test_prompts_longer_than_the_context_keep_their_end(chain, capsys):
    c, _ = chain
    done = json.loads((c.dir / "ppo" / "DONE").read_text())
    assert done["prompts"]["kept"] > 0
    with pytest.raises(InputError, match=r"is over model\.context"):
        ppo.run(
            replace(
                c.resolve().ppo,
                prompt_length=60,
                run=replace(c.resolve().ppo.run, dir=c.dir / "ppo_long"),
            )
        )


def test_evaluate_alone(chain, tmp_path):
    c, summary = chain
    config = c.resolve().evaluate
    again = evaluate.run(replace(config, run=replace(config.run, dir=tmp_path / "evaluate")))
    expected = summary["stages"]["evaluate"]["policies"]["ppo"]["gold"]
    assert again["policies"]["ppo"]["gold"] == expected


def test_evaluation_stops_between_batches_and_goes_on(chain, tmp_path, monkeypatch, capsys):
    """Asked to stop while the first policy answers, it keeps the batch and loses nothing."""
    c, summary = chain
    config = c.resolve().evaluate
    config = replace(config, run=replace(config.run, dir=tmp_path / "evaluate"))
    keep, batches = judged_answers.with_cache, []

    def interrupted(sampler, *rest, **shape):
        def sampled(*inputs, **place):
            for batch in keep(sampler, *rest, **shape)(*inputs, **place):
                batches.append(batch)
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return sampled

    with monkeypatch.context() as patch:
        patch.setattr(judged_answers, "with_cache", interrupted)
        with pytest.raises(SystemExit):
            evaluate.run(config)
    assert len(batches) == 1
    assert "evaluate sft 1/2 batches, 50 %" in capsys.readouterr().err
    again = evaluate.run(config)
    assert again["policies"] == summary["stages"]["evaluate"]["policies"]


def test_evaluate_with_a_second_reward(chain, tmp_path):
    """Two reward models score the same answers, each as it does in the other's place; best of 1 is
    the baseline and no policy of its own."""
    c, _ = chain
    fields = dict(text=TextDataConfig(), cache=tmp_path / "answers", best_of=(1, 2))
    config = replace(c.resolve().evaluate, **fields)
    tokenizer = load_tokenizer(c.dir / "pretrain" / "tokenizer")
    shape = dict(kind="scalar", context=c.pretrain.model.context)
    other = save_model(tmp_path / "other", tokenizer, **shape)

    def ppo_row(name, **changes):
        run = replace(config.run, dir=tmp_path / name)
        done = evaluate.run(replace(config, run=run, **changes))
        assert set(done["policies"]) == {"sft", "ppo", "best_of_2"}
        return done["policies"]["ppo"]

    def scores(name, reward, second):
        row = ppo_row(name, reward=(reward,), second_reward=second)
        return [row[score]["mean"] for score in ("score", "second_score")]

    first = scores("first", *config.reward, other)
    assert abs(first[0] - first[1]) > 1e-3
    length = config.prompt_length + config.response_length
    bound = float32_bound(2 * network_terms(c.pretrain.model, length, 1), max(map(abs, first)))
    assert scores("swapped", other, *config.reward) == pytest.approx(first[::-1], abs=bound)

    # Both as one: an ensemble, of which each answer has the worse score
    worst = CombineConfig(how="min")
    row = ppo_row("ensemble", reward=(*config.reward, other), combine=worst)
    each = [score["mean"] for score in row["score_of_each"].values()]
    assert {*row["score_of_each"]} == {"reward", "other"}
    assert each == pytest.approx(first, abs=bound)
    assert row["score"]["mean"] <= min(each) + bound


def test_the_best_of_n_is_measured_for_each_reward_model_by_itself(chain, tmp_path):
    """Of as many answers as there are it is the best of them, as the table's row says; of 1 it is
    any of them."""
    c, _ = chain
    fields = dict(text=TextDataConfig(), cache=tmp_path / "answers", best_of=(1, 2))
    config = replace(c.resolve().evaluate, **fields, best_of_curve=(1, 2))

    def run(name, **changes):
        done = evaluate.run(
            replace(config, run=replace(config.run, dir=tmp_path / name), **changes)
        )
        return done["policies"], done["best_of_curve"]

    policies, curves = run("one")
    first, second = curves["task"]
    assert (first["n"], first["kl"], second["n"]) == (1, 0, 2)
    for figure in ("gold", "score"):
        assert second[figure] == policies["best_of_2"][figure]
    assert second["score"]["mean"] > first["score"]["mean"]

    tokenizer = load_tokenizer(c.dir / "pretrain" / "tokenizer")
    shape = dict(kind="scalar", context=c.pretrain.model.context)
    other = save_model(tmp_path / "other", tokenizer, **shape)
    _, both = run("two", reward=(*config.reward, other))
    assert {*both} == {"reward", "other"}
    for own, alone in zip(both["reward"], curves["task"], strict=True):
        assert own["score"]["mean"] == pytest.approx(alone["score"]["mean"], rel=1e-4)
    assert both["other"] != both["reward"]


def test_policies_of_two_runs_and_two_sizes(chain, tmp_path):
    """Folders of one name are told apart, and each policy is run as what it is."""
    c, summary = chain
    tokenizer = load_tokenizer(c.dir / "pretrain" / "tokenizer")
    larger = replace(c.pretrain.model, n_layers=1, d_model=32, n_heads=4)
    other = save_model(tmp_path / "other" / "sft", tokenizer, model=larger)
    config = replace(
        c.resolve().evaluate,
        policies=(c.dir / "sft", other),
        text_only=(c.dir / "pretrain",),
        best_of=(1,),
    )
    done = evaluate.run(replace(config, run=replace(config.run, dir=tmp_path / "evaluate")))
    mine, theirs = done["policies"]
    assert (mine, theirs) == (f"{c.dir.name}-sft", "other-sft")
    assert done["policies"][mine]["kl"]["mean"] == pytest.approx(0, abs=no_kl(c))
    assert done["policies"][theirs]["kl"]["mean"] > 0.1
    assert set(done["text"]) == {mine, theirs, f"{c.dir.name}-pretrain"}
    figure = "eval/polarity/nats_per_token"
    assert done["text"][mine][figure] == summary["stages"]["evaluate"]["text"]["sft"][figure]
    assert done["text"][theirs][figure] == pytest.approx(math.log(tokenizer.vocab_size), rel=0.05)
