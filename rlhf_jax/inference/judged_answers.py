"""What policies answer, with what reward models, the gold scorer and the baseline say of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import CombineConfig, EvaluateConfig, ModelConfig
from rlhf_jax.data.chat import Conversation, as_text
from rlhf_jax.inference.answer_cache import with_cache
from rlhf_jax.inference.sampler import make_sampler
from rlhf_jax.models.heads import LanguageModel, make_language_model, make_scalar_model
from rlhf_jax.rollouts.rollout import response_logprobs
from rlhf_jax.runs.fit import row_lengths
from rlhf_jax.runs.trained import Trained
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.training.preparation import combine_scores


class Answers(NamedTuple):
    """What one policy said to every prompt, n times each; arrays are [P, n]."""

    texts: list[list[str]]
    scores: np.ndarray
    """By the reward model, or by several as one; without any, NaN."""
    scores_of_each: np.ndarray
    """By each reward model, [P, n, M]."""
    second_scores: np.ndarray
    """By the second reward model; without one, as ``scores``."""
    gold: np.ndarray
    kl: np.ndarray
    """log π − log π_baseline, summed over the response, in nats."""
    baseline_logprob: np.ndarray
    """log π_baseline at temperature 1, summed over the response, in nats: how fluent it is."""
    length: np.ndarray
    """In tokens, end of text included."""
    ended: np.ndarray


def make_answer(
    config: EvaluateConfig,
    parallel: Parallel,
    baseline: Trained,
    rewards: Sequence[Trained],
    gold: Callable,
    second: Trained | None = None,
) -> Callable[..., Answers]:
    """``(policy, prompts, key, n, each, like) -> Answers`` for policies of one tokenizer.

    ``each`` walks through the batches, as ``Stage.each`` does; by default without a word. ``like``
    are the answers over which rewards are normalised; by default its own.
    """
    tokenizer = baseline.tokenizer
    judges = rewards if second is None else [*rewards, second]
    functions = make_judge(parallel, baseline, judges, config.sampling.temperature or 1.0)

    def answer(
        policy: Trained,
        prompts: Sequence[str | Conversation],
        key,
        *,
        n: int,
        each=lambda batches, total: batches,
        like: Answers | None = None,
    ) -> Answers:
        lm, judge = functions(policy.model, policy.vocab_size)
        # The batch has the same number of rows whatever n is, so that memory is the same.
        prompts_per_batch = config.batch_size // n
        shape = dict(
            **row_lengths(config), prompts_per_batch=prompts_per_batch, responses_per_prompt=n
        )
        sampler = make_sampler(lm, tokenizer, parallel, config.sampling, **shape)
        sampler = with_cache(
            sampler,
            config.cache or config.run.dir / "answers",
            tokenizer,
            config.sampling,
            model=policy.model,
            **shape,
        )
        texts, columns = [], []
        batches = math.ceil(len(prompts) / prompts_per_batch)
        for sampled in each(sampler(policy.params, prompts, key), total=batches):
            g = sampled.generation
            ended = (np.isin(g.responses, tokenizer.end_ids) & np.asarray(g.mask)).any(axis=1)
            figures = (*judge(policy.params, sampled.batch, g), g.mask.sum(axis=1), ended)
            columns.append([np.asarray(x)[: len(sampled.texts)] for x in figures])
            texts += sampled.texts
        joined = (np.concatenate(column) for column in zip(*columns, strict=True))
        judged, kl, base, length, ended = (x.reshape(len(prompts), n, *x.shape[1:]) for x in joined)
        groups = [texts[i : i + n] for i in range(0, len(texts), n)]
        graded = gold([as_text(p) for p in prompts for _ in range(n)], texts)
        of_each = judged[..., : len(rewards)]
        scores = as_one(of_each, of_each if like is None else like.scores_of_each, config.combine)
        second_scores = scores if second is None else judged[..., -1]
        graded = np.reshape(graded, (-1, n))
        return Answers(groups, scores, of_each, second_scores, graded, kl, base, length, ended)

    return answer


def make_judge(
    parallel: Parallel, baseline: Trained, rewards: Sequence[Trained], temperature: float
) -> Callable[[ModelConfig, int], tuple[LanguageModel, Callable]]:
    """``(model, vocab_size) -> (its functions, judge)``, compiled once for policies of one shape.

    ``judge(params, batch, generation)`` is the answers' score by each of ``rewards``, [B, M],
    log π − log π_baseline, [B], and log π_baseline at temperature 1, [B].
    """
    base_lm = make_language_model(baseline.model, baseline.vocab_size)
    models = [make_scalar_model(reward.model, reward.vocab_size) for reward in rewards]

    @cache
    def functions(model: ModelConfig, vocab_size: int) -> tuple[LanguageModel, Callable]:
        lm = make_language_model(model, vocab_size)

        @parallel.function
        def judged(params, base_params, reward_params, batch, generation):
            tokens = jnp.concatenate([batch.queries, generation.responses], axis=1)
            mask = jnp.concatenate([batch.query_mask, generation.mask], axis=1)

            def logprobs(lm, params, temperature=temperature):
                return response_logprobs(lm, params, batch, generation, temperature=temperature)

            def summed(x):
                return jnp.where(generation.mask, x, 0.0).sum(axis=1)

            kl = summed(logprobs(lm, params) - logprobs(base_lm, base_params))
            base = summed(logprobs(base_lm, base_params, temperature=1.0))
            scores = [
                model.score(own, tokens, mask, None, start=batch.queries.shape[1])
                for model, own in zip(models, reward_params, strict=True)
            ]
            return jnp.stack(scores, axis=1) if scores else jnp.zeros((len(kl), 0)), kl, base

        def judge(params, batch, generation):
            # As arguments: what a function closes over is part of its program, in copies.
            own = [reward.params for reward in rewards]
            return judged(params, baseline.params, own, batch, generation)

        return lm, judge

    return functions


def as_one(of_each: np.ndarray, like: np.ndarray, combine: CombineConfig) -> np.ndarray:
    """[P, n] of the scores [P, n, M] of M rewards, as PPO combines them; NaN without any.

    Normalised by mean and spread of ``like``: of the baseline's answers, so that the scores of
    policies can be compared.
    """
    P, n, M = of_each.shape
    if M == 0:
        return np.full((P, n), np.nan)
    if combine.normalise:
        spread = like.std(axis=(0, 1))
        of_each = (of_each - like.mean(axis=(0, 1))) / np.where(spread > 0, spread, 1.0)
    names = list(map(str, range(M)))
    scores = dict(zip(names, jnp.asarray(of_each.reshape(-1, M).T), strict=True))
    # Done above, by the spread of the baseline: a policy's own would hide how far it has come.
    combine = replace(combine, normalise=False)
    return np.asarray(combine_scores(scores, {}, config=combine, names=names)).reshape(P, n)


def best_of(answers: Answers, n: int) -> Answers:
    """The answer that the reward model likes best among each prompt's first n."""
    # The first n of them: best of 4 and best of 16 share their draws, and differ in n alone.
    best = answers.scores[:, :n].argmax(axis=1)

    def pick(x: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, best.reshape(-1, *[1] * (x.ndim - 1)), axis=1)

    texts = [[group[i]] for group, i in zip(answers.texts, best, strict=True)]
    return Answers(texts, *map(pick, answers[1:]))
