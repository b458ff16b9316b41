"""PPO: the policy learns what the reward model scores highly, without straying from the SFT model.

    python -m experiments.ppo --config configs/quickstart.py
    python -m experiments.ppo --init runs/sft --reward runs/reward --prompts prompts.jsonl

maximise E[r(x, y) − β log π(y|x)/π_SFT(y|x)] + γ E_pretrain[log π(x)]   (Ouyang et al. 2022, eq. 2)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import fold_in, split

from rlhf_jax.cli import main
from rlhf_jax.config import PPOConfig
from rlhf_jax.data.batches import query_batches
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.datasets import load_prompts
from rlhf_jax.errors import RunError
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.objectives.advantages import gae
from rlhf_jax.runs.fit import check_cut, check_pace, fit_prompts
from rlhf_jax.runs.kept_steps import figures_of
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import (
    check_model,
    for_run,
    load_trained,
    same_shape,
    same_tokenizer,
    save_model_card,
    with_adapters,
)
from rlhf_jax.training.corpora import load_corpora, text_stream, with_block
from rlhf_jax.training.optimizers import (
    averaged_params,
    make_policy_value_optimizer,
    make_schedule,
    make_state,
)
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.policy_optimization import make_policy_optimization, ppo_objective


def run(config: PPOConfig) -> dict:
    with Stage(config, "ppo", __file__) as stage:
        if stage.summary is not None:
            return stage.summary

        # Data
        parallel = make_parallel(config.parallel)
        parallel.check_batch("batch_size", config.batch_size)
        minibatch_size = config.batch_size // config.num_minibatches
        parallel.check_batch("batch_size / num_minibatches", minibatch_size)
        check_reward_model(config)
        load = partial(load_trained, shardings=parallel.shardings)
        sft = for_run(load(config.init, flag="init"), config.run.dir)
        reference = sft
        if config.reference is not None:
            reference = load(config.reference, flag="reference", share=sft)
        rewards = {"task": load(config.reward, flag="reward", kind="scalar", share=sft)}
        value = rewards["task"]
        if config.value_init is not None:
            value = load(config.value_init, flag="value-init", kind="scalar", share=sft)
        same_tokenizer(sft, reference, ("init", "reference"))
        same_shape(sft, reference, ("init", "reference"))
        same_tokenizer(sft, rewards["task"], ("init", "reward"))
        same_tokenizer(sft, value, ("init", "value-init"))
        if config.second_reward.model is not None:
            flag = "second-reward.model"
            rewards["second"] = load(config.second_reward.model, flag=flag, kind="scalar")
            same_tokenizer(sft, rewards["second"], ("init", flag))
        actor = with_adapters(sft, config.lora, seed=config.run.seed)
        critic = with_adapters(value, config.lora, seed=config.run.seed, what="value network")
        tokenizer, model = actor.tokenizer, actor.model
        networks = (model, critic.model, *(reward.model for reward in rewards.values()))
        context = min(network.context for network in networks)
        prompts = load_prompts(config.prompts, data_dir=config.cache)
        trained = dict(trained=(config.init, config.reward), context=context)
        config = fit_prompts(config, prompts, tokenizer, **trained, stage="ppo")
        lengths = dict(prompt_length=config.prompt_length, response_length=config.response_length)
        for network in networks:
            network.check_context(**lengths)
        stage.note(lengths=lengths)
        value_model = None if config.value_trunk == "none" else critic.model
        card = dict(kind="lm", value=value_model, lengths=lengths)
        save_model_card(config.run.dir, model, actor.vocab_size, tokenizer, **card)
        queries = query_batches(
            prompts,
            tokenizer,
            query_length=config.prompt_length,
            batch_size=config.batch_size,
            seed=config.run.data_seed,
            mine=parallel.rows(config.batch_size),
            copies=config.samples_per_prompt,
        )
        check_cut(queries.report, config, context=context, stage="ppo")
        report = queries.report.with_reading(prompts.left_out, prompts.notes)
        stage.note_rows(prompts=report)
        optims = dict(optim=config.optim, value_optim=config.value_optim)
        check_pace("ppo", config.iterations, **optims)
        iterators = {"queries": queries}
        if config.ptx_coef:
            text = with_block(config.ptx_data, sum(lengths.values()))
            model.check_context(**{"ptx_data.block_size": text.block_size})
            parallel.check_batch("ptx_batch_size", config.ptx_batch_size)
            corpora = load_corpora(text, flag="ptx-data")
            iterators["ptx"] = text_stream(
                corpora,
                tokenizer,
                text,
                batch_size=config.ptx_batch_size,
                seed=config.run.data_seed + 1,
                mine=parallel.rows(config.ptx_batch_size),
            )

        # Models and states
        lm = make_language_model(model, sft.vocab_size)
        reward_models = {
            name: make_scalar_model(reward.model, reward.vocab_size)
            for name, reward in rewards.items()
        }
        policy_value = make_policy_value(model, critic.model, sft.vocab_size, config.value_trunk)
        schedule = make_schedule(config.optim, config.iterations)
        updates = config.updates_per_iteration
        tx = make_policy_value_optimizer(
            config.optim, config.value_optim, config.iterations, updates_per_step=updates
        )
        params, frozen = partition(policy_value.init(actor.params, critic.params))
        reward_params = {name: reward.params for name, reward in rewards.items()}
        params, frozen, ref_params, reward_params = parallel.place(
            (params, frozen, reference.params, reward_params)
        )
        state = parallel.init(partial(make_state, tx=tx, ema_decay=config.optim.ema_decay), params)
        root_key = jax.random.key(config.run.seed)
        state = stage.restore(state, **iterators)
        coefs = {"kl_coef": config.kl.coef, "second_weight": config.second_reward.weight}
        coefs = parallel.place(
            {name: jnp.array(stage.extra.get(name, start), float) for name, start in coefs.items()}
        )

        # Functions: advantages and objective are written out for forks, which swap them
        ppo = make_policy_optimization(
            config,
            lm,
            policy_value,
            reward_models,
            tx,
            end_ids=tokenizer.end_ids,
            pad_id=tokenizer.pad_id,
            advantage_fn=partial(gae, gamma=config.gamma, lam=config.lam),
            objective=ppo_objective(config),
        )
        rollout_fn, prepare, control = map(
            parallel.function, (ppo.rollout, ppo.prepare, ppo.control)
        )
        update_fn = parallel.update(ppo.update, frozen=frozen, batch_axis=1)

        # Loop
        for step in stage.steps(config.iterations):
            k_rollout, k_shuffle, k_update = split(fold_in(root_key, step), 3)
            batch = parallel.shard(next(queries))
            params = combine(frozen, state.params)
            rollout = rollout_fn(params, ref_params, reward_params, batch, k_rollout)
            minibatches, metrics = prepare(rollout, coefs, k_shuffle)
            ptx = None
            if config.ptx_coef:
                parts = [next(iterators["ptx"]) for _ in range(updates)]
                ptx = parallel.shard(jax.tree.map(lambda *x: np.stack(x), *parts), axis=1)
            state, update_metrics = update_fn(state, (minibatches, ptx), k_update)
            coefs = control(coefs, metrics)
            stage.log(
                metrics | update_metrics | {"lr": schedule(step)},
                episodes=config.batch_size,
                show=("objective/scores", "objective/kl"),
            )
            if stage.due(config.run.eval_every):
                shown = parallel.fetch((rollout, batch.index))
                stage.log_samples(sample_rows(*shown, prompts, tokenizer))
            stage.checkpoint(state, **coefs)

        # Save
        policy = policy_value.policy(combine(frozen, averaged_params(state)))
        moved = coefs if "second" in rewards else {"kl_coef": coefs["kl_coef"]}
        return stage.finish(policy, **{name: float(coef) for name, coef in moved.items()})


def check_reward_model(config: PPOConfig) -> None:
    """Raise RunError if the reward model is under the gate: PPO optimises whatever it is given."""
    check_model(config.reward, flag="reward")
    accuracy = figures_of(config.reward).get("eval/accuracy")
    if config.force or (accuracy is not None and accuracy >= config.min_reward_accuracy):
        return
    found, advice = "has no accuracy that was measured", "Train it with a held-out part"
    if accuracy is not None:
        found = f"orders {accuracy:.3f} of held-out pairs as labelled"
        advice = "Train it on more comparisons"
    raise RunError(
        f"the reward model {config.reward} {found}, but min_reward_accuracy="
        f"{config.min_reward_accuracy}: PPO would optimise its errors. {advice}, or go on with "
        "--force True (in a chain --ppo.force True)"
    )


def sample_rows(rollout, index, prompts, tokenizer, *, rows: int = 8) -> list[dict]:
    """The first episodes of an iteration, as text."""
    index, responses, mask, scores = (
        x[:rows] for x in (index, rollout.responses, rollout.mask, rollout.scores["task"])
    )
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(axis=1)
    return [
        {
            "prompt": as_text(prompts[int(index[i])].prompt),
            "response": tokenizer.decode(responses[i][mask[i]]),
            "score": float(scores[i]),
            "kl": float(kl[i]),
            "length": int(mask[i].sum()),
        }
        for i in range(len(index))
    ]


if __name__ == "__main__":
    main(run, PPOConfig)
