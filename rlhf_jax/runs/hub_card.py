"""The model card of an export: README.md, as the hub shows it, from the run's own records.

What was not recorded is said to be missing. Paths are cut to their last part: nothing of the
folders of a person is published.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import counted
from rlhf_jax.runs.kept_steps import kept_step
from rlhf_jax.runs.lineage import (
    PARENTS,
    Evaluated,
    Figure,
    Link,
    evaluated,
    licence_of,
    named,
    parent_of,
    rewards_of,
    runs_behind,
)

MAKES = {
    "pretrain": "a language model, trained from nothing on text",
    "sft": "a language model, trained on demonstrations",
    "reward": "a reward model: one number says how good an answer is to its prompt",
    "ppo": "a policy, trained by reinforcement learning (PPO or one of its kin)",
    "dpo": "a policy, trained on ranked answers (DPO or one of its kin)",
    "average": "an average of the parameters of several models",
    "convert": "a model that others trained",
}
"""What the stages make."""
AS = {
    "lm": ("text-generation", "AutoModelForCausalLM"),
    "scalar": ("text-classification", "AutoModelForSequenceClassification"),
}
"""The task, and the class of transformers, of each kind of model."""


class Export(NamedTuple):
    """What is exported, as the card describes it."""

    name: str
    source: Path
    part: str
    kind: str
    parameters: int
    context: int
    dtype: str


def write_card(
    folder: Path, export: Export, *, licence: str = "", evaluations: Sequence[Path] = ()
) -> None:
    """Write README.md into ``folder``. Raises InputError as ``evaluated`` does."""
    links = runs_behind(export.source)
    found = evaluated(export.source, evaluations) if export.part == "model" else []
    first = parent_of(links[-1].run) if links else export.source
    base_licence = None if first is None else licence_of(first)
    parts = (
        front_matter(export, links, licence or base_licence),
        introduction(export, links),
        training(links),
        results(links, found),
        commands(links),
        limits(export, links, found),
        licences(licence, base_licence),
    )
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line for part in parts for line in part)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def front_matter(export: Export, links: Sequence[Link], licence: str | None) -> Iterator[str]:
    """What the hub sorts models by."""
    yield "---"
    if licence:
        yield f"license: {licence}"
    adapter = export.part == "adapter"
    yield f"library_name: {'peft' if adapter else 'transformers'}"
    yield f"pipeline_tag: {AS[export.kind][0]}"
    yield "tags:"
    yield from (f"- {tag}" for tag in ["rlhf_jax", *(links[0].run.stage for _ in links[:1])])
    yield from ("---", "")


def introduction(export: Export, links: Sequence[Link]) -> Iterator[str]:
    """What it is, and how it is loaded."""
    stage = links[0].run.stage if links else "convert"
    what = MAKES.get(stage, f"the model of a run of {stage}")
    if export.part == "value":
        what = "the value network of a policy's training: one number says what an answer will earn"
    if export.part == "adapter":
        what = f"low-rank adapters (LoRA) of {what}"
    yield from (f"# {export.name}", "")
    kept = kept_step(export.source)
    of = f", step {kept.step} of its training" if kept else ""
    yield f"This is {what}{of}. It has {export.parameters:,} parameters, a context of"
    yield f"{export.context:,} tokens, and is stored in {export.dtype}. It was made by rlhf_jax."
    yield ""
    if export.part != "adapter":
        loader = AS[export.kind][1]
        yield "```python"
        yield f"from transformers import AutoTokenizer, {loader}"
        yield f'model = {loader}.from_pretrained("PATH")'
        yield 'tokenizer = AutoTokenizer.from_pretrained("PATH")'
        yield from ("```", "")


def training(links: Sequence[Link]) -> Iterator[str]:
    """What it was trained from and on, stage by stage."""
    yield from ("## What it was made from", "")
    if not links:
        yield from ("No record of its training lies beside it.", "")
        return
    for link in [*reversed(links), *rewards_of(links[0].run)]:
        run, done = link.run, link.run.done or {}
        yield f"### {run.stage}"
        yield ""
        counts = [counted(done[unit], unit[:-1]) for unit in ("steps", "episodes") if unit in done]
        tokens = [f"{done['tokens']:,} tokens"] if "tokens" in done else []
        state = "" if run.done else ", not finished"
        yield f"- {', '.join([*counts, *tokens, seed_of(link)])}{state}"
        for label, model in run.models.items():
            if not label.endswith("[settings]"):
                yield f"- {label}: {last(model.path)} (sha256 {model.digest[:12]})"
        for label, data in (run.data or {}).items():
            yield f"- {label}: {last(data.path)} (sha256 {data.digest[:12]})"
        if run.data is None:
            yield "- its data were not recorded"
        for label, report in done.items():
            if isinstance(report, Mapping) and {"kept", "left_out", "cut"} <= report.keys():
                yield f"- rows of {label.replace('_', ' ')}: {rows_of(report)}"
        yield from (f"- after a divergence: {last(str(again))}" for again in run.retuned)
        yield ""
    if parent_of(links[-1].run) is None and named(links[-1].run, PARENTS):
        yield from ("What the first of these began with does not lie there any more.", "")


def seed_of(link: Link) -> str:
    """The seed that a run drew from."""
    seed = link.run.config.get("run", {}).get("seed")
    return "no seed" if seed is None else f"seed {seed}"


def rows_of(report: Mapping[str, Any]) -> str:
    """How many rows were kept, left out and cut."""
    words = [f"{report['kept']:,} kept"]
    words += [f"{count:,} left out ({why})" for why, count in report["left_out"].items()]
    words += [f"{count:,} with a cut {part}" for part, count in report["cut"].items()]
    return ", ".join(words)


def results(links: Sequence[Link], found: Sequence[Evaluated]) -> Iterator[str]:
    """Figures with seeds and intervals."""
    yield from ("## Figures", "")
    heldout = (links[0].run.done or {}).get("heldout", {}) if links else {}
    if heldout:
        yield f"On held-out rows after training ({seed_of(links[0])}; no interval was recorded):"
        yield ""
        yield from table([Figure(name, value) for name, value in heldout.items()])
    for each in found:
        seeds = f"seed{'s' * (len(each.seeds) > 1)} {', '.join(map(str, each.seeds))}"
        over = (
            "seeds"
            if len(each.seeds) > 1
            else "prompts; what another seed would change is not in them"
        )
        yield f"Evaluated on {each.prompts:,} held-out prompts of the task {each.task}, compared"
        yield f"with {each.baseline} ({seeds}). 95 % intervals are over {over}."
        yield ""
        yield from table(each.figures)
    if not found and not heldout:
        yield from ("It was not evaluated, as far as its records tell.", "")


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """A figure a row."""
    yield from ("| | | 95 % interval |", "| --- | --- | --- |")
    for name, mean, low, high in figures:
        known = low is not None and high is not None and math.isfinite(low)
        between = f"{number(low)} to {number(high)}" if known else ""
        yield f"| {name} | {number(mean)} | {between} |"
    yield ""


def number(value: float | None) -> str:
    """Four digits."""
    return "" if value is None else f"{value:.4g}"


def commands(links: Sequence[Link]) -> Iterator[str]:
    """How it is made again."""
    if not links:
        return
    yield from ("## Commands", "")
    for link in [*reversed(links), *rewards_of(links[0].run)]:
        git = link.record.get("git")
        commit = "at a commit that is not known"
        if git:
            commit = f"at commit {git['sha']}" + (
                ", with changes that are not in it" * git["dirty"]
            )
        versions = link.record.get("versions") or {}
        libraries = ", ".join(
            f"{name} {versions[name]}" for name in ("python", "jax") if name in versions
        )
        devices = ", ".join(
            dict.fromkeys(x.partition(" ")[2] for x in link.record.get("devices", ()))
        )
        yield f"{link.run.stage}, {commit} ({libraries}; {devices}):"
        yield from ("", "```bash", command(link.record.get("argv", ())), "```", "")


def command(argv: Sequence[str]) -> str:
    """The command line as it is typed in a clone; paths of a machine by their last part."""
    if not argv:
        return "# not recorded"
    program = Path(argv[0])
    called = ["python", "-m", f"experiments.{program.stem}"]
    start = called if program.parent.name == "experiments" else ["python", last(argv[0])]
    return shlex.join([*start, *map(last, argv[1:])])


def last(path: str) -> str:
    """A path of this machine without the folders above; others as they are."""
    flag, equals, value = path.partition("=") if path.startswith("-") else ("", "", path)
    return f"{flag}{equals}{Path(value).name if Path(value).is_absolute() else value}"


def limits(export: Export, links: Sequence[Link], found: Sequence[Evaluated]) -> Iterator[str]:
    """What is not known, and what it was not made for."""
    yield from ("## Limits", "")
    done = (links[0].run.done or {}) if links else {}
    lengths = ", ".join(f"{name} {value}" for name, value in done.get("lengths", {}).items())
    if lengths:
        yield f"- It was trained on so many tokens ({lengths}) and has seen no longer texts."
    if any(len(each.seeds) == 1 for each in found):
        yield "- One seed was evaluated: another may give other figures."
    if links and links[0].run.stage == "ppo":
        yield "- Scores by the reward that it was trained against tell how far it was optimised,"
        yield "  and not how good its answers are."
    if export.kind == "scalar":
        yield "- It knows answers like those that it was trained on. A policy that is trained"
        yield "  against it finds others."
    yield "- Whether it is true, harmless or free of bias was not measured for this card."
    yield ""


def licences(given: str, base: str | None) -> Iterator[str]:
    """What is known of licences."""
    yield from ("## Licence", "")
    if given:
        yield f"{given}, as whoever exported it says."
    elif base:
        yield f"{base}, as the card of the model that it was made from says."
    else:
        yield "Not stated. The licences of the model that it was made from, and of its data, apply."
    if given and base and base != given:
        yield f"The card of the model that it was made from says {base}."
