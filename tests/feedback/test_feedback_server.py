"""Sixteen labelers at once, and a server that is killed again and again: no label is lost."""

import random
import signal
import threading
import time

import pytest
from feedback_site import fill, integrity, start_server, wait_for
from local_server import free_port

from rlhf_jax.feedback import accounts, queue
from rlhf_jax.feedback.client import Client
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.labels import read_labels

pytest.importorskip("uvicorn", reason="the server needs the extra feedback")
LABELERS, LABELS, KILLS = 16, 1000, 20


@pytest.mark.slow
@pytest.mark.multiprocess
def test_no_acknowledged_label_is_lost_when_the_server_is_killed(tmp_path):
    store = tmp_path / "store.sqlite"
    database = open_database(store)
    tasks = fill(database, LABELS)
    tokens = [accounts.add_labeler(database, f"L{n}")[1] for n in range(LABELERS)]
    port = free_port()
    acknowledged: list[tuple[str, str]] = []
    lock, failed = threading.Lock(), []

    def work(number: int) -> None:
        dice = random.Random(number)
        client = Client(f"http://127.0.0.1:{port}", tokens[number], patience=60.0)
        try:
            while (task := client.take()) is not None:
                ranks = [dice.randrange(4) for _ in task.responses]
                submission = f"{dice.getrandbits(128):032x}"
                client.rank(task, ranks, submission=submission)
                with lock:
                    acknowledged.append((submission, task.id))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(LABELERS)]
    dice, kills = random.Random(0), 0
    server = start_server(store, port)
    wait_for(port)
    for thread in threads:
        thread.start()
    # Each kill comes at a random moment after the server has taken a few more labels.
    while kills < KILLS:
        goal = len(acknowledged) + dice.randrange(5, LABELS // KILLS - 5)
        while len(acknowledged) < goal and any(thread.is_alive() for thread in threads):
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.02))
        server.send_signal(signal.SIGKILL)
        server.wait()
        kills += 1
        server = start_server(store, port)
        wait_for(port)
    for thread in threads:
        thread.join(120)
    server.terminate()
    server.wait(30)

    assert not failed and len(acknowledged) == LABELS
    labels = read_labels(database)
    with database.read() as rows:
        stored = rows("SELECT submission, task FROM label")
        kept = rows("SELECT id, labels FROM task")
    assert sorted((row["submission"], row["task"]) for row in stored) == sorted(acknowledged)
    assert sorted(label.task.id for label in labels) == sorted(tasks)  # each exactly once
    assert [row["labels"] for row in kept] == [1] * LABELS
    assert queue.count_open(database) == 0
    assert integrity(database) == "ok"
