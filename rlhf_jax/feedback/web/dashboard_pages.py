"""The dashboard: how labelling, agreement, reward model and policy go, live."""

import math
import time

from starlette.responses import Response

from rlhf_jax.feedback import accounts, figures
from rlhf_jax.feedback.labels import Label
from rlhf_jax.feedback.plots import Plot, plot
from rlhf_jax.feedback.queue import count_open
from rlhf_jax.feedback.standing import SILENT_SECONDS, Refusal, read_refusals, read_standing
from rlhf_jax.feedback.web.site import Visit

HOURS = 24
SAMPLES = 6
LOW_AGREEMENT = 0.65
"""Under it labelers seem to have different things in mind; InstructGPT's agreed on 0.73."""


def dashboard(visit: Visit) -> Response:
    """The page, or with ?part=figures what changes of it, for the script that keeps it live."""
    part = visit.request.query_params.get("part") == "figures"
    labels = visit.site.labels()
    rounds = figures.read_rounds(visit.database)
    refusals = read_refusals(visit.database)
    everyone, of_labelers = figures.agreement(labels)
    paces = figures.paces(labels)
    return visit.page(
        "figures.html" if part else "dashboard.html",
        rankings=sum(label.kind == "ranking" for label in labels),
        demonstrations=sum(pace.demonstrations for pace in paces),
        open_tasks=count_open(visit.database),
        agreement=everyone,
        low_agreement=everyone.pairs > 0 and everyone.share < LOW_AGREEMENT,
        paper=figures.PAPER_AGREEMENT,
        hours=_hours(labels),
        labelers=_labelers(visit, paces, of_labelers, rounds),
        rounds=rounds,
        history=history(rounds, refusals),
        refusal=pending(rounds, refusals),
        standing=read_standing(visit.database),
        gold_plot=_by_round(rounds, "gold"),
        score_plot=_by_round(rounds, "score"),
        kl_plot=_by_round(rounds, "kl"),
        accuracy_plot=_accuracy(rounds, refusals),
        processes=figures.read_status(visit.database),
        silent=SILENT_SECONDS,
        now=time.time(),
        samples=rounds[-1]["samples"][:SAMPLES] if rounds else [],
    )


def pending(rounds: list[dict], refusals: list[Refusal]) -> Refusal | None:
    """The last try of a round that has not come out yet, if it was refused."""
    newest = rounds[-1]["round"] if rounds else 0
    late = [refusal for refusal in refusals if refusal.round > newest]
    return late[-1] if late else None


def history(rounds: list[dict], refusals: list[Refusal]) -> list[dict]:
    """Every round with its figures, and the tries that were refused where they happened."""
    published = [
        {
            "round": row["round"],
            "labels": row.get("labels", 0),
            "accuracy": _share(row),
            "gold": row.get("gold"),
            "kl": row.get("kl"),
            "seconds": row.get("seconds"),
            "refused": False,
        }
        for row in rounds
    ]
    refused = [
        {
            "round": refusal.round,
            "labels": refusal.labels,
            "accuracy": (refusal.accuracy, refusal.half_width),
            "gold": None,
            "kl": None,
            "seconds": None,
            "refused": True,
        }
        for refusal in refusals
    ]
    return sorted([*published, *refused], key=lambda row: (row["round"], row["labels"]))


def _share(row: dict) -> tuple[float, float] | None:
    """The reward model's accuracy of a round with the half-width of its interval."""
    accuracy = row.get("accuracy")
    if accuracy is None or not math.isfinite(accuracy):
        return None
    return accuracy, row.get("accuracy_ci", math.nan)


def _hours(labels: list[Label]) -> list[dict]:
    counts = figures.per_hour(labels, hours=HOURS, now=time.time())
    most = max([*counts, 1])
    return [
        {"ago": HOURS - 1 - n, "count": count, "height": 100 * count / most}
        for n, count in enumerate(counts)
    ]


def _labelers(visit: Visit, paces: list[figures.Pace], agreements: dict, rounds: list[dict]):
    """A row for each; names are for the administrator, the others see pseudonyms."""
    names = {row["id"]: row["name"] for row in accounts.list_accounts(visit.database)}
    accuracy = rounds[-1].get("labelers", {}) if rounds else {}
    rows = []
    for pace in paces:
        knows = visit.labeler.is_admin or pace.account == visit.labeler.id
        rows.append(
            pace._asdict()
            | {
                "name": names.get(pace.account, "") if knows else "",
                "mine": pace.account == visit.labeler.id,
                "agreement": agreements.get(pace.labeler),
                "accuracy": accuracy.get(pace.labeler),
            }
        )
    return rows


def _by_round(rounds: list[dict], name: str) -> Plot | None:
    by_round = [(row["round"], row[name]) for row in rounds if row.get(name)]
    return plot(
        [(n, float(figure["mean"]), float(figure.get("ci", math.nan))) for n, figure in by_round]
    )


def _accuracy(rounds: list[dict], refusals: list[Refusal]) -> Plot | None:
    """A share, drawn from 0 to 1 beside chance. A refused try counts until its round is out."""
    shares = [(row["round"], _share(row)) for row in rounds]
    last = pending(rounds, refusals)
    if last is not None:
        shares.append((last.round, (last.accuracy, last.half_width)))
    points = [(number, *share) for number, share in shares if share is not None]
    return plot(points, limits=(0.0, 1.0), reference=0.5)
