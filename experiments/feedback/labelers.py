"""Simulated labelers that work on a running site over HTTP, as people would.

Called by ``experiments.feedback`` (simulate). They share the gold score, but each has noise of
their own and a bias: a weight on the length of the answer that the gold scorer does not have.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.config import FeedbackSimulateConfig
from rlhf_jax.data.chat import as_text
from rlhf_jax.errors import RunError, check
from rlhf_jax.feedback import accounts, queue
from rlhf_jax.feedback.client import Client
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labelers import Score, SimulatedLabeler, calibrate_tau, score_gaps
from rlhf_jax.feedback.names import SIMULATED
from rlhf_jax.feedback.secret_files import is_there, read_secret, write_secret
from rlhf_jax.feedback.store import Database
from rlhf_jax.tasks.task import read_task

NOISE = (0.8, 1.25)
"""Noise of the most and the least careful one, as multiples of the calibrated noise."""
BIAS = (-0.03, 0.03)
"""Gold score per word of length, of the one who likes it short and the one who likes it long."""
PATIENCE = 600.0
CALIBRATION_TASKS = 200


def simulate(config: FeedbackSimulateConfig) -> None:
    """Label until stopped, as many as each round waits for."""
    check(bool(config.store) or config.run.is_dir(), f"--run {config.run}: no such folder")
    check(config.simulated > 0, "simulate needs --simulated N: how many labelers")
    database = open_database(config.place)
    tasks = wait_for_tasks(database)
    gold = read_task(config.task, config.source).gold
    lock = threading.Lock()

    def score(prompts, responses):
        with lock:  # the scorer is shared by threads
            return gold(prompts, responses)

    labelers = make_labelers(config, score, tasks)
    url = config.serve.url or f"http://{config.serve.host}:{config.serve.port}"
    threads = []
    for number, labeler in enumerate(labelers):
        token = labeler_token(config, database, number)
        work = (Client(url, token, patience=PATIENCE), labeler)
        threads.append(threading.Thread(target=keep_labelling, args=work, daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()


def keep_labelling(client: Client, labeler: SimulatedLabeler) -> None:
    """Label whenever ``update`` waits for labels."""
    while True:
        task = client.take() if client.status()["wanted"] else None
        if task is None:
            time.sleep(0.5)
        else:
            client.rank(task, labeler.rank(task.prompt, task.responses))


def make_labelers(
    config: FeedbackSimulateConfig, gold: Score, tasks: Sequence[queue.Task]
) -> list[SimulatedLabeler]:
    """Labelers of one gold score: noise and bias from one end of their ranges to the other.

    The noise in the middle makes two unbiased ones agree as often as InstructGPT's did on these
    tasks.
    """
    count, tie = config.simulated, config.labeler.tie_width
    responses = [[as_text(response.text) for response in task.responses] for task in tasks]
    scores = [
        gold([as_text(task.prompt)] * len(texts), texts)
        for task, texts in zip(tasks, responses, strict=True)
    ]
    tau = calibrate_tau(
        score_gaps(scores, responses), agreement=config.labeler.agreement, tie_width=tie
    )
    noise, bias = np.geomspace(*NOISE, count), np.linspace(*BIAS, count)
    # Not the most careful one always the one who likes it short.
    bias = np.random.default_rng(config.seed).permutation(bias)

    def biased(weight: float) -> Score:
        return lambda prompts, texts: (
            gold(prompts, texts) + weight * np.array([len(text.split()) for text in texts])
        )

    return [
        SimulatedLabeler(biased(float(bias[n])), tau=float(tau * noise[n]), tie_width=tie, seed=n)
        for n in range(count)
    ]


def labeler_token(config: FeedbackSimulateConfig, database: Database, number: int) -> str:
    """A simulated labeler's token, kept in the loop's folder so that it goes on after a stop."""
    path = Path(config.dir) / f"labeler_{number}.token"
    if not is_there(path):
        write_secret(path, accounts.add_program(database, f"{SIMULATED}{number}"))
    return read_secret(path)


def wait_for_tasks(database: Database) -> list[queue.Task]:
    """Tasks to calibrate on, as soon as there are any. Raises RunError after a while without."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        tasks = queue.open_tasks(database, most=CALIBRATION_TASKS)
        if tasks:
            return tasks
        time.sleep(0.5)
    raise RunError(f"no task was in the queue for {PATIENCE:g} s: is `update` or `sample` running?")
