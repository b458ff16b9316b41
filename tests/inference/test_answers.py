"""The prompt cache: nothing sampled twice, answers as they were, other settings other answers."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax.config import ParallelConfig, SamplingConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.inference.answer_cache import with_cache
from rlhf_jax.inference.sampler import make_sampler
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.training.parallel import make_parallel

SHAPE = dict(prompt_length=8, response_length=10, prompts_per_batch=4, responses_per_prompt=2)
PROMPTS = [
    f"the {word}" for word in ("cat", "dog", "猫", "bird", "fish", "cow", "sun", "sea", "sky")
]


class Counting:
    """A sampler that counts the batches it really samples."""

    def __init__(self, sampler):
        self.sampler, self.batches, self.stop_after = sampler, 0, None

    def __call__(self, *inputs, **options):
        for sampled in self.sampler(*inputs, **options):
            self.batches += 1
            yield sampled


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    tokenizer = train_bpe(["the cat dog bird fish 猫 cow sun sea sky"] * 9, vocab_size=300)
    run = tiny.save_model(tmp_path_factory.mktemp("policy") / "run", tokenizer)
    return load_trained(run, flag="init")


@pytest.fixture
def sampler(policy):
    lm = make_language_model(policy.model, policy.vocab_size)
    parallel = make_parallel(ParallelConfig())
    return Counting(make_sampler(lm, policy.tokenizer, parallel, SamplingConfig(), **SHAPE))


def cached(sampler, policy, folder, config=None, **changes):
    wrap = partial(with_cache, sampler, folder, policy.tokenizer, config or SamplingConfig())
    return wrap(model=policy.model, **SHAPE | changes)


@pytest.mark.slow
def test_nothing_is_sampled_twice_and_answers_are_as_they_were(sampler, policy, tmp_path, key):
    plain = list(sampler(policy.params, PROMPTS, key))
    sampler.batches = 0
    first = list(cached(sampler, policy, tmp_path)(policy.params, PROMPTS, key))
    assert sampler.batches == 3
    again = list(cached(sampler, policy, tmp_path)(policy.params, PROMPTS, key))
    assert sampler.batches == 3, "all from the cache"
    for a, b, c in zip(plain, first, again, strict=True):
        assert a.texts == b.texts == c.texts and a.tokens == b.tokens == c.tokens
        real = len(a.texts)
        for other in (b, c):
            for name in ("queries", "query_mask", "index"):
                np.testing.assert_array_equal(getattr(a.batch, name), getattr(other.batch, name))
            mask = np.asarray(a.generation.mask)[:real]
            np.testing.assert_array_equal(mask, np.asarray(other.generation.mask)[:real])
            ids = [np.where(mask, np.asarray(x.generation.responses)[:real], 0) for x in (a, other)]
            np.testing.assert_array_equal(*ids)


def test_it_goes_on_after_the_last_whole_batch(sampler, policy, tmp_path, key):
    whole = [s.tokens for s in sampler(policy.params, PROMPTS, key)]
    sampler.batches = 0
    stream = cached(sampler, policy, tmp_path)(policy.params, PROMPTS, key)
    next(stream), next(stream)
    stream.close()
    assert sampler.batches == 2
    rest = [s.tokens for s in cached(sampler, policy, tmp_path)(policy.params, PROMPTS, key)]
    assert rest == whole and sampler.batches == 3


def test_what_answers_depend_on_is_told_apart(sampler, policy, tmp_path, key):
    read = lambda *inputs, **changes: list(cached(sampler, policy, tmp_path, **changes)(*inputs))
    read(policy.params, PROMPTS[:4], key)
    moved = jax.tree.map(lambda x: x + 0.1, policy.params)
    for count, inputs, changes in (
        (2, (moved, PROMPTS[:4], key), {}),
        (3, (policy.params, PROMPTS[1:5], key), {}),
        (4, (policy.params, PROMPTS[:4], jax.random.key(7)), {}),
        (5, (policy.params, PROMPTS[:4], key), {"config": SamplingConfig(temperature=0.5)}),
    ):
        read(*inputs, **changes)
        assert sampler.batches == count
    read(policy.params, PROMPTS[:4], key)
    assert sampler.batches == 5
