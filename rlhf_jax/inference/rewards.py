"""The rewards that PPO is told of: reward models, Python functions, a task's gold scorer.

A reward model of the policy's own tokenizer scores the sampled tokens, on the devices and within
the rollout. Everything else scores text, between the rollout and the update:

    def short(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]: ...

asks for the columns ``prompts``, ``responses`` and, by its name, any other column of the prompts'
rows. ``**columns`` asks for all of them.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from rlhf_jax.config import PPOConfig
from rlhf_jax.config.rewards import RewardSource, reward_names, reward_source
from rlhf_jax.data.chat import as_text
from rlhf_jax.data.encoding import encode_comparisons
from rlhf_jax.data.fates import full_lengths, of_prompts
from rlhf_jax.data.formats import Comparison, Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.errors import InputError, RunError, check
from rlhf_jax.models.heads import ScalarModel, make_scalar_model
from rlhf_jax.python_files import load_file
from rlhf_jax.runs.kept_steps import figures_of
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.trained import (
    Trained,
    check_model,
    load_trained,
    load_value_init,
    policy_as_value,
    same_tokenizer,
    value_start,
    with_zero_head,
)
from rlhf_jax.tasks.task import read_task
from rlhf_jax.training.parallel import Parallel
from rlhf_jax.types import Params, Rollout

PARAMETERS = ("prompts", "responses")
"""What every reward function is given, in this order."""


class Answers(NamedTuple):
    """Some episodes as text, in the order of their rows."""

    prompts: list[Prompt]
    texts: list[str]
    ended: list[bool]
    """Whether the policy ended the answer itself."""


TextReward = Callable[[Answers], Float[Array, "B"]]
"""One score for each row that this process holds -> those of all rows, on the devices."""


class Rewards(NamedTuple):
    """What ``--reward`` and ``--second-reward.model`` name, loaded."""

    token_models: dict[str, Trained]
    """Reward models of the policy's tokenizer: they score what was sampled."""
    functions: dict[str, Callable]
    """Python functions, and gold scorers: (prompts, responses, **columns) -> scores."""
    text_models: dict[str, Trained]
    """Reward models of another tokenizer, which are given the text."""

    @property
    def models(self) -> dict[str, ScalarModel]:
        """The functions of ``token_models``, as ``make_policy_optimization`` takes them."""
        return {n: make_scalar_model(r.model, r.vocab_size) for n, r in self.token_models.items()}

    @property
    def params(self) -> dict[str, Params]:
        """Their parameters."""
        return {name: reward.params for name, reward in self.token_models.items()}


def load_rewards(config: PPOConfig, policy: Trained, parallel: Parallel) -> Rewards:
    """The rewards by their names (``reward_names``), and "second" where there is a second one.

    Raises InputError for what is not there or is no reward.
    """
    rewards = Rewards({}, {}, {})
    path_of = dict(zip(reward_names(config.reward), config.reward, strict=True))
    for name, path in path_of.items():
        source = reward_source(path)
        if source.kind == "model":
            _take_model(rewards, name, path, "reward", policy, parallel)
        elif source.kind == "gold":
            rewards.functions[name] = gold_function(str(source.place), config.source)
        else:
            rewards.functions[name] = load_function(source)
    if config.second_reward.model is not None:
        flag = "second-reward.model"
        _take_model(rewards, "second", config.second_reward.model, flag, policy, parallel)
    return rewards


def _take_model(
    rewards: Rewards, name: str, path: Path, flag: str, policy: Trained, parallel: Parallel
) -> None:
    load = partial(load_trained, flag=flag, kind="scalar", shardings=parallel.shardings)
    reward = load(path, share=policy)
    # Equal ids mean equal text, so the sampled tokens can be scored where they lie.
    if reward.tokenizer.digest == policy.tokenizer.digest:
        rewards.token_models[name] = reward
        return
    say(f"--{flag} {path} has another tokenizer than --init: it scores the text of the answers")
    rewards.text_models[name] = reward


def check_reward_models(config: PPOConfig) -> None:
    """Raise RunError if a reward model is under the gate: PPO optimises whatever it is given."""
    for path in config.reward:
        if reward_source(path).kind == "model":
            _check_reward_model(config, path)


def _check_reward_model(config: PPOConfig, path: Path) -> None:
    check_model(path, flag="reward")
    accuracy = figures_of(path).get("eval/accuracy")
    if config.force or (accuracy is not None and accuracy >= config.min_reward_accuracy):
        return
    lack, advice = "has no accuracy that was measured", "Train it with a held-out part"
    if accuracy is not None:
        lack = f"orders {accuracy:.3f} of held-out pairs as labelled"
        advice = "Train it on more comparisons"
    raise RunError(
        f"the reward model {path} {lack}, but min_reward_accuracy={config.min_reward_accuracy}: "
        f"PPO would optimise its errors. {advice}, or go on with --force True (in a chain "
        "--ppo.force True)"
    )


def gold_function(task: str, source: Path) -> Callable:
    """The scorer that stands for people in a task, as a function that asks for no column."""
    gold = read_task(task, source).gold

    def score(prompts, responses):
        return gold(prompts, responses)

    return score


def load_function(source: RewardSource) -> Callable:
    """The function FILE.py:FUNCTION. Raises InputError if it is not there or takes no two lists."""
    flag = f"--reward {source.place}:{source.function}"
    module = load_file(source.place, flag=flag)
    function = getattr(module, source.function, None)
    if not callable(function):
        there = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(
            f"{flag}: {source.place} has no function {source.function!r}, "
            f"only {', '.join(there) or 'none'}"
        )
    # Looked at now: a wrong signature would else fail after the first rollout.
    names = list(inspect.signature(function).parameters)
    check(
        names[:2] == list(PARAMETERS),
        f"{flag}: its parameters are ({', '.join(names)}), expected (prompts, responses, ...) and "
        "then names of columns",
    )
    return function


# --- between the rollout and the update -----------------------------------------------------------


def make_text_scoring(
    rewards: Rewards,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    parallel: Parallel,
    *,
    response_length: int,
) -> Callable[[Rollout, np.ndarray], Rollout]:
    """``(rollout, index) -> the rollout with the scores of its text``.

    ``index`` are the numbers of the prompts in the rows that this process holds; each process
    scores its own. Without a reward that reads text nothing is fetched from the devices.
    """
    scorers: dict[str, TextReward] = {
        name: _function_scorer(name, function, prompts, parallel)
        for name, function in rewards.functions.items()
    }
    for name, reward in rewards.text_models.items():
        scorers[name] = _text_model_scorer(reward, prompts, parallel, response_length)

    def score(rollout: Rollout, index: np.ndarray) -> Rollout:
        # Nothing is fetched then, so that a run of token models never waits for the host.
        if not scorers:
            return rollout
        queries, *sampled = parallel.local((rollout.queries, rollout.responses, rollout.mask))
        ids = [[int(i) for i in row[mask]] for row, mask in zip(*sampled, strict=True)]
        answers = Answers(
            [prompts[int(i)] for i in index],
            list(map(tokenizer.decode_answer, ids, queries[:, -1])),
            [bool(row) and row[-1] in tokenizer.end_ids for row in ids],
        )
        scores = {name: scorer(answers) for name, scorer in scorers.items()}
        return rollout._replace(scores={**rollout.scores, **scores})

    return score


def _function_scorer(
    name: str, function: Callable, prompts: Sequence[Prompt], parallel: Parallel
) -> TextReward:
    parameters = list(inspect.signature(function).parameters.values())[2:]
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    wanted = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    needed = {p.name for p in parameters if p.default is p.empty and p.name in wanted}
    take = partial(columns_of, wanted=wanted, needed=needed, where=f"the reward {name}")
    if needed:  # of all rows: better missed now than in the iteration that comes to it
        take(prompts, every=False)

    def score(answers: Answers) -> Float[Array, "B"]:
        columns = take(answers.prompts, every=every)
        scores = call(name, function, answers, columns)
        return parallel.shard(np.asarray(scores, jax.dtypes.canonicalize_dtype(float)))

    return score


def columns_of(
    prompts: Sequence[Prompt], wanted: Sequence[str], needed: set[str], every: bool, *, where: str
) -> dict[str, list[Any]]:
    """The columns of the prompts' rows that a function asks for by name, or all of them.

    None where a row lacks an optional one. Raises InputError naming the first row without one that
    is needed.
    """
    rows = [row.columns or {} for row in prompts]
    names = dict.fromkeys(wanted)
    if every:
        names |= dict.fromkeys(n for row in rows for n in row if n not in PARAMETERS)
    for prompt, row in zip(prompts, rows, strict=True):
        missing = [name for name in wanted if name in needed and name not in row]
        check(
            not missing,
            f"{_place(prompt)}: no column {', '.join(missing)}, which {where} asks for; it has "
            f"{', '.join(row) or 'no other column'}",
        )
    present = [n for n in names if n in needed or any(n in row for row in rows)]
    return {name: [row.get(name) for row in rows] for name in present}


def call(
    name: str, function: Callable, answers: Answers, columns: dict[str, list[Any]]
) -> list[float]:
    """The scores of a batch. Raises RunError that names the row with which something is wrong."""
    asked = [as_text(row.prompt) for row in answers.prompts]
    try:
        scores = function(asked, answers.texts, **columns)
    except Exception as error:
        # Asked again row by row, only after a failure, to name the row.
        at = _first_failing(function, asked, answers.texts, columns)
        row = "" if at is None else f" on {_place_of_answer(answers, at)}"
        raise RunError(f"the reward {name} failed{row}: {type(error).__name__}: {error}") from error
    try:
        scores = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise RunError(
            f"the reward {name} returned a {type(scores).__name__} that is no list of numbers "
            f"({error}), expected one for each of {len(asked)} responses"
        ) from None
    if len(scores) != len(asked):
        raise RunError(f"the reward {name} gave {len(scores)} scores of {len(asked)} responses")
    for at, score in enumerate(scores):
        if not math.isfinite(score):
            raise RunError(
                f"the reward {name} is {score} of {_place_of_answer(answers, at)}, "
                "expected a finite number"
            )
    return scores


def _first_failing(
    function: Callable, asked: list[str], texts: list[str], columns: dict[str, list[Any]]
) -> int | None:
    """The first row that fails alone; None if each alone is well."""
    for at in range(len(asked)):
        try:
            one = {name: column[at : at + 1] for name, column in columns.items()}
            function(asked[at : at + 1], texts[at : at + 1], **one)
        except Exception:
            return at
    return None


def _place_of_answer(answers: Answers, at: int) -> str:
    return f"the answer {answers.texts[at]!r} to {_place(answers.prompts[at])}"


def _place(row: Prompt) -> str:
    """The row's file and number, or its prompt where rows were prepared and keep no origin."""
    return str(row.origin) if row.origin is not None else f"prompt {as_text(row.prompt)[:80]!r}"


def _text_model_scorer(
    reward: Trained, prompts: Sequence[Prompt], parallel: Parallel, response_length: int
) -> TextReward:
    """A reward model with a tokenizer, and perhaps a chat template, of its own.

    Answers have up to twice the policy's tokens there before they are cut, and prompts the rest of
    the model's context, of which they keep the end.
    """
    tokenizer, context = reward.tokenizer, reward.model.context
    longest = max(
        full_lengths(fate)["prompt"] for fate in of_prompts(prompts, tokenizer, prompt_length=None)
    )
    # Another tokenizer may need more tokens for the same text; twice is ample between languages'
    # BPEs.
    answer = min(2 * response_length, context // 2)
    lengths = dict(query_length=min(longest, context - answer), response_length=answer)
    if longest > lengths["query_length"]:
        say(f"prompts of up to {longest} tokens are cut to {lengths['query_length']} to be scored")
    model = make_scalar_model(reward.model, reward.vocab_size)
    params = parallel.place(reward.params)

    @parallel.function
    def scores_of(params, *batch):
        return model.score_responses(params, *batch, None)[:, 0]

    said = False

    def score(answers: Answers) -> Float[Array, "B"]:
        nonlocal said
        rows = [
            Comparison(row.prompt, (text,), (0,))
            for row, text in zip(answers.prompts, answers.texts, strict=True)
        ]
        batch, report = encode_comparisons(rows, tokenizer, **lengths, everything=True)
        if report.cut.get("response") and not said:
            said = True
            say(f"answers are cut to {answer} of the reward model's tokens to be scored")
        # The last row is the empty one. An answer that the policy did not end has no end here.
        # Encoding adds an end to every text, and a reward model has learnt that an end is good.
        queries, query_mask, responses, mask = (x[:-1] for x in batch[:4])
        ends = mask & np.isin(responses, tokenizer.end_ids)
        mask &= ~(ends & ~np.array(answers.ended)[:, None, None])
        return scores_of(params, *parallel.shard((queries, query_mask, responses, mask)))

    return score


# --- the value network ----------------------------------------------------------------------------


def load_value_start(
    config: PPOConfig, policy: Trained, rewards: Rewards, parallel: Parallel
) -> Trained:
    """What the value network starts from: ``--value-init``, else the first reward model.

    Where no reward model reads the policy's tokens it is the policy with a head of 0, so that the
    first values are 0; so it is with ``--value-head zero`` on the trunk of whatever is named.
    """
    field, path = value_start(config, policy.tokenizer)
    if field == "value_init":
        value = load_value_init(path, share=policy, shardings=parallel.shardings)
        same_tokenizer(policy, value, ("init", "value-init"))
    elif field == "init":
        if config.value_trunk == "separate":
            say("no reward model reads the policy's tokens: the value network starts as the policy")
        return policy_as_value(policy)
    else:
        names = dict(zip(config.reward, reward_names(config.reward), strict=False))
        value = rewards.token_models[names[path]]
    return with_zero_head(value) if config.value_head == "zero" else value
