"""A reward model whose score is the mean of its outputs at the answer's tokens."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config import ModelConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.interop.huggingface import save_pretrained
from rlhf_jax.interop.peft import save_adapter
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.models.scores import pooled
from rlhf_jax.runs.model_card import save_model_card

V, B, K, Q, R = 11, 3, 3, 4, 5
CONFIG = ModelConfig(n_layers=2, d_model=16, n_heads=2, context=16, dtype="float64", pooling="mean")
QUERY_MASK = jnp.arange(Q)[None] >= jnp.array([0, 2, 3])[:, None]
LENGTHS = np.array([[5, 2, 1], [3, 0, 4], [1, 1, 0]])
MASK = jnp.arange(R)[None, None] < jnp.asarray(LENGTHS)[..., None]
QUERIES = jax.random.randint(jax.random.key(2), (B, Q), 0, V)
RESPONSES = jax.random.randint(jax.random.key(3), (B, K, R), 0, V)
ROWS = QUERIES, QUERY_MASK, RESPONSES, MASK


def rows():
    """Each answer behind its query: tokens and mask [B K, Q + R]."""

    def behind(queries, answers):
        return jnp.concatenate([jnp.repeat(queries, K, axis=0), answers.reshape(B * K, R)], axis=1)

    return behind(QUERIES, RESPONSES), behind(QUERY_MASK, MASK)


@pytest.fixture
def model_and_params(float64):
    model = make_scalar_model(CONFIG, V)
    trunk = jax.jit(make_language_model(CONFIG, V).init)(jax.random.key(1))["trunk"]
    # Far from the tiny initial values, so that tokens differ.
    wide = jax.tree.map(lambda x: 4 * jnp.asarray(x, float), trunk)
    return model, jax.jit(model.init)(jax.random.key(0), wide)


def ways(model):
    """The scores [B, K] of every function that a stage may read them by."""
    tokens, mask = rows()
    return {
        "in whole rows": lambda p: model.score(p, tokens, mask, None, start=Q).reshape(B, K),
        "query once": lambda p: model.score_responses(p, *ROWS, None),
        "packed": lambda p: model.score_packed(p, *ROWS),
    }


def test_every_way_gives_the_mean_over_the_answers_tokens(model_and_params):
    model, params = model_and_params
    outputs = np.asarray(jax.jit(partial(model.values, start=0))(params, *rows()))
    answers = outputs[:, Q:].reshape(B, K, R)
    expected = [[answers[b, k, : LENGTHS[b, k]].sum() for k in range(K)] for b in range(B)]
    expected = np.array(expected) / np.maximum(LENGTHS, 1)  # an absent answer scores 0
    for name, scores in ways(model).items():
        found = jax.jit(scores)(params)
        np.testing.assert_allclose(found, expected, atol=1e-9, rtol=1e-9, err_msg=name)


def test_every_way_has_the_same_gradient(model_and_params):
    model, params = model_and_params

    def gradient(scores):
        return jax.jit(jax.grad(lambda p: jnp.sin(scores(p)).sum()))(params)

    first, *others = map(gradient, ways(model).values())
    for other in others:
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9, rtol=1e-9), other, first)
    kernel = np.asarray(first["head"]["kernel"])
    assert np.abs(kernel).max() > 0.01


def test_padding_and_the_query_do_not_count():
    outputs = jnp.array([[9.0, 1.0, 2.0, 7.0], [5.0, 3.0, 7.0, 7.0]])
    mask = jnp.array([[True, True, True, False], [True, True, False, False]])
    found = pooled(outputs, mask, start=1, pooling="mean")
    np.testing.assert_array_equal(found, [1.5, 3.0])
    np.testing.assert_array_equal(pooled(outputs, mask, start=1, pooling="last"), [2.0, 3.0])


@pytest.mark.parametrize("kind", ["scalar", "lm"])
def test_no_classifier_of_transformers_has_a_mean(tmp_path, kind):
    """A language model that was taken from such a run goes out as any other."""
    config = replace(CONFIG, dtype="float32")
    params = make_language_model(config, V).init(jax.random.key(1))
    if kind == "scalar":
        params = make_scalar_model(config, V).init(jax.random.key(0), params["trunk"])

    def export():
        save_pretrained(
            tmp_path / "out",
            config,
            params,
            kind=kind,
            dtype="float32",
            bos_id=None,
            end_ids=(0,),
            pad_id=None,
        )

    if kind == "lm":
        export()
        return
    with pytest.raises(InputError, match="mean over an answer's tokens"):
        export()
    assert not (tmp_path / "out").exists()


def test_nor_has_peft(tmp_path):
    config = replace(CONFIG, dtype="float32")
    params = make_language_model(config, V).init(jax.random.key(1))
    params = make_scalar_model(config, V).init(jax.random.key(0), params["trunk"])
    with pytest.raises(InputError, match="mean over an answer's tokens"):
        save_adapter(
            tmp_path / "out", config, params, vocab_size=V, kind="scalar", base="somebody/model"
        )
    assert not (tmp_path / "out").exists()


def test_a_value_network_that_started_from_a_mean_is_read_state_by_state(tmp_path):
    tokenizer = train_bpe(["ab"], vocab_size=259)
    save_model_card(tmp_path, CONFIG, 259, tokenizer, kind="lm", value=CONFIG)
    card = json.loads((tmp_path / "model.json").read_text())
    assert [card[name]["pooling"] for name in ("model", "value")] == ["mean", "last"]
