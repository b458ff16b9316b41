"""Real tokens in blocks of rows: each is there once, and is read as it is with padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from rlhf_jax.config import ModelConfig
from rlhf_jax.models import layout, packing
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.models.packing import pack, sum_over_blocks

B, T, V, START = 13, 12, 11, 4
CONFIG = ModelConfig(n_layers=2, d_model=8, n_heads=2, context=T, dtype="float64")

LENGTHS = {
    "of all lengths": [12, 1, 5, 3, 2, 9, 7, 4, 4, 6, 1, 2, 8],
    "all full": [12] * 13,
    "all short": [2] * 13,
    "some empty": [0, 12, 0, 5, 5, 5, 0, 0, 1, 1, 1, 0, 3],
    "all empty": [0] * 13,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of so few tokens."""
    monkeypatch.setattr(packing, "BLOCK_TOKENS", 1)


def padded(lengths, seed=0):
    """Real tokens at the right of the query's columns and at the left of the answer's."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    least, most = np.maximum(lengths - (T - START), 0), np.minimum(lengths, START)
    left = np.clip(rng.integers(1, START + 1, len(lengths)), least, most)
    right = lengths - left
    column = np.arange(T)[None]
    mask = (column >= START - left[:, None]) & (column < START + right[:, None])
    tokens = np.where(mask, rng.integers(1, V, mask.shape), 0)
    read = mask & (column >= START - 1)
    return jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(read)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_every_real_token_stands_in_one_row_once(lengths):
    tokens, mask, read = padded(lengths)
    packed = pack(tokens, mask, read, most_read=T - START + 1)
    number = jnp.arange(tokens.size).reshape(tokens.shape)
    shown, present, filled = [], [], []
    for i in range(int(packed.blocks)):
        block = packed.block(i)
        rows = jax.tree.map(np.asarray, block.rows)
        for tokens_, positions, segments in zip(*rows[:3], strict=True):
            filled.append((segments > 0).sum())
            for segment in set(segments) - {0}:
                at = segments == segment
                assert (np.diff(np.flatnonzero(at)) == 1).all()  # in one piece, in order
                assert positions[at].tolist() == list(range(at.sum()))
                shown.append((segment - 1, tokens_[at].tolist()))
        outputs = np.asarray(block.take(number))
        back = np.asarray(block.put(block.take(number)))
        wanted = np.asarray(read & block.present[:, None])
        assert (back == np.where(wanted, number, 0)).all()
        assert (np.asarray(block.put(jnp.ones(outputs.shape))) == wanted).all()
        present.append(np.asarray(block.present))
    expected = [(b, np.asarray(tokens[b][mask[b]]).tolist()) for b in range(B) if mask[b].any()]
    assert sorted(shown) == expected
    assert (np.sum(present, axis=0) == 1).all()
    assert max(filled) <= rows.tokens.shape[1] == 2 * T


def test_first_fit_decreasing_fills_the_rows():
    tokens, mask, read = padded([12, 12, 6, 6, 4, 4, 2, 2, 2, 2, 2, 1, 1])
    rows = pack(tokens, mask, read, most_read=T)
    # 12 + 12, 6 + 6 + 4 + 4 + 2 + 2, and the rest
    blocks = [rows.block(i) for i in range(int(rows.blocks))]
    used = [int((row > 0).sum()) for block in blocks for row in block.rows.segments]
    assert used == [24, 24, 8]


def test_a_row_has_no_more_reads_than_columns():
    """Queries of one token and long answers: what is read binds before the row is full."""
    rng = np.random.default_rng(0)
    column = np.arange(T)[None]
    mask = jnp.asarray((column >= START - 1) & (column < START + rng.integers(1, 5, (B, 1))))
    read = mask & (column >= START)
    number = jnp.arange(B * T).reshape(B, T)
    packed = pack(number, mask, read, most_read=4)
    assert packed.block(0).rows.columns.shape[1] == 8
    there = sum_over_blocks(lambda block: block.put(block.take(number + 1)), packed)
    assert (there == jnp.where(read, number + 1, 0)).all()


@pytest.mark.parametrize("name", ["of all lengths", "some empty"])
@pytest.mark.cases(1)
def test_models_read_the_same(float64, name):
    tokens, mask, read = padded(LENGTHS[name])
    lm, scalar = make_language_model(CONFIG, V), make_scalar_model(CONFIG, V)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), lm.init(jax.random.key(0)))
    head = scalar.init(jax.random.key(1), params["trunk"])
    weights = jax.random.normal(jax.random.key(2), (B, T, V))

    def from_padded(params):
        logits = lm.logits(params, tokens, mask, start=0)
        values = scalar.values(head | {"trunk": params["trunk"]}, tokens, mask, start=0)
        loss = jnp.where(read[..., None], logits * weights, 0).sum()
        return loss + jnp.where(read, values**2, 0).sum()

    def of_block(params, block):
        logits = lm.read(params, block.rows)
        values = scalar.read(head | {"trunk": params["trunk"]}, block.rows)
        put = jax.vmap(block.put, in_axes=2, out_axes=2)
        loss = (put(logits) * weights).sum()
        return loss + jnp.where(block.present[:, None], block.put(values) ** 2, 0).sum()

    def from_packed(params):
        packed = pack(tokens, mask, read, most_read=T - START + 1)
        return sum_over_blocks(partial(jax.value_and_grad(of_block), params), packed)

    expected = jax.jit(jax.value_and_grad(from_padded))(params)
    found = jax.jit(from_packed)(params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9, rtol=1e-9), found, expected)


def test_examples_of_which_nothing_is_read_take_no_room():
    tokens, mask, read = padded([12] * 13)
    wanted = jnp.arange(13)[:, None] < 2
    packed = pack(tokens, mask, read & wanted, most_read=T)
    (block,) = [packed.block(i) for i in range(int(packed.blocks))]
    assert int((block.rows.segments > 0).sum()) == 2 * 12


@pytest.mark.parametrize("rows,shards", [(16, 4), (6, 2), (3, 1)])
def test_devices_that_share_a_batchs_rows_pack_their_own(rows, shards):
    """Six rows lie on two devices of four, and three on one: what does not divide is not split."""
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    tokens, mask, read = padded([5] * rows)
    with jax.sharding.use_abstract_mesh(mesh):
        assert layout.row_shards(rows) == shards
        packed = jax.eval_shape(lambda: pack(tokens, mask, read, most_read=T).block(0).rows)
    assert packed.tokens.shape[0] % shards == 0
    assert layout.row_shards(rows) == 1
