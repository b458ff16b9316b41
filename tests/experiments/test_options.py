"""Options of the stages, a few steps each: what is true of a run with the option is true of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from precision import SAME, float32_bound

from configs import quickstart
from experiments import compare, convert, ppo, pretrain, reward, sft
from rlhf_jax.config import (
    ConvertConfig,
    KLConfig,
    LoRAConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    SamplingConfig,
    SecondRewardConfig,
    TextDataConfig,
)
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import DivergedError, InputError
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.lora import adapter_rank
from rlhf_jax.models.transformer import unstack_blocks
from rlhf_jax.runs.checkpoint_files import load, read_info
from rlhf_jax.runs.checkpoints import load_params
from rlhf_jax.runs.trained import load_trained, load_value, merged

# In float64: what an option should not change then changes by nothing that shows.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("module_in_float64")]
STAGES = {
    "pretrain": pretrain.run,
    "sft": sft.run,
    "compare": compare.run,
    "reward": reward.run,
    "ppo": ppo.run,
}
ADAM = OptimConfig(lr=1e-3, schedule="constant", weight_decay=0.0)
STILL = replace(ADAM, lr=1e-14)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``run(stage, **changes)`` of a tiny stage: its folder, summary, metrics, final parameters.

    The same call is answered by the same run.
    """
    folder = tmp_path_factory.mktemp("options")
    task = tiny.make_task(folder)
    c = tiny.shrink(quickstart.get_config(), folder / "chain", task, d_model=16)
    tiny.write_data(c)
    c = c.resolve()
    tokenizer = load_tokenizer(task.tokenizer)
    model = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=tiny.CONTEXT, dtype="float64")
    lm = tiny.save_model(folder / "lm", tokenizer, model=model)
    scalar = tiny.save_model(folder / "scalar", tokenizer, kind="scalar", model=model)
    answers = {"responses": [" good film .", " film", " bad ."], "ranks": [0, 2, 1]}
    rows = [{"prompt": f"Write a positive review: film {n}"} | answers for n in range(12)]
    tiny.write_rows(folder / "comparisons.jsonl", rows)
    ranked = dict(data=folder / "comparisons.jsonl", heldout=folder / "comparisons.jsonl")
    plain = dict(optim=ADAM, value_optim=ADAM, kl=KLConfig(coef=0.1))
    base = {
        "pretrain": replace(c.pretrain, optim=ADAM, steps=3, model=replace(model, n_layers=2)),
        "sft": replace(c.sft, init=lm, optim=ADAM),
        "compare": replace(c.compare, init=lm, prompts_per_batch=8),
        "reward": replace(c.reward, init=lm, optim=ADAM, demonstrations=None, **ranked),
        "ppo": replace(c.ppo, init=lm, reward=(scalar,), iterations=3, **plain),
    }
    finished = {}

    def go(stage, **changes):
        name = f"{stage}{sorted(changes.items())}"
        if name not in finished:
            into = folder / f"{stage}_{len(finished)}"
            config = replace(base[stage], run=replace(base[stage].run, dir=into), **changes)
            done = STAGES[stage](config)
            finished[name] = SimpleNamespace(
                dir=into,
                config=config,
                done=done,
                rows=read_rows(into / "metrics.jsonl") if stage != "compare" else None,
                params=load_params(into / "final") if stage != "compare" else None,
            )
        return finished[name]

    return go


def read_rows(path):
    return [json.loads(line) for line in path.open()]


def gap(first, second):
    """Largest difference of any parameter."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def newest(run, item="params"):
    steps = sorted((run.dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return load(steps[-1], {item: None})[item]


def initial(run):
    return load_params(run.config.init / "final")


# --- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_dropout_acts_in_training(run, stage):
    plain, dropped = run(stage, optim=STILL), run(stage, optim=STILL, dropout=0.5)
    assert abs(plain.rows[0]["loss"] - dropped.rows[0]["loss"]) > 1e-4
    card = json.loads((dropped.dir / "model.json").read_text())
    assert card["model"]["dropout"] == 0.5


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_dropout_does_not_act_in_evaluation(run, stage):
    """At no learning rate to speak of, what is measured does not depend on the dropout."""
    plain, dropped = run(stage, optim=STILL), run(stage, optim=STILL, dropout=0.5)
    assert dropped.done["heldout"] == pytest.approx(plain.done["heldout"], rel=SAME)


# --- optimizers -----------------------------------------------------------------------------------


def test_two_microbatches_are_one_batch(run):
    one, two = run("sft"), run("sft", optim=replace(ADAM, accumulate=2))
    assert gap(one.params, initial(one)) > 1e-4
    assert gap(one.params, two.params) < SAME


def test_the_average_is_what_is_handed_on(run):
    plain, averaged = run("sft"), run("sft", optim=replace(ADAM, ema_decay=0.9))
    raw = newest(averaged)
    assert gap(raw, plain.params) < SAME, "the average does not act on the training"
    assert gap(newest(averaged, "ema"), averaged.params) == 0
    assert gap(averaged.params, raw) > 1e-5
    # After two steps: 0.81 of the start, and at most 0.19 of the way
    moved, lag = gap(raw, initial(plain)), gap(averaged.params, initial(plain))
    assert 0 < lag < 0.2 * moved


def test_the_advice_after_a_nan_can_be_followed(run, tmp_path):
    """The same folder with a lower learning rate: it finishes as a run that began with it."""
    given = run("reward").config
    config = replace(given, run=replace(given.run, dir=tmp_path / "r", save_every=99))
    wild = OptimConfig(lr=1e30, schedule="constant", clip_norm=0.0)
    tame = replace(wild, lr=1e-4)
    with jax.enable_x64(False):  # where the square of 1e30 is infinite
        init = tiny.save_model(tmp_path / "lm", load_tokenizer(given.init / "tokenizer"))
        config = replace(config, init=init, epochs=4)
        with pytest.raises(DivergedError, match=r"a lower --optim\.lr"):
            reward.run(replace(config, optim=wild))
        assert np.isfinite(reward.run(replace(config, optim=tame))["heldout"]["eval/accuracy"])
        first = run("reward", init=init, optim=tame, epochs=4)
    assert gap(load_params(tmp_path / "r" / "final"), first.params) == 0


def test_muon_turns_kernels_and_adam_bounds_its_steps(run):
    """One epoch is one step: AdamW moves by at most lr, Muon along a semi-orthogonal matrix."""
    fast = OptimConfig(lr=1e-3, schedule="constant", weight_decay=0.0)
    muon = replace(fast, optimizer="muon", lr=1e-2, adam_lr=1e-3)
    steps = {}
    for name, optim in (("adamw", fast), ("muon", muon)):
        done = run("sft", optim=optim, epochs=1, batch_size=100)
        assert done.done["steps"] == 1
        steps[name] = jax.tree.map(jnp.subtract, done.params, initial(done))["trunk"]
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(steps["adamw"]))
    assert 0.9e-3 < largest < 1.001e-3
    kernel = lambda name: steps[name]["block_0"]["mlp"]["c_fc"]["kernel"]  # [16, 64]
    turned, plain = (np.linalg.svd(kernel(n), compute_uv=False) for n in ("muon", "adamw"))
    # What LayerNorm gives has mean 0: along the 16th direction there is only rounding.
    turned, plain = turned[:-1], plain[:-1]
    assert turned.min() > 0.5 * turned.max() and plain.min() < 0.3 * plain.max()
    assert float(jnp.abs(steps["muon"]["wte"]).max()) < 2e-3, "embeddings are Adam's"


# --- layout of devices, layers and numbers --------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_pmap_computes_the_same(run, stage):
    mesh, mapped = run(stage), run(stage, parallel=ParallelConfig(mode="pmap"))
    assert gap(mesh.params, initial(mesh)) > 1e-4
    assert gap(mesh.params, mapped.params) < SAME
    assert mapped.rows[-1]["lr"] == mesh.rows[-1]["lr"]


def test_scanned_and_recomputed_layers_compute_the_same(run):
    unrolled = run("pretrain")
    model = replace(unrolled.config.model, scan_layers=True, remat="full")
    scanned = run("pretrain", model=model)
    assert scanned.params["trunk"]["blocks"]["mlp"]["c_fc"]["kernel"].shape[0] == 2
    trunk = unstack_blocks(scanned.params["trunk"], 2)
    assert gap(unrolled.params, {"trunk": trunk}) < SAME
    assert scanned.done["heldout"] == pytest.approx(unrolled.done["heldout"], rel=SAME)


def test_bfloat16_is_for_products_only(run, capsys):
    model = run("pretrain").config.model
    with jax.enable_x64(False):
        full, half = (
            run("pretrain", model=replace(model, dtype=dtype)) for dtype in ("float32", "bfloat16")
        )
    assert capsys.readouterr().err.count("note: model.dtype is bfloat16") == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("float32")}
    train = newest(half, "train")["opt_state"]
    kinds = {str(np.asarray(leaf).dtype) for leaf in jax.tree.leaves(train)}
    assert kinds <= {"float32", "int32"}
    losses = [[row["loss"] for row in r.rows if "loss" in row] for r in (full, half)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.01)


# --- PPO ------------------------------------------------------------------------------------------


def test_the_adaptive_coefficient_follows_its_rule(run):
    """βₜ₊₁ = βₜ (1 + clip(KL/target − 1, ±0.2) · batch/horizon) (Ziegler et al. 2019, §2.2)."""
    kl = KLConfig(coef=0.1, target=0.5, horizon=100.0)
    adaptive, fixed = run("ppo", kl=kl), run("ppo")
    batch = adaptive.config.batch_size
    beta = 0.1
    for row in adaptive.rows:
        assert row["objective/kl_coef"] == pytest.approx(beta, rel=SAME)
        beta *= 1 + np.clip(row["objective/kl"] / 0.5 - 1, -0.2, 0.2) * batch / 100.0
    assert adaptive.done["kl_coef"] == pytest.approx(beta, rel=SAME) and beta < 0.1
    assert {row["objective/kl_coef"] for row in fixed.rows} == {0.1}


def test_a_second_reward_of_no_weight_changes_nothing(run):
    plain = run("ppo")
    beside = run("ppo", second_reward=SecondRewardConfig(model=plain.config.reward[0], weight=0.0))
    assert gap(plain.params, beside.params) < SAME
    # One model twice is that model, whatever the weight.
    twice = run("ppo", second_reward=SecondRewardConfig(model=plain.config.reward[0], weight=2.0))
    assert gap(plain.params, twice.params) < SAME
    for row in twice.rows:
        assert row["objective/second_scores"] == row["objective/task_scores"]


def test_the_multiplier_grows_while_the_floor_is_not_reached(run):
    """By its rule at every iteration; what the checkpoint holds is what comes next."""
    model = run("ppo").config.reward[0]
    floor = SecondRewardConfig(model=model, weight=0.5, floor=9.0, lr=0.05)
    constrained = run("ppo", second_reward=floor)
    weight = 0.5
    for row in constrained.rows:
        assert row["objective/second_weight"] == pytest.approx(weight, rel=SAME)
        weight *= np.exp(0.05 * (9.0 - row["objective/second_scores"]))
    assert constrained.done["second_weight"] == pytest.approx(weight, rel=SAME) and weight > 0.5
    kept = read_info(constrained.dir / "checkpoints" / "3")["extra"]
    assert kept["second_weight"] == pytest.approx(weight, rel=SAME)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(weight=-1.0), "weight=-1.0: expected a number, 0 or more"),
        (dict(model=Path("x"), weight=0.0, floor=1.0), "cannot grow"),
        (dict(floor=1.0), "needs second_reward.model"),
    ],
)
def test_a_second_reward_that_cannot_be(wrong, message):
    with pytest.raises(InputError, match=message):
        SecondRewardConfig(**wrong)


def test_what_iterations_hand_on_goes_on_where_it_stopped(run, tmp_path):
    """Older policies, a reference that moves, REINFORCE's baseline: stopped in the middle and
    resumed, bit for bit; what is kept is what the rules say."""
    moving = dict(iterations=4, staleness=2, reference_every=1, reference_mix=0.5)
    reinforce = dict(advantage="reinforce", value_trunk="none", whiten_advantages=False)
    whole = run("ppo", **moving, **reinforce)
    baselines = [row["objective/baseline"] for row in whole.rows]
    first, second, *_ = (row["objective/rlhf_reward"] for row in whole.rows)
    assert baselines[0] == 0
    assert baselines[1:3] == pytest.approx([first, (0.9 * 0.1 * first + 0.1 * second) / 0.19])
    penalty = second - whole.rows[1]["objective/scores"]
    assert abs(penalty) > 1e-3 * abs(second), "the return is not the score, or nothing is seen"
    stale = [row["objective/stale_kl"] for row in whole.rows]
    assert abs(stale[0]) < SAME and min(map(abs, stale[1:])) > 1e-6
    older, last = (
        load(whole.dir / "checkpoints" / step, {"params": None, "past": None, "reference": None})
        for step in ("3", "4")
    )
    assert gap(last["past"]["1"], older["params"]["policy"]) == 0
    assert gap(last["past"]["0"], older["past"]["1"]) == 0
    assert gap(last["past"]["0"], last["past"]["1"]) > 0
    mixed = jax.tree.map(
        lambda p, r: 0.5 * p + 0.5 * r, last["params"]["policy"], older["reference"]
    )
    assert gap(last["reference"], mixed) < SAME

    parts = replace(whole.config, run=replace(whole.config.run, dir=tmp_path, stop_after=2))
    with pytest.raises(SystemExit):
        ppo.run(parts)
    resumed = ppo.run(parts)
    for name in ("params_sha256", "baseline"):
        assert resumed[name] == whole.done[name] != 0
    timed = ("episodes_per_second", "time")
    values = lambda rows: [{k: v for k, v in row.items() if k not in timed} for row in rows]
    assert values(read_rows(tmp_path / "metrics.jsonl")) == values(whole.rows)


def test_a_shared_trunk_has_one_network(run):
    shared, separate = run("ppo", value_trunk="shared"), run("ppo")
    assert set(newest(separate)) == {"policy", "value"}
    assert set(newest(shared)) == {"policy"}
    head = newest(shared)["policy"]["head"]["kernel"]
    assert np.abs(head).max() > 0, "it starts at 0 and learns"
    load_trained(shared.dir, flag="init")  # the stages to come can read it


def test_ptx_off_reads_no_text(run):
    with_text = run("ppo")
    without = run("ppo", ptx_coef=0.0, ptx_data=TextDataConfig())
    assert {"loss/ptx_avg", "policy/ptx_grad_norm"} <= set(with_text.rows[0])
    assert not any("ptx" in name for name in without.rows[0])
    checkpoint = lambda r: read_info(r.dir / "checkpoints" / "3")["data"]
    assert set(checkpoint(with_text)) == {"queries", "ptx"}
    assert set(checkpoint(without)) == {"queries"}
    # The same episodes at first; only the updates differ
    for name in ("objective/scores", "objective/kl", "response_length"):
        assert with_text.rows[0][name] == without.rows[0][name]
    assert gap(with_text.params, without.params) > 1e-5


def test_sampled_and_recomputed_logprobs(run):
    """Before the first update the ratio is 1: exactly if recomputed, to rounding if sampled."""
    single = dict(ppo_epochs=1, num_minibatches=1, iterations=1)
    sampled = run("ppo", recompute_logprobs=False, **single).rows[0]
    recomputed = run("ppo", recompute_logprobs=True, **single).rows[0]
    for row in (sampled, recomputed):
        assert row["policy/approxkl_avg"] < SAME**2 and row["policy/clipfrac_avg"] == 0
    for name in ("objective/scores", "response_length"):
        assert sampled[name] == recomputed[name]
    assert sampled["objective/kl"] == pytest.approx(recomputed["objective/kl"], abs=SAME)


# --- adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank,alpha", [(2, 4.0), (8, 8.0)])
def test_a_value_network_has_the_adapters_that_are_asked_for(run, rank, alpha, tmp_path, capsys):
    """From a reward model with adapters of rank 2 and scale 2; exported, it scores like it."""
    adapted = run("reward", lora=LoRAConfig(rank=2, alpha=4.0))
    lora = LoRAConfig(rank=rank, alpha=alpha)
    done = run(
        "ppo", reward=(adapted.dir,), lora=lora, optim=STILL, value_optim=STILL, iterations=1
    )
    said = [line for line in capsys.readouterr().err.splitlines() if "value network" in line]
    assert len(said) == (rank != 2) and all("rank 2" in x and "rank 8" in x for x in said)
    value = load_value(done.dir)
    assert adapter_rank(value.params) == rank and value.model.lora_scale == alpha / rank
    convert.run(ConvertConfig("to-hf", done.dir, out=tmp_path / "value", part="value"))
    exported = load_trained(tmp_path / "value", flag="init", kind="scalar")
    start = merged(load_trained(adapted.dir, flag="reward", kind="scalar"))
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(start.params))
    assert gap(exported.params, start.params) < float32_bound(1, largest), "float32 in the file"


def test_a_value_network_whose_weights_are_gone_is_not_exported(run, tmp_path):
    adapted = run("reward", lora=LoRAConfig(rank=2, alpha=4.0))
    done = run("ppo", reward=(adapted.dir,), lora=LoRAConfig(rank=2, alpha=4.0), iterations=1)
    copy = shutil.copytree(done.dir, tmp_path / "ppo")
    record = json.loads((copy / "config.json").read_text())
    record["config"]["reward"] = str(tmp_path / "moved")
    (copy / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"stand on .*moved .*, which is not there"):
        load_value(copy)


# --- sampling and data ----------------------------------------------------------------------------


@pytest.mark.parametrize("top_k,top_p", [(3, 1.0), (0, 0.3)])
def test_answers_stay_inside_the_filter(run, top_k, top_p):
    """Every token of every answer is among the k likeliest, or in the smallest set of mass p."""
    sampling = SamplingConfig(temperature=0.7, top_k=top_k, top_p=top_p)
    done = run("compare", sampling=sampling)
    trained = load_trained(done.config.init, flag="init")
    lm = make_language_model(trained.model, trained.vocab_size)
    logits_of = jax.jit(lambda tokens, mask: lm.logits(trained.params, tokens, mask, start=0))
    checked = 0
    for row in read_rows(done.dir / "train.jsonl")[:4]:
        prompt = trained.tokenizer.encode(row["prompt"])[-done.config.prompt_length :]
        for ids in row["response_tokens"]:
            tokens = np.zeros((1, tiny.CONTEXT), np.int32)
            tokens[0, : len(prompt + ids)] = prompt + ids
            mask = np.arange(tiny.CONTEXT)[None] < len(prompt + ids)
            logits = np.asarray(logits_of(jnp.asarray(tokens), jnp.asarray(mask)))[0]
            for t, token in enumerate(ids, start=len(prompt) - 1):
                probability = np.exp((logits[t] - logits[t].max()) / 0.7)
                likelier = probability > probability[token] * (1 + SAME)
                if top_k:
                    assert likelier.sum() < top_k
                assert probability[likelier].sum() / probability.sum() < top_p + SAME
                checked += 1
    assert checked > 50
    assert len({tuple(ids) for ids in row["response_tokens"]}) > 1


def test_one_row_of_text_in_a_batch(run):
    """pretrain_mix of 10 % in a batch of ten: one row, from several weighted corpora."""
    done = run("sft", batch_size=10)
    assert done.config.pretrain_data.weights and done.done["steps"] > 0
