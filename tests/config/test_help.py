"""--help: a page of what most people set, and every field on the page of its group."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.config
from rlhf_jax import cli, config, help_pages
from rlhf_jax.config import (
    ConvertConfig,
    FeedbackExportConfig,
    InstructGPTConfig,
    PPOConfig,
    SFTConfig,
)
from rlhf_jax.errors import InputError

ROOT = Path(__file__).parents[2]
SOURCES = [
    *sorted((ROOT / "experiments").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]
COMMANDS = {
    f"{path.parent.name}.{path.stem}": named[1]
    for path in SOURCES
    if (named := re.search(r"main\(run, (\w+)\)", path.read_text(encoding="utf-8")))
}
CONFIGS = vars(benchmarks.config) | vars(config)
CLASSES = sorted({name for name in COMMANDS.values() if name in CONFIGS})
LINES = 60


def page(made, topic="", command="experiments.x", about="About this command."):
    return help_pages.page(made, topic, command=command, about=about)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", sorted(c for c in COMMANDS if COMMANDS[c] in CLASSES))
def test_the_first_page_fits_a_screen(command):
    made = CONFIGS[COMMANDS[command]]()
    source = ROOT / f"{command.replace('.', '/')}.py"
    about = re.match(r'r?"""(.*?)"""', source.read_text(encoding="utf-8"), re.S)[1]
    text = page(made, command=command, about=about)
    assert text.startswith(f"usage: python -m {command}") and "--config FILE" in text
    examples = max(map(len, about.splitlines()))
    lines = text.splitlines()
    assert len(lines) <= LINES and all(len(line) <= max(80, examples + 4) for line in lines)
    if any(group.is_stage for group in help_pages.groups_of(made)):
        return
    for group in help_pages.groups_of(made):
        assert "." in group.flag or f"\n  {group.flag} " in text


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.cases(11)
def test_every_field_is_on_the_page_of_its_group(name):
    made = CONFIGS[name]()
    fields = list(help_pages.fields_of(made))
    assert sorted(field.flag for field in fields) == sorted(cli.flag_names(made))
    everything = page(made, "all")
    pages = {group.flag: page(made, group.flag) for group in help_pages.groups_of(made)}
    for field in fields:
        shown = re.compile(rf"^  {re.escape(help_pages.signature(field))}( |$)", re.M)
        for text in (everything, pages.get(field.group, everything)):
            assert shown.search(text), field.flag


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_shown_first_says_what_it_is(name):
    for field in help_pages.fields_of(CONFIGS[name]()):
        assert field.doc or not field.main, field.flag


def test_a_group_a_name_and_a_field():
    made = InstructGPTConfig()
    group = page(made, "ppo.optim")
    assert group.startswith("ppo.optim: AdamW") and "--ppo.optim.b2 FLOAT" in group
    assert "--ppo.lam" not in group
    named = re.findall(r"^  --([\w.-]+)", page(made, "kl"), re.M)
    assert set(named) == {f"{of}ppo.kl.{n}" for of in ("", "feedback.") for n in KL}
    assert re.findall(r"^  --([\w.-]+)", page(made, "--ppo.kl.coef"), re.M) == ["ppo.kl.coef"]
    assert page(PPOConfig(), "min_reward_accuracy") == page(PPOConfig(), "min-reward-accuracy")
    with pytest.raises(InputError, match=r"--help optm: no group or field.* did you mean optim"):
        page(made, "optm")


KL = ("coef", "target", "horizon", "place", "estimator")


def test_bounds_defaults_words_and_what_has_no_effect():
    text = " ".join(page(PPOConfig(), "kl").split())
    assert "--kl.horizon FLOAT Episodes over which the adaptive controller acts" in text
    assert "(over 0; default: 10000.0) Without effect: kl.target is 0.0." in text
    text = " ".join(page(FeedbackExportConfig(), "all").split())
    assert "One of native, demonstrations, trl-preference, trl-unpaired" in text
    text = " ".join(page(ConvertConfig(), "all").split())
    assert "DIRECTION" in text and "One of from-hf, to-hf." in text
    text = " ".join(page(SFTConfig(), "prompt-length").split())
    assert "(1 or more; None allowed; default: None)" in text
    assert "--allow-cut {True,False}" in page(SFTConfig(), "allow-cut")


def test_what_a_chain_fills_in_is_not_offered():
    text = page(InstructGPTConfig())
    ppo = text[text.index("\nppo:") : text.index("\nevaluate:")]
    assert "iterations" in ppo and "kl.coef" in ppo and "sampling.temperature" in ppo
    assert not re.search(r"\binit\b|run\.dir|run\.seed|prompts,", ppo)


@pytest.mark.parametrize("width", ["40", "60", "200"])
def test_narrow_and_wide_terminals(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    for topic in ("", "all"):
        lines = page(PPOConfig(), topic).splitlines()
        assert max(map(len, lines)) <= max(60, min(100, int(width)))


def ask(monkeypatch, capsys, *words):
    module = importlib.import_module("experiments.task")
    monkeypatch.setattr(sys, "argv", ["task", *words])
    with pytest.raises(SystemExit) as end:
        cli.main(module.run, config.TaskConfig)
    return end.value.code, capsys.readouterr()


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_wins_over_the_other_flags(flag, monkeypatch, capsys):
    code, said = ask(monkeypatch, capsys, "--out", "", flag, "--nonsense", "1")
    assert code == 0 and said.err == ""
    assert said.out.startswith("usage: python -m experiments.task [NAME] [--config FILE]")
    assert "  NAME " in said.out and "--source PATH" in said.out
    code, said = ask(monkeypatch, capsys, f"{flag}=out" if flag == "--help" else flag, "out")
    assert code == 0 and said.out.startswith("  --out PATH")
    code, said = ask(monkeypatch, capsys, flag, "nothing")
    assert code == 2 and said.err.startswith("error: --help nothing: no group or field")


def test_defaults_are_those_of_the_preset():
    command = [sys.executable, "-m", "experiments.feedback", "--config", "configs/quickstart.py"]
    done = subprocess.run([*command, "--help", "ppo.kl.coef"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and b"default: 0.28)" in done.stdout, done.stderr


@pytest.mark.parametrize("name", config.__all__)
def test_every_field_says_what_it_is(name):
    fields = help_pages.fields_of(CONFIGS[name]())
    assert not [field.flag for field in fields if not field.doc]


@pytest.mark.parametrize("words, status", [(["--help"], 141), (["--nonsense"], 2)])
def test_a_reader_who_has_enough_is_no_error(words, status, monkeypatch):
    """| head: what is left to write is dropped, and Python says nothing of it at its end."""
    reading, writing = os.pipe()
    os.close(reading)
    closed = open(writing, "w", buffering=10**6)  # noqa: SIM115

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["task", *words])
    monkeypatch.setattr(sys, "stdout", closed)
    monkeypatch.setattr(sys, "stderr", closed)
    with pytest.raises(SystemExit) as end:
        cli.main(importlib.import_module("experiments.task").run, config.TaskConfig)
    assert end.value.code == status
    with pytest.raises(BrokenPipeError):
        closed.close()
