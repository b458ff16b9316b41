"""Answers that were sampled before are read, not sampled again: the prompt cache of evaluations.

One file per batch, written whole or not at all, in a folder named by everything that the answers
depend on: parameters, model, tokenizer, prompts, sampling, key, batch, library. An evaluation that
was stopped goes on after its last whole batch; evaluations that share a cache share answers.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from rlhf_jax.cli import to_dict
from rlhf_jax.config import SamplingConfig
from rlhf_jax.data.batches import query_batches
from rlhf_jax.data.chat import Conversation
from rlhf_jax.data.files import write_atomically
from rlhf_jax.data.formats import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.inference.sampler import Sampled
from rlhf_jax.runs.checkpoints import params_sha256
from rlhf_jax.types import Generation, Params, QueryBatch

Sampler = Callable[..., Iterator[Sampled]]


def with_cache(
    sampler: Sampler,
    folder: Path,
    tokenizer: Tokenizer,
    config: SamplingConfig,
    *,
    prompt_length: int,
    response_length: int,
    prompts_per_batch: int,
    responses_per_prompt: int,
    model: Any,
) -> Sampler:
    """``(params, prompts, key) -> Sampled per batch`` as ``sampler`` gives them.

    Batches from the cache have no log-probs (they are NaN): an evaluation computes its own.
    """
    # Whatever changes one sampled token belongs in here; an evaluation must never read others'
    # answers.
    K = responses_per_prompt
    settings = {
        "model": to_dict(model),
        "tokenizer": [tokenizer.digest, tokenizer.example, *tokenizer.end_ids],
        "sampling": to_dict(config),
        "shape": [prompt_length, response_length, prompts_per_batch, K],
        "jax": version("jax"),
    }

    def batches(
        params: Params, prompts: Sequence[str | Conversation], key: Key[Array, ""]
    ) -> Iterator[Sampled]:
        identity = settings | {
            "params": params_sha256(params),
            "prompts": list(prompts),
            "key": np.asarray(jax.random.key_data(key)).tolist(),
        }
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        kept = folder / name
        kept.mkdir(parents=True, exist_ok=True)
        stream = query_batches(
            [Prompt(prompt) for prompt in prompts],
            tokenizer,
            query_length=prompt_length,
            batch_size=prompts_per_batch,
            seed=None,
            everything=True,
        )
        number = 0
        while (path := kept / f"{number}.json").is_file():
            batch = jax.tree.map(lambda x: np.repeat(x, K, axis=0), next(stream))
            yield replay(batch, json.loads(path.read_text()), tokenizer, response_length)
            number += 1
        # All batches were there: no program needs to be compiled.
        if number == stream.steps_per_epoch:
            return
        for sampled in sampler(params, prompts, key, skip=number):
            write_atomically(kept / f"{number}.json", json.dumps(sampled.tokens))
            yield sampled
            number += 1

    return batches


def replay(
    batch: QueryBatch, tokens: list[list[int]], tokenizer: Tokenizer, length: int
) -> Sampled:
    """A batch as it was sampled, from the ids of its real rows."""
    shape = (len(batch.index), length)
    responses = np.full(shape, tokenizer.pad_id, np.int32)
    mask = np.zeros(shape, bool)
    for row, ids in enumerate(tokens):
        responses[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    # NaN and not 0: whoever used them by mistake would see it.
    logprobs = np.full(shape, np.nan, np.float32)
    generation = Generation(*map(jax.numpy.asarray, (responses, mask, logprobs)))
    last_ids = np.asarray(batch.queries)[: len(tokens), -1]  # rows that fill the batch come last
    return Sampled(batch, generation, list(map(tokenizer.decode_answer, tokens, last_ids)))
