"""The doctor's checks: what must hold of every RLHF run.

Each ``*_findings`` measures one part of a run on sampled episodes and returns rows of the table.
"""

from dataclasses import replace
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.config import ParallelConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.data.formats import Prompt, iterate
from rlhf_jax.doctor import invariants as of_model
from rlhf_jax.doctor import invariants_ppo as of_ppo
from rlhf_jax.doctor.checks_data import (
    ROWS,
    comparison_findings,
    demonstration_findings,
    tokenizer_findings,
)
from rlhf_jax.doctor.invariants import Finding, not_run
from rlhf_jax.doctor.patient import Episodes, Patient, ppo_batch, sample_episodes, wired
from rlhf_jax.models.heads import LanguageModel, make_language_model
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.objectives.rewards import kl_penalised_rewards
from rlhf_jax.runs.checkpoints import params_sha256
from rlhf_jax.training.optimizers import make_policy_value_optimizer, make_state
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.policy_optimization import make_ppo_loss
from rlhf_jax.training.updates import accumulated_gradients
from rlhf_jax.types import Params, Rollout

MORE = 7
"""Columns of padding added where padding must not matter."""
EXACT = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest gap between two ways to one number, by model.dtype."""
HALF = 0.25
"""Largest gap between bfloat16 and float32 logits, in standard deviations of the logits."""


def examine(p: Patient) -> list[Finding]:
    """All findings on one patient; samples a batch of episodes for them."""
    columns = column_names(p.ppo.columns)
    prompts = list(islice(iterate(p.ppo.prompts, Prompt, columns=columns), ROWS))
    episodes = sample_episodes(p, prompts)
    return [
        *tokenizer_findings(p, prompts),
        *demonstration_findings(p, episodes),
        *comparison_findings(p),
        *model_findings(p, episodes),
        *logprob_findings(p, episodes),
        *score_findings(p, episodes),
        *reward_findings(p, episodes),
        *chunk_findings(p, episodes),
        *reference_findings(p, episodes),
        *device_findings(p, episodes),
    ]


def model_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether padding, batch and cache change nothing, and bfloat16 little."""
    p, few = p.exact, episodes.few
    half = make_language_model(replace(p.policy.model, dtype="bfloat16"), p.policy.vocab_size)
    tokens, mask = episodes.sequences
    leaves = {"policy": p.policy.params, "reward model": p.reward.params}
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(leaves))
    logits_of = partial(jax.jit(partial(p.lm.logits, start=0)), p.policy.params)
    half_logits_of = partial(jax.jit(partial(half.logits, start=0)), p.policy.params)
    logits = logits_of(tokens, mask)
    before = np.asarray(logits)[:, few.queries.shape[1] - 1 : -1]  # each response's token
    exact = EXACT["float32"]
    return [
        of_model.parameters_are_finite({jax.tree_util.keystr(k): leaf for k, leaf in named}),
        of_model.padding_changes_nothing(
            logits_of, tokens, mask, pad_id=p.policy.tokenizer.pad_id, columns=MORE, bound=exact
        ),
        of_model.batch_changes_nothing(logits_of, tokens, mask, rows=4, bound=exact),
        of_model.cache_changes_nothing(
            cached_logits(p.lm, p.policy.params, few),
            before,
            few.mask,
            bound=exact,
        ),
        of_model.half_precision_is_close(
            np.asarray(half_logits_of(tokens, mask)), np.asarray(logits), mask, bound=HALF
        ),
    ]


def cached_logits(lm: LanguageModel, params: Params, r: Rollout) -> np.ndarray:
    """Logits [B R V] that predict each response token, decoded one by one."""
    length = r.responses.shape[1]
    decode = jax.jit(lm.decode)
    prefill = jax.jit(partial(lm.prefill, length=length))
    logits, cache = prefill(params, r.queries, r.query_mask)
    # Prefill's logits are for the first token, each step's for the next.
    columns = [np.asarray(logits)]
    for t in range(length - 1):
        logits, cache = decode(params, jnp.asarray(r.responses[:, t]), cache)
        columns.append(np.asarray(logits))
    return np.stack(columns, axis=1)


def logprob_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether sampler and trainer agree on log-probs, so that ρ = 1 and KL = 0 at the start."""
    r, bound = episodes.rollout, EXACT[p.policy.model.dtype]
    temperature = p.ppo.sampling.temperature

    def seen(logprobs, values, entropies, batch, *, count):
        return count, {"logprobs": logprobs, "entropies": entropies}

    loss_fn = jax.jit(make_ppo_loss(p.policy_value, seen, temperature=temperature))
    _, metrics = loss_fn(p.params, ppo_batch(p, r), jax.random.key(0), 1.0)
    new_logprobs, entropies = (np.asarray(metrics[name]) for name in ("logprobs", "entropies"))

    return [
        of_ppo.ratio_is_one(new_logprobs, r.logprobs, r.mask, bound=bound),
        of_ppo.kl_to_self_is_zero(r.logprobs, r.ref_logprobs, r.mask, bound=10 * bound),
        of_ppo.sampler_agrees_with_trainer(episodes.sampled, new_logprobs, r.mask, bound=bound),
        of_ppo.samples_follow_the_policy(new_logprobs, entropies, r.mask, bound=5),
    ]


def score_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether the score is read at the last token and nowhere in padding."""
    query_length = episodes.few.queries.shape[1]
    score_fn = jax.jit(partial(p.exact.reward_model.score, start=query_length))

    def score_of(tokens, mask):
        return score_fn(p.reward.params, tokens, mask, None)

    tokens, mask = episodes.sequences
    vocab_size = p.reward.vocab_size
    # What stands in padding must not matter, so anything may stand there.
    junk = np.random.default_rng(0).integers(0, vocab_size, tokens.shape, dtype=np.int32)
    bound = EXACT["float32"]
    return [
        of_ppo.score_ignores_padding(score_of, tokens, mask, junk=junk, columns=MORE, bound=bound),
        of_ppo.score_reads_the_last_token(
            score_of, tokens, mask, vocab_size=vocab_size, least=bound
        ),
    ]


def reward_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """On another reference, or there would be no KL to count."""
    r, beta, bound = episodes.few, p.ppo.kl.coef, EXACT["float32"]
    # The policy is its own reference here, and a KL of 0 would check nothing.
    noise = np.random.default_rng(0).normal(size=r.logprobs.shape).astype(np.float32)
    scores = np.full_like(r.scores["task"], 0.3)
    r = r._replace(ref_logprobs=r.logprobs - noise, scores={"task": scores})
    four = (scores, r.logprobs, r.ref_logprobs, r.mask)
    rewards = np.asarray(jax.jit(partial(kl_penalised_rewards, kl_coef=beta))(*four))
    # Advantage + value is then the reward to go, at the first token all of it.
    batch = ppo_batch(
        p,
        r,
        kl=replace(p.ppo.kl, place="reward", estimator="k1"),
        advantage="gae",
        ratio="token",
        gamma=1.0,
        lam=1.0,
        whiten_rewards=False,
        whiten_advantages=False,
        missing_eos_penalty=None,
    )
    values = 0.0 if r.values is None else r.values
    to_go = np.asarray(batch.advantages + values)[:, 0]
    expected = scores - beta * np.where(r.mask, noise, 0.0).sum(axis=1)
    return [
        of_ppo.rewards_sum_to_the_objective(rewards, *four, kl_coef=beta, bound=bound),
        of_ppo.fractions_survive(to_go, expected, bound=bound),
    ]


def chunk_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether two micro-batches have the gradient of one."""
    p = p.exact
    batch, loss_fn = episodes.batch, wired(p).loss
    count = batch.mask.sum().astype(jnp.float32)

    def gradient(accumulate):
        fn = jax.jit(partial(accumulated_gradients, loss_fn, accumulate=accumulate))
        return leaves(fn(p.params, batch, jax.random.key(0), count)[0])

    bound = EXACT["float32"]
    return [of_ppo.chunks_change_nothing(gradient(2), gradient(1), bound=bound)]


def reference_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether an update moves the policy, and neither reference nor reward model."""
    frozen = {"reference": p.policy.params, "reward": p.reward.params}
    # Digests, for a single bit of the reference is too much.
    before, policy = digest(frozen), leaves(p.policy_value.policy(p.params))
    # From the first step at the full rate: a warm-up may begin at 0.
    policy_optim, value_optim = (
        replace(optim, warmup_steps=0) for optim in (p.ppo.optim, p.ppo.value_optim)
    )
    tx = make_policy_value_optimizer(
        policy_optim, value_optim, p.ppo.iterations, updates_per_step=1
    )
    one = ParallelConfig(p.ppo.parallel.mode, 1)
    updated = leaves(p.policy_value.policy(updated_params(p, episodes, tx, layout=one)))
    gap = of_ppo.distance(updated, policy)
    return [of_ppo.only_the_policy_moved(before, digest(frozen), gap)]


def device_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether an update is the same on one device and on all."""
    p, devices = p.exact, p.ppo.parallel.devices or jax.device_count()
    if devices == 1:
        return [not_run("1 device = N devices", "one device")]
    # Plain gradient descent, for Adam would hide a gradient that is N times too large; and a step
    # so long that the parameters' own rounding does not count.
    step = partial(updated_params, p, episodes, optax.sgd(1e3))
    before = leaves(p.params)
    layouts = ParallelConfig(p.ppo.parallel.mode, 1), p.ppo.parallel
    one, several = (
        [x - y for x, y in zip(leaves(step(layout=layout)), before, strict=True)]
        for layout in layouts
    )
    bound = EXACT["float32"]
    return [of_ppo.devices_change_nothing(several, one, number=devices, bound=bound)]


def updated_params(p: Patient, episodes: Episodes, tx, *, layout: ParallelConfig) -> Params:
    """Parameters of policy and value network after one minibatch, as experiments.ppo does it."""
    parallel = make_parallel(layout)
    params, frozen = parallel.place(partition(p.params))
    state = parallel.init(partial(make_state, tx=tx, ema_decay=0.0), params)
    optim = replace(p.ppo.optim, accumulate=1, ema_decay=0.0)
    update = parallel.update(wired(p, tx=tx, optim=optim).update, frozen=frozen, batch_axis=1)
    # The update scans over minibatches: an axis of one.
    one_minibatch = parallel.shard(jax.tree.map(lambda x: x[None], episodes.batch), axis=1)
    state, _ = update(state, (one_minibatch, None), jax.random.key(0))
    return combine(frozen, state.params)


def leaves(params: Params) -> list[np.ndarray]:
    """The arrays of nested parameters, on the host."""
    return jax.tree.leaves(jax.device_get(params))


def digest(params: Params) -> str:
    """The parameters' SHA-256, or "deleted" where a donated buffer is gone."""
    gone = any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    return "deleted" if gone else params_sha256(params)
