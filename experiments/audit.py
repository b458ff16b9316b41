"""A reward model against what people preferred: how right, how sure, how much of it is length.

    python -m experiments.audit --reward runs/reward --data pref_llmbar pref_hh_harmless
    python -m experiments.audit --reward runs/reward --data comparisons.jsonl --out audit.json

A named set is scored on its held-out part (all of it if nothing is to be learnt from it), beside a
bag of words that learnt from the set's training part and beside always taking the longer answer.
Scores are those of training, whose differences are log-odds: what ``--unit-std`` did to them
afterwards is taken back, as far as a run folder tells.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.trained import Trained, load_trained
from rlhf_jax.cli import main
from rlhf_jax.config import AuditConfig
from rlhf_jax.data.batches import comparison_batches
from rlhf_jax.data.files import write_atomically
from rlhf_jax.data.formats import Comparison, read_comparisons
from rlhf_jax.errors import InputError
from rlhf_jax.evaluation.preference_audit import accuracy, audit, ordered_pairs, tie_margins
from rlhf_jax.models.heads import make_scalar_model
from rlhf_jax.tasks.answer_words import train_answer_words
from rlhf_jax.tasks.preferences import Preferences, is_name, load_preferences
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.runs import read_done, read_run
from rlhf_jax.types import ComparisonBatch


def run(config: AuditConfig) -> dict:
    reward = load_trained(config.reward, flag="reward", kind="scalar")
    config = with_lengths(config)
    reward.model.check_context(
        prompt_length=config.prompt_length, response_length=config.response_length
    )
    results = {}
    for name in config.data:
        found = find(name, config)
        scores, lengths, ranks = score(reward, found.heldout, config)
        row = audit(scores, lengths, ranks, found.subsets)
        row["labeler_agreement"] = found.agreement
        if found.train:
            words = train_answer_words(found.train)(found.heldout)
            row["bag_of_words"] = accuracy(np.nan_to_num(words), ranks)
        if found.ties:
            margins = np.diff(score(reward, found.ties, config)[0], axis=1)[:, 0]
            row["ties"] = tie_margins(margins, ordered_pairs(ranks).margins(scores))
        results[name] = row
    show(results)
    if config.out is not None:
        write_atomically(config.out, json.dumps(results, indent=1) + "\n")
    return results


def with_lengths(config: AuditConfig) -> AuditConfig:
    """``config`` with the lengths that the reward model was trained with where none are given."""
    missing = [n for n in ("prompt_length", "response_length") if getattr(config, n) is None]
    if not missing:
        return config
    is_run = all((config.reward / name).is_file() for name in ("config.json", "model.json"))
    trained = read_run(config.reward, stage=None).config if is_run else {}
    if not trained.keys() >= set(missing):
        raise InputError(
            f"{config.reward} does not say with what lengths it was trained: "
            "give --prompt-length and --response-length"
        )
    return replace(config, **{name: trained[name] for name in missing})


def find(name: str, config: AuditConfig) -> Preferences:
    if is_name(Path(name)):
        return load_preferences(name, config.source)
    rows = read_comparisons(name)
    return Preferences([], rows, ["all"] * len(rows), [], None)


def score(
    reward: Trained, rows: Sequence[Comparison], config: AuditConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores as trained, lengths in tokens and ranks of all responses, each [P, K]."""
    model = make_scalar_model(reward.model, reward.vocab_size)
    parallel = make_parallel(config.parallel)
    batches = comparison_batches(
        rows,
        reward.tokenizer,
        query_length=config.prompt_length,
        response_length=config.response_length,
        batch_size=config.batch_size,
        seed=None,
    )
    report = batches.report
    print(
        f"{report.kept} prompts, {report.prompts_truncated} cut at their beginning, "
        f"{report.responses_truncated} responses cut at their end"
    )

    @parallel.function
    def scores_fn(params, batch: ComparisonBatch):
        return model.score_responses(params, *batch[:4], None)

    scores, lengths, ranks = [], [], []
    for _ in range(batches.steps_per_epoch):
        batch = next(batches)
        scores.append(np.asarray(scores_fn(reward.params, parallel.shard(batch))))
        lengths.append(batch.mask.sum(axis=2))
        ranks.append(batch.ranks)
    scores, lengths, ranks = (np.concatenate(x)[: len(rows)] for x in (scores, lengths, ranks))
    gain = (read_done(config.reward) or {}).get("gain", 1.0)
    return np.where(ranks >= 0, scores / gain, 0.0), lengths, ranks


def show(results: dict) -> None:
    table = Table(title="Reward model against people", title_justify="left")
    table.add_column("set", no_wrap=True)
    columns = (
        "pairs",
        "accuracy",
        "bag of words",
        "longer",
        "two labelers",
        "excess length",
    )
    for column in (*columns, "ece"):
        table.add_column(column)
    figure = lambda f: f"{f['mean']:.3f} ± {f['ci']:.3f}" if f else "–"
    for name, row in results.items():
        agreement = row["labeler_agreement"]
        table.add_row(
            name,
            f"{row['accuracy']['n']:,}",
            figure(row["accuracy"]),
            figure(row.get("bag_of_words")),
            figure(row["always_longer"]),
            f"{agreement:.3f}" if agreement else "–",
            figure(row["length_bias"]["excess"]),
            f"{row['ece']:.3f}",
        )
        if len(row["by_subset"]) > 1:
            for subset, accuracy_ in row["by_subset"].items():
                table.add_row(f"  {subset}", f"{accuracy_['n']:,}", figure(accuracy_))
    Console(width=max(Console().width, 120)).print(table)


if __name__ == "__main__":
    main(run, AuditConfig)
