"""A reward model against what people preferred: how right, how sure, how much of it is length.

    python -m experiments.audit --reward runs/reward --data pref_llmbar pref_hh_harmless
    python -m experiments.audit --reward runs/reward --data comparisons.jsonl --out audit.json
    python -m experiments.audit --reward runs/fold0 runs/fold1 --data rank_mqm_wmt23_zh_en

A named set is scored on its held-out part (all of it if nothing is to be learnt from it), beside a
bag of words that learnt from the set's training part and beside always taking the longer answer.
Runs of a cross-validation (``experiments.reward --folds N --fold I``) are each scored on the fold
that they have not seen, and pooled.
Scores are those of training, whose differences are log-odds: what ``--unit-std`` did to them
afterwards is taken back, as far as a run folder tells. Their variance within prompts is that under
the policy where the policy has sampled the answers (``experiments.compare``).
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table

from rlhf_jax.cli import main
from rlhf_jax.config import AuditConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.data.formats import read_comparisons
from rlhf_jax.errors import InputError, check
from rlhf_jax.evaluation.numbers import show
from rlhf_jax.evaluation.preference_audit import (
    accuracy,
    advantage,
    audit,
    ordered_pairs,
    tie_margins,
)
from rlhf_jax.inference.reward_scores import fold_held_out, make_reward_scorer
from rlhf_jax.models.heads import make_scalar_model
from rlhf_jax.runs.fit import row_lengths
from rlhf_jax.runs.kept_steps import run_of, score_gain
from rlhf_jax.runs.trained import Trained, load_trained, trained_lengths
from rlhf_jax.tasks.answer_words import train_answer_words
from rlhf_jax.tasks.preferences import Fold, Preferences, is_name, load_preferences
from rlhf_jax.training.parallel import make_parallel


class Scored(NamedTuple):
    """What a reward model, or each of several on its fold, says of one set."""

    scores: Float[np.ndarray, "P K"]
    """As trained; 0 where a response is absent."""
    lengths: Int[np.ndarray, "P K"]
    """In tokens."""
    ranks: Int[np.ndarray, "P K"]
    """−1 where a response is absent."""
    words: Float[np.ndarray, "P K"] | None
    """Scores of the bag of words that learnt from the same rows; None where nothing is learnt."""
    subsets: list[str]
    groups: list[str]
    ties: Float[np.ndarray, "T"]
    """Margins of the pairs that people called equal."""
    agreement: float | None


def run(config: AuditConfig) -> dict:
    """The table of each set, printed, and written to ``out`` if there is one."""
    if config.out is not None:
        check_writable(config.out, *map(Path, config.data))
    folds = {name: [fold_held_out(path, name) for path in config.reward] for name in config.data}
    check_folds(folds)
    # All that is asked for is found before the first model is loaded
    # Each with the lengths that it was trained with: others would cut other answers.
    lengths = [with_lengths(config, path) for path in config.reward]
    sets = {name: [find(name, fold, config) for fold in held] for name, held in folds.items()}
    parts = defaultdict(list)
    for n, (path, fitted) in enumerate(zip(config.reward, lengths, strict=True)):
        reward = load_trained(path, flag="reward", kind="scalar")
        reward.model.check_context(
            prompt_length=fitted.prompt_length, response_length=fitted.response_length
        )
        for name in config.data:
            parts[name].append(scored(reward, sets[name][n], fitted, score_gain(path)))
    results = {name: summary(pooled(parts[name])) for name in config.data}
    print_table(results)
    if config.out is not None:
        write_atomically(config.out, json.dumps(results, indent=1) + "\n")
    return results


def check_folds(folds: dict[str, list[Fold | None]]) -> None:
    """Raise InputError where several models' results would be no one cross-validation."""
    for name, held in folds.items():
        numbers = {fold.number for fold in held if fold}
        several = {fold.folds for fold in held if fold}
        found = ", ".join(f"{f.number} of {f.folds}" if f else "none" for f in held)
        check(
            len(held) == 1 or (len(numbers) == len(held) and len(several) == 1),
            f"--reward names {len(held)} models: expected runs that held out different folds of "
            f"{name}, found {found}",
        )


def with_lengths(config: AuditConfig, path: Path) -> AuditConfig:
    """``config`` with the lengths that the reward model was trained with where none are given."""
    missing = [n for n in ("prompt_length", "response_length") if getattr(config, n) is None]
    check(run_of(path).exists(), f"--reward {path}: nothing is there")
    trained = trained_lengths(path)
    if missing and not trained.keys() >= set(missing):
        raise InputError(
            f"{path} does not say with what lengths it was trained: "
            "give --prompt-length and --response-length"
        )
    return replace(config, **{name: trained[name] for name in missing})


def find(name: str, fold: Fold | None, config: AuditConfig) -> Preferences:
    """The pairs of a named set, or of a file of comparisons, which is held out as a whole."""
    if is_name(Path(name)):
        return load_preferences(name, config.source, fold)
    rows = read_comparisons(name, column_names(config.columns))
    return Preferences(
        [], rows, ["all"] * len(rows), [as_text(row.prompt) for row in rows], [], None
    )


def scored(reward: Trained, preferences: Preferences, config: AuditConfig, gain: float) -> Scored:
    """The reward model's scores of held-out answers, in its training's units."""
    score = make_reward_scorer(
        make_scalar_model(reward.model, reward.vocab_size),
        reward.tokenizer,
        make_parallel(config.parallel),
        **row_lengths(config),
        batch_size=config.batch_size,
    )
    scores, lengths, ranks, report = score(reward.params, preferences.heldout)
    print(
        f"{report.kept} prompts, {report.cut.get('prompt', 0)} cut at their beginning, "
        f"{report.cut.get('response', 0)} with answers cut at their end"
    )
    words, ties = None, np.zeros(0)
    if preferences.train:
        words = np.nan_to_num(train_answer_words(preferences.train)(preferences.heldout))
    if preferences.ties:
        # In the units of training, in which a difference is a log-odds.
        ties = np.diff(score(reward.params, preferences.ties).scores, axis=1)[:, 0] / gain
    return Scored(
        np.nan_to_num(scores) / gain,
        lengths,
        ranks,
        words,
        preferences.subsets,
        preferences.groups,
        ties,
        preferences.agreement,
    )


def pooled(parts: Sequence[Scored]) -> Scored:
    """All rows of a cross-validation: pairs are of one prompt, hence of one model."""
    most = max(part.ranks.shape[1] for part in parts)

    def joined(field: str, absent: int):
        rows = [getattr(part, field) for part in parts]
        missing = [[(0, 0), (0, most - a.shape[1])] for a in rows]
        padded = [np.pad(a, m, constant_values=absent) for a, m in zip(rows, missing, strict=True)]
        return np.concatenate(padded)

    return Scored(
        joined("scores", 0),
        joined("lengths", 0),
        joined("ranks", -1),
        None if parts[0].words is None else joined("words", 0),
        [subset for part in parts for subset in part.subsets],
        [group for part in parts for group in part.groups],
        np.concatenate([part.ties for part in parts]),
        parts[0].agreement,
    )


def summary(s: Scored) -> dict:
    """The audit of one set, and what it is compared with."""
    row = audit(s.scores, s.lengths, s.ranks, s.subsets, s.groups)
    row["labeler_agreement"] = s.agreement
    if s.words is not None:
        row["bag_of_words"] = accuracy(s.words, s.ranks, s.groups)
        scores = (s.scores, s.words)
        row["above_bag_of_words"] = advantage(*scores, s.ranks, s.groups)
    if len(s.ties):
        row["ties"] = tie_margins(s.ties, ordered_pairs(s.ranks).margins(s.scores))
    return row


def print_table(results: dict) -> None:
    """Print the table."""
    table = Table(title="Reward model against people", title_justify="left")
    table.add_column("set", no_wrap=True)
    columns = (
        "pairs",
        "accuracy",
        "bag of words",
        "above it",
        "longer",
        "two labelers",
        "excess length",
    )
    for column in (*columns, "ece", "variance within", "between"):
        table.add_column(column)

    figure = partial(show, decimals=3)
    for name, row in results.items():
        agreement = row["labeler_agreement"]
        table.add_row(
            name,
            f"{row['accuracy']['n']:,}",
            figure(row["accuracy"]),
            figure(row.get("bag_of_words")),
            figure(row.get("above_bag_of_words")),
            figure(row["always_longer"]),
            f"{agreement:.3f}" if agreement else "–",
            figure(row["length_bias"]["excess"]),
            f"{row['ece']:.3f}",
            figure(row["variance"]["within"]),
            f"{row['variance']['between']:.3f}",
        )
        if len(row["by_subset"]) > 1:
            for subset, accuracy_ in row["by_subset"].items():
                table.add_row(f"  {subset}", f"{accuracy_['n']:,}", figure(accuracy_))
    Console(width=max(Console().width, 160)).print(table)


if __name__ == "__main__":
    main(run, AuditConfig)
