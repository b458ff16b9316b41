"""Evaluation: policies side by side on held-out prompts, and what they cost on held-out text.

    python -m experiments.evaluate --config configs/quickstart.py
    python -m experiments.evaluate --policies runs/sft runs/ppo --reward runs/reward ...

Each policy answers every prompt once. The gold scorer stands for people; the second classifier
and the lexicons never labelled anything. The first policy is the baseline (SFT): wins are counted
against its answer to the same prompt, and best-of-n picks among its samples by reward model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inputs import Trained, load_corpora, load_trained, make_text_evaluation
from experiments.sampling import make_sampler
from experiments.stage import Stage
from rlhf_jax.cli import main
from rlhf_jax.config import EvaluateConfig, check
from rlhf_jax.data.formats import read_prompts
from rlhf_jax.evaluation import metrics as measure
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.rollouts.rollout import response_logprobs
from rlhf_jax.tasks import sentiment
from rlhf_jax.training.parallel import Parallel, make_parallel


class Answers(NamedTuple):
    """What one policy said to every prompt, n times each; arrays are [P, n]."""

    texts: list[list[str]]
    scores: np.ndarray
    """By the reward model."""
    gold: np.ndarray
    kl: np.ndarray
    """log π − log π_baseline, summed over the response, in nats."""
    length: np.ndarray
    """In tokens, end of text included."""
    ended: np.ndarray


def run(config: EvaluateConfig) -> dict:
    with Stage(config, "evaluate") as stage:
        if stage.summary is not None:
            return stage.summary

        # Data and models
        parallel = make_parallel(config.parallel)
        check(len(config.policies) > 0, "policies is empty: give --policies RUN [RUN ...]")
        policies = {path.name: load_trained(path, flag="policies") for path in config.policies}
        reward = load_trained(config.reward, flag="reward")
        prompts = [row.prompt for row in read_prompts(config.prompts)][: config.num_prompts]
        task = sentiment.build(config.source)
        names = list(policies)

        # Answers
        answers = {}
        for name in stage.each(names):
            n = max(config.best_of) if name == names[0] else 1
            answer = make_answer(config, parallel, policies[names[0]], reward, task, n)
            answers[name] = answer(policies[name], prompts, jax.random.key(config.run.seed))
            stage.log_samples(sample_rows(name, prompts, answers[name]))

        # Figures
        base = answers[names[0]]
        table = {name: describe(prompts, answers[name], base, task) for name in names}
        for n in config.best_of:
            table[f"best_of_{n}"] = describe(prompts, best_of(base, n), base, task) | {
                "kl": measure.interval([np.log(n) - (n - 1) / n])
            }
        text = {}
        if config.text.path:
            corpora = load_corpora(config.text)
            for name in stage.each([*names, *(path.name for path in config.text_only)]):
                ...
        return stage.finish(None, policies=table, text=text, prompts=len(prompts))
