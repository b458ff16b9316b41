"""A fork of experiments/ppo.py: clip higher (DAPO, Yu et al. 2025, eq. 10).

    python -m experiments.proj.clip_higher.ppo --config configs/quickstart.py \
        --run.dir runs/clip_higher

The ratio is clipped to [1 − ε_low, 1 + ε_high] with ε_high > ε_low, so that unlikely tokens have
room to become likelier. ``clip_eps`` is ε_low; everything else is the original.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import fold_in, split

from experiments.fit import check_cut, check_pace, fit_prompts
from experiments.inputs import load_corpora, text_stream, with_block
from experiments.kept import figures_of
from experiments.stage import Stage
from experiments.trained import (
    for_run,
    load_trained,
    same_shape,
    same_tokenizer,
    save_model_card,
    with_adapters,
)
from rlhf_jax.cli import main
from rlhf_jax.config import PPOConfig
from rlhf_jax.data.batches import query_batches
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.datasets import load_prompts
from rlhf_jax.errors import RunError
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.objectives.kl import update_kl_coef
from rlhf_jax.objectives.language_losses import count_targets
from rlhf_jax.objectives.masked import masked_mean
from rlhf_jax.objectives.policy_losses import value_loss
from rlhf_jax.objectives.rewards import update_multiplier
from rlhf_jax.rollouts.rollout import make_rollout
from rlhf_jax.training.optimizers import (
    averaged_params,
    make_policy_value_optimizer,
    make_schedule,
    make_state,
)
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.updates import (
    make_lm_loss,
    make_ppo_loss,
    make_ppo_update,
    prepare_batch,
    shuffle_minibatches,
)

CLIP_EPS_HIGH = 0.28


def clip_higher_loss(new_logprobs, new_values, b, *, clip_eps, value_clip_eps, vf_coef, count):
    ratio = jnp.exp(jnp.where(b.mask, new_logprobs - b.logprobs, 0.0))
    clipped = jnp.clip(ratio, 1 - clip_eps, 1 + CLIP_EPS_HIGH)
    policy = masked_mean(
        jnp.maximum(-b.advantages * ratio, -b.advantages * clipped), b.mask, count=count
    )
    value, metrics = value_loss(
        new_values, b.values, b.returns, b.mask, value_clip_eps=value_clip_eps, count=count
    )
    return policy + vf_coef * value, metrics | {"loss/policy_avg": policy}


def run(config: PPOConfig) -> dict:
    with Stage(config, "ppo") as stage:
        if stage.summary is not None:
            return stage.summary
        check_reward_model(config)

        # Data
        parallel = make_parallel(config.parallel)
        parallel.check_batch("batch_size", config.batch_size)
        minibatch_size = config.batch_size // config.num_minibatches
        parallel.check_batch("batch_size / num_minibatches", minibatch_size)
        load = partial(load_trained, shardings=parallel.shardings)
        sft = for_run(load(config.init, flag="init"), config.run.dir)
        reference = sft
        if config.reference is not None:
            reference = load(config.reference, flag="reference", share=sft)
        reward = load(config.reward, flag="reward", kind="scalar", share=sft)
        value = reward
        if config.value_init is not None:
            value = load(config.value_init, flag="value-init", kind="scalar", share=sft)
        same_tokenizer(sft, reference, ("init", "reference"))
        same_shape(sft, reference, ("init", "reference"))
        same_tokenizer(sft, reward, ("init", "reward"))
        same_tokenizer(sft, value, ("init", "value-init"))
        second = None
        if config.second_reward.model is not None:
            second = load(config.second_reward.model, flag="second-reward.model", kind="scalar")
            same_tokenizer(sft, second, ("init", "second-reward.model"))
        actor = with_adapters(sft, config.lora, seed=config.run.seed)
        critic = with_adapters(value, config.lora, seed=config.run.seed, what="value network")
        tokenizer, model = actor.tokenizer, actor.model
        networks = (model, critic.model, reward.model, *([second.model] if second else []))
        context = min(network.context for network in networks)
        prompts = load_prompts(config.prompts, data_dir=config.cache)
        trained = dict(trained=(config.init, config.reward), context=context)
        config = fit_prompts(config, prompts, tokenizer, **trained, stage="ppo")
        lengths = dict(prompt_length=config.prompt_length, response_length=config.response_length)
        for network in networks:
            network.check_context(**lengths)
        stage.note(lengths=lengths)
        card = dict(kind="lm", value=critic.model, lengths=lengths)
        save_model_card(config.run.dir, model, actor.vocab_size, tokenizer, **card)
        queries = query_batches(
            prompts,
            tokenizer,
            query_length=config.prompt_length,
            batch_size=config.batch_size,
            seed=config.run.data_seed,
            mine=parallel.rows(config.batch_size),
        )
        check_cut(queries.report, config, context=context, stage="ppo")
        report = queries.report.with_reading(prompts.left_out, prompts.notes)
        stage.note_rows(prompts=report)
        optims = dict(optim=config.optim, value_optim=config.value_optim)
        check_pace("ppo", config.iterations, **optims)
        iterators = {"queries": queries}
        updates = config.ppo_epochs * config.num_minibatches
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
        reward_model = make_scalar_model(reward.model, reward.vocab_size)
        second_reward_model = second and make_scalar_model(second.model, second.vocab_size)
        policy_value = make_policy_value(model, critic.model, sft.vocab_size, config.value_trunk)
        schedule = make_schedule(config.optim, config.iterations)
        tx = make_policy_value_optimizer(
            config.optim, config.value_optim, config.iterations, updates_per_step=updates
        )
        params, frozen = partition(policy_value.init(actor.params, critic.params))
        params, frozen, ref_params, reward_params, second_params = parallel.place(
            (params, frozen, reference.params, reward.params, second and second.params)
        )
        state = parallel.init(partial(make_state, tx=tx, ema_decay=config.optim.ema_decay), params)
        root_key = jax.random.key(config.run.seed)
        state = stage.restore(state, **iterators)
        coefs = {"kl_coef": config.kl.coef, "second_weight": config.second_reward.weight}
        coefs = {
            name: jnp.array(stage.extra.get(name, start), float) for name, start in coefs.items()
        }
        coefs = parallel.place(coefs)
        kl_coef, second_weight = coefs["kl_coef"], coefs["second_weight"]

        # Functions
        temperature = config.sampling.temperature
        rollout_fn = parallel.function(
            make_rollout(
                lm,
                policy_value,
                reward_model,
                length=config.response_length,
                temperature=temperature,
                end_ids=tokenizer.end_ids,
                pad_id=tokenizer.pad_id,
                recompute_logprobs=config.recompute_logprobs,
                second_reward_model=second_reward_model,
            )
        )

        @parallel.function
        def prepare(rollout, kl_coef, second_weight, key):
            batch, metrics = prepare_batch(
                rollout,
                kl_coef,
                gamma=config.gamma,
                lam=config.lam,
                whiten_rewards=config.whiten_rewards,
                whiten_advantages=config.whiten_advantages,
                missing_eos_penalty=config.missing_eos_penalty,
                end_ids=tokenizer.end_ids,
                second_weight=second_weight,
            )
            minibatches = shuffle_minibatches(
                batch, key, epochs=config.ppo_epochs, num_minibatches=config.num_minibatches
            )
            return minibatches, metrics

        @parallel.function
        def control(kl_coef, second_weight, metrics):
            if config.kl.target:
                kl_coef = update_kl_coef(
                    kl_coef,
                    metrics["objective/kl"],
                    target=config.kl.target,
                    horizon=config.kl.horizon,
                    batch_size=config.batch_size,
                )
            if config.second_reward.floor is not None:
                second_weight = update_multiplier(
                    second_weight,
                    metrics["objective/second_scores"],
                    floor=config.second_reward.floor,
                    lr=config.second_reward.lr,
                )
            return kl_coef, second_weight

        objective = partial(
            clip_higher_loss,
            clip_eps=config.clip_eps,
            value_clip_eps=config.value_clip_eps,
            vf_coef=config.vf_coef,
        )

        lm_loss = make_lm_loss(lm, training=False)

        def ptx_loss(params, batch, key, count):
            return lm_loss(policy_value.policy(params), batch, key, count)

        update_fn = parallel.update(
            make_ppo_update(
                make_ppo_loss(policy_value, objective, temperature=temperature),
                ptx_loss if config.ptx_coef else None,
                count_targets,
                tx,
                ptx_coef=config.ptx_coef,
                accumulate=config.optim.accumulate,
                ema_decay=config.optim.ema_decay,
            ),
            frozen=frozen,
            batch_axis=1,
        )

        # Loop
        for step in stage.steps(config.iterations):
            k_rollout, k_shuffle, k_update = split(fold_in(root_key, step), 3)
            batch = parallel.shard(next(queries))
            params = combine(frozen, state.params)
            rollout = rollout_fn(params, ref_params, reward_params, batch, k_rollout, second_params)
            minibatches, metrics = prepare(rollout, kl_coef, second_weight, k_shuffle)
            ptx = None
            if config.ptx_coef:
                parts = [next(iterators["ptx"]) for _ in range(updates)]
                ptx = parallel.shard(jax.tree.map(lambda *x: np.stack(x), *parts), axis=1)
            state, update_metrics = update_fn(state, (minibatches, ptx), k_update)
            kl_coef, second_weight = control(kl_coef, second_weight, metrics)
            stage.log(
                metrics | update_metrics | {"lr": schedule(step)},
                episodes=config.batch_size,
                show=("objective/scores", "objective/kl"),
            )
            if stage.due(config.run.eval_every):
                shown = parallel.fetch((rollout, batch.index))
                stage.log_samples(sample_rows(*shown, prompts, tokenizer))
            stage.checkpoint(state, kl_coef=kl_coef, second_weight=second_weight)

        # Save
        policy = policy_value.policy(combine(frozen, averaged_params(state)))
        found = {"second_weight": float(second_weight)} if second else {}
        return stage.finish(policy, kl_coef=float(kl_coef), **found)


def check_reward_model(config: PPOConfig) -> None:
    """Raise RunError if the reward model is under the gate: PPO optimises whatever it is given."""
    accuracy = figures_of(config.reward).get("eval/accuracy")
    if config.force or (accuracy is not None and accuracy >= config.min_reward_accuracy):
        return
    found = "has no measured accuracy"
    if accuracy is not None:
        found = f"orders {accuracy:.3f} of held-out pairs as labelled"
    raise RunError(
        f"the reward model {config.reward} {found}, but min_reward_accuracy="
        f"{config.min_reward_accuracy}: PPO would optimise its errors. Train it on more "
        "comparisons, or go on with --force True (in a chain --ppo.force True)"
    )


def sample_rows(rollout, index, prompts, tokenizer, *, rows: int = 8) -> list[dict]:
    """The first episodes of an iteration, as text."""
    index, responses, mask, scores = (
        x[:rows] for x in (index, rollout.responses, rollout.mask, rollout.scores)
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
