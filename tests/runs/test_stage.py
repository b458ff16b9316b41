"""The life of a run: what a stage resumes, refuses, logs and leaves, without training anything."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import sft
from rlhf_jax.config import (
    EvaluateConfig,
    OptimConfig,
    PPOConfig,
    PretrainConfig,
    PrivacyConfig,
    RunConfig,
    SFTConfig,
    TextDataConfig,
    TokenizerConfig,
)
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.runs import checkpoints
from rlhf_jax.runs.checkpoints import load_params
from rlhf_jax.runs.identity import data_of, models_of, why_not_longer
from rlhf_jax.runs.logs import open_lines, read_rows
from rlhf_jax.runs.model_digests import model_digest
from rlhf_jax.runs.stage import Stage
from rlhf_jax.runs.trained import load_trained, trained_lengths
from rlhf_jax.types import TrainState


def make_config(folder, *, epochs=2, optim=None, **run):
    frame = dict(dir=folder, log_every=1, tensorboard=False, compile_cache=None, tune_malloc=False)
    more = {} if optim is None else {"optim": optim}
    files = {name: run.pop(name) for name in ("data", "pretrain_data", "init") if name in run}
    return SFTConfig(run=RunConfig(**frame | run), epochs=epochs, **more, **files)


def train(config, *, total, kill_at=None, before=None):
    """A stage whose parameter counts its steps; ``kill_at`` ends it in that step.

    ``before`` is called with the stage and the number of each step.
    """
    with Stage(config, "sft", sft.__file__, best=("eval/loss", "min")) as stage:
        if stage.summary is not None:
            return stage.summary
        state = stage.restore(TrainState(jnp.int32(0), {"w": jnp.zeros(2)}, (), None))
        for step in stage.steps(total):
            if step + 1 == kill_at:
                raise KeyboardInterrupt
            if before is not None:
                before(stage, step + 1)
            state = TrainState(state.step + 1, {"w": state.params["w"] + step + 1}, (), None)
            stage.log({"loss": jnp.float32(step), "lr": 0.1}, tokens=1, show=())
            stage.log_samples([{"prompt": f"{step + 1}"}])
            if stage.due(config.run.eval_every):
                stage.log_evaluation({"eval/loss": float(np.abs(stage.done - 4))})
            stage.checkpoint(state)
        return stage.finish(state.params)


def logged(folder, name="metrics"):
    return [row["step"] for row in read_rows(folder / f"{name}.jsonl")]


@pytest.mark.parametrize("save_every, kept", [(9, 0), (2, 4)])
def test_every_row_once_after_a_kill(tmp_path, save_every, kept):
    """Before the first checkpoint nothing is kept, and the rows of before are dropped."""
    config = make_config(tmp_path, save_every=save_every)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config, total=6, kill_at=6)
        assert logged(tmp_path)[-1] >= 4
    train(config, total=6)
    assert logged(tmp_path) == logged(tmp_path, "samples") == [1, 2, 3, 4, 5, 6]


# --- full disks and signals -----------------------------------------------------------------------


def test_a_full_disk_while_logging_is_one_sentence_and_loses_nothing(tmp_path, capsys):
    def fill(stage, step):
        if step == 4:
            stage._log._metrics = open_lines(Path("/dev/full"))

    config = make_config(tmp_path / "run", save_every=2)
    with pytest.raises(RunError) as raised:
        train(config, total=6, before=fill)
    assert str(raised.value) == (
        "no space left on device (/dev/full); the same command goes on after step 2"
    )
    train(config, total=6)
    assert "resumed after step 2" in capsys.readouterr().err
    assert logged(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_at_the_end(tmp_path, monkeypatch):
    start_write = checkpoints.start_write

    def full(path, items, info):
        if path.parent.name == "final":
            raise OSError(errno.ENOSPC, "No space left on device")
        return start_write(path, items, info)

    config, folder = make_config(tmp_path / "run"), tmp_path / "run"
    monkeypatch.setattr(checkpoints, "start_write", full)
    with pytest.raises(RunError) as raised:
        train(config, total=3)
    assert str(raised.value) == (
        f"no space left while saving step 3 in {folder / 'final'}; all steps are kept; the same "
        "command goes on after step 3"
    )
    assert not (folder / "DONE").exists()
    monkeypatch.setattr(checkpoints, "start_write", start_write)
    assert train(config, total=3)["steps"] == 3


def test_nothing_is_left_of_a_start_that_failed(tmp_path):
    """Also in a folder that was there, which then takes another command."""

    def unreadable(stage, step):
        raise PermissionError(errno.EACCES, "Permission denied", "demos.jsonl")

    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=r"^permission denied \(demos\.jsonl\)$"):
        train(make_config(tmp_path / "run"), total=3, before=unreadable)
    assert list((tmp_path / "run").iterdir()) == []
    train(make_config(tmp_path / "run", epochs=1), total=3)


@pytest.mark.parametrize(
    "error,said",
    [
        (MemoryError(), "^out of memory: fewer rows at once"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory (8 bytes).\nmore"),
            r"^out of memory \(RESOURCE_EXHAUSTED: Out of memory \(8 bytes\)\.\): fewer",
        ),
    ],
)
def test_a_batch_that_does_not_fit_memory_is_one_sentence(tmp_path, error, said):
    def full(stage, step):
        raise error

    with pytest.raises(RunError, match=said):
        train(make_config(tmp_path / "run"), total=3, before=full)
    assert not (tmp_path / "run").exists()


def test_stopped_by_a_signal_the_same_command_goes_on(tmp_path, capsys):
    def preempt(stage, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    config = make_config(tmp_path / "run", preempted_exit_code=85)
    with pytest.raises(SystemExit) as stop:
        train(config, total=3, before=preempt)
    assert stop.value.code == 85
    assert "sft: saved at step 2; the same command goes on from here" in capsys.readouterr().err
    assert train(config, total=3)["steps"] == 3
    assert "sft: resumed after step 2" in capsys.readouterr().err


def test_asked_to_stop_in_the_last_step_a_chain_does_not_go_on(tmp_path, capsys):
    def interrupt(stage, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    config = make_config(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        train(config, total=3, before=interrupt)
    assert stop.value.code == 130
    assert "sft: finished before it could be stopped" in capsys.readouterr().err
    assert train(config, total=3)["steps"] == 3


# --- the data that a run was started from ---------------------------------------------------------


def write(path, *texts):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": t, "completion": t}) + "\n" for t in texts))
    return path


@pytest.mark.parametrize("finished", [True, False])
def test_data_that_changed_are_refused_by_name(tmp_path, finished):
    """Rows added, or edited at the same size; moved or gone they are no others."""
    file, folder = write(tmp_path / "demos.jsonl", "a", "b"), tmp_path / "run"
    config = make_config(folder, data=file, save_every=1)
    if finished:
        first = train(config, total=2)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(config, total=2, kill_at=2)
    before = (folder / "config.json").read_bytes()
    for texts in (("a", "b", "c"), ("a", "c")):
        write(file, *texts)
        with pytest.raises(InputError, match=rf"--data {file} has changed since"):
            train(config, total=2)
        assert (folder / "config.json").read_bytes() == before
    write(file, "a", "b")
    moved = shutil.move(file, tmp_path / "elsewhere.jsonl")
    other = write(tmp_path / "other.jsonl", "b", "a")
    with pytest.raises(InputError, match=rf"--data was {file} .*, now {other} "):
        train(make_config(folder, data=other, save_every=1), total=2)
    again = train(make_config(folder, data=moved, save_every=1), total=2)
    if finished:
        assert again == first
    moved.unlink()
    assert train(make_config(folder, data=moved), total=2) == again


def test_lists_of_files_and_folders_of_them(tmp_path):
    corpora = tmp_path / "corpora"
    for name in ("a", "b"):
        write(corpora / f"{name}.jsonl", name)
    text = lambda *paths: TextDataConfig(path=paths)
    one = make_config(tmp_path / "run", pretrain_data=text(corpora))
    train(one, total=1)
    write(corpora / "c.jsonl", "c")
    with pytest.raises(InputError, match=rf"--pretrain-data.path {corpora} has changed since"):
        train(one, total=1)
    (corpora / "c.jsonl").unlink()
    (corpora / "notes.md").write_text("no data")
    train(one, total=1)
    write(corpora / "a.jsonl", "b")
    write(corpora / "b.jsonl", "a")
    with pytest.raises(InputError, match="has changed since"):
        train(one, total=1)
    write(corpora / "a.jsonl", "a")
    write(corpora / "b.jsonl", "b")
    several = text(corpora / "a.jsonl", corpora / "b.jsonl")
    with pytest.raises(InputError, match=rf"--pretrain-data.path was {corpora} "):
        train(make_config(tmp_path / "run", pretrain_data=several), total=1)


def test_an_older_run_takes_the_data_as_they_are(tmp_path, capsys):
    file, folder = write(tmp_path / "demos.jsonl", "a"), tmp_path / "run"
    config = make_config(folder, data=file)
    train(config, total=1)
    record = json.loads((folder / "config.json").read_text())
    del record["data"]
    (folder / "config.json").write_text(json.dumps(record))
    train(config, total=1)
    assert f"{folder} did not record what its data were; taken as they are now: {file}" in (
        capsys.readouterr().err
    )
    write(file, "b")
    with pytest.raises(InputError, match="has changed since"):
        train(config, total=1)


# --- the models that a run was started from -------------------------------------------------------


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_model_is_more_than_its_weights(tmp_path):
    """Its shape and its tokenizer are other inputs, wherever the folder lies."""
    init = tiny.save_model(tmp_path / "init", train_bpe([""], vocab_size=258))
    config = make_config(tmp_path / "run", init=init)
    first = train(config, total=1)
    moved = shutil.copytree(init, tmp_path / "moved")
    assert train(make_config(tmp_path / "run", init=moved), total=1) == first
    for file in ("tokenizer/tokenizer_config.json", "model.json"):
        before = (init / file).read_text()
        edit(init / file, chat_prompts=True)
        changed = rf"another model: --init {init}: its config or tokenizer has changed since"
        with pytest.raises(InputError, match=changed):
            train(config, total=1)
        (init / file).write_text(before)
    assert train(config, total=1) == first


def test_files_of_models_that_count(tmp_path):
    """Of several models each; of an adapter the model below it; not a notice beside them."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
        (folder / "README.md").write_text("a")
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    config = EvaluateConfig(policies=(adapter, base), reward=(tmp_path / "none",))
    before = models_of(config)
    assert set(before) == {"policies[0][settings]", "policies[1][settings]"}
    for folder in (base, adapter):
        (folder / "README.md").write_text("b")
    assert models_of(config) == before
    (base / "generation_config.json").write_text("{}")
    assert all(found.digest != before[label].digest for label, found in models_of(config).items())


def test_every_file_of_a_tokenizer_counts(tmp_path):
    """encoder.json is also a name of data, vocab.bpe is not."""
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).write_text("a")
    config = PretrainConfig(tokenizer=TokenizerConfig(path=tmp_path))
    before = data_of(config)["tokenizer.path"]
    (tmp_path / "vocab.bpe").write_text("b")
    assert data_of(config)["tokenizer.path"].digest != before.digest


def test_dots_in_the_name_of_a_file_are_no_contents(tmp_path):
    digests = [
        data_of(make_config(tmp_path, data=write(tmp_path / name, "a")))["data"].digest
        for name in ("pairs.v1.jsonl", "pairs.jsonl")
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("text", ["", '{"steps": 3', "[]", '{"model"'])
def test_half_a_record_is_one_sentence(tmp_path, text):
    init = tiny.save_model(tmp_path / "init", train_bpe([""], vocab_size=258))
    for name in ("DONE", "model.json"):
        before = (init / name).read_text()
        (init / name).write_text(text)
        with pytest.raises(InputError, match=rf"{init / name} is not what a run has written"):
            load_trained(init, flag="init")
        if name == "DONE":
            with pytest.raises(InputError, match=str(init / name)):
                model_digest(init)
        else:
            with pytest.raises(InputError, match=str(init / name)):
                trained_lengths(init)
        (init / name).write_text(before)
    folder = tmp_path / "run"
    train(make_config(folder), total=1)
    (folder / "DONE").write_text(text)
    with pytest.raises(InputError, match=rf"{folder / 'DONE'} is not what a run has written"):
        train(make_config(folder), total=1)


def test_a_finished_run_that_lost_its_parameters(tmp_path):
    """It says so, and what it advises makes the same ones again."""
    folder = tmp_path / "run"
    first = train(make_config(folder), total=2)
    shutil.rmtree(folder / "final")
    with pytest.raises(InputError, match=f"remove {folder / 'DONE'}, and the same command") as said:
        train(make_config(folder), total=2)
    # The run has not failed, and its folder is free, though the error (as in a notebook) lives on.
    assert said.value.__traceback__ is not None and not (folder / "FAILED").exists()
    (folder / "DONE").unlink()
    assert train(make_config(folder), total=2)["params_sha256"] == first["params_sha256"]


def test_a_schedule_without_effect_is_no_reason_against_a_longer_run():
    linear = OptimConfig(schedule="linear")
    made = lambda trunk: PPOConfig(optim=CONSTANT, value_optim=linear, value_trunk=trunk)
    assert why_not_longer(made("shared")) == ""
    assert "value_optim.schedule=linear" in why_not_longer(made("separate"))


# --- what a start that failed leaves --------------------------------------------------------------


@pytest.mark.parametrize("error", [InputError, RunError])
@pytest.mark.parametrize("place", ["new", "there", "link"])
def test_a_start_that_failed_leaves_the_folder_as_it_was(tmp_path, place, error):
    """Also a link to another disk, or the gate of PPO, whose advice is another reward model."""
    folder = tmp_path / "run"
    if place == "there":
        folder.mkdir()
    if place == "link":
        (tmp_path / "disk").mkdir()
        folder.symlink_to(tmp_path / "disk")

    with (
        pytest.raises(error, match="as it was"),
        Stage(make_config(folder), "sft", sft.__file__),
    ):
        raise error("as it was")
    assert folder.exists() == (place != "new") and folder.is_symlink() == (place == "link")
    assert not folder.exists() or not list(folder.iterdir())


# --- its length -----------------------------------------------------------------------------------

CONSTANT = OptimConfig(schedule="constant")


def weights(folder):
    return np.asarray(load_params(folder / "final")["w"])


def test_a_finished_run_is_made_longer(tmp_path, capsys):
    """Until the longer one is finished, the folder is the shorter run's."""
    folder = tmp_path / "run"
    config = lambda epochs, **run: make_config(folder, epochs=epochs, optim=CONSTANT, **run)
    short = train(config(2), total=4)
    first = weights(folder)
    with pytest.raises(SystemExit):
        train(config(3, stop_after=1), total=6)
    assert "is made longer: epochs was 2, now 3" in capsys.readouterr().err
    assert train(config(2), total=4) == short and np.array_equal(weights(folder), first)
    long = train(config(3), total=6)
    assert long["steps"] == 6 and train(config(3), total=6) == long
    whole = make_config(tmp_path / "whole", epochs=3, optim=CONSTANT)
    assert train(whole, total=6)["params_sha256"] == long["params_sha256"]
    assert [path.name for path in (folder / "final").iterdir()] == ["6"]
    assert logged(folder) == logged(tmp_path / "whole")
    with pytest.raises(InputError, match=r"epochs=3, now 2: a run is not made shorter"):
        train(config(2), total=4)


def test_killed_while_the_longer_run_takes_over(tmp_path, monkeypatch):
    """Between the new model and the word that it is there, the old one is what counts."""
    folder = tmp_path / "run"
    config = lambda epochs: make_config(folder, epochs=epochs, optim=CONSTANT)
    short = train(config(2), total=4)
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_jax.runs.folder.Run.finish", lambda *_: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            train(config(3), total=6)
    assert sorted(path.name for path in (folder / "final").iterdir()) == ["4", "6"]
    assert train(config(2), total=4) == short
    assert train(config(3), total=6)["steps"] == 6
    assert [path.name for path in (folder / "final").iterdir()] == ["6"]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"optim": OptimConfig(schedule="cosine")}, "optim.schedule=cosine depend on its length"),
        ({"privacy": PrivacyConfig(epsilon=8.0)}, "the noise of privacy.epsilon=8.0 depends"),
        (
            {"optim": OptimConfig(schedule="constant", warmup_share=0.1)},
            "the warm-up of optim.warmup_share=0.1 depends on its length",
        ),
    ],
)
def test_a_run_that_cannot_be_made_longer_says_why(tmp_path, change, reason):
    made = lambda epochs: SFTConfig(
        **{"optim": CONSTANT, "run": make_config(tmp_path).run, "pretrain_mix": 0.0} | change,
        epochs=epochs,
    )
    train(made(1), total=2)
    with pytest.raises(InputError, match=f"epochs=1, now 2, but cannot be made longer: .*{reason}"):
        train(made(2), total=4)


def test_steps_that_processes_agree_on_are_counted_from_each_start(tmp_path, monkeypatch):
    """A notice before a resumed run's first step means one more than the steps of any: step 1."""
    with pytest.raises(SystemExit):
        train(make_config(tmp_path, stop_after=3), total=6)
    seen = []
    monkeypatch.setattr("rlhf_jax.runs.stage.asked_to_stop", lambda step, alone: seen.append(step))
    train(make_config(tmp_path), total=6)
    assert seen == [1, 2, 3] and logged(tmp_path) == [1, 2, 3, 4, 5, 6]
