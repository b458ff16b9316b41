r"""DPO: the policy learns from rankings directly, its own log-ratio being the reward.

    python -m experiments.dpo --init runs/sft --data comparisons.jsonl
    python -m experiments.dpo --init runs/quickstart/sft \
        --data runs/quickstart/comparisons/train.jsonl

minimise −E log σ(β log π(y_w|x)/π_ref(y_w|x) − β log π(y_l|x)/π_ref(y_l|x))  (Rafailov et al. 2023,
eq. 7), over all K-choose-2 pairs of a prompt as one element: the reward model's loss with the
implicit reward. What PPO has to beat.
"""

from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import fold_in

from rlhf_jax.cli import main
from rlhf_jax.config import DPOConfig
from rlhf_jax.data.batches import comparison_batches
from rlhf_jax.data.datasets import load_comparisons, split
from rlhf_jax.evaluation.metrics import pair_accuracy
from rlhf_jax.models.heads import LanguageModel, episode_inputs, make_language_model
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.objectives.logprobs import token_logprobs
from rlhf_jax.objectives.masked import masked_sum
from rlhf_jax.objectives.preference_losses import count_ranked, dpo_loss
from rlhf_jax.runs.fit import check_cut, check_pace, fit_pairs, row_lengths
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import for_run, load_trained, with_adapters
from rlhf_jax.training.optimizers import averaged_params, make_optimizer, make_schedule, make_state
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.updates import make_update_step
from rlhf_jax.types import ComparisonBatch, Params


def sequence_logprobs(lm: LanguageModel, params: Params, batch: ComparisonBatch):
    """Σₜ log π(yₜ | x, y₍<ₜ₎) of every response, [B, K]."""
    K, Q = batch.ranks.shape[1], batch.queries.shape[1]
    queries, query_mask = (jnp.repeat(x, K, axis=0) for x in (batch.queries, batch.query_mask))
    responses, mask = (x.reshape(-1, x.shape[-1]) for x in (batch.responses, batch.mask))
    inputs = episode_inputs(queries, query_mask, responses, mask)
    logprobs = token_logprobs(lm.logits(params, *inputs, start=Q - 1), responses)
    return masked_sum(logprobs, mask, axis=1).reshape(batch.ranks.shape)


def run(config: DPOConfig) -> dict:
    """The stage: the policy after all epochs, and how it orders held-out pairs."""
    with Stage(config, "dpo", __file__, best=("eval/accuracy", "max")) as stage:
        if stage.summary is not None:
            return stage.summary

        # Data
        parallel = make_parallel(config.parallel)
        parallel.check_batch("batch_size", config.batch_size)
        sft = load_trained(config.init, flag="init", shardings=parallel.shardings)
        sft = for_run(sft, config.run.dir)
        policy = with_adapters(sft, config.lora, seed=config.run.seed)
        tokenizer, model = policy.tokenizer, policy.model
        rows = load_comparisons(config.data, data_dir=config.cache)
        if config.heldout is not None:
            heldout = load_comparisons(config.heldout, data_dir=config.cache)
        else:
            rows, heldout = split(rows, heldout_fraction=config.heldout_fraction)

        config = fit_pairs(
            config, chain(rows, heldout), tokenizer, context=model.context, stage="dpo"
        )
        lengths = row_lengths(config)
        model.check_context(**lengths)
        stage.note(lengths=lengths)
        save_model_card(
            config.run.dir, model, policy.vocab_size, tokenizer, kind="lm", lengths=lengths
        )

        def comparisons(rows, batch_size, seed, local_rows=None):
            return comparison_batches(
                rows,
                tokenizer,
                query_length=lengths["prompt_length"],
                response_length=lengths["response_length"],
                batch_size=batch_size,
                seed=seed,
                local_rows=local_rows,
            )

        batches = comparisons(
            rows, config.batch_size, config.run.data_seed, parallel.rows(config.batch_size)
        )
        check_cut(batches.report, config, context=model.context, stage="dpo")
        heldout_batches = []
        if len(heldout):
            stream = comparisons(heldout, config.batch_size, None)
            stage.note_rows(heldout_comparisons=stream.report)
            heldout_batches = list(stream)
        stage.note_rows(comparisons=batches.report.with_reading(rows.left_out, rows.notes))

        # Model and states
        lm = make_language_model(model, policy.vocab_size)
        total = config.epochs * batches.steps_per_epoch
        check_pace(
            "dpo", total, rows=batches.rows, batch_size=config.batch_size, optim=config.optim
        )
        schedule = make_schedule(config.optim, total)
        tx = make_optimizer(config.optim, total, updates_per_step=1)
        params, frozen = partition(policy.params)
        params, frozen, ref_params = parallel.place((params, frozen, sft.params))
        state = parallel.init(partial(make_state, tx=tx, ema_decay=config.optim.ema_decay), params)
        state = stage.restore(state, train=batches)
        k_train = jax.random.key(config.run.seed)

        # Functions
        logprobs_fn = parallel.function(lambda params, batch: sequence_logprobs(lm, params, batch))

        def loss_fn(params, inputs, key, count):
            batch, ref_logprobs = inputs
            return dpo_loss(
                sequence_logprobs(lm, params, batch),
                ref_logprobs,
                batch.ranks,
                beta=config.beta,
                label_smoothing=config.label_smoothing,
                count=count,
            )

        update = parallel.update(
            make_update_step(
                loss_fn,
                lambda inputs: count_ranked(inputs[0].ranks),
                tx,
                accumulate=config.optim.accumulate,
                ema_decay=config.optim.ema_decay,
            ),
            frozen=frozen,
        )

        def evaluate(params):
            """Whether the implicit reward orders held-out pairs as people did."""
            if not heldout_batches:
                return {}
            found = []
            for rows in heldout_batches:
                batch = parallel.shard_whole(rows)
                ratio = logprobs_fn(params, batch) - logprobs_fn(ref_params, batch)
                found.append((parallel.fetch(config.beta * ratio), rows.ranks))
            rewards, ranks = map(np.concatenate, zip(*found, strict=True))
            accuracy = pair_accuracy(np.where(ranks >= 0, rewards, np.nan), ranks)
            return {"eval/accuracy": accuracy.overall, "eval/margin": accuracy.margin}

        # Loop
        for step in stage.steps(total):
            batch = parallel.shard(next(batches))
            inputs = (batch, logprobs_fn(ref_params, batch))
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


if __name__ == "__main__":
    main(run, DPOConfig)
