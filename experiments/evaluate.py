"""Evaluation: policies side by side on held-out prompts, and what they cost on held-out text.

    python -m experiments.evaluate --config configs/quickstart.py
    python -m experiments.evaluate --policies runs/sft runs/ppo --reward runs/reward ...
    python -m experiments.evaluate --suite safety --policies runs/sft runs/ppo --reward RUN

Each policy answers every prompt once, or as often as pass@k asks for. The task's gold scorer stands
for people; its judges never labelled anything, and its metrics are those that papers on it report.
The first policy is the baseline (SFT): wins are counted against its answer to the same prompt, and
best-of-n picks among its samples by reward model, or by several as one (``--combine.how``).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import safety
from rlhf_jax.cli import main
from rlhf_jax.config import CombineConfig, EvaluateConfig, ModelConfig
from rlhf_jax.config.rewards import reward_names
from rlhf_jax.data.chat import Conversation, as_text
from rlhf_jax.data.files import write_atomically
from rlhf_jax.data.formats import Prompt, read_prompts
from rlhf_jax.errors import check
from rlhf_jax.evaluation import metrics as measure
from rlhf_jax.evaluation.significance import paired_bootstrap, wins_and_ties
from rlhf_jax.inference.alignment_tax import describe_text_loss, text_change, text_losses
from rlhf_jax.inference.answer_cache import with_cache
from rlhf_jax.inference.sampler import make_sampler, prompt_report
from rlhf_jax.models.heads import LanguageModel, make_language_model, make_scalar_model
from rlhf_jax.rollouts.rollout import response_logprobs
from rlhf_jax.runs.fit import fit_prompts, row_lengths
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import Trained, load_by_name, load_trained, names_apart, same_tokenizer
from rlhf_jax.tasks.instructions import alpaca_rows
from rlhf_jax.tasks.task import Task, check_prompts, read_task
from rlhf_jax.training.corpora import load_corpora, with_block
from rlhf_jax.training.parallel import Parallel, make_parallel
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
    length: np.ndarray
    """In tokens, end of text included."""
    ended: np.ndarray


def run(config: EvaluateConfig) -> dict:
    """The stage: answers of every policy, their figures, and what alignment cost."""
    with Stage(config, "evaluate", __file__, one_process=True) as stage:
        if stage.summary is not None:
            return stage.summary
        check(len(config.policies) > 0, "policies is empty: give --policies RUN [RUN ...]")
        if config.suite == "safety":
            return safety.run(config, stage)

        # Data and models
        parallel = make_parallel(config.parallel)
        names = names_apart((*config.policies, *config.text_only))
        policies = load_by_name(config.policies, names, flag="policies")
        text_only = load_by_name(config.text_only, names, flag="text-only")
        baseline = next(iter(policies))
        rewards, second = load_judges(config)
        judges = rewards if second is None else [*rewards, second]
        # KL and the reward models are of the ids that were sampled.
        others = [(f"policies {name}", policy) for name, policy in policies.items()]
        others += [(f"reward {path}", r) for path, r in zip(config.reward, rewards, strict=True)]
        others += [("second-reward", second)] if second is not None else []
        for flag, other in others:
            same_tokenizer(policies[baseline], other, (f"policies {baseline}", flag))
        prompts = [row.prompt for row in read_prompts(config.prompts)][: config.num_prompts]
        tokenizer = policies[baseline].tokenizer
        models = [trained.model for trained in (*policies.values(), *judges)]
        context = min(model.context for model in models)
        config = fit_prompts(
            config,
            map(Prompt, prompts),
            tokenizer,
            trained=(*config.policies, *config.reward),
            context=context,
            stage="evaluate",
        )
        lengths = row_lengths(config)
        for model in models:
            model.check_context(**lengths)
        readers = (*policies.values(), *text_only.values())
        block = min(trained.model.context for trained in readers)
        config = replace(config, text=with_block(config.text, block))
        stage.note(lengths=lengths)
        stage.note_rows(prompts=prompt_report(prompts, tokenizer, lengths["prompt_length"]))
        task = read_task(config.task, config.source)
        texts = list(map(as_text, prompts))
        check_prompts(task, texts)
        check(
            not config.pass_k or task.verifiable,
            f"--pass-k: the gold score of task {config.task} is not only 1 for right and 0 for "
            "wrong, so pass@k of it is not defined (Task.verifiable)",
        )
        corpora = load_corpora(config.text, flag="text") if config.text.path else None
        for trained in (*policies.values(), *text_only.values()) if corpora else ():
            trained.model.check_context(**{"text.block_size": config.text.block_size})

        # Answers
        key = jax.random.key(config.run.seed)
        answer = make_answer(config, parallel, policies[baseline], rewards, task.gold, second)
        answers = {}
        for name, policy in policies.items():
            best = config.best_of if name == baseline and config.reward else (1,)
            n = max(config.samples_for_pass, *best)
            each = partial(stage.each, of=name)
            like = answers.get(baseline)
            answers[name] = answer(policy, prompts, key, n=n, each=each, like=like)
            stage.log_samples(sample_rows(name, texts, answers[name]))
            if config.alpaca_eval:
                write_alpaca(config, name, texts, answers[name])

        # Figures
        base = answers[baseline]
        # Best of 1 is the baseline itself, and without a reward model none is the best.
        several = [n for n in config.best_of if n > 1 and config.reward]
        answers |= {f"best_of_{n}": best_of(base, n) for n in several}
        table = {name: describe_policy(texts, given, base, task) for name, given in answers.items()}
        if config.pass_k:
            for name in policies:
                table[name]["pass_at"] = describe_passes(answers[name], config)
        for name, given in answers.items():
            table[name] |= describe_scores(given, config)
        for n in several:
            table[f"best_of_{n}"]["kl"] = {"mean": measure.best_of_n_kl(n), "ci": 0.0}
        without_model = {
            name: describe_text(texts, respond(texts), base, task)
            for name, respond in task.baselines.items()
        }
        losses, losses_described = {}, {}
        if corpora:
            losses = text_losses(config, parallel, policies | text_only, corpora)
            losses_described = {
                name: describe_text_loss(loss, corpora) for name, loss in losses.items()
            }
        return stage.finish(
            None,
            baseline=baseline,
            policies=table,
            baselines=without_model,
            text=losses_described,
            text_change=text_change(losses, "pretrain" if "pretrain" in losses else baseline),
        )


def load_judges(config: EvaluateConfig) -> tuple[list[Trained], Trained | None]:
    """The reward models, and the second one beside them."""
    load = partial(load_trained, kind="scalar")
    rewards = [load(path, flag="reward") for path in config.reward]
    if config.second_reward is None:
        return rewards, None
    return rewards, load(config.second_reward, flag="second-reward")


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
        columns = [np.concatenate(column) for column in zip(*columns, strict=True)]
        judged, kl, length, ended = (x.reshape(len(prompts), n, *x.shape[1:]) for x in columns)
        groups = [texts[i : i + n] for i in range(0, len(texts), n)]
        graded = gold([as_text(p) for p in prompts for _ in range(n)], texts)
        of_each = judged[..., : len(rewards)]
        scores = as_one(of_each, of_each if like is None else like.scores_of_each, config.combine)
        second_scores = scores if second is None else judged[..., -1]
        graded = np.reshape(graded, (-1, n))
        return Answers(groups, scores, of_each, second_scores, graded, kl, length, ended)

    return answer


def make_judge(
    parallel: Parallel, baseline: Trained, rewards: Sequence[Trained], temperature: float
) -> Callable[[ModelConfig, int], tuple[LanguageModel, Callable]]:
    """``(model, vocab_size) -> (its functions, judge)``, compiled once for policies of one shape.

    ``judge(params, batch, generation)`` is the answers' score by each of ``rewards``, [B, M], and
    log π − log π_baseline, [B].
    """
    base_lm = make_language_model(baseline.model, baseline.vocab_size)
    models = [make_scalar_model(reward.model, reward.vocab_size) for reward in rewards]

    @cache
    def functions(model: ModelConfig, vocab_size: int) -> tuple[LanguageModel, Callable]:
        lm = make_language_model(model, vocab_size)

        @parallel.function
        def judge(params, batch, generation):
            tokens = jnp.concatenate([batch.queries, generation.responses], axis=1)
            mask = jnp.concatenate([batch.query_mask, generation.mask], axis=1)

            def logprobs(lm, params):
                return response_logprobs(lm, params, batch, generation, temperature=temperature)

            log_ratio = logprobs(lm, params) - logprobs(base_lm, baseline.params)
            kl = jnp.where(generation.mask, log_ratio, 0.0).sum(axis=1)
            scores = [
                model.score(reward.params, tokens, mask, None)
                for model, reward in zip(models, rewards, strict=True)
            ]
            return jnp.stack(scores, axis=1) if scores else jnp.zeros((len(kl), 0)), kl

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
    combine = replace(combine, normalise=False)
    return np.asarray(combine_scores(scores, {}, config=combine, names=names)).reshape(P, n)


def best_of(answers: Answers, n: int) -> Answers:
    """The answer that the reward model likes best among each prompt's first n."""
    best = answers.scores[:, :n].argmax(axis=1)

    def pick(x: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, best.reshape(-1, *[1] * (x.ndim - 1)), axis=1)

    texts = [[group[i]] for group, i in zip(answers.texts, best, strict=True)]
    return Answers(texts, *map(pick, answers[1:]))


def describe_policy(prompts: list[str], answers: Answers, base: Answers, task: Task) -> dict:
    """One row of the results table, from each prompt's first answer: mean and 95 % half-width."""
    responses = [group[0] for group in answers.texts]
    first, other = answers.scores[:, 0], base.scores[:, 0]
    by_reward_model = {
        "score": measure.mean_ci(first),
        "win_rate_by_reward_model": measure.win_rate(first, other) | wins_and_ties(first, other),
    }
    return {
        **describe_text(prompts, responses, base, task, gold=answers.gold[:, 0]),
        **({} if np.isnan(first).all() else by_reward_model),
        "kl": measure.mean_ci(answers.kl[:, 0]),
        "length": measure.mean_ci(answers.length[:, 0]),
        "ended": float(answers.ended[:, 0].mean()),
    }


def describe_scores(answers: Answers, config: EvaluateConfig) -> dict:
    """The score by each of several reward models, and by the second one beside them."""
    found, names = {}, reward_names(config.reward) if len(config.reward) > 1 else ()
    if names:
        each = zip(names, answers.scores_of_each[:, 0].T, strict=True)
        found["score_of_each"] = {name: measure.mean_ci(scores) for name, scores in each}
    if config.second_reward is not None:
        found["second_score"] = measure.mean_ci(answers.second_scores[:, 0])
    return found


def describe_passes(answers: Answers, config: EvaluateConfig) -> dict:
    """pass@k by k, with intervals over prompts, from the same number of answers for each policy."""
    right = answers.gold[:, : config.samples_for_pass]
    wrong = right[(right != 0) & (right != 1)]
    check(
        not wrong.size,
        f"task {config.task} is verifiable, but its gold scorer gave "
        f"{wrong[:1].tolist()}: expected 0 or 1",
    )
    return {str(k): measure.mean_ci(measure.pass_at_k(right, k)) for k in config.pass_k}


def describe_text(
    prompts: list[str],
    responses: list[str],
    base: Answers,
    task: Task,
    *,
    gold: np.ndarray | None = None,
) -> dict:
    """What can be said of any responses, also those that no model of ours gave."""
    gold = task.gold(prompts, responses) if gold is None else gold
    base_gold = base.gold[:, 0]
    words = [task.words(text) for text in responses]
    base_words = [len(task.words(group[0])) for group in base.texts]
    wins = (1 + np.sign(gold - base_gold)) / 2
    gain, spread = gold.mean() - base_gold.mean(), base_gold.std()
    return {
        "gold": measure.mean_ci(gold),
        # In units of nothing where the baseline's answers are all worth the same.
        **({"gold_gain_in_sd": float(gain / spread)} if spread else {}),
        "gold_difference": paired_bootstrap(gold, base_gold),
        "win_rate": measure.win_rate(gold, base_gold) | wins_and_ties(gold, base_gold),
        "win_rate_at_equal_length": measure.length_controlled_win_rate(
            wins, np.array(list(map(len, words))), np.array(base_words)
        ),
        "distinct_2": measure.distinct_n(words, 2),
        "repeated_words": float(np.mean([measure.repeated_word_rate(w) for w in words])),
        "judges": {
            n: measure.mean_ci(judge(prompts, responses)) for n, judge in task.judges.items()
        },
        "metrics": dict(task.metrics(prompts, responses)),
    }


def write_alpaca(config: EvaluateConfig, name: str, prompts: list[str], answers: Answers) -> None:
    """A policy's answers in AlpacaEval's format."""
    rows = alpaca_rows(prompts, [group[0] for group in answers.texts], name)
    path = config.run.dir / f"alpaca_eval_{name}.json"
    write_atomically(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def sample_rows(name: str, prompts: list[str], answers: Answers) -> list[dict]:
    """Every first answer with its figures, for samples.jsonl."""
    a = answers
    return [
        {
            "policy": name,
            "prompt": prompt,
            "response": a.texts[i][0],
            **({} if np.isnan(a.scores[i, 0]) else {"score": float(a.scores[i, 0])}),
            "gold": float(a.gold[i, 0]),
            "kl": float(a.kl[i, 0]),
            "length": int(a.length[i, 0]),
        }
        for i, prompt in enumerate(prompts)
    ]


if __name__ == "__main__":
    main(run, EvaluateConfig)
