"""DP-SGD: against one example at a time, its sensitivity, noise, ε and batches; secrets."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from dp_accounting import rdp
from precision import SAME, assert_same
from scipy import stats

from experiments import canaries as canaries_experiment
from experiments import reward, sft
from rlhf_jax.config import (
    CanaryConfig,
    OptimConfig,
    PrivacyConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
)
from rlhf_jax.data.batches import Batches, comparison_batches, demonstration_batches
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.datasets import load_demonstrations, split
from rlhf_jax.data.fates import EncodingReport
from rlhf_jax.data.formats import Comparison, Demonstration
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.privacy.accounting import epsilon_of, event, noise_for
from rlhf_jax.privacy.canaries import DIGITS, NAMES, alternatives, exposure, plant
from rlhf_jax.privacy.dp_sgd import add_noise, clipped_gradients, make_private_update_step
from rlhf_jax.privacy.poisson import PoissonBatches
from rlhf_jax.training.optimizers import make_state
from rlhf_jax.types import QueryBatch


def loss_fn(params, batch, key, count):
    """Squared error of a linear model, as a mean over the rows."""
    x, y = batch
    error = jnp.tanh(x @ params["w"]) + params["b"] - y
    loss = (error**2).sum() / count
    return loss, {"loss": loss}


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=5)), "b": jnp.asarray(rng.normal())}
    batch = (jnp.asarray(rng.normal(size=(7, 5)) * 3), jnp.asarray(rng.normal(size=7)))
    return params, batch


def one_at_a_time(params, batch, clip_norm):
    total = jax.tree.map(np.zeros_like, params)
    for n in range(len(batch[1])):
        row = (batch[0][n : n + 1], batch[1][n : n + 1])
        grads = jax.grad(lambda p, row=row: loss_fn(p, row, None, 1.0)[0])(params)
        norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
        scale = min(1, clip_norm / norm)
        total = jax.tree.map(lambda t, g, scale=scale: t + g * scale, total, grads)
    return total


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("clip_norm", [0.1, 1.0, 100.0])
def test_clipped_sum_equals_one_example_at_a_time(problem, key, clip_norm):
    params, batch = problem
    grads, metrics = jax.jit(
        lambda p, b: clipped_gradients(loss_fn, p, b, key, clip_norm=clip_norm)
    )(params, batch)
    expected = one_at_a_time(params, batch, clip_norm)
    jax.tree.map(assert_same, grads, expected)
    assert_same(metrics["loss"], loss_fn(params, batch, None, 1.0)[0])


@pytest.mark.usefixtures("float64")
def test_no_example_moves_the_sum_by_more_than_the_norm(problem, key):
    params, (x, y) = problem
    sums = lambda x, y: clipped_gradients(loss_fn, params, (x, y), key, clip_norm=0.3)[0]
    for scale in (1.0, 1e6):
        changed = sums(x.at[3].multiply(scale), y.at[3].add(scale))
        without = sums(jnp.delete(x, 3, axis=0), jnp.delete(y, 3))
        gap = jax.tree.map(jnp.subtract, changed, without)
        assert float(optax.tree.norm(gap)) <= 0.3 * (1 + SAME)


@pytest.mark.usefixtures("float64")
def test_without_noise_and_clipping_it_is_the_ordinary_step(problem, key):
    params, batch = problem
    tx = optax.sgd(0.1)
    step = make_private_update_step(
        loss_fn, tx, clip_norm=1e9, noise_multiplier=0.0, expected_rows=7.0, ema_decay=0.0
    )
    state, metrics = step(make_state(params, tx, ema_decay=0.0), batch, key)
    grads = jax.grad(lambda p: loss_fn(p, batch, None, 7.0)[0])(params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    jax.tree.map(assert_same, state.params, expected)
    assert metrics["clipped_share"] == 0.0


def test_noise_has_its_deviation_and_is_new_for_every_leaf_and_key(key):
    zero = {"a": jnp.zeros((200, 100)), "b": jnp.zeros((200, 100))}
    first, second = (add_noise(zero, k, stddev=0.5) for k in jax.random.split(key))
    for leaf in (first["a"], first["b"], second["a"]):
        assert float(leaf.std()) == pytest.approx(0.5, rel=0.02)
        assert abs(float(leaf.mean())) < 0.02
    for a, b in ((first["a"], first["b"]), (first["a"], second["a"])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03


# --- epsilon --------------------------------------------------------------------------------------


def test_one_step_on_all_data_is_the_gaussian_mechanism():
    """δ(ε) = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ) (Balle and Wang 2018, theorem 8)."""
    for sigma in (0.7, 5.0):
        found = epsilon_of(sigma, rate=1.0, steps=1, delta=1e-5)
        phi = stats.norm.cdf
        delta = phi(1 / (2 * sigma) - found * sigma) - math.exp(found) * phi(
            -1 / (2 * sigma) - found * sigma
        )
        assert delta == pytest.approx(1e-5, rel=0.02)


@pytest.mark.slow
def test_epsilon_is_under_the_renyi_bound_and_moves_as_it_must():
    run = dict(rate=0.02, steps=300, delta=1e-5)
    tight = epsilon_of(1.0, **run)
    bound = rdp.RdpAccountant().compose(event(1.0, rate=0.02, steps=300)).get_epsilon(1e-5)
    assert 0.5 * bound < tight < bound
    assert epsilon_of(2.0, **run) < tight
    assert epsilon_of(1.0, **run | {"steps": 600}) > tight
    assert epsilon_of(1.0, **run | {"rate": 0.01}) < tight


@pytest.mark.slow
def test_the_noise_keeps_the_budget_and_wastes_little():
    run = dict(rate=0.05, steps=100, delta=1e-5)
    noise = noise_for(3.0, **run)
    assert epsilon_of(noise, **run) <= 3.0 < epsilon_of(noise * 0.985, **run)
    with pytest.raises(InputError, match="out of reach"):
        noise_for(1e-6, **run)
    with pytest.raises(InputError, match="out of reach at delta=1e-30"):
        noise_for(1.0, **run | {"delta": 1e-30})


# --- batches --------------------------------------------------------------------------------------


def queries(rows):
    index = np.append(np.arange(rows, dtype=np.int32), np.int32(-1))
    return QueryBatch(np.zeros((rows + 1, 2), np.int32), np.zeros((rows + 1, 2), bool), index)


def poisson(data, *, expected_rows, seed):
    rows = len(data[0]) - 1
    report = EncodingReport(rows, {}, {}, 0, {})
    frame = dict(sizes=[rows], weights=(), batch_size=1, seed=None, local_rows=None)
    return PoissonBatches(Batches(data, report, **frame), expected_rows=expected_rows, seed=seed)


def test_rows_are_drawn_by_chance_with_the_rate():
    batches = poisson(queries(400), expected_rows=20, seed=1)
    taken = [set(next(batches).index.tolist()) - {-1} for _ in range(2000)]
    sizes = np.array(list(map(len, taken)))
    assert sizes.mean() == pytest.approx(20, abs=0.4)
    assert sizes.std() == pytest.approx(math.sqrt(400 * 0.05 * 0.95), rel=0.06)
    counts = np.bincount([n for some in taken for n in some], minlength=400)
    assert counts.min() > 60 and counts.max() < 145, "each row about 100 times"
    both = np.mean([0 in some and 1 in some for some in taken])
    assert both == pytest.approx(0.05**2, abs=0.004), "independent of each other"


@pytest.mark.parametrize(("rows", "expected", "sizes"), [(400, 9, 3), (4000, 300, 6)])
def test_batches_have_few_sizes_and_hold_all_that_was_drawn(rows, expected, sizes):
    """The same rows as in one size that any draw fits; the rest of each batch is empty."""
    batches = poisson(queries(rows), expected_rows=expected, seed=1)
    found = [next(batches).index for _ in range(500)]
    lengths = np.array(list(map(len, found)))
    assert len(set(lengths.tolist())) <= sizes and not (lengths % 8).any()
    for step, index in enumerate(found):
        drawn = np.flatnonzero(np.random.default_rng((1, step)).random(rows) < expected / rows)
        empty = len(index) - len(drawn)
        assert index.tolist() == [*drawn, *[-1] * empty]
        assert empty < batches.apart or not len(drawn), "the least size that holds them"
    assert expected < lengths.mean() < expected + max(8, 1.2 * math.sqrt(expected))


def test_a_draw_that_hardly_comes_loses_no_row(monkeypatch):
    """A batch that left some out would be of another mechanism: (1 + e^ε) times its chance in δ."""
    batches = poisson(queries(400), expected_rows=9, seed=1)
    draw = SimpleNamespace(random=np.zeros)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: draw)
    assert set(next(batches).index.tolist()) - {-1} == set(range(400))


def test_batches_go_on_where_they_stood():
    make = lambda seed: poisson(queries(50), expected_rows=5, seed=seed)
    first, second = make(3), make(3)
    for _ in range(4):
        next(first)
    second.set_state(json.loads(json.dumps(first.get_state())))
    for a, b in zip(next(first), next(second), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="seed was 3 and is now 4"):
        make(4).set_state(first.get_state())
    with pytest.raises(InputError, match="over the 50 examples"):
        poisson(queries(50), expected_rows=51, seed=0)


def test_batches_do_not_go_on_with_other_data():
    make = lambda data: poisson(data, expected_rows=5, seed=3)
    state = json.loads(json.dumps(make(queries(50)).get_state()))
    make(queries(50)).set_state(state)
    other = queries(50)
    other.queries[7, 1] = 1
    with pytest.raises(InputError, match=r"checksum was \d+ and is now \d+"):
        make(other).set_state(state)
    del state["checksum"]
    with pytest.raises(InputError, match=r"checksum was None and is now \d+"):
        make(queries(50)).set_state(state)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(
        ["What is the code of Ada? 0 1 2 3 4 5 6 7 8 9 Human Assistant"] * 9, vocab_size=320
    )


def test_each_demonstration_has_a_row_of_its_own(tokenizer):
    rows = [Demonstration(f"a {n}", f" b {n}") for n in range(10)]
    shape = dict(block_size=32, batch_size=4, prompt_length=16, response_length=16)
    frame = dict(target="response", seed=None, **shape)
    apart = demonstration_batches(rows, tokenizer, one_per_row=True, **frame).data
    packed = demonstration_batches(rows, tokenizer, **frame).data
    assert len(apart.tokens) == 11 > len(packed.tokens)
    assert apart.segment_ids.max() == 1 and apart.loss_mask.sum() == packed.loss_mask.sum()


# --- secrets --------------------------------------------------------------------------------------


def test_exposure_by_hand():
    assert exposure(-1.0, [-2.0] * 1023) == 10
    assert exposure(-3.0, [-2.0] * 1023) == 0
    assert exposure(-2.0, [-1.0, -3.0, -4.0]) == 1
    assert exposure(-2.0, [-2.0, -2.0]) == pytest.approx(math.log2(3) - 1)
    rng = np.random.default_rng(0)
    unknown = [exposure(draw[0], draw[1:]) for draw in rng.random((4000, 256))]
    assert np.mean(unknown) == pytest.approx(1 / math.log(2), abs=0.08)


def test_secrets_have_one_form_and_differ():
    secrets = plant(12, seed=0)
    assert len(set(secrets)) == 12 and secrets == plant(12, seed=0) != plant(12, seed=1)
    others = alternatives(NAMES[0], 500, seed=1)
    assert len(set(others)) == 500
    assert {len(other.completion) for other in others} == {len(secrets[0].completion)}


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("number", [40, 1000])
def test_planted_secrets_are_trained_on(tmp_path, number, independent):
    data, planted = tmp_path / "rows.jsonl", tmp_path / "planted.jsonl"
    rows = [{"prompt": f"the {n}", "completion": " c"} for n in range(number)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    secrets = CanaryConfig(what="plant", data=data, out=planted, number=12)
    canaries_experiment.run(secrets)
    rows = load_demonstrations(planted, data_dir=tmp_path / "cache")
    for fraction in (SFTConfig().heldout_fraction, 0.2):
        train, heldout = split(rows, heldout_fraction=fraction, independent=independent)
        prompts = [as_text(row.prompt) for row in train]
        for secret in plant(12, seed=secrets.seed):
            assert prompts.count(secret.prompt) == secrets.repeat
        assert len(heldout) > 0


def test_measuring_needs_runs_and_secrets_enough_to_choose_from():
    with pytest.raises(InputError, match="measure needs --runs"):
        canaries_experiment.run(CanaryConfig())
    expected = r"alternatives=1000000: expected a whole number in \[1, 999999\]"
    with pytest.raises(InputError, match=expected):
        CanaryConfig(alternatives=10**DIGITS)
    CanaryConfig(alternatives=10**DIGITS - 1, number=len(NAMES))


# --- the stages -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    return tiny.save_model(folder, tokenizer, context=80)


def sft_config(pretrained, folder, data, **changes):
    base = SFTConfig(
        run=RunConfig(dir=folder, tensorboard=False, save_every=1000, eval_every=1000),
        init=pretrained,
        data=data,
        cache=folder.parent / "cache",
        pretrain_mix=0.0,
        prompt_length=48,
        response_length=32,
        block_size=80,
        batch_size=16,
        epochs=8,
        heldout_fraction=0.02,
        optim=OptimConfig(lr=2e-2, warmup_steps=5),
    )
    return replace(base, **changes)


@pytest.mark.slow
def test_secrets_are_remembered_without_privacy_and_not_with_it(pretrained, tmp_path):
    """Memorisation, planted and measured: the same data, model and number of passes."""
    rows = [{"prompt": f"the {n}", "completion": f" Human {n % 7}"} for n in range(160)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    planted = tmp_path / "planted.jsonl"
    secrets = CanaryConfig(number=12, repeat=1, alternatives=255)
    canaries_experiment.run(replace(secrets, what="plant", data=data, out=planted))
    assert len(planted.read_text().splitlines()) == 160 + 12
    private = PrivacyConfig(epsilon=2.0, delta=1e-3, clip_norm=0.1)
    fitting = dict(epochs=40, prompt_length=24, response_length=16, block_size=40)
    sft.run(sft_config(pretrained, tmp_path / "plain", planted, **fitting))
    done = sft.run(
        sft_config(pretrained, tmp_path / "private", planted, privacy=private, **fitting)
    )
    promised = done["privacy"]
    assert promised["epsilon"] <= 2.0 < promised["epsilon"] * 1.05
    again = epsilon_of(
        promised["noise_multiplier"],
        rate=promised["sampling_rate"],
        steps=promised["steps"],
        delta=promised["delta"],
    )
    assert again == pytest.approx(promised["epsilon"])
    found = canaries_experiment.run(
        replace(secrets, runs=(pretrained, tmp_path / "plain", tmp_path / "private"))
    )
    # Measured: 7.1 and 1.7 of 8 bits, 1.3 before training; 1.4 is expected of what is unknown.
    assert found["plain"]["mean"] > 4
    assert found["private"]["mean"] < 2.8
    assert found["plain"]["mean"] > found["private"]["mean"] + 2


@pytest.mark.slow
def test_private_training_goes_on_where_it_stopped(pretrained, tmp_path):
    rows = [{"prompt": f"the {n}", "completion": f" Human {n % 7}"} for n in range(120)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    private = PrivacyConfig(epsilon=8.0, delta=1e-3)
    whole = sft.run(sft_config(pretrained, tmp_path / "a", data, privacy=private, epochs=1))
    stopping = sft_config(pretrained, tmp_path / "b", data, privacy=private, epochs=1)
    stopping = replace(stopping, run=replace(stopping.run, stop_after=3))
    with pytest.raises(SystemExit):
        sft.run(stopping)
    resumed = sft.run(replace(stopping, run=replace(stopping.run, stop_after=0)))
    assert resumed["params_sha256"] == whole["params_sha256"]
    assert whole["privacy"]["examples"] == 114, "six prompts have hashes below 0.02"
    assert whole["privacy"]["assumed"].startswith("secret run.seed and run.data_seed")


@pytest.mark.slow
def test_a_private_reward_model(pretrained, tmp_path):
    rows = [{"prompt": f"p {n}", "chosen": " the code", "rejected": " 7"} for n in range(100)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RewardConfig(
        run=RunConfig(dir=tmp_path / "reward", tensorboard=False),
        init=pretrained,
        data=data,
        cache=tmp_path / "cache",
        privacy=PrivacyConfig(epsilon=8.0, delta=1e-3),
        batch_size=16,
    )
    done = reward.run(config)
    assert done["privacy"]["epsilon"] <= 8 and (done["bias"], done["gain"]) == (0.0, 1.0)
    assert done["privacy"]["examples"] == 89, "eleven prompts have hashes below 0.1"
    comparisons = [Comparison("p", (" a", " b"), (0, 1))]
    made = comparison_batches(
        comparisons,
        train_bpe(["a b p"] * 9, vocab_size=300),
        query_length=4,
        response_length=4,
        batch_size=1,
        seed=None,
    )
    assert (made.data.ranks[-1] == -1).all(), "the row that fills up a batch ranks nothing"


def test_what_would_break_the_promise_is_refused(pretrained, tmp_path):
    private = PrivacyConfig(epsilon=1.0, delta=1e-3)
    with pytest.raises(InputError, match="needs pretrain_mix 0"):
        SFTConfig(privacy=private)
    with pytest.raises(InputError, match="excludes unit_std and length_control"):
        RewardConfig(privacy=private, unit_std=True)
    with pytest.raises(InputError, match="pairing must be prompt"):
        RewardConfig(privacy=private, pairing="shuffled")
    rows = [{"prompt": f"the {n}", "completion": " Human"} for n in range(120)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loose = PrivacyConfig(epsilon=1.0, delta=0.1)
    with pytest.raises(InputError, match=r"must be below 1 / 1\d\d examples"):
        sft.run(sft_config(pretrained, tmp_path / "x", data, privacy=loose))
    one_pass = OptimConfig(accumulate=2)
    with pytest.raises(InputError, match="accumulate must be 1"):
        sft.run(sft_config(pretrained, tmp_path / "y", data, privacy=private, optim=one_pass))
