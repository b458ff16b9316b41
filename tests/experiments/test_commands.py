"""Commands that the documents show: they parse, and the ones people type first do what is said."""

import importlib
import logging
import re
import shlex
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny

from rlhf_jax import config
from rlhf_jax.cli import load, main, to_dict
from rlhf_jax.cli.subcommands import load_command, take_command
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.runs.identity import MAY_CHANGE, STARTS_FROM
from rlhf_jax.runs.records import diff_config
from rlhf_jax.runs.trained import load_trained

DOCUMENTS = [tiny.ROOT / "README.md", tiny.ROOT / "README.zh.md"]
DOCUMENTS += sorted((tiny.ROOT / "docs").rglob("*.md"))


def commands(start: str, text: str) -> list[str]:
    """What follows ``start`` in each command of a code block or between backticks."""
    text = text.replace("\\\n", " ")
    before = r"(?:^ *|`|\| )(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?"
    lines = re.findall(rf"{before}{start}([^`\n]*)", text, re.M)
    return [re.split(r" [#|>&]", line)[0].strip() for line in lines]


def shown(start: str) -> list[tuple[str, str]]:
    """(document, command) of all documents."""
    return sorted({(d.name, found) for d in DOCUMENTS for found in commands(start, d.read_text())})


EXPERIMENTS = shown(r"python -m experiments\.(?=\w)")
MAKE = shown(r"make (?=[a-zA-Z])")


def test_commands_are_found():
    assert len(EXPERIMENTS) >= 12 and len(MAKE) >= 4
    names = {command.split()[0] for _, command in EXPERIMENTS}
    assert names >= {"pretrain", "sft", "compare", "reward", "ppo", "evaluate", "sample"}


@pytest.fixture(scope="module")
def own_task(tmp_path_factory):
    return str(tiny.write_own_task(tmp_path_factory.mktemp("task")))


@pytest.fixture
def parse(own_task, monkeypatch):
    """command -> (experiment, the config that its command line makes)."""
    monkeypatch.chdir(tiny.ROOT)
    return partial(parsed, own_task=own_task)


@cache
def parsed(command: str, own_task: str):
    # What a reader has by then: a number, a task's file, the preset that a run was of.
    given = {"N": "1", "rhymes.py": own_task}
    given |= {"runs/arithmetic/ppo/config.json": "configs/tasks/arithmetic.py"}
    in_a_loop = re.sub(r"\$\w+", "0", command)
    name, *words = (given.get(word, word) for word in shlex.split(in_a_loop))
    words = [word for word in words if word != "..."]
    module = Path(tiny.ROOT, "experiments", *name.split("."))
    module = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
    source = module.read_text()
    if "main_of(COMMANDS" in source:
        commands = importlib.import_module(f"experiments.{name}.__main__").COMMANDS
        command, words = take_command(words, commands)
        return f"{name} {command}", load_command(command, words, commands)
    named = re.search(r"main\(run, (\w+)\)", source)
    if named:
        config_class = getattr(config, named[1])
    else:  # the doctor takes the command line of either of two
        config_class = importlib.import_module(f"experiments.{name}").config_class(words)
    made = load(config_class, words)
    assert isinstance(made, config_class)
    return name, made


@pytest.mark.parametrize("document,command", EXPERIMENTS)
@pytest.mark.cases(40)
def test_experiments_parse(document, command, parse):
    """The module exists and its flags are known; a preset that is named exists."""
    parse(command)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
@pytest.mark.cases(6)
def test_no_two_commands_of_a_document_want_one_folder(document, parse):
    """Typed one after the other, the second is neither refused nor taken for the first."""
    same = set(MAY_CHANGE) - {*STARTS_FROM}
    folders = {}
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", document.read_text(), re.M | re.S))
    for command in commands(r"python -m experiments\.(?!doctor)(?=\w)", blocks):
        name, made = parse(command)
        if not isinstance(getattr(made, "run", None), config.RunConfig):
            continue
        first, before = folders.setdefault(str(made.run.dir), (command, (name, to_dict(made))))
        assert before[0] == name and not diff_config(before[1], to_dict(made), ignore=same), (
            f"{first}\n{command}"
        )


@pytest.mark.parametrize("document,command", MAKE)
def test_make_targets_exist(document, command):
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_make_knows_what_it_does_not_know():
    done = subprocess.run(["make", "-n", "quickstrat"], cwd=tiny.ROOT, capture_output=True)
    assert done.returncode != 0


@pytest.mark.slow
def test_sample_answers_what_is_piped_in(tmp_path):
    """One line of answer to one of prompt; greedily, it is the model's likeliest text."""
    tokenizer = train_bpe(["the film is good . "], vocab_size=262)
    folder = tiny.save_model(tmp_path / "lm", tokenizer, context=64)
    flags = ["--init", folder, "--sampling.temperature", "0", "--response-length", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sample", *flags],
        env=tiny.process_environment(),
        input=b"this film is\n",
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    trained = load_trained(folder, flag="init")
    lm = make_language_model(trained.model, trained.vocab_size)
    logits = jax.jit(lambda tokens, mask: lm.logits(trained.params, tokens, mask, start=0))
    prompt = tokenizer.encode("this film is")
    ids = list(prompt)
    for _ in range(8):
        tokens = jnp.array([ids + [0] * (64 - len(ids))], jnp.int32)
        following = logits(tokens, jnp.arange(64)[None] < len(ids))[0, len(ids) - 1]
        ids.append(int(following.argmax()))
        if ids[-1] == tokenizer.eos_id:
            break
    expected = tokenizer.decode(ids[len(prompt) :])
    assert expected and done.stdout.decode() == expected + "\n"


def test_a_command_says_what_the_library_logs_as_plain_lines(monkeypatch, capsys, caplog):
    """Not as ``WARNING:rlhf_jax...``; a program that calls the library logs as it likes."""
    log = logging.getLogger("rlhf_jax.data.rows")
    monkeypatch.setattr(sys, "argv", ["preview", "--init", "runs/x", "--data", "rows.jsonl"])
    main(lambda config: log.warning("%s: 2 rows: said", config.data), config.PreviewConfig)
    assert capsys.readouterr().err == "rows.jsonl: 2 rows: said\n" and not caplog.records
    log.warning("as before")
    assert "as before" in caplog.text and "as before" not in capsys.readouterr().err
