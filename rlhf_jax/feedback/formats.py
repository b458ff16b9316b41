"""Labels out of the store: native rankings, TRL, Label Studio and Argilla, as plain JSON.

Labelers go by their pseudonyms. The native rows and TRL's are what ``sft``, ``reward`` and DPO
read; the other two are what those tools export, written without them. Conversations are lists of
messages.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

from rlhf_jax.data.answers import joined
from rlhf_jax.data.chat import Conversation, as_json, as_text
from rlhf_jax.feedback.labels import Label, Ranking, Written, rankings, written

Row = dict[str, Any]


def to_lines(rows: Iterable[Row]) -> str:
    """Lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def answer_json(prompt: str | Conversation, answer: str | Conversation) -> str | list[Row]:
    """An answer beside its prompt: the assistant's message after a conversation, else its text."""
    return as_json(joined(answer, prompt) if isinstance(answer, str) else answer)


def native(labels: Sequence[Label]) -> list[Row]:
    """One row per labeler and task, with everything that was entered."""
    rows = [ranking_row(ranking) for ranking in rankings(labels)]
    entered = {(x.task.id, x.labeler): x.body for x in labels if x.kind == "ranking"}
    for row in rows:
        if row["source"] == "ranking":
            body = entered[row["task_id"], row["labeler"]]
            names = ("quality", "flags", "notes", "prompt_flags", "use_case", "demonstration")
            row |= {name: body[name] for name in (*names, "seconds")}
    return rows


def ranking_row(ranking: Ranking) -> Row:
    """A ranking as ``rlhf_jax.data.formats`` reads it, with sampled ids where all are known."""
    row: Row = {
        "prompt": as_json(ranking.prompt),
        "responses": [as_json(response.text) for response in ranking.responses],
        "ranks": list(ranking.ranks),
        "labeler": ranking.labeler,
        "task_id": ranking.task,
        "round": ranking.round,
        "source": ranking.source,
    }
    if all(response.tokens for response in ranking.responses):
        row["response_tokens"] = [list(response.tokens or ()) for response in ranking.responses]
    return row


def trl_preference(labels: Sequence[Label]) -> list[Row]:
    """Each pair that a labeler ordered; ties order none."""
    return [
        pair_row(ranking, *sorted(pair, key=ranking.ranks.__getitem__))
        for ranking in rankings(labels)
        for pair in combinations(range(len(ranking.ranks)), 2)
        if ranking.ranks[pair[0]] != ranking.ranks[pair[1]]
    ]


def pair_row(ranking: Ranking, better: int, worse: int) -> Row:
    """Two answers of a ranking as TRL reads them, with how many ranks lie between."""
    chosen, rejected = (
        answer_json(ranking.prompt, ranking.responses[n].text) for n in (better, worse)
    )
    return {
        "prompt": as_json(ranking.prompt),
        "chosen": chosen,
        "rejected": rejected,
        "margin": ranking.ranks[worse] - ranking.ranks[better],
        "labeler": ranking.labeler,
    }


def demonstrations(labels: Sequence[Label]) -> list[Row]:
    """TRL's prompt and completion: for ``sft``."""
    return [written_row(demonstration) for demonstration in written(labels)]


def written_row(row: Written) -> Row:
    """A person's own answer as TRL reads it."""
    completion = answer_json(row.prompt, row.completion)
    return row._asdict() | {"prompt": as_json(row.prompt), "completion": completion}


def trl_unpaired(labels: Sequence[Label]) -> list[Row]:
    """Thumbs: prompt, completion and whether it was liked."""
    return [
        {
            "prompt": as_json(label.task.prompt),
            "completion": answer_json(
                label.task.prompt, label.task.responses[label.body["response"]].text
            ),
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
        texts = tuple(as_text(response.text) for response in ranking.responses)
        items = [
            {"id": str(n), "title": chr(ord("A") + n), "body": text} for n, text in enumerate(texts)
        ]
        data = {"prompt": as_json(ranking.prompt), "items": items, "task_id": ranking.task}
        task = tasks.setdefault((ranking.task, texts), {"data": data, "annotations": []})
        buckets: dict[str, list[str]] = {}
        for rank in sorted(set(ranking.ranks)):
            same = [str(n) for n, own in enumerate(ranking.ranks) if own == rank]
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
        texts = tuple(as_text(response.text) for response in ranking.responses)
        record = records.setdefault(
            (ranking.task, texts),
            {
                "prompt": as_json(ranking.prompt),
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
