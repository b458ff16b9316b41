"""PPO's rewards: several as one, Python functions, gold scorers, models of another tokenizer."""

import inspect
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from precision import SAME

from configs import quickstart
from experiments import ppo
from rlhf_jax.cli import load, to_dict
from rlhf_jax.config import (
    CombineConfig,
    KLConfig,
    LoRAConfig,
    ModelConfig,
    ParallelConfig,
    PPOConfig,
)
from rlhf_jax.config.older import in_todays_form
from rlhf_jax.config.rewards import RewardSource, reward_names, reward_source
from rlhf_jax.data.datasets import load_prompts
from rlhf_jax.data.files import Origin
from rlhf_jax.data.formats import Prompt
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.inference import rewards as rewards_module
from rlhf_jax.inference.rewards import (
    Answers,
    Rewards,
    call,
    columns_of,
    gold_function,
    load_function,
    make_text_scoring,
)
from rlhf_jax.models.heads import make_scalar_model
from rlhf_jax.objectives.rewards import normalise_scores, pessimistic_scores, weighted_mean
from rlhf_jax.runs.checkpoints import load_params
from rlhf_jax.runs.trained import load_trained, load_value
from rlhf_jax.tasks.task import read_task
from rlhf_jax.training.parallel import make_parallel
from rlhf_jax.training.preparation import combine_scores
from rlhf_jax.types import Rollout

# --- what --reward names --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, expected",
    [
        ("runs/reward", ("model", "runs/reward", "")),
        ("runs/reward@best", ("model", "runs/reward@best", "")),
        ("my/rewards.py:short", ("function", "my/rewards.py", "short")),
        ("gold:sentiment", ("gold", "sentiment", "")),
        ("gold:my_task.py", ("gold", "my_task.py", "")),
    ],
)
def test_sources(given, expected):
    kind, place, function = expected
    assert reward_source(Path(given)) == RewardSource(kind, Path(place), function)


def test_names_tell_several_rewards_apart():
    names = lambda *given: reward_names([Path(each) for each in given])
    assert names("runs/a/reward") == ("task",)
    assert names("runs/a/helpful", "f.py:short", "gold:sentiment") == (
        *("helpful", "short", "gold_sentiment"),
    )
    assert names("runs/a/reward", "runs/b/reward") == ("reward_1", "reward_2")
    assert names("runs/second", "runs/x@best") == ("second_1", "x_best_2"), "another's name"
    assert len(set(names("a_1", "b/a", "c/a"))) == 3


def test_the_command_line_takes_one_or_several():
    assert load(PPOConfig, ["--reward", "runs/x"]).reward == (Path("runs/x"),)
    both = load(PPOConfig, ["--reward", "runs/x", "f.py:g", "--combine.weights", "1", "-0.5"])
    assert both.reward == (Path("runs/x"), Path("f.py:g")) and both.combine.weights == (1.0, -0.5)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(reward=()), r"expected one or several in a tuple"),
        (dict(combine=CombineConfig(weights=(1.0, 2.0))), r"has 2 numbers, .* each of the 1"),
        (dict(combine=CombineConfig(how="mean_minus_std")), r"needs several rewards"),
    ],
)
def test_what_cannot_be_combined_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        PPOConfig(**wrong)
    with pytest.raises(InputError, match="expected a number that is not 0"):
        CombineConfig(weights=(0.0, 0.0))


def test_a_record_of_one_reward_model_is_read_as_one_of_a_list():
    today = to_dict(PPOConfig(reward=(Path("runs/r"),)))
    models = {"init": 1, "reward[0]": 2, "reward[0][settings]": 3, "second_reward.model": 4}
    old_models = {"init": 1, "reward": 2, "reward[settings]": 3, "second_reward.model": 4}
    old = {"stage": "ppo", "config": today | {"reward": "runs/r"}, "models": old_models}
    assert in_todays_form(old) == {"stage": "ppo", "config": today, "models": models}
    chain = {"config": {"ppo": today | {"reward": "runs/r"}, "evaluate": {"reward": "runs/r"}}}
    assert in_todays_form(chain)["config"] == {"ppo": today, "evaluate": {"reward": "runs/r"}}


# --- several as one -------------------------------------------------------------------------------

SCORES = np.array([[1.0, 2.0, 3.0, 6.0], [0.5, -0.5, 0.5, -0.5], [4.0, 4.0, 4.0, 4.0]])


def combined(names=("b", "a", "c"), **options):
    scores = dict(zip(names, map(jnp.asarray, SCORES), strict=True))
    config = CombineConfig(**options)
    # Through jit a dictionary comes in the order of the alphabet: weights go by name all the same.
    one = jax.jit(lambda scores: combine_scores(scores, {}, config=config, names=names))
    return np.asarray(one(scores))


def test_combinations_against_their_definitions(float64):
    close = partial(np.testing.assert_allclose, rtol=0, atol=SAME)
    b, a, c = SCORES
    close(combined(), (b + a + c) / 3)
    close(combined(weights=(1.0, -2.0, 0.0)), (b - 2 * a) / 3)
    close(combined(how="min"), [min(x) for x in zip(b, a, c, strict=True)])
    for how, spread in (("mean_minus_std", np.std), ("mean_minus_var", np.var)):
        expected = [np.mean(x) - 0.7 * spread(x) for x in zip(b, a, c, strict=True)]
        close(combined(how=how, spread_coef=0.7), expected)
    close(combined(clip=2.5), (b.clip(-2.5, 2.5) + a + c.clip(-2.5, 2.5)) / 3)
    unit = lambda x: (x - x.mean()) / x.std()
    close(combined(normalise=True), (unit(b) + unit(a)) / 3)  # c says nothing: 0, not 0 / 0
    close(combined(normalise=True, clip=1.0), (unit(b).clip(-1, 1) + unit(a).clip(-1, 1)) / 3)


def test_one_reward_is_exactly_itself():
    scores = {"task": jnp.asarray([0.1, 0.7, -3.3], jnp.float32)}
    for options in ({}, {"weights": (0.3,)}, {"how": "min"}):
        found = combine_scores(scores, {}, config=CombineConfig(**options), names=("task",))
        assert found.tolist() == scores["task"].tolist()


def test_scores_have_gradients_that_are_finite():
    """A caller may differentiate through them: no 0 / 0 where a reward says nothing."""
    flat = jnp.ones((2, 3))
    for function in (
        normalise_scores,
        partial(weighted_mean, weights=(1.0, -1.0)),
        partial(pessimistic_scores, coef=1.0, spread="variance"),
    ):
        assert np.isfinite(jax.grad(lambda x, function=function: function(x).sum())(flat)).all()


# --- Python functions -----------------------------------------------------------------------------


def write_function(folder, text):
    (folder / "own.py").write_text(text)
    return RewardSource("function", folder / "own.py", "score")


@pytest.mark.parametrize(
    "text, message",
    [
        (None, r"own\.py:score: no such file"),
        ("import nothing_like_it", r"own\.py:score, line 1: ModuleNotFoundError: No module named"),
        ("def other(prompts, responses): ...", r"has no function 'score', only other"),
        ("score = 3", r"has no function 'score', only none"),
        (
            "def score(texts): ...",
            r"parameters are \(texts\), expected \(prompts, responses, ...\)",
        ),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(tmp_path, text, message):
    source = write_function(tmp_path, text or "")
    if text is None:
        source.place.unlink()
    with pytest.raises(InputError, match=message):
        load_function(source)


ROWS = [Prompt(f"p{n}", {"answer": n, "level": "x"}, Origin("q.jsonl", n + 1)) for n in range(3)]
ANSWERS = Answers(ROWS, ["0", "5", ""], [True, True, False])


def test_a_function_is_given_the_columns_that_it_names():
    take = partial(columns_of, where="the reward own")
    assert take(ROWS, ["answer"], {"answer"}, False) == {"answer": [0, 1, 2]}
    assert take(ROWS, ["hint"], set(), False) == {}, "an optional one keeps its default"
    assert take(ROWS, [], set(), True) == {"answer": [0, 1, 2], "level": ["x"] * 3}
    some = [ROWS[0], Prompt("p", {"answer": 4, "hint": "h"}, Origin("q.jsonl", 9))]
    assert take(some, ["hint"], set(), False) == {"hint": [None, "h"]}
    with pytest.raises(InputError, match=r"q\.jsonl.*1.*no column hint, which the reward own asks"):
        take(some, ["hint"], {"hint"}, False)


def test_a_row_without_its_column_is_named_before_anything_is_sampled():
    """Prepared rows may not know their line any more: the prompt says which it is."""
    rows = [Prompt("2 + 2 =", {"answer": 4}), Prompt("2 + 3 =", {"solution": 5})]
    right = lambda prompts, responses, answer, **others: [0.0] * len(prompts)
    given, tokenizer = Rewards({}, {"own": right}, {}), train_bpe(["2 + 2 ="], vocab_size=258)
    parallel = make_parallel(ParallelConfig(devices=1))
    with pytest.raises(
        InputError,
        match=r"prompt '2 \+ 3 =': no column answer, which the reward own asks .* has solution",
    ):
        make_text_scoring(given, rows, tokenizer, parallel, response_length=1)
    make_text_scoring(given, rows[:1], tokenizer, parallel, response_length=1)


@pytest.mark.parametrize(
    "score, message",
    [
        (lambda p, r: [1.0], r"own gave 1 scores of 3 responses"),
        (lambda p, r: None, r"returned a NoneType that is no list of numbers"),
        (lambda p, r: ["good"] * len(r), r"a list that is no list of numbers \(could not convert"),
        (lambda p, r: [1, 2, float("nan")], r"is nan of the answer '' to .*q\.jsonl.*3"),
        (
            lambda p, r: [1 / len(x) for x in r],
            r"failed on the answer '' to .*3: ZeroDivisionError",
        ),
        (lambda p, r: 1 / (len(r) < 3), r"own failed: ZeroDivisionError"),
    ],
)
def test_a_function_that_fails_names_the_row(score, message):
    with pytest.raises(RunError, match=message):
        call("own", score, ANSWERS, {})


def test_a_functions_scores_are_numbers():
    right = lambda prompts, responses, answer: [
        str(a) == r for a, r in zip(answer, responses, strict=True)
    ]
    assert call("own", right, ANSWERS, {"answer": [0, 1, 2]}) == [1.0, 0.0, 0.0]


def test_a_gold_scorer_asks_for_no_column(monkeypatch):
    """Rows of prompts often have a column gold, which is not its scorer."""
    gold = lambda prompts, responses, gold=None: [len(x) for x in responses]
    monkeypatch.setattr(rewards_module, "read_task", lambda *_: SimpleNamespace(gold=gold))
    function = gold_function("mine", Path("data"))
    parameters = list(inspect.signature(function).parameters)
    assert parameters == ["prompts", "responses"] and function(["p"], ["abc"]) == [3]


def test_columns_of_prompts_are_kept(tmp_path):
    rows = [
        {"prompt": "a", "answer": 4, "tests": ["x", {"y": None}]},
        {"prompt": "b"},
        {"instruction": "c", "input": "d", "Reference": "e"},
    ]
    tiny.write_rows(tmp_path / "p.jsonl", rows)
    found = load_prompts(tmp_path / "p.jsonl", data_dir=tmp_path / "cache")
    assert found[0].columns == {"answer": 4, "tests": ["x", {"y": None}]}
    assert found[1].columns is None
    assert list(found[2].columns.values()) == ["e"]


# --- a reward model of another tokenizer ----------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A policy and a reward model of one tokenizer, prompts, and texts as answers."""
    folder = tmp_path_factory.mktemp("rewards")
    task = tiny.make_task(folder)
    tokenizer = load_tokenizer(task.tokenizer)
    model = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=tiny.CONTEXT)
    lm = tiny.save_model(folder / "lm", tokenizer, model=model)
    scalar = tiny.save_model(folder / "scalar", tokenizer, kind="scalar", model=model)
    prompts = [Prompt(f"a {kind} film") for kind in tiny.KINDS[:4]]
    return folder, task, lm, scalar, prompts


@pytest.mark.slow
def test_text_is_scored_as_the_reward_model_reads_it(models, capsys):
    """Held against its own tokens: with the end of text where the policy ended, and only there."""
    _, _, _, scalar, prompts = models
    reward = load_trained(scalar, flag="reward", kind="scalar")
    tokenizer, parallel = reward.tokenizer, make_parallel(ParallelConfig(devices=1))
    texts = [" that is good .", " bad", "", " that is fine and warm ."]
    ended = [True, False, True, True]
    R = 10
    ids = [
        tokenizer.encode(text) + [tokenizer.eos_id] * e
        for text, e in zip(texts, ended, strict=True)
    ]
    responses = np.full((4, R), tokenizer.pad_id, np.int32)
    for row, each in enumerate(ids):
        responses[row, : len(each)] = each
    mask = np.arange(R) < np.array([len(each) for each in ids])[:, None]
    empty = jnp.zeros((4, 1), jnp.int32)
    rollout = Rollout(empty, empty > 0, *map(jnp.asarray, (responses, mask)), None, None, None, {})
    score = make_text_scoring(
        Rewards({}, {}, {"x": reward}), prompts, tokenizer, parallel, response_length=R
    )
    index = [2, 0, 3, 1]  # rows come in the order of the shuffled prompts
    found = score(rollout, np.array(index)).scores["x"]
    assert "are cut" not in capsys.readouterr().err
    short = make_text_scoring(
        Rewards({}, {}, {"x": reward}), prompts, tokenizer, parallel, response_length=1
    )
    for _ in range(2):
        short(rollout, np.array(index))
    assert capsys.readouterr().err.count("answers are cut to 2 of the reward model's tokens") == 1
    model = make_scalar_model(reward.model, reward.vocab_size)
    real = lambda ids: jnp.ones_like(ids, bool)
    read = jax.jit(lambda ids: model.score(reward.params, ids, real(ids), None))
    for row, prompt in enumerate(prompts[n] for n in index):
        whole = jnp.asarray([tokenizer.encode_prompts([prompt.prompt])[0] + ids[row]])
        assert found[row] == pytest.approx(float(read(whole)[0]), abs=1e-5)


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(models):
    folder, task, lm, scalar, _ = models
    chain = tiny.shrink(quickstart.get_config(), folder / "chain", task, d_model=16)
    tiny.write_data(chain)
    c = chain.resolve().ppo
    prompts = [json.loads(line) for line in c.prompts.open()]
    rows = [row | {"wanted": n % 3} for n, row in enumerate(prompts)]
    tiny.write_rows(folder / "prompts.jsonl", rows)
    function = "def near(prompts, responses, wanted):\n"
    function += "    return [-abs(len(r) / 20 - w) for r, w in zip(responses, wanted)]\n"
    (folder / "own.py").write_text(function)
    return replace(
        c,
        init=lm,
        reward=(scalar,),
        prompts=folder / "prompts.jsonl",
        iterations=2,
        ptx_coef=0.0,
        kl=KLConfig(coef=0.1),
        run=replace(c.run, save_every=1, eval_every=1),
    )


def go(config, name, **changes):
    into = config.run.dir.parents[1] / name
    config = replace(config, **changes)
    done = ppo.run(replace(config, run=replace(config.run, dir=into)))
    rows = [json.loads(line) for line in (into / "metrics.jsonl").open()]
    samples = [json.loads(line) for line in (into / "samples.jsonl").open()]
    return done, rows, samples, load_params(into / "final")


@pytest.mark.slow
def test_a_function_alone_rewards_and_resumes(config, models):
    """No reward model is loaded: the value network starts as the policy, with values of 0."""
    own = (models[0] / "own.py:near",)
    lora = LoRAConfig(rank=2, alpha=4.0)
    done, rows, samples, _ = go(config, "function", reward=own, lora=lora)
    wanted = {row["prompt"]: row["wanted"] for row in map(json.loads, config.prompts.open())}
    shown = [row for row in samples if row["prompt"] in wanted]
    assert shown, "samples quote the prompts"
    for row in shown:
        expected = -abs(len(row["response"]) / 20 - wanted[row["prompt"]])
        assert row["score"] == pytest.approx(expected, abs=1e-6)
    assert rows[0]["objective/scores"] < 0 and "objective/task_scores" not in rows[0]
    stopped = replace(config.run, stop_after=1)
    with pytest.raises(SystemExit):
        go(config, "stopped", reward=own, lora=lora, run=stopped)
    load_value(config.run.dir.parents[1] / "function")  # its weights below are found again
    resumed = go(config, "stopped", reward=own, lora=lora)
    assert resumed[0]["params_sha256"] == done["params_sha256"]
    for other in ((models[0] / "own.py:far",), (*own, *own), (Path("gold:sentiment"),)):
        with pytest.raises(InputError, match=r"was started (with|from) another"):
            go(config, "stopped", reward=other, lora=lora)
    (models[0] / "own.py").write_text((models[0] / "own.py").read_text() + "\nX = 1\n")
    with pytest.raises(InputError, match=r"--reward .*own\.py:near has changed since"):
        go(config, "stopped", reward=own, lora=lora)


@pytest.mark.slow
def test_the_gold_scorer_can_be_the_reward(config, models):
    gold = read_task("sentiment", models[1].source).gold
    samples = go(config, "gold", reward=(Path("gold:sentiment"),), source=models[1].source)[2]
    asked, answers = ([row[name] for row in samples] for name in ("prompt", "response"))
    np.testing.assert_allclose([row["score"] for row in samples], gold(asked, answers), atol=1e-5)


@pytest.mark.slow
def test_models_and_functions_are_combined(config, models):
    (models[0] / "flat.py").write_text("def nothing(prompts, responses): return [0] * len(prompts)")
    both = (*config.reward, models[0] / "flat.py:nothing")
    plain = go(config, "plain")
    mixed = go(config, "mixed", reward=both, combine=CombineConfig(weights=(1.0, 0.0)))
    assert mixed[1][0]["objective/scores"] == plain[1][0]["objective/scores"]
    assert {"objective/scalar_scores", "objective/nothing_scores"} <= mixed[1][0].keys()
    assert {"score", "score_nothing"} <= mixed[2][0].keys()
    same = jax.tree.map(np.array_equal, plain[3], mixed[3])
    assert all(jax.tree.leaves(same)), "a reward of weight 0 changes nothing"


@pytest.mark.slow
def test_a_run_of_one_reward_model_before_there_were_several_goes_on(config):
    done, *_ = go(config, "before")
    path = config.run.dir.parents[1] / "before" / "config.json"
    saved = json.loads(path.read_text())
    saved["config"]["reward"] = saved["config"]["reward"][0]
    del saved["config"]["combine"], saved["config"]["source"]
    saved["models"] = {n.replace("reward[0]", "reward"): m for n, m in saved["models"].items()}
    path.write_text(json.dumps(saved))
    assert go(config, "before")[0] == done
