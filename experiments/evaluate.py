"""Evaluation: policies side by side on held-out prompts, and what they cost on held-out text.

    python -m experiments.evaluate --config configs/quickstart.py
    python -m experiments.evaluate --policies runs/sft runs/ppo --reward runs/reward ...

Each policy answers every prompt once. The gold scorer stands for people; the second classifier
and the lexicons never labelled anything. The first policy is the baseline (SFT): wins are counted
against its answer to the same prompt, and best-of-n picks among its samples by reward model.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import fold_in

from experiments.inputs import Trained, load_corpora, load_trained, make_text_evaluation
from experiments.sampling import make_sampler
from experiments.stage import Stage
from rlhf_jax.cli import main
from rlhf_jax.config import EvaluateConfig, check
from rlhf_jax.data.formats import read_prompts
from rlhf_jax.evaluation import metrics as m
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.objectives.logprobs import scale_logits, token_logprobs
from rlhf_jax.rollouts.rollout import reference_logprobs
from rlhf_jax.tasks import sentiment
from rlhf_jax.training.parallel import Parallel, make_parallel


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
        baseline = next(iter(policies))

        # Answers
        key = jax.random.key(config.run.seed)
        best_n = max(config.best_of)
        answers = {}
        for name, policy in policies.items():
            n = best_n if name == baseline else 1
            answers[name] = answer(
                config, parallel, policy, policies[baseline], reward, prompts, key, n=n
            )
