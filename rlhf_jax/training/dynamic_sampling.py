"""Dynamic sampling: an iteration samples until all its prompts have answers that differ in score.

A prompt whose answers all score alike teaches nothing to what compares them. DAPO samples further
prompts instead and keeps those whose answers are neither all right nor all wrong (Yu et al. 2025,
§3.2 and eq. 11: 0 < |{right answers}| < G). A round is a whole batch here, whatever is still
missing, so that every program has one shape.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.random import split
from jaxtyping import Array, Bool, Int, Key

from rlhf_jax.config import PPOConfig
from rlhf_jax.training.coefficients import Coefs
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.types import Metrics, Rollout

Judge = Callable[[Rollout, Coefs], tuple[Bool[Array, "G"], Metrics]]
"""(episodes, coefs) -> prompts whose answers differ in score, what is logged of the episodes."""


class SampledBatch(NamedTuple):
    """What an iteration has sampled."""

    rollout: Rollout
    """What is learnt from."""
    first: tuple[Rollout, Int[Array, "B"]]
    """The first batch as it was sampled, and the numbers of its prompts."""
    metrics: Metrics
    """Of the episodes of all rounds, in place of those of ``rollout``; none without rounds."""
    episodes: int
    """Of all rounds."""


class Rounds(NamedTuple):
    """What some rounds have sampled, as one batch."""

    rollout: Rollout
    differ: Bool[Array, "G"]
    """Prompts whose answers differ in score."""
    totals: Metrics
    """Sums over the rounds of what is logged of them."""
    counts: Metrics
    """How much the rounds have sampled."""


def make_sampling(
    config: PPOConfig,
    parallel: Parallel,
    judge: Judge,
    answers: Callable[..., tuple[Rollout, Int[Array, "B"]]],
    *,
    say: Callable[[str], None],
) -> Callable[..., SampledBatch]:
    """``(key, coefs, *inputs) -> SampledBatch``, by rounds of ``answers(key, *inputs)``.

    Each call of ``answers`` gives episodes of the next prompts, and the prompts' numbers. Of a
    batch that ``max_sampling_rounds`` have not filled, prompts that teach nothing have no token
    that counts; the metrics say how many they are, and the first time it is said.
    """
    K, most = config.samples_per_prompt, config.max_sampling_rounds
    judged_fn = parallel.function(partial(judged, judge=judge))
    fill_fn = parallel.function(partial(fill, group_size=K))
    close_fn = parallel.function(partial(close, group_size=K))
    said = False

    def sample(key: Key[Array, ""], coefs: Coefs, *inputs: Any) -> SampledBatch:
        nonlocal said
        if most == 1:
            first = answers(key, *inputs)
            return SampledBatch(first[0], first, {}, config.batch_size)
        # Rows fold their numbers into the key of their round, so none has the iteration's own.
        keys = split(key, most)
        first = answers(keys[0], *inputs)
        rounds, done = judged_fn(first[0], coefs), 1
        while (missing := int((~parallel.fetch(rounds.differ)).sum())) and done < most:
            rollout, _ = answers(keys[done], *inputs)
            rounds, done = fill_fn(rounds, judged_fn(rollout, coefs)), done + 1
        if missing and not said:
            said = True
            prompts = config.batch_size // K
            say(
                f"ppo: after {most} rounds of sampling (--max-sampling-rounds) {missing} of the "
                f"{prompts} prompts of a batch have answers that all score alike, from which "
                "nothing is learnt; from here on sampling/missing_prompts and unfilled_batches say "
                "how often"
            )
        rollout, metrics = close_fn(rounds)
        return SampledBatch(rollout, first, metrics, done * config.batch_size)

    return sample


def judged(rollout: Rollout, coefs: Coefs, *, judge: Judge) -> Rounds:
    """One round."""
    differ, metrics = judge(rollout, coefs)
    counts = {
        "rounds": jnp.float32(1),
        "sampling/prompts": jnp.float32(len(differ)),
        "sampling/tokens": rollout.mask.sum(dtype=jnp.float32),
    }
    return Rounds(rollout, differ, metrics, counts)


def fill(rounds: Rounds, new: Rounds, *, group_size: int) -> Rounds:
    """``rounds`` with prompts of ``new`` in the places of those whose answers all score alike.

    First come the prompts whose answers differ, the earlier round's before the later's, in the
    order in which they were sampled; those over the batch are dropped. What is still missing is
    made up by prompts that teach nothing.
    """
    differ = jnp.concatenate([rounds.differ, new.differ])
    groups = jnp.argsort(~differ, stable=True)[: len(new.differ)]
    rows = (groups[:, None] * group_size + jnp.arange(group_size)[None]).reshape(-1)

    def take(kept: Array, fresh: Array) -> Array:
        return jnp.concatenate([kept, fresh])[rows]

    rollout = jax.tree.map(take, rounds.rollout, new.rollout)
    totals, counts = jax.tree.map(jnp.add, rounds[2:], new[2:])
    return Rounds(rollout, differ[groups], totals, counts)


def close(rounds: Rounds, *, group_size: int) -> tuple[Rollout, Metrics]:
    """(what is learnt from, what is logged): means over rounds, and how much was sampled.

    Prompts whose answers all score alike lose their tokens, so that they count in no mean: a row
    without a real token counts nowhere.
    """
    counts = dict(rounds.counts)
    number = counts.pop("rounds")
    learnt = rounds.differ.sum(dtype=jnp.float32)
    metrics = {
        **{name: total / number for name, total in rounds.totals.items()},
        **counts,
        "sampling/learnt_prompts": learnt / counts["sampling/prompts"],
        "sampling/missing_prompts": len(rounds.differ) - learnt,
    }
    rows = jnp.repeat(rounds.differ, group_size)[:, None]
    return rounds.rollout._replace(mask=rounds.rollout.mask & rows), metrics
