"""Bad input through the command line: one clear sentence, exit code 2, nothing written."""

import errno
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import little_chain
import pytest
import tiny

from experiments import audit, compare, evaluate, ppo, pretrain, preview, reward, sample, sft
from rlhf_jax.cli import main
from rlhf_jax.config import (
    AuditConfig,
    CompareConfig,
    EvaluateConfig,
    PPOConfig,
    PretrainConfig,
    PreviewConfig,
    RewardConfig,
    SampleConfig,
    SFTConfig,
)
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.inference import judged_answers
from rlhf_jax.runs import checkpoints

GOOD = '{"text": "once upon a time"}\n'


def refuse(monkeypatch, capsys, folder, *flags):
    """Run the command and return its one line on stderr."""
    command = ["pretrain", "--run.dir", str(folder / "run"), "--data.cache", str(folder / "cache")]
    monkeypatch.setattr(sys, "argv", [*command, *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        main(pretrain.run, PretrainConfig)
    assert stop.value.code == 2
    assert not (folder / "run").exists(), "nothing is written"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "name,content,expected",
    [
        ("empty.txt", b"", ["empty.txt"]),
        ("empty.jsonl", b"", ["empty.jsonl"]),
        ("broken.jsonl", (GOOD + '{"text": \n').encode(), ["broken.jsonl", "line 2"]),
        ("key.jsonl", (GOOD + '{"body": "x"}\n').encode(), ["key.jsonl", "line 2", "body"]),
        (
            "type.jsonl",
            (GOOD + '{"text": 7}\n').encode(),
            ["type.jsonl", "line 2", "a number, expected a string"],
        ),
        ("latin.txt", "caf\xe9".encode("latin-1"), ["latin.txt", "UTF-8"]),
    ],
)
def test_files_that_cannot_be_read(monkeypatch, capsys, tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    message = refuse(monkeypatch, capsys, tmp_path, "--data.path", tmp_path / name)
    assert all(word in message for word in expected), message


def test_a_missing_file(monkeypatch, capsys, tmp_path):
    message = refuse(monkeypatch, capsys, tmp_path, "--data.path", tmp_path / "none.txt")
    assert "none.txt" in message


def test_no_data_at_all(monkeypatch, capsys, tmp_path):
    assert "--data.path" in refuse(monkeypatch, capsys, tmp_path)


def test_a_mistyped_flag(monkeypatch, capsys, tmp_path):
    assert "did you mean --batch-size" in refuse(monkeypatch, capsys, tmp_path, "--batch-sise", "8")


def test_a_folder_that_holds_something_else(monkeypatch, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    monkeypatch.setattr(sys, "argv", ["pretrain", "--run.dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main(pretrain.run, PretrainConfig)
    assert "thesis.tex" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


# --- stages that start from a model ---------------------------------------------------------------

STAGES = {
    "compare": (compare.run, CompareConfig),
    "evaluate": (evaluate.run, EvaluateConfig),
    "pretrain": (pretrain.run, PretrainConfig),
    "ppo": (ppo.run, PPOConfig),
    "reward": (reward.run, RewardConfig),
    "sft": (sft.run, SFTConfig),
}
BYTES = train_bpe([""], vocab_size=258)
"""Every byte is a token, so that lengths in a test are plain to see."""
LONG, SHORT = "Write a positive review: the " + "very " * 10 + "end", "Write a positive review: a"


def run_stage(monkeypatch, stage, *flags):
    monkeypatch.setattr(sys, "argv", [stage, *map(str, flags)])
    main(*STAGES[stage])


def refuse_stage(monkeypatch, capsys, run_folder, stage, *flags, code=2):
    """The sentence on stderr, freed of the frame that tyro draws around some of them."""
    with pytest.raises(SystemExit) as stop:
        run_stage(monkeypatch, stage, "--run.dir", run_folder, *flags)
    message = capsys.readouterr().err
    assert stop.value.code == code, message
    assert not run_folder.exists(), "nothing is written"
    assert "Traceback" not in message
    return " ".join(message.replace("│", " ").split())


def write(folder, name, rows):
    tiny.write_rows(folder / name, rows)
    return folder / name


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders ``lm`` and ``scalar`` of models with a context of 80 tokens."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("lm", "scalar"):
        tiny.save_model(folder / kind, BYTES, kind=kind, context=80)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.part_of_the_data(tmp_path_factory.mktemp("source"), little_chain.LINES)


def test_one_answer_cannot_be_compared(monkeypatch, capsys, tmp_path):
    message = refuse_stage(
        monkeypatch, capsys, tmp_path / "run", "compare", "--responses-per-prompt", 1
    )
    assert "--responses-per-prompt 1: expected a whole number, 2 or more" in message


@pytest.mark.parametrize(
    "row,expected",
    [
        ({"responses": ["x"], "ranks": [0]}, "found 1 response, expected at least 2 to compare"),
        ({"responses": ["x", "y"], "ranks": [0]}, "found 1 ranks for 2 responses"),
        ({"responses": ["x", "y"], "ranks": [0, 1, 2]}, "found 3 ranks for 2 responses"),
    ],
    ids=["K=1", "too few ranks", "too many ranks"],
)
def test_wrong_comparisons(monkeypatch, capsys, tmp_path, models, row, expected):
    good = {"prompt": "p", "responses": ["x", "y"], "ranks": [0, 1]}
    file = write(tmp_path, "comparisons.jsonl", [good, {"prompt": "q"} | row])
    flags = ("--init", models / "lm", "--data", file, "--cache", tmp_path / "cache")
    message = refuse_stage(monkeypatch, capsys, tmp_path / "run", "reward", *flags)
    assert f"error: {file}, line 2: {expected}" in message


def test_only_ties(monkeypatch, capsys, tmp_path, models):
    tied = {"prompt": "p", "responses": ["x", "y", "z"], "ranks": [1, 1, 1]}
    file = write(tmp_path, "tied.jsonl", [tied, tied | {"prompt": "q"}])
    flags = ("--init", models / "lm", "--data", file, "--cache", tmp_path / "cache")
    message = refuse_stage(monkeypatch, capsys, tmp_path / "run", "reward", *flags)
    told = "has no comparisons to learn from: 2 left out, all responses tied"
    assert f"error: {file} {told}" in message


@pytest.mark.multidevice
@pytest.mark.parametrize(
    "stage,flags,expected",
    [
        ("pretrain", ["--batch-size", "12"], "batch_size=12 is not divisible by the 8 parts"),
        ("sft", ["--batch-size", "20"], "batch_size=20 is not divisible by the 8 parts"),
        ("reward", ["--batch-size", "4"], "batch_size=4 is not divisible by the 8 parts"),
        (
            "ppo",
            ["--batch-size", "32", "--num-minibatches", "8", "--force", "True"],
            "batch_size / num_minibatches=4 is not divisible by the 8 parts",
        ),
    ],
)
def test_batches_that_eight_devices_cannot_share(tmp_path, stage, flags, expected):
    flags = [*flags, "--run.dir", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{stage}", *flags],
        env=tiny.process_environment(JAX_NUM_CPU_DEVICES="8"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert f"error: {expected}" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize("stage", ["ppo", "compare", "evaluate", "reward", "sft"])
def test_prompt_and_response_over_the_context(monkeypatch, capsys, tmp_path, models, source, stage):
    """Positions past the last row of the position table would be read as the last row."""
    row = {"prompt": SHORT, "completion": " film .", "responses": ["x", "y"], "ranks": [0, 1]}
    file = write(tmp_path, "rows.jsonl", [row, row | {"prompt": SHORT + "b"}] * 4)
    lengths = ("--prompt-length", 70, "--response-length", 30)
    data = ("--data", file, "--cache", tmp_path / "cache", "--init", models / "lm", *lengths)
    prompts = ("--prompts", file, "--source", source, *lengths)
    read = ("--prompts", file, "--init", models / "lm", "--reward", models / "scalar", *lengths)
    flags = {
        "ppo": (*read, "--cache", tmp_path / "cache"),
        "compare": ("--init", models / "lm", *prompts, "--num-prompts", 4, "--heldout-prompts", 4),
        "evaluate": ("--policies", models / "lm", "--reward", models / "scalar", *prompts),
        "reward": data,
        "sft": (*data, "--block-size", 100, "--pretrain-mix", 0),
    }
    message = refuse_stage(monkeypatch, capsys, tmp_path / "run", stage, *flags[stage])
    assert "context=80" in message and ("100" in message or "70" in message)


def test_a_reward_model_that_is_not_there_is_no_bad_one(monkeypatch, capsys, tmp_path, models):
    """Nor is one that nobody has measured told to learn from more comparisons."""
    run = lambda reward, code: refuse_stage(
        monkeypatch, capsys, tmp_path / "run", "ppo", "--reward", reward, code=code
    )
    assert f"--reward {tmp_path / 'none'}: nothing is there" in run(tmp_path / "none", 2)
    half = shutil.copytree(models / "scalar", tmp_path / "half")
    shutil.rmtree(half / "final")
    assert "expected the run folder of a finished stage" in run(half, 2)
    unmeasured = shutil.copytree(models / "scalar", tmp_path / "unmeasured")
    (unmeasured / "DONE").write_text("{}")
    message = run(unmeasured, 1)
    assert "has no accuracy that was measured" in message and "with a held-out part" in message


@pytest.mark.parametrize("mix, rows", [("0.01", 0), ("0.99", 8)])
def test_a_batch_has_rows_of_text_and_of_demonstrations(monkeypatch, capsys, tmp_path, mix, rows):
    flags = ("--batch-size", 8, "--pretrain-mix", mix)
    message = refuse_stage(monkeypatch, capsys, tmp_path / "run", "sft", *flags)
    assert f"pretrain_mix={mix} of batch_size=8 is {rows} rows of text: expected" in message


def test_missing_text_is_said_before_anything_is_sampled(
    monkeypatch, capsys, tmp_path, models, source
):
    file = write(tmp_path, "p.jsonl", [{"prompt": SHORT}])
    flags = ["--policies", models / "lm", "--reward", models / "scalar", "--prompts", file]
    flags += ["--source", source, "--prompt-length", 40, "--response-length", 8]
    flags += ["--text.path", tmp_path / "none.txt"]
    monkeypatch.setattr(evaluate, "make_answer", lambda *_: pytest.fail("sampled"))
    message = refuse_stage(monkeypatch, capsys, tmp_path / "run", "evaluate", *flags)
    assert "none.txt does not exist" in message


OTHER = train_bpe(["once upon a time"] * 9, vocab_size=260)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--policies", "lm", "other", "--reward", "scalar"), "policies lm and --policies other"),
        (
            ("--policies", "lm", "--reward", "judge"),
            "policies lm and --reward judge have different",
        ),
        (("--policies", "lm", "lm", "--reward", "scalar"), "--policies names lm twice"),
    ],
)
@pytest.mark.cases(1)
def test_what_cannot_be_compared(monkeypatch, capsys, tmp_path, models, flags, message):
    """Ids of one vocabulary mean other texts in another, though nothing would fail."""
    tiny.save_model(tmp_path / "other", OTHER, context=80)
    tiny.save_model(tmp_path / "judge", OTHER, kind="scalar", context=80)
    for name in ("lm", "scalar"):
        (tmp_path / name).symlink_to(models / name)
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, "p.jsonl", [{"prompt": SHORT}])
    found = refuse_stage(
        monkeypatch, capsys, tmp_path / "run", "evaluate", *flags, "--prompts", file
    )
    assert message in found


@pytest.mark.parametrize("stage", ["compare", "evaluate"])
def test_prompts_of_another_task_are_refused_unsampled(
    monkeypatch, capsys, tmp_path, models, stage
):
    file = write(tmp_path, "p.jsonl", [{"prompt": SHORT}, {"prompt": "Chinese: ?"}])
    flags = ["--prompts", file, "--source", tiny.make_task(tmp_path / "task").source]
    flags += ["--prompt-length", 40, "--response-length", 8, "--num-prompts"]
    more = {
        "compare": (1, "--heldout-prompts", 1, "--init", models / "lm"),
        "evaluate": (2, "--policies", models / "lm", "--reward", models / "scalar"),
    }
    name = {"compare": compare, "evaluate": judged_answers}[stage]
    monkeypatch.setattr(name, "make_sampler", lambda *_, **__: pytest.fail("sampled"))
    message = refuse_stage(monkeypatch, capsys, tmp_path / "run", stage, *flags, *more[stage])
    assert "prompt 'Chinese: ?': expected it to begin with" in message


@pytest.mark.slow
def test_sampled_answers_outlive_labelers_who_cannot_agree(monkeypatch, capsys, tmp_path, models):
    """What is found out after sampling costs no sampling: the labeler may change until the end."""
    file = write(tmp_path, "p.jsonl", [{"prompt": SHORT + f" {n}"} for n in range(4)])
    task, run = tiny.make_task(tmp_path / "task"), tmp_path / "run"
    flags = ["--init", models / "lm", "--prompts", file, "--source", task.source, "--run.dir", run]
    flags += ["--prompt-length", 40, "--response-length", 8, "--run.tensorboard", "False"]
    flags += ["--num-prompts", 3, "--heldout-prompts", 1, "--prompts-per-batch", 4]

    def ranked(agreement):
        run_stage(monkeypatch, "compare", *flags, "--labeler.agreement", agreement)

    def no_such_noise(gaps, *, agreement, tie_width):
        raise InputError(f"agreement={agreement}: labelers cannot agree at that rate")

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(compare, "calibrate_tau", no_such_noise)
        ranked(0.9)
    assert "agreement=0.9" in capsys.readouterr().err
    rows = read(run / "responses.jsonl")
    rows[0]["responses"][0] = "kept as it was"
    tiny.write_rows(run / "responses.jsonl", rows)
    ranked(0.7)
    assert read(run / "train.jsonl")[0]["responses"][0] == "kept as it was"
    assert json.loads((run / "config.json").read_text())["config"]["labeler"]["agreement"] == 0.7
    with pytest.raises(SystemExit):
        ranked(0.8)
    assert "labeler.agreement was 0.7, now 0.8" in capsys.readouterr().err


def test_an_answer_longer_than_the_context(monkeypatch, capsys, models):
    argv = ["sample", "--init", str(models / "lm"), "--response-length", "200"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    with pytest.raises(SystemExit) as stop:
        main(sample.run, SampleConfig)
    assert stop.value.code == 2 and "response_length=200" in capsys.readouterr().err


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_loses_nothing(monkeypatch, capsys, tmp_path):
    """The save of step 4 fails; the same command goes on from step 2 when there is room again."""
    texts = [{"text": f"{n} " + "once upon a time " * 4} for n in range(40)]
    file = write(tmp_path, "texts.jsonl", texts)
    small = "--model.n-layers 1 --model.d-model 16 --model.n-heads 2 --model.context 32"
    flags = f"{small} --tokenizer.vocab-size 300 --data.block-size 32 --batch-size 4 --steps 6"
    flags = [*flags.split(), "--run.save-every", "2", "--run.tensorboard", "False"]
    flags = [*flags, "--data.path", file, "--data.cache", tmp_path / "cache"]
    run_stage(monkeypatch, "pretrain", "--run.dir", tmp_path / "whole", *flags)
    start_write = checkpoints.start_write

    def full(path, items, info):
        if path.name == "4":
            path.with_name("4.orbax-checkpoint-tmp").mkdir()
            raise OSError(errno.ENOSPC, "No space left on device")
        return start_write(path, items, info)

    folder = tmp_path / "run"
    monkeypatch.setattr(checkpoints, "start_write", full)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_stage(monkeypatch, "pretrain", "--run.dir", folder, *flags)
    errors = capsys.readouterr().err.splitlines()
    where = folder / "checkpoints"
    assert stop.value.code == 1
    assert [line for line in errors if line.startswith(("error", "stopped"))] == [
        f"stopped: no space left while saving step 4 in {where}; the previous checkpoint, step 2, "
        "is intact"
    ]
    assert [path.name for path in where.iterdir()] == ["2"] and not (folder / "DONE").exists()
    monkeypatch.setattr(checkpoints, "start_write", start_write)
    run_stage(monkeypatch, "pretrain", "--run.dir", folder, *flags)
    assert "pretrain: resumed after step 2" in capsys.readouterr().err
    done = [json.loads((tmp_path / name / "DONE").read_text()) for name in ("run", "whole")]
    assert done[0]["params_sha256"] == done[1]["params_sha256"]


# --- prompts longer than the context --------------------------------------------------------------


@pytest.mark.slow
def test_a_long_prompt_keeps_its_end_and_is_counted(monkeypatch, capsys, tmp_path, models):
    """PPO on long prompts is PPO on their ends, to the bit; only the count differs."""
    prompts = {
        "long": [LONG + str(n) for n in range(3)] + [SHORT] * 5,
        "ends": [(LONG + str(n))[-40:] for n in range(3)] + [SHORT] * 5,
        "starts": [(LONG + str(n))[:40] for n in range(3)] + [SHORT] * 5,
    }
    done, said = {}, {}
    for name, rows in prompts.items():
        file = write(tmp_path, f"{name}.jsonl", [{"prompt": prompt} for prompt in rows])
        flags = ["--init", models / "lm", "--reward", models / "scalar", "--prompts", file]
        flags += ["--prompt-length", 40, "--response-length", 8, "--allow-cut", "True"]
        flags += [
            "--batch-size",
            8,
            "--num-minibatches",
            1,
            "--iterations",
            1,
            "--cache",
            tmp_path / "cache",
        ]
        flags += ["--optim.warmup-steps", 0]  # it would begin at a rate of 0
        flags += ["--run.tensorboard", "False", "--run.dir", tmp_path / name]
        run_stage(monkeypatch, "ppo", *flags)
        done[name] = json.loads((tmp_path / name / "DONE").read_text())
        said[name] = capsys.readouterr().err
    assert done["long"]["prompts"]["kept"] == done["ends"]["prompts"]["kept"] == 8
    assert done["long"]["prompts"]["cut"] == {"prompt": 3} and not done["ends"]["prompts"]["cut"]
    assert "ppo: prompts: 8 kept, 3 prompts cut\n" in said["long"]
    assert "prompts cut" not in said["ends"]
    assert done["long"]["params_sha256"] == done["ends"]["params_sha256"]
    assert done["starts"]["params_sha256"] != done["ends"]["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["compare", "evaluate"])
def test_long_prompts_are_counted_when_sampling(monkeypatch, capsys, tmp_path, models, stage):
    file = write(tmp_path, "p.jsonl", [{"prompt": LONG + str(n)} for n in range(3)])
    task = tiny.make_task(tmp_path / "task")
    flags = ["--prompts", file, "--source", task.source, "--run.dir", tmp_path / "run"]
    flags += ["--prompt-length", 40, "--response-length", 8, "--run.tensorboard", "False"]
    if stage == "compare":
        flags += ["--init", models / "lm", "--num-prompts", 2, "--heldout-prompts", 1]
        flags += ["--prompts-per-batch", 4, "--allow-cut", "True"]
    else:
        flags += ["--policies", models / "lm", "--reward", models / "scalar", "--num-prompts", 3]
        flags += ["--best-of", 2, "--batch-size", 8]
    run_stage(monkeypatch, stage, *flags)
    assert "3 prompts cut" in capsys.readouterr().err


def test_an_output_is_asked_for_without_making_anything(tmp_path):
    deep = tmp_path / "a" / "b" / "out.json"
    check_writable(deep)
    assert not (tmp_path / "a").exists()
    write_atomically(deep, "{}")
    assert deep.read_text() == "{}"
    with pytest.raises(InputError, match=r"out\.json is a file"):
        check_writable(deep / "more" / "out.json")
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path)


@pytest.mark.parametrize("short", [MemoryError("no room"), RuntimeError("RESOURCE_EXHAUSTED: no")])
def test_no_memory_left_is_one_sentence_of_every_command(monkeypatch, capsys, short):
    def run(config):
        raise short

    monkeypatch.setattr(sys, "argv", ["sample"])
    with pytest.raises(SystemExit) as stop:
        main(run, SampleConfig)
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(f"stopped: out of memory ({short}): fewer rows")
    short.args = ("a fault of our own",)
    if not isinstance(short, MemoryError):
        with pytest.raises(RuntimeError, match="a fault of our own"):
            main(run, SampleConfig)


@pytest.mark.parametrize(
    "run, config, flag",
    [
        (audit.run, AuditConfig(reward=(Path("not/there"),)), "reward"),
        (preview.run, PreviewConfig(init=Path("not/there")), "init"),
    ],
)
def test_a_model_that_is_not_there_is_said_to_be_not_there(run, config, flag):
    with pytest.raises(InputError, match=rf"--{flag} not/there: .*nothing is there"):
        run(config)
