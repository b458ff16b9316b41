"""The loop end to end on a tiny model: simulated labelers over HTTP, two rounds, the chat."""

import contextlib
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import tiny
from program_cache import CACHE

pytest.importorskip("uvicorn", reason="the server needs the extra feedback")

from feedback_site import labeler, running
from precision import log_ratio_bound

from configs import quickstart
from experiments.feedback import answers as feedback_answers
from experiments.feedback import labelers as feedback_labelers
from experiments.feedback import rounds as feedback_rounds
from experiments.feedback import stages
from rlhf_jax.cli.presets import narrowed
from rlhf_jax.config import FeedbackAnswerConfig
from rlhf_jax.data.formats import read_comparisons
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import RunError
from rlhf_jax.feedback import conversation, figures, queue, submissions
from rlhf_jax.feedback.client import Client
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labels import is_heldout, read_labels
from rlhf_jax.feedback.standing import read_refusals
from rlhf_jax.inference.reward_scores import disagreement
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.tasks.task import find_task

PER_ROUND = 24


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """A tiny SFT model, and the loop's config around it."""
    folder = tmp_path_factory.mktemp("loop")
    task = tiny.make_task(folder)
    config = tiny.shrink(quickstart.get_config(), folder / "run", task)
    c = config.resolve()
    tiny.write_data(config)
    tiny.save_model(c.sft.run.dir, load_tokenizer(task.tokenizer))
    # Programs are kept with those of the other tests; rounds read what a run ends with.
    at_the_end = dict(save_every=1000, eval_every=1000)
    kept = lambda stage: replace(stage.run, compile_cache=CACHE, **at_the_end)
    return replace(
        c.feedback,
        tasks_per_round=30,
        labels_per_round=PER_ROUND,
        evaluation_prompts=8,
        iterations=1,
        rounds=2,
        simulated=3,
        candidates=2,
        overlap=0.5,
        ppo=replace(c.feedback.ppo, run=kept(c.ppo), min_reward_accuracy=0.0),
        reward=replace(c.feedback.reward, run=kept(c.reward), batch_size=8),
    )


def test_disagreement():
    same = np.array([[[0.0, 1.0, 5.0]]] * 3)
    assert disagreement(same) == pytest.approx(0)
    split = np.array([[[0.0, 99.0]], [[99.0, 0.0]]])
    assert disagreement(split) == pytest.approx(0.25)
    shifted = np.array([[[0.0, 1.0, np.nan]], [[7.0, 8.0, np.nan]]])
    assert disagreement(shifted) == pytest.approx(0)  # scores have no origin


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_rounds_over_http(loop, monkeypatch):
    forget = feedback_rounds.forget_snapshot
    monkeypatch.setattr(feedback_rounds, "forget_snapshot", lambda folder: None)
    database = open_database(loop.place)
    gold = find_task(loop.task)(loop.source).gold
    with running(loop.dir / "store.sqlite") as (port, _):
        threading.Thread(target=label, args=(loop, gold, port), daemon=True).start()
        feedback_rounds.update(loop)
    rounds = figures.read_rounds(database)
    assert [row["round"] for row in rounds] == [0, 1, 2]
    model = load_trained(stages.sft(loop), flag="sft")
    sizes = dict(length=tiny.CONTEXT, outputs=model.vocab_size, tokens=tiny.RESPONSE)
    assert rounds[0]["kl"]["mean"] == pytest.approx(0, abs=log_ratio_bound(model.model, **sizes))
    assert rounds[1]["labels"] >= PER_ROUND
    assert rounds[2]["labels"] >= rounds[1]["labels"] + PER_ROUND
    for row in rounds[1:]:
        assert row["kl"]["mean"] != 0 and 0 <= row["accuracy"] <= 1
        assert np.isfinite([row["gold"]["mean"], row["score"]["mean"]]).all()
        assert len(row["samples"]) == feedback_rounds.SHOWN and row["labelers"]
        right = sum(each["accuracy"] * each["pairs"] for each in row["labelers"].values())
        assert right / row["pairs"] == pytest.approx(row["accuracy"]) and row["accuracy_ci"] >= 0
        sample = row["samples"][0]
        assert sample["score"][1] == row["text_score"][0] and len(sample["gold"]) == 2
    assert [s["before"] for s in rounds[2]["samples"]] == rounds[1]["texts"]
    assert figures.read_status(database)["updater"]["phase"] == "stopped"

    # What the second round learnt from: all labels until then, held-out prompts in neither part.
    labels = read_labels(database)
    assert len({x.labeler for x in labels}) == 3 and {x.task.round for x in labels} == {0, 1}
    part = {}
    for name in ("train", "heldout"):
        path = stages.round_dir(loop, 2) / f"{name}.jsonl"
        part[name] = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(is_heldout(row["prompt"]) == (name == "heldout") for row in part[name])
        assert read_comparisons(path)[0].tokens is not None
    assert len(part["train"]) + len(part["heldout"]) == rounds[2]["labels"]
    assert rounds[2]["last_label"] == rounds[2]["labels"]  # none was skipped or taken back
    assert {row["round"] for row in part["train"]} == {0, 1}

    # The policy goes on from the round before, and is held to the SFT model.
    config = json.loads((stages.policy(loop, 2) / "config.json").read_text())["config"]
    assert config["init"] == str(stages.policy(loop, 1)) and config["reference"] == str(
        stages.sft(loop)
    )
    first = json.loads((stages.policy(loop, 2) / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/kl"] != 0
    # Tasks of round 1 and later were chosen: the most doubtful come first.
    with database.read() as rows:
        found = rows("SELECT priority FROM task WHERE round = 1 ORDER BY number")
    priorities = [row["priority"] for row in found]
    assert priorities == sorted(priorities, reverse=True) and priorities[-1] > 0
    # Done is done, and then labels are in the store alone.
    monkeypatch.setattr(feedback_rounds, "forget_snapshot", forget)
    feedback_rounds.update(loop)
    for number in (1, 2):
        assert not list(stages.round_dir(loop, number).glob("*.jsonl"))
        assert not (stages.round_dir(loop, number) / "cache").exists()
    assert len(figures.read_rounds(database)) == 3


def label(config, gold, port):
    """The simulated labelers, once there is something to label."""
    database = open_database(config.place)
    labelers = feedback_labelers.make_labelers(
        config, gold, feedback_labelers.wait_for_tasks(database)
    )
    for number, each in enumerate(labelers):
        token = feedback_labelers.labeler_token(config, database, number)
        client = Client(f"http://127.0.0.1:{port}", token, patience=5.0)
        arguments = (client, each)
        threading.Thread(target=work, args=arguments, daemon=True).start()


def work(client, each):
    """Until the server is gone."""
    with contextlib.suppress(RunError):
        feedback_labelers.keep_labelling(client, each)


@pytest.mark.slow
def test_a_worker_answers_the_chat_and_fills_the_queue(loop):
    """With what ``answer`` is told: of PPO and the reward models, lengths and devices."""
    loop = narrowed(loop, FeedbackAnswerConfig)
    database = open_database(loop.dir / "other.sqlite")
    feedback_answers.prepare(loop)
    figures.add_round(database, 0, {"labels": 0, "samples": []})
    ann = labeler(database)
    conversation.say(database, ann, "c", "Write a positive review: a1", dialogue=False)
    policy = feedback_answers.load_policy(loop, 0)
    reply = feedback_answers.make_reply(loop, policy, 0)
    feedback_answers.answer_all(database, reply)
    (turn,) = conversation.read_turns(database, ann, "c")
    assert turn.state == "done" and 1 <= len(turn.task.responses) <= loop.chat_answers
    assert turn.task.responses[0].policy == "sft", "a run that is moved keeps its names"
    for _ in feedback_answers.fill(loop, database, 0, policy):
        pass
    open_before = queue.count_open(database)
    assert 0 < open_before <= loop.tasks_per_round
    task = queue.lease_task(database, ann)
    assert len(task.responses) >= 2 and task.prompt.startswith("Write a positive review")
    assert all(r.tokens and r.logprob < 0 for r in task.responses)
    twice = [t for t in queue.open_tasks(database, most=99)]
    assert 0 < sum(_wanted(database, t.id) == 2 for t in twice) < len(twice)


def _wanted(database, task):
    with database.read() as rows:
        return rows("SELECT wanted FROM task WHERE id = :id", id=task)[0]["wanted"]


@pytest.mark.slow
def test_a_reward_model_under_the_gate_publishes_nothing(loop):
    config = replace(
        loop,
        store=str(loop.dir / "gate.sqlite"),
        run=loop.run,
        ensemble=1,
        choice="random",
        ppo=replace(loop.ppo, min_reward_accuracy=1.0, force=False),
    )
    database = open_database(config.place)
    for _ in feedback_answers.fill(config, database, 0, feedback_answers.load_policy(config, 0)):
        pass
    ann = labeler(database)
    while (task := queue.lease_task(database, ann)) is not None:
        ranks = [n % 2 for n in range(len(task.responses))]
        submissions.submit(
            database,
            ann,
            submission=task.id,
            task=task.id,
            kind="ranking",
            body={"ranks": ranks},
        )
    number = 9  # a folder of its own
    labels = read_labels(database)
    learnt = feedback_rounds.one_round(config, database, number, labels)
    assert learnt == len(labels) and not stages.round_dir(config, number).exists()
    assert figures.read_rounds(database) == []
    (refusal,) = read_refusals(database)
    assert (refusal.round, refusal.labels, refusal.gate) == (number, learnt, 1.0)
    assert 0 <= refusal.accuracy < 1 and refusal.pairs > 0 and not refusal.half_width < 0
    assert time.time() - figures.read_status(database)["updater"]["updated"] < 600
