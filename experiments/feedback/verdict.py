"""People as judges of policies: an evaluation's answers on the page, and who won.

Called by ``experiments.feedback`` (ask, verdict). ``--run`` is the evaluation's folder; the labels
have a store of their own in it, so that no reward model learns from prompts it is tested on.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rlhf_jax.config import FeedbackAskConfig, FeedbackVerdictConfig
from rlhf_jax.data.files import read_rows, write_atomically
from rlhf_jax.data.splits import share
from rlhf_jax.errors import check
from rlhf_jax.evaluation.numbers import show
from rlhf_jax.feedback import queue
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.fields import MOST_RESPONSES
from rlhf_jax.feedback.labels import read_labels
from rlhf_jax.feedback.verdict import SCORERS, Answer, Answers, is_settled, verdict
from rlhf_jax.text.personal_data import scrub_typed


def ask(config: FeedbackAskConfig) -> None:
    """Put the answers into the queue, a task per prompt; what is in it already stays."""
    answers = read_answers(config)
    database = open_database(config.place)
    asked = set(queue.prompts_asked(database))
    new = [
        make_task(prompt, policies, wanted=2 if share(prompt, "overlap") < config.overlap else 1)
        for prompt, policies in answers.items()
        if prompt not in asked and not is_settled(policies)
    ]
    queue.add_tasks(database, new)
    settled = sum(map(is_settled, answers.values()))
    tell(
        f"{len(new)} new tasks, {queue.count_open(database)} open; on {settled} of "
        f"{len(answers)} prompts all said the same"
    )


def make_task(prompt: str, policies: Mapping[str, Answer], *, wanted: int) -> queue.NewTask:
    """Equal answers are one; policies that gave it share it."""
    authors: dict[str, list[str]] = {}
    for policy, answer in policies.items():
        authors.setdefault(answer.text, []).append(policy)
    responses = [queue.Response(text, ", ".join(names)) for text, names in authors.items()]
    return queue.NewTask(prompt, responses, wanted=wanted)


def announce(config: FeedbackVerdictConfig) -> None:
    """Print who won and write it to people.json in the evaluation's folder."""
    answers = read_answers(config)
    check(
        bool(config.store) or Path(config.place).is_file(),
        f"--run {config.run}: nothing was asked about this evaluation yet",
    )
    figures = verdict(answers, read_labels(open_database(config.place, create=False)))
    write_atomically(config.run / "people.json", json.dumps(figures, indent=1) + "\n")
    tell("{labelers} labelers, {rankings} rankings, {prompts} prompts".format_map(figures))
    if figures["agreement"]["n"]:
        agreed = show(figures["agreement"], decimals=2)
        tell(f"labelers agree on {agreed} of the pairs that two ordered")
    for policy, of in figures["policies"].items():
        won = of["win_rate"]
        tell(
            f"{policy} wins against {figures['baseline']} on {show(won, decimals=2)} "
            f"({won['wins']} wins, {won['ties']} ties, {won['losses']} losses, p = {won['p']:.2g})"
        )
    for scorer, title in SCORERS.items():
        sides = figures["scorers"][scorer]
        if sides["n"]:
            agreed = show(sides, decimals=2)
            tell(f"{title} sides with people on {agreed} of the pairs that they order")


def tell(text: str) -> None:
    """One line in the terminal."""
    print(f"feedback: {text}", file=sys.stderr)


def read_answers(config: FeedbackVerdictConfig) -> Answers:
    """The first ``tasks_per_round`` prompts, as labelers see them, with each policy's answer."""
    check((config.run / "DONE").is_file(), f"--run {config.run}: expected a finished evaluation")
    path = config.run / "samples.jsonl"
    clean = scrub_typed if config.serve.scrub else str
    answers: dict[str, dict[str, Answer]] = {}
    for where, row in read_rows(path):
        missing = {"policy", "prompt", "response", *SCORERS} - row.keys()
        check(not missing, f"{where}: has no {', '.join(sorted(missing))}; is it an evaluation's?")
        scores = {name: row[name] for name in SCORERS}
        # A prompt that is asked twice counts once.
        answers.setdefault(clean(row["prompt"]), {}).setdefault(
            row["policy"], Answer(row["response"], scores)
        )
    known = list(dict.fromkeys(policy for policies in answers.values() for policy in policies))
    chosen = config.policies or tuple(known)
    absent = [name for name in chosen if name not in known]
    check(
        not absent, f"policies: found no {', '.join(absent)} in {path}; it has {', '.join(known)}"
    )
    check(
        2 <= len(set(chosen)) <= MOST_RESPONSES,
        f"policies: found {len(set(chosen))} ({', '.join(chosen)}), expected 2 to "
        f"{MOST_RESPONSES} to compare",
    )
    prompts = list(answers)[: config.tasks_per_round]
    return {prompt: {name: answers[prompt][name] for name in chosen} for prompt in prompts}
