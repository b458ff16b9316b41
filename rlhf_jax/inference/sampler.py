"""Responses of a policy to a list of prompts, as ids, text and log-probs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from rlhf_jax.config import SamplingConfig
from rlhf_jax.data import fates
from rlhf_jax.data.batches import query_batches
from rlhf_jax.data.chat import Conversation
from rlhf_jax.data.fates import EncodingReport
from rlhf_jax.data.formats import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import check
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.types import Generation, Params, QueryBatch


class Sampled(NamedTuple):
    """K responses to each of the prompts of one batch."""

    batch: QueryBatch
    """Each query repeated K times; the last batch is filled up with empty rows."""
    generation: Generation
    texts: list[str]
    """Of the real rows, which come first."""

    @property
    def tokens(self) -> list[list[int]]:
        """Ids of each text, end of text included."""
        g = jax.device_get(self.generation)
        rows = zip(g.responses[: len(self.texts)], g.mask, strict=False)
        return [ids[mask].tolist() for ids, mask in rows]


def prompt_report(
    prompts: Sequence[str | Conversation], tokenizer: Tokenizer, length: int
) -> EncodingReport:
    """How many prompts are cut to their last ``length`` tokens, for a stage's summary."""
    rows = (Prompt(prompt) for prompt in prompts)
    report = fates.count(fates.of_prompts(rows, tokenizer, prompt_length=length))
    check(not report.left_out, f"of {len(prompts)} prompts: {report.lost()}")
    return report


def make_sampler(
    lm: LanguageModel,
    tokenizer: Tokenizer,
    parallel: Parallel,
    config: SamplingConfig,
    *,
    prompt_length: int,
    response_length: int,
    prompts_per_batch: int,
    responses_per_prompt: int,
):
    """``(params, prompts, key, skip) -> Sampled per batch``; row r of the list uses ``key`` and r.

    ``skip`` batches are passed over, for resuming.
    """

    @parallel.function
    def sample(params, batch: QueryBatch, keys) -> Generation:
        return generate(
            lm,
            params,
            batch.queries,
            batch.query_mask,
            keys,
            length=response_length,
            end_ids=tokenizer.end_ids,
            pad_id=tokenizer.pad_id,
            **vars(config),
        )

    def batches(
        params: Params, prompts: Sequence[str | Conversation], key: Key[Array, ""], *, skip: int = 0
    ) -> Iterator[Sampled]:
        rows = [Prompt(prompt) for prompt in prompts]
        stream = query_batches(
            rows,
            tokenizer,
            query_length=prompt_length,
            batch_size=prompts_per_batch,
            seed=None,
            everything=True,
        )
        K = responses_per_prompt
        for number in range(stream.steps_per_epoch):
            batch = next(stream)
            if number < skip:
                continue
            keys = row_keys(jax.random.fold_in(key, number), K * len(batch.index))
            generation = sample(params, parallel.shard_whole(batch), keys)
            batch = jax.tree.map(lambda x: np.repeat(x, K, axis=0), batch)
            g = jax.device_get(generation)
            texts = [
                tokenizer.decode_answer(g.responses[row][g.mask[row]], batch.queries[row, -1])
                for row in range(int((batch.index >= 0).sum()))
            ]
            yield Sampled(batch, generation, texts)

    return batches
