"""SentencePiece's space before a text is in no answer that anybody reads: judges, logs, pages."""

from itertools import chain

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from sentencepieces import write_sentencepiece

from experiments.ppo import sample_rows
from rlhf_jax.config import ParallelConfig, SamplingConfig
from rlhf_jax.data.formats import Prompt
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.inference.answer_cache import with_cache
from rlhf_jax.inference.rewards import Rewards, make_text_scoring
from rlhf_jax.inference.sampler import make_sampler
from rlhf_jax.inference.session import Session
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.trained import load_trained
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.types import Rollout

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PROMPTS = ["Is Lund nice?", "hello"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("legacy")
    write_sentencepiece(folder, "legacy", settings={"chat_template": TURNS})
    return load_tokenizer(folder).with_chat_prompts()


@pytest.fixture(scope="module")
def rollout(tokenizer):
    """Two answers that begin with the token of ``hello`` with its ▁, as the model learnt them."""
    queries = [ids[-4:] for ids in tokenizer.encode_prompts(PROMPTS)]
    responses = np.array(tokenizer.encode_answers(PROMPTS, ["hello", "hello"]), np.int32)
    zeros = np.zeros(responses.shape, np.float32)
    arrays = (queries, np.ones((2, 4), bool), responses, zeros == 0, zeros, zeros)
    return Rollout(*map(jnp.asarray, arrays), None, {"x": jnp.zeros(2)})


def test_a_judge_reads_the_answer_without_it(tokenizer, rollout):
    read = []

    def judge(prompts, responses):
        read.extend(responses)
        return [0.0] * len(responses)

    score = make_text_scoring(
        Rewards({}, {"x": judge}, {}),
        [Prompt(prompt) for prompt in PROMPTS],
        tokenizer,
        make_parallel(ParallelConfig(devices=1)),
        response_length=rollout.responses.shape[1],
    )
    score(rollout, np.arange(2))
    assert read == ["hello", "hello"]
    assert tokenizer.decode(np.asarray(rollout.responses)[0]) == " hello"


def test_samples_of_ppo_are_logged_without_it(tokenizer, rollout):
    rows = sample_rows(rollout, np.arange(2), [Prompt(p) for p in PROMPTS], tokenizer, ["x"])
    assert [row["response"] for row in rows] == ["hello", "hello"]


def test_chat_shows_and_remembers_the_answer_without_it(tokenizer):
    (ids,) = tokenizer.encode_answers([PROMPTS[0]], ["hello there"])
    shown = []
    config = type("Config", (), {"system": ""})
    session = Session(config, tokenizer, True, lambda *_: ids[:-1]).respond("hi", shown.append)
    assert "".join(shown) == session.messages[-1].content == "hello there"


def test_sampled_and_kept_answers_are_read_without_it(tokenizer, tmp_path, key):
    run = tiny.save_model(tmp_path / "run", tokenizer)
    policy = load_trained(run, flag="init")
    sizes = dict(prompts_per_batch=2, responses_per_prompt=8)
    lengths = dict(prompt_length=20, response_length=6)
    lm, parallel = make_language_model(policy.model, policy.vocab_size), ParallelConfig()
    sampler = make_sampler(
        lm, tokenizer, make_parallel(parallel), SamplingConfig(), **lengths, **sizes
    )
    kept = with_cache(
        sampler,
        tmp_path / "kept",
        tokenizer,
        SamplingConfig(),
        model=policy.model,
        **lengths,
        **sizes,
    )
    first, again = (list(kept(policy.params, PROMPTS, key)) for _ in range(2))
    tokens = list(chain.from_iterable(sampled.tokens for sampled in first))
    before = tokenizer.encode_prompts(PROMPTS[:1])[0][-1]
    expected = [tokenizer.decode_answer(ids, before) for ids in tokens]
    assert expected != [tokenizer.decode(ids) for ids in tokens]
    for found in (first, again):
        assert list(chain.from_iterable(sampled.texts for sampled in found)) == expected
