"""Runs of an earlier version (5b3f182): models are read, finished runs known, stopped ones go on.

old_runs.tar.xz holds three stages of a chain shrunk by that version's tests/tiny.py, of two steps
each, and their data. The pretrained model that SFT started from is not in it.
"""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import ppo, sft
from rlhf_jax.cli import read_json
from rlhf_jax.errors import InputError
from rlhf_jax.runs.checkpoints import params_sha256
from rlhf_jax.runs.trained import load_trained, load_value

OLD = Path(__file__).with_name("old_runs.tar.xz")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    with tarfile.open(OLD) as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # their paths are relative
    return tmp_path / "runs"


def digest(stage):
    return json.loads((Path("runs") / stage / "DONE").read_text())["params_sha256"]


def config_of(stage):
    return read_json(Path("runs") / stage / "config.json")


def test_models_of_old_runs_are_read(runs, capsys):
    for stage, kind in (("sft", "lm"), ("reward", "scalar"), ("ppo", "lm")):
        trained = load_trained(Path("runs") / stage, flag="init", kind=kind)
        assert params_sha256(trained.params) == digest(stage)
    assert load_value(Path("runs/ppo")).kind == "scalar"
    assert config_of("ppo").reward == (Path("runs/reward"),)
    assert "is of another version: it does not say" in capsys.readouterr().err


def test_a_finished_old_run_is_known(runs):
    for stage, module in (("sft", sft), ("ppo", ppo)):
        done = module.run(config_of(stage))
        assert done["params_sha256"] == digest(stage)


@pytest.mark.slow
def test_a_stopped_old_run_goes_on(runs):
    """From its checkpoint, as if it had not been finished, once that prompts are cut is wanted."""
    was = digest("ppo")
    (runs / "ppo" / "DONE").unlink()
    shutil.rmtree(runs / "ppo" / "final")
    with pytest.raises(InputError, match=r"71 of 71 rows do not fit: .* or go on with --allow-cut"):
        ppo.run(config_of("ppo"))
    assert ppo.run(replace(config_of("ppo"), allow_cut=True))["params_sha256"] == was


def test_an_old_run_whose_beginning_is_gone_is_refused_in_one_sentence(runs):
    (runs / "sft" / "DONE").unlink()
    with pytest.raises(
        InputError, match=r"^--init runs/pretrain: nothing is there; expected [^\n]*$"
    ):
        sft.run(config_of("sft"))
