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
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from experiments import safety
from rlhf_jax.cli import main
from rlhf_jax.config import EvaluateConfig
from rlhf_jax.config.data import column_names
from rlhf_jax.config.rewards import reward_names
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.files import write_atomically
from rlhf_jax.data.formats import Prompt, read_prompts
from rlhf_jax.errors import check
from rlhf_jax.evaluation import metrics as measure
from rlhf_jax.evaluation.significance import paired_bootstrap, wins_and_ties
from rlhf_jax.inference.alignment_tax import describe_text_loss, text_change, text_losses
from rlhf_jax.inference.judged_answers import Answers, best_of, make_answer
from rlhf_jax.inference.sampler import prompt_report
from rlhf_jax.runs.fit import fit_prompts, row_lengths
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import Trained, load_by_name, load_trained, names_apart, same_tokenizer
from rlhf_jax.tasks.instructions import alpaca_rows
from rlhf_jax.tasks.task import Task, check_prompts, read_task
from rlhf_jax.training.corpora import load_corpora, with_block
from rlhf_jax.training.parallel import make_parallel


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
        rows = read_prompts(config.prompts, column_names(config.columns))[: config.num_prompts]
        prompts = [row.prompt for row in rows]
        tokenizer = policies[baseline].tokenizer
        models = [trained.model for trained in (*policies.values(), *judges)]
        config = fit_prompts(
            config,
            map(Prompt, prompts),
            tokenizer,
            trained=(*config.policies, *config.reward),
            context=min(model.context for model in models),
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
            picked = config.samples_for_best if name == baseline and config.reward else 1
            n, like = max(config.samples_for_pass, picked), answers.get(baseline)
            progress = partial(stage.each, of=name)
            answers[name] = answer(policy, prompts, key, n=n, each=progress, like=like)
            stage.log_samples(sample_rows(name, texts, answers[name]))
            if config.alpaca_eval:
                write_alpaca(config, name, texts, answers[name])

        # Figures
        base = answers[baseline]
        # Best of 1 is the baseline itself, and without a reward model none is the best.
        several = [n for n in config.best_of if n > 1 and config.reward]
        answers |= {f"best_of_{n}": best_of(base, n) for n in several}
        table = {name: describe_policy(texts, own, base, task) for name, own in answers.items()}
        if config.pass_k:
            for name in policies:
                table[name]["pass_at"] = describe_passes(answers[name], config)
        for name, own in answers.items():
            table[name] |= describe_scores(own, config)
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
            best_of_curve=describe_curves(base, config),
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
        "perplexity_by_baseline": measure.perplexity_ci(
            answers.baseline_logprob[:, 0], answers.length[:, 0]
        ),
        "length": measure.mean_ci(answers.length[:, 0]),
        "ended": float(answers.ended[:, 0].mean()),
    }


def describe_scores(answers: Answers, config: EvaluateConfig) -> dict:
    """The score by each of several reward models, and by the second one beside them."""
    figures, names = {}, reward_names(config.reward) if len(config.reward) > 1 else ()
    if names:
        columns = zip(names, answers.scores_of_each[:, 0].T, strict=True)
        figures["score_of_each"] = {name: measure.mean_ci(scores) for name, scores in columns}
    if config.second_reward is not None:
        figures["second_score"] = measure.mean_ci(answers.second_scores[:, 0])
    return figures


def describe_curves(base: Answers, config: EvaluateConfig) -> dict[str, list[dict]]:
    """Of each reward model, KL, gold and its own score of the best of n by it alone, n by n."""
    if not (config.reward and config.best_of_curve):
        return {}
    curves = {}
    for name, scores in zip(
        reward_names(config.reward), np.moveaxis(base.scores_of_each, -1, 0), strict=True
    ):
        best = partial(measure.best_of_n_mean, scores)
        curves[name] = [
            {
                "n": n,
                "kl": measure.best_of_n_kl(n),
                "gold": measure.mean_ci(best(base.gold, n)),
                "score": measure.mean_ci(best(scores, n)),
            }
            for n in config.best_of_curve
        ]
    return curves


def describe_passes(answers: Answers, config: EvaluateConfig) -> dict:
    """pass@k by k, with intervals over prompts, from the same number of answers for each policy."""
    # The same number for each policy: with more answers pass@k has less noise, and looks steadier.
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
