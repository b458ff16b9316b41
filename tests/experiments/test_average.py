"""An average of models is a run folder that every command takes, and only of models that fit."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import reference
import tiny

from experiments import average
from rlhf_jax.cli import load
from rlhf_jax.config import AverageConfig, LoRAConfig, ModelConfig, PPOConfig
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.inference.rewards import check_reward_models
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.models.lora import add_adapters, has_adapters
from rlhf_jax.runs.trained import load_trained, merged

MODEL = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=32)
TEXTS = "a good film . a bad film .", "once upon a time once"


def averaged(*argv):
    return average.run(load(AverageConfig, [*map(str, argv)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average")
    tokenizer, other = (train_bpe([text] * 4, vocab_size=262) for text in TEXTS)
    assert tokenizer.vocab_size == other.vocab_size
    lm = make_language_model(MODEL, tokenizer.vocab_size)
    for n in range(2):
        params = lm.init(jax.random.key(n))
        tiny.save_model(folder / f"lm{n}", tokenizer, model=MODEL, params=params)
        tiny.save_model(folder / f"rm{n}", tokenizer, model=MODEL, params=params, kind="scalar")
    done = folder / "rm1" / "DONE"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"gain": 3.0}))
    tiny.save_model(folder / "other", other, model=MODEL)
    tiny.save_model(folder / "wide", tokenizer, context=48)
    rows = [{"prompt": "a film:", "responses": [" good", " bad ."], "ranks": [0, 1]}] * 3
    tiny.write_rows(folder / "rows.jsonl", rows)
    return folder


def same(found, expected):
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-6), found, expected)


@pytest.mark.slow
def test_between_two_policies(folder, tmp_path):
    paths = folder / "lm0", folder / "lm1"
    done = averaged(*paths, "--weights", 0.3, 0.7, "--dir", tmp_path / "run")
    a, b, found = (load_trained(p, flag="init").params for p in (*paths, tmp_path / "run"))
    same(found, jax.tree.map(lambda x, y: 0.3 * x + 0.7 * y, a, b))
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert (
        card["average_of"] == done["made_of"] == dict(zip(map(str, paths), (0.3, 0.7), strict=True))
    )
    assert "gain" not in done

    # It is finished: the same command has nothing to do, and another is refused.
    again = averaged(*paths, "--weights", 0.3, 0.7, "--dir", tmp_path / "run")
    assert again["params_sha256"] == done["params_sha256"]
    with pytest.raises(InputError, match="weights"):
        averaged(*paths, "--weights", 0.5, 0.5, "--dir", tmp_path / "run")


@pytest.mark.slow
def test_a_round_of_warp(folder, tmp_path, capsys):
    """Two policies along the sphere about their start, then some way back to it; the layers of
    a scanned model have angles of their own."""
    tokenizer = load_trained(folder / "lm0", flag="init").tokenizer
    scanned = replace(MODEL, scan_layers=True, n_layers=2)
    lm = make_language_model(scanned, tokenizer.vocab_size)
    paths = [tmp_path / name for name in ("start", "one", "two")]
    for n, path in enumerate(paths):
        tiny.save_model(path, tokenizer, model=scanned, params=lm.init(jax.random.key(n)))
    flags = ("--method", "slerp", "--init", paths[0], "--weights", 0.25, 0.75)
    done = averaged(*paths[1:], *flags, "--towards-init", 0.4, "--dir", tmp_path / "run")
    start, one, two, found = (
        load_trained(path, flag="init").params for path in (*paths, tmp_path / "run")
    )
    assert done["method"] == "slerp" and done["towards"] == {str(paths[0]): 0.4}

    def expected(s, a, b):
        mixed = [reference.slerp(*np.float64(x), 0.75) for x in zip(s, a, b, strict=True)]
        return 0.4 * s + 0.6 * np.array(mixed)

    kernels = [np.asarray(x["trunk"]["blocks"]["mlp"]["c_fc"]["kernel"]) for x in (start, one, two)]
    np.testing.assert_allclose(
        found["trunk"]["blocks"]["mlp"]["c_fc"]["kernel"], expected(*kernels), atol=1e-6
    )
    assert "are averaged linearly" in capsys.readouterr().err  # what starts at 0 or 1 in all


@pytest.mark.slow
def test_back_towards_the_start_of_a_linear_average(folder, tmp_path):
    paths = [folder / "lm0", folder / "lm1"]
    third = shutil.copytree(folder / "lm0", tmp_path / "start")
    flags = ("--init", third, "--towards-init", 0.5, "--weights", 0, 1)
    averaged(*paths, *flags, "--dir", tmp_path / "run")
    a, b, found = (load_trained(p, flag="init").params for p in (*paths, tmp_path / "run"))
    same(found, jax.tree.map(lambda x, y: (x + y) / 2, a, b))


@pytest.mark.slow
def test_a_reward_model_of_reward_models_passes_ppos_gate(folder, tmp_path):
    paths = [shutil.copytree(folder / name, tmp_path / name) for name in ("rm0", "rm1")]
    run = tmp_path / "run"
    for path in paths:  # as experiments.reward writes its card
        card = json.loads((path / "model.json").read_text())
        card |= {"lengths": {"prompt_length": 12, "response_length": 8}}
        (path / "model.json").write_text(json.dumps(card))
    done = averaged(*paths, "--dir", run, "--heldout", folder / "rows.jsonl")
    a, b, found = (load_trained(p, flag="x", kind="scalar").params for p in (*paths, run))
    same(found, jax.tree.map(lambda x, y: (x + y) / 2, a, b))
    assert done["gain"] == 2.0  # of 1 and 3
    each = done["heldout_of_each"]
    assert {*each} == set(map(str, paths)) and each[str(paths[0])] != each[str(paths[1])]
    assert done["heldout"]["eval/accuracy"] in (0.0, 1.0) and done["heldout"]["eval/spread"] > 0
    check_reward_models(PPOConfig(reward=(run,), min_reward_accuracy=0.0))


@pytest.mark.slow
def test_adapters_are_merged_first(folder, tmp_path):
    plain = load_trained(folder / "rm0", flag="x", kind="scalar")
    model = replace(MODEL, lora_scale=2.0)
    key, lora = jax.random.key(5), LoRAConfig(rank=2)
    params = add_adapters(key, plain.params, model=model, config=lora)
    params = jax.tree.map(lambda x: x + 0.1, params)  # no product of adapters is 0
    options = dict(model=model, params=params, kind="scalar")
    tiny.save_model(tmp_path / "lora", plain.tokenizer, **options)
    averaged(tmp_path / "lora", folder / "rm1", "--dir", tmp_path / "run")
    a, b, found = (
        load_trained(path, flag="x", kind="scalar")
        for path in (tmp_path / "lora", folder / "rm1", tmp_path / "run")
    )
    assert has_adapters(a.params) and not has_adapters(found.params)
    assert found.model.lora_scale == 1.0
    same(found.params, jax.tree.map(lambda x, y: (x + y) / 2, merged(a).params, b.params))


@pytest.mark.parametrize(
    "models, flags, message",
    [
        ("lm0", "", "models names 1: give two or more"),
        ("lm0 lm0", "", "lm0 twice"),
        ("lm0 rm0", "", "lm0 is a language model and .*rm0 a reward or value model"),
        ("lm0 other", "", "lm0 and .*other have different tokenizers"),
        ("lm0 wide", "", "lm0 and .*wide differ in context"),
        ("lm0 nothing", "", "--models .*nothing: nothing is there"),
        ("lm0 lm1", "--weights 1", "weights has 1 numbers, expected one for each of 2 models"),
        ("lm0 lm1", "--weights 0.5 0.6", "weights=.* sum to 1.1: expected a sum of 1"),
        ("lm0 lm1", "--heldout rows.jsonl", "--heldout measures reward models, and .*lm0 is a"),
        ("rm0 rm1", "--heldout rows.jsonl", "with what lengths"),
        ("lm0 lm1", "--method slerp", "method=slerp goes along the sphere .*: give --init"),
        ("lm0 lm1", "--towards-init 0.5", r"towards_init=0.5 needs --init"),
        ("lm0 lm1", "--init lm0", "init=.* has no part in a linear average"),
        ("lm0 lm1", "--method slerp --init lm0 --weights 2 -1", "expected numbers of 0 or more"),
        ("lm0 lm1", "--method slerp --init wide", "lm0 and .*wide differ in context"),
        ("rm0 rm1", "--method slerp --init rm0", "--init is of policies, and .*rm0 is a reward"),
    ],
)
def test_what_cannot_be_averaged_is_one_sentence(folder, tmp_path, models, flags, message):
    paths = [folder / name for name in models.split()]
    named = lambda word: str(folder / word) if (folder / word).exists() else word
    words = [named(word) for word in flags.split()]
    with pytest.raises(InputError, match=message):
        averaged(*paths, *words, "--dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
