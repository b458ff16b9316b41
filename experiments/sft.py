"""Supervised fine-tuning: the pretrained GPT imitates people's demonstrations.

    python -m experiments.sft --config configs/quickstart.py
    python -m experiments.sft --init runs/pretrain --data demonstrations.jsonl --pretrain-mix 0

A share of every batch is pretraining text (InstructGPT, appendix C.4: 10 %), so that the model
forgets less of it; this run is also the reference of PPO's KL term.
"""

from dataclasses import replace
from functools import partial
from itertools import chain

import jax
import numpy as np
from jax.random import fold_in

from rlhf_jax.cli import main
from rlhf_jax.config import ModelConfig, SFTConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.batches import Batches, demonstration_batches
from rlhf_jax.data.datasets import Rows, load_demonstrations, split
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import check, known
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.objectives.language_losses import count_targets
from rlhf_jax.privacy.poisson import PoissonBatches
from rlhf_jax.privacy.private_training import make_update, private_batches
from rlhf_jax.runs.fit import check_cut, check_pace, fit_demonstrations, lengths_of, row_lengths
from rlhf_jax.runs.heldout import heldout_batches
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import for_run, load_trained, with_adapters
from rlhf_jax.training.corpora import load_corpora, make_loss_sums, text_stream
from rlhf_jax.training.optimizers import averaged_params, make_optimizer, make_schedule, make_state
from rlhf_jax.training.parallel import Parallel, make_parallel
from rlhf_jax.training.updates import make_lm_loss
from rlhf_jax.types import LMBatch


def run(config: SFTConfig) -> dict:
    """The stage: the model after all epochs, and its loss on held-out demonstrations."""
    with Stage(config, "sft", __file__, best=("eval/loss", "min")) as stage:
        if stage.summary is not None:
            return stage.summary

        # Model and data
        parallel = make_parallel(config.parallel)
        parallel.check_batch("batch_size", config.batch_size)
        text_rows = count_text_rows(config)
        pretrained = load_trained(config.init, flag="init", shardings=parallel.shardings)
        pretrained = for_run(pretrained, config.run.dir)
        pretrained = with_adapters(pretrained, config.lora, seed=config.run.seed)
        tokenizer, vocab_size = pretrained.tokenizer, pretrained.vocab_size
        model = replace(pretrained.model, dropout=config.dropout)
        rows, heldout = split(
            load_demonstrations(config.data, column_names(config.columns), data_dir=config.cache),
            heldout_fraction=config.heldout_fraction,
            independent=config.privacy.epsilon > 0,
        )
        # Lengths that nobody gave are those of the data, of what is held out too.
        config = fit_demonstrations(config, chain(rows, heldout), tokenizer, context=model.context)
        lengths = row_lengths(config)
        model.check_context(**lengths)
        stage.note(lengths=lengths_of(config))
        save_model_card(config.run.dir, model, vocab_size, tokenizer, kind="lm", lengths=lengths)
        batches, unseen = load_demonstration_batches(
            config, stage, rows, heldout, tokenizer, model, parallel, text_rows=text_rows
        )
        iterators = {"train": batches} | load_text(
            config, tokenizer, model, parallel, text_rows=text_rows
        )

        # Model and state
        lm = make_language_model(model, vocab_size)
        total = config.epochs * batches.steps_per_epoch
        private = isinstance(batches, PoissonBatches)
        check_pace(
            "sft",
            total,
            rows=batches.rows,
            batch_size=config.batch_size - text_rows,
            of="rows" if private else f"packed rows of {config.block_size} tokens",
            optim=config.optim,
        )
        schedule = make_schedule(config.optim, total)
        tx = make_optimizer(config.optim, total, updates_per_step=1)
        key = jax.random.key(config.run.seed)
        # Without adapters all weights train, and ``frozen`` is empty.
        params, frozen = partition(parallel.place(pretrained.params))
        state = parallel.init(partial(make_state, tx=tx, ema_decay=config.optim.ema_decay), params)
        # A run that was stopped goes on with its own state and place in the data.
        state = stage.restore(state, **iterators)

        # Functions
        loss_fn = make_lm_loss(lm, training=True)
        update, promises = make_update(
            config, batches, loss_fn, count_targets, tx, parallel, steps=total, frozen=frozen
        )
        stage.note(**promises)
        loss_sums = make_loss_sums(lm, parallel)

        def evaluate(params):
            if not unseen:
                return {}
            nats, tokens = loss_sums(params, unseen)
            return {"eval/loss": sum(nats.tolist()) / sum(tokens.tolist())}

        # Loop
        for step in stage.steps(total):
            # Demonstrations first, then text: each process holds its rows of either.
            parts = [next(iterator) for iterator in iterators.values()]
            batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
            batch = parallel.shard(batch)
            # A key per step: a resumed run drops out what it would have dropped.
            state, metrics = update(state, batch, fold_in(key, step))
            stage.log(metrics | {"lr": schedule(step)}, tokens=batch.tokens.size, show=("loss",))
            if stage.due(config.run.eval_every):
                # What is measured is what would be handed on: the average, where one is kept.
                stage.log_evaluation(evaluate(combine(frozen, averaged_params(state))))
            stage.checkpoint(state)

        # Save
        params = combine(frozen, averaged_params(state))
        return stage.finish(params, heldout=evaluate(params))


def count_text_rows(config: SFTConfig) -> int:
    """Rows of pretraining text in each batch. Raises InputError unless both kinds have a row."""
    text_rows = round(config.pretrain_mix * config.batch_size)
    check(
        (config.pretrain_mix == 0 or text_rows > 0) and text_rows < config.batch_size,
        f"pretrain_mix={config.pretrain_mix} of batch_size={config.batch_size} is {text_rows} "
        "rows of text: expected a row of it, and a row of demonstrations, or more",
    )
    check(
        text_rows == 0 or len(config.pretrain_data.path) > 0,
        f"pretrain_mix={config.pretrain_mix} needs --pretrain-data.path (or --pretrain-mix 0)",
    )
    return text_rows


def load_demonstration_batches(
    config: SFTConfig,
    stage: Stage,
    rows: Rows,
    heldout: Rows,
    tokenizer: Tokenizer,
    model: ModelConfig,
    parallel: Parallel,
    *,
    text_rows: int,
) -> tuple[Batches | PoissonBatches, list[LMBatch]]:
    """Endless batches of demonstrations, the first rows of each batch, and the held-out ones."""
    # An example of DP-SGD is a row, so that two demonstrations must not share one.
    private = config.privacy.epsilon > 0
    encode = partial(
        demonstration_batches,
        tokenizer=tokenizer,
        block_size=known(config.block_size),
        **row_lengths(config),
        target=config.target,
        one_per_row=private,
    )
    demonstrations, local_rows = config.batch_size - text_rows, parallel.rows(config.batch_size)
    batches = encode(
        rows,
        batch_size=demonstrations,
        seed=config.run.data_seed,
        local_rows=local_rows[local_rows < demonstrations],
    )
    if private:
        batches = private_batches(batches, batch_size=config.batch_size, seed=config.run.data_seed)
    check_cut(batches.report, config, context=model.context, stage="sft")
    whole = partial(encode, batch_size=config.batch_size)
    unseen = heldout_batches(stage, "demonstrations", heldout, whole)
    stage.note_rows(demonstrations=batches.report.with_reading(rows.left_out, rows.notes))
    return batches, unseen


def load_text(
    config: SFTConfig,
    tokenizer: Tokenizer,
    model: ModelConfig,
    parallel: Parallel,
    *,
    text_rows: int,
) -> dict[str, Batches]:
    """Endless batches of pretraining text, the last rows of each batch; none without a share."""
    if not config.pretrain_data.path:
        return {}
    block = config.pretrain_data.block_size
    model.check_context(**{"pretrain_data.block_size": block})
    check(
        text_rows == 0 or block == config.block_size,
        f"pretrain_data.block_size={block} is not block_size={config.block_size}, "
        "and both are rows of one batch",
    )
    corpora = load_corpora(config.pretrain_data, flag="pretrain-data")
    if not text_rows:
        return {}
    local_rows, before = parallel.rows(config.batch_size), config.batch_size - text_rows
    text = text_stream(
        corpora,
        tokenizer,
        config.pretrain_data,
        batch_size=text_rows,
        # Another seed than the demonstrations', whose order it would else repeat.
        seed=config.run.data_seed + 1,
        local_rows=local_rows[local_rows >= before] - before,
    )
    return {"text": text}


if __name__ == "__main__":
    main(run, SFTConfig)
