"""PPO's update, from a real rollout to new parameters, held against hand-made ones.

The model's config asks for dropout: nothing in PPO may use it. Numbers in docstrings are those of
the classical RLHF bugs in planted_bugs.py.
"""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from precision import SAME

from rlhf_jax.config import (
    CombineConfig,
    KLConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PPOConfig,
    SecondRewardConfig,
)
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.objectives.advantages import gae
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.objectives.logprobs import entropy, scale_logits
from rlhf_jax.objectives.policy_losses import ppo_loss
from rlhf_jax.rollouts.rollout import make_rollout
from rlhf_jax.runs.checkpoints import params_sha256
from rlhf_jax.training.coefficients import starting_coefs
from rlhf_jax.training.optimizers import make_policy_value_optimizer, make_state
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.policy_optimization import (
    make_policy_optimization,
    make_ppo_loss,
    make_ppo_update,
)
from rlhf_jax.training.preparation import combine_scores, prepare_batch, shuffle_minibatches
from rlhf_jax.training.updates import accumulated_gradients, make_update_step, update_step_of
from rlhf_jax.types import LMBatch, QueryBatch, Rollout

pytestmark = pytest.mark.usefixtures("module_in_float64")
B, Q, R, V = 8, 4, 6, 32
STOP, NEVER, PAD = 11, V, 31
"""A stop token that random responses hold, one that none can hold, and padding."""
TEMPERATURE = 0.7
CONFIG = ModelConfig(n_layers=2, d_model=16, n_heads=2, context=32, dropout=0.5, dtype="float64")
with jax.enable_x64(True):
    LM, SCALAR = make_language_model(CONFIG, V), make_scalar_model(CONFIG, V)
OBJECTIVE = partial(ppo_loss, clip_eps=0.2, value_clip_eps=1.0, vf_coef=0.5, entropy_coef=0.0)
# SGD and not Adam, which hides the size of a gradient. Numbers in the state: one compiled program.
TX = optax.inject_hyperparams(
    lambda lr, clip: optax.chain(optax.clip_by_global_norm(clip), optax.sgd(lr))
)(lr=0.05, clip=1e9)
EMA = 0.9
PREPARE = {
    "combine": partial(combine_scores, config=CombineConfig(), names=("task",)),
    "advantage_fn": partial(gae, gamma=1.0, lam=0.95),
    "kl_place": "reward",
    "kl_estimator": "k1",
    "group_size": 1,
    "whiten_rewards": False,
    "whiten_advantages": True,
    "missing_eos_penalty": None,
    "end_ids": (STOP,),
}


@cache
def language_model_params():
    # Far from the tiny initial values, so that responses and advantages differ; drawn in float32,
    # as that model ends some responses early.
    with jax.enable_x64(False):
        init = make_language_model(replace(CONFIG, dtype="float32"), V).init
        drawn = jax.jit(init)(jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(4 * np.asarray(x, float)), drawn)


@cache
def reward_params():
    return jax.jit(SCALAR.init)(jax.random.key(1), language_model_params()["trunk"])


@cache
def both(trunk):
    return make_policy_value(CONFIG, CONFIG, V, trunk)


def start(trunk="separate"):
    return jax.jit(both(trunk).init)(language_model_params(), reward_params())


@cache
def rollout_fn(trunk, eos_id):
    return jax.jit(
        make_rollout(
            LM,
            both(trunk),
            {"task": SCALAR},
            length=R,
            temperature=TEMPERATURE,
            end_ids=(eos_id,),
            pad_id=PAD,
            at_once=1.0,
            recompute_logprobs=False,
            packing=False,
            samples_per_prompt=1,
        )
    )


def roll_out(params, *, trunk="separate", eos_id=STOP, seed=2) -> Rollout:
    mask = jnp.arange(Q)[None] >= (jnp.arange(B) % 3)[:, None]
    queries = jax.random.randint(jax.random.key(100 + seed), (B, Q), 0, V)
    batch = QueryBatch(queries, mask, jnp.arange(B))
    inputs = (params, language_model_params(), {"task": reward_params()}, batch)
    return rollout_fn(trunk, eos_id)(*inputs, jax.random.key(seed))


def prepare(rollout, kl_coef=0.1, **changes):
    coefs = {"kl_coef": jnp.float64(kl_coef), "second_weight": jnp.float64(3)}
    # As one program: outside of ``jax.jit`` every operation would be one.
    return jax.jit(partial(prepare_batch, **PREPARE | changes))(rollout, coefs)


def one_minibatch(rollout):
    """All episodes as the one minibatch of one epoch."""
    return shuffle(prepare(rollout)[0], jax.random.key(7), epochs=1, num_minibatches=1)


def shuffle(batch, key, **numbers):
    return jax.jit(partial(shuffle_minibatches, **numbers))(batch, key)


def objective(new_logprobs, new_values, entropies, batch, *, count):
    """PPO's, with the largest gap between the old and the new among the metrics."""
    loss, metrics = OBJECTIVE(new_logprobs, new_values, entropies, batch, count=count)
    worst = lambda x, y: jnp.where(batch.mask, jnp.abs(x - y), 0.0).max()
    ratio = jnp.exp(new_logprobs - batch.logprobs)
    return loss, metrics | {"ratio": worst(ratio, 1.0), "values": worst(new_values, batch.values)}


def ptx_loss(params, batch, key, count):
    return lm_loss(LM.packed_logits(params["policy"], batch, None), batch, count=count)


def make_update(trunk="separate", *, ptx_coef=0.0, accumulate=1, loss=OBJECTIVE):
    loss_fn = make_ppo_loss(both(trunk), loss, temperature=TEMPERATURE)
    frame = dict(ptx_coef=ptx_coef, accumulate=accumulate, ema_decay=EMA)
    return make_ppo_update(loss_fn, ptx_loss, count_targets, TX, **frame)


@cache
def update_fn(trunk="separate", **changes):
    return jax.jit(make_update(trunk, loss=objective, **changes))


@cache
def donating_update():
    return make_parallel(ParallelConfig(devices=1)).update(make_update(), batch_axis=1)


def make_start(params, **numbers):
    state = make_state(params, TX, ema_decay=EMA)
    for name, value in numbers.items():
        state.opt_state.hyperparams[name] = jnp.float64(value)
    return state


def text(*shape):
    """Packed text with rows of very unequal numbers of targets."""
    rng = np.random.default_rng(3)
    T = 12
    lengths = rng.integers(2, T + 1, shape)
    mask = np.arange(T) < lengths[..., None]
    return LMBatch(
        tokens=jnp.asarray(rng.integers(0, V, (*shape, T)), jnp.int32),
        loss_mask=jnp.asarray(mask & (np.arange(T) > 0)),
        segment_ids=jnp.asarray(mask, jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(T), (*shape, T)),
    )


def follow(average, params):
    """The moving average after one more step, by NumPy."""
    step = lambda e, p: EMA * np.asarray(e) + (1 - EMA) * np.asarray(p)
    return jax.tree.map(step, average, params)


def close(actual, expected):
    check = partial(np.testing.assert_allclose, rtol=SAME, atol=SAME)
    jax.tree.map(check, actual, expected)


def norm(tree):
    return np.sqrt(sum(float((x.astype(float) ** 2).sum()) for x in leaves(tree)))


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def distance(tree, other):
    return max(np.abs(a - b).max() for a, b in zip(leaves(tree), leaves(other), strict=True))


# --- the first minibatch --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trunk,eos_id", [("separate", STOP), ("separate", NEVER), ("shared", STOP)]
)
@pytest.mark.cases(1)
def test_every_ratio_is_one_at_the_first_minibatch(trunk, eos_id):
    """Bugs 14, 15, 35: no dropout and the same temperature in sampler, scorer and update."""
    params = start(trunk)
    rollout = roll_out(params, trunk=trunk, eos_id=eos_id)
    ended = ((rollout.responses == eos_id) & rollout.mask).any(axis=1).sum()
    assert 0 < ended < B if eos_id == STOP else ended == 0
    batches = one_minibatch(rollout)
    _, metrics = update_fn(trunk)(make_start(params), (batches, None), jax.random.key(0))
    assert metrics["ratio"] < SAME and metrics["values"] < SAME
    close(metrics["val/ratio"], 1.0)
    assert metrics["policy/approxkl_avg"] < SAME**2
    assert metrics["policy/clipfrac_avg"] == 0 and metrics["val/clipfrac_avg"] == 0
    assert abs(metrics["loss/policy_avg"]) < SAME  # −mean of whitened advantages


def test_the_second_epoch_sees_the_old_logprobs():
    """Bug 23: they stay those of the rollout, so ratio and clipping move, and more with the lr."""
    params = start()
    batches = one_minibatch(roll_out(params))
    seen = {}
    for lr in (0.0005, 0.05):
        state = make_start(params, lr=lr)
        for epoch in range(2):
            state, seen[lr, epoch] = update_fn()(state, (batches, None), jax.random.key(epoch))
    at = lambda name: [float(seen[run]["policy/" + name]) for run in ((0.0005, 1), (0.05, 1))]
    slow, fast = at("approxkl_avg")
    assert seen[0.05, 0]["policy/approxkl_avg"] < SAME**2 and 1e-6 < slow < fast
    slow, fast = at("clipfrac_avg")
    assert slow < fast


# --- from rollout to batch ------------------------------------------------------------------------


def made_up_rollout(seed=0):
    """Ragged, with not-a-numbers under the mask; some responses hold STOP, some only behind it."""
    rng = np.random.default_rng(seed)
    mask = np.arange(R)[None] < rng.integers(1, R + 1, B)[:, None]
    normal = lambda: np.where(mask, rng.normal(size=(B, R)), np.nan)
    responses = rng.integers(STOP + 1, V, (B, R))
    responses[[0, 2, 4], mask[[0, 2, 4]].sum(axis=1) - 1] = STOP
    responses = np.where(mask, responses, STOP)
    fields = Rollout(
        queries=rng.integers(0, V, (B, Q)).astype(np.int32),
        query_mask=np.ones((B, Q), bool),
        responses=responses.astype(np.int32),
        mask=mask,
        logprobs=normal(),
        ref_logprobs=normal(),
        values=normal(),
        scores={"task": rng.normal(size=B)},
    )
    return jax.tree.map(jnp.asarray, fields)


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("whiten_advantages", [False, True])
@pytest.mark.parametrize("penalty", [None, -1.0])
def test_prepare_batch_reference(whiten_rewards, whiten_advantages, penalty):
    """Bugs 8, 12: scores → rewards → GAE → whitening; R = raw Â + V; another stop token stops."""
    r = made_up_rollout()
    batch, metrics = prepare(
        r,
        0.3,
        advantage_fn=partial(gae, gamma=0.9, lam=0.8),
        whiten_rewards=whiten_rewards,
        whiten_advantages=whiten_advantages,
        missing_eos_penalty=penalty,
    )
    n = jax.tree.map(np.asarray, r)
    ends = np.array([STOP in ids[real] for ids, real in zip(n.responses, n.mask, strict=True)])
    assert ends.tolist() == [True, False] * 2 + [True] + [False] * 3
    scores = n.scores["task"]
    scores = scores if penalty is None else np.where(ends, scores, penalty)
    raw = reference.kl_rewards(scores, n.logprobs, n.ref_logprobs, n.mask, 0.3)
    rewards = reference.whiten(raw, n.mask, shift_mean=False) if whiten_rewards else raw
    advantages, returns = reference.gae(rewards, np.nan_to_num(n.values), n.mask, 0.9, 0.8)
    close(batch.returns, returns)
    expected = reference.whiten(advantages, n.mask, True) if whiten_advantages else advantages
    close(batch.advantages, expected)
    for name in (*r._fields[:5], "ref_logprobs", "values"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(n, name))

    total = lambda x: np.where(n.mask, x, 0).sum(axis=1).mean()
    error = ((returns - n.values)[n.mask] ** 2).mean()
    expected = {
        "objective/kl": total(n.logprobs - n.ref_logprobs),
        "objective/entropy": total(-n.logprobs),
        "objective/non_score_reward": -0.3 * total(n.logprobs - n.ref_logprobs),
        "objective/rlhf_reward": total(raw),
        "objective/scores": scores.mean(),
        "objective/kl_coef": 0.3,
        "val/num_eos_tokens": 3.0,
        "response_length": n.mask.sum() / B,
        "val/var_explained": 1 - error / returns[n.mask].var(),
    }
    close(metrics, expected)


def test_a_second_reward_is_mixed_in_before_the_missing_eos_is_punished():
    """The batch is that of a rollout whose scores were mixed by hand; both scores are logged."""
    r = made_up_rollout()
    h = jnp.linspace(-1, 2, B)
    task = r.scores["task"]
    args = dict(missing_eos_penalty=-1.0)
    batch, metrics = prepare(r._replace(scores={"task": task, "second": h}), **args)
    expected, by_hand = prepare(r._replace(scores={"task": (task + 3 * h) / 4}), **args)
    close(batch, expected)
    close({name: metrics[name] for name in by_hand}, by_hand)
    close(metrics["objective/task_scores"], task.mean())
    close(metrics["objective/second_scores"], h.mean())
    close(metrics["objective/second_weight"], 3.0)


def test_the_second_reward_model_scores_the_whole_episode():
    rollout_of = make_rollout(
        LM,
        both("separate"),
        {"task": SCALAR, "second": SCALAR},
        length=R,
        temperature=TEMPERATURE,
        end_ids=(STOP,),
        pad_id=PAD,
        at_once=1.0,
        recompute_logprobs=False,
        packing=False,
        samples_per_prompt=1,
    )
    queries = jax.random.randint(jax.random.key(100), (B, Q), 0, V)
    batch = QueryBatch(queries, jnp.ones((B, Q), bool), jnp.arange(B))
    second = jax.jit(SCALAR.init)(jax.random.key(2), language_model_params()["trunk"])
    rewards = {"task": reward_params(), "second": second}
    inputs = (start(), language_model_params(), rewards, batch, jax.random.key(0))
    r = jax.jit(rollout_of)(*inputs)
    tokens = jnp.concatenate([r.queries, r.responses], axis=1)
    mask = jnp.concatenate([r.query_mask, r.mask], axis=1)
    score = jax.jit(lambda params: SCALAR.score(params, tokens, mask, None))
    close(r.scores["second"], score(second))
    close(r.scores["task"], score(reward_params()))
    assert np.abs(r.scores["task"] - r.scores["second"]).max() > 1e-3


def test_what_an_ablation_swaps_is_what_runs():
    """One answer of the builder for each of its three functions, and of its controllers."""
    config = PPOConfig(
        response_length=R,
        batch_size=B,
        whiten_advantages=False,
        kl=KLConfig(coef=0.1, target=2.0),
        second_reward=SecondRewardConfig(model=Path("h"), floor=1.0, lr=0.5),
    )
    r = made_up_rollout()
    swapped = dict(
        advantage_fn=lambda rewards, values, mask: (7 * rewards, values),
        objective=lambda new_logprobs, new_values, entropies, batch, *, count: (
            entropies.sum() + batch.ref_logprobs[0, 0],
            {},
        ),
        combine=lambda scores, coefs: scores["a"] - scores["b"] * coefs["second_weight"],
    )
    models = (LM, both("separate"), {}, TX)
    ppo = make_policy_optimization(config, *models, end_ids=(STOP,), pad_id=PAD, **swapped)
    scores = {"a": jnp.arange(B, dtype=float), "b": jnp.ones(B)}
    coefs = {"kl_coef": jnp.float64(0), "second_weight": jnp.float64(3)}
    batch, metrics = jax.jit(ppo.batch)(r._replace(scores=scores), coefs)
    close(metrics["objective/scores"], (scores["a"] - 3).mean())
    close(batch.advantages.sum(axis=1), 7 * (scores["a"] - 3))
    rolled = roll_out(start())
    loss, _ = jax.jit(ppo.loss)(start(), prepare(rolled)[0], jax.random.key(0), 1.0)
    logits, _ = jax.jit(both("separate").evaluate)(start(), *rolled[:4])
    expected = entropy(scale_logits(logits, config.sampling.temperature)).sum()
    close(loss, expected + rolled.ref_logprobs[0, 0])
    moved = ppo.control(
        coefs, {"objective/kl": jnp.float64(4), "objective/second_scores": jnp.float64(0)}
    )
    close(moved["second_weight"], 3 * np.exp(0.5))
    only = {"kl_coef": jnp.float64(0.1)}
    config = replace(config, second_reward=SecondRewardConfig())
    ppo = make_policy_optimization(config, *models, end_ids=(STOP,), pad_id=PAD)
    close(
        ppo.control(only, {"objective/kl": jnp.float64(4)}),
        {"kl_coef": 0.1 * (1 + 0.2 * B / 10_000)},
    )


def test_an_algorithm_is_what_its_config_says():
    """Groups before the shuffle, weights of each minibatch after it, β in the loss as an array."""
    config = PPOConfig(
        response_length=R,
        batch_size=B,
        num_minibatches=2,
        samples_per_prompt=2,
        value_trunk="none",
        advantage="dr_grpo",
        whiten_advantages=False,
        aggregation="sequence_mean",
        kl=KLConfig(coef=0.1, place="loss", estimator="k3"),
    )
    wired = lambda config: make_policy_optimization(
        config, LM, both("none"), {}, TX, end_ids=(STOP,), pad_id=PAD
    )
    scores = jnp.asarray([0.5, 1.5, 2.0, 2.0, 3.0, -3.0, 0.0, 4.0])
    r = made_up_rollout()._replace(values=None, scores={"task": scores})
    coefs = {"kl_coef": jnp.float64(0.4)}
    batches, metrics = jax.jit(wired(config).prepare)(r, coefs, jax.random.key(0))
    assert batches.kl_coef.tolist() == [[0.4] * 4] * 2 and batches.values is None
    close(metrics["objective/zero_spread_groups"], 0.25)
    close(metrics["objective/rlhf_reward"], scores.mean())
    by_logprob = dict(
        zip(np.asarray(r.logprobs)[:, 0], [-0.5, 0.5, 0, 0, 3, -3, -2, 2], strict=True)
    )
    for batch in map(lambda i: jax.tree.map(lambda x: x[i], batches), range(2)):
        lengths = batch.mask.sum(axis=1, keepdims=True)
        close(batch.weights, np.where(batch.mask, batch.mask.sum() / 4 / lengths, 0))
        expected = np.array([by_logprob[x] for x in np.asarray(batch.logprobs)[:, 0]])
        close(batch.advantages, np.where(batch.mask, expected[:, None], 0))
    whole, _ = jax.jit(wired(config).batch)(r, coefs)
    close(whole.weights, np.where(r.mask, r.mask.sum() / B / r.mask.sum(axis=1, keepdims=True), 0))

    config = replace(config, advantage="reinforce", aggregation="token_mean")
    coefs = {name: jnp.float64(x) for name, x in starting_coefs(config).items()}
    assert coefs.keys() == {"kl_coef", "baseline", "baseline_weight"}
    moved = wired(config).control(coefs, metrics)
    batch, metrics = jax.jit(wired(config).batch)(r, moved)
    close(metrics["objective/baseline"], scores.mean())
    close(batch.advantages, np.where(r.mask, (scores - scores.mean())[:, None], 0))
    assert batch.weights is None


def test_the_sampler_of_an_algorithm_reads_a_prompt_once_for_its_group():
    config = PPOConfig(
        response_length=R,
        batch_size=B,
        samples_per_prompt=4,
        num_minibatches=1,
        value_trunk="none",
        advantage="grpo",
        whiten_advantages=False,
        kl=KLConfig(coef=0.1),
    )
    rows = []

    def prefill(params, queries, *mask, **length):
        rows.append(len(queries))
        return LM.prefill(params, queries, *mask, **length)

    lm, none = LM._replace(prefill=prefill), both("none")
    ppo = make_policy_optimization(config, lm, none, {}, TX, end_ids=(STOP,), pad_id=PAD)
    params = none.init(language_model_params(), {})
    ids = jnp.zeros((B, Q), jnp.int32)
    batch = QueryBatch(ids, jnp.ones((B, Q), bool), jnp.arange(B))
    jax.eval_shape(ppo.rollout, params, language_model_params(), {}, batch, jax.random.key(0))
    assert rows == [B // 4]


def test_the_kl_of_twice_as_long_responses_is_twice_as_large():
    """Bug 19: the controller's target is nats per episode, not per token."""
    r = made_up_rollout()
    kl = lambda length: prepare(
        r._replace(
            **{name: jnp.zeros((B, length), jnp.int32) for name in ("responses",)},
            mask=jnp.ones((B, length), bool),
            logprobs=jnp.full((B, length), -1.0),
            ref_logprobs=jnp.full((B, length), -1.5),
            values=jnp.zeros((B, length)),
        )
    )[1]["objective/kl"]
    close([kl(3), kl(6)], [1.5, 3.0])


def test_minibatches_are_whole_episodes_each_used_once_per_epoch():
    """Bugs 31, 47: fields of an episode stay together; the order is new each epoch and key."""
    batch, _ = prepare(made_up_rollout())
    key_a, key_b = jax.random.split(jax.random.key(0))
    shuffled = shuffle(batch, key_a, epochs=3, num_minibatches=4)
    assert shuffled.returns.shape == (12, B // 4, R)
    as_rows = lambda fields, n: np.concatenate(
        [np.nan_to_num(x.reshape(n, -1)).astype(float) for x in jax.tree.leaves(fields)], axis=1
    )
    same = (as_rows(shuffled, 3 * B)[:, None] == as_rows(batch, B)[None]).all(axis=-1)
    assert (same.sum(axis=1) == 1).all()
    orders = same.argmax(axis=1).reshape(3, B).tolist()
    assert all(sorted(order) == list(range(B)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    other = shuffle(batch, key_b, epochs=1, num_minibatches=1)
    assert (np.asarray(other.queries[0]) != np.asarray(batch.queries)[orders[0]]).any()


# --- one step by hand -----------------------------------------------------------------------------


def test_ptx_gradients_are_added_before_the_one_clip():
    """Bug 44: p ← p − lr · clip(∇PPO + γ ∇LM), each minibatch with its own rows of text."""
    coefficient, clip, lr = 0.5, 0.5, 0.2
    params, ptx = start(), text(2, B)
    batches = one_minibatch(roll_out(params))
    loss_fn = make_ppo_loss(both("separate"), objective, temperature=TEMPERATURE)
    gradient = lambda f: jax.jit(jax.grad(lambda p, b: f(p, b, None, None)[0]))
    ppo_gradient, lm_gradient = gradient(loss_fn), gradient(ptx_loss)
    state, expected = make_start(params, lr=lr, clip=clip), params
    for i in range(2):
        rows = jax.tree.map(lambda x, i=i: x[i : i + 1], ptx)
        state, metrics = update_fn(ptx_coef=coefficient)(state, (batches, rows), jax.random.key(i))
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)
        ppo, lm = ppo_gradient(expected, first(batches)), lm_gradient(expected, first(rows))
        total = jax.tree.map(lambda g, p: g + coefficient * p, ppo, lm)
        # Clipping would be another step if it came before the sum.
        assert norm(lm) > 1 > clip and norm(ppo) > 1 > clip and norm(total) > clip
        scale = lr * clip / norm(total)
        expected = jax.tree.map(lambda p, g, s=scale: p - s * g, expected, total)
        close(state.params, expected)
        close(metrics["policy/grad_norm"], norm(ppo["policy"]))
        close(metrics["policy/ptx_grad_norm"], coefficient * norm(lm))


def test_microbatches_of_unequal_length_make_the_same_step():
    """Bug 29: 1 × 8 = 4 × 2 rows: one sum over one count, in PPO and in its ptx term."""
    params, ptx = start(), text(1, B)
    batches = one_minibatch(roll_out(params))
    assert len(set(np.asarray(batches.mask[0].sum(axis=1)).tolist())) > 2
    (whole, metrics), (parts, parts_metrics) = (
        update_fn(ptx_coef=0.5, **changes)(
            make_start(params, lr=0.01), (batches, ptx), jax.random.key(0)
        )
        for changes in ({}, {"accumulate": 4})
    )
    assert distance(whole.params, params) > 1e-3
    close(parts.params, whole.params)
    # A largest value is no share of a mean: it does not add up.
    shares = lambda metrics: {k: v for k, v in metrics.items() if k not in ("ratio", "values")}
    close(shares(parts_metrics), shares(metrics))


def test_microbatches_of_text_make_the_same_step():
    """Bug 29 in pretraining, SFT and reward modelling, which share this step."""
    params, rows = {"policy": language_model_params()}, jax.tree.map(lambda x: x[0], text(1, B))
    results = []
    for accumulate in (1, 4):
        step = make_update_step(ptx_loss, count_targets, TX, accumulate=accumulate, ema_decay=EMA)
        results.append(jax.jit(step)(make_start(params), rows, jax.random.key(0)))
    (whole, metrics), (parts, parts_metrics) = results
    assert distance(whole.params, params) > 1e-3
    close(parts.params, whole.params)
    close(parts_metrics, metrics)


def test_the_stages_update_is_split_as_optim_says():
    """Whole or in parts the step is the same, so that only the rows of a part tell."""
    rows = set()

    def loss_fn(params, batch, key, count):
        rows.add(len(batch))
        return (params * batch).sum() / count, {}

    optim = OptimConfig(accumulate=4, ema_decay=EMA)
    step = update_step_of(optim, loss_fn, len, TX)
    state, _ = step(make_start(jnp.ones(())), jnp.ones(B), jax.random.key(0))
    assert rows == {B // 4}
    close(state.ema_params, EMA + (1 - EMA) * state.params)


def test_every_microbatch_has_a_key_of_its_own():
    """Bug 40: with one key for all of them, dropout would drop the same units in each."""

    def loss_fn(params, batch, key, count):
        draw = jax.random.uniform(key)
        return jnp.float32(0), {"draw": draw, "square": draw**2}

    gradients = accumulated_gradients(
        loss_fn, jnp.float32(0), jnp.zeros(4), jax.random.key(0), 1.0, accumulate=4
    )
    total, squares = (float(gradients[1][name]) for name in ("draw", "square"))
    assert squares / 4 - (total / 4) ** 2 > 1e-3


def test_minibatches_are_taken_in_turn_and_the_average_follows_each():
    """Bug 42: e ← d e + (1 − d) p from the initial weights on, without debiasing."""
    params = start()
    batch, _ = prepare(roll_out(params))
    batches = shuffle(batch, jax.random.key(7), epochs=1, num_minibatches=4)
    begin = lambda: make_start(params, lr=0.01)
    at_once, metrics = update_fn()(begin(), (batches, None), jax.random.key(0))
    state, average, seen = begin(), params, []
    for n in range(4):
        one = jax.tree.map(lambda x, n=n: x[n : n + 1], batches)
        state, each = update_fn()(state, (one, None), jax.random.key(n))
        average = follow(average, state.params)
        close(state.ema_params, average)
        seen.append(each)
    close((at_once.params, at_once.ema_params), (state.params, average))
    close(metrics, jax.tree.map(lambda *x: sum(x) / 4, *seen))
    assert distance(average, state.params) > 1e-3 and int(at_once.step) == 4


def test_the_schedule_advances_once_per_iteration():
    """Bug 41: Adam moves a weight of constant gradient by the learning rate each time.

    Here 1, 2, 3, 3 · 0.1 in the iterations' turn, 4 minibatches each.
    """
    config = OptimConfig(
        lr=0.3,
        schedule="constant",
        warmup_steps=2,
        warmup_init=1 / 3,
        weight_decay=0.0,
        clip_norm=0.0,
        eps=1e-12,
    )
    tx = make_policy_value_optimizer(config, config, 4, updates_per_step=4)

    def loss_fn(params, batch, key, count):
        total = params["policy"]["w"] + params["value"]["w"]
        return total, {"policy": params["policy"]["w"]}

    params = {name: {"w": jnp.float64(0)} for name in ("policy", "value")}
    update = jax.jit(
        make_ppo_update(loss_fn, None, None, tx, ptx_coef=0.0, accumulate=1, ema_decay=0.0)
    )
    state = make_state(params, tx, ema_decay=0.0)
    batches = shuffle(prepare(made_up_rollout())[0], jax.random.key(0), epochs=2, num_minibatches=2)
    positions = [0.0]
    for iteration in range(4):
        state, _ = update(state, (batches, None), jax.random.key(iteration))
        positions.append(-float(state.params["policy"]["w"]))
        close(state.params["value"], state.params["policy"])
    close(np.diff(positions) / 4, np.array([0.1, 0.2, 0.3, 0.3]))


# --- what an update leaves alone, and what it moves -----------------------------------------------


def test_ten_more_columns_of_padding_change_nothing():
    """Bugs 9, 27, 28: neither metrics nor parameters depend on the width of the batch."""
    params, whole = start(), roll_out(start())
    junk = {"responses": 7, "logprobs": np.nan, "ref_logprobs": np.nan, "values": np.nan}
    wide = lambda x, fill: jnp.pad(x, [(0, 0), (0, 10)], constant_values=fill)
    fields = {name: wide(getattr(whole, name), fill) for name, fill in junk.items()}
    padded = whole._replace(mask=wide(whole.mask, False), **fields)
    close(prepare(padded)[1], prepare(whole)[1])
    (state, metrics), (padded_state, padded_metrics) = (
        update_fn()(make_start(params), (one_minibatch(rollout), None), jax.random.key(0))
        for rollout in (whole, padded)
    )
    close(padded_metrics, metrics)
    close(padded_state.params, state.params)
    assert distance(state.params, params) > 1e-3


def test_the_reference_stays_and_the_policy_leaves_it():
    """Bug 21: KL 0, one donating update, then KL > 0 from the very same reference."""
    original = params_sha256(language_model_params())
    state = make_start(start())
    before = roll_out(state.params)
    assert abs(float(prepare(before)[1]["objective/kl"])) < SAME
    state, _ = donating_update()(state, (one_minibatch(before), None), jax.random.key(0))
    assert prepare(roll_out(state.params))[1]["objective/kl"] > 1e-3
    assert params_sha256(language_model_params()) == original


def test_a_step_donates_its_state_and_nothing_else():
    """The reference, and the average that starts as a copy of the weights, own their buffers."""
    parallel = make_parallel(ParallelConfig(devices=1))
    params = start()
    ref_params = parallel.place(params["policy"])
    state = parallel.place(make_start(params))
    batches = one_minibatch(roll_out(params))
    average = params
    for n in range(2):
        new, _ = donating_update()(state, (batches, None), jax.random.key(n))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.ema_params))
        average = follow(average, new.params)
        close(new.ema_params, average)
        state = new
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((ref_params, params)))
    assert params_sha256(ref_params) == params_sha256(language_model_params())


@pytest.mark.parametrize("trunk", ["separate", "shared"])
def test_values_learn_and_only_a_shared_trunk_moves_the_policy(trunk):
    """Without advantages there is the value loss alone: it falls, whatever the trunk."""
    params = start(trunk)
    batches = one_minibatch(roll_out(params, trunk=trunk))
    batches = batches._replace(advantages=jnp.zeros((1, B, R)))
    state, losses = make_start(params, lr=0.002), []
    for n in range(10):
        state, metrics = update_fn(trunk)(state, (batches, None), jax.random.key(n))
        losses.append(float(metrics["loss/value_avg"]))
    assert losses[-1] < 0.8 * losses[0]
    trunks = state.params["policy"]["trunk"], params["policy"]["trunk"]
    assert distance(*trunks) > 1e-3 if trunk == "shared" else distance(*trunks) == 0
    head = "policy" if trunk == "shared" else "value"
    assert distance(state.params[head]["head"], params[head]["head"]) > 1e-3


def test_a_shared_trunk_learns_from_both_losses():
    """Its one gradient is the sum of those of the policy and of the value loss."""
    params = start("shared")
    # The head starts at 0, where the value loss does not reach the trunk.
    head = {"kernel": jnp.ones((CONFIG.d_model, 1)) / 4, "bias": jnp.zeros(1)}
    params = {"policy": params["policy"] | {"head": head}}
    whole = one_minibatch(roll_out(params, trunk="shared"))

    def moved(batches):
        new, _ = update_fn("shared")(make_start(params), (batches, None), jax.random.key(0))
        return jax.tree.map(lambda a, b: a - b, new.params["policy"], params["policy"])

    value = moved(whole._replace(advantages=jnp.zeros((1, B, R))))
    policy = moved(whole._replace(returns=whole.values))
    assert norm(value["trunk"]) > 1e-2 and norm(policy["trunk"]) > 1e-2
    close(moved(whole), jax.tree.map(jnp.add, policy, value))
    assert norm(policy["head"]) < SAME < norm(value["head"])
