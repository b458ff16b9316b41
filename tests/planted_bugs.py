"""Would a test notice? Classical RLHF bugs, planted one at a time in a copy of the repository.

    python -m tests.planted_bugs            # all, some minutes
    python -m tests.planted_bugs 12 29      # these

Each row of ``PLANTS`` replaces one piece of source by a buggy one and names the test that must fail
then. A bug is caught if that test passes on the real code, and with the bug planted runs from the
copy and fails by an assertion: a test that cannot be collected or set up, or that stumbles over
something else, has noticed nothing. Exit code 1 if any bug escapes.

Numbers up to 48 are those of a list of classical RLHF bugs; tests name them by these numbers. Those
from 49 on are of PPO's kin, from 70 on of DPO's, from 110 on of what else an iteration learns from,
and of what moves beside the policy, from 130 on of studies, from 140 on of dynamic sampling
and of policies merged along a sphere, from 150 on of files and columns, from 169 on of scores that
are means.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("rlhf_jax", "experiments", "configs", "tests", "pyproject.toml")
REPORT = "PLANTED_BUGS_REPORT"
"""Environment variable: where the test process writes what happened."""
SECONDS = 600


class Plant(NamedTuple):
    number: int
    name: str
    file: str
    old: str
    """Source that occurs exactly once in ``file``."""
    new: str
    test: str
    """Node id of a test that passes on ``old`` and fails on ``new``."""


ENCODING, HEADS = "rlhf_jax/data/encoding.py", "rlhf_jax/models/heads.py"
FATES = "rlhf_jax/data/fates.py"
REWARDS, POLICY = "rlhf_jax/objectives/rewards.py", "rlhf_jax/objectives/policy_losses.py"
GAE, MASKED = "rlhf_jax/objectives/advantages.py", "rlhf_jax/objectives/masked.py"
PREFERENCES = "rlhf_jax/objectives/preference_losses.py"
PREFERENCE_TRAINING = "rlhf_jax/training/preference_optimization.py"
OPTIMIZERS, UPDATES = "rlhf_jax/training/optimizers.py", "rlhf_jax/training/updates.py"
PPO = "rlhf_jax/training/policy_optimization.py"
PREPARATION = "rlhf_jax/training/preparation.py"
SELECTION = "rlhf_jax/objectives/selection.py"
STATISTICS, STUDIES_PLAN = "rlhf_jax/studies/statistics.py", "rlhf_jax/studies/plan.py"
DYNAMIC = "rlhf_jax/training/dynamic_sampling.py"
PACKING = "rlhf_jax/models/packing.py"
GENERATE, ROLLOUT = "rlhf_jax/rollouts/generate.py", "rlhf_jax/rollouts/rollout.py"

BATCHES, CHAT = "tests/data/test_batches.py::test_", "tests/data/test_chat.py::test_"
BUGS = "tests/experiments/test_classical_bugs.py::test_"
OBJECTIVES = "tests/objectives/test_objectives.py::test_"
STUDY = "tests/studies/test_study_"
KIN = "tests/objectives/test_kin.py::test_"
PAIRS = "tests/objectives/test_preference_losses.py::test_"
UPDATE = "tests/training/test_updates.py::test_"
SELECTED = "tests/objectives/test_selection.py::test_"
MOVING = "tests/training/test_moving.py::test_"
ROUNDS = "tests/training/test_dynamic_sampling.py::test_"
PACKED = "tests/models/test_packing.py::test_"
EPISODES = "tests/training/test_packed_episodes.py::test_"
AVERAGES = "tests/models/test_averaging.py::test_"
TABLE_FILES = "tests/data/test_table_files.py::test_"
TURNS = "tests/data/test_turns.py::test_"
HUB = "tests/data/test_hub.py::test_"
TREES = "tests/data/test_trees.py::test_"
RENAMING = "tests/data/test_renaming.py::test_"
TRANSFORMER = "tests/models/test_transformer.py::test_"
SAMPLING = "tests/rollouts/test_generate.py::test_"
OPTIMIZER = "tests/training/test_optimizers.py::test_"
PRETRAINED = "tests/interop/test_pretrained.py::test_"
TOKENIZERS = "rlhf_jax/data/tokenizers.py"
SETTINGS = "tests/config/test_settings.py::test_"

PLANTS = (
    Plant(
        1,
        "the end of text is no target of SFT",
        ENCODING,
        "targets[row, start + first_target : end] = True",
        "targets[row, start + first_target : end - 1] = True",
        f"{BATCHES}only_the_completion_and_its_end_carry_the_loss",
    ),
    Plant(
        2,
        "no end of text after completions",
        TOKENIZERS,
        "made.append([*ids, end])",
        "made.append(ids)",
        f"{BATCHES}only_the_completion_and_its_end_carry_the_loss",
    ),
    Plant(
        3,
        "logits at t score token t, not t + 1",
        "rlhf_jax/objectives/language_losses.py",
        "token_logprobs(logits[:, :-1], targets)",
        "token_logprobs(logits[:, 1:], targets)",
        f"{OBJECTIVES}lm_loss_reference",
    ),
    Plant(
        4,
        "positions count left padding",
        "rlhf_jax/models/transformer.py",
        "return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)",
        "return jnp.broadcast_to(jnp.arange(mask.shape[1])[None], mask.shape)",
        f"{TRANSFORMER}padding_changes_nothing",
    ),
    Plant(
        5,
        "reward read at the last column, padding or not",
        HEADS,
        "at_position(hidden, mask.sum(axis=1))",
        "hidden[:, -1]",
        f"{TRANSFORMER}a_query_read_once_scores_its_responses_as_read_each_time[learned-False]",
    ),
    Plant(
        6,
        "last token of an empty row wraps around",
        MASKED,
        "return jnp.where(mask.any(axis=-1), last, 0)",
        "return jnp.where(mask.any(axis=-1), last, -1)",
        f"{OBJECTIVES}last_index_never_wraps",
    ),
    Plant(
        7,
        "score put behind the last real token, lost under the mask",
        REWARDS,
        "== last_index(mask)[:, None])",
        "== last_index(mask)[:, None] + 1)",
        f"{OBJECTIVES}kl_rewards_reference",
    ),
    Plant(
        8,
        "missing-EOS rule looks for another id than the one that stops",
        PREPARATION,
        "scores, r.responses, r.mask, end_ids=end_ids, penalty=missing_eos_penalty",
        "scores, r.responses, r.mask, end_ids=(0,), penalty=missing_eos_penalty",
        f"{UPDATE}prepare_batch_reference",
    ),
    Plant(
        9,
        "whitening takes its mean over padding",
        MASKED,
        "    mean = masked_mean(x, mask)\n",
        "    mean = x.mean()\n",
        f"{OBJECTIVES}whiten_reference",
    ),
    Plant(
        10,
        "GAE bootstraps from a value behind the mask",
        GAE,
        """            jnp.where(real, value, next_value),
        )
        return carry, jnp.where(real, advantage, 0.0)

    # Padding may hold NaN, and 0 · NaN is NaN: what is masked is 0 before anything is computed.
    rewards, values = (jnp.where(mask, x, jnp.zeros((), x.dtype)) for x in (rewards, values))
""",
        """            value,
        )
        return carry, jnp.where(real, advantage, 0.0)

""",
        f"{OBJECTIVES}gae_ignores_what_is_behind_the_mask",
    ),
    Plant(
        11,
        "GAE takes masked tokens inside a response for steps",
        GAE,
        """            jnp.where(real, advantage, next_advantage),
            jnp.where(real, value, next_value),
""",
        """            advantage,
            value,
""",
        f"{OBJECTIVES}gae_reference",
    ),
    Plant(
        12,
        "returns made of whitened advantages",
        PREPARATION,
        "advantages = whiten(advantages, r.mask, shift_mean=True)\n",
        "advantages = whiten(advantages, r.mask, shift_mean=True)\n"
        "        returns = jnp.where(r.mask, advantages + r.values, 0.0)\n",
        f"{UPDATE}prepare_batch_reference",
    ),
    Plant(
        13,
        "unbiased variance: another scale, infinite for one token",
        MASKED,
        "return masked_mean((x - masked_mean(x, mask)) ** 2, mask)",
        "return masked_sum((x - masked_mean(x, mask)) ** 2, mask) / (mask.sum() - 1)",
        f"{OBJECTIVES}whiten_reference",
    ),
    Plant(
        14,
        "dropout on while log-probs are scored",
        "rlhf_jax/models/trunk.py",
        'return module.apply({"params": params}, *inputs)',
        'return training.apply({"params": params}, *inputs, rngs={"dropout": jax.random.key(0)})',
        f"{UPDATE}every_ratio_is_one_at_the_first_minibatch[separate-11]",
    ),
    Plant(
        15,
        "no temperature in the new log-probs",
        PPO,
        "logits = scale_logits(logits, temperature)\n        logprobs = token",
        "logits = scale_logits(logits, 1.0)\n        logprobs = token",
        f"{UPDATE}every_ratio_is_one_at_the_first_minibatch[separate-11]",
    ),
    Plant(
        16,
        "temperature 0 divides",
        GENERATE,
        "if temperature == 0:",
        "if temperature < 0:",
        f"{SAMPLING}greedy_is_temperature_zero",
    ),
    Plant(
        17,
        "rollouts sample the top k, log-probs are of the whole distribution",
        ROLLOUT,
        "top_k=0,",
        "top_k=10,",
        f"{BUGS}rollouts_are_of_the_density_that_is_scored[True]",
    ),
    Plant(
        18,
        "the KL penalty rewards straying",
        REWARDS,
        "KL_ESTIMATORS[estimator](logprobs, ref_logprobs)",
        "KL_ESTIMATORS[estimator](ref_logprobs, logprobs)",
        f"{OBJECTIVES}reward_sign_of_kl",
    ),
    Plant(
        19,
        "the controller is fed nats per token",
        PREPARATION,
        '"objective/kl": per_episode(r.logprobs - r.ref_logprobs)',
        '"objective/kl": masked_mean(r.logprobs - r.ref_logprobs, r.mask)',
        f"{UPDATE}the_kl_of_twice_as_long_responses_is_twice_as_large",
    ),
    Plant(
        20,
        "k3 of the other direction",
        "rlhf_jax/objectives/kl.py",
        "log_ratio = ref_logprobs - logprobs",
        "log_ratio = logprobs - ref_logprobs",
        f"{OBJECTIVES}kl_estimators_by_enumeration",
    ),
    Plant(
        21,
        "the reference is the policy itself",
        ROLLOUT,
        'lm_params = {"reference": ref_params}',
        'lm_params = {"reference": policy_value.policy(params)}',
        f"{UPDATE}the_reference_stays_and_the_policy_leaves_it",
    ),
    Plant(
        22,
        "the reference is another model than the policy's start",
        "experiments/ppo.py",
        "(params, frozen, reference.params, rewards.params)",
        "(params, frozen, next(iter(rewards.params.values())), rewards.params)",
        f"{BUGS}the_kl_to_the_reference_starts_at_zero",
    ),
    Plant(
        23,
        "old log-probs recomputed in the update",
        PPO,
        "return objective(logprobs, values, entropy(logits), batch, count=count)",
        "batch = batch._replace(logprobs=logprobs)\n"
        "        return objective(logprobs, values, entropy(logits), batch, count=count)",
        f"{UPDATE}the_second_epoch_sees_the_old_logprobs",
    ),
    Plant(
        24,
        "value loss takes the smaller error",
        POLICY,
        "jnp.maximum(error, clipped_error)",
        "jnp.minimum(error, clipped_error)",
        f"{OBJECTIVES}ppo_reference",
    ),
    Plant(
        25,
        "the clipped term alone: no gradient where A < 0 and the ratio is large",
        POLICY,
        "losses, bounded = jnp.maximum(unclipped, clipped), clipped > unclipped",
        "losses, bounded = clipped, clipped > unclipped",
        f"{OBJECTIVES}negative_advantage_keeps_its_gradient",
    ),
    Plant(
        26,
        "clipfrac counts every ratio out of range",
        POLICY,
        "**clip_shares(bounded, rho, mean)",
        "**clip_shares(jnp.abs(rho - 1) > clip_eps, rho, mean)",
        f"{OBJECTIVES}ppo_reference",
    ),
    Plant(
        27,
        "entropy averaged over padding",
        POLICY,
        "mean_entropy = masked_mean(entropies, b.mask, count=count)",
        "mean_entropy = entropies.mean()",
        f"{UPDATE}ten_more_columns_of_padding_change_nothing",
    ),
    Plant(
        28,
        "the loss is divided by the size of the batch, padding included",
        PPO,
        "return batch.mask.sum(dtype=jnp.float32)",
        "return jnp.float32(batch.mask.size)",
        f"{UPDATE}ten_more_columns_of_padding_change_nothing",
    ),
    Plant(
        29,
        "gradient accumulation: mean of means",
        UPDATES,
        "gradient = jax.grad(loss_fn, has_aux=True)",
        "own_mean = lambda p, rows, k, _: loss_fn(p, rows, k, None)\n"
        "    share = lambda *inputs: jax.tree.map(lambda x: x / accumulate, own_mean(*inputs))\n"
        "    gradient = jax.grad(share, has_aux=True)",
        f"{UPDATE}microbatches_of_unequal_length_make_the_same_step",
    ),
    Plant(
        30,
        "log(sigmoid(x)) overflows",
        PREFERENCES,
        "mean_over_pairs(-jax.nn.log_sigmoid(margin)",
        "mean_over_pairs(-jnp.log(jax.nn.sigmoid(margin))",
        f"{OBJECTIVES}ranking_does_not_overflow",
    ),
    Plant(
        31,
        "ties are trained as preferences",
        PREFERENCES,
        "better = ranks[:, :, None] < ranks[:, None, :]",
        "better = ranks[:, :, None] <= ranks[:, None, :]",
        f"{OBJECTIVES}ranking_reference",
    ),
    Plant(
        32,
        "the reward model is centred on comparisons instead of demonstrations",
        "experiments/reward.py",
        "centre = float(np.nanmean(score(params, spread_out(demonstrated)).scores))",
        "score(params, spread_out(demonstrated))",
        f"{BUGS}demonstrations_score_zero",
    ),
    Plant(
        33,
        "DPO takes the mean over a response's tokens instead of their sum",
        PREFERENCE_TRAINING,
        "return masked_sum(logprobs, mask, axis=1).reshape(batch.ranks.shape)",
        "return (masked_sum(logprobs, mask, axis=1) / mask.sum(1)).reshape(batch.ranks.shape)",
        "tests/experiments/test_dpo.py::test_sequence_logprobs_is_the_sum_over_the_response",
    ),
    Plant(
        34,
        "log-softmax in half precision",
        "rlhf_jax/objectives/logprobs.py",
        "return x.astype(jnp.promote_types(x.dtype, jnp.float32))",
        "return x",
        f"{OBJECTIVES}half_precision_logits_are_widened",
    ),
    Plant(
        35,
        "the sampler's positions are slots of the cache",
        HEADS,
        "cache.positions[:, None],",
        "jnp.full_like(cache.positions, cache.index)[:, None],",
        f"{TRANSFORMER}cached_decoding_is_the_full_forward[False]",
    ),
    Plant(
        36,
        "a group's standard deviation is divided by K",
        GAE,
        "jnp.maximum(present.sum(axis=1, keepdims=True) - 1, 1)",
        "jnp.maximum(present.sum(axis=1, keepdims=True), 1)",
        f"{KIN}advantages_of_groups[grpo]",
    ),
    Plant(
        37,
        "RLOO's baseline includes the answer itself",
        GAE,
        "centred * count / jnp.maximum(count - 1, 1)",
        "centred",
        f"{KIN}advantages_of_groups[rloo]",
    ),
    Plant(
        38,
        "the KL is in the reward although it is in the loss",
        PREPARATION,
        'if kl_place == "reward" else (0.0, "k1")',
        'if kl_place else (0.0, "k1")',
        f"{UPDATE}an_algorithm_is_what_its_config_says",
    ),
    Plant(
        39,
        "not-a-numbers under the mask reach the ratio and its gradient",
        POLICY,
        "log_ratio = jnp.where(mask, new_logprobs - logprobs, 0.0)",
        "log_ratio = new_logprobs - logprobs",
        f"{OBJECTIVES}nothing_under_the_mask_reaches_ppo",
    ),
    Plant(
        40,
        "one key for all rows of a batch",
        GENERATE,
        "(key, jnp.arange(batch_size))",
        "(key, jnp.zeros(batch_size, jnp.int32))",
        f"{SAMPLING}keys_differ_by_row_and_step",
    ),
    Plant(
        41,
        "the schedule counts minibatches",
        OPTIMIZERS,
        "return schedule(count // updates_per_step)",
        "return schedule(count)",
        f"{UPDATE}the_schedule_advances_once_per_iteration",
    ),
    Plant(
        42,
        "the average's decay taken for a step size",
        OPTIMIZERS,
        "lambda e, p: decay * e + (1 - decay) * p",
        "lambda e, p: (1 - decay) * e + decay * p",
        f"{UPDATE}minibatches_are_taken_in_turn_and_the_average_follows_each",
    ),
    Plant(
        43,
        "biases, normalisation and embeddings decay",
        OPTIMIZERS,
        'return path[-1].key in ("kernel", "lora_a", "lora_b")',
        "return True",
        f"{OPTIMIZER}adamw_against_numpy",
    ),
    Plant(
        44,
        "the pretraining gradient is clipped apart",
        PPO,
        "        return jax.tree.map(lambda g, p: g + ptx_coef * p, grads, ptx_grads), metrics",
        "        ptx_grads, _ = optax.clip_by_global_norm(1.0).update(ptx_grads, None)\n"
        "        return jax.tree.map(lambda g, p: g + ptx_coef * p, grads, ptx_grads), metrics",
        f"{UPDATE}ptx_gradients_are_added_before_the_one_clip",
    ),
    Plant(
        45,
        "long prompts keep their beginning",
        TOKENIZERS,
        "*prompt[len(prompt) - length + len(bos) :]",
        "*prompt[len(bos) : length]",
        f"{BATCHES}queries_are_left_padded_and_keep_their_end",
    ),
    Plant(
        46,
        "sampled ids are decoded and encoded again for the reward model",
        FATES,
        "if row.tokens is None\n        else",
        "if row.responses\n        else",
        f"{BATCHES}sampled_ids_come_out_as_they_went_in",
    ),
    Plant(
        47,
        "every epoch in the same order",
        PREPARATION,
        "jax.random.permutation(jax.random.fold_in(key, e), B)",
        "jax.random.permutation(jax.random.fold_in(key, 0), B)",
        f"{UPDATE}minibatches_are_whole_episodes_each_used_once_per_epoch",
    ),
    Plant(
        48,
        "the optimizer starts anew after a restore",
        "rlhf_jax/runs/checkpoints.py",
        'return Restored(info["step"], state, info["data"], info["extra"], others)',
        "fresh = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), like.opt_state)\n"
        '    return Restored(info["step"], state._replace(opt_state=fresh), *map(info.get, '
        '("data", "extra")), others)',
        "tests/runs/test_checkpoints.py::test_resume_is_exact_to_the_bit",
    ),
    Plant(
        49,
        "groups are made after the shuffle, of answers to other prompts",
        GAE,
        "return returns.reshape(-1, group_size), mask.any(axis=1).reshape(-1, group_size)",
        "rows = jnp.arange(len(mask)).reshape(group_size, -1).T\n"
        "    return returns[rows], mask.any(axis=1)[rows]",
        f"{UPDATE}an_algorithm_is_what_its_config_says",
    ),
    Plant(
        50,
        "a group that scores alike is divided by ε",
        GAE,
        "return highest > lowest",
        "return highest >= lowest",
        f"{KIN}a_group_that_scores_alike_or_stands_alone_teaches_exactly_nothing[grpo]",
    ),
    Plant(
        51,
        "k1 in the loss, where k2 was meant",
        POLICY,
        "kl = KL_ESTIMATORS[estimator](new,",
        'kl = KL_ESTIMATORS["k1"](new,',
        f"{KIN}the_kl_in_the_loss[token_mean-k2]",
    ),
    Plant(
        52,
        "the mean over tokens has the length bias of a mean of means",
        POLICY,
        '"token_mean": jnp.ones_like(lengths),',
        '"token_mean": tokens / (rows * jnp.maximum(lengths, 1)),',
        f"{KIN}a_long_answer_weighs_less_per_token_under_the_mean_of_means_alone",
    ),
    Plant(
        53,
        "the weight of CISPO has a gradient",
        POLICY,
        "weight = jax.lax.stop_gradient(jnp.minimum(rho, highest))",
        "weight = jnp.minimum(rho, highest)",
        f"{KIN}gradients_where_a_bound_decides",
    ),
    Plant(
        54,
        "the ratio of an answer is the product of its tokens', not their mean",
        POLICY,
        "masked_mean(log_ratio, mask, axis=1)[:, None]",
        "jnp.where(mask, log_ratio, 0.0).sum(axis=1)[:, None]",
        f"{KIN}the_gradient_of_a_sequences_ratio_reaches_all_its_tokens",
    ),
    Plant(
        70,
        "DPO predicts a response from its first token on, and not from the prompt's last",
        PREFERENCE_TRAINING,
        "logits = jnp.repeat(first, K, axis=0)[:, None], later",
        "logits = later[:, :1], later",
        "tests/experiments/test_dpo.py::test_sequence_logprobs_is_the_sum_over_the_response",
    ),
    Plant(
        71,
        "IPO's target is 1/β",
        PREFERENCES,
        "return ((margin - 0.5) / beta) ** 2",
        "return ((margin - 1.0) / beta) ** 2",
        f"{PAIRS}ipo_is_least_where_log_ratios_differ_by_1_over_2_beta",
    ),
    Plant(
        72,
        "robust DPO does not divide by 1 − 2ε",
        PREFERENCES,
        "log_sigmoid(margin) - label_smoothing / (1 - 2 * label_smoothing) * margin",
        "log_sigmoid(margin) * (1 - 2 * label_smoothing) - label_smoothing * margin",
        f"{PAIRS}robust_is_unbiased_and_conservative_is_not",
    ),
    Plant(
        90,
        "pass@k as if answers were drawn with replacement: too low on average",
        "rlhf_jax/evaluation/metrics.py",
        "return 1 - np.concatenate([[1.0], missed])[right.sum(axis=1).astype(int)]",
        "return 1 - (1 - right.mean(axis=1)) ** k",
        "tests/evaluation/test_evaluation_metrics.py::test_pass_at_k_is_unbiased",
    ),
    Plant(
        91,
        "a held-out problem with its operands the other way round is taken for another one",
        "rlhf_jax/tasks/arithmetic.py",
        "return {problem.either for problem in problems}",
        "return set(problems)",
        "tests/tasks/test_arithmetic.py::test_a_problem_is_found_however_it_is_put",
    ),
    Plant(
        92,
        "a row of numbers is paid for its last one",
        "rlhf_jax/tasks/exact_match.py",
        "    if not NUMBER.fullmatch(text):",
        "    text = (text.split() or [text])[-1]\n    if not NUMBER.fullmatch(text):",
        "tests/tasks/test_exact_match.py::test_listing_all_numbers_earns_nothing",
    ),
    Plant(
        110,
        "expert iteration keeps an answer where none is better",
        SELECTION,
        "return rows, mask[rows] & differing(returns, present)",
        "return rows, mask[rows]",
        f"{SELECTED}imitation_learns_the_kept_answers_by_their_return",
    ),
    Plant(
        111,
        "expert iteration keeps an answer that is not there",
        SELECTION,
        "best = jnp.argmax(jnp.where(present, returns, -jnp.inf), axis=1)",
        "best = jnp.argmax(returns, axis=1)",
        f"{SELECTED}of_each_prompt_the_best_answer_is_kept",
    ),
    Plant(
        112,
        "online DPO compares answers to different prompts",
        SELECTION,
        "rows = jnp.arange(len(returns))[:, None] * group_size + inside",
        "rows = jnp.arange(len(returns))[:, None] + len(returns) * inside",
        f"{SELECTED}online_dpo_is_dpo_of_the_pairs_that_were_sampled[all]",
    ),
    Plant(
        113,
        "importance weights with a gradient",
        POLICY,
        "jnp.exp(jax.lax.stop_gradient(log_ratio))",
        "jnp.exp(log_ratio)",
        f"{MOVING}importance_weights_are_constants_to_a_loss",
    ),
    Plant(
        114,
        "the policy that learns samples, whatever the staleness",
        ROLLOUT,
        "sampler = policy_value.policy(params) if behaviour is None else behaviour",
        "sampler = policy_value.policy(params)",
        f"{MOVING}an_older_policy_samples_and_the_one_that_learns_says_how_likely_that_was",
    ),
    Plant(
        115,
        "older policies lie in the memory that an update takes",
        "rlhf_jax/training/moving.py",
        "return jax.tree.map(jnp.copy, params)",
        "return params",
        f"{MOVING}the_oldest_of_the_last_policies_samples",
    ),
    Plant(
        116,
        "the moved reference is the policy's own array",
        "rlhf_jax/training/moving.py",
        "return moving._replace(reference=mixed(moving.reference, policy))",
        "own = {name: policy[name] for name in moving.reference}\n"
        "    if config.reference_mix == 1:\n"
        "        return moving._replace(reference=own)\n"
        "    return moving._replace(reference=mixed(moving.reference, policy))",
        f"{MOVING}the_reference_moves_every_n_iterations[1.0]",
    ),
    Plant(
        130,
        "pairs are matched by their order and not by seed",
        STATISTICS,
        "[first[seed] - second[seed] for seed in sorted(first)]",
        "[a - b for a, b in zip(first.values(), second.values(), strict=True)]",
        f"{STUDY}statistics.py::test_pairs_are_matched_by_seed_and_not_by_order",
    ),
    Plant(
        131,
        "a direction is named before Holm's correction",
        STATISTICS,
        "    if holds_zero or p_holm > alpha:",
        "    if holds_zero:",
        f"{STUDY}statistics.py::test_a_study_of_null_effects_finds_one_in_at_most_one_of_twenty",
    ),
    Plant(
        132,
        "the interval is normal, as if the spread were known",
        STATISTICS,
        "float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(d) - 1))",
        "float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))",
        f"{STUDY}statistics.py::test_intervals_hold_the_truth_as_often_as_they_say",
    ),
    Plant(
        133,
        "stages are shared by their config, whatever they are made from",
        STUDIES_PLAN,
        "        name: in_root(value, root)",
        "        name: 0 if in_root(value, root) != value else value",
        f"{STUDY}plan.py::test_what_differs_is_shared_by_nobody[change-pretrain]",
    ),
    Plant(
        134,
        "arms of one seed count as a pair whatever they were made from",
        "rlhf_jax/studies/page.py",
        "if own[name] != other[name])",
        "if other[name] is own)",
        f"{STUDY}results.py::test_arms_of_one_seed_whose_sft_differs_are_no_pair",
    ),
    Plant(
        139,
        "a fork's objective sees a minibatch block by block",
        PPO,
        "config.packing and objective is None and",
        "config.packing and",
        f"{EPISODES}a_forks_objective_sees_its_minibatch_whole",
    ),
    Plant(
        140,
        "dynamic sampling keeps rows and not the answers to a prompt",
        DYNAMIC,
        "groups[:, None] * group_size + jnp.arange(group_size)[None]",
        "groups[:, None] + len(differ) * jnp.arange(group_size)[None]",
        f"{ROUNDS}prompts_whose_answers_differ_are_kept_in_the_order_in_which_they_came",
    ),
    Plant(
        141,
        "prompts that teach nothing count in a batch that is not filled",
        DYNAMIC,
        "mask=rounds.rollout.mask & rows",
        "mask=rounds.rollout.mask",
        f"{ROUNDS}prompts_that_teach_nothing_weigh_nothing_in_an_unfilled_batch[token_mean]",
    ),
    Plant(
        142,
        "a round's prompts are judged by the answers of another round",
        DYNAMIC,
        "differ = jnp.concatenate([rounds.differ, new.differ])",
        "differ = jnp.concatenate([new.differ, rounds.differ])",
        f"{ROUNDS}prompts_whose_answers_differ_are_kept_in_the_order_in_which_they_came",
    ),
    Plant(
        143,
        "what is logged is of the last round alone",
        DYNAMIC,
        "jax.tree.map(jnp.add, rounds[2:], new[2:])",
        "new[2:]",
        f"{ROUNDS}what_is_logged_is_of_all_that_was_sampled",
    ),
    Plant(
        144,
        "a round's key is the parent of the other rounds'",
        DYNAMIC,
        "keys = split(key, most)",
        "keys = [key, *split(key, most)]",
        f"{ROUNDS}every_round_draws_with_a_key_of_its_own_and_the_same_at_every_start",
    ),
    Plant(
        135,
        "packed answers go on counting positions where their neighbour ended",
        PACKING,
        "positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)",
        "positions = (jnp.cumsum(mask) - 1).reshape(mask.shape) % T",
        f"{PACKED}models_read_the_same[of all lengths]",
    ),
    Plant(
        136,
        "the examples of a packed row see one another",
        PACKING,
        "segments=sources.reshape(-1, length) // T + 1",
        "segments=(sources.reshape(-1, length) >= 0).astype(int)",
        f"{PACKED}models_read_the_same[of all lengths]",
    ),
    Plant(
        137,
        "each block of packed episodes counts all of them",
        PPO,
        "mask = batch.mask & block.present[:, None]",
        "mask = batch.mask",
        f"{EPISODES}an_iteration_is_the_same[PPO on one trunk, micro-batches]",
    ),
    Plant(
        138,
        "the last block of packed rows is left out",
        PACKING,
        "places.rows.max() // per_block + 1",
        "jnp.maximum(places.rows.max() // per_block, 1)",
        f"{PACKED}every_real_token_stands_in_one_row_once[of all lengths]",
    ),
    Plant(
        145,
        "SLERP turns the weights and not the task vectors",
        "rlhf_jax/models/averaging.py",
        "a, b = first - init, second - init",
        "a, b = first, second",
        f"{AVERAGES}two_policies_are_merged_along_the_sphere_about_their_start[0.2]",
    ),
    Plant(
        146,
        "a third policy comes in with its weight among all and not so far",
        "rlhf_jax/models/averaging.py",
        "share = w / total if total else 0.0",
        "share = w",
        f"{AVERAGES}further_models_come_in_one_after_the_other",
    ),
    Plant(
        147,
        "a response that was begun later is written beyond the cache",
        GENERATE,
        "first_slot + state.step % length",
        "first_slot + state.step",
        f"{SAMPLING}waiting_prompts_take_the_places_of_rows_that_have_ended[False-1-0.25]",
    ),
    Plant(
        148,
        "what a place answered goes to the row of its number",
        "rlhf_jax/rollouts/decoding.py",
        "rows = state.row[places]",
        "rows = places",
        f"{SAMPLING}waiting_prompts_take_the_places_of_rows_that_have_ended[False-3-0.1]",
    ),
    Plant(
        149,
        "the position of a row that has ended leaves the context before another takes its place",
        GENERATE,
        "jnp.where(state.done, state.cache.positions, cache.positions)",
        "cache.positions",
        f"{SAMPLING}positions_of_rows_that_have_ended_stand_still",
    ),
    Plant(
        150,
        "a row of a table counts as one line, however many it has",
        "rlhf_jax/data/csv_files.py",
        "start = reader.line_num + 1",
        "start += 1",
        f"{TABLE_FILES}rows_of_a_table_of_text_are_at_their_first_line",
    ),
    Plant(
        151,
        "a null of a table is an empty conversation, and its row is left out",
        "rlhf_jax/data/demonstrations.py",
        "    if prompt is None or key is None:\n        check_conversation(row)\n",
        "    check_conversation(row)\n    if prompt is None or key is None:\n",
        f"{TABLE_FILES}nulls_of_a_table_with_rows_of_several_kinds_say_nothing",
    ),
    Plant(
        154,
        "an earlier answer that is marked as not to be learnt is learnt",
        "rlhf_jax/data/demonstrations.py",
        "for number in _answers_among(before) if number not in marked)",
        "for number in _answers_among(before))",
        f"{TURNS}every_answer_follows_the_turns_before_it",
    ),
    Plant(
        155,
        "lengths are those of the last answers, and longer earlier ones are left out",
        "rlhf_jax/runs/fit.py",
        "        rows = every_answer(rows)\n",
        "",
        f"{TURNS}lengths_are_those_of_every_answer",
    ),
    Plant(
        156,
        "a file of the hub is read at a branch, which may have moved since the splits were listed",
        "rlhf_jax/data/hub.py",
        "repo_type=kind, revision=there.commit)",
        "repo_type=kind, revision=name.revision or None)",
        f"{HUB}all_of_a_process_reads_one_commit",
    ),
    Plant(
        157,
        "of a split in several files the first is read alone",
        "rlhf_jax/data/hub.py",
        "splits.setdefault(split_of(file), []).append(file)",
        "splits.setdefault(split_of(file), [file])",
        f"{HUB}a_split_is_fetched_and_no_other",
    ),
    Plant(
        158,
        "of the answers to one message the worst is the demonstration",
        "rlhf_jax/data/trees.py",
        "best = min(ranked,",
        "best = max(ranked,",
        f"{TREES}a_tree_as_rows_of_every_kind",
    ),
    Plant(
        159,
        "a message that reviewers refused is learnt among the answers of its tree",
        "rlhf_jax/data/trees.py",
        'return bool(message.get("deleted")) or message.get("review_result") is False',
        'return bool(message.get("deleted"))',
        f"{TREES}what_is_deleted_or_refused_is_left_out_with_its_answers",
    ),
    Plant(
        152,
        "rows read under other names are found in the cache of the old ones",
        "rlhf_jax/data/datasets.py",
        "name = digest(path, pairs)",
        "name = digest(path)",
        f"{RENAMING}other_columns_are_another_prepared_set",
    ),
    Plant(
        153,
        "a column that is empty in a row takes the place of one that is not",
        "rlhf_jax/data/renaming.py",
        "if old not in found or (beside and not said):",
        "if old not in found:",
        f"{RENAMING}an_empty_column_takes_no_place",
    ),
    Plant(
        160,
        "an answer in SentencePiece begins like a text, with a space that nobody wrote",
        "rlhf_jax/data/spelling.py",
        "self._backend if place in self._spaced else self._inside",
        "self._backend",
        "tests/data/test_sentencepiece.py::test_an_answer_goes_on_from_its_prompt",
    ),
    Plant(
        161,
        "white space that a special token strips counts as text before an answer",
        "rlhf_jax/data/markup.py",
        "elif piece.text.strip() or (piece.text and not strips):",
        "elif piece.text:",
        "tests/data/test_sentencepiece.py::test_conversations_have_the_ids_of_the_whole_text",
    ),
    Plant(
        162,
        "judges read an answer with the space that stands for the beginning of a text",
        "rlhf_jax/inference/rewards.py",
        "list(map(tokenizer.decode_answer, ids, queries[:, -1])),",
        "list(map(tokenizer.decode, ids)),",
        "tests/inference/test_spaces.py::test_a_judge_reads_the_answer_without_it",
    ),
    Plant(
        163,
        "a tokenizer goes out as it was read, without the padding that the model has a row for",
        "rlhf_jax/data/tokenizers.py",
        "if has_padding != without_padding or (rows is None and not has_padding):",
        "if has_padding != without_padding or not has_padding:",
        "tests/data/test_sentencepiece.py::test_the_file_goes_out_as_it_came_in",
    ),
    Plant(
        164,
        "of neighbouring pieces those become one first that score lowest as one",
        "rlhf_jax/data/sentencepiece.py",
        "(-score, n, (token[:at], token[at:]))",
        "(score, n, (token[:at], token[at:]))",
        "tests/data/test_sentencepiece_files.py::test_texts_have_the_ids_of_sentencepiece",
    ),
    Plant(
        165,
        "a card describes whatever lies today where a run began",
        "rlhf_jax/runs/lineage.py",
        "return place if model_digest(place) == run.models[label].digest else None",
        "return place if model_digest(place) else None",
        "tests/runs/test_hub_card.py::test_what_is_not_known_is_said",
    ),
    Plant(
        166,
        "a token stands in what the hub's refusal says",
        "rlhf_jax/interop/push.py",
        '[:300].replace(api.token, "***")',
        "[:300]",
        "tests/interop/test_push.py::test_a_refusal_is_a_sentence_without_the_token",
    ),
    Plant(
        167,
        "a template that writes no functions is taken all the same",
        "rlhf_jax/data/chat.py",
        "        if same:\n",
        "        if False:\n",
        "tests/data/test_functions.py::test_a_template_that_writes_no_functions_says_so",
    ),
    Plant(
        168,
        "the arguments of a call reach the template as text",
        "rlhf_jax/data/functions.py",
        'inside | {"arguments": arguments}',
        "inside",
        "tests/data/test_functions.py::test_a_template_is_given_functions_calls_and_results",
    ),
    Plant(
        169,
        "a mean score is over the prompt too",
        "rlhf_jax/models/scores.py",
        "mask & (jnp.arange(mask.shape[1])[None] >= start), axis=1)",
        "mask, axis=1)",
        "tests/models/test_pooling.py::test_every_way_gives_the_mean_over_the_answers_tokens",
    ),
    Plant(
        170,
        "PPO is not told where the answers begin whose mean is their score",
        "rlhf_jax/rollouts/rollout.py",
        "tokens, mask, None, start=Q)",
        "tokens, mask, None)",
        "tests/training/test_packed_episodes.py::test_a_score_that_is_a_mean_is_the_same",
    ),
    Plant(
        171,
        "the model does not know that it was trained with a mean",
        "experiments/reward.py",
        "replace(sft.model, dropout=config.dropout, pooling=config.pooling)",
        "replace(sft.model, dropout=config.dropout)",
        "tests/experiments/test_reward_options.py"
        "::test_a_score_that_is_a_mean_learns_is_kept_and_is_not_exported",
    ),
    Plant(
        172,
        "the best of n is counted as if an answer could be drawn twice",
        "rlhf_jax/evaluation/metrics.py",
        "(np.maximum(ranks - n, 0) / (ranks - 1))",
        "(((ranks - 1) / ranks) ** n * (ranks / (ranks - 1)))",
        "tests/evaluation/test_evaluation_metrics.py::test_best_of_n_is_the_mean_over_all_subsets",
    ),
    Plant(
        173,
        "a law is judged on the points that it was fitted to",
        "rlhf_jax/studies/laws.py",
        "*fit(law, d[below], gold[below])",
        "*fit(law, d, gold)",
        "tests/studies/test_laws.py::test_a_law_is_judged_on_points_that_it_has_not_seen",
    ),
    Plant(
        174,
        "an arm's best of n is picked by the first reward model and not by its own",
        "rlhf_jax/studies/results.py",
        "points = best_of[names[reward]]",
        "points = next(iter(best_of.values()))",
        f"{STUDY}results.py::test_each_arm_has_the_curve_of_its_own_reward_model",
    ),
)


# --- in the test process: a pytest plugin that notes what ran and from where ----------------------

_outcomes: list[dict] = []


def pytest_runtest_logreport(report) -> None:
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash else str(report.longrepr or "")
    _outcomes.append({"when": report.when, "outcome": report.outcome, "message": message})


def pytest_sessionfinish(session, exitstatus) -> None:
    if REPORT not in os.environ:
        return
    ours = ("rlhf_jax", "experiments", "configs")
    files = [
        getattr(m, "__file__", None) for n, m in sys.modules.items() if n.split(".")[0] in ours
    ]
    report = {"outcomes": _outcomes, "files": [file for file in files if file]}
    Path(os.environ[REPORT]).write_text(json.dumps(report))


# --- in the process that plants -------------------------------------------------------------------


class Result(NamedTuple):
    caught: bool
    why: str
    seconds: float


def copy_repository(folder: Path) -> None:
    """Into ``folder``, once: all bugs are planted in the same code, whoever edits meanwhile."""
    ignore = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "data").symlink_to(ROOT / "data")


def run_tests(folder: Path, tests: Iterable[str]) -> tuple[int | None, str, dict]:
    """pytest's exit code (None: out of time), its output, and the plugin's report."""
    path = folder / "report.json"
    path.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # old and new source may have the same size and second
        REPORT: str(path),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "tests.planted_bugs"]
    command += ["-p", "no:cacheprovider", f"--rootdir={folder}", *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, "", {}
    report = json.loads(path.read_text()) if path.is_file() else {}
    return done.returncode, done.stdout + done.stderr, report


def judge(folder: Path, plant: Plant, code: int | None, report: dict) -> tuple[bool, str]:
    """Whether the test noticed, and what it said or why its failure does not count."""
    if code is None:
        return False, f"no end after {SECONDS} s"
    if code == 0:
        return False, "the test passes"
    if code != 1 or not report:
        return False, f"pytest could not run the test (exit code {code})"
    files = [Path(file).resolve() for file in report["files"]]
    stray = [file for file in files if not file.is_relative_to(folder)]
    if stray:
        return False, f"imported from outside the copy: {stray[0]}"
    if folder / plant.file not in files:
        return False, f"{plant.file} was never imported"
    failed = [each for each in report["outcomes"] if each["outcome"] == "failed"]
    in_body = [each for each in failed if each["when"] == "call"]
    if not in_body:
        return False, "the test failed before its body ran"
    lines = [line.strip() for line in in_body[0]["message"].splitlines() if line.strip()]
    message = " ".join(lines[:3])
    if not message.startswith(("assert", "AssertionError")):
        return False, f"no assertion failed, but: {message}"
    return True, message


def plant_and_test(folder: Path, plant: Plant) -> Result:
    """Plant the bug in ``folder``, a copy of the repository, run its test there, and restore."""
    started = time.monotonic()
    file = folder / plant.file
    source = file.read_text(encoding="utf-8")
    if source.count(plant.old) != 1:
        why = f"occurs {source.count(plant.old)} times in {plant.file}: {plant.old!r}"
        return Result(False, why, 0.0)
    file.write_text(source.replace(plant.old, plant.new), encoding="utf-8")
    code, _, report = run_tests(folder, [plant.test])
    file.write_text(source, encoding="utf-8")
    caught, why = judge(folder, plant, code, report)
    return Result(caught, why, time.monotonic() - started)


def main(numbers: list[int]) -> int:
    unknown = set(numbers) - {plant.number for plant in PLANTS}
    if unknown:
        print(f"no plants {', '.join(map(str, sorted(unknown)))} in the list", file=sys.stderr)
        return 2
    chosen = [plant for plant in PLANTS if plant.number in numbers or not numbers]
    escaped = []
    with tempfile.TemporaryDirectory(prefix="planted_bugs_") as name:
        folder = Path(name).resolve()
        copy_repository(folder)
        code, output, _ = run_tests(folder, dict.fromkeys(plant.test for plant in chosen))
        if code != 0:
            print(f"{output}\nthe tests fail without any bug planted", file=sys.stderr)
            return 2
        for plant in chosen:
            result = plant_and_test(folder, plant)
            verdict = "caught" if result.caught else "NOT caught"
            print(f"{plant.number:2}  {verdict:10}  {result.seconds:4.0f} s  {plant.name}")
            print(f"    {plant.test}\n    {result.why[:160]}", flush=True)
            escaped += [] if result.caught else [plant.number]
    missed = f"; NOT caught: {escaped}" if escaped else ""
    print(f"\n{len(chosen) - len(escaped)} of {len(chosen)} caught{missed}")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))
