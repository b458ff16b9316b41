"""Collecting comparisons: the SFT model answers each prompt K times, a labeler ranks the answers.

    python -m experiments.compare --config configs/quickstart.py

The labeler here is simulated: a gold scorer plus Bradley-Terry noise, as much of it as makes two
labelers agree as often as InstructGPT's did. A person is another ``Labeler``.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.cli import main
from rlhf_jax.config import CompareConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.chat import as_json, as_text
from rlhf_jax.data.files import write_atomically
from rlhf_jax.data.formats import Prompt, read_prompts
from rlhf_jax.errors import check
from rlhf_jax.feedback.labelers import (
    SimulatedLabeler,
    calibrate_tau,
    noise_ceiling,
    score_gaps,
)
from rlhf_jax.inference.sampler import make_sampler, prompt_report
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.fit import check_cut, fit_prompts, row_lengths
from rlhf_jax.runs.logs import read_rows
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.tasks.task import check_prompts, read_task
from rlhf_jax.training.parallel import make_parallel


def run(config: CompareConfig) -> dict:
    """The stage: answers, ranks and the noise of the labeler, in train.jsonl and heldout.jsonl."""
    with Stage(config, "comparisons", __file__, one_process=True, late=("labeler",)) as stage:
        if stage.summary is not None:
            return stage.summary

        # Data and model
        parallel = make_parallel(config.parallel)
        policy = load_trained(config.init, flag="init")
        total = config.num_prompts + config.heldout_prompts
        rows = read_prompts(config.prompts, column_names(config.columns))
        prompts = [row.prompt for row in rows][:total]
        check_enough(len(prompts), config, str(config.prompts))
        task = read_task(config.task, config.source)
        check_prompts(task, list(map(as_text, prompts)))
        context = policy.model.context
        config = fit_prompts(
            config,
            map(Prompt, prompts),
            policy.tokenizer,
            trained=(config.init,),
            context=context,
            stage="compare",
        )
        lengths = row_lengths(config)
        policy.model.check_context(**lengths)
        report = prompt_report(prompts, policy.tokenizer, lengths["prompt_length"])
        check_cut(report, config, context=context, stage="compare")
        stage.note_rows(prompts=report)
        stage.note(lengths=lengths)
        sampler = make_sampler(
            make_language_model(policy.model, policy.vocab_size),
            policy.tokenizer,
            parallel,
            config.sampling,
            **lengths,
            prompts_per_batch=config.prompts_per_batch,
            responses_per_prompt=config.responses_per_prompt,
        )

        # Sample: each batch is appended when it is complete, and a resumed run goes on after it
        key = jax.random.key(config.run.seed)
        path = config.run.dir / "responses.jsonl"
        rows = read_rows(path)
        batches = len(rows) // config.prompts_per_batch
        # Half a batch, as a kill leaves it, is sampled again: draws go by the batch.
        rows = rows[: batches * config.prompts_per_batch]
        write_rows(path, rows)
        K = config.responses_per_prompt
        with open(path, "a", encoding="utf-8") as file:
            for sampled in stage.each(
                sampler(policy.params, prompts, key, skip=batches),
                start=batches,
                total=-(-total // config.prompts_per_batch),
            ):
                answers = zip(sampled.texts, sampled.tokens, strict=True)
                groups = list(zip(*[answers] * K, strict=True))
                new = [
                    {
                        "prompt": as_json(prompt),
                        "responses": [text for text, _ in group],
                        "response_tokens": [ids for _, ids in group],
                    }
                    for prompt, group in zip(prompts[len(rows) :], groups, strict=False)
                ]
                file.write("".join(map(to_line, new)))
                file.flush()
                rows += new

        # Rank
        texts = list(map(as_text, prompts))
        utility = gold_scores(task.gold, texts, rows)
        noise = {"tie_width": config.labeler.tie_width}
        responses = [row["responses"] for row in rows]
        gaps = score_gaps(utility, responses)
        # Noise is in units of the gold scores' gaps, so it is found on the answers that are to be
        # ranked.
        tau = calibrate_tau(gaps, agreement=config.labeler.agreement, **noise)
        labeler = SimulatedLabeler(task.gold, tau=tau, seed=config.run.seed, **noise)
        ranks = labeler.rank_many(texts, responses)
        for row, ranked, scores in zip(rows, ranks, utility, strict=True):
            row |= {"ranks": list(map(int, ranked)), "gold": list(map(float, scores))}

        # Save
        train, heldout = rows[: config.num_prompts], rows[config.num_prompts :]
        write_rows(config.run.dir / "train.jsonl", train)
        write_rows(config.run.dir / "heldout.jsonl", heldout)
        gaps = score_gaps(utility[config.num_prompts :], responses[config.num_prompts :])
        # Of the held-out answers: what a perfect reward model could reach on these labels.
        ceiling = noise_ceiling(gaps, tau=tau, **noise)
        return stage.finish(
            None,
            comparisons=len(train),
            tau=tau,
            labeler_agreement=config.labeler.agreement,
            noise_ceiling=ceiling,
            within_prompt_gold_std=float(np.sqrt(utility.var(axis=1).mean())),
        )


def check_enough(prompts: int, config: CompareConfig, where: str) -> None:
    """Raise InputError if there are fewer prompts than are to be compared and held out."""
    check(
        prompts >= config.num_prompts + config.heldout_prompts,
        f"{where} has {prompts} prompts for comparisons; --num-prompts {config.num_prompts} and "
        f"--heldout-prompts {config.heldout_prompts} (in a chain --compare.num-prompts ...) "
        "together ask for more",
    )


def gold_scores(gold, prompts: Sequence[str], rows: Sequence[dict]) -> np.ndarray:
    """Gold score of every response, [P, K]."""
    prompts = [p for p, row in zip(prompts, rows, strict=True) for _ in row["responses"]]
    responses = [response for row in rows for response in row["responses"]]
    return np.reshape(gold(prompts, responses), (len(rows), -1))


def to_line(row: dict) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Write all rows, or nothing."""
    write_atomically(path, "".join(map(to_line, rows)))


if __name__ == "__main__":
    main(run, CompareConfig)
