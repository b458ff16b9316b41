"""An iteration of PPO as experiments/ppo.py makes it, on given weights and prompts."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import inputs
from benchmarks.cases import (
    B1,
    B2,
    CLIP_EPS,
    EOS,
    EPOCHS,
    EPS,
    KL_COEF,
    LAMBDA,
    LR,
    MINIBATCHES,
    RANK,
    VF_COEF,
    Case,
)
from benchmarks.worker import Work
from rlhf_jax.config import LoRAConfig, OptimConfig, ParallelConfig, PPOConfig
from rlhf_jax.interop.huggingface import load_pretrained
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.rollouts.rollout import response_logprobs
from rlhf_jax.runs.trained import Trained, with_adapters
from rlhf_jax.training.optimizers import make_policy_value_optimizer, make_state
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.policy_optimization import make_policy_optimization
from rlhf_jax.types import Generation, QueryBatch


def load(case: Case, folder: Path, kind: str) -> Trained:
    """A model of a case as a stage would have it, without a tokenizer."""
    imported = load_pretrained(folder)
    model = replace(imported.model, dtype=case.arrays)
    return Trained(model, imported.vocab_size, None, imported.params, kind)


def make_ppo(case: Case, folder: Path, seconds: Callable[[], dict[str, float]]) -> Work:
    """An iteration of PPO."""
    sft, reward = load(case, folder / "lm", "lm"), load(case, folder / "scalar", "scalar")
    lora = LoRAConfig(rank=RANK if case.variant == "lora" else 0)
    trunk = "separate" if case.variant == "separate" else "shared"
    policy, value = (with_adapters(model, lora, seed=0) for model in (sft, reward))
    lm = make_language_model(policy.model, sft.vocab_size)
    reward_model = make_scalar_model(reward.model, reward.vocab_size)
    policy_value = make_policy_value(policy.model, value.model, sft.vocab_size, trunk)
    optim = OptimConfig(
        lr=LR, schedule="constant", b1=B1, b2=B2, eps=EPS, weight_decay=0.0, clip_norm=0.0
    )
    config = PPOConfig(
        response_length=case.length,
        batch_size=case.batch,
        ppo_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        gamma=1.0,
        lam=LAMBDA,
        clip_eps=CLIP_EPS,
        value_clip_eps=CLIP_EPS,
        vf_coef=VF_COEF,
        value_trunk=trunk,
        optim=optim,
    )
    updates = config.updates_per_iteration
    tx = make_policy_value_optimizer(optim, optim, 1000, updates_per_step=updates)
    parallel = make_parallel(ParallelConfig(devices=1))
    params, frozen = partition(policy_value.init(policy.params, value.params))
    ref_params, reward_params, frozen = parallel.place(
        (sft.params, {"task": reward.params}, frozen)
    )
    state = parallel.place(make_state(params, tx, ema_decay=0.0))
    del params, sft, reward, policy, value
    never = -1
    end = EOS if case.end == "early" else never
    models = (lm, policy_value, {"task": reward_model})
    ppo = make_policy_optimization(config, *models, tx, end_ids=(end,), pad_id=EOS)
    rollout_fn, prepare = parallel.function(ppo.rollout), parallel.function(ppo.prepare)
    update = parallel.update(ppo.update, frozen=frozen, batch_axis=1)
    coefs = {"kl_coef": jnp.float32(KL_COEF)}
    queries = jnp.asarray(inputs.prompts(case))
    batch = QueryBatch(queries, jnp.ones(queries.shape, bool), jnp.arange(case.batch))
    checks = check(case, lm, reward_model, ref_params, reward_params["task"], batch)
    held, count = [state], iter(range(10**6))
    del state

    def repeat():
        k_rollout, k_shuffle = jax.random.split(jax.random.key(next(count)))
        start = time.perf_counter()
        state = held.pop()
        params = combine(frozen, state.params)
        rollout = rollout_fn(params, ref_params, reward_params, batch, k_rollout)
        jax.block_until_ready(rollout)
        rolled = time.perf_counter()
        minibatches, metrics = prepare(rollout, coefs, k_shuffle)
        state, update_metrics = update(state, (minibatches, None), jax.random.key(0))
        del params
        held.append(state)
        told = {name: float(x) for name, x in (metrics | update_metrics).items()}
        return {
            "rollout_seconds": rolled - start,
            "update_seconds": time.perf_counter() - rolled,
            "kl": told["objective/kl"],
            "tokens": case.batch * told["response_length"],
        }

    return Work(repeat, checks, seconds)


def check(case: Case, lm, reward_model, ref_params, reward_params, batch: QueryBatch) -> dict:
    """What the networks say of fixed answers."""
    answers = jnp.asarray(inputs.answers(case))
    given = Generation(answers, jnp.ones(answers.shape, bool), jnp.zeros(answers.shape))

    @jax.jit
    def figures(lm_params, scalar_params):
        logprobs = response_logprobs(lm, lm_params, batch, given, temperature=1.0)
        ids = jnp.concatenate([batch.queries, answers], axis=1)
        scores = reward_model.score(scalar_params, ids, jnp.ones(ids.shape, bool), None)
        return logprobs.mean(), scores.mean()

    logprob, score = figures(ref_params, reward_params)
    return {"logprob": float(logprob), "score": float(score)}
