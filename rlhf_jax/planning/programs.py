"""The programs of a chain as shapes: what each stage compiles, for devices that need not be there.

Nothing here holds an array. Every function gives the stage's own program, from the same factories
and with the same shardings, and the arguments it takes, told apart by what they are for.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from rlhf_jax.config import InstructGPTConfig, ModelConfig, OptimConfig
from rlhf_jax.config.rewards import reward_names
from rlhf_jax.errors import known
from rlhf_jax.models.heads import make_language_model, make_policy_value, make_scalar_model
from rlhf_jax.models.layout import ROWS, fit
from rlhf_jax.models.lora import partition
from rlhf_jax.objectives.language_losses import count_targets
from rlhf_jax.objectives.preference_losses import count_ranked, ranking_loss
from rlhf_jax.training.coefficients import starting_coefs
from rlhf_jax.training.optimizers import make_optimizer, make_policy_value_optimizer, make_state
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.training.policy_optimization import make_policy_optimization
from rlhf_jax.training.updates import make_lm_loss, update_step_of
from rlhf_jax.types import ComparisonBatch, LMBatch, Rollout, TrainState

KEY = jax.eval_shape(lambda: jax.random.key(0))


class Program(NamedTuple):
    """What a stage compiles, with what its arguments are for."""

    name: str
    jitted: Any
    """A jitted function of ``arguments``."""
    arguments: tuple
    """Shapes, with the shardings they have when the stage runs."""
    kinds: dict[str, Any]
    """Parts of the arguments by what they are for: weights, optimizer, cache, batch."""
    resident: dict[str, Any]
    """Not an argument, but on the chips while the program runs."""


class Models(NamedTuple):
    """The shapes of a chain's models."""

    policy: ModelConfig
    scalar: ModelConfig
    """Shape of the reward and value models."""
    vocab_size: int


def placed(tree: Any, parallel: Parallel) -> Any:
    """Shapes of parameters or of a train state, where the rules put them."""
    return with_shardings(tree, parallel.shardings(tree))


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes, each with where it lies."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def rows(parallel: Parallel, *shape: int, dtype: Any = jnp.int32, axis: int = 0) -> Any:
    """The shape of an array whose ``axis`` of rows is spread over the devices."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=parallel.split(axis))


def lm_shapes(models: Models) -> Any:
    """Shapes of the policy's parameters."""
    return jax.eval_shape(make_language_model(models.policy, models.vocab_size).init, KEY)


def scalar_shapes(models: Models) -> Any:
    """Shapes of the reward model's parameters."""
    base = make_language_model(models.scalar, models.vocab_size)
    trunk = jax.eval_shape(base.init, KEY)["trunk"]
    return jax.eval_shape(make_scalar_model(models.scalar, models.vocab_size).init, KEY, trunk)


def train_state(params: Any, tx: Any, optim: OptimConfig, parallel: Parallel) -> TrainState:
    """Shapes of a train state, each with where it lies."""
    state = jax.eval_shape(partial(make_state, tx=tx, ema_decay=optim.ema_decay), params)
    return placed(state, parallel)


def state_kinds(state: TrainState) -> dict[str, Any]:
    """The parts of a train state by what they are for."""
    return {"weights": state.params, "optimizer": (state.opt_state, state.ema_params)}


def text(parallel: Parallel, *shape: int, axis: int = 0) -> LMBatch:
    """The shapes of packed text."""
    ids, flags = (rows(parallel, *shape, dtype=d, axis=axis) for d in (jnp.int32, bool))
    return LMBatch(ids, flags, ids, ids)


def sft(chain: InstructGPTConfig, models: Models, parallel: Parallel) -> Program:
    """SFT's update."""
    c = chain.sft
    parallel.check_batch("sft.batch_size", c.batch_size)
    loss_fn = make_lm_loss(make_language_model(models.policy, models.vocab_size), training=False)
    tx = make_optimizer(c.optim, 1, updates_per_step=1)
    state = train_state(lm_shapes(models), tx, c.optim, parallel)
    batch = text(parallel, c.batch_size, known(c.block_size))
    jitted = parallel.program(update_step_of(c.optim, loss_fn, count_targets, tx), state)
    kinds = {**state_kinds(state), "batch": batch}
    return Program("SFT update", jitted, (state, batch, KEY, None), kinds, {})


def reward(chain: InstructGPTConfig, models: Models, parallel: Parallel) -> Program:
    """The reward model's update, all K answers of a prompt at once."""
    c, K = chain.reward, chain.compare.responses_per_prompt
    parallel.check_batch("reward.batch_size", c.batch_size)
    model = make_scalar_model(models.scalar, models.vocab_size)

    def loss_fn(params, batch, key, count):
        scores = model.score_responses(params, *batch[:4], None)
        return ranking_loss(scores, batch.ranks, count=count)

    tx = make_optimizer(c.optim, 1, updates_per_step=1)
    state = train_state(scalar_shapes(models), tx, c.optim, parallel)
    B, Q, R = c.batch_size, known(c.prompt_length), known(c.response_length)
    batch = ComparisonBatch(
        rows(parallel, B, Q),
        rows(parallel, B, Q, dtype=bool),
        rows(parallel, B, K, R),
        rows(parallel, B, K, R, dtype=bool),
        rows(parallel, B, K),
    )

    def count(batch):
        return count_ranked(batch.ranks)

    jitted = parallel.program(update_step_of(c.optim, loss_fn, count, tx), state)
    kinds = {**state_kinds(state), "batch": batch}
    return Program("reward-model update", jitted, (state, batch, KEY, None), kinds, {})


class Networks(NamedTuple):
    """What lies on the chips all through PPO."""

    state: TrainState
    reference: Any
    reward: Any
    tx: Any
    past: Any
    """The older policies that are kept."""

    @property
    def resident(self) -> dict[str, Any]:
        """Beside the policy that samples."""
        others = self.state.params.get("value"), self.reference, self.reward, self.past
        return {"weights": others, "optimizer": (self.state.opt_state, self.state.ema_params)}


def networks_of(chain: InstructGPTConfig, models: Models, parallel: Parallel) -> Networks:
    """The four models of PPO as shapes, where they lie, and its optimizer."""
    c = chain.ppo
    name, size = c.minibatch
    parallel.check_batch(f"ppo.{name}", size)
    if c.ptx_coef:
        parallel.check_batch("ppo.ptx_batch_size", c.ptx_batch_size)
    policy_value = make_policy_value(models.policy, models.scalar, models.vocab_size, c.value_trunk)
    lm, scalar = lm_shapes(models), scalar_shapes(models)
    params, _ = partition(jax.eval_shape(policy_value.init, lm, scalar))
    updates = c.updates_per_iteration
    tx = make_policy_value_optimizer(c.optim, c.value_optim, 1, updates_per_step=updates)
    state = train_state(params, tx, c.optim, parallel)
    # Shapes, so a list of one and the same stands for as many copies.
    past = [state.params["policy"]] * c.staleness
    return Networks(state, placed(lm, parallel), placed(scalar, parallel), tx, past)


def prefill(chain: InstructGPTConfig, models: Models, parallel: Parallel) -> Program:
    """All queries of an iteration at once, into a cache with room for the responses."""
    c, there = chain.ppo, networks_of(chain, models, parallel)
    lm = make_language_model(models.policy, models.vocab_size)
    policy = there.state.params["policy"]
    shape = c.batch_size, known(c.prompt_length)
    queries, mask = rows(parallel, *shape), rows(parallel, *shape, dtype=bool)
    jitted = parallel.function(partial(lm.prefill, length=c.response_length))
    kinds = {"weights": policy, "batch": (queries, mask)}
    return Program("prefill", jitted, (policy, queries, mask), kinds, there.resident)


def decode(chain: InstructGPTConfig, models: Models, parallel: Parallel) -> Program:
    """One token of every episode of an iteration."""
    c, there = chain.ppo, networks_of(chain, models, parallel)
    lm = make_language_model(models.policy, models.vocab_size)
    policy = there.state.params["policy"]
    queries = jax.ShapeDtypeStruct((c.batch_size, c.prompt_length), jnp.int32)
    mask = jax.ShapeDtypeStruct(queries.shape, bool)
    fill = partial(lm.prefill, length=c.response_length)
    _, cache = jax.eval_shape(fill, policy, queries, mask)
    # eval_shape tells no layout: without one each chip would be given the whole cache.
    cache = with_shardings(cache, jax.tree.map(partial(cache_sharding, parallel), cache))
    tokens = rows(parallel, c.batch_size)
    jitted = jax.jit(parallel.on_mesh(lm.decode), donate_argnums=2)
    kinds = {"weights": policy, "cache": cache}
    return Program("decode, one token", jitted, (policy, tokens, cache), kinds, there.resident)


def cache_sharding(parallel: Parallel, leaf: Any) -> NamedSharding:
    """Where ``prefill`` leaves each part of the cache (models/layout.py)."""
    spec = () if leaf.ndim == 0 else (ROWS,)
    if leaf.ndim >= 4:  # keys and values
        spec = (*[None] * (leaf.ndim - 4), ROWS, "tensor", None, None)
    return NamedSharding(parallel.mesh, fit(spec, leaf.shape, parallel.mesh.shape))


def ppo(chain: InstructGPTConfig, models: Models, parallel: Parallel) -> Program:
    """All minibatches of an iteration, each with its pretraining text."""
    # How much packing spares is for the data to say: what is planned is the padded program.
    c, there = replace(chain.ppo, packing=False), networks_of(chain, models, parallel)
    lm = make_language_model(models.policy, models.vocab_size)
    policy_value = make_policy_value(models.policy, models.scalar, models.vocab_size, c.value_trunk)
    reward_models = {"task": make_scalar_model(models.scalar, models.vocab_size)}
    # Which tokens end an answer changes no shape.
    ppo = make_policy_optimization(
        c, lm, policy_value, reward_models, there.tx, end_ids=(0,), pad_id=0
    )
    updates, B = c.updates_per_iteration, c.batch_size
    Q, R = known(c.prompt_length), known(c.response_length)

    def shape(*sizes: int, kind: Any = jnp.float32) -> Any:
        """What stands for an array in a program that is only compiled."""
        return jax.ShapeDtypeStruct(sizes, kind)

    tokens = [shape(B, T, kind=kind) for T in (Q, R) for kind in (jnp.int32, bool)]
    valued = shape(B, R) if c.value_trunk != "none" else None
    names = (*reward_names(c.reward), *(("second",) if c.second_reward.model else ()))
    scores = {name: shape(B) for name in names}
    coefs = {name: shape() for name in starting_coefs(c)}
    numbers = dict(logprobs=shape(B, R), ref_logprobs=shape(B, R))
    rollout = Rollout(*tokens, **numbers, values=valued, scores=scores)
    # From the stage's own function: what it hands to the update is not written down a second time.
    learnt, _ = jax.eval_shape(ppo.prepare, rollout, coefs, KEY)
    spread = parallel.split(1)
    learnt = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), learnt)
    ptx = text(parallel, updates, c.ptx_batch_size, known(c.ptx_data.block_size), axis=1)
    batch = learnt, ptx if c.ptx_coef else None
    jitted = parallel.program(ppo.update, there.state, batch_axis=1)
    kinds = {**state_kinds(there.state), "batch": batch}
    resident = {"weights": (there.reference, there.reward, there.past)}
    arguments = there.state, batch, KEY, None
    title = "PPO-ptx update, all minibatches" + (", as if padded" if chain.ppo.packing else "")
    return Program(title, jitted, arguments, kinds, resident)


PROGRAMS: dict[str, Callable[[InstructGPTConfig, Models, Parallel], Program]] = {
    "sft": sft,
    "reward": reward,
    "prefill": prefill,
    "decode": decode,
    "ppo": ppo,
}
