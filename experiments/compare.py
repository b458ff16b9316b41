"""Collecting comparisons: the SFT model answers each prompt K times, a labeler ranks the answers.

    python -m experiments.compare --config configs/quickstart.py

The labeler here is simulated (gold score plus Bradley-Terry noise); people rank the same files.
"""

import json
from pathlib import Path

import jax
import numpy as np

from experiments.inputs import load_trained
from experiments.sampling import make_sampler
from experiments.stage import Stage
from rlhf_jax.cli import main
from rlhf_jax.config import CompareConfig
from rlhf_jax.data.files import write_text
from rlhf_jax.data.formats import read_prompts
from rlhf_jax.errors import InputError
from rlhf_jax.feedback.labelers import SimulatedLabeler, calibrate_tau, noise_ceiling
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.tasks import sentiment
from rlhf_jax.training.parallel import make_parallel


def run(config: CompareConfig) -> dict:
    with Stage(config, "comparisons") as stage:
        if stage.summary is not None:
            return stage.summary

        # Data
        parallel = make_parallel(config.parallel)
        policy = load_trained(config.init, flag="init")
        total = config.num_prompts + config.heldout_prompts
        prompts = [row.prompt for row in read_prompts(config.prompts)][:total]
        if len(prompts) < total:
            raise InputError(
                f"{config.prompts} has {len(prompts)} prompts; num_prompts + heldout_prompts = {total}"
            )

        # Sample
        sampler = make_sampler(
            make_language_model(policy.model, policy.tokenizer.vocab_size),
            policy.tokenizer,
            parallel,
            config.sampling,
            prompt_length=config.prompt_length,
            response_length=config.response_length,
            prompts_per_batch=config.prompts_per_batch,
            responses_per_prompt=config.responses_per_prompt,
        )
        path = config.run.dir / "responses.jsonl"
        rows = sample_rows(stage, sampler, policy, prompts, path, config)
