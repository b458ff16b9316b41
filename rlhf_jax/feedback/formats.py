"""Labels out of and into the store: native rankings, TRL, Label Studio and Argilla, as plain JSON.

Labelers go by their pseudonyms. The native rows and TRL's are what ``sft``, ``reward`` and DPO
read; the other two are what those tools export, written and read without them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from rlhf_jax.errors import InputError
from rlhf_jax.feedback.fields import MOST_RESPONSES
from rlhf_jax.feedback.labels import Label, Ranking, Written, rankings, written

Row = dict[str, Any]


class Imported(NamedTuple):
    """A ranking from elsewhere."""

    prompt: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    labeler: str
    """As the file calls them; "" if it does not say."""


# --- out ------------------------------------------------------------------------------------------


def native(labels: Sequence[Label]) -> list[Row]:
    """One row per labeler and task, with everything that was entered."""
    rows = [ranking_row(each) for each in rankings(labels)]
    entered = {(x.task.id, x.labeler): x.body for x in labels if x.kind == "ranking"}
    for row in rows:
        if row["source"] == "ranking":
            body = entered[row["task_id"], row["labeler"]]
            names = ("quality", "flags", "notes", "prompt_flags", "use_case", "demonstration")
            row |= {name: body[name] for name in (*names, "seconds")}
    return rows


def ranking_row(ranking: Ranking) -> Row:
    """A ranking as ``rlhf_jax.data.formats`` reads it, with sampled ids where all are known."""
    row = {
        "prompt": ranking.prompt,
        "responses": [each.text for each in ranking.responses],
        "ranks": list(ranking.ranks),
        "labeler": ranking.labeler,
        "task_id": ranking.task,
        "round": ranking.round,
        "source": ranking.source,
    }
    if all(each.tokens for each in ranking.responses):
        row["response_tokens"] = [list(each.tokens) for each in ranking.responses]
    return row


def trl_preference(labels: Sequence[Label]) -> list[Row]:
    """Each pair that a labeler ordered; ties order none."""
    return [
        {
            "prompt": ranking.prompt,
            "chosen": ranking.responses[min(pair, key=ranking.ranks.__getitem__)].text,
            "rejected": ranking.responses[max(pair, key=ranking.ranks.__getitem__)].text,
            "margin": abs(ranking.ranks[pair[0]] - ranking.ranks[pair[1]]),
            "labeler": ranking.labeler,
        }
        for ranking in rankings(labels)
        for pair in combinations(range(len(ranking.ranks)), 2)
        if ranking.ranks[pair[0]] != ranking.ranks[pair[1]]
    ]


def demonstrations(labels: Sequence[Label]) -> list[Row]:
    """TRL's prompt and completion: for ``sft``."""
    return [written_row(each) for each in written(labels)]


def written_row(row: Written) -> Row:
    return row._asdict()


def trl_unpaired(labels: Sequence[Label]) -> list[Row]:
    """Thumbs: prompt, completion and whether it was liked."""
    return [
        {
            "prompt": label.task.prompt,
            "completion": label.task.responses[label.body["response"]].text,
            "label": label.body["up"],
            "labeler": label.labeler,
        }
        for label in labels
        if label.kind == "thumb"
    ]


def label_studio(labels: Sequence[Label]) -> list[Row]:
    """Tasks with annotations of a ``<Ranker>`` whose buckets are the ranks (so ties stay)."""
    tasks: dict[tuple, Row] = {}
    for ranking in rankings(labels):
        texts = tuple(each.text for each in ranking.responses)
        items = [
            {"id": str(n), "title": chr(ord("A") + n), "body": text} for n, text in enumerate(texts)
        ]
        data = {"prompt": ranking.prompt, "items": items, "task_id": ranking.task}
        task = tasks.setdefault((ranking.task, texts), {"data": data, "annotations": []})
        buckets: dict[str, list[str]] = {}
        for rank in sorted(set(ranking.ranks)):
            same = [str(n) for n, each in enumerate(ranking.ranks) if each == rank]
            buckets[f"rank {rank + 1}"] = same
        result = {
            "from_name": "rank",
            "to_name": "items",
            "type": "ranker",
            "value": {"ranker": buckets},
        }
        task["annotations"].append({"completed_by": ranking.labeler, "result": [result]})
    return list(tasks.values())


def argilla(labels: Sequence[Label]) -> list[Row]:
    """Flattened records: response-1 ... response-K, and each labeler's order.

    Argilla's rankings have ranks that may be equal, numbered from 1.
    """
    records: dict[tuple, Row] = {}
    for ranking in rankings(labels):
        texts = tuple(each.text for each in ranking.responses)
        record = records.setdefault(
            (ranking.task, texts),
            {
                "prompt": ranking.prompt,
                **{f"response-{n}": text for n, text in enumerate(texts, 1)},
                "ranking.responses": [],
                "ranking.responses.users": [],
                "ranking.responses.status": [],
            },
        )
        order = sorted(range(len(texts)), key=ranking.ranks.__getitem__)
        ranked = [{"value": f"response-{n + 1}", "rank": ranking.ranks[n] + 1} for n in order]
        record["ranking.responses"].append(ranked)
        record["ranking.responses.users"].append(ranking.labeler)
        record["ranking.responses.status"].append("submitted")
    return list(records.values())


WRITERS: dict[str, Callable[[Sequence[Label]], list[Row]]] = {
    "native": native,
    "demonstrations": demonstrations,
    "trl-preference": trl_preference,
    "trl-unpaired": trl_unpaired,
    "label-studio": label_studio,
    "argilla": argilla,
}

# --- in -------------------------------------------------------------------------------------------


def read_ranking(row: Mapping[str, Any]) -> list[Imported]:
    """The rankings of one row, recognised by its keys. Raises InputError saying what is wrong."""
    try:
        if "responses" in row and "ranks" in row:
            made = [_imported(row, row["responses"], row["ranks"], row.get("labeler", ""))]
        elif "chosen" in row and "rejected" in row:
            pair = (row["chosen"], row["rejected"])
            made = [_imported(row, pair, (0, 1), row.get("labeler", ""))]
        elif "data" in row:
            made = list(_from_label_studio(row))
        elif "ranking.responses" in row:
            made = list(_from_argilla(row))
        else:
            raise InputError(
                f"found the keys {', '.join(row)}, expected responses and ranks, chosen and "
                "rejected, data (Label Studio), or ranking.responses (Argilla)"
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not a row of the format its keys name ({error!r})") from None
    return made


def _imported(row: Mapping, responses: Iterable, ranks: Iterable, labeler: Any) -> Imported:
    prompt, texts, ranks = row["prompt"], tuple(responses), tuple(ranks)
    if not all(isinstance(text, str) for text in (prompt, *texts)):
        raise InputError("found a prompt or answer that is not text")
    if not 2 <= len(texts) <= MOST_RESPONSES or len(ranks) != len(texts):
        raise InputError(
            f"found {len(texts)} answers and {len(ranks)} ranks, expected 2 to {MOST_RESPONSES}"
        )
    if not all(isinstance(rank, int) and rank >= 0 for rank in ranks):
        raise InputError(f"found ranks {list(ranks)}, expected whole numbers from 0 on")
    return Imported(prompt, texts, ranks, str(labeler))


def _from_label_studio(row: Mapping[str, Any]) -> Iterable[Imported]:
    data, ids = row["data"], [str(item["id"]) for item in row["data"]["items"]]
    texts = [item["body"] for item in data["items"]]
    for annotation in row.get("annotations", ()):
        for result in annotation["result"]:
            if result.get("type") != "ranker":
                continue
            given = result["value"]["ranker"]
            buckets = given.values() if isinstance(given, dict) else [[each] for each in given]
            rank_of = {str(name): rank for rank, names in enumerate(buckets) for name in names}
            ranks = [rank_of[name] for name in ids]
            yield _imported(data, texts, ranks, annotation.get("completed_by", ""))


def _from_argilla(row: Mapping[str, Any]) -> Iterable[Imported]:
    names = sorted(
        (name for name in row if name.startswith("response-") and name[9:].isdigit()),
        key=lambda name: int(name[9:]),
    )
    given = row["ranking.responses"]
    users = row.get("ranking.responses.users") or [""] * len(given)
    status = row.get("ranking.responses.status") or ["submitted"] * len(given)
    for ranking, user, state in zip(given, users, status, strict=True):
        if state != "submitted":
            continue
        # A list of names is an order; with ranks there may be ties.
        ranked = {
            each["value"] if isinstance(each, dict) else each: (
                each["rank"] - 1 if isinstance(each, dict) else place
            )
            for place, each in enumerate(ranking)
        }
        yield _imported(row, [row[name] for name in names], [ranked[name] for name in names], user)
