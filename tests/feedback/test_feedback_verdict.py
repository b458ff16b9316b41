"""People as judges: an evaluation's answers through the store, and the win rates they give."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from feedback_site import ROOT, labeler

from experiments.feedback import verdict
from rlhf_jax.config import FeedbackAskConfig
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.metrics import win_rate
from rlhf_jax.feedback import queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.report.records import read_stage

# prompt → (sft's answer, ppo's, dpo's); people like capitals, the gold scorer what is long.
TEXTS = {
    "p0": (" a", " B", " a"),
    "p1": (" same", " same", " same"),
    "p2": (" c", " D", " E"),
    "p3": (" F", " g", " hh"),
    "p4": (" mail me", " I", " I"),
    "p5": (" never", " asked", " about"),
    "p6": (" all", " all", " all"),
}
POLICIES = ("sft", "ppo", "dpo")


@pytest.fixture
def config(tmp_path):
    """Of an evaluation's folder; the last two prompts are never labelled."""
    run = tmp_path / "evaluate"
    run.mkdir()
    rows = [
        {
            "step": 0,
            "policy": policy,
            "prompt": prompt,
            "response": texts[n],
            "gold": float(len(texts[n])),
            "score": float(texts[n].isupper()),
        }
        for n, policy in enumerate(POLICIES)
        for prompt, texts in TEXTS.items()
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = {"steps": 0, "policies": {name: {"win_rate": {"mean": 0.5}} for name in POLICIES}}
    (run / "DONE").write_text(json.dumps(done))
    return FeedbackAskConfig(run=run, overlap=0.0)


def label(config, account, most):
    """Rank by capitals, as a person would through the page: in an order of their own."""
    database = open_database(config.place)
    for n in range(most):
        task = queue.lease_task(database, account)
        shown = [task.responses[i].text for i in task.order(account)]
        body = {"ranks": [0 if text.isupper() else 1 for text in shown]}
        names = {"submission": f"{account.id[:8]}{n:08}", "task": task.id, "kind": "ranking"}
        submissions.submit(database, account, body=body, **names)


def judge(config):
    verdict.announce(config)
    return json.loads((config.run / "people.json").read_text())


def test_win_rates_of_people(config, capsys):
    for _ in range(2):  # the second time nothing is new
        verdict.ask(config)
    database = open_database(config.place)
    asked = queue.open_tasks(database, most=10)
    assert [task.prompt for task in asked] == ["p0", "p2", "p3", "p4", "p5"]
    assert [each.policy for each in asked[0].responses] == ["sft, dpo", "ppo"]

    label(config, labeler(database, "Ann"), 4)
    found = judge(config)
    # p6 comes after the last label: whether it would have been asked is not known yet.
    assert (found["baseline"], found["prompts"], found["rankings"]) == ("sft", 5, 4)
    leads = {"ppo": [1, 0, 1, -1, 1], "dpo": [0, 0, 1, -1, 1]}
    for policy, signs in leads.items():
        won = found["policies"][policy]["win_rate"]
        assert won.items() >= win_rate(np.array(signs), np.zeros(5)).items()
        counts = (signs.count(1), signs.count(0), signs.count(-1))
        assert (won["wins"], won["ties"], won["losses"]) == counts
    # Gold likes what is long: on p0 and p2 all are equally long, on p4 people like the short one.
    assert found["scorers"]["score"] == {"mean": 1.0, "ci": 0.0, "n": 4}
    p3 = (0.5 + 0.0) / 2  # people: F before g and hh; gold: F = g, hh before F
    assert found["scorers"]["gold"]["mean"] == pytest.approx((0.5 + 0.5 + p3 + 0.0) / 4)
    assert "ppo wins against sft on 0.70" in capsys.readouterr().err
    report = read_stage(config.run).done["policies"]
    assert report["ppo"]["win_rate_by_people"]["mean"] == pytest.approx(0.7)


def test_labelers_of_a_prompt_are_averaged(config):
    config = replace(config, policies=("ppo", "sft"), tasks_per_round=1, overlap=1.0)
    verdict.ask(config)
    database = open_database(config.place)
    (task,) = queue.open_tasks(database, most=9)
    assert [each.policy for each in task.responses] == ["ppo", "sft"]
    for name, ranks in (("Ann", (0, 1)), ("Bob", (1, 0))):
        account = labeler(database, name)
        task = queue.lease_task(database, account)
        shown = [ranks[i] for i in task.order(account)]
        names = {"submission": f"{account.id[:8]}{1:08}", "task": task.id, "kind": "ranking"}
        submissions.submit(database, account, body={"ranks": shown}, **names)
    found = judge(config)
    assert (found["baseline"], found["prompts"], found["labelers"]) == ("ppo", 1, 2)
    won = found["policies"]["sft"]["win_rate"]
    assert (won["wins"], won["ties"], won["losses"], won["mean"]) == (0, 1, 0, 0.5)
    assert found["agreement"]["n"] == 1 and found["agreement"]["mean"] == 0


def test_personal_data_is_asked_about_without_it(config):
    path = config.run / "samples.jsonl"
    path.write_text(path.read_text().replace("p4", "mail jo@x.org"))
    verdict.ask(config)
    database = open_database(config.place)
    assert queue.prompts_asked(database)[3] == "mail [EMAIL]"
    label(config, labeler(database), 5)
    assert judge(config)["rankings"] == 5


def test_what_cannot_be_judged_is_said(config):
    with pytest.raises(InputError, match="nothing was asked"):
        judge(config)
    assert not (config.run / "people.json").exists()
    with pytest.raises(InputError, match=r"found no other in .*; it has sft, ppo, dpo"):
        verdict.ask(replace(config, policies=("sft", "other")))
    with pytest.raises(InputError, match=r"found 1 \(sft\), expected 2 to 9"):
        verdict.ask(replace(config, policies=("sft",)))
    verdict.ask(config)
    label(config, labeler(open_database(config.place)), 1)
    path = config.run / "samples.jsonl"
    text = path.read_text()
    path.write_text(text.replace(" B", " another answer"))
    with pytest.raises(InputError, match="its answers are not those of the evaluation"):
        judge(config)
    path.write_text(text.replace('"gold"', '"golden"', 1))
    with pytest.raises(InputError, match=r"samples.jsonl, line 1: has no gold"):
        judge(config)
    (config.run / "DONE").unlink()
    with pytest.raises(InputError, match="expected a finished evaluation"):
        verdict.ask(config)


def test_it_needs_no_jax(config):
    code = (
        "import sys; from experiments.feedback import __main__ as feedback;"
        "from rlhf_jax.cli import main_of;"
        f"sys.argv = ['feedback', 'ask', '--run', {str(config.run)!r}];"
        "main_of(feedback.COMMANDS, bare=feedback.BARE); assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "5 new tasks, 5 open; on 2 of 7 prompts all said the same" in done.stderr
