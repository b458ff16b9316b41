"""The doctor's checks: who is examined, and what must hold of every RLHF run.

Each ``*_findings`` measures one part of a run on sampled episodes and returns rows of the table.
"""

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.config import (
    ParallelConfig,
    PPOConfig,
    SFTConfig,
)
from rlhf_jax.data.batches import query_batches
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.encoding import encode_demonstrations, encode_prompts
from rlhf_jax.data.fates import of_comparisons
from rlhf_jax.data.formats import Account, Comparison, Demonstration, Prompt, iterate
from rlhf_jax.doctor import invariants as of_model
from rlhf_jax.doctor import invariants_data as of_data
from rlhf_jax.doctor import invariants_ppo as of_ppo
from rlhf_jax.doctor.invariants import Finding, not_run
from rlhf_jax.errors import known
from rlhf_jax.models.heads import (
    LanguageModel,
    PolicyValue,
    ScalarModel,
    make_language_model,
    make_policy_value,
    make_scalar_model,
)
from rlhf_jax.models.lora import combine, partition
from rlhf_jax.objectives.rewards import kl_penalised_rewards
from rlhf_jax.runs.checkpoints import params_sha256
from rlhf_jax.runs.fit import fit_demonstrations
from rlhf_jax.runs.trained import Trained
from rlhf_jax.training.optimizers import make_policy_value_optimizer, make_state
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.policy_optimization import make_policy_optimization, make_ppo_loss
from rlhf_jax.training.updates import accumulated_gradients
from rlhf_jax.types import LMBatch, Params, PPOBatch, Rollout

EPISODES = 64
"""Sampled answers to the user's prompts; more if there are more devices."""
FEW = 16
"""Of these in checks that need no statistics."""
ROWS = 20_000
"""Prompts and demonstrations read."""
MORE = 7
"""Columns of padding added where padding must not matter."""
EXACT = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest gap between two ways to one number, by model.dtype."""
HALF = 0.25
"""Largest gap between bfloat16 and float32 logits, in standard deviations of the logits."""

EVERY_CHARACTER = "".join(
    map(chr, (*range(0x801), *range(0x1000, 0x10000, 0x1000), *range(0x10000, 0x110000, 0x10000)))
)
"""Text in which every byte that UTF-8 knows occurs."""


class Patient(NamedTuple):
    """What is examined."""

    ppo: PPOConfig
    policy: Trained
    """Also the reference."""
    reward: Trained
    trained: Trained
    """What PPO trains, from the policy and from the value network's start: adapters and all."""
    value: Trained
    fresh: tuple[str, ...]
    """"policy" and "reward" where these are not trained yet, and so have random parameters."""
    sft: SFTConfig | None
    comparisons: Path | None

    @property
    def exact(self) -> "Patient":
        """The same in float32, for what does not depend on rounding."""
        names = ("policy", "reward", "trained", "value")
        models = {name: getattr(self, name) for name in names}
        shapes = {name: replace(of.model, dtype="float32") for name, of in models.items()}
        exact = {name: models[name]._replace(model=shape) for name, shape in shapes.items()}
        return self._replace(**exact)

    @property
    def lm(self) -> LanguageModel:
        """The functions of the policy."""
        return make_language_model(self.trained.model, self.trained.vocab_size)

    @property
    def reward_model(self) -> ScalarModel:
        """The functions of the reward model."""
        return make_scalar_model(self.reward.model, self.reward.vocab_size)

    @property
    def policy_value(self) -> PolicyValue:
        """The functions of what PPO trains."""
        model, rows = self.trained.model, self.trained.vocab_size
        return make_policy_value(model, self.value.model, rows, self.ppo.value_trunk)

    @property
    def params(self) -> Params:
        """Of policy and value network together."""
        return self.policy_value.init(self.trained.params, self.value.params)


class Episodes(NamedTuple):
    """Answers of the policy, which here is its own reference, to some of the prompts."""

    rollout: Any
    """A Rollout on the host: its arrays are NumPy's."""
    sampled: np.ndarray
    """The sampler's own log-probs, whether or not the rollout recomputes them."""
    few: Any
    """Some of the episodes, cut short at different places: an untrained policy never stops."""
    batch: PPOBatch
    """``few`` as PPO's update reads them."""

    @property
    def sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """``few`` as (tokens, mask)."""
        tokens = (self.few.queries, self.few.responses), (self.few.query_mask, self.few.mask)
        ids, mask = (np.concatenate(parts, axis=1) for parts in tokens)
        return ids, mask


def examine(p: Patient) -> list[Finding]:
    """All findings on one patient; samples a batch of episodes for them."""
    prompts = list(islice(iterate(p.ppo.prompts, Prompt), ROWS))
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


def sample_episodes(p: Patient, prompts: list[Prompt]) -> Episodes:
    """A batch of episodes of the patient, and a few of them with responses cut at many lengths."""
    devices = p.ppo.parallel.devices or jax.device_count()
    # Divisible by the devices, and on each into two micro-batches.
    number = -(-FEW // (2 * devices)) * 2 * devices
    queries = query_batches(
        prompts,
        p.policy.tokenizer,
        query_length=known(p.ppo.prompt_length),
        batch_size=max(EPISODES, number),
        seed=p.ppo.run.data_seed,
    )
    batch = next(queries)

    def episodes(recompute_logprobs: bool) -> Any:
        rollout_fn = jax.jit(wired(p, recompute_logprobs=recompute_logprobs).rollout)
        params = (p.params, p.policy.params, {"task": p.reward.params})
        return jax.device_get(rollout_fn(*params, batch, jax.random.key(p.ppo.run.seed)))

    rollout = episodes(p.ppo.recompute_logprobs)
    sampled = episodes(False).logprobs if p.ppo.recompute_logprobs else rollout.logprobs
    some = jax.tree.map(lambda x: x[:number], rollout)
    R = known(p.ppo.response_length)
    keep = 1 + np.arange(number) * 7 % R
    cut = some.mask & (np.arange(R)[None] < keep[:, None])
    few = some._replace(mask=cut)
    return Episodes(rollout, sampled, few, ppo_batch(p, few))


def tokenizer_findings(p: Patient, prompts: list[Prompt]) -> list[Finding]:
    """Whether texts come back, ids have embeddings, and prompts and answers fit."""
    t, length, context = p.policy.tokenizer, known(p.ppo.prompt_length), p.policy.model.context
    texts = [as_text(row.prompt) for row in prompts]
    ids = t.encode_prompts([row.prompt for row in prompts])
    batch, report = encode_prompts(prompts, t, query_length=length, everything=True)
    return [
        of_data.padding_is_not_the_end(t.pad_id, t.end_ids),
        of_data.text_comes_back(t.encode, t.decode, [*texts, EVERY_CHARACTER]),
        of_data.bytes_have_ids(t.decode_bytes([i]) for i in range(t.vocab_size)),
        of_data.ids_fit_the_embedding([*ids, [*t.bos_ids, *t.end_ids]], rows=p.policy.vocab_size),
        of_data.episodes_fit(length + known(p.ppo.response_length), context=context),
        of_data.prompts_fit(report.cut.get("prompt", 0), len(texts), length=length, bound=0.05),
        of_data.queries_keep_the_end(
            np.asarray(batch.queries[:-1]),
            np.asarray(batch.query_mask[:-1]),
            ids,
            bos_id=t.named_bos_id,
        ),
    ]


def demonstration_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether the end of text is in SFT's loss, was learnt from it, and is sampled."""
    r = episodes.rollout
    ended = np.any(np.isin(r.responses, p.policy.tokenizer.end_ids) & r.mask, axis=1)
    untrained = not_run("the end of text is learnt", "no finished SFT run")
    sampled = of_data.answers_end(int(ended.sum()), len(r.mask), bound=0.5)
    if p.sft is None or not p.sft.data.exists():
        reason = f"{p.sft.data} is not there" if p.sft else f"{p.ppo.init} names no demonstrations"
        return [not_run("demonstrations", reason), untrained if "policy" in p.fresh else sampled]
    rows = list(islice(iterate(p.sft.data, Demonstration), ROWS))
    c = fit_demonstrations(p.sft, rows, p.policy.tokenizer, context=p.policy.model.context)
    batch, report = encode_demonstrations(
        rows,
        p.policy.tokenizer,
        block_size=known(c.block_size),
        prompt_length=known(c.prompt_length),
        response_length=known(c.response_length),
        target="response",
    )
    findings = [
        of_data.ends_are_targets(
            np.asarray(batch.tokens),
            np.asarray(batch.loss_mask),
            end_ids=p.policy.tokenizer.end_ids,
            demonstrations=report.kept,
        ),
        of_data.demonstrations_fit(
            sum(report.left_out.values()), len(rows), length=known(c.response_length), bound=0.25
        ),
    ]
    if "policy" in p.fresh:
        return [*findings, untrained]
    some = LMBatch(*(leaf[:EPISODES].astype(np.int32) for leaf in batch))
    some = some._replace(loss_mask=some.loss_mask.astype(bool))
    logits_fn = jax.jit(lambda params, batch: p.lm.packed_logits(params, batch, None))
    likeliest = np.asarray(logits_fn(p.policy.params, some).argmax(axis=-1))[:, :-1]
    ends = np.isin(some.tokens[:, 1:], p.policy.tokenizer.end_ids) & some.loss_mask[:, 1:]
    right = int((likeliest == some.tokens[:, 1:])[ends].sum())
    return [*findings, of_data.ends_are_predicted(right, int(ends.sum()), bound=0.5), sampled]


def comparison_findings(p: Patient) -> list[Finding]:
    """On ids, as the reward model sees the answers: other texts may have the same, once cut."""
    path = p.comparisons
    if path is None or not path.exists():
        reason = f"{path} is not there" if path else "the reward model's run names none"
        return [not_run("comparisons", reason)]
    account = Account()
    rows = list(iterate(path, Comparison, account))
    length = p.ppo.response_length
    found = list(
        of_comparisons(rows, p.reward.tokenizer, prompt_length=None, response_length=length)
    )
    by_ids = [(tuple(f.query), tuple(map(tuple, f.responses)), f.ranks) for f in found]
    agree = of_data.comparisons_agree(of_data.find_conflicts(by_ids), bound=0.05)
    useless = sum(fate.why is not None for fate in found) + len(account.left_out)
    total = len(rows) + len(account.left_out)
    return [*agree, of_data.rankings_rank(useless, total, bound=0.1)]


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


def wired(p: Patient, *, tx: optax.GradientTransformation | None = None, **changes: Any):
    """PPO's functions as experiments.ppo runs them, but for ``changes`` of its config."""
    tokenizer = p.policy.tokenizer
    return make_policy_optimization(
        replace(p.ppo, ptx_coef=0.0, **changes),
        p.lm,
        p.policy_value,
        {"task": p.reward_model},
        tx or optax.identity(),
        end_ids=tokenizer.end_ids,
        pad_id=tokenizer.pad_id,
    )


def ppo_batch(p: Patient, rollout: Rollout, **changes: Any) -> PPOBatch:
    """What PPO's update reads of a rollout; ``changes`` are those of ``wired``."""
    return jax.jit(wired(p, **changes).batch)(rollout, {"kl_coef": p.ppo.kl.coef})[0]


def score_findings(p: Patient, episodes: Episodes) -> list[Finding]:
    """Whether the score is read at the last token and nowhere in padding."""
    score_fn = jax.jit(p.exact.reward_model.score)

    def score_of(tokens, mask):
        return score_fn(p.reward.params, tokens, mask, None)

    tokens, mask = episodes.sequences
    vocab_size = p.reward.vocab_size
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
    noise = np.random.default_rng(0).normal(size=r.logprobs.shape).astype(np.float32)
    scores = np.full_like(r.scores["task"], 0.3)
    r = r._replace(ref_logprobs=r.logprobs - noise, scores={"task": scores})
    four = (scores, r.logprobs, r.ref_logprobs, r.mask)
    rewards = np.asarray(jax.jit(partial(kl_penalised_rewards, kl_coef=beta))(*four))
    plain = dict(gamma=1.0, lam=1.0, whiten_rewards=False, missing_eos_penalty=None)
    batch = ppo_batch(p, r, **plain)
    expected = scores - beta * np.where(r.mask, noise, 0.0).sum(axis=1)
    return [
        of_ppo.rewards_sum_to_the_objective(rewards, *four, kl_coef=beta, bound=bound),
        of_ppo.fractions_survive(np.asarray(batch.returns)[:, 0], expected, bound=bound),
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
