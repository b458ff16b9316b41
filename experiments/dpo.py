r"""DPO: the policy learns from rankings directly, its own log-ratio being the reward.

    python -m experiments.dpo --init runs/sft --data comparisons.jsonl
    python -m experiments.dpo --init runs/quickstart/sft \
        --data runs/quickstart/comparisons/train.jsonl

minimise −E log σ(β log π(y_w|x)/π_ref(y_w|x) − β log π(y_l|x)/π_ref(y_l|x))  (Rafailov et al. 2023,
eq. 7), over all K-choose-2 pairs of a prompt as one element: the reward model's loss with the
implicit reward. What PPO has to beat. ``--loss`` and ``--sft-coef`` are its kin: IPO, hinge, robust
DPO, RPO.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import jax
import numpy as np
from jax.random import fold_in

from rlhf_jax.cli import main
from rlhf_jax.config import DPOConfig
from rlhf_jax.data.batches import Batches, comparison_batches
from rlhf_jax.data.datasets import Rows
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import known
from rlhf_jax.evaluation.metrics import pair_accuracy
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.objectives.preference_losses import count_ranked
from rlhf_jax.runs.fit import check_cut, check_pace, choose_packing, fit_pairs, row_lengths
from rlhf_jax.runs.heldout import heldout_batches, load_split_comparisons
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import for_run, load_trained, with_adapters
from rlhf_jax.training.optimizers import averaged_params, make_optimizer, make_schedule, make_state
from rlhf_jax.training.parallel import Parallel, make_parallel
from rlhf_jax.training.preference_optimization import (
    PreferenceInputs,
    make_preference_loss,
    preference_objective,
    sequence_logprobs,
)
from rlhf_jax.training.updates import update_step_of
from rlhf_jax.types import ComparisonBatch, Params


def run(config: DPOConfig) -> dict:
    """The stage: the policy after all epochs, and how it orders held-out pairs."""
    with Stage(config, "dpo", __file__, best=("eval/accuracy", "max")) as stage:
        if stage.summary is not None:
            return stage.summary

        # Model and data
        parallel = make_parallel(config.parallel)
        parallel.check_batch("batch_size", config.batch_size)
        sft = load_trained(config.init, flag="init", shardings=parallel.shardings)
        sft = for_run(sft, config.run.dir)
        policy = with_adapters(sft, config.lora, seed=config.run.seed)
        tokenizer, model = policy.tokenizer, policy.model
        rows, heldout = load_split_comparisons(config)
        context = model.context
        config = fit_pairs(config, chain(rows, heldout), tokenizer, context=context, stage="dpo")
        lengths = row_lengths(config)
        model.check_context(**lengths)
        stage.note(lengths=lengths)
        save_model_card(
            config.run.dir, model, policy.vocab_size, tokenizer, kind="lm", lengths=lengths
        )
        batches, unseen = load_batches(
            config, stage, rows, heldout, tokenizer, parallel, context=context
        )

        packing = choose_packing(config.packing, batches.data, parallel, stage="dpo")
        stage.note(packing=packing)

        # States
        lm = make_language_model(model, policy.vocab_size)
        total = config.epochs * batches.steps_per_epoch
        check_pace(
            "dpo", total, rows=batches.rows, batch_size=config.batch_size, optim=config.optim
        )
        schedule = make_schedule(config.optim, total)
        tx = make_optimizer(config.optim, total, updates_per_step=1)
        params, frozen = partition(policy.params)
        # Placed together: with adapters policy and reference share the weights below, which lie
        # there once.
        params, frozen, ref_params = parallel.place((params, frozen, sft.params))
        state = parallel.init(partial(make_state, tx=tx, ema_decay=config.optim.ema_decay), params)
        state = stage.restore(state, train=batches)
        k_train = jax.random.key(config.run.seed)

        # Functions
        # The reference as an argument: closed over, it would be a constant of the program.
        logprobs_fn = parallel.function(partial(sequence_logprobs, lm, packing=packing))
        loss_fn = make_preference_loss(lm, config, packing=packing)
        step_fn = update_step_of(
            config.optim, loss_fn, lambda inputs: count_ranked(inputs.batch.ranks), tx
        )
        update = parallel.update(step_fn, frozen=frozen)
        evaluate = make_evaluation(config, logprobs_fn, ref_params, unseen, parallel)

        # Loop
        for step in stage.steps(total):
            batch = parallel.shard(next(batches))
            # Read anew for each batch and not once for all rows: a forward pass, and nothing to
            # keep.
            inputs = PreferenceInputs(batch, logprobs_fn(ref_params, batch))
            state, metrics = update(state, inputs, fold_in(k_train, step))
            stage.log(
                metrics | {"lr": schedule(step)},
                tokens=batch.responses.size + batch.queries.size,
                show=("loss", "accuracy"),
            )
            if stage.due(config.run.eval_every):
                stage.log_evaluation(evaluate(combine(frozen, averaged_params(state))))
            stage.checkpoint(state)

        # Save
        params = combine(frozen, averaged_params(state))
        return stage.finish(params, heldout=evaluate(params))


def load_batches(
    config: DPOConfig,
    stage: Stage,
    rows: Rows,
    heldout: Rows,
    tokenizer: Tokenizer,
    parallel: Parallel,
    *,
    context: int,
) -> tuple[Batches[ComparisonBatch], list[ComparisonBatch]]:
    """Endless batches to learn from, and those that are held out, once."""
    batches_of = partial(
        comparison_batches,
        tokenizer=tokenizer,
        query_length=known(config.prompt_length),
        response_length=known(config.response_length),
        batch_size=config.batch_size,
    )
    seed, local_rows = config.run.data_seed, parallel.rows(config.batch_size)
    batches = batches_of(rows, seed=seed, local_rows=local_rows)
    check_cut(batches.report, config, context=context, stage="dpo")
    unseen = heldout_batches(stage, "comparisons", heldout, batches_of)
    stage.note_rows(comparisons=batches.report.with_reading(rows.left_out, rows.notes))
    return batches, unseen


def make_evaluation(
    config: DPOConfig,
    logprobs_fn: Callable,
    ref_params: Params,
    heldout: Sequence[ComparisonBatch],
    parallel: Parallel,
) -> Callable[[Params], dict[str, float]]:
    """``params -> figures``: the metrics of training, of the held-out part as one batch.

    Accuracy and margin count each pair alike, a tie of the model as half, as those of the reward
    model do.
    """
    objective = jax.jit(preference_objective(config))

    def evaluate(params: Params) -> dict[str, float]:
        if not heldout:
            return {}
        parts = []
        for rows in heldout:
            batch = parallel.shard_whole(rows)
            logprobs = logprobs_fn(params, batch), logprobs_fn(ref_params, batch)
            lengths = np.asarray(rows.mask).sum(axis=2, dtype=np.int32)
            parts.append((*parallel.fetch(logprobs), np.asarray(rows.ranks), lengths))
        logprobs, ref_logprobs, ranks, lengths = map(np.concatenate, zip(*parts, strict=True))
        _, metrics = objective(logprobs, ref_logprobs, ranks, lengths)
        rewards = config.beta * (logprobs - ref_logprobs)
        accuracy = pair_accuracy(np.where(ranks >= 0, rewards, np.nan), ranks)
        metrics |= {"accuracy": accuracy.overall, "margin": accuracy.margin}
        return {f"eval/{name}": float(value) for name, value in metrics.items()}

    return evaluate


if __name__ == "__main__":
    main(run, DPOConfig)
