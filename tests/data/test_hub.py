"""hf://owner/name: what is fetched, at which commit, and what is said where it cannot be.

The hub is a stub on this machine: nothing is downloaded.
"""

import json
import subprocess
import sys
from pathlib import Path

import hub_server
import jax
import numpy as np
import pyarrow
import pytest
import tiny
from huggingface_hub import constants
from pyarrow import parquet

from experiments import convert
from rlhf_jax.config import ConvertConfig, RewardConfig, SFTConfig
from rlhf_jax.data import hub as names
from rlhf_jax.data.files import Origin, find_files
from rlhf_jax.data.formats import read_comparisons, read_texts
from rlhf_jax.data.hub import HubName, pinned, read_name, split_of
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.runs.identity import data_of, models_of
from rlhf_jax.runs.inputs import InputFile
from rlhf_jax.runs.model_digests import model_digest, settings_digest
from rlhf_jax.runs.trained import check_model, load_any, load_reader

ROOT = Path(__file__).parents[2]


def as_parquet(folder, *texts):
    parquet.write_table(pyarrow.table({"text": list(texts)}), folder / "a.parquet")
    return (folder / "a.parquet").read_bytes()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stub, and an empty HF_HOME."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    names.listing.cache_clear()
    with hub_server.serve() as hub:
        use(monkeypatch, hub.url)
        yield hub
    names.listing.cache_clear()


def use(monkeypatch, url):
    """``url`` for the hub's, which huggingface_hub reads from HF_ENDPOINT when it is imported."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def offline(monkeypatch):
    """Call it, and nobody answers any more."""

    def cut():
        names.listing.cache_clear()
        use(monkeypatch, "http://127.0.0.1:9")

    return cut


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


SPLITS = {
    "README.md": b"---\n---\n",
    "data/train-00000-of-00002.jsonl": lines("a"),
    "data/train-00001-of-00002.jsonl": lines("b"),
    "data/test-00000-of-00001.jsonl": lines("c"),
}


def texts_of(name):
    return [row.text for row in read_texts(Path(name))]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hf://o/n", ("o/n", "", "")),
        ("hf://o/n/train", ("o/n", "train", "")),
        ("hf://o/n@v1.0", ("o/n", "", "v1.0")),
        ("hf://o/n/a/train@refs/convert/parquet", ("o/n", "a/train", "refs/convert/parquet")),
    ],
)
def test_names(text, expected):
    for path in (text, Path(text)):
        assert read_name(path) == HubName(*expected) and str(read_name(path)) == text


@pytest.mark.parametrize("text", ["hf://o", "hf://", "hf:///n", "hf://o/n@", "hf://@main"])
def test_a_name_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=r"hf://.*: expected hf://OWNER/NAME, with a split"):
        find_files(text)


@pytest.mark.parametrize(
    "file, split",
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/train_prefs-00000-of-00001-0a1b2c3d4e5f6071.parquet", "train_prefs"),
        ("harmless-base/train.jsonl.gz", "harmless-base/train"),
        ("default/train/0000.parquet", "train"),
        ("comparisons/validation/0003.parquet", "comparisons/validation"),
        ("train.json", "train"),
        ("data/0000.parquet", ""),
    ],
)
def test_the_split_of_a_file(file, split):
    assert split_of(file) == split


# --- data -----------------------------------------------------------------------------------------


def test_a_split_is_fetched_and_no_other(hub, tmp_path):
    commit = hub.publish("dataset", "o/n", SPLITS)
    assert texts_of("hf://o/n/train") == ["a", "b"]
    fetched = [path for _, path in hub.asked if "/resolve/" in path and "train" not in path]
    assert not fetched
    place = tmp_path / "home" / "hub" / "datasets--o--n" / "snapshots" / commit
    row = read_texts(Path("hf://o/n/train"))[1]
    assert row.origin == Origin(str(place / "data" / "train-00001-of-00002.jsonl"), 1)
    assert texts_of("hf://o/n/data/test-00000-of-00001.jsonl") == ["c"]


def test_parquet_of_the_hubs_own_conversion(hub, tmp_path):
    hub.publish("dataset", "o/n", {"script.py": b""})
    converted = {"default/train/0000.parquet": as_parquet(tmp_path, "a", "b")}
    hub.publish("dataset", "o/n", converted, revision="refs/convert/parquet")
    with pytest.raises(InputError, match=r"no files of rows .* hf://o/n@refs/convert/parquet"):
        texts_of("hf://o/n")
    assert texts_of("hf://o/n@refs/convert/parquet") == ["a", "b"]
    assert texts_of("hf://o/n/train@refs/convert/parquet") == ["a", "b"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("hf://o/n", r"hf://o/n has several splits: name one of hf://o/n/test, hf://o/n/train$"),
        ("hf://o/n/dev", r"hf://o/n has no split dev: name one of hf://o/n/test, hf://o/n/train$"),
        ("hf://o/x", r"hf://o/x: the hub has no such data set, or shows it to others only"),
        ("hf://o/n@v9", r"hf://o/n@v9: the data set has no revision v9"),
        ("hf://o/secret", r"hf://o/secret: the data set is given to those who have agreed to its"),
        ("hf://o o/n", r"hf://o o/n: Repo id must use alphanumeric chars"),
    ],
)
@pytest.mark.cases(1)
def test_what_is_not_there_is_said(hub, name, message):
    hub.publish("dataset", "o/n", SPLITS)
    hub.publish("dataset", "o/secret", SPLITS)
    hub.gated.add("o/secret")
    with pytest.raises(InputError, match=message):
        texts_of(name)


def test_a_folder_is_part_of_a_splits_name_where_it_must_be(hub):
    files = {f"{base}/train.jsonl": lines(base) for base in ("harmless", "helpful")}
    hub.publish("dataset", "o/hh", files)
    with pytest.raises(InputError, match=r"several splits: name one of hf://o/hh/harmless/train"):
        texts_of("hf://o/hh/train")
    assert texts_of("hf://o/hh/harmless/train") == texts_of("hf://o/hh/harmless") == ["harmless"]


def test_all_of_a_process_reads_one_commit(hub):
    first = hub.publish("dataset", "o/n", {"train.jsonl": lines("old")})
    assert texts_of("hf://o/n") == ["old"]
    second = hub.publish("dataset", "o/n", {"train.jsonl": lines("new")})
    assert texts_of("hf://o/n") == ["old"] and pinned("hf://o/n", "dataset") == f"hf://o/n@{first}"
    names.listing.cache_clear()  # another process
    assert texts_of("hf://o/n") == ["new"] and pinned("hf://o/n", "dataset") == f"hf://o/n@{second}"
    assert texts_of(f"hf://o/n@{first}") == ["old"]


def test_a_run_records_the_commit_and_the_contents(hub):
    pair = {"prompt": "p", "chosen": " a", "rejected": " b"}
    files = {f"{split}.jsonl": json.dumps(pair).encode() for split in ("train", "test")}
    commit = hub.publish("dataset", "o/n", files)
    config = RewardConfig(data=Path("hf://o/n/train"), heldout=Path("hf://o/n/test"))
    found = data_of(config)
    assert found["data"].path == f"hf://o/n/train@{commit}"
    assert found["heldout"].path == f"hf://o/n/test@{commit}"
    pinned_too = RewardConfig(data=Path(f"hf://o/n/train@{commit}"))
    assert data_of(pinned_too)["data"] == found["data"]
    assert len(read_comparisons(config.data)) == 1
    hub.publish("dataset", "o/n", files | {"train.jsonl": json.dumps(pair | {"id": 1}).encode()})
    names.listing.cache_clear()
    assert data_of(config)["data"].digest != found["data"].digest


# --- without a network ----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_fetched_whole_is_read_without_a_network(hub, offline, caplog):
    commit = hub.publish("dataset", "o/n", SPLITS)
    assert texts_of("hf://o/n/train") == ["a", "b"]
    offline()
    for name in ("hf://o/n/train", f"hf://o/n/train@{commit}"):
        assert texts_of(name) == ["a", "b"]
    assert f"hf://o/n: the hub cannot be reached: read as of commit {commit}" in caplog.text
    message = r"hf://o/n/test: http.* cannot be reached, and data/test-\S+ of it is not in .*home"
    with pytest.raises(InputError, match=message):
        texts_of("hf://o/n/test")
    with pytest.raises(InputError, match=r"hf://o/x: http.* cannot be reached, and it is not in"):
        texts_of("hf://o/x")


def test_a_known_commit_is_asked_for_once(hub):
    commit = hub.publish("dataset", "o/n", SPLITS)
    texts_of("hf://o/n/train")
    names.listing.cache_clear()
    before = len(hub.asked)
    assert texts_of(f"hf://o/n/train@{commit}") == ["a", "b"]
    assert not [path for _, path in hub.asked[before:] if path.startswith("/api/")]


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The files of a tiny model as Hugging Face has it, by name."""
    folder = tmp_path_factory.mktemp("model")
    run = tiny.save_model(folder / "run", train_bpe([], vocab_size=258))
    convert.run(ConvertConfig("to-hf", run, out=folder / "hf"))
    return {file.name: file.read_bytes() for file in (folder / "hf").iterdir()}


def test_a_model_is_read_by_its_name(hub, checkpoint, tmp_path):
    unread = ("pytorch_model.bin", "onnx/model.safetensors", "consolidated.safetensors")
    commit = hub.publish("model", "o/m", checkpoint | dict.fromkeys(unread, b"x"))
    name, folder = Path("hf://o/m"), tmp_path / "here"
    folder.mkdir()
    for file, content in checkpoint.items():
        (folder / file).write_bytes(content)
    here, there = load_any(folder, flag="init"), load_any(name, flag="init")
    assert jax.tree.all(jax.tree.map(np.array_equal, here.params, there.params))
    assert load_reader(name, flag="init").tokenizer.digest == here.tokenizer.digest
    check_model(name, flag="init")
    assert not [path for _, path in hub.asked if path.endswith(unread)]
    # As an input of a run it is the same model, and its commit is on record.
    config = SFTConfig(init=name)
    found = models_of(config)
    assert found["init"] == InputFile(f"hf://o/m@{commit}", model_digest(folder))
    assert found["init[settings]"].digest == settings_digest(folder)
    assert models_of(SFTConfig(init=folder))["init"].digest == found["init"].digest


def test_a_model_without_what_is_read_is_refused(hub, offline):
    hub.publish("model", "o/gguf", {"a.gguf": b"none"})
    message = r"hf://o/gguf has no config.json, .* a .gguf file in it \(hf://o/gguf/FILE.gguf\)"
    with pytest.raises(InputError, match=message):
        check_model(Path("hf://o/gguf"), flag="init")
    with pytest.raises(InputError, match=r"hf://o/gguf/b.gguf is not there, expected .* a.gguf"):
        check_model(Path("hf://o/gguf/b.gguf"), flag="init")
    with pytest.raises(InputError, match=r"a.gguf is not a whole GGUF file"):
        load_any(Path("hf://o/gguf/a.gguf"), flag="init")
    offline()
    with pytest.raises(InputError, match=r"hf://o/m: http.* cannot be reached, and it is not in"):
        load_any(Path("hf://o/m"), flag="init")
    assert model_digest(Path("hf://o/m")) is None is settings_digest(Path("hf://o/m"))


@pytest.mark.slow
def test_a_command_reads_model_and_data_from_the_endpoint_of_its_environment(
    hub, checkpoint, tmp_path
):
    hub.publish("model", "o/m", checkpoint)
    hub.publish("dataset", "o/n", SPLITS)
    command = ["-m", "experiments.preview", "--init", "hf://o/m", "--data", "hf://o/n/train"]
    environment = tiny.process_environment(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "other"))
    done = subprocess.run(
        [sys.executable, *command, "--json", "True"],
        cwd=ROOT,
        env=environment | {"HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *documents, last = map(json.loads, done.stdout.splitlines())
    assert [each["documents"] for each in documents] == [1, 1] and last["summary"]["kept"] == 2
    assert (tmp_path / "other" / "hub" / "datasets--o--n").is_dir()
    assert not (tmp_path / "home").exists()
