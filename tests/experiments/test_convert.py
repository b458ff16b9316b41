"""Checkpoints of others through the command line: converted, trained on, spoken to."""

import datetime
import errno
import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from families import SHAPES, random_params
from hub_tokenizer import BEGIN, TURN_END, write_tokenizer
from push_server import TOKEN, serve
from safetensors.numpy import load_file, save_file
from sentencepieces import write_sentencepiece

from experiments import convert, ppo, reward, sample, sft
from rlhf_jax.cli import load
from rlhf_jax.config import ConvertConfig, PPOConfig, RewardConfig, SampleConfig, SFTConfig
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.tokenizers import EOS
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.interop.huggingface import save_pretrained
from rlhf_jax.runs.trained import for_run, load_trained

DATA = Path(__file__).parents[2] / "data"
VOCAB = 50257
"""GPT-2's own: the tokenizer's padding, id 50257, is beyond the model's rows."""


def to_convert(*argv):
    return convert.run(load(ConvertConfig, [*map(str, argv)]))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder as transformers writes it, with GPT-2's tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "gpt2"
    params = jax.tree.map(lambda x: x / 10, random_params(SHAPES["gpt2"], vocab_size=VOCAB))
    options = dict(kind="lm", dtype="float32", bos_id=None, end_ids=(50256,), pad_id=None)
    save_pretrained(folder, SHAPES["gpt2"], params, **options)
    load_tokenizer(DATA / "gpt2_bpe").save(folder, rows=VOCAB)
    return folder


def test_padding_beyond_the_model_is_not_exported(gpt2):
    settings = json.loads((gpt2 / "tokenizer_config.json").read_text())
    assert "pad_token" not in settings and settings["eos_token"] == "<|endoftext|>"
    added = json.loads((gpt2 / "tokenizer.json").read_text())["added_tokens"]
    assert [token["id"] for token in added] == [50256]


def test_another_checkpoint_at_the_same_place_is_not_the_one_converted(gpt2, tmp_path):
    source, run = shutil.copytree(gpt2, tmp_path / "hf"), tmp_path / "run"
    first = to_convert("from-hf", source, "--out", run)
    settings = source / "tokenizer_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps(json.loads(before) | {"chat_template": "hello"}))
    with pytest.raises(InputError, match=f"--source {source}: its config or tokenizer has changed"):
        to_convert("from-hf", source, "--out", run)
    settings.write_text(before)
    weights = source / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"transformer.ln_f.bias": tensors["transformer.ln_f.bias"] + 1}, weights)
    with pytest.raises(InputError, match=f"--source {source} has changed since"):
        to_convert("from-hf", source, "--out", run)
    shutil.rmtree(source)
    assert to_convert("from-hf", source, "--out", run) == first


def test_there_and_back_gives_the_same_bytes(gpt2, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    to_convert("from-hf", gpt2, "--out", run)
    to_convert("to-hf", run, "--out", out)
    assert {p.name for p in out.iterdir()} == {p.name for p in gpt2.iterdir()} | {"README.md"}
    for path in gpt2.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_rows_that_no_token_has_are_suppressed_in_exports(gpt2, tmp_path):
    """50,304 rows as GPT-NeoX pads them: 50,257 tokens, our padding, and 46 of nothing."""
    params = {"trunk": dict(random_params(SHAPES["gpt2"], vocab_size=50304)["trunk"])}
    options = dict(kind="lm", dtype="float32", bos_id=None, end_ids=(50256,), pad_id=None)
    save_pretrained(tmp_path / "hf", SHAPES["gpt2"], params, **options)
    load_tokenizer(DATA / "gpt2_bpe").save(tmp_path / "hf", rows=50304)
    to_convert("from-hf", tmp_path / "hf", "--out", tmp_path / "run")
    assert load_trained(tmp_path / "run", flag="init").model.unused_rows == 46
    to_convert("to-hf", tmp_path / "run", "--out", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == list(range(50258, 50304))


DATED = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "<|turn_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def chat_folder(folder, *, rows):
    """A small checkpoint of bytes, end of text (256), begin of text (257), end of turn (258)."""
    special = (EOS, BEGIN, TURN_END)
    settings = {"eos_token": EOS, "bos_token": BEGIN, "chat_template": DATED}
    write_tokenizer(folder, special=special, bos=BEGIN, tokenizer_config=settings)
    params = random_params(SHAPES["llama"], vocab_size=rows)
    options = dict(kind="lm", dtype="float32", bos_id=257, end_ids=(256, 258), pad_id=None)
    save_pretrained(folder, SHAPES["llama"], params, **options)
    return folder


def test_begin_and_ends_of_text_survive_the_way_in_and_out(tmp_path):
    source = chat_folder(tmp_path / "hf", rows=259)
    to_convert("from-hf", source, "--out", tmp_path / "run", "--chat-prompts", "True")
    to_convert("to-hf", tmp_path / "run", "--out", tmp_path / "out")
    found = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text())
        for name in ("config", "generation_config", "tokenizer_config")
    }
    assert (found["config"]["bos_token_id"], found["config"]["eos_token_id"]) == (257, 256)
    assert found["generation_config"]["eos_token_id"] == [256, 258]
    assert (found["tokenizer_config"]["bos_token"], found["tokenizer_config"]["eos_token"]) == (
        BEGIN,
        EOS,
    )
    for folder in ("run", "out"):
        tokenizer = load_trained(tmp_path / folder, flag="init").tokenizer
        assert (tokenizer.bos_id, tokenizer.end_ids) == (257, (256, 258))
        assert tokenizer.chat_prompts


def test_a_sentencepiece_tokenizer_comes_in_and_goes_out_as_it_was(tmp_path):
    source = tmp_path / "hf"
    write_sentencepiece(
        source, "legacy", turns=False, settings={"chat_template": "{{ eos_token }}"}
    )
    rows = load_tokenizer(source).vocab_size - 1  # none for padding, which such models do not have
    params = random_params(SHAPES["mistral"], vocab_size=rows)
    options = dict(kind="lm", dtype="float32", bos_id=1, end_ids=(2,), pad_id=None)
    save_pretrained(source, SHAPES["mistral"], params, **options)
    to_convert("from-hf", source, "--out", tmp_path / "run")
    to_convert("to-hf", tmp_path / "run", "--out", tmp_path / "out")
    for name in ("tokenizer.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    assert load_tokenizer(tmp_path / "out").encode_beginning("hello")[0] == 1


@pytest.mark.slow
def test_an_export_has_a_card_and_is_pushed_when_it_is_whole(gpt2, tmp_path, monkeypatch, capsys):
    with serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        command = ["to-hf", gpt2, "--license", "mit", "--push", "somebody/model"]
        with monkeypatch.context() as patch:
            patch.setattr(convert, "save_pretrained", full_disk)
            with pytest.raises(RunError, match="no space left"):
                to_convert(*command, "--out", tmp_path / "full")
        assert not hub.files, "nothing of a folder that is not whole"
        to_convert(*command, "--out", tmp_path / "out")
        files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert files.items() <= hub.files["somebody/model"].items()
        assert files["README.md"].startswith(b"---\nlicense: mit\nlibrary_name: transformers\n")
    assert f"{hub.url}/somebody/model/commit/abc" in capsys.readouterr().out


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_tokens_without_a_row_of_embedding_are_refused_by_name(tmp_path):
    source = chat_folder(tmp_path / "hf", rows=257)
    expected = (
        r"ids that the 257 rows of the embedding do not have: those of '<\|begin\|>', '<\|turn"
    )
    with pytest.raises(InputError, match=expected):
        to_convert("from-hf", source, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_template_that_is_not_used_is_said(tmp_path, capsys):
    trained = load_trained(chat_folder(tmp_path / "hf", rows=259), flag="init")
    for_run(trained, tmp_path / "run")
    assert "prompts are plain text, though the model has a chat template" in capsys.readouterr().err
    for_run(trained._replace(tokenizer=trained.tokenizer.with_chat_prompts()), tmp_path / "run")
    assert capsys.readouterr().err == ""


def test_that_half_precision_is_slow_on_a_cpu_is_said(tmp_path, capsys):
    trained = load_trained(chat_folder(tmp_path / "hf", rows=259), flag="init")
    trained = trained._replace(tokenizer=trained.tokenizer.with_chat_prompts())
    for_run(trained._replace(model=replace(trained.model, dtype="bfloat16")), tmp_path / "run")
    assert "note: model.dtype is bfloat16" in capsys.readouterr().err


def test_a_run_keeps_the_day_on_which_it_began(tmp_path):
    trained = load_trained(chat_folder(tmp_path / "hf", rows=259), flag="init")
    assert for_run(trained, tmp_path / "run") == trained  # nothing has begun
    begun = trained.tokenizer._with(now=datetime.datetime(2024, 7, 1))
    begun.save(tmp_path / "run" / "tokenizer")
    resumed = for_run(trained, tmp_path / "run").tokenizer
    assert resumed.example == begun.example != trained.tokenizer.example
    assert begun.example.startswith("01 Jul 2024")


def test_from_hf_may_choose_how_to_compute(gpt2, tmp_path):
    options = ("--compute-dtype", "bfloat16", "--scan-layers", "True", "--remat", "dots")
    to_convert("from-hf", gpt2, "--out", tmp_path / "run", *options)
    trained = load_trained(tmp_path / "run", flag="init")
    model = trained.model
    assert (model.dtype, model.scan_layers, model.remat) == ("bfloat16", True, "dots")
    assert trained.params["trunk"]["blocks"]["ln_1"]["scale"].shape == (2, 16)


def test_a_source_is_the_file_that_its_digest_is_of(gpt2, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no model")
    out = tmp_path / "run"
    with pytest.raises(
        InputError, match=f"{path}: expected SHA-256 {'0' * 64}, found [0-9a-f]{{64}}$"
    ):
        to_convert("from-hf", path, "--out", out, "--sha256", "0" * 64)
    found = hashlib.sha256(b"no model").hexdigest()
    with pytest.raises(InputError, match="GGUF"):  # the digest is right, the file is none
        to_convert("from-hf", path, "--out", out, "--sha256", found)
    with pytest.raises(InputError, match=f"--sha256 is of one file, but {gpt2} is a folder"):
        to_convert("from-hf", gpt2, "--out", out, "--sha256", found)
    with pytest.raises(InputError, match="sha256=abc: expected 64 digits"):
        to_convert("from-hf", path, "--out", out, "--sha256", "abc")


def test_chat_prompts_need_a_template(gpt2, tmp_path):
    with pytest.raises(InputError, match="no chat template"):
        to_convert("from-hf", gpt2, "--out", tmp_path / "run", "--chat-prompts", "True")


def test_nothing_is_overwritten_nor_left_half_done(gpt2, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(InputError, match="out exists already"):
        to_convert("to-hf", gpt2, "--out", out)
    monkeypatch.setattr(convert, "save_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        to_convert("to-hf", gpt2, "--out", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(gpt2, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rlhf_jax.interop.huggingface.save_file", full)
    with pytest.raises(RunError, match=r"cannot write --out .*/out: no space left on device"):
        to_convert("to-hf", gpt2, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_format_too_small_for_the_weights_is_refused_before_anything_is_written(tmp_path):
    params = random_params(SHAPES["gpt2"], vocab_size=VOCAB)
    params["trunk"]["ln_f"]["bias"] = params["trunk"]["ln_f"]["bias"].at[:2].set(1e5)
    save_pretrained(
        tmp_path / "hf",
        SHAPES["gpt2"],
        params,
        kind="lm",
        dtype="float32",
        bos_id=None,
        end_ids=(50256,),
        pad_id=None,
    )
    load_tokenizer(DATA / "gpt2_bpe").save(tmp_path / "hf", rows=VOCAB)
    with pytest.raises(InputError, match="float16 cannot hold 2 of 16 values"):
        to_convert("to-hf", tmp_path / "hf", "--out", tmp_path / "out", "--dtype", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_pointers_and_second_sets_of_weights(gpt2, tmp_path, capsys):
    folder = tmp_path / "hf"
    shutil.copytree(gpt2, folder)
    shutil.copy(folder / "model.safetensors", folder / "older.safetensors")
    load_trained(folder, flag="init")
    assert "as transformers does, nothing is read of older.safetensors" in capsys.readouterr().err
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(gpt2 / "tokenizer.json", folder / "tokenizer.json")
        (folder / name).write_text(pointer)
        with pytest.raises(InputError, match=rf"{name} is a Git LFS pointer, .* git lfs pull"):
            load_trained(folder, flag="init")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.cases(1)
def test_weights_of_compiled_and_parallel_models_are_read(gpt2, tmp_path, capsys, prefix):
    folder = tmp_path / "hf"
    shutil.copytree(gpt2, folder)
    tensors = load_file(gpt2 / "model.safetensors")
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
    save_file(wrapped, folder / "model.safetensors")
    found, plain = (load_trained(each, flag="init").params for each in (folder, gpt2))
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    said = f"all names of its tensors begin with {prefix}, which is left out"
    assert said in capsys.readouterr().err
    (first, value), *rest = wrapped.items()
    save_file({first.removeprefix(prefix): value, **dict(rest)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"the tensors do not fit .* extra {prefix}"):
        load_trained(folder, flag="init")
    save_file({}, folder / "model.safetensors")
    with pytest.raises(InputError, match="there is not one tensor in its weights"):
        load_trained(folder, flag="init")


def test_bad_sources_are_named(gpt2, tmp_path):
    with pytest.raises(InputError, match="expected the run folder of a finished stage, a Hugging"):
        to_convert("from-hf", tmp_path, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"no model.json|no value network"):
        to_convert("to-hf", gpt2, "--part", "value", "--out", tmp_path / "x")
    bare = tmp_path / "bare"
    shutil.copytree(gpt2, bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"expected tokenizer.json"):
        to_convert("from-hf", bare, "--out", tmp_path / "run")


def test_a_language_model_is_no_reward_model(gpt2):
    with pytest.raises(InputError, match=r"--reward .* is a language model, expected a reward"):
        load_trained(gpt2, flag="reward", kind="scalar")


@pytest.mark.slow
def test_a_piped_prompt_is_answered(gpt2, monkeypatch, capsys):
    lines = io.TextIOWrapper(io.BytesIO(b"The capital of France\n"))
    monkeypatch.setattr("sys.stdin", lines)
    argv = ["--init", str(gpt2), "--sampling.temperature", "0", "--response-length", "5"]
    sample.run(load(SampleConfig, argv))
    answer = capsys.readouterr().out
    trained = load_trained(gpt2, flag="init")
    make = sample.make_streamed_answer(load(SampleConfig, argv), trained)
    ids = list(make(trained.tokenizer.encode("The capital of France"), 0))
    assert answer == trained.tokenizer.decode(ids) + "\n" and len(ids) == 5


@pytest.mark.slow
def test_every_stage_starts_from_a_checkpoint_and_its_results_leave_again(gpt2, tmp_path):
    """SFT, reward model and PPO on GPT-2's own vocabulary; all three networks exported."""
    words = ("war", "love", "space", "crime", "road", "ghost")
    rows = {
        "sft": [{"prompt": f"A {w} film", "completion": f" about {w}."} for w in words * 4],
        "comparisons": [
            {"prompt": f"A {w} film", "responses": [" good.", " bad.", " odd."], "ranks": [0, 2, 1]}
            for w in words * 4
        ],
        "prompts": [{"prompt": f"A {w} film"} for w in words * 4],
    }
    for name, content in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{name}.jsonl").write_text(text)
    common = lambda name: [
        *("--run.dir", str(tmp_path / name), "--run.tensorboard", "False"),
        *("--cache", str(tmp_path / "cache"), "--prompt-length", "8", "--response-length", "8"),
    ]
    init = ("--init.from-hf", str(gpt2))
    data = lambda name: str(tmp_path / f"{name}.jsonl")
    argv = [*init, "--data", data("sft"), "--epochs", "1", "--batch-size", "4", "--block-size"]
    done = sft.run(load(SFTConfig, [*common("sft"), *argv, "16", "--pretrain-mix", "0"]))
    assert np.isfinite(done["heldout"]["eval/loss"])
    argv = [*init, "--data", data("comparisons"), "--epochs", "1"]
    done = reward.run(load(RewardConfig, [*common("reward"), *argv]))
    assert np.isfinite(done["heldout"]["eval/accuracy"])
    to_convert("to-hf", tmp_path / "reward", "--out", tmp_path / "hf_reward")
    argv = [
        *("--init", str(tmp_path / "sft"), "--reward.from-hf", str(tmp_path / "hf_reward")),
        *("--prompts", data("prompts"), "--iterations", "2", "--batch-size", "8"),
        *("--num-minibatches", "2", "--force", "True"),
    ]
    ppo.run(load(PPOConfig, [*common("ppo"), *argv]))
    lines = (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert all(np.isfinite(v) for v in metrics.values() if isinstance(v, float)), metrics
    for part in ("model", "value"):
        to_convert("to-hf", tmp_path / "ppo", "--part", part, "--out", tmp_path / f"hf_{part}")
    value = load_trained(tmp_path / "hf_value", flag="value", kind="scalar")
    before = load_trained(tmp_path / "reward", flag="reward", kind="scalar")
    assert not np.array_equal(value.params["head"]["kernel"], before.params["head"]["kernel"])
    assert value.vocab_size == VOCAB
    policy = load_trained(tmp_path / "hf_model", flag="init")
    same = load_trained(tmp_path / "ppo", flag="init")
    jax.tree.map(np.testing.assert_array_equal, policy.params, same.params)
