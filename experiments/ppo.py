"""PPO: the policy learns what the reward model scores highly, without straying from the SFT model.

    python -m experiments.ppo --config configs/quickstart.py
    python -m experiments.ppo --init runs/sft --reward runs/reward --prompts prompts.jsonl

maximise E[r(x, y) − β log π(y|x)/π_SFT(y|x)] + γ E_pretrain[log π(x)]   (Ouyang et al. 2022, eq. 2)
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import fold_in, split

from rlhf_jax.cli import main
from rlhf_jax.config import ModelConfig, PPOConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.config.rewards import reward_names, reward_source
from rlhf_jax.data.batches import Batches, query_batches
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.datasets import Rows, load_prompts
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import known
from rlhf_jax.inference.rewards import (
    Rewards,
    check_reward_models,
    load_rewards,
    load_value_start,
    make_text_scoring,
)
from rlhf_jax.models.heads import make_language_model, make_policy_value
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.runs.fit import (
    check_cut,
    check_pace,
    episode_length,
    fit_prompts,
    row_lengths,
)
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import (
    Trained,
    for_run,
    load_trained,
    same_shape,
    same_tokenizer,
    with_adapters,
)
from rlhf_jax.training.coefficients import starting_coefs
from rlhf_jax.training.corpora import load_corpora, text_stream, with_block
from rlhf_jax.training.dynamic_sampling import make_sampling
from rlhf_jax.training.moving import mix, moved, start_moving
from rlhf_jax.training.optimizers import (
    averaged_params,
    make_policy_value_optimizer,
    make_schedule,
    make_state,
)
from rlhf_jax.training.parallel import Parallel, make_parallel
from rlhf_jax.training.policy_optimization import make_policy_optimization
from rlhf_jax.types import LMBatch, Rollout


def run(config: PPOConfig) -> dict:
    """The stage: the policy after all iterations."""
    with Stage(config, "ppo", __file__) as stage:
        if stage.summary is not None:
            return stage.summary

        # Models and data
        parallel = make_parallel(config.parallel)
        check_batches(config, parallel)
        sft, reference, rewards, value = load_models(config, parallel)
        policy = with_adapters(sft, config.lora, seed=config.run.seed)
        value = with_adapters(value, config.lora, seed=config.run.seed, what="value network")
        tokenizer, model = policy.tokenizer, policy.model
        networks = [model, value.model, *(reward.model for reward in rewards.token_models.values())]
        prompts = load_prompts(config.prompts, column_names(config.columns), data_dir=config.cache)
        config = fit_models(config, prompts, tokenizer, networks)
        lengths = row_lengths(config)
        stage.note(lengths=lengths)
        value_model = None if config.value_trunk == "none" else value.model
        save_card = partial(save_model_card, kind="lm", value=value_model, lengths=lengths)
        save_card(config.run.dir, model, policy.vocab_size, tokenizer)
        iterators = load_batches(config, stage, prompts, tokenizer, parallel, networks)

        # States
        lm = make_language_model(model, policy.vocab_size)
        policy_value = make_policy_value(model, value.model, policy.vocab_size, config.value_trunk)
        schedule = make_schedule(config.optim, config.iterations)
        updates = config.updates_per_iteration
        tx = make_policy_value_optimizer(
            config.optim, config.value_optim, config.iterations, updates_per_step=updates
        )
        params, frozen = partition(policy_value.init(policy.params, value.params))
        params, frozen, ref_params, reward_params = parallel.place(
            (params, frozen, reference.params, rewards.params)
        )
        state = parallel.init(partial(make_state, tx=tx, ema_decay=config.optim.ema_decay), params)
        root_key = jax.random.key(config.run.seed)
        moving = start_moving(config, policy_value.policy(state.params), ref_params)
        state = stage.restore(state, moving.kept(config), **iterators)
        moving = moving._replace(**stage.trees)
        coefs = starting_coefs(config)
        coefs = parallel.place(
            {name: jnp.array(stage.extra.get(name, start), float) for name, start in coefs.items()}
        )

        # Functions: advantages and losses as the config has them, unless a fork hands in its own
        ppo = make_policy_optimization(
            config,
            lm,
            policy_value,
            rewards.models,
            tx,
            end_ids=tokenizer.end_ids,
            pad_id=tokenizer.pad_id,
        )
        rollout_fn, prepare, control = map(
            parallel.function, (ppo.rollout, ppo.prepare, ppo.control)
        )
        update_fn = parallel.update(ppo.update, frozen=frozen, batch_axis=1)
        mix_fn = parallel.function(partial(mix, share=config.reference_mix))
        score_text = make_text_scoring(
            rewards, prompts, tokenizer, parallel, response_length=lengths["response_length"]
        )

        def answers(key, params, reference, behaviour):
            queries = next(iterators["queries"])
            batch = parallel.shard(queries)
            rollout = rollout_fn(params, reference, reward_params, batch, key, behaviour)
            return score_text(rollout, queries.index), batch.index

        sample = make_sampling(config, parallel, ppo.judge, answers, say=say)

        # Loop
        names = reward_names(config.reward)
        for step in stage.steps(config.iterations):
            k_rollout, k_shuffle, k_update = split(fold_in(root_key, step), 3)
            policies = combine(frozen, state.params), moving.reference, moving.behaviour(frozen)
            sampled = sample(k_rollout, coefs, *policies)
            minibatches, metrics = prepare(sampled.rollout, coefs, k_shuffle)
            metrics |= sampled.metrics
            ptx = next_texts(iterators["ptx"], parallel, updates) if config.ptx_coef else None
            moving = moving.with_newest(policy_value.policy(state.params))
            state, update_metrics = update_fn(state, (minibatches, ptx), k_update)
            coefs = control(coefs, metrics)
            policy_now = policy_value.policy(state.params)
            moving = moved(config, moving, policy_now, done=step + 1, mixed=mix_fn)
            stage.log(
                metrics | update_metrics | {"lr": schedule(step)},
                episodes=sampled.episodes,
                show=("objective/scores", "objective/kl"),
            )
            if stage.due(config.run.eval_every):
                shown = parallel.fetch(sampled.first)
                stage.log_samples(sample_rows(*shown, prompts, tokenizer, names))
            stage.checkpoint(state, moving.kept(config), **coefs)

        # Save
        trained = policy_value.policy(combine(frozen, averaged_params(state)))
        return stage.finish(trained, **{name: float(coef) for name, coef in coefs.items()})


def check_batches(config: PPOConfig, parallel: Parallel) -> None:
    """Raise InputError unless every batch can be spread over the devices."""
    parallel.check_batch("batch_size", config.batch_size)
    parallel.check_batch(*config.minibatch)
    if config.ptx_coef:
        parallel.check_batch("ptx_batch_size", config.ptx_batch_size)


def load_models(config: PPOConfig, parallel: Parallel) -> tuple[Trained, Trained, Rewards, Trained]:
    """The policy's start, the reference, the rewards, and what the value network starts from."""
    check_reward_models(config)  # before anything takes time
    load = partial(load_trained, shardings=parallel.shardings)
    policy = for_run(load(config.init, flag="init"), config.run.dir)
    reference = policy
    if config.reference is not None:
        reference = load(config.reference, flag="reference", share=policy)
        same_tokenizer(policy, reference, ("init", "reference"))
        same_shape(policy, reference, ("init", "reference"))
    rewards = load_rewards(config, policy, parallel)
    return policy, reference, rewards, load_value_start(config, policy, rewards, parallel)


def fit_models(
    config: PPOConfig, prompts: Rows, tokenizer: Tokenizer, networks: Sequence[ModelConfig]
) -> PPOConfig:
    """``config`` with lengths that the prompts need and all networks can read."""
    models = [path for path in config.reward if reward_source(path).kind == "model"]
    context = min(network.context for network in networks)
    trained = (config.init, *models)
    config = fit_prompts(config, prompts, tokenizer, trained=trained, context=context, stage="ppo")
    for network in networks:
        network.check_context(**row_lengths(config))
    check_pace("ppo", config.iterations, optim=config.optim, value_optim=config.value_optim)
    return config


def load_batches(
    config: PPOConfig,
    stage: Stage,
    prompts: Rows,
    tokenizer: Tokenizer,
    parallel: Parallel,
    networks: Sequence[ModelConfig],
) -> dict[str, Batches]:
    """Endless batches of queries, and of pretraining text for PPO-ptx."""
    queries = query_batches(
        prompts,
        tokenizer,
        query_length=known(config.prompt_length),
        batch_size=config.batch_size,
        seed=config.run.data_seed,
        local_rows=parallel.rows(config.batch_size),
        copies=config.samples_per_prompt,
    )
    check_cut(queries.report, config, context=min(n.context for n in networks), stage="ppo")
    stage.note_rows(prompts=queries.report.with_reading(prompts.left_out, prompts.notes))
    if not config.ptx_coef:
        return {"queries": queries}
    text = with_block(config.ptx_data, episode_length(config))
    networks[0].check_context(**{"ptx_data.block_size": text.block_size})
    ptx = text_stream(
        load_corpora(text, flag="ptx-data"),
        tokenizer,
        text,
        batch_size=config.ptx_batch_size,
        seed=config.run.data_seed + 1,
        local_rows=parallel.rows(config.ptx_batch_size),
    )
    return {"queries": queries, "ptx": ptx}


def next_texts(texts: Batches, parallel: Parallel, updates: int) -> LMBatch:
    """Batches of pretraining text for so many updates, stacked."""
    parts = [next(texts) for _ in range(updates)]
    return parallel.shard(jax.tree.map(lambda *x: np.stack(x), *parts), axis=1)


def sample_rows(
    rollout: Rollout,
    index: np.ndarray,
    prompts: Rows,
    tokenizer: Tokenizer,
    names: Sequence[str],
    *,
    rows: int = 8,
) -> list[dict]:
    """The first episodes of an iteration as text, with what each of the rewards ``names`` says."""
    found = (index, rollout.queries, rollout.responses, rollout.mask)
    index, queries, responses, mask = (np.asarray(x)[:rows] for x in found)
    first, *others = names
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(axis=1)
    return [
        {
            "prompt": as_text(prompts[int(index[i])].prompt),
            "response": tokenizer.decode_answer(responses[i][mask[i]], queries[i, -1]),
            "score": float(rollout.scores[first][i]),
            **{f"score_{name}": float(rollout.scores[name][i]) for name in others},
            "kl": float(kl[i]),
            "length": int(mask[i].sum()),
        }
        for i in range(len(index))
    ]


if __name__ == "__main__":
    main(run, PPOConfig)
