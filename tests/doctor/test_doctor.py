"""The doctor: every check passes on a sound model, and fails on the fault it is there for."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from experiments import doctor
from rlhf_jax import cli
from rlhf_jax.config import (
    InstructGPTConfig,
    LoRAConfig,
    ModelConfig,
    PPOConfig,
    SamplingConfig,
    SFTConfig,
)
from rlhf_jax.data.batches import demonstration_batches
from rlhf_jax.data.formats import Prompt, iterate, read_demonstrations
from rlhf_jax.data.tokenizers import train_bpe
from rlhf_jax.doctor import checks, checks_data
from rlhf_jax.doctor import invariants as of_model
from rlhf_jax.doctor import invariants_data as of_data
from rlhf_jax.doctor import invariants_ppo as of_ppo
from rlhf_jax.doctor.patient import Patient, sample_episodes
from rlhf_jax.errors import InputError, RunError
from rlhf_jax.models import heads, trunk
from rlhf_jax.models import scores as model_scores
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.objectives import policy_losses
from rlhf_jax.objectives.language_losses import count_targets, lm_loss
from rlhf_jax.objectives.masked import last_index, masked_mean
from rlhf_jax.objectives.rewards import kl_penalised_rewards
from rlhf_jax.rollouts import generate, rollout
from rlhf_jax.runs.trained import Trained, with_adapters
from rlhf_jax.training import policy_optimization, preparation
from rlhf_jax.training.optimizers import make_state
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.training.updates import make_update_step
from rlhf_jax.types import TrainState

ROOT = Path(__file__).parents[2]
WORDS = ("a fine war film", "a dull love story", "the road is long", "crime pays in space")
MODEL = ModelConfig(n_layers=1, d_model=16, n_heads=2, context=24)
LENGTHS = dict(prompt_length=10, response_length=12)


# --- a sound patient ------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    folder.mkdir()
    sentences = [f"{word}{'!' * (n % 3)}" for n, word in enumerate(WORDS * 4)]
    demonstrations = [{"prompt": text[:6], "completion": text[6:]} for text in sentences]
    prompts = [{"prompt": text[: 5 + n % 4]} for n, text in enumerate(sentences)]
    comparisons = [
        {"prompt": text, "responses": [" good", " bad", f" {n}"], "ranks": [0, 1, 2]}
        for n, text in enumerate(sentences)
    ]
    rows = {
        "demonstrations": demonstrations,
        "prompts_ppo": prompts,
        "comparisons": comparisons,
    }
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    for name in ("gutenberg", "reviews", "polarity"):
        (folder / f"corpus_{name}.txt").write_text("\n<|endoftext|>\n".join(WORDS * 9) + "\n")
        (folder / f"heldout_{name}.txt").write_text(WORDS[0] + "\n")


def fine_tuned(sft: SFTConfig, policy: Trained) -> Trained:
    """``policy`` after some steps on the demonstrations: it ends its answers."""
    lm = make_language_model(policy.model, policy.vocab_size)
    batches = demonstration_batches(
        read_demonstrations(sft.data),
        policy.tokenizer,
        block_size=sft.block_size,
        batch_size=8,
        prompt_length=sft.prompt_length,
        response_length=sft.response_length,
        target="response",
        seed=0,
    )
    tx = optax.adam(1e-2)

    def loss_fn(params, batch, key, count):
        return lm_loss(lm.packed_logits(params, batch, None), batch, count=count)

    step = jax.jit(make_update_step(loss_fn, count_targets, tx, accumulate=1, ema_decay=0.0))
    state = make_state(lm.init(jax.random.key(0)), tx, ema_decay=0.0)
    for _ in range(80):
        state, _ = step(state, next(batches), jax.random.key(0))
    return policy._replace(params=state.params)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Almost all of the time would go into optimising programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def patient(tmp_path_factory) -> Patient:
    data = tmp_path_factory.mktemp("doctor") / "data"
    write_data(data)
    tokenizer = train_bpe(WORDS, vocab_size=300)
    ppo = PPOConfig(
        prompts=data / "prompts_ppo.jsonl",
        **LENGTHS,
        batch_size=8,
        missing_eos_penalty=-1.0,
        sampling=SamplingConfig(temperature=0.5),
    )
    sft = SFTConfig(data=data / "demonstrations.jsonl", block_size=24, **LENGTHS)
    policy = Trained(MODEL, tokenizer.vocab_size, tokenizer, None, "lm")
    policy = fine_tuned(sft, policy)
    scalar = make_scalar_model(MODEL, tokenizer.vocab_size)
    params = scalar.init(jax.random.key(1), policy.params["trunk"])
    reward = policy._replace(params=params, kind="scalar")
    return admitted(ppo, policy, reward)._replace(sft=sft, comparisons=data / "comparisons.jsonl")


def admitted(ppo: PPOConfig, policy: Trained, reward: Trained) -> Patient:
    trained, value = (with_adapters(m, ppo.lora, seed=0) for m in (policy, reward))
    return Patient(ppo, policy, reward, trained, value, (), None, None)


@pytest.fixture(scope="module")
def prompts(patient):
    return list(iterate(patient.ppo.prompts, Prompt))


@pytest.fixture(scope="module")
def episodes(patient, prompts):
    return sample_episodes(patient, prompts)


def failed(findings) -> set[str]:
    return {finding.name for finding in findings if finding.passed is False}


@pytest.mark.slow
def test_a_sound_patient_passes_every_check(patient):
    findings = checks.examine(patient)
    assert failed(findings) == set()
    assert [f.name for f in findings if f.passed is None] == ["1 device = N devices"]
    assert len(findings) == 30


# --- faults in the model --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_position_bug_under_padding(patient, episodes, monkeypatch):
    """Bug 4: positions count padding."""
    ramp = lambda mask: jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
    monkeypatch.setattr(trunk, "positions_of", ramp)
    assert "left padding changes no logit" in failed(checks.model_findings(patient, episodes))


@pytest.mark.slow
def test_rows_that_see_each_other(patient, episodes, monkeypatch):
    unembed = heads.unembed

    def centred(params, hidden, config):
        logits = unembed(params, hidden, config)
        return logits - logits.mean(axis=0, keepdims=True)

    monkeypatch.setattr(heads, "unembed", centred)
    assert "row alone = row in a batch" in failed(checks.model_findings(patient, episodes))


def test_a_cache_at_the_wrong_position(patient, episodes, monkeypatch):
    """Bug 35: decoding goes on from the padded length."""

    def shifted(config, rows):
        lm = make_language_model(config, rows)

        def prefill(params, queries, query_mask, *, length):
            logits, cache = lm.prefill(params, queries, query_mask, length=length)
            padded = jnp.full_like(cache.positions, queries.shape[1])
            return logits, cache._replace(positions=padded)

        return lm._replace(prefill=prefill)

    monkeypatch.setattr("rlhf_jax.doctor.patient.make_language_model", shifted)
    assert failed(checks.model_findings(patient, episodes)) == {"cached logits = uncached"}


def test_parameters_that_are_not_numbers(patient, episodes):
    trunk = patient.policy.params["trunk"]
    params = {"trunk": trunk | {"wte": trunk["wte"].at[3, 2].set(jnp.nan)}}
    sick = patient._replace(policy=patient.policy._replace(params=params))
    findings = checks.model_findings(sick, episodes)
    finite = findings[0]
    assert not finite.passed and finite.measured.startswith("1 of ") and "wte" in finite.advice
    # A gap that is not a number passes nowhere.
    assert "left padding changes no logit" in failed(findings)


def test_half_precision_that_is_far_off():
    full = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    mask = np.array([[True, True, False], [True, False, False]])
    check = lambda half: of_model.half_precision_is_close(half, full, mask, bound=0.25).passed
    assert check(full + 0.1) and not check(full + 0.5)
    full[0, 2] = 1e6  # padding does not count, neither in the gap nor in the spread
    assert not check(full + 0.5)


# --- faults in log-probs --------------------------------------------------------------------------


def logprob_findings(patient, prompts):
    return failed(checks.logprob_findings(patient, sample_episodes(patient, prompts)))


RATIO = "ratio is 1 at the first minibatch"
SAMPLER = "sampler's log-probs = trainer's"


@pytest.mark.slow
def test_a_sampler_that_forgets_the_temperature(patient, prompts, monkeypatch):
    """Bug 15."""
    monkeypatch.setattr(generate, "filter_logits", lambda logits, **_: logits)
    found = logprob_findings(patient, prompts)
    assert {RATIO, SAMPLER, "KL(π ‖ π) is 0, nats per episode"} <= found


@pytest.mark.slow
def test_recomputed_log_probs_hide_the_sampler_from_the_ratio_alone(patient, prompts, monkeypatch):
    monkeypatch.setattr(generate, "filter_logits", lambda logits, **_: logits)
    recomputing = patient._replace(ppo=replace(patient.ppo, recompute_logprobs=True))
    found = logprob_findings(recomputing, prompts)
    assert SAMPLER in found and RATIO not in found


@pytest.mark.slow
def test_a_loss_that_forgets_the_temperature(patient, prompts, monkeypatch):
    monkeypatch.setattr(policy_optimization, "scale_logits", lambda logits, temperature: logits)
    assert {RATIO, SAMPLER} <= logprob_findings(patient, prompts)


@pytest.mark.slow
def test_a_reference_scored_at_another_temperature(patient, prompts, monkeypatch):
    monkeypatch.setattr(rollout, "scale_logits", lambda logits, temperature: logits)
    assert logprob_findings(patient, prompts) == {"KL(π ‖ π) is 0, nats per episode"}


@pytest.mark.slow
def test_tokens_that_are_not_drawn_from_the_policy(patient, prompts, monkeypatch):
    """Bug 17: the log-probs are the policy's, the tokens are not."""

    def greedy(keys, logits):
        token = logits.argmax(axis=-1).astype(jnp.int32)
        return token, jax.nn.log_softmax(logits)[jnp.arange(len(token)), token]

    monkeypatch.setattr(generate, "draw", greedy)
    assert logprob_findings(patient, prompts) == {"samples follow π (|z|)"}


# --- faults in scores and rewards -----------------------------------------------------------------

JUNK, LAST = "score ignores the padding", "score reads the last token"


def test_a_scorer_that_reads_the_padding(patient, episodes, monkeypatch):
    """Bug 5."""
    monkeypatch.setattr(heads, "last_index", lambda mask: jnp.full(len(mask), mask.shape[1] - 1))
    assert JUNK in failed(checks.score_findings(patient, episodes))


def test_a_scorer_that_reads_the_token_before_the_end(patient, episodes, monkeypatch):
    """Bug 5 with padding = end of text."""
    monkeypatch.setattr(heads, "last_index", lambda mask: jnp.maximum(last_index(mask) - 1, 0))
    assert failed(checks.score_findings(patient, episodes)) == {LAST}


def with_a_mean(patient):
    model = replace(patient.reward.model, pooling="mean")
    return patient._replace(reward=patient.reward._replace(model=model))


def test_a_score_that_is_a_mean_is_sound(patient, episodes):
    assert failed(checks.score_findings(with_a_mean(patient), episodes)) == set()


def test_a_mean_over_the_padding_too(patient, episodes, monkeypatch):
    everywhere = lambda x, mask, axis: x.mean(axis=axis)
    monkeypatch.setattr(model_scores, "masked_mean", everywhere)
    assert failed(checks.score_findings(with_a_mean(patient), episodes)) == {JUNK}


SUM, FRACTION = "rewards sum to score − β KL", "a score of 0.3 stays 0.3"


def late_score(scores, logprobs, ref_logprobs, mask, *, kl_coef, estimator="k1"):
    """Bug 7: on the padding after the end."""
    rewards = kl_penalised_rewards(scores * 0, logprobs, ref_logprobs, mask, kl_coef=kl_coef)
    after = jnp.minimum(last_index(mask) + 1, mask.shape[1] - 1)
    return rewards.at[jnp.arange(len(mask)), after].add(scores)


def other_sign(scores, logprobs, ref_logprobs, mask, *, kl_coef, estimator="k1"):
    """Bug 18."""
    return kl_penalised_rewards(scores, ref_logprobs, logprobs, mask, kl_coef=kl_coef)


def whole_scores(scores, logprobs, ref_logprobs, mask, *, kl_coef, estimator="k1"):
    """A score of 0.7 becomes 0."""
    whole = scores.astype(jnp.int32).astype(jnp.float32)
    return kl_penalised_rewards(whole, logprobs, ref_logprobs, mask, kl_coef=kl_coef)


@pytest.mark.parametrize("fault", [late_score, other_sign, whole_scores])
def test_rewards_that_are_lost_or_turned(patient, episodes, monkeypatch, fault):
    monkeypatch.setattr(checks, "kl_penalised_rewards", fault)
    assert failed(checks.reward_findings(patient, episodes)) == {SUM}


@pytest.mark.parametrize("fault", [late_score, other_sign, whole_scores])
def test_the_same_faults_further_down(patient, episodes, monkeypatch, fault):
    monkeypatch.setattr(preparation, "kl_penalised_rewards", fault)
    assert failed(checks.reward_findings(patient, episodes)) == {FRACTION}


# --- faults in the update -------------------------------------------------------------------------

CHUNKS = "micro-batches = whole batch"


@pytest.mark.slow
def test_a_mean_of_means(patient, episodes, monkeypatch):
    """Bug 29."""
    own_count = lambda x, mask, *, count=None, axis=None: masked_mean(x, mask, axis=axis) / 2
    monkeypatch.setattr(policy_losses, "masked_mean", own_count)
    assert failed(checks.chunk_findings(patient, episodes)) == {CHUNKS}


@pytest.mark.slow
def test_a_reference_that_shares_the_policys_arrays(patient, episodes, monkeypatch):
    """Bug 21: the update's buffers are the reference's."""
    copies = lambda tree: jax.tree.map(jnp.copy, tree)
    models = (patient.policy, patient.reward)
    sick = admitted(patient.ppo, *(m._replace(params=copies(m.params)) for m in models))
    state = lambda params, tx, ema_decay: TrainState(jnp.int32(0), params, tx.init(params), None)
    monkeypatch.setattr(checks, "make_state", state)
    # A program's results are arrays of their own: without it nothing is copied.
    monkeypatch.setattr(Parallel, "init", lambda self, fn, *inputs: fn(*inputs))
    (found,) = checks.reference_findings(sick, episodes)
    assert not found.passed and found.measured.startswith("changed")


@pytest.mark.slow
def test_adapters_move_the_policy_alone(patient, episodes):
    """With LoRA the reference does share arrays with the policy, those that do not train."""
    ppo = replace(patient.ppo, lora=LoRAConfig(rank=2))
    adapted = admitted(ppo, patient.policy, patient.reward)
    (found,) = checks.reference_findings(adapted, episodes)
    assert found.passed


def test_a_policy_that_does_not_move(patient, episodes, monkeypatch):
    stay = lambda state, grads, tx, *, ema_decay: state
    monkeypatch.setattr(policy_optimization, "apply_gradients", stay)
    (found,) = checks.reference_findings(patient, episodes)
    assert not found.passed and found.measured == "same; policy 0"


FAULTY_DEVICES = """
import test_doctor
from rlhf_jax.training import policy_optimization
sound = test_doctor.many_devices()
policy_optimization.psum = lambda tree, axis_name: tree
sick = test_doctor.many_devices()
print(sound.name, sound.passed, sick.passed)
"""


def many_devices() -> of_model.Finding:
    """What the doctor finds in this process."""
    with tempfile.TemporaryDirectory() as folder:
        factory = type("Factory", (), {"mktemp": lambda self, name: Path(folder)})()
        p = patient.__wrapped__(factory)
        ppo = replace(p.ppo, parallel=replace(p.ppo.parallel, mode="pmap"))
        p = p._replace(ppo=ppo)
        rows = list(iterate(p.ppo.prompts, Prompt))
        return checks.device_findings(p, sample_episodes(p, rows))[0]


@pytest.mark.multidevice
def test_devices_that_do_not_share_their_sums():
    """Bug 13, under pmap on 8 virtual devices."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTY_DEVICES],
        env=environment(JAX_NUM_CPU_DEVICES="8"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "1 device = 8 devices True False", done.stderr[-2000:]


def test_a_gradient_that_is_n_times_too_large():
    one = [np.ones(3), np.arange(4.0)]
    check = lambda several: of_ppo.devices_change_nothing(several, one, number=8, bound=1e-4).passed
    assert check(one) and not check([8 * leaf for leaf in one])
    zeros = [np.zeros(3), np.zeros(4)]
    assert not of_ppo.devices_change_nothing(zeros, zeros, number=8, bound=1e-4).passed


# --- faults in tokenizer and data -----------------------------------------------------------------


def test_padding_that_is_the_end_of_text():
    """Bug 1."""
    assert of_data.padding_is_not_the_end(1, (0, 2)).passed
    assert not of_data.padding_is_not_the_end(2, (0, 2)).passed


def test_a_tokenizer_that_loses_text(patient, prompts):
    t = patient.policy.tokenizer
    lower = lambda text: t.encode(text.lower())
    assert of_data.text_comes_back(t.encode, t.decode, ["Ä film"]).passed
    found = of_data.text_comes_back(lower, t.decode, ["a film", "A film"])
    assert not found.passed and found.measured == "1 of 2 (50 %)" and "A film" in found.advice
    pieces = [t.decode_bytes([i]) for i in range(t.vocab_size)]
    assert of_data.bytes_have_ids(pieces).passed
    missing = of_data.bytes_have_ids([piece for piece in pieces if piece != b"\xff"])
    assert not missing.passed and missing.measured == "1"


def test_every_byte_of_utf_8_is_tried():
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert set(checks_data.EVERY_CHARACTER.encode()) == set(range(256)) - never


def test_a_tokenizer_of_another_model(patient, prompts):
    other = patient._replace(policy=patient.policy._replace(vocab_size=200))
    assert failed(checks_data.tokenizer_findings(other, prompts)) == {"largest id in the embedding"}


def test_prompts_that_do_not_fit(patient, prompts):
    short = patient._replace(ppo=replace(patient.ppo, prompt_length=2))
    assert failed(checks_data.tokenizer_findings(short, prompts)) == {"prompts cut to 2 tokens"}
    long = patient._replace(ppo=replace(patient.ppo, response_length=20))
    assert failed(checks_data.tokenizer_findings(long, prompts)) == {
        "prompt and response, in tokens"
    }


def test_prompts_cut_at_the_wrong_end(patient, prompts, monkeypatch):
    """Bug 45."""
    encode_prompts = checks_data.encode_prompts

    def beginning(rows, tokenizer, *, query_length, everything):
        batch, report = encode_prompts(
            rows, tokenizer, query_length=query_length + 20, everything=everything
        )
        ids = tokenizer.encode_batch([row.prompt for row in rows])
        queries = batch.queries[:, -query_length:].copy()
        for row, each in enumerate(ids):
            kept = each[:query_length]
            queries[row, query_length - len(kept) :] = kept
        return batch._replace(queries=queries, query_mask=queries != tokenizer.pad_id), report

    monkeypatch.setattr(checks_data, "encode_prompts", beginning)
    short = patient._replace(ppo=replace(patient.ppo, prompt_length=2))
    assert "queries that lose their end" in failed(checks_data.tokenizer_findings(short, prompts))


def test_ends_of_text_out_of_the_loss(patient, episodes, monkeypatch):
    """Bugs 1 and 2."""
    encode = checks_data.encode_demonstrations

    def masked(rows, tokenizer, **options):
        batch, report = encode(rows, tokenizer, **options)
        seen = batch.loss_mask & (batch.tokens != tokenizer.eos_id)
        return batch._replace(loss_mask=seen), report

    monkeypatch.setattr(checks_data, "encode_demonstrations", masked)
    found = failed(checks_data.demonstration_findings(patient, episodes))
    assert "ends of text in SFT's loss" in found


@pytest.mark.slow
def test_a_policy_that_never_learnt_to_end(patient, prompts):
    lm = make_language_model(MODEL, patient.policy.vocab_size)
    fresh = patient.policy._replace(params=lm.init(jax.random.key(0)))
    untaught = patient._replace(policy=fresh, trained=fresh)
    episodes = sample_episodes(untaught, prompts)
    found = failed(checks_data.demonstration_findings(untaught, episodes))
    assert found == {"ends of text that SFT predicts", "sampled answers that end"}
    # Random parameters are not blamed for it.
    random = checks_data.demonstration_findings(untaught._replace(fresh=("policy",)), episodes)
    assert failed(random) == set() and random[-1].passed is None


def test_demonstrations_that_do_not_fit(patient, episodes):
    short = patient._replace(sft=replace(patient.sft, response_length=3))
    found = failed(checks_data.demonstration_findings(short, episodes))
    assert "demonstrations over 3 tokens" in found


def test_comparisons_that_conflict(patient, tmp_path):
    path = tmp_path / "comparisons.jsonl"
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [0, 1, 1]},
        {"prompt": "p", "responses": ["b", "a"], "ranks": [0, 1]},
        {"prompt": "q", "responses": ["b", "a"], "ranks": [0, 1]},
        {"prompt": "q", "responses": ["x", "x", "y"], "ranks": [0, 1, 1]},
        {"prompt": "q", "responses": ["x", "y"], "ranks": [0, 0]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    patient = patient._replace(comparisons=path)
    both_ways, twice, useless = checks_data.comparison_findings(patient)
    # p: a > b and b > a, a > c; q: b > a, x > y.
    assert both_ways.measured == "1 of 4 (25 %)" and not both_ways.passed
    assert twice.measured == "1 of 9 (11 %)" and not twice.passed
    assert useless.measured == "1 of 5 (20 %)" and not useless.passed
    # Ids are compared: these answers are the same ones once they are cut.
    long = "so " * patient.ppo.response_length
    rows = [{"prompt": "p", "chosen": long + "good", "rejected": long + "bad"}] * 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, twice, useless = checks_data.comparison_findings(patient)
    assert twice.measured == "2 of 2 (100 %)" and useless.measured == "2 of 2 (100 %)"


# --- the command ----------------------------------------------------------------------------------

PRESET = """
from dataclasses import replace
from pathlib import Path
from configs import quickstart

def get_config():
    c = quickstart.get_config()
    model = replace(c.pretrain.model, n_layers=1, d_model=16, n_heads=2, context=24)
    text = replace(c.pretrain.data, block_size=24)
    tokenizer = replace(c.pretrain.tokenizer, vocab_size=300)
    lengths = dict(prompt_length=10, response_length=12)
    return replace(
        c,
        dir=Path(__file__).parent,
        pretrain=replace(c.pretrain, model=model, data=text, tokenizer=tokenizer),
        sft=replace(c.sft, block_size=24, **lengths),
        ppo=replace(c.ppo, **lengths),
    )
"""


def environment(**changes: str) -> dict[str, str]:
    paths = os.pathsep.join(map(str, (ROOT, tiny.HELPERS, Path(__file__).parent)))
    return tiny.process_environment(PYTHONPATH=paths, **changes)


def save(folder: Path, trained: Trained) -> None:
    """The finished run folder of a model."""
    tiny.save_model(
        folder, trained.tokenizer, kind=trained.kind, model=trained.model, params=trained.params
    )


@pytest.fixture
def chain(tmp_path) -> Path:
    """Folder of a chain of which only the data and a preset exist."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_data(folder / "data")
    (folder / "preset.py").write_text(PRESET)
    return folder


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def examine(*argv: str):
    return doctor.run(cli.load(doctor.config_class(list(argv)), argv))


@pytest.mark.slow
def test_data_that_are_not_there_yet_are_of_the_chains_own_task(tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def enough(*_):
        raise Enough

    monkeypatch.setattr(doctor, "chain_models", enough)
    flags = [
        "--task",
        "translation",
        "--source",
        str(ROOT / "data"),
        "--dir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(Enough):
        doctor.admit(cli.load(InstructGPTConfig, flags), tmp_path)
    assert "Chinese: " in (tmp_path / "data" / "prompts_ppo.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_chain_that_has_not_been_run(chain, capsys):
    before = files(chain)
    findings = examine("--config", str(chain / "preset.py"))
    assert [f.name for f in findings if f.passed is None] == [
        "the end of text is learnt",
        "comparisons",
        "1 device = N devices",
    ]
    shown = capsys.readouterr().out
    assert f"policy: random parameters, {chain / 'sft'} is not finished\n" in shown
    assert files(chain) == before, "the doctor writes nothing"


@pytest.mark.slow
def test_the_command_on_a_chain(chain, patient):
    """A sound policy, and comparisons that contradict each other: one failure, exit code 1."""
    save(chain / "sft", patient.policy)
    save(chain / "reward", patient.reward)
    (chain / "comparisons").mkdir()
    rows = [{"prompt": "p", "chosen": a, "rejected": b} for a, b in ("xy", "yx")]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (chain / "comparisons" / "train.jsonl").write_text(lines)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.doctor", "--config", str(chain / "preset.py")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("stopped: 1 of 29 checks failed: pairs ranked")
    assert "FAIL pairs ranked both ways: keep one ranking per pair" in done.stdout
    assert f"policy: {chain / 'sft'}" in done.stdout


@pytest.mark.slow
def test_the_flags_of_ppo(chain, patient):
    save(chain / "sft", patient.policy)
    save(chain / "reward", patient.reward)
    prompts = chain / "data" / "prompts_ppo.jsonl"
    flags = {"--init": chain / "sft", "--reward": chain / "reward", "--prompts": prompts}
    argv = [str(part) for flag in flags.items() for part in flag]
    findings = examine(*argv, "--prompt-length", "10", "--response-length", "12")
    absent = {f.name: f.advice for f in findings if f.passed is None}
    assert "names no demonstrations" in absent["demonstrations"]


def test_slips_on_the_command_line(chain):
    with pytest.raises(InputError, match=r"--init .*nowhere: nothing is there; expected the run"):
        examine("--init", str(chain / "nowhere"))
    with pytest.raises(InputError, match="no such file"):
        examine("--config", str(chain / "nothing.py"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (of_model.at_most("gap", 2.0, 1.0, "mend it"), "1 of 1 checks failed: gap"),
        (of_model.at_most("gap", float("nan"), 1.0, "mend it"), "1 of 1 checks failed: gap"),
        (of_model.not_run("gap", "no file"), "0 of 0 checks failed"),
    ],
)
def test_what_is_no_success(patient, monkeypatch, capsys, row, says):
    """A failure, and nothing that could run."""
    monkeypatch.setattr(doctor, "admit", lambda config, scratch: patient)
    monkeypatch.setattr(doctor, "examine", lambda p: [row])
    with pytest.raises(RunError, match=says):
        doctor.run(patient.ppo)
    shown = capsys.readouterr().out
    assert ("FAIL gap: mend it\n" in shown) == (row.passed is False)
    assert ("no file" in shown) == (row.passed is None)
