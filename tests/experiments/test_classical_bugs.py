"""Classical RLHF bugs that only show when a stage runs whole, or over many samples.

Numbers in docstrings are those of the classical RLHF bugs in planted_bugs.py; the
others are held by the tests that tests/planted_bugs.py names.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import float32_bound, log_ratio_bound, network_terms
from scipy import stats

from experiments import ppo, pretrain, reward
from rlhf_jax.config import (
    ModelConfig,
    OptimConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    RunConfig,
    TextDataConfig,
    TokenizerConfig,
)
from rlhf_jax.data.batches import comparison_batches, demonstration_batches
from rlhf_jax.data.formats import Comparison, Demonstration
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.objectives.kl import exact_kl
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.objectives.logprobs import scale_logits
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.rollouts.rollout import make_rollout
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.training.optimizers import make_optimizer, make_state
from rlhf_jax.training.updates import make_update_step
from rlhf_jax.types import QueryBatch

# --- many samples ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_rollouts_are_of_the_density_that_is_scored(recompute):
    """Bugs 15, 17, 18: first tokens by chi-square, and the mean of log π − log π_ref is the KL."""
    V, Q, R, rows, temperature = 32, 3, 4, 2500, 0.7
    config = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=16)
    lm, scalar = make_language_model(config, V), make_scalar_model(config, V)
    policy, ref_params = (
        jax.tree.map(lambda x: 4 * x, lm.init(jax.random.key(seed))) for seed in (0, 1)
    )
    reward_params = scalar.init(jax.random.key(2), ref_params["trunk"])
    both = make_policy_value(config, config, V, "separate")
    rollout = make_rollout(
        lm,
        both,
        {"task": scalar},
        length=R,
        temperature=temperature,
        end_ids=(V - 1,),
        pad_id=V - 2,
        at_once=1.0,
        recompute_logprobs=recompute,
        packing=False,
        samples_per_prompt=1,
    )
    query, ones = jnp.array([[3, 1, 4]]), jnp.ones((rows, Q), bool)
    batch = QueryBatch(jnp.repeat(query, rows, axis=0), ones, jnp.arange(rows))
    params = both.init(policy, reward_params)
    rewards = {"task": reward_params}
    r = jax.jit(rollout)(params, ref_params, rewards, batch, jax.random.key(3))

    first = scale_logits(lm.logits(policy, query, ones[:1], start=Q - 1)[0, 0], temperature)
    expected = np.asarray(jax.nn.softmax(first), float) * rows
    seen = np.bincount(np.asarray(r.responses[:, 0]), minlength=V)
    often = expected > 5
    merge = lambda x: np.append(x[often], x[~often].sum() + 1e-9)
    chi2 = ((merge(seen) - merge(expected)) ** 2 / merge(expected)).sum()
    assert often.sum() > 5 and stats.chi2.sf(chi2, often.sum()) > 1e-4

    tokens = jnp.concatenate([r.queries, r.responses[:, :-1]], axis=1)
    mask = jnp.concatenate([r.query_mask, r.mask[:, :-1]], axis=1)
    logits = jax.jit(lambda p: lm.logits(p, tokens, mask, start=Q - 1))
    at_temperature = lambda p: scale_logits(logits(p), temperature)
    exact = np.asarray(exact_kl(at_temperature(policy), at_temperature(ref_params)))
    sampled = np.asarray(r.logprobs - r.ref_logprobs)
    gap = np.where(r.mask, sampled - exact, 0).sum(axis=1)
    assert abs(gap.mean()) < 4 * gap.std() / rows**0.5
    assert np.where(r.mask, sampled, 0).sum(axis=1).mean() > 0.1


@pytest.mark.slow
def test_a_model_tuned_on_demonstrations_stops():
    """Bugs 1, 2: the end of text is a target, apart from padding, so it is sampled on time."""
    tokenizer = train_bpe(["a b c"], vocab_size=258)
    config = ModelConfig(n_layers=1, d_model=32, n_heads=2, context=16)
    lm = make_language_model(config, tokenizer.vocab_size)
    rows = [Demonstration(p, " ok" * n) for p, n in (("one", 1), ("two", 2))]
    batches = demonstration_batches(
        rows,
        tokenizer,
        block_size=10,
        batch_size=2,
        prompt_length=3,
        response_length=7,
        target="response",
        seed=0,
    )
    tx = make_optimizer(
        OptimConfig(lr=1e-2, schedule="constant", weight_decay=0.0), 150, updates_per_step=1
    )
    loss_fn = lambda p, b, key, count: lm_loss(lm.packed_logits(p, b, None), b, count=count)
    step = jax.jit(make_update_step(loss_fn, count_targets, tx, accumulate=1, ema_decay=0.0))
    state = make_state(lm.init(jax.random.key(0)), tx, ema_decay=0.0)
    for n in range(150):
        state, _ = step(state, jax.tree.map(jnp.asarray, next(batches)), jax.random.key(n))
    queries = jnp.repeat(jnp.array([tokenizer.encode(row.prompt) for row in rows]), 50, axis=0)
    sampled = jax.jit(
        lambda params, keys: generate(
            lm,
            params,
            queries,
            jnp.ones(queries.shape, bool),
            keys,
            length=12,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            end_ids=tokenizer.end_ids,
            pad_id=tokenizer.pad_id,
            at_once=1.0,
        )
    )(state.params, row_keys(jax.random.key(1), 100))
    lengths = sampled.mask.sum(axis=1)
    on_time = lengths == jnp.repeat(jnp.array([4, 7]), 50)
    ended = (jnp.take_along_axis(sampled.responses, lengths[:, None] - 1, axis=1)[:, 0]) == (
        tokenizer.eos_id
    )
    assert (on_time & ended).mean() > 0.95


# --- whole stages ---------------------------------------------------------------------------------

PROMPT, RESPONSE, PROMPTS = 8, 6, 64
MODEL = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=16)
FIRST, SECOND = ("the cat", "a dog", "my bird", "one fish"), (" sat", " ran", " sang", " swam")


class Stages(NamedTuple):
    """Run folders of finished stages, and the files they read."""

    sft: Path
    reward: Path
    ppo: Path
    demonstrations: list[Demonstration]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Stages:
    """A model of a few steps, a reward model and three PPO iterations, on made-up text."""
    folder = tmp_path_factory.mktemp("stages")
    run = lambda name: RunConfig(dir=folder / name, log_every=1, tensorboard=False)
    sentences = [f"{FIRST[n % 4]} {n}{SECOND[n // 4 % 4]}" for n in range(PROMPTS)]
    shown = [Demonstration(s, " on the mat") for s in sentences[:10]]
    ranked = [
        {"prompt": s, "responses": [" yes", " no", " hm"], "ranks": [0, 1, n % 3]}
        for n, s in enumerate(sentences)
    ]
    files = {
        "text": [{"text": s} for s in sentences],
        "prompts": [{"prompt": s} for s in sentences],
        "comparisons": ranked,
        "demonstrations": [{"prompt": d.prompt, "completion": d.completion} for d in shown],
    }
    at = {name: write(folder / f"{name}.jsonl", rows) for name, rows in files.items()}
    cache = folder / "cache"
    fast = OptimConfig(lr=1e-2, schedule="constant", weight_decay=0.0)
    pretrain.run(
        PretrainConfig(
            run=run("sft"),
            data=TextDataConfig(path=(at["text"],), block_size=16, cache=cache),
            tokenizer=TokenizerConfig(vocab_size=280),
            model=MODEL,
            optim=fast,
            steps=3,
            eval_batches=1,
        )
    )
    lengths = dict(prompt_length=PROMPT, response_length=RESPONSE, cache=cache, allow_cut=True)
    reward.run(
        RewardConfig(
            run=run("reward"),
            init=folder / "sft",
            data=at["comparisons"],
            demonstrations=at["demonstrations"],
            dropout=0.3,
            optim=fast,
            batch_size=8,
            epochs=1,
            **lengths,
        )
    )
    ppo.run(
        PPOConfig(
            run=replace(run("ppo"), eval_every=1),
            init=folder / "sft",
            reward=(folder / "reward",),
            prompts=at["prompts"],
            iterations=3,
            batch_size=PROMPTS,
            num_minibatches=1,
            optim=fast,
            force=True,
            **lengths,
        )
    )
    return Stages(folder / "sft", folder / "reward", folder / "ppo", shown)


@pytest.mark.slow
def test_demonstrations_score_zero(stages):
    """Bug 32: by the reward model as PPO loads it, after its training, without dropout."""
    trained = load_trained(stages.reward, flag="reward", kind="scalar")
    rows = [Comparison(d.prompt, (d.completion,), (0,)) for d in stages.demonstrations]
    batch = next(
        comparison_batches(
            rows,
            trained.tokenizer,
            query_length=PROMPT,
            response_length=RESPONSE,
            batch_size=len(rows),
            seed=None,
            everything=True,
        )
    )
    model = make_scalar_model(trained.model, trained.tokenizer.vocab_size)
    scores = model.score_responses(trained.params, *map(jnp.asarray, batch[:4]), None)
    before = float(
        jnp.abs(scores - trained.params["head"]["bias"][0]).max()
    )  # the mean is taken off
    bound = float32_bound(2 * network_terms(MODEL, PROMPT + RESPONSE, 1), before)
    assert abs(scores.mean()) < bound < scores.std()


@pytest.mark.slow
def test_the_kl_to_the_reference_starts_at_zero(stages):
    """Bugs 17, 21, 22: at step 1, on 64 prompts, the reference is the policy; at step 2 it is not.

    Then the answers are looked at one by one: of their mean, which is an estimate, chance may make
    anything near 0.
    """
    log = [json.loads(line) for line in (stages.ppo / "metrics.jsonl").open()]
    first, *_ = (row for row in log if "objective/kl" in row)
    bound = partial(log_ratio_bound, MODEL, PROMPT + RESPONSE, 280)
    assert abs(first["objective/kl"]) < bound(tokens=RESPONSE)
    assert abs(first["val/ratio"] - 1) < bound(tokens=1)
    answers = [json.loads(line) for line in (stages.ppo / "samples.jsonl").open()]
    left = lambda step: [abs(row["kl"]) for row in answers if row["step"] == step]
    assert max(left(1)) < bound(tokens=RESPONSE)
    assert np.median(left(2)) > 10 * bound(tokens=RESPONSE)
