"""One whole PPO iteration of TRL's own trainer against ours: the same metrics, the same weights.

``PPOTrainer.train`` runs as it is, but for the sampling, which is replaced by given responses. They
never end, so that the score lies at the same place (see test_objectives_trl), and our advantages
are scaled for TRL's unbiased variance. Four epochs of one minibatch: clipping acts from the second.
"""

import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from parity.torch_bridge import EOS, PAD, SINGLE, VOCAB, by_torch_name, hf, make_gpt2, torch
from rlhf_jax.config import CombineConfig, OptimConfig
from rlhf_jax.interop.huggingface import load_pretrained
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.objectives.advantages import gae
from rlhf_jax.objectives.policy_losses import ppo_loss
from rlhf_jax.rollouts.rollout import response_logprobs
from rlhf_jax.training.optimizers import make_policy_value_optimizer, make_state
from rlhf_jax.training.policy_optimization import make_ppo_loss, make_ppo_update
from rlhf_jax.training.preparation import combine_scores, prepare_batch
from rlhf_jax.types import Generation, QueryBatch, Rollout

pytest.importorskip("trl", reason="needs TRL 1.12.0: make test-torch")
import datasets
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`.*is deprecated:FutureWarning"),
]

B, Q, R, EPOCHS = 8, 5, 6, 4
TEMPERATURE, BETA, LAM, CLIP, VALUE_CLIP, VF = 0.7, 0.1, 0.9, 0.05, 0.2, 0.3
LR, EPS = 0.02, 0.01
"""A large ε: a gradient that is 0 but for rounding must not become a step of ±lr."""


def make_models(folder):
    """Policy, reference and reward model of transformers, and ours with the same weights."""
    kinds = {
        "policy": (hf.GPT2LMHeadModel, {}),
        "reference": (hf.GPT2LMHeadModel, {}),
        "reward": (hf.GPT2ForSequenceClassification, {"num_labels": 1}),
    }
    theirs, ours = {}, {}
    for seed, (name, (kind, more)) in enumerate(kinds.items()):
        theirs[name] = make_gpt2(kind, folder / name, seed=seed, **more)
        ours[name] = load_pretrained(folder / name)
    return theirs, ours


def make_tokenizer():
    words = {f"<{i}>": i for i in range(VOCAB)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<1>"))
    special = dict(eos_token=f"<{EOS}>", pad_token=f"<{PAD}>")
    return hf.PreTrainedTokenizerFast(tokenizer_object=model, padding_side="left", **special)


def train_trl(models, folder, monkeypatch):
    """(queries, responses, logged metrics) of one iteration; the models are trained in place."""
    rng = np.random.default_rng(0)
    responses = torch.tensor(rng.integers(1, VOCAB - 1, (B, R)))
    seen = {}

    def given(model, queries, *_):
        ids = torch.cat([queries, responses], dim=1)
        logits = ppo_trainer.forward(model, ids, PAD).logits[:, Q - 1 : -1]
        seen["queries"] = queries
        return ids, logits / (TEMPERATURE + 1e-7)

    monkeypatch.setattr(ppo_trainer, "batch_generation", given)
    lengths = [Q, 1, 3, Q, 2, 4, Q, Q]
    rows = [rng.integers(1, VOCAB - 1, n).tolist() for n in lengths]
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        num_sample_generations=0,
        total_episodes=B,
        per_device_train_batch_size=B,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=EPOCHS,
        response_length=R,
        temperature=TEMPERATURE,
        kl_coef=BETA,
        gamma=1.0,
        lam=LAM,
        cliprange=CLIP,
        cliprange_value=VALUE_CLIP,
        vf_coef=VF,
        learning_rate=LR,
        adam_beta2=0.95,
        adam_epsilon=EPS,
        weight_decay=0.0,
        missing_eos_penalty=None,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=make_tokenizer(),
        model=models["policy"],
        ref_model=models["reference"],
        reward_model=models["reward"],
        value_model=models["value"],
        train_dataset=datasets.Dataset.from_dict({"input_ids": rows}),
        eval_dataset=datasets.Dataset.from_dict({"input_ids": rows}),
    )
    trainer.train()
    return seen["queries"].numpy(), responses.numpy(), trainer.state.log_history[0]


def train_ours(models, queries, responses):
    policy, reference, reward = (models[name] for name in ("policy", "reference", "reward"))
    lm = make_language_model(policy.model, VOCAB)
    scalar = make_scalar_model(reward.model, VOCAB)
    both = make_policy_value(policy.model, reward.model, VOCAB, "separate")
    params = both.init(policy.params, reward.params)
    queries, responses = jnp.asarray(queries, jnp.int32), jnp.asarray(responses, jnp.int32)
    batch = QueryBatch(queries, queries != PAD, jnp.arange(B))
    mask = jnp.ones((B, R), bool)
    sampled = Generation(responses, mask, jnp.zeros((B, R)))
    logprobs = partial(response_logprobs, lm, batch=batch, sampled=sampled, temperature=TEMPERATURE)
    tokens = jnp.concatenate([queries, responses], axis=1)
    rollout = Rollout(
        queries,
        batch.query_mask,
        responses,
        mask,
        logprobs(policy.params),
        logprobs(reference.params),
        both.evaluate(params, queries, batch.query_mask, responses, mask)[1],
        {"task": scalar.score(reward.params, tokens, tokens != PAD, None)},
    )
    whitening = dict(whiten_rewards=False, whiten_advantages=True)
    ppo_batch, metrics = prepare_batch(
        rollout,
        {"kl_coef": jnp.float32(BETA)},
        combine=partial(combine_scores, config=CombineConfig(), names=("task",)),
        advantage_fn=partial(gae, gamma=1.0, lam=LAM),
        kl_place="reward",
        kl_estimator="k1",
        group_size=1,
        missing_eos_penalty=None,
        end_ids=(EOS,),
        **whitening,
    )
    unbiased = np.sqrt((B * R - 1) / (B * R))
    ppo_batch = ppo_batch._replace(advantages=unbiased * ppo_batch.advantages)
    config = OptimConfig(
        lr=LR, schedule="constant", weight_decay=0.0, b2=0.95, eps=EPS, clip_norm=0.0
    )
    tx = make_policy_value_optimizer(config, config, 1, updates_per_step=EPOCHS)
    clips = dict(clip_eps=CLIP, value_clip_eps=VALUE_CLIP, vf_coef=VF, entropy_coef=0.0)
    objective = partial(ppo_loss, **clips)
    loss_fn = make_ppo_loss(both, objective, temperature=TEMPERATURE)
    update = make_ppo_update(loss_fn, None, None, tx, ptx_coef=0.0, accumulate=1, ema_decay=0.0)
    epochs = jax.tree.map(lambda x: jnp.stack([x] * EPOCHS), ppo_batch)
    state = make_state(params, tx, ema_decay=0.0)
    state, update_metrics = jax.jit(update)(state, (epochs, None), jax.random.key(0))
    return params, state.params, metrics | update_metrics


def with_bias(score):
    """Our value head has a bias, which learns; a classifier of transformers has none."""
    linear = torch.nn.Linear(score.in_features, 1)
    with torch.no_grad():
        linear.weight.copy_(score.weight)
        linear.bias.zero_()
    return linear


LOGGED = (
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
)


def test_a_whole_iteration_of_trls_trainer(tmp_path, monkeypatch):
    theirs, ours = make_models(tmp_path)
    theirs["value"] = copy.deepcopy(theirs["reward"])
    theirs["value"].score = with_bias(theirs["value"].score)
    queries, responses, logged = train_trl(theirs, tmp_path, monkeypatch)
    assert (queries != PAD).sum(axis=1).min() == 1, "the test needs left padding"
    before, after, metrics = train_ours(ours, queries, responses)
    for name in LOGGED:
        assert float(metrics[name]) == pytest.approx(logged[name], rel=2e-5, abs=1e-6), name
    assert metrics["policy/clipfrac_avg"] > 0.1 and metrics["val/clipfrac_avg"] > 0.1
    for part in ("policy", "value"):
        moved = jax.tree.map(lambda a, b: b - a, before[part], after[part])
        start = by_torch_name(before[part])
        named = dict(theirs[part].named_parameters())
        expected = {k: named[k].detach().numpy() - start[k] for k in named}
        # Four optimizer steps add rounding to rounding.
        loose = SINGLE._replace(tolerance=1e-4)
        loose.agree(f"TRL's whole iteration, {part}", by_torch_name(moved), expected)
