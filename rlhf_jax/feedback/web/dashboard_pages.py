"""The dashboard: how labelling, agreement, reward model and policy go, live."""

import math
import time

from starlette.responses import Response

from rlhf_jax.feedback import accounts, figures
from rlhf_jax.feedback.labels import Label
from rlhf_jax.feedback.plots import plot
from rlhf_jax.feedback.queue import count_open
from rlhf_jax.feedback.web.site import Visit

HOURS = 24
SAMPLES = 6
SILENT_SECONDS = 120
"""A process that has said nothing for so long may be gone."""


def dashboard(visit: Visit) -> Response:
    """The page, or with ?part=figures what changes of it, for the script that keeps it live."""
    part = visit.request.query_params.get("part") == "figures"
    labels = visit.site.labels()
    rounds = figures.read_rounds(visit.database)
    everyone, each = figures.agreement(labels)
    return visit.page(
        "figures.html" if part else "dashboard.html",
        rankings=sum(label.kind == "ranking" for label in labels),
        demonstrations=sum(pace.demonstrations for pace in figures.paces(labels)),
        open_tasks=count_open(visit.database),
        agreement=everyone,
        paper=figures.PAPER_AGREEMENT,
        hours=_hours(labels),
        labelers=_labelers(visit, labels, each, rounds),
        rounds=rounds,
        score_plot=_by_round(rounds, "gold", "score"),
        kl_plot=_by_round(rounds, "kl"),
        accuracy_plot=_accuracy(rounds),
        processes=figures.read_status(visit.database),
        silent=SILENT_SECONDS,
        now=time.time(),
        samples=rounds[-1]["samples"][:SAMPLES] if rounds else [],
    )


def _hours(labels: list[Label]) -> list[dict]:
    counts = figures.per_hour(labels, hours=HOURS, now=time.time())
    most = max([*counts, 1])
    return [
        {"ago": HOURS - 1 - n, "count": count, "height": 100 * count / most}
        for n, count in enumerate(counts)
    ]


def _labelers(visit: Visit, labels: list[Label], agreements: dict, rounds: list[dict]):
    """A row for each; names are for the administrator, the others see pseudonyms."""
    names = {row["id"]: row["name"] for row in accounts.list_accounts(visit.database)}
    accuracy = rounds[-1].get("labelers", {}) if rounds else {}
    rows = []
    for pace in figures.paces(labels):
        knows = visit.account.is_admin or pace.account == visit.account.id
        rows.append(
            pace._asdict()
            | {
                "name": names.get(pace.account, "") if knows else "",
                "mine": pace.account == visit.account.id,
                "agreement": agreements.get(pace.labeler),
                "accuracy": accuracy.get(pace.labeler),
            }
        )
    return rows


def _by_round(rounds: list[dict], *names: str):
    series = [
        [(float(row["round"]), *_interval(row[name])) for row in rounds if row.get(name)]
        for name in names
    ]
    return plot(*series, zero=True)


def _interval(figure: dict) -> tuple[float, float]:
    return figure["mean"], figure.get("ci", 0.0)


def _accuracy(rounds: list[dict]):
    series = [
        (float(row["round"]), row["accuracy"], 0.0)
        for row in rounds
        if row.get("accuracy") is not None and math.isfinite(row["accuracy"])
    ]
    return plot(series)
