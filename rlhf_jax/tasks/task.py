"""What a task is: what a policy learns from, what it is asked, and who judges its answers.

A task is one module with ``build(source) -> Task``, deterministic and quick; docs/tasks.md shows
how to write one. Experiments are handed the function; only the command line has a name:

    task = find_task("translation")(Path("data"))      # rlhf_jax/tasks/translation.py
    task = find_task("my_task.py")(Path("my_data"))    # a file of one's own
    write(task, Path("runs/x/data"))                   # the files that the stages read
"""

import importlib
import importlib.util
import json
import pkgutil
import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

import rlhf_jax.tasks
from rlhf_jax.data.chat import as_json, as_text
from rlhf_jax.data.files import SEPARATOR, write_atomically
from rlhf_jax.data.formats import Demonstration
from rlhf_jax.data.splits import normalised
from rlhf_jax.errors import InputError
from rlhf_jax.python_files import load_file
from rlhf_jax.text.duplicates import check_no_leak

Judge = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "B"]]
"""``(prompts, responses) -> scores``, higher is better."""
Figure = Mapping[str, float | str]
"""``mean``, and where there is one ``ci`` (half-width of the 95 % interval), ``signature``, ..."""
Measure = Callable[[Sequence[str], Sequence[str]], Mapping[str, Figure]]
"""``(prompts, responses) -> figures by name``: what papers on the task report."""
Baseline = Callable[[Sequence[str]], list[str]]
"""``prompts -> responses`` without any model of ours."""

LEARNT = ("comparisons", "ppo")
"""Sets of prompts that something trains on; every other set is for evaluation."""


class Task(NamedTuple):
    """Everything that the stages need to know of a task."""

    demonstrations: list[Demonstration]
    """What people answered; a completion begins with the space between prompt and response."""
    prompts: dict[str, list[str]]
    """comparisons, ppo, validation (for tuning) and evaluation, in random order, disjoint; other
    names are further sets to evaluate on."""
    corpora: dict[str, list[str]]
    """Documents to learn language from: pretraining, its mix in SFT, ptx."""
    heldout: dict[str, list[str]]
    """Documents of the same corpora that nothing learns from."""
    gold: Judge
    """Stands for people: ranks comparisons, and judges policies in the end."""
    judges: dict[str, Judge]
    """Further judges, which rank nothing."""
    metrics: Measure
    baselines: dict[str, Baseline]
    words: Callable[[str], list[str]]
    """The words of a text, for diversity, repetition and length."""
    verifiable: bool = False
    """The gold score is 1 for a right answer and 0 for any other, so that pass@k can be told."""
    problems: Callable[[str], Collection[Hashable]] = lambda text: ()
    """The problems that a text asks or answers, however it words them: one of the prompts to
    evaluate on must not stand in anything that is learnt from."""


Build = Callable[[Path], Task]


def no_metrics(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Figure]:
    """For a task that is measured by gold score and judges alone."""
    return {}


def find_task(name: str) -> Build:
    """``build`` of the task that the command line names: a module here, or a .py file."""
    if name.endswith(".py"):
        return _build_of(load_file(Path(name), flag=f"--task {name}"), name)
    if not name.isidentifier() or importlib.util.find_spec(f"rlhf_jax.tasks.{name}") is None:
        known = ", ".join(task_names())
        raise InputError(f"--task {name}: expected one of {known}, or a .py file of your own")
    try:
        module = importlib.import_module(f"rlhf_jax.tasks.{name}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"--task {name} needs the package {error.name}: pip install -e '.[eval]'"
        ) from error
    return _build_of(module, name)


@lru_cache(maxsize=1)
def read_task(name: str, source: Path) -> Task:
    """``find_task(name)(source)``, made once for all stages of a chain that ask for it."""
    return find_task(name)(source)


def task_names() -> list[str]:
    """The modules of this folder that build a task, found without importing them."""
    names = []
    for module in pkgutil.iter_modules(rlhf_jax.tasks.__path__):
        text = (Path(rlhf_jax.tasks.__path__[0]) / f"{module.name}.py").read_text("utf-8")
        if re.search(r"^def build\(|import \w+ as build$", text, re.MULTILINE):
            names.append(module.name)
    return names


def _build_of(module, name: str) -> Build:
    if not hasattr(module, "build"):
        raise InputError(f"--task {name}: expected a function build(source) -> Task in it")
    return module.build


def write(task: Task, folder: Path) -> None:
    """Demonstrations and prompts as .jsonl, text as .txt; each file whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(as_json(row.prompt), as_json(row.completion)) for row in task.demonstrations]
    rows = {"demonstrations": [{"prompt": p, "completion": c} for p, c in pairs]} if pairs else {}
    for name, prompts in task.prompts.items():
        rows[f"prompts_{name}"] = [{"prompt": prompt} for prompt in prompts]
    for name, part in rows.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        write_atomically(folder / f"{name}.jsonl", "".join(lines))
    for kind, texts in (("corpus", task.corpora), ("heldout", task.heldout)):
        for name, documents in texts.items():
            write_atomically(
                folder / f"{kind}_{name}.txt", f"\n{SEPARATOR}\n".join(documents) + "\n"
            )


def check_corpora(task: Task, wanted: Sequence[str], name: str) -> None:
    """Raise InputError unless the task has the corpora that a config mixes."""
    missing = [corpus for corpus in wanted if corpus not in task.corpora]
    if missing:
        raise InputError(
            f"corpora: task {name} has {', '.join(task.corpora)}, but {missing[0]} was asked for "
            f"(a preset that fits: --task {name} without --config, or --config configs/{name}.py)"
        )


def check_leaks(task: Task, name: str) -> None:
    """Raise InputError if held-out text, or a held-out prompt, is in what is learnt."""
    learnt = [text for documents in task.corpora.values() for text in documents]
    learnt += [as_text(row.prompt) + as_text(row.completion) for row in task.demonstrations]
    heldout = [text for documents in task.heldout.values() for text in documents]
    tested = []
    for part, prompts in task.prompts.items():
        (learnt if part in LEARNT else tested).extend(prompts)
    try:
        check_no_leak(learnt, heldout + tested)
    except InputError as error:
        raise InputError(f"task {name}: {error}") from None
    # Above, a short prompt would have to be a whole demonstration, with its completion. Punctuation
    # counts here, as in the splits: "a mess," and "a mess." ask for different continuations.
    learnt_prompts = {normalised(as_text(row.prompt)) for row in task.demonstrations}
    again = [prompt for prompt in tested if normalised(prompt) in learnt_prompts]
    if again:
        raise InputError(
            f"task {name}: {len(again)} of {len(tested)} prompts to evaluate on are prompts of "
            f"demonstrations, such as {again[0][:120]!r}"
        )
    _check_problems(task, learnt, tested, name)


def _check_problems(task: Task, learnt: Sequence[str], tested: Sequence[str], name: str) -> None:
    asked = {problem: prompt for prompt in tested for problem in task.problems(prompt)}
    for text in learnt if asked else ():
        known = sorted(asked[problem] for problem in asked.keys() & set(task.problems(text)))
        if known:
            raise InputError(
                f"task {name}: the problem of the prompt to evaluate on {known[0][:120]!r} is in "
                f"what is learnt, such as {text[:120]!r}"
            )


def check_prompts(task: Task, prompts: Sequence[str]) -> None:
    """Raise InputError if the gold scorer cannot judge a prompt: before sampling, not after it."""
    task.gold(prompts, [""] * len(prompts))
