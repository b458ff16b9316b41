"""Who is examined: the models of a run, and episodes that its policy samples."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rlhf_jax.config import PPOConfig, SFTConfig
from rlhf_jax.data.batches import query_batches
from rlhf_jax.data.formats import Prompt
from rlhf_jax.errors import known
from rlhf_jax.models.heads import (
    LanguageModel,
    PolicyValue,
    ScalarModel,
    make_language_model,
    make_policy_value,
    make_scalar_model,
)
from rlhf_jax.runs.trained import Trained
from rlhf_jax.training.coefficients import starting_coefs
from rlhf_jax.training.policy_optimization import make_policy_optimization
from rlhf_jax.types import Params, PPOBatch, Rollout

EPISODES = 64
"""Sampled answers to the user's prompts; more if there are more devices."""
FEW = 16
"""Of these in checks that need no statistics."""


class Patient(NamedTuple):
    """What is examined."""

    ppo: PPOConfig
    policy: Trained
    """Also the reference."""
    reward: Trained
    trained: Trained
    """What PPO trains, from the policy and from the value network's start: adapters and all."""
    value: Trained
    fresh: tuple[str, ...]
    """"policy" and "reward" where these are not trained yet, and so have random parameters."""
    sft: SFTConfig | None
    comparisons: Path | None
    comparison_columns: str = ""
    """As ``RewardConfig.columns``."""

    @property
    def exact(self) -> "Patient":
        """The same in float32, for what does not depend on rounding."""
        names = ("policy", "reward", "trained", "value")
        models = {name: getattr(self, name) for name in names}
        # The parameters are in float32 already; dtype is that of the products.
        shapes = {name: replace(of.model, dtype="float32") for name, of in models.items()}
        exact = {name: models[name]._replace(model=shape) for name, shape in shapes.items()}
        return self._replace(**exact)

    @property
    def lm(self) -> LanguageModel:
        """The functions of the policy."""
        return make_language_model(self.trained.model, self.trained.vocab_size)

    @property
    def reward_model(self) -> ScalarModel:
        """The functions of the reward model."""
        return make_scalar_model(self.reward.model, self.reward.vocab_size)

    @property
    def policy_value(self) -> PolicyValue:
        """The functions of what PPO trains."""
        model, rows = self.trained.model, self.trained.vocab_size
        return make_policy_value(model, self.value.model, rows, self.ppo.value_trunk)

    @property
    def params(self) -> Params:
        """Of policy and value network together."""
        return self.policy_value.init(self.trained.params, self.value.params)


class Episodes(NamedTuple):
    """Answers of the policy, which here is its own reference, to some of the prompts."""

    rollout: Any
    """A Rollout on the host: its arrays are NumPy's."""
    sampled: np.ndarray
    """The sampler's own log-probs, whether or not the rollout recomputes them."""
    few: Any
    """Some of the episodes, cut short at different places: an untrained policy never stops."""
    batch: PPOBatch
    """``few`` as PPO's update reads them."""

    @property
    def sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """``few`` as (tokens, mask)."""
        tokens = (self.few.queries, self.few.responses), (self.few.query_mask, self.few.mask)
        ids, mask = (np.concatenate(parts, axis=1) for parts in tokens)
        return ids, mask


def sample_episodes(p: Patient, prompts: list[Prompt]) -> Episodes:
    """A batch of episodes of the patient, and a few of them with responses cut at many lengths."""
    devices = p.ppo.parallel.devices or jax.device_count()
    # Divisible by the devices, and on each into two micro-batches; all answers to a prompt.
    copies = p.ppo.samples_per_prompt
    unit = math.lcm(2 * devices, copies)
    number = -(-FEW // unit) * unit
    queries = query_batches(
        prompts,
        p.policy.tokenizer,
        query_length=known(p.ppo.prompt_length),
        batch_size=-(-EPISODES // unit) * unit,
        seed=p.ppo.run.data_seed,
        copies=copies,
    )
    batch = next(queries)

    def episodes(recompute_logprobs: bool) -> Any:
        rollout_fn = jax.jit(wired(p, recompute_logprobs=recompute_logprobs).rollout)
        params = (p.params, p.policy.params, {"task": p.reward.params})
        return jax.device_get(rollout_fn(*params, batch, jax.random.key(p.ppo.run.seed)))

    rollout = episodes(p.ppo.recompute_logprobs)
    sampled = episodes(False).logprobs if p.ppo.recompute_logprobs else rollout.logprobs
    first_rows = jax.tree.map(lambda x: x[:number], rollout)
    R = known(p.ppo.response_length)
    keep = 1 + np.arange(number) * 7 % R
    cut = first_rows.mask & (np.arange(R)[None] < keep[:, None])
    few = first_rows._replace(mask=cut)
    return Episodes(rollout, sampled, few, ppo_batch(p, few))


def wired(p: Patient, *, tx: optax.GradientTransformation | None = None, **changes: Any):
    """PPO's functions as experiments.ppo runs them, but for ``changes`` of its config.

    They are PPO's of a config with another objective too: the networks and samples are the same.
    """
    tokenizer = p.policy.tokenizer
    return make_policy_optimization(
        replace(p.ppo, objective="policy_gradient", ptx_coef=0.0, **changes),
        p.lm,
        p.policy_value,
        {"task": p.reward_model},
        tx or optax.identity(),
        end_ids=tokenizer.end_ids,
        pad_id=tokenizer.pad_id,
    )


def ppo_batch(p: Patient, rollout: Rollout, **changes: Any) -> PPOBatch:
    """What PPO's update reads of a rollout; ``changes`` are those of ``wired``."""
    return jax.jit(wired(p, **changes).batch)(rollout, starting_coefs(p.ppo))[0]
