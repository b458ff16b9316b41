"""The report of finished or half-finished runs as one page: its parts, its numbers, its HTML.

Reads no files: records come in (``experiments/report.py`` reads them), HTML and CSV texts go out.
Runs with equal config apart from the seed form a group, shown as mean ± 95 % interval over seeds.
What a page says is in the modules ``report_*``: the first sentence, the policies, the answers,
trade-offs, what alignment cost, the rounds with people, the stages, how to make it again.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import ascii_lowercase
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from rlhf_jax.evaluation.metrics import mean_ci
from rlhf_jax.report.drawing import as_link, draw, legend, standalone
from rlhf_jax.report.figures import COLORS, DARK_COLORS, Panel, to_csv

Row = Mapping[str, Any]


class StageRecord(NamedTuple):
    """What one stage left in its folder."""

    done: Row | None
    """Its summary, or None when it has not finished."""
    metrics: Sequence[Row]
    samples: Sequence[Row]


class Recipe(NamedTuple):
    """What a run is made again with; parts that were not recorded are empty."""

    commands: Sequence[str] = ()
    commit: str = ""
    local_changes: bool = False
    """The code was not that of the commit."""
    task: str = ""
    version: str = ""
    """Of the package."""
    configs: Mapping[str, str] = {}
    """Stage → its fields, a line each."""


class Feedback(NamedTuple):
    """Rounds of labels by people, as the store of the labelling page has them."""

    rounds: Sequence[Row]
    labelers: int
    agreement: Row | None
    """Share of pairs that two labelers order alike: mean, ci and n; None if no two met."""
    refusals: Sequence[Row] = ()
    """Rounds that trained no policy: accuracy, half_width, pairs, gate, labels, round."""


class RunRecord(NamedTuple):
    """What is known of one run: a chain, or a stage alone."""

    name: str
    facts: Mapping[str, str]
    """Name → value of what identifies the run: date, commit, seed, hardware ..."""
    missing: Sequence[str]
    """What is not there, in words."""
    stages: Mapping[str, StageRecord]
    recipe: Recipe = Recipe()
    feedback: Feedback | None = None
    """None where no people were asked."""


class Group(NamedTuple):
    """Runs that differ in their seed only."""

    label: str
    """What sets it apart from other groups."""
    runs: Sequence[RunRecord]


Groups = Sequence[Group]


class Table(NamedTuple):
    """A table with its caption."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The first cell of a row is its header."""
    folded: bool = False
    """Only the caption is seen until it is opened."""


class Answer(NamedTuple):
    """A text, and the figures below it."""

    text: str
    figures: str


class SideBySide(NamedTuple):
    """Answers of policies to the same prompts, folded under the caption."""

    caption: str
    policies: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Answer]]]
    """(prompt, one answer of each policy)"""


class Listing(NamedTuple):
    """Text as it is typed or saved: a command, a config, a reference."""

    title: str
    text: str
    folded: bool


class Section(NamedTuple):
    """A part of the page: text, figures, tables, answers, listings."""

    anchor: str
    title: str
    text: Sequence[str]
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[SideBySide] = ()
    listings: Sequence[Listing] = ()
    caption: str = ""
    """Of the panels, which are one numbered figure; the title where it is empty."""

    @property
    def holds_something(self) -> bool:
        """Whether there is more than text."""
        return bool(self.panels or self.tables or self.samples or self.listings)


TITLES = {
    "pretrain": "pretraining",
    "sft": "SFT",
    "sft_without_mix": "SFT without pretraining mix",
    "comparisons": "comparisons",
    "reward": "reward model",
    "ppo": "PPO",
    "ppo_without_ptx": "PPO without ptx",
    "dpo": "DPO",
    "evaluate": "evaluation",
}
"""Folder of a stage (or policy) → what it is called."""
HUES = {
    **{"sft": 0, "ppo": 1, "dpo": 1, "ppo_without_ptx": 2},
    **{"sft_without_mix": 3, "reward": 5, "pretrain": 4},
}
"""Folder of a stage (or policy) → its colour all over the page, when there is one group."""


# --- numbers --------------------------------------------------------------------------------------


def look_up(record: Any, *path: str) -> Any:
    """``record[path[0]][path[1]]...``, or None where a partial record ends."""
    for name in path:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def done_figures(group: Group, stage: str, *path: str) -> list[Any]:
    """A figure of a stage's summary in every run of the group that has it."""
    figures = [look_up(run.stages[stage].done, *path) for run in group.runs if stage in run.stages]
    return [value for value in figures if value is not None]


def estimate(values: Sequence[Any]) -> Row | None:
    """One figure of several runs, each {"mean", "ci"} or a number, None if absent.

    Over seeds when several runs have it; a single run keeps its own interval (over prompts).
    """
    figures = [v if isinstance(v, Mapping) else {"mean": v} for v in values]
    figures = [figure for figure in figures if figure.get("mean") is not None]
    if len(figures) < 2:
        return figures[0] if figures else None
    # Of several seeds the intervals over prompts are left: a seed is one draw, whatever it was
    # measured on.
    return mean_ci([v["mean"] for v in figures])


# --- text -----------------------------------------------------------------------------------------

BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Characters that could reorder or break what is shown, as marks such as ⟦U+202E⟧."""

    def hidden(c: str) -> bool:
        return c in BIDI or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")

    return "".join(f"⟦U+{ord(c):04X}⟧" if hidden(c) else c for c in str(text))


BROUGHT_IN = "the model as it came"
"""What stands in sft/ where a chain began with a model that was there already (``init``)."""


def is_brought_in(stages: Mapping[str, StageRecord]) -> bool:
    """Whether that is so."""
    return "sft" in stages and look_up(stages["sft"].done, "source") is not None


def name_of(stage: str, group: Group, groups: Groups) -> str:
    """What a stage or policy is called, with its group if there are several."""
    title = TITLES.get(stage, stage.replace("best_of_", "best of "))
    if stage == "sft" and any(is_brought_in(run.stages) for run in group.runs):
        title = BROUGHT_IN
    return f"{title} · {group.label}" if len(groups) > 1 else title


# --- page -----------------------------------------------------------------------------------------


def figure_columns(panels: Sequence[Panel]) -> int:
    """How many panels stand beside each other on a wide screen; a single one has its caption there.

    Rows are full, or the caption fills the last one.
    """
    return len(panels) if len(panels) < 3 else 2 if len(panels) == 4 else 3


def caption_width(panels: Sequence[Panel]) -> int:
    """Columns left beside the last panel for the figure's caption; 0 gives it a row of its own."""
    if any(panel.rows for panel in panels):
        return 0
    if len(panels) == 1:
        return 1
    columns = figure_columns(panels)
    return -len(panels) % columns


INTERVAL = re.compile(r" (± [\d.,]+)")


def cell(text: str) -> Markup:
    """A table's cell; its interval may stand on a line of its own, and is not broken."""
    return Markup(INTERVAL.sub(r' <span class="ci">\1</span>', str(escape(visible(text)))))


def prose(text: str) -> str:
    """A sentence in which no line ends between a number and its sign."""
    return visible(text).replace(" %", "\u00a0%").replace("± ", "±\u00a0")


def letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ...: of a panel in its figure."""
    rest, last = divmod(number, 26)
    return (letter(rest - 1) if rest else "") + ascii_lowercase[last]


def render(
    title: str, lead: Sequence[str], sections: Sequence[Section], *, facts: str = ""
) -> tuple[str, dict[str, str]]:
    """(the page, {CSV file name: text}); the page needs no other file, no script, no network.

    The paragraphs of ``lead`` stand first, the first of them larger; ``facts`` is the line below.
    """
    # Autoescaped and strict: texts of models are no markup, and a missing value is an error, not
    # "".
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "visible": visible,
        "prose": prose,
        "cell": cell,
        "letter": letter,
        "columns": figure_columns,
        "caption_width": caption_width,
        "legend": lambda panel: [(Markup(swatch), label) for swatch, label in legend(panel)],
        "as_link": lambda drawn, panel: as_link(standalone(panel, str(drawn))),
    }
    source = files("rlhf_jax.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        title=title,
        lead=lead,
        facts=facts,
        sections=sections,
        draw=lambda panel, columns: Markup(draw(panel, columns)),
        colors=COLORS,
        dark_colors=DARK_COLORS,
    )
    return page, {f"{p.name}.csv": to_csv(p) for section in sections for p in section.panels}
