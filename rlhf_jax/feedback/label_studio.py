"""Label Studio's JSON export: the rankings of a task, one row for each annotation.

Read are ``<Ranker>`` (without buckets the list of ids in order, under the tag's own name; with them
one list each, best first as the file has them, and what shares a bucket ties) and ``<Pairwise>``.
Items that were left unplaced (``_``) are not ranked; cancelled annotations, drafts and predictions
are none.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_jax.data.files import type_name
from rlhf_jax.data.rows import RowError

UNPLACED = "_"
"""The column of what was put into no bucket."""
SIDES = {"left": (0, 1), "right": (1, 0)}
"""Ranks of the two, by which was selected."""
READ = ("ranker", "pairwise")

Row = dict[str, Any]


def label_studio_rows(
    row: Row, leave_out: Callable[[str], None], notes: Counter[str]
) -> list[tuple[str, Row]]:
    """(labeler, ranking as the stages read it) of each annotation. Raises RowError.

    ``leave_out`` is told why of each annotation, result and item that is not read; ``notes`` count
    in which order buckets were ranked.
    """
    for name, why in (("predictions", "prediction, not a person's"), ("drafts", "draft")):
        for _ in row.get(name) or ():
            leave_out(why)
    if not row.get("annotations"):
        leave_out("task without annotations")
    ranked = []
    for annotation in row.get("annotations") or ():
        ranking = _annotated(row["data"], annotation, leave_out, notes)
        if ranking is not None:
            ranked.append((_annotator(annotation), ranking))
    return ranked


def _annotator(annotation: Mapping[str, Any]) -> str:
    """A number, or with its details an object."""
    annotator = annotation.get("completed_by")
    annotator = annotator.get("id") if isinstance(annotator, Mapping) else annotator
    return "" if annotator is None else str(annotator)


def _annotated(
    data: Row, annotation: Any, leave_out: Callable[[str], None], notes: Counter[str]
) -> Row | None:
    if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result"), list):
        raise RowError("an annotation has no result, expected a list (of Label Studio's JSON)")
    if annotation.get("was_cancelled"):
        leave_out("cancelled annotation")
        return None
    results = []
    for result in annotation["result"]:
        if not isinstance(result, Mapping):
            raise RowError(f"a result is {type_name(result)}, expected an object")
        if result.get("type") in READ:
            results.append(result)
        else:
            leave_out(f"result of type {result.get('type')}")
    if not results:
        leave_out("annotation without a ranking")
        return None
    if len(results) > 1:
        names = ", ".join(str(result.get("from_name")) for result in results)
        raise RowError(f"an annotation has {len(results)} rankings ({names}), expected one")
    if results[0]["type"] == "pairwise":
        return _pair(data, results[0])
    return _ranking(data, results[0], leave_out, notes)


def _ranking(
    data: Row, result: Mapping, leave_out: Callable[[str], None], notes: Counter[str]
) -> Row | None:
    name, items = _items(data)
    ranks = _ranks(result, [str(item["id"]) for item in items], notes)
    placed = [item for item in items if str(item["id"]) in ranks]
    if len(placed) < 2:
        leave_out("annotation that places fewer than two items")
        return None
    for _ in range(len(items) - len(placed)):
        leave_out("item that was not placed")
    return _without(data, name) | {
        "responses": [_text(item) for item in placed],
        "ranks": [ranks[str(item["id"])] for item in placed],
    }


def _items(data: Row) -> tuple[str, list[Row]]:
    """The column of what was ranked: objects with an id each."""

    def is_items(value: Any) -> bool:
        if not isinstance(value, list) or not value:
            return False
        return all(isinstance(each, Mapping) and "id" in each for each in value)

    names = [name for name, value in data.items() if is_items(value)]
    if len(names) != 1:
        raise RowError(
            f"data: found {len(names)} lists of objects with id ({', '.join(names) or 'none'}), "
            "expected the one that was ranked"
        )
    (name,) = names
    if len({str(item["id"]) for item in data[name]}) < len(data[name]):
        raise RowError(f"data.{name}: an id occurs twice")
    return name, data[name]


def _ranks(result: Mapping, ids: Sequence[str], notes: Counter[str]) -> dict[str, int]:
    """The rank of each id that was placed."""
    order_given = _value(result).get("ranker")
    if isinstance(order_given, Mapping) and list(order_given) == [result.get("from_name")]:
        # No buckets: the list itself was put in order.
        order_given = next(iter(order_given.values()))
    if isinstance(order_given, list):
        buckets = [[answer] for answer in order_given]
    elif isinstance(order_given, Mapping):
        buckets = [names for bucket, names in order_given.items() if bucket != UNPLACED]
        # A guess, so it is said: some databases change the order of an object's keys.
        order = ", ".join(bucket for bucket in order_given if bucket != UNPLACED)
        notes[f"buckets are ranked as the file has them, best first: {order}"] += 1
    else:
        raise RowError("value.ranker: expected a list of ids, or one for each bucket")
    places = [(str(name), rank) for rank, names in enumerate(buckets) for name in names]
    wrong = [name for name, _ in places if name not in ids]
    if wrong:
        raise RowError(f"the ranking names {wrong[0]!r}, expected some of {', '.join(ids)}")
    if len(dict(places)) != len(places):
        raise RowError("the ranking names an item twice")
    return dict(places)


def _value(result: Mapping) -> Mapping:
    """What an annotator entered."""
    if not isinstance(result.get("value"), Mapping):
        found = type_name(result.get("value"))
        raise RowError(f"the value of a {result['type']} is {found}, expected an object")
    return result["value"]


def _text(item: Mapping) -> Any:
    """What an item shows; its title alone if it has nothing else."""
    texts = [item[name] for name in ("body", "title") if item.get(name) is not None]
    if not texts:
        raise RowError(f"the item {item['id']!r} has no body, expected its text there")
    return texts[0]


def _pair(data: Row, result: Mapping) -> Row:
    named = result.get("to_name", "")
    names = named.split(",") if isinstance(named, str) else list(named)
    names = [name.strip() for name in names]
    selected = _value(result).get("selected")
    if len(names) != 2 or not all(name in data for name in names) or selected not in SIDES:
        raise RowError(
            f"pairwise: found {selected!r} of {named!r}, expected left or right of two tags that "
            f"are named as their texts in data: {', '.join(data)}"
        )
    return _without(data, *names) | {
        "responses": [data[name] for name in names],
        "ranks": list(SIDES[selected]),
    }


def _without(data: Row, *names: str) -> Row:
    return {name: value for name, value in data.items() if name not in names}
