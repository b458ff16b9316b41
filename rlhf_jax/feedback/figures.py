"""What the dashboard shows: pace, agreement between labelers, rounds, and who does what now."""

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

from rlhf_jax.feedback.labels import Label
from rlhf_jax.feedback.store import Database, StoreUnavailable
from rlhf_jax.feedback.texts import parse_body

PAPER_AGREEMENT = (0.726, 0.015)
"""InstructGPT's training labelers (Ouyang et al. 2022, §3.4): share and its half-width."""


class Agreement(NamedTuple):
    """Pairs that two labelers both order strictly, and how many of them alike."""

    alike: int
    pairs: int
    half_width: float
    """95 %, from the spread between tasks; NaN where there is none to go by."""

    @property
    def share(self) -> float:
        """Of the pairs that both order, those ordered alike; NaN without any."""
        return self.alike / self.pairs if self.pairs else float("nan")


def agreement(labels: Sequence[Label]) -> tuple[Agreement, dict[str, Agreement]]:
    """Of all labelers, and of each with the others."""
    tasks: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)
    for label in labels:
        if label.kind == "ranking":
            tasks[label.task.id].append((label.labeler, label.body["ranks"]))
    everyone: list[tuple[int, int]] = []
    counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for rankings in tasks.values():
        of_all, of_one = [0, 0], defaultdict(lambda: [0, 0])
        # Pairs of labelers who met on one task; each pair of answers that both ordered is one case.
        for (first, a), (second, b) in combinations(rankings, 2):
            alike, both = count_alike(a, b)
            for tally in (of_all, of_one[first], of_one[second]):
                tally[0] += alike
                tally[1] += both
        if of_all[1]:
            everyone.append((of_all[0], of_all[1]))
        for who, (alike, both) in of_one.items():
            if both:
                counts[who].append((alike, both))
    return Agreement(*ratio(everyone)), {
        who: Agreement(*ratio(tally_of_one)) for who, tally_of_one in counts.items()
    }


def count_alike(a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
    """(ordered alike, ordered strictly by both) of the pairs of two rankings."""

    def sign(ranks: Sequence[int], i: int, j: int) -> int:
        return (ranks[i] > ranks[j]) - (ranks[i] < ranks[j])

    products = [sign(a, i, j) * sign(b, i, j) for i, j in combinations(range(len(a)), 2)]
    return products.count(1), len(products) - products.count(0)


Number = TypeVar("Number", int, float)


def ratio(counts: Sequence[tuple[Number, int]]) -> tuple[Number, int, float]:
    """(Σ alike, Σ pairs, half-width of their ratio's 95 % interval) over tasks, or prompts.

    Pairs of one task are not independent, tasks are. The half-width is NaN for fewer than two, and
    where all are alike: ten of ten are no proof of a hundred of a hundred.
    """
    alike, pairs = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    n = len(counts)
    if n < 2:
        return alike, pairs, float("nan")
    share, mean = alike / pairs, pairs / n
    variance = sum((a - share * p) ** 2 for a, p in counts) / (n - 1) / n / mean**2
    return alike, pairs, 1.96 * variance**0.5 if variance > 0 else float("nan")


def per_hour(labels: Sequence[Label], *, hours: int, now: float) -> list[int]:
    """Labels of each of the last hours, the running one last."""
    ages = [int((now - label.created) // 3600) for label in labels]
    return [ages.count(age) for age in range(hours)][::-1]


class Pace(NamedTuple):
    """How much one labeler has done, and how quickly."""

    labeler: str
    account: str
    rankings: int
    skips: int
    demonstrations: int
    seconds: float | None
    """Median time per ranking."""


def paces(labels: Sequence[Label]) -> list[Pace]:
    """Who labelled how much, most first."""
    groups: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        groups[label.labeler].append(label)
    measured = []
    for labeler, own in groups.items():
        times = sorted(x.body["seconds"] for x in own if x.body.get("seconds") is not None)
        measured.append(
            Pace(
                labeler,
                own[0].account,
                sum(x.kind == "ranking" for x in own),
                sum(x.kind == "skip" for x in own),
                sum(bool(x.body.get("demonstration") or x.body.get("text")) for x in own),
                times[len(times) // 2] if times else None,
            )
        )
    return sorted(measured, key=lambda pace: -pace.rankings)


# --- what other processes tell --------------------------------------------------------------------


def set_status(database: Database, name: str, **body: Any) -> None:
    """What a process (updater, answerer) does now, and since when."""
    now = time.time()
    with database.write() as rows:
        before = rows("SELECT body FROM status WHERE name = :name", name=name)
        before = parse_body(before[0]["body"]) if before else {}
        same = all(before.get(key) == body.get(key) for key in ("phase", "round"))
        rows(
            """INSERT INTO status VALUES (:name, :now, :body)
                ON CONFLICT (name) DO UPDATE SET updated = :now, body = :body""",
            name=name,
            now=now,
            body=json.dumps({**body, "since": before.get("since", now) if same else now}),
        )


@contextlib.contextmanager
def alive(database: Database, name: str, *, every: float) -> Generator[None]:
    """Say every some seconds, from a thread, that the process of this name still runs."""
    ended = threading.Event()

    def tell():
        while not ended.wait(every):
            # A busy store is no reason to end: the next word comes soon.
            with contextlib.suppress(StoreUnavailable), database.write() as rows:
                sql = "UPDATE status SET updated = :now WHERE name = :name"
                rows(sql, name=name, now=time.time())

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def read_status(database: Database) -> dict[str, dict[str, Any]]:
    """What each process last said of itself, by its name, and when."""
    with database.read() as rows:
        status_rows = rows("SELECT * FROM status")
    return {
        row["name"]: parse_body(row["body"]) | {"updated": row["updated"]} for row in status_rows
    }


def add_round(database: Database, number: int, body: Mapping[str, Any]) -> None:
    """The figures of a finished round; done again after a crash, it replaces its own."""
    with database.write() as rows:
        rows(
            """INSERT INTO round VALUES (:number, :now, :body)
                ON CONFLICT (number) DO UPDATE SET created = :now, body = :body""",
            number=number,
            now=time.time(),
            body=json.dumps(body),
        )


def read_rounds(database: Database) -> list[dict[str, Any]]:
    """What came of each round, in their order."""
    with database.read() as rows:
        round_rows = rows("SELECT * FROM round ORDER BY number")
    return [parse_body(row["body"]) | {"round": row["number"]} for row in round_rows]
