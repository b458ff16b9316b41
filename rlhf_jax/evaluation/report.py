"""The report of finished or half-finished runs as one page: its parts, its numbers, its HTML.

Reads no files: records come in (``experiments/report.py`` reads them), HTML and CSV texts go out.
Runs with equal config apart from the seed form a group, shown as mean ± 95 % interval over seeds.
What a page says of the stages and the policies is in ``report_stages`` and ``report_policies``.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from rlhf_jax.evaluation.figures import Panel, draw, legend, to_csv
from rlhf_jax.evaluation.metrics import mean_ci

Row = Mapping[str, Any]


class StageRecord(NamedTuple):
    """What one stage left in its folder."""

    done: Row | None
    """Its summary, or None when it has not finished."""
    metrics: Sequence[Row]
    samples: Sequence[Row]


class RunRecord(NamedTuple):
    name: str
    facts: Mapping[str, str]
    """Name → value of what identifies the run: date, commit, seed, hardware ..."""
    missing: Sequence[str]
    """What is not there, in words."""
    stages: Mapping[str, StageRecord]


class Group(NamedTuple):
    """Runs that differ in their seed only."""

    label: str
    """What sets it apart from other groups."""
    runs: Sequence[RunRecord]


Groups = Sequence[Group]


class Table(NamedTuple):
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The first cell of a row is its header."""


class Answer(NamedTuple):
    text: str
    figures: str


class SideBySide(NamedTuple):
    caption: str
    policies: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Answer]]]
    """(prompt, one answer of each policy)"""


class Section(NamedTuple):
    anchor: str
    title: str
    text: Sequence[str]
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    samples: SideBySide | None = None


TITLES = {
    "pretrain": "pretraining",
    "sft": "SFT",
    "sft_without_mix": "SFT without pretraining mix",
    "comparisons": "comparisons",
    "reward": "reward model",
    "ppo": "PPO",
    "ppo_without_ptx": "PPO without ptx",
    "evaluate": "evaluation",
}
"""Folder of a stage (or policy) → what it is called."""
HUES = {"sft": 0, "ppo": 1, "ppo_without_ptx": 2, "sft_without_mix": 3, "reward": 4, "pretrain": 5}
"""Folder of a stage (or policy) → its colour all over the page, when there is one group."""


# --- numbers --------------------------------------------------------------------------------------


def look_up(record: Any, *path: str) -> Any:
    """``record[path[0]][path[1]]...``, or None where a partial record ends."""
    for name in path:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def done_figures(group: Group, stage: str, *path: str) -> list[Any]:
    """A figure of a stage's summary in every run of the group that has it."""
    found = [look_up(run.stages[stage].done, *path) for run in group.runs if stage in run.stages]
    return [value for value in found if value is not None]


def estimate(values: Sequence[Any]) -> Row | None:
    """One figure of several runs, each {"mean", "ci"} or a number, None if absent.

    Over seeds when several runs have it; a single run keeps its own interval (over prompts).
    """
    found = [v if isinstance(v, Mapping) else {"mean": v} for v in values if v is not None]
    if len(found) < 2:
        return found[0] if found else None
    return mean_ci([v["mean"] for v in found])


def show(figure: Row | float | int | None, *, sign: bool = False) -> str:
    """ "0.912 ± 0.034"; digits by magnitude; a dash for what is not there."""
    figure = figure if isinstance(figure, Mapping) else {"mean": figure}
    mean, ci = figure["mean"], figure.get("ci")
    if mean is None or not np.isfinite(mean):
        return "–"
    digits = next((d for d, size in enumerate((1000, 100, 10)) if abs(mean) >= size), 3)
    digits = 0 if isinstance(mean, int) else digits
    # Equal figures of several seeds have an interval of rounding errors only.
    known = ci is not None and np.isfinite(ci) and ci > 1e-9 * max(abs(mean), 1)
    half = f" ± {ci:,.{digits}f}" if known else ""
    return f"{mean:{'+' if sign else ''},.{digits}f}{half}".replace("-", "−")


# --- text -----------------------------------------------------------------------------------------

BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Characters that could reorder or break what is shown, as marks such as ⟦U+202E⟧."""
    hidden = lambda c: c in BIDI or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")
    return "".join(f"⟦U+{ord(c):04X}⟧" if hidden(c) else c for c in str(text))


def name_of(stage: str, group: Group, groups: Groups) -> str:
    """What a stage or policy is called, with its group if there are several."""
    title = TITLES.get(stage, stage.replace("best_of_", "best of "))
    return f"{title} · {group.label}" if len(groups) > 1 else title


# --- page -----------------------------------------------------------------------------------------


def render(title: str, lead: str, sections: Sequence[Section]) -> tuple[str, dict[str, str]]:
    """(the page, {CSV file name: text}); the page needs no other file, no script, no network."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "visible": visible,
        "draw": lambda panel: Markup(draw(panel)),
        "legend": lambda panel: [(Markup(swatch), label) for swatch, label in legend(panel)],
    }
    source = files("rlhf_jax.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(title=title, lead=lead, sections=sections)
    return page, {f"{p.name}.csv": to_csv(p) for section in sections for p in section.panels}
