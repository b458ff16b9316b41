"""The rounds of the loop with people: learn from all labels, improve the policy, publish it.

Called by ``experiments.feedback`` (update). A round is the stages' own functions
on all labels so far: the reward models from the SFT model, PPO from the policy of the round before
with its KL penalty against the SFT model. What a round did is one row in the store, written last:
a killed update starts the unfinished round again, from the same labels, where its stages stopped.
"""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import ppo, reward
from experiments.feedback import stages
from experiments.feedback.answers import (
    HEARTBEAT_SECONDS,
    POLL_SECONDS,
    fill,
    load_policy,
    newest,
    prepare,
    scores_of,
    somebody_answers,
)
from rlhf_jax.config import EvaluateConfig, FeedbackUpdateConfig
from rlhf_jax.data.chat import Conversation, as_text
from rlhf_jax.data.files import find_files, write_atomically
from rlhf_jax.data.formats import Prompt, read_prompts
from rlhf_jax.errors import known
from rlhf_jax.evaluation.metrics import mean_ci, pair_accuracy
from rlhf_jax.feedback import figures, queue, submissions
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.formats import ranking_row, to_lines
from rlhf_jax.feedback.imports import read_rankings
from rlhf_jax.feedback.labels import Label, Ranking, is_heldout, rankings, read_labels
from rlhf_jax.feedback.standing import add_refusal
from rlhf_jax.feedback.store import Database
from rlhf_jax.inference.judged_answers import Answers, make_answer
from rlhf_jax.runs.fit import fit_prompts
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.records import read_done
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.tasks.task import read_task
from rlhf_jax.training.parallel import make_parallel

SHOWN = 6
"""Answers of each policy that the dashboard shows."""


def update(config: FeedbackUpdateConfig) -> None:
    """Wait for labels, train a round, publish it, fill the queue from it; and again."""
    prepare(config)
    check_files(config)
    database = open_database(config.place)
    if not figures.read_rounds(database):
        figures.add_round(database, 0, {"labels": 0, "samples": []})
    # An update that was killed may have left a published round's copy of the labels.
    for number in range(1, newest(database) + 1):
        forget_snapshot(stages.round_dir(config, number))
    learnt = figures.read_rounds(database)[-1]["labels"]
    number = newest(database) + 1
    with figures.alive(database, "updater", every=HEARTBEAT_SECONDS):
        try:
            while not config.rounds or newest(database) < config.rounds:
                number = newest(database) + 1
                labels = wait_for_labels(config, database, number, learnt)
                learnt = one_round(config, database, number, labels)
        except BaseException as error:
            failed = isinstance(error, Exception)
            phase = "failed" if failed else "stopped"
            figures.set_status(database, "updater", phase=phase, round=number - (not failed))
            raise
    figures.set_status(database, "updater", phase="stopped", round=newest(database))


def check_files(config: FeedbackUpdateConfig) -> None:
    """Raise InputError for what a round would miss after labels and training: read it all now."""
    ppo_stage = stages.ppo_stage(config, 1)
    for path in (ppo_stage.prompts, stages.data(config) / "prompts_evaluation.jsonl"):
        for _ in read_prompts(path):
            pass
    for path in ppo_stage.ptx_data.path if config.ppo.ptx_coef else ():
        find_files(path)
    if config.gold:
        read_task(config.task, config.source)


def wait_for_labels(
    config: FeedbackUpdateConfig, database: Database, number: int, learnt: int
) -> list[Label]:
    """All labels, when there are enough labels besides ``learnt``; no queue stays empty."""
    train = stages.round_dir(config, number) / "train.jsonl"
    goal, told = learnt + config.labels_per_round, -HEARTBEAT_SECONDS
    while True:
        count = submissions.count_labels(database)
        # A snapshot that is there is of a round that was stopped: it goes on with the same labels.
        if train.exists() or count >= goal:
            labels = read_labels(database)
            ranked = rankings(labels)
            # By the prompt's hash: a prompt stays on its side in every round.
            split = [[r for r in ranked if is_heldout(r.prompt) == out] for out in (False, True)]
            if train.exists() or all(orders_something(part) for part in split):
                return labels
            goal = count + 1  # nothing to train on, or nothing to measure by
        if time.monotonic() - told > HEARTBEAT_SECONDS:
            if queue.count_open(database) == 0:
                fill_alone(config, database, number - 1)
            names = {"round": number, "new": count - learnt, "wanted": goal - learnt, "goal": goal}
            figures.set_status(database, "updater", phase="waiting", **names)
            told = time.monotonic()
        time.sleep(POLL_SECONDS)


def orders_something(ranked: Sequence[Ranking]) -> bool:
    """Whether any ranking prefers an answer to another."""
    return any(len(set(ranking.ranks)) > 1 for ranking in ranked)


def one_round(
    config: FeedbackUpdateConfig, database: Database, number: int, labels: list[Label]
) -> int:
    """Train and publish; the number of labels it learnt from.

    A reward model under PPO's gate publishes nothing: the round waits for more labels.
    """
    started = time.monotonic()
    folder = stages.round_dir(config, number)
    folder.mkdir(parents=True, exist_ok=True)
    snapshot = write_snapshot(folder, labels)

    def tell(phase: str) -> None:
        figures.set_status(database, "updater", phase=phase, round=number)

    tell("reward")
    for member in range(config.ensemble):
        reward.run(stages.reward_stage(config, number, member))
    done = known(read_done(stages.reward_model(config, number, 0)))
    accuracy = done["heldout"]["eval/accuracy"]
    if accuracy < config.ppo.min_reward_accuracy and not config.ppo.force:
        refuse(config, database, number, snapshot["labels"], accuracy)
        # The next try learns from more labels, and must not resume this one's stages.
        shutil.rmtree(folder)
        return snapshot["labels"]
    tell("ppo")
    ppo.run(stages.ppo_stage(config, number))
    tell("evaluate")
    body: dict[str, Any] = measure(config, database, number) | snapshot
    figures.add_round(database, number, body | {"seconds": time.monotonic() - started})
    forget_snapshot(folder)
    gold = f"gold {body['gold']['mean']:.3f}, " if body["gold"] else ""
    say(
        f"feedback: round {number}: {body['labels']} labels, reward model {accuracy:.3f}, {gold}"
        f"KL {body['kl']['mean']:.2f}, {time.monotonic() - started:.0f} s"
    )
    fill_alone(config, database, number)
    return snapshot["labels"]


def refuse(
    config: FeedbackUpdateConfig, database: Database, number: int, labels: int, accuracy: float
) -> None:
    """Tell the operator and, on the dashboard, those who label, why there is no policy."""
    gate, more = config.ppo.min_reward_accuracy, config.labels_per_round
    say(
        f"feedback: round {number}: the reward model orders {accuracy:.3f} of held-out pairs "
        f"as labelled, under ppo.min_reward_accuracy={gate}: it waits for {more} more labels"
    )
    measured = against_people(config, number)
    body = {"labels": labels, "accuracy": accuracy, "half_width": measured["accuracy_ci"]}
    add_refusal(database, number, body | {"pairs": measured["pairs"], "gate": gate, "wait": more})


def forget_snapshot(folder: Path) -> None:
    """Labels stay in the store alone, where they can be deleted on request.

    The rows of a published round can be made again from there: labels.json has their last number.
    """
    for name in ("train.jsonl", "heldout.jsonl"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)


def fill_alone(config: FeedbackUpdateConfig, database: Database, number: int) -> None:
    """Fill the queue from a round's policy, if no answering process does."""
    if somebody_answers(database):
        return
    figures.set_status(database, "updater", phase="sample", round=number)
    for _ in fill(config, database, number, load_policy(config, number)):
        pass


def write_snapshot(folder: Path, labels: Sequence[Label]) -> dict[str, int]:
    """The round's data, once: a round that is started again learns from the same labels."""
    done = folder / "labels.json"
    if not done.exists():
        ranked = rankings(labels)
        repaired = sum(label.repaired for label in labels)
        if repaired:
            say(f"feedback: {repaired} labels held half a character, which is U+FFFD in the rows")
        for name, out in (("heldout", True), ("train", False)):
            rows = [ranking_row(r) for r in ranked if is_heldout(r.prompt) == out]
            write_atomically(folder / f"{name}.jsonl", to_lines(rows))
        counted = sum(label.kind != "skip" for label in labels)
        last = max(label.number for label in labels)
        # Last: rows without it are half a snapshot, and are written again.
        write_atomically(done, json.dumps({"labels": counted, "last_label": last}))
    return json.loads(done.read_text())


# --- measuring ------------------------------------------------------------------------------------


def measure(config: FeedbackUpdateConfig, database: Database, number: int) -> dict[str, Any]:
    """The figures of a round for the dashboard; with the first, those of the SFT model too."""
    prompts = [row.prompt for row in read_prompts(stages.data(config) / "prompts_evaluation.jsonl")]
    prompts = prompts[: config.evaluation_prompts]
    model = load_trained(stages.reward_model(config, number, 0), flag="reward", kind="scalar")
    gold = read_task(config.task, config.source).gold if config.gold else unknown_gold
    settings = EvaluateConfig(
        best_of=(1,),
        sampling=config.sampling,
        prompt_length=config.ppo.prompt_length,
        response_length=config.ppo.response_length,
        batch_size=min(128, config.evaluation_prompts),
    )
    sft = load_trained(stages.sft(config), flag="run")
    settings = fit_prompts(
        settings,
        map(Prompt, prompts),
        sft.tokenizer,
        trained=(stages.sft(config),),
        context=min(sft.model.context, model.model.context),
        stage="feedback",
    )
    answer = make_answer(settings, make_parallel(config.ppo.parallel), sft, [model], gold)
    key = jax.random.key(config.seed)
    if number == 1:
        first = answer(sft, prompts, key, n=1)
        body = described(first) | {"labels": 0, "samples": [], "accuracy": None}
        figures.add_round(database, 0, body)
    answers = answer(load_policy(config, number), prompts, key, n=1)
    before, after = figures.read_rounds(database)[-1], described(answers)
    heldout = known(read_done(stages.reward_model(config, number, 0)))["heldout"]
    return (
        after
        | {"accuracy": heldout["eval/accuracy"], "samples": beside(prompts, before, after)}
        | against_people(config, number)
    )


def unknown_gold(prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Not a number for each answer: nobody asked for gold scores."""
    return np.full(len(texts), np.nan)


def described(answers: Answers) -> dict[str, Any]:
    """The figures of a policy, and its first answers."""
    gold = answers.gold[:, 0]
    return {
        "gold": mean_ci(gold) if np.isfinite(gold).all() else None,
        "score": mean_ci(answers.scores[:, 0]),
        "kl": mean_ci(answers.kl[:, 0]),
        "length": mean_ci(answers.length[:, 0]),
        "texts": [group[0] for group in answers.texts[:SHOWN]],
        "text_gold": gold[:SHOWN].tolist() if np.isfinite(gold).all() else None,
        "text_score": answers.scores[:SHOWN, 0].tolist(),
    }


def beside(prompts: Sequence[str | Conversation], before: dict, after: dict) -> list[dict]:
    """Answers of two rounds to the same prompts, with the scores of each where there are any."""
    names = {"text_gold": "gold", "text_score": "score"}
    known = [name for name in names if before.get(name) and after[name]]
    return [
        {"prompt": as_text(prompt), "before": before["texts"][n], "after": after["texts"][n]}
        | {names[name]: [before[name][n], after[name][n]] for name in known}
        for n, prompt in enumerate(prompts[: len(before["texts"])])
    ]


def against_people(config: FeedbackUpdateConfig, number: int) -> dict[str, Any]:
    """How the reward model orders held-out pairs: of all labelers, and of each one's own.

    ``accuracy_ci`` and ``ci`` are half-widths of 95 % intervals, from the spread between prompts.
    """
    compared, _ = read_rankings(stages.round_dir(config, number) / "heldout.jsonl")
    scores = scores_of(
        config, stages.reward_model(config, number, 0), [ranking.row for ranking in compared]
    )
    # By prompt first: pairs of one prompt hang together, and the interval is over prompts.
    counts: dict[str | None, dict[str, tuple[float, int]]] = defaultdict(dict)
    for row, ranking in zip(scores, compared, strict=True):
        ranks = np.full(len(row), -1)
        ranks[: len(ranking.row.ranks)] = ranking.row.ranks
        accuracy = pair_accuracy(row[None], ranks[None])
        prompt = as_text(ranking.row.prompt)
        for who in (None, ranking.labeler) if accuracy.pairs else ():
            right, pairs = counts[who].get(prompt, (0.0, 0))
            right += accuracy.overall * accuracy.pairs
            counts[who][prompt] = right, pairs + accuracy.pairs
    shares = {who: figures.ratio([*by_prompt.values()]) for who, by_prompt in counts.items()}
    _, pairs, half_width = shares.pop(None)
    labelers = {
        who: {"accuracy": right / pairs, "pairs": pairs, "ci": half}
        for who, (right, pairs, half) in sorted(shares.items())
    }
    return {"accuracy_ci": half_width, "pairs": pairs, "labelers": labelers}
