"""Run by test_parallel.py in a process of its own with 8 virtual devices; prints JSON.

In float64, where layouts that sum the same numbers in another order agree to a billionth on every
processor, and a random number falls on the boundary between two tokens for none of them.
"""

import json
import re
import sys
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.config import (
    CombineConfig,
    KLConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PPOConfig,
)
from rlhf_jax.models import packing
from rlhf_jax.models.heads import (
    LanguageModel,
    PolicyValue,
    ScalarModel,
    make_language_model,
    make_policy_value,
    make_scalar_model,
)
from rlhf_jax.objectives.advantages import gae
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.objectives.policy_losses import ppo_loss
from rlhf_jax.objectives.preference_losses import count_ranked, ranking_loss
from rlhf_jax.rollouts.rollout import make_rollout
from rlhf_jax.training.dynamic_sampling import make_sampling
from rlhf_jax.training.optimizers import make_state
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.policy_optimization import (
    make_policy_optimization,
    make_ppo_loss,
    make_ppo_update,
    pack_episodes,
)
from rlhf_jax.training.preparation import combine_scores, prepare_batch, shuffle_minibatches
from rlhf_jax.training.updates import make_update_step
from rlhf_jax.types import LMBatch, Params, QueryBatch, Rollout

B, T, Q, R, K, V = 16, 12, 5, 7, 3, 50
CONFIG = ModelConfig(n_layers=2, d_model=32, n_heads=2, context=32)
# SGD and not Adam: Adam hides a gradient that is N times too large.
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5))
OFTEN = 10
"""A token that most responses of the sampled model have: as their end, it ends them early."""
COLLECTIVES = re.compile(
    r"(?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\("
)


class Layout(NamedTuple):
    """Devices, micro-batches, whether PPO packs its episodes, and how many it samples at once."""

    devices: ParallelConfig
    accumulate: int = 1
    packing: bool = False
    at_once: float = 1.0


ONE_DEVICE = Layout(ParallelConfig("mesh", 1))
CUBE = ParallelConfig("mesh", 8, data=2, fsdp=2, tensor=2)
LAYOUTS = {
    "8 x data": Layout(ParallelConfig("mesh", 8), at_once=0.5),
    "2 x 2 x 2, 2 micro-batches": Layout(CUBE, 2, packing=True, at_once=0.25),
    "8 x fsdp": Layout(ParallelConfig("mesh", 8, fsdp=8), packing=True),
    "8 x tensor": Layout(ParallelConfig("mesh", 8, tensor=8), at_once=0.25),
    "pmap over 8": Layout(ParallelConfig("pmap", 8), packing=True, at_once=0.5),
}


class Models(NamedTuple):
    lm: LanguageModel
    scalar: ScalarModel
    both: PolicyValue


class Inits(NamedTuple):
    """Parameters; float32 draws differ in their last bit from processor to processor."""

    lm: Params
    reference: Params
    scalar: Params


@cache
def make_models(dtype: str) -> Models:
    config = replace(CONFIG, dtype=dtype)
    both = make_policy_value(config, config, V, "separate")
    return Models(make_language_model(config, V), make_scalar_model(config, V), both)


@cache
def draw(dtype: str, drawn_in: str) -> Inits:
    with jax.enable_x64(drawn_in == "float64"):
        lm, scalar, _ = make_models(drawn_in)
        params = jax.tree.map(lambda x: 4 * x, lm.init(jax.random.key(0)))
        reward = scalar.init(jax.random.key(1), params["trunk"])
        inits = Inits(params, lm.init(jax.random.key(3)), reward)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), inits)


def make_lm_fn(lm):
    def lm_fn(params, batch, key, count):
        logits = lm.packed_logits(params.get("policy", params), batch, None)
        return lm_loss(logits, batch, count=count)

    return lm_fn


def batches(dtype):
    rng = np.random.default_rng(0)
    ids = lambda *shape: rng.integers(0, V, shape).astype(np.int32)
    ragged = lambda n: np.arange(n)[None] < rng.integers(2, n + 1, B)[:, None]
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32).astype(dtype)
    mask = ragged(T)
    text = LMBatch(
        tokens=ids(B, T),
        loss_mask=mask & (np.arange(T) > 0)[None],
        segment_ids=mask.astype(np.int32),
        positions=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
    )
    ranks = rng.integers(0, 3, (B, K)).astype(np.int32)
    ranks[3] = 1
    rollout = Rollout(
        queries=ids(B, Q),
        query_mask=np.ones((B, Q), bool),
        responses=ids(B, R),
        mask=ragged(R),
        logprobs=normal(B, R) / 10 - 3.9,
        ref_logprobs=normal(B, R) / 10 - 3.9,
        values=normal(B, R),
        scores={"task": normal(B)},
    )
    return text, (ids(B, K, Q), ranks), rollout


def update(stage, layout, dtype):
    parallel, accumulate = make_parallel(layout.devices), layout.accumulate
    text, ranked, rollout = batches(dtype)
    lm, scalar, policy_value = make_models(dtype)
    params, _, scalar_params = draw(dtype, "float64")
    lm_fn = make_lm_fn(lm)
    frame = dict(accumulate=accumulate, ema_decay=0.9)
    state = lambda p: parallel.init(partial(make_state, tx=TX, ema_decay=0.9), parallel.place(p))
    key = jax.random.key(2)
    if stage == "lm":
        step = parallel.update(make_update_step(lm_fn, count_targets, TX, **frame))
        return step(state(params), parallel.shard(text), key)
    if stage == "reward":

        def loss_fn(params, batch, key, count):
            tokens, ranks = batch
            mask = jnp.ones((ranks.size, Q), bool)
            scores = scalar.score(params, tokens.reshape(-1, Q), mask, None).reshape(ranks.shape)
            return ranking_loss(scores, ranks, count=count)

        count = lambda batch: count_ranked(batch[1])
        step = parallel.update(make_update_step(loss_fn, count, TX, **frame))
        return step(state(scalar_params), parallel.shard(ranked), key)

    coefs = dict(clip_eps=0.2, value_clip_eps=0.2, vf_coef=0.5, entropy_coef=0.0)
    objective = partial(ppo_loss, **coefs)
    loss_fn = make_ppo_loss(policy_value, objective, temperature=0.7)
    frame |= dict(ptx_coef=0.5, pack=pack_episodes if layout.packing else None)
    step = make_ppo_update(loss_fn, lm_fn, count_targets, TX, **frame)

    @parallel.function
    def prepare(rollout):
        batch, metrics = prepare_batch(
            rollout,
            {"kl_coef": jnp.asarray(0.1, dtype)},
            combine=partial(combine_scores, config=CombineConfig(), names=("task",)),
            advantage_fn=partial(gae, gamma=1.0, lam=0.95),
            kl_place="reward",
            kl_estimator="k1",
            group_size=1,
            whiten_rewards=True,
            whiten_advantages=True,
            missing_eos_penalty=-1.0,
            end_ids=(3,),
        )
        return shuffle_minibatches(batch, key, epochs=2, num_minibatches=2), metrics

    minibatches, metrics = prepare(parallel.shard(rollout))
    ptx = jax.tree.map(lambda x: np.stack([x[:8], x[8:]] * 2), text)
    both = state(policy_value.init(params, scalar_params))
    both, update_metrics = parallel.update(step, batch_axis=1)(both, (minibatches, ptx), key)
    return both, metrics | update_metrics


GROUPS = {
    # Answers compared with others to their prompt, ratios of answers, the KL in the loss
    "grpo": dict(
        samples_per_prompt=4,
        num_minibatches=2,
        advantage="grpo",
        whiten_advantages=False,
        ratio="sequence",
        aggregation="sequence_mean",
        kl=KLConfig(coef=0.1, place="loss", estimator="k3"),
    ),
    # Whose prompts are kept of several rounds, and that the rest of the batch counts nowhere
    "dapo": dict(
        samples_per_prompt=4,
        num_minibatches=1,
        max_sampling_rounds=2,
        advantage="grpo",
        whiten_advantages=False,
        kl=KLConfig(coef=0.1, place="loss", estimator="k3"),
    ),
    # Which rows are a pair, and how many prompts have one
    "dpo": dict(samples_per_prompt=2, num_minibatches=1, objective="dpo", pairs="all"),
}


def rounds_of(rollout):
    """Two rounds of four prompts: two, then one of which have answers that differ."""

    def scored(rollout, differ):
        scores = np.where(np.repeat(differ, B // 4), rollout.scores["task"], 1.0)
        return rollout._replace(scores={"task": scores.astype(rollout.logprobs.dtype)})

    other = jax.tree.map(lambda x: x[::-1], rollout)
    return [scored(rollout, [True, False, False, True]), scored(other, [False, True, False, False])]


def update_by_groups(algorithm, layout, dtype):
    parallel = make_parallel(layout.devices)
    config = PPOConfig(
        packing=layout.packing,
        response_length=R,
        batch_size=B,
        value_trunk="none",
        optim=OptimConfig(accumulate=layout.accumulate, ema_decay=0.9),
        **GROUPS[algorithm],
    )
    model, lm = replace(CONFIG, dtype=dtype), make_models(dtype).lm
    policy = make_policy_value(model, model, V, "none")
    ppo = make_policy_optimization(config, lm, policy, {}, TX, end_ids=(3,), pad_id=0)
    rollout = batches(dtype)[2]._replace(values=None)
    coefs = parallel.place({"kl_coef": jnp.asarray(1e-4, dtype)})  # this reference is far away
    key = jax.random.key(2)
    rounds = iter(rounds_of(rollout) if config.max_sampling_rounds > 1 else [rollout])
    answers = lambda key: (parallel.shard(next(rounds)), None)
    sampled = make_sampling(config, parallel, ppo.judge, answers, say=lambda line: None)(key, coefs)
    minibatches, metrics = parallel.function(ppo.prepare)(sampled.rollout, coefs, key)
    metrics |= sampled.metrics
    params = parallel.place({"policy": draw(dtype, "float64").lm})
    state = parallel.init(partial(make_state, tx=TX, ema_decay=0.9), params)
    step = parallel.update(ppo.update, batch_axis=1)
    state, update_metrics = step(state, (minibatches, None), key)
    return state, metrics | update_metrics


def sampling(layout, dtype):
    """The program that samples and reads answers to 64 queries, and what it is called with."""
    parallel = make_parallel(layout.devices)
    rng = np.random.default_rng(1)
    queries = rng.integers(4, V, (64, Q)).astype(np.int32)
    mask = np.arange(Q)[None] >= rng.integers(0, Q, (64, 1))
    lm, scalar, both = make_models(dtype)
    params, reference, reward = draw(dtype, "float32")
    rollout = make_rollout(
        lm,
        both,
        {"task": scalar},
        length=R,
        temperature=0.7,
        end_ids=(OFTEN,),
        pad_id=0,
        recompute_logprobs=False,
        packing=layout.packing,
        samples_per_prompt=1,
        at_once=layout.at_once,
    )
    models = parallel.place((both.init(params, reward), reference, {"task": reward}))
    batch = parallel.shard(QueryBatch(queries, mask, np.arange(64, dtype=np.int32)))
    return parallel.function(rollout), (*models, batch, jax.random.key(4))


def sampled(layout, dtype):
    """Answers, log-probs, values and scores: on one device rows are left behind."""
    program, arguments = sampling(layout, dtype)
    return jax.device_get(program(*arguments))


def exchanges(layout, dtype):
    """How often the devices wait for each other in a program that samples and reads."""
    program, arguments = sampling(layout, dtype)
    return len(COLLECTIVES.findall(program.lower(*arguments).compile().as_text()))


def differences(found, expected):
    """Tokens that differ; largest difference (relative) of a log-prob, value or score."""
    floats = lambda r: jax.tree.leaves((r.logprobs, r.ref_logprobs, r.values, r.scores))
    relative = lambda a, b: float((np.abs(a - b) / (1 + np.abs(b))).max())
    same = (found.responses == expected.responses) & (found.mask == expected.mask)
    return int((~same).sum()), max(map(relative, floats(found), floats(expected)))


def gaps(result, reference):
    """Largest difference of any parameter (and its average), of any metric (relative)."""
    (state, metrics), (ref_state, ref_metrics) = jax.device_get((result, reference))
    pairs = zip(jax.tree.leaves(state[1:]), jax.tree.leaves(ref_state[1:]), strict=True)
    relative = lambda a, b: abs(a - b) / (1 + abs(b))
    return (
        max(float(np.abs(a - b).max()) for a, b in pairs),
        max(float(relative(metrics[name], ref_metrics[name])) for name in ref_metrics),
    )


if __name__ == "__main__":
    packing.BLOCK_TOKENS = 1  # several blocks of so few tokens
    dtype, found = "float64", {}
    for stage in ("lm", "reward", "ppo"):
        reference = update(stage, ONE_DEVICE, dtype)
        for name, layout in LAYOUTS.items():
            found[f"{stage} {name}"] = gaps(update(stage, layout, dtype), reference)
    for name in GROUPS:
        reference = update_by_groups(name, ONE_DEVICE, dtype)
        result = update_by_groups(name, LAYOUTS["2 x 2 x 2, 2 micro-batches"], dtype)
        found[f"groups, {name}"] = gaps(result, reference)
    expected = sampled(ONE_DEVICE, dtype)
    found["rollouts"] = {
        name: differences(sampled(layout, dtype), expected) for name, layout in LAYOUTS.items()
    }
    found["exchanges"] = {n: exchanges(LAYOUTS[n], dtype) for n in ("8 x data", "8 x tensor")}
    found["rows that ended"] = int((expected.mask.sum(axis=1) < R).sum())
    json.dump(found, sys.stdout)
