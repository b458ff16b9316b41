"""Reward model: the SFT model with a scalar head learns people's rankings.

    python -m experiments.reward --config configs/quickstart.py
    python -m experiments.reward --init runs/sft --data comparisons.jsonl
    python -m experiments.reward --init runs/sft --data pref_hh_harmless

All C(K, 2) pairs of a prompt are one batch element (Ouyang et al. 2022, eq. 1): K forward passes,
and no response is seen in several updates of one epoch. Afterwards the score is shifted so that
demonstrations score 0 on average, and optionally divided by its spread within prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import fold_in
from jaxtyping import Array

from rlhf_jax.cli import main
from rlhf_jax.config import RewardConfig
from rlhf_jax.data.batches import Batches, comparison_batches
from rlhf_jax.data.datasets import Rows, load_demonstrations
from rlhf_jax.data.fates import count, of_comparisons
from rlhf_jax.data.formats import Comparison
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import DivergedError, check
from rlhf_jax.evaluation.metrics import (
    Calibration,
    calibration,
    pair_accuracy,
    spread_within_prompts,
)
from rlhf_jax.evaluation.preference_audit import length_coefficient
from rlhf_jax.inference.reward_scores import make_reward_scorer
from rlhf_jax.models.heads import make_scalar_model, normalise_head, zero_head
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.objectives.preference_losses import count_ranked, ranking_loss
from rlhf_jax.privacy.poisson import PoissonBatches
from rlhf_jax.privacy.private_training import make_update, private_batches
from rlhf_jax.runs.fit import check_cut, check_pace, choose_packing, fit_pairs, row_lengths
from rlhf_jax.runs.heldout import load_split_comparisons
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import for_run, load_trained, with_adapters
from rlhf_jax.tasks.preferences import Fold, as_pairs, is_name, load_preferences
from rlhf_jax.training.optimizers import averaged_params, make_optimizer, make_schedule, make_state
from rlhf_jax.training.parallel import Parallel, make_parallel


def run(config: RewardConfig) -> dict:
    """The stage: the reward model, normalised, and how it orders held-out pairs."""
    with Stage(config, "reward", __file__, best=("eval/accuracy", "max")) as stage:
        if stage.summary is not None:
            return stage.summary

        # Model and data
        parallel = make_parallel(config.parallel)
        parallel.check_batch("batch_size", config.batch_size)
        sft = load_trained(config.init, flag="init", shardings=parallel.shardings)
        sft = for_run(sft, config.run.dir)
        sft = with_adapters(sft, config.lora, seed=config.run.seed)
        tokenizer, vocab_size = sft.tokenizer, sft.vocab_size
        model_config = replace(sft.model, dropout=config.dropout, pooling=config.pooling)
        rows, heldout = load_rows(config)
        context = model_config.context
        config = fit_pairs(config, chain(rows, heldout), tokenizer, context=context, stage="reward")
        lengths = row_lengths(config)
        model_config.check_context(**lengths)
        stage.note(lengths=lengths)
        save_model_card(
            config.run.dir, model_config, vocab_size, tokenizer, kind="scalar", lengths=lengths
        )
        batches = load_batches(config, stage, rows, tokenizer, parallel, context=context)
        length_coef = length_term(config, batches)
        check_heldout(heldout, tokenizer, stage, lengths)
        score_answers = answer_scores(config, stage, batches, parallel)
        # Normalisation reads the training data once more, which ε does not cover: it is left out.
        private = isinstance(batches, PoissonBatches)
        demonstrated = () if private else demonstrations(config)

        # Model and state
        model = make_scalar_model(model_config, vocab_size)
        total = config.epochs * batches.steps_per_epoch
        check_pace(
            "reward", total, rows=batches.rows, batch_size=config.batch_size, optim=config.optim
        )
        schedule = make_schedule(config.optim, total)
        tx = make_optimizer(config.optim, total, updates_per_step=1)
        # The head is new; the trunk is the SFT model's.
        k_head, k_train = jax.random.split(jax.random.key(config.run.seed))
        start = model.init(k_head, sft.params["trunk"])
        start = zero_head(start) if config.head == "zero" else start
        params, frozen = partition(parallel.place(start))
        state = parallel.init(partial(make_state, tx=tx, ema_decay=config.optim.ema_decay), params)
        state = stage.restore(state, train=batches)

        # Functions
        def loss_fn(params, batch, key, count):
            # A prompt with all its answers is one example: Ouyang et al. saw overfitting with
            # single pairs.
            scores = score_answers(model, params, batch, key)
            if config.length_control:
                scores += length_coef * jnp.log1p(batch.mask.sum(axis=2))
            return ranking_loss(scores, batch.ranks, count=count)

        def count_fn(batch):
            return count_ranked(batch.ranks)

        update, promises = make_update(
            config, batches, loss_fn, count_fn, tx, parallel, steps=total, frozen=frozen
        )
        stage.note(**promises)
        score = make_reward_scorer(model, tokenizer, parallel, **lengths)

        def evaluate(params):
            if not heldout:
                return {}, None
            scored = score(params, heldout)
            return heldout_figures(scored.scores, scored.ranks)

        # Loop
        for step in stage.steps(total):
            batch = parallel.shard(next(batches))
            state, metrics = update(state, batch, fold_in(k_train, step))
            stage.log(
                metrics | {"lr": schedule(step)},
                tokens=batch.responses.size + batch.queries.size,
                show=("loss",),
            )
            if stage.due(config.run.eval_every):
                stage.log_evaluation(evaluate(combine(frozen, averaged_params(state)))[0])
            stage.checkpoint(state)

        # Save
        params = combine(frozen, averaged_params(state))
        figures, sure = evaluate(params)
        bias, gain = (
            (0.0, 1.0) if private else normalisation(config, params, score, rows, demonstrated)
        )
        return stage.finish(
            normalise_head(params, bias=bias, gain=gain),
            heldout=figures,
            bias=bias,
            gain=gain,
            length_coef=length_coef,
            calibration=calibration_rows(sure) if sure else [],
        )


def load_rows(config: RewardConfig):
    """(training, held-out) comparisons of a file, or of a named set in its own split or folds."""
    if is_name(config.data):
        check(config.heldout is None, f"--data {config.data} has its own held-out part")
        fold = Fold(config.fold, config.folds) if config.folds else None
        named = load_preferences(str(config.data), config.source, fold)
        check(len(named.train) > 0, f"--data {config.data} is for evaluation (experiments.audit)")
        return named.train, named.heldout
    check(not config.folds, f"--folds deals out a named set, --data is the file {config.data}")
    return load_split_comparisons(config)


def load_batches(
    config: RewardConfig,
    stage: Stage,
    rows: Rows | Sequence[Comparison],
    tokenizer: Tokenizer,
    parallel: Parallel,
    *,
    context: int,
) -> Batches | PoissonBatches:
    """Endless batches of comparisons; of single pairs with ``config.pairing`` "shuffled"."""
    lengths = row_lengths(config)
    batches = comparison_batches(
        as_pairs(rows) if config.pairing == "shuffled" else rows,
        tokenizer,
        query_length=lengths["prompt_length"],
        response_length=lengths["response_length"],
        batch_size=config.batch_size,
        seed=config.run.data_seed,
        local_rows=parallel.rows(config.batch_size),
    )
    check_cut(batches.report, config, context=context, stage="reward")
    report = batches.report
    if isinstance(rows, Rows):
        report = report.with_reading(rows.left_out, rows.notes)
    stage.note_rows(comparisons=report)
    if config.privacy.epsilon > 0:
        return private_batches(batches, batch_size=config.batch_size, seed=config.run.data_seed)
    return batches


def length_term(config: RewardConfig, batches: Batches | PoissonBatches) -> float:
    """b of ``length_control``, 0 without.

    Known before training and held fixed: the score then need not explain what length explains.
    """
    if not config.length_control:
        return 0.0
    mask, ranks = np.asarray(batches.data.mask), np.asarray(batches.data.ranks)
    return length_coefficient(mask.sum(axis=2), ranks)


def answer_scores(
    config: RewardConfig, stage: Stage, batches: Batches | PoissonBatches, parallel: Parallel
) -> Callable[..., Array]:
    """(model, params, batch, key) -> scores [B K] in training, of packed answers or of padded."""
    plain = not config.dropout and isinstance(batches, Batches)
    packing = plain and choose_packing(config.packing, batches.data, parallel, stage="reward")
    stage.note(packing=packing)

    def scores(model, params, batch, key):
        if packing:
            return model.score_packed(params, *batch[:4])
        return model.score_responses(params, *batch[:4], key if config.dropout else None)

    return scores


def check_heldout(
    heldout: Rows | Sequence[Comparison],
    tokenizer: Tokenizer,
    stage: Stage,
    lengths: Mapping[str, int],
) -> None:
    """Say what is cut or useless of the held-out comparisons. Raises InputError if all are."""
    measured = list(of_comparisons(heldout, tokenizer, **lengths))
    seen = count(measured)
    check(not measured or seen.kept > 0, f"no held-out comparison can be used: {seen.lost()}")
    stage.note(heldout_comparisons=seen._asdict())
    if seen.lost():
        # So does the audit.
        say(
            f"reward: of {len(measured)} held-out comparisons {seen.lost()}: they are scored "
            "all the same, equal answers as ties, which count half"
        )


def demonstrations(config: RewardConfig) -> tuple[Comparison, ...]:
    """Those that shall score 0, as comparisons of a single response; none if none are given."""
    if config.demonstrations is None:
        return ()
    rows = load_demonstrations(config.demonstrations, data_dir=config.cache)
    return tuple(Comparison(row.prompt, (row.completion,), (0,)) for row in rows)


def heldout_figures(scores: np.ndarray, ranks: np.ndarray) -> tuple[dict[str, float], Calibration]:
    """Accuracy, margin and calibration error of held-out pairs, and how sure the model was."""
    if not np.isfinite(scores[ranks >= 0]).all():
        raise DivergedError(
            "scores of held-out responses are not finite: the weights have grown too "
            "large; start again with a lower --optim.lr in another folder"
        )
    accuracy, sure = pair_accuracy(scores, ranks), calibration(scores, ranks)
    figures = {"eval/accuracy": accuracy.overall, "eval/margin": accuracy.margin}
    return figures | {"eval/ece": sure.ece}, sure


def normalisation(config, params, score, rows, demonstrated) -> tuple[float, float]:
    """Bias that brings demonstrations to 0 (InstructGPT §3.5), gain to unit spread within prompts.

    Both are measured on about ``normalise_rows`` rows spread evenly over the data.
    """

    def spread_out(rows):
        return rows[:: max(len(rows) // (config.normalise_rows or len(rows)), 1)]

    scores = score(params, spread_out(rows)).scores
    spread = spread_within_prompts(scores)
    centre = float(np.nanmean(scores))
    if demonstrated:
        centre = float(np.nanmean(score(params, spread_out(demonstrated)).scores))
    return -centre, 1 / spread if config.unit_std else 1.0


def calibration_rows(bins: Calibration) -> list[dict]:
    """How often the pairs the model is so sure of were labelled that way, for the report."""
    columns = zip(bins.confidence, bins.accuracy, bins.count, strict=True)
    return [{"predicted": p, "observed": o, "count": int(n)} for p, o, n in columns if n]


if __name__ == "__main__":
    main(run, RewardConfig)
