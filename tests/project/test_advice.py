"""Advice that messages give can be followed: what they name exists, and doing as they say works."""

import ast
import importlib
import importlib.util
import pathlib
import re
from collections.abc import Iterator
from functools import cache

import jax.numpy as jnp
import pytest

import rlhf_jax.config as configs
from experiments import compare
from experiments.report import write as write_report
from rlhf_jax.cli import flag_names, load
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.runs.checkpoints import Checkpoints
from rlhf_jax.runs.folder import open_run
from rlhf_jax.training.corpora import load_corpora
from rlhf_jax.types import TrainState

ROOT = pathlib.Path(__file__).parents[2]
FILES = [*(ROOT / "rlhf_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
CLASSES = {name: getattr(configs, name) for name in configs.__all__}
OTHERS = {"config", "help", "error-unmatch", "porcelain", "untracked-files", "merge"}
"""Flags of rlhf_jax.cli itself, of git, and of llama.cpp's tools."""


def texts(path: pathlib.Path) -> Iterator[str]:
    """Every string of a file that is no docstring; what is filled in is {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and id(node) not in docstrings | inside:
            yield node.value if isinstance(node.value, str) else ""


@cache
def flags_of(name: str) -> set[str]:
    return set(flag_names(CLASSES[name]()))


def class_name(path: pathlib.Path, name: str) -> str:
    """Of the config of the experiment in ``path``, which a fork may have declared itself."""
    if name not in CLASSES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        CLASSES[name] = getattr(importlib.import_module(module), name)
    return name


ALL = set().union(*map(flags_of, CLASSES)) | OTHERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_messages_name_exists(path):
    """Flags of the command that speaks (of a chain's where it says so), extras, commands."""
    source = path.read_text(encoding="utf-8")
    command = re.search(r"\n    main\(run, (\w+)\)", source)
    own = flags_of(class_name(path, command[1])) | OTHERS if command else ALL
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for text in texts(path):
        known = own | flags_of("InstructGPTConfig") if "in a chain" in text else own
        named = re.findall(r"(?<!var\()--([a-z][\w.-]*\w)(?![\w.{-])", text)
        assert {flag.replace("_", "-") for flag in named} <= known, text
        for extra in re.findall(r"(?:rlhf_jax|\.)\[([a-z-]+)\]['\"]", text):
            assert f'"{extra}":' in setup, text
        for module in re.findall(r"python -m (\S+\w)", text):
            assert importlib.util.find_spec(module) is not None, text


# --- followed -------------------------------------------------------------------------------------


def message_of(action, error=InputError) -> str:
    with pytest.raises(error) as raised:
        action()
    return str(raised.value)


@pytest.mark.parametrize(
    "name,wrong,advised,right",
    [
        (
            "PPOConfig",
            "--kl.target 3 --kl.horizon 2 --batch-size 16",
            "not over batch_size / 5 = 3.2",
            "--kl.target 3 --kl.horizon 3.3 --batch-size 16",
        ),
        (
            "FeedbackConfig",
            "--ensemble 1",
            "or choose --choice random",
            "--ensemble 1 --choice random",
        ),
        (
            "SFTConfig",
            "--privacy.epsilon 3",
            "needs pretrain_mix 0",
            "--privacy.epsilon 3 --pretrain-mix 0",
        ),
        (
            "PretrainConfig",
            "--optim.optimizer muon",
            "needs optim.adam_lr > 0",
            "--optim.optimizer muon --optim.adam-lr 0.1",
        ),
        (
            "ParallelConfig",
            "--processes 2",
            "needs parallel.coordinator HOST:PORT",
            "--processes 2 --coordinator here:1234",
        ),
        ("SFTConfig", "--lrr 1", "did you mean --optim.lr", "--optim.lr 1"),
        ("SFTConfig", "-epochs 1", "two hyphens, --epochs", "--epochs 1"),
        ("AuditConfig", "--data", "data is empty: give --data NAME", "--data pref_llmbar"),
    ],
)
def test_settings_as_advised_are_taken(name, wrong, advised, right):
    assert advised in message_of(lambda: load(CLASSES[name], wrong.split()))
    load(CLASSES[name], right.split())


@pytest.mark.parametrize("flag", ["data", "pretrain-data", "ptx-data", "text"])
def test_an_empty_corpus_names_the_flag_that_gives_it(flag, tmp_path):
    said = message_of(lambda: load_corpora(configs.TextDataConfig(), flag=flag))
    assert f"give --{flag}.path FILE" in said
    text = tmp_path / "corpus.txt"
    text.write_text("\n<|endoftext|>\n".join(f"part {n}" for n in range(60)))
    given = configs.TextDataConfig(path=(text,), cache=tmp_path / "cache")
    assert len(load_corpora(given, flag=flag).heldout[0]) > 0


def test_fewer_comparisons_as_advised():
    asked = configs.CompareConfig(num_prompts=8, heldout_prompts=4)
    said = message_of(lambda: compare.check_enough(10, asked, "prompts.jsonl"))
    assert "--num-prompts 8 and --heldout-prompts 4" in said
    fewer = load(configs.CompareConfig, ["--num-prompts", "8", "--heldout-prompts", "2"])
    compare.check_enough(10, fewer, "prompts.jsonl")


def test_another_folder_as_advised(tmp_path):
    frame = dict(stage="sft", config_class="SFTConfig", ignore=())
    open_run(tmp_path / "a", config={"lr": 1}, **frame).close()
    said = message_of(lambda: open_run(tmp_path / "a", config={"lr": 2}, **frame))
    assert "resume with the same, or choose another folder" in said
    open_run(tmp_path / "a", config={"lr": 1}, **frame).close()
    open_run(tmp_path / "b", config={"lr": 2}, **frame).close()


def test_damaged_checkpoints_removed_as_advised(tmp_path):
    state = TrainState(jnp.int32(1), {"w": jnp.ones(3)}, (), None)
    frame = dict(keep_latest=1, keep_best=0, best_metric=None, best_mode="max")
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, **frame) as checkpoints:
        checkpoints.save(1, state, data={}, extra={}, metrics={})
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with Checkpoints(folder, **frame) as checkpoints:
        said = message_of(lambda: checkpoints.restore_latest(state), RunError)
    assert "remove the folder to start anew" in said
    folder.rename(tmp_path / "removed")
    with Checkpoints(folder, **frame) as checkpoints:
        assert checkpoints.restore_latest(state) is None


@pytest.mark.parametrize("task", [path.stem for path in (ROOT / "configs/tasks").glob("[a-z]*.py")])
@pytest.mark.cases(2)
def test_a_task_s_preset_as_advised(task):
    """Of a task whose corpora are others: --task NAME without --config."""
    assert load(configs.InstructGPTConfig, ["--task", task]).task == task


def test_a_report_s_name_as_advised(tmp_path):
    said = message_of(lambda: write_report([tmp_path / "none"], tmp_path))
    assert "is a folder, expected the name of an HTML file" in said
