"""Pretraining: a GPT learns raw text.

python -m experiments.pretrain --data.path train.txt --data.block-size 128
python -m experiments.pretrain --config configs/quickstart.py
"""

from dataclasses import replace
from functools import partial

import jax
from jax.random import fold_in

from rlhf_jax.cli import main
from rlhf_jax.config import PretrainConfig
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import check
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.models.transformer import as_layout
from rlhf_jax.objectives.language_losses import count_targets
from rlhf_jax.runs.fit import check_pace
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import Trained, load_trained, say_if_slow, with_adapters
from rlhf_jax.training.corpora import (
    Corpora,
    load_corpora,
    make_text_evaluation,
    text_stream,
    with_block,
    with_reading,
)
from rlhf_jax.training.optimizers import averaged_params, make_optimizer, make_schedule, make_state
from rlhf_jax.training.parallel import Parallel, make_parallel
from rlhf_jax.training.updates import make_lm_loss, update_step_of


def run(config: PretrainConfig) -> dict:
    """The stage: the model after all steps, and its loss on held-out text."""
    with Stage(config, "pretrain", __file__) as stage:
        if stage.summary is not None:
            return stage.summary

        # Data
        parallel = make_parallel(config.parallel)
        parallel.check_batch("batch_size", config.batch_size)
        corpora = load_corpora(config.data, flag="data")
        start = starting_point(config, corpora, parallel)
        tokenizer = start.tokenizer
        # By default rows as long as the model can read.
        config = replace(config, data=with_block(config.data, start.model.context))
        stage.note(lengths={"data.block_size": config.data.block_size})
        save_model_card(config.run.dir, start.model, start.vocab_size, tokenizer, kind="lm")
        batches = text_stream(
            corpora,
            tokenizer,
            config.data,
            batch_size=config.batch_size,
            seed=config.run.data_seed,
            local_rows=parallel.rows(config.batch_size),
        )
        stage.note_rows(text=with_reading(batches.report, corpora))

        # Model and state
        lm = make_language_model(start.model, start.vocab_size)
        say_if_slow(start.model)
        check_pace("pretrain", config.steps, optim=config.optim)
        schedule = make_schedule(config.optim, config.steps)
        tx = make_optimizer(config.optim, config.steps, updates_per_step=1)
        k_init, k_train = jax.random.split(jax.random.key(config.run.seed))
        # Made in parts where they lie: a large model is never whole on one device.
        if start.params is None:
            start = start._replace(params=parallel.init(lm.init, k_init))
        params, frozen = partition(parallel.place(start.params))
        state = parallel.init(partial(make_state, tx=tx, ema_decay=config.optim.ema_decay), params)
        state = stage.restore(state, train=batches)

        # Functions
        loss_fn = make_lm_loss(lm, training=True)
        step_fn = update_step_of(config.optim, loss_fn, count_targets, tx)
        update = parallel.update(step_fn, frozen=frozen)
        evaluate = make_text_evaluation(
            lm,
            parallel,
            corpora,
            tokenizer,
            config.data,
            batch_size=config.batch_size,
            max_batches=config.eval_batches,
        )

        # Loop
        for step in stage.steps(config.steps):
            batch = parallel.shard(next(batches))
            state, metrics = update(state, batch, fold_in(k_train, step))
            stage.log(metrics | {"lr": schedule(step)}, tokens=batch.tokens.size, show=("loss",))
            if stage.due(config.run.eval_every):
                stage.log_evaluation(evaluate(combine(frozen, averaged_params(state))))
            stage.checkpoint(state)

        # Save
        params = combine(frozen, averaged_params(state))
        return stage.finish(params, heldout=evaluate(params))


def starting_point(config: PretrainConfig, corpora: Corpora, parallel: Parallel) -> Trained:
    """The model to go on from, or the configured shape (without parameters) and its tokenizer."""
    if config.init is not None:
        start = load_trained(config.init, flag="init", shardings=parallel.shardings)
        c = config.model
        # A model that goes on keeps its shape; how it is computed is this run's choice.
        model = replace(
            start.model,
            dropout=c.dropout,
            attention=c.attention,
            scan_layers=c.scan_layers,
            remat=c.remat,
            logit_rows=c.logit_rows,
            dtype=c.dtype,
        )
        model.check_context(**{"data.block_size": config.data.block_size or model.context})
        params = start.params | {"trunk": as_layout(start.params["trunk"], model)}
        start = start._replace(model=model, params=params)
        return with_adapters(start, config.lora, seed=config.run.seed)
    check(config.lora.rank == 0, "lora.rank > 0 needs --init: adapters of nothing learn nothing")
    if config.tokenizer.path is not None:
        tokenizer = load_tokenizer(config.tokenizer.path)
    else:
        # From training text alone: a tokenizer that had read the held-out part would flatter the
        # loss.
        texts = (row.text for rows in corpora.train for row in rows)
        tokenizer = train_bpe(texts, vocab_size=config.tokenizer.vocab_size)
    # Rows beyond the vocabulary, so that the embedding divides over devices.
    rows = config.tokenizer.padded(tokenizer.vocab_size)
    model = replace(config.model, unused_rows=rows - tokenizer.vocab_size)
    return Trained(model, rows, tokenizer, None, "lm")


if __name__ == "__main__":
    main(run, PretrainConfig)
