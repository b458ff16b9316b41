"""A run folder that was moved, copied or renamed: what its config names lies where it is now."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.feedback.stages import policy_name
from rlhf_jax.cli import read_json, read_preset, to_dict
from rlhf_jax.config import (
    ConvertConfig,
    EvaluateConfig,
    FeedbackConfig,
    PPOConfig,
    RunConfig,
    TextDataConfig,
)
from rlhf_jax.config.moved import moved_part, relocated


def make_chain(base: Path) -> None:
    """A chain's folders, and data outside it."""
    for name in ("sft", "reward", "ppo/checkpoints", "evaluate/checkpoints", "data"):
        (base / name).mkdir(parents=True)
    for name in ("prompts.jsonl", "corpus_a.txt", "corpus_b.txt"):
        (base / "data" / name).touch()


def ppo_config(base: Path, **changes) -> PPOConfig:
    text = TextDataConfig(path=(base / "data" / "corpus_*.txt", Path("outside.txt")))
    paths = dict(
        init=base / "sft@best", reward=(base / "reward",), prompts=base / "data/prompts.jsonl"
    )
    return PPOConfig(run=RunConfig(dir=base / "ppo"), ptx_data=text, **paths | changes)


@pytest.mark.parametrize("was", ["runs/x", "/elsewhere/x"])
@pytest.mark.parametrize("now", ["runs/y", "backup/deep/x"])
def test_what_was_moved_together_is_found_together(tmp_path, monkeypatch, was, now):
    monkeypatch.chdir(tmp_path)
    make_chain(Path(now))
    reference = Path("runs/other/sft")
    saved = to_dict(ppo_config(Path(was), reference=reference))
    found = relocated(saved, PPOConfig, Path(now, "ppo"))
    assert found == to_dict(ppo_config(Path(now), reference=reference))
    assert saved == to_dict(ppo_config(Path(was), reference=reference))


def test_a_copy_reads_the_copies_and_a_stage_alone_the_originals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/x", "runs/copy"):
        make_chain(Path(name))
    saved = to_dict(ppo_config(Path("runs/x")))
    assert relocated(saved, PPOConfig, Path("runs/x/ppo")) == saved
    by_another_name = relocated(saved, PPOConfig, tmp_path / "runs" / "x" / "ppo")
    assert by_another_name == saved
    copied = relocated(saved, PPOConfig, Path("runs/copy/ppo"))
    assert copied == to_dict(ppo_config(Path("runs/copy")))
    Path("alone/checkpoints").mkdir(parents=True)
    alone = relocated(saved, PPOConfig, Path("alone"))
    assert alone == to_dict(replace(ppo_config(Path("runs/x")), run=RunConfig(dir=Path("alone"))))


def test_seen_from_another_folder(tmp_path, monkeypatch):
    """Recorded as it was typed; read from elsewhere, it lies by the run."""
    make_chain(tmp_path / "runs" / "x")
    saved = to_dict(ppo_config(Path("x")))
    monkeypatch.chdir(tmp_path)
    found = relocated(saved, PPOConfig, Path("runs/x/ppo"))
    assert found == to_dict(ppo_config(Path("runs/x")))


def test_words_are_no_paths(tmp_path, monkeypatch):
    """Only fields that hold paths are read as such, whatever lies beside the run."""
    monkeypatch.chdir(tmp_path)
    make_chain(tmp_path / "moved")
    (tmp_path / "moved" / "sentiment").mkdir()
    config = EvaluateConfig(
        run=RunConfig(dir=Path("evaluate")), policies=(Path("sft"), Path("/far/ppo"))
    )
    found = relocated(to_dict(config), EvaluateConfig, Path("moved/evaluate"))
    assert found["task"] == "sentiment" and found["second_reward"] is None
    assert found["policies"] == ["moved/sft", "/far/ppo"]


def test_a_config_alone_is_a_preset_for_the_folder_that_it_names(tmp_path):
    config = ppo_config(tmp_path / "x")
    make_chain(tmp_path / "y")
    for folder, expected in (("presets", config), ("y/ppo", ppo_config(tmp_path / "y"))):
        path = tmp_path / folder / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"config_class": "PPOConfig", "config": to_dict(config)}))
        assert read_json(path) == read_preset(str(path)) == expected


def test_an_imported_model_names_its_folder_too(tmp_path):
    (tmp_path / "moved" / "final").mkdir(parents=True)
    saved = to_dict(ConvertConfig(source=tmp_path / "was" / "hf", out=tmp_path / "was" / "run"))
    found = relocated(saved, ConvertConfig, tmp_path / "moved")
    assert found == saved | {"out": str(tmp_path / "moved")}


@pytest.mark.parametrize(
    "before, now, expected",
    [
        ("runs/x/ppo", "runs/y/ppo", ("runs/x", "runs/y")),
        ("runs/x/ppo", "/big/runs/x/ppo", (".", "/big")),
        ("runs/x/ppo", "runs/x/ppo_old", ("runs/x/ppo", "runs/x/ppo_old")),
        ("/a/x/feedback/round_001/ppo", "b/feedback/round_001/ppo", ("/a/x", "b")),
    ],
)
def test_the_part_that_was_moved(before, now, expected):
    assert moved_part(Path(before), Path(now)) == tuple(map(Path, expected))


def test_the_store_names_policies_within_the_run_folder():
    config = FeedbackConfig(run=Path("/somewhere/x"))
    assert policy_name(config, 0) == "sft"
    assert policy_name(config, 12) == "feedback/round_012/ppo"
