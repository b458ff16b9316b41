"""The program that scores answers in an evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config import ModelConfig, ParallelConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.inference.judged_answers import make_judge
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.runs.trained import Trained
from rlhf_jax.training.parallel import Parallel, make_parallel
from rlhf_jax.types import Generation, QueryBatch

V, B, Q, R = 11, 3, 4, 5


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_models_are_arguments_of_the_program_and_scores_are_theirs(pooling, monkeypatch):
    """What a jitted function closes over is part of its program, once more for each copy of it."""
    config = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=16, pooling=pooling)
    lm, scalar = make_language_model(config, V), make_scalar_model(config, V)
    policy, base = (jax.jit(lm.init)(jax.random.key(n)) for n in (0, 1))
    reward = jax.jit(scalar.init)(jax.random.key(2), base["trunk"])
    captured = []

    def function(self, fn):
        def traced(*args):
            captured.extend(np.size(constant) for constant in jax.make_jaxpr(fn)(*args).consts)
            return jax.jit(fn)(*args)

        return traced

    monkeypatch.setattr(Parallel, "function", function)
    parallel, tokenizer = make_parallel(ParallelConfig()), train_bpe(["ab"], vocab_size=259)
    judges = [Trained(config, V, tokenizer, reward, "scalar")]
    baseline = Trained(config, V, tokenizer, base, "lm")
    _, judge = make_judge(parallel, baseline, judges, 0.7)(config, V)
    tokens = jax.random.randint(jax.random.key(3), (B, Q + R), 0, V)
    mask = jnp.arange(R)[None] < jnp.array([[5], [2], [1]])
    queries = QueryBatch(tokens[:, :Q], jnp.ones((B, Q), bool), jnp.arange(B))
    answers = Generation(tokens[:, Q:], mask, jnp.zeros((B, R)))
    scores, kl, _ = judge(policy, queries, answers)
    assert max(captured, default=0) < 100  # the smallest matrix of the models has 176 elements
    expected = scalar.score_responses(
        reward, tokens[:, :Q], queries.query_mask, tokens[:, None, Q:], mask[:, None], None
    )
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.abs(kl).min() > 0
