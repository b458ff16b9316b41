"""Pushing an export: one whole commit or none, a sentence for what is missing, no token in it."""

import sys

import pytest
from push_server import TOKEN, serve

from rlhf_jax.errors import InputError, RunError
from rlhf_jax.interop.push import check_hub, push


@pytest.fixture
def hub(monkeypatch):
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def folder(tmp_path):
    files = {"README.md": b"# card\n", "config.json": b"{}", "model.safetensors": bytes(range(256))}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_becomes_one_commit(hub, folder, private, capsys):
    check_hub("somebody/model")
    assert not hub.files, "nothing is made before the export is there"
    assert push(folder, "somebody/model", private=private) == f"{hub.url}/somebody/model/commit/abc"
    sent = {name: x for name, x in hub.files["somebody/model"].items() if name != ".gitattributes"}
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert bool(hub.private["somebody/model"]) == private
    assert sum("/commit/" in path for _, path in hub.asked) == 1
    said = capsys.readouterr().out
    assert "somebody pushes to" in said and TOKEN not in said


def test_files_that_would_stay_beside_it_are_named(hub, folder):
    hub.files["somebody/model"] = {"model-00001-of-00002.safetensors": b"", "README.md": b""}
    with pytest.raises(RunError, match=r"holds model-00001-of-00002.safetensors, which would stay"):
        push(folder, "somebody/model", private=True)
    assert not any("/commit/" in path for _, path in hub.asked)


def test_pushing_again_replaces_the_files(hub, folder):
    push(folder, "somebody/model", private=True)
    (folder / "config.json").write_text('{"a": 1}')
    push(folder, "somebody/model", private=True)
    assert hub.files["somebody/model"]["config.json"] == b'{"a": 1}'


def test_a_refusal_is_a_sentence_without_the_token(hub, folder):
    hub.refuse = "/preupload/"
    with pytest.raises(RunError, match=r"refused: .*the export is whole in") as error:
        push(folder, "somebody/model", private=True)
    assert TOKEN not in str(error.value)
    assert hub.files["somebody/model"].keys() == {".gitattributes"}


def test_another_token_is_not_accepted(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(InputError, match=r"does not accept the token \(401\)") as error:
        check_hub("somebody/model")
    assert "hf_another" not in str(error.value)


def test_what_is_missing_is_said_before_any_work(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="--push model: expected OWNER/NAME"):
        check_hub("model")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="there is no token: set HF_TOKEN"):
        check_hub("somebody/model")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        check_hub("somebody/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="huggingface_hub is not installed"):
        check_hub("somebody/model")
