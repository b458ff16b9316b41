"""The card of an export says what the records say: lineage, figures, commands, what is missing."""

import json

import pytest

from rlhf_jax.cli import to_dict
from rlhf_jax.config import EvaluateConfig, PPOConfig, RunConfig, SFTConfig
from rlhf_jax.errors import InputError
from rlhf_jax.runs.hub_card import Export, command, write_card
from rlhf_jax.runs.lineage import licence_of
from rlhf_jax.runs.model_digests import model_digest

MACHINE = {
    "git": {"sha": "0123abcd", "dirty": True},
    "versions": {"python": "3.12", "jax": "0.12"},
    "devices": ["cpu:0 cpu", "cpu:1 cpu"],
}


def write_run(folder, stage, config, *, done, models=None, data=None, argv=()):
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "stage": stage,
        "config_class": type(config).__name__,
        "config": to_dict(config),
        "models": models or {},
        "data": data or {},
        "argv": [f"/home/somebody/rlhf/experiments/{stage}.py", *argv],
        **MACHINE,
    }
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "DONE").write_text(json.dumps(done))
    (folder / "model.json").write_text("{}")
    return folder


def rows(kept, **left_out):
    return {"kept": kept, "left_out": left_out, "cut": {"prompt": 3}, "over": 0}


@pytest.fixture
def runs(tmp_path):
    """SFT from a checkpoint with a licence, PPO from it against a reward; one seed of each."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/model.safetensors").write_bytes(b"weights")
    (tmp_path / "hf/README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Base\n")
    hf = str(model_digest(tmp_path / "hf"))
    write_run(
        tmp_path / "sft",
        "sft",
        SFTConfig(run=RunConfig(dir=tmp_path / "sft", seed=5), init=tmp_path / "hf"),
        models={"init": [str(tmp_path / "hf"), hf], "init[settings]": ["x", "y"]},
        data={"data": ["/home/somebody/mine.jsonl", "d" * 64]},
        done={"steps": 8, "params_sha256": "a" * 64, "demonstrations": rows(53, empty=2)},
        argv=["--init", "/home/somebody/hf", "--optim.lr=1e-5"],
    )
    return tmp_path


def policy_of(runs, seed):
    folder = runs / f"seed{seed}" / "ppo"
    init = runs / "sft"
    return write_run(
        folder,
        "ppo",
        PPOConfig(run=RunConfig(dir=folder, seed=seed), init=init),
        models={"init": [str(init), "a" * 64]},
        done={"steps": 2, "episodes": 16, "params_sha256": f"{seed}" * 64},
    )


def evaluation_of(runs, seed, wins, **changes):
    folder = runs / f"seed{seed}" / "evaluate"
    config = EvaluateConfig(
        run=RunConfig(dir=folder, seed=seed), policies=(runs / "sft", folder.parent / "ppo")
    )
    win_rate = {"mean": wins, "ci": 0.1, "low": wins - 0.2, "high": wins + 0.1, "n": 40}
    figures = {"win_rate": win_rate, "ended": 0.5, "judges": {"one": {"mean": 1.0, "ci": 0.25}}}
    return write_run(
        folder,
        "evaluate",
        config,
        models={"policies[0]": ["s", "a" * 64], "policies[1]": ["p", f"{seed}" * 64]},
        done={
            "prompts": rows(40),
            "baseline": "sft",
            "policies": {"sft": {}, "ppo": figures},
            "text": {"ppo": {"eval/x/nats_per_token": 2.5}},
        }
        | changes,
    )


def card(runs, source, **options):
    export = Export("policy", source, "model", "lm", 1234567, 64, "float32")
    write_card(runs / "out", export, **options)
    return (runs / "out/README.md").read_text()


def test_what_it_was_made_from_and_how_it_did(runs):
    policy = policy_of(runs, 1)
    evaluation_of(runs, 1, 0.75)
    text = card(runs, policy)
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    assert "1,234,567 parameters" in text and "# policy" in text
    assert text.index("### sft") < text.index("### ppo")
    assert "- 8 steps, seed 5" in text and "- 2 steps, 16 episodes, seed 1" in text
    assert f"- data: mine.jsonl (sha256 {'d' * 12})" in text
    assert "- rows of demonstrations: 53 kept, 2 left out (empty), 3 with a cut prompt" in text
    assert "40 held-out prompts" in text and "with sft (seed 1)" in text
    assert "| win rate | 0.75 | 0.55 to 0.85 |" in text
    assert "| judges: one | 1 | 0.75 to 1.25 |" in text
    assert "| ended | 0.5 |  |" in text and "| eval/x/nats_per_token | 2.5 |  |" in text
    assert (
        "at commit 0123abcd, with changes that are not in it (python 3.12, jax 0.12; cpu)" in text
    )
    assert "python -m experiments.sft --init hf --optim.lr=1e-5" in text
    assert "One seed was evaluated" in text and "apache-2.0, as the card of the model" in text
    assert "/home/somebody" not in text and str(runs) not in text


def test_several_evaluations_have_intervals_over_their_seeds(runs):
    policies = [policy_of(runs, seed) for seed in (1, 2, 3)]
    given = [
        evaluation_of(runs, seed, x) for seed, x in zip((1, 2, 3), (0.6, 0.7, 0.8), strict=True)
    ]
    text = card(runs, policies[1], evaluations=given, licence="mit")
    # t(0.975, 2) = 4.3027; the deviation is 0.1: 0.7 ± 4.3027 × 0.1 / √3
    assert "| win rate | 0.7 | 0.4516 to 0.9484 |" in text
    assert "(seeds 1, 2, 3). 95 % intervals are over seeds" in text
    assert "One seed" not in text
    assert "license: mit" in text and "The card of the model that it was made from says" in text


def test_evaluations_that_do_not_belong_together_are_refused(runs):
    policy = policy_of(runs, 1)
    ours = evaluation_of(runs, 1, 0.7)
    policy_of(runs, 2)
    theirs = evaluation_of(runs, 2, 0.7)
    with pytest.raises(InputError, match=r"none of 1 has the model .*ppo in it"):
        card(runs, policy, evaluations=[theirs])
    config = json.loads((theirs / "config.json").read_text())
    config["config"]["num_prompts"] = 7
    (theirs / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"num_prompts=7, but .* expected evaluations that differ"):
        card(runs, policy, evaluations=[ours, theirs])
    with pytest.raises(InputError, match=r"seeds \[1, 1\], expected different ones"):
        card(runs, policy, evaluations=[ours, ours])
    (ours / "DONE").unlink()
    with pytest.raises(InputError, match=r"evaluate has not finished"):
        card(runs, policy, evaluations=[ours])


def test_what_is_not_known_is_said(runs, tmp_path):
    policy = policy_of(runs, 1)
    (runs / "sft/DONE").write_text('{"params_sha256": "another"}')
    text = card(runs, policy)
    assert "### sft" not in text and "does not lie there any more" in text
    assert "It was not evaluated, as far as its records tell." in text
    assert "license:" not in text and "Not stated." in text
    of_others = card(runs, runs / "hf")
    assert "No record of its training lies beside it." in of_others
    assert "license: apache-2.0" in of_others


def test_a_reward_model_says_what_it_is(runs):
    export = Export("value", runs / "sft", "value", "scalar", 5, 64, "float16")
    write_card(runs / "out", export)
    text = (runs / "out/README.md").read_text()
    assert "pipeline_tag: text-classification" in text
    assert "AutoModelForSequenceClassification" in text and "value network" in text


def test_commands_are_as_they_are_typed():
    assert command([]) == "# not recorded"
    typed = ["/a/experiments/ppo.py", "--init", "runs/a b", "--x=/secret/y.jsonl"]
    assert command(typed) == "python -m experiments.ppo --init 'runs/a b' --x=y.jsonl"
    assert command(["/a/forks/mine.py"]) == "python mine.py"


def test_a_licence_is_read_from_the_front_matter_alone(tmp_path):
    (tmp_path / "README.md").write_text("# No front matter\nlicense: mit\n---\n")
    assert licence_of(tmp_path) is None and licence_of(tmp_path / "nothing") is None
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: mit \n---\nlicense: gpl\n")
    assert licence_of(tmp_path) == "mit"
    (tmp_path / "README.md").write_text("---\nlanguage: en\n---\nlicense: gpl\n---\n")
    assert licence_of(tmp_path) is None
