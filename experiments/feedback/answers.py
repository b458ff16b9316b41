"""Answers for the queue and for the chat, by the newest policy.

Called by ``experiments.feedback`` (sample, answer) and by the rounds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import jax
import numpy as np

from experiments.feedback import stages
from rlhf_jax.config import FeedbackAnswerConfig, FeedbackSampleConfig
from rlhf_jax.data.chat import Conversation, as_text
from rlhf_jax.data.formats import Comparison, Prompt, read_prompts
from rlhf_jax.errors import InputError, known
from rlhf_jax.feedback import conversation, figures, queue
from rlhf_jax.feedback.database import open_database
from rlhf_jax.feedback.store import Database, StoreUnavailable
from rlhf_jax.feedback.texts import map_text
from rlhf_jax.inference.reward_scores import disagreement, make_reward_scorer
from rlhf_jax.inference.sampler import make_sampler
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.runs.fit import fit_answers, fit_prompts, row_lengths
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.startup import start
from rlhf_jax.runs.trained import Trained, load_trained, trained_lengths
from rlhf_jax.text.personal_data import scrub_typed
from rlhf_jax.training.parallel import make_parallel

PROMPTS_AT_ONCE = 16
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 120.0
"""An answering process that has said nothing for so long is taken for gone."""


# --- the queue ------------------------------------------------------------------------------------


def sample(config: FeedbackSampleConfig) -> None:
    """Fill the queue once with answers of the newest policy."""
    prepare(config)
    database = open_database(config.place)
    number = newest(database)
    for _ in fill(config, database, number, load_policy(config, number)):
        pass
    say(f"feedback: {queue.count_open(database)} tasks are open")


def fill(
    config: FeedbackSampleConfig, database: Database, number: int, policy: Trained
) -> Iterator[None]:
    """Answer prompts and put those worth asking into the queue; yields between batches.

    Chosen by disagreement, ``candidates`` times as many prompts are answered as are kept.
    """
    by_disagreement = config.choice == "disagreement" and number > 0
    count = config.tasks_per_round * (config.candidates if by_disagreement else 1)
    prompts = next_prompts(config, database, count)
    K = config.responses_per_prompt
    parallel = make_parallel(config.ppo.parallel)
    lengths = fit_prompts(
        config.ppo,
        map(Prompt, prompts),
        policy.tokenizer,
        trained=(stages.policy(config, number), stages.sft(config)),
        context=policy.model.context,
        stage="feedback",
    )
    sampler = make_sampler(
        make_language_model(policy.model, policy.vocab_size),
        policy.tokenizer,
        parallel,
        config.sampling,
        **row_lengths(lengths),
        prompts_per_batch=PROMPTS_AT_ONCE,
        responses_per_prompt=K,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), task_number(database))
    groups: list[list[queue.Response]] = []
    for sampled in sampler(policy.params, prompts, key):
        logprobs = np.asarray((sampled.generation.logprobs * sampled.generation.mask).sum(axis=1))
        answers = [
            queue.Response(text, stages.policy_name(config, number), tuple(ids), float(logprob))
            for text, ids, logprob in zip(sampled.texts, sampled.tokens, logprobs, strict=False)
        ]
        groups += [answers[n : n + K] for n in range(0, len(answers), K)]
        yield
    priorities = np.zeros(len(groups))
    if by_disagreement:
        priorities = disagreement(ensemble_scores(config, number, prompts, groups))
    order = np.argsort(-priorities, kind="stable")[: config.tasks_per_round]
    queue.add_tasks(database, list(new_tasks(config, number, order, prompts, groups, priorities)))


def new_tasks(
    config: FeedbackSampleConfig, number: int, order, prompts, groups, priorities
) -> Iterator[queue.NewTask]:
    """Tasks of the chosen prompts; equal answers are asked about once."""
    dice = np.random.default_rng([config.seed, number])
    for n in order:
        distinct = list({answer.text: answer for answer in groups[n]}.values())
        # Some prompts go to two labelers, or nobody would know how far they agree.
        twice = dice.random() < config.overlap
        if len(distinct) > 1:
            yield queue.NewTask(
                prompts[n],
                distinct,
                round=number,
                priority=float(priorities[n]),
                wanted=2 if twice else 1,
                sampling=vars(config.sampling),
            )


def next_prompts(
    config: FeedbackSampleConfig, database: Database, count: int
) -> list[str | Conversation]:
    """Prompts that were not asked yet, in the file's order; from its beginning when all were."""
    path = config.prompts or stages.data(config) / "prompts_comparisons.jsonl"
    clean = scrub_typed if config.serve.scrub else str
    prompts = list(dict.fromkeys(map_text(clean, row.prompt) for row in read_prompts(path)))
    # As texts: older stores have the conversations that they asked as one string.
    asked = set(map(as_text, queue.prompts_asked(database)))
    new = [prompt for prompt in prompts if as_text(prompt) not in asked]
    return (new + prompts)[:count]


def ensemble_scores(config: FeedbackSampleConfig, number: int, prompts, groups) -> np.ndarray:
    """Scores of every answer by each of a round's reward models, [M, P, K]."""
    rows = [
        Comparison(
            prompt,
            tuple(answer.text for answer in group),
            tuple(range(len(group))),
            tuple(answer.tokens for answer in group),
        )
        for prompt, group in zip(prompts, groups, strict=False)
    ]
    folders = [stages.reward_model(config, number, m) for m in range(config.ensemble)]
    return np.stack([scores_of(config, folder, rows) for folder in folders])


def scores_of(config: FeedbackSampleConfig, folder, rows: Sequence[Comparison]) -> np.ndarray:
    """A reward model's score of each answer, [prompts, K]."""
    model = load_trained(folder, flag="reward", kind="scalar")
    lengths = {n: getattr(config.reward, n) for n in ("prompt_length", "response_length")}
    if None in lengths.values():
        lengths = trained_lengths(folder)
    scalar = make_scalar_model(model.model, model.vocab_size)
    parallel = make_parallel(config.reward.parallel)
    score = make_reward_scorer(scalar, model.tokenizer, parallel, **lengths)
    return score(model.params, rows).scores


def task_number(database: Database) -> int:
    """Changes with every task, so that each filling samples anew."""
    return len(queue.prompts_asked(database))


def load_policy(config: FeedbackSampleConfig, number: int) -> Trained:
    """The policy of a round."""
    return load_trained(stages.policy(config, number), flag="run")


# --- the chat -------------------------------------------------------------------------------------


def answer(config: FeedbackAnswerConfig) -> None:
    """Answer the chat by the newest policy and keep the queue filled, until stopped."""
    prepare(config)
    database = open_database(config.place)
    current: tuple[int, Trained, Callable] | None = None
    told = 0.0
    while True:
        # A store that is away for a moment is no reason to leave people without answers.
        with suppress(StoreUnavailable):
            number = newest(database)
            if current is None or current[0] != number:
                policy = load_policy(config, number)
                current = number, policy, make_reply(config, policy, number)
            _, policy, reply = current
            answer_all(database, reply)
            if wants_tasks(config, database, number):
                tell(database, "sample", number)
                for _ in fill(config, database, number, policy):
                    answer_all(database, reply)
                    tell(database, "sample", number)
            if time.monotonic() - told > HEARTBEAT_SECONDS:
                tell(database, "ready", number)
                told = time.monotonic()
        time.sleep(POLL_SECONDS)


def wants_tasks(config: FeedbackAnswerConfig, database: Database, number: int) -> bool:
    """Whether the queue runs low, or has nothing of the newest policy yet."""
    low = queue.count_open(database) < config.queue
    return low or number not in queue.rounds_asked(database)


def somebody_answers(database: Database) -> bool:
    """Whether a process answers, which then fills the queue too."""
    told = figures.read_status(database).get("answerer", {"updated": 0.0})["updated"]
    return time.time() - told < SILENT_SECONDS


def tell(database: Database, phase: str, number: int) -> None:
    """Say in the store what this process does."""
    figures.set_status(database, "answerer", phase=phase, round=number)


def answer_all(database: Database, reply: Callable) -> None:
    """Answer every message that waits."""
    for question in conversation.waiting(database):
        reply(database, question)


def make_reply(config: FeedbackAnswerConfig, policy: Trained, number: int) -> Callable:
    """``(database, question)``: store ``chat_answers`` answers of the policy to a message."""
    fitted = fit_answers(config.ppo, stages.policy(config, number), stages.sft(config))
    response_length = known(fitted.response_length)
    sampler = make_sampler(
        make_language_model(policy.model, policy.vocab_size),
        policy.tokenizer,
        make_parallel(config.ppo.parallel),
        config.sampling,
        prompt_length=policy.model.context - response_length,
        response_length=response_length,
        prompts_per_batch=1,
        responses_per_prompt=config.chat_answers,
    )

    def reply(database: Database, question: conversation.Question) -> None:
        # Another question, another key; the same question after a crash, the same answer.
        key = jax.random.fold_in(jax.random.key(config.seed), int(question.turn[:7], 16))
        try:
            (sampled,) = sampler(policy.params, [question.prompt], key)
        except (InputError, ValueError) as error:
            say(f"feedback: could not answer ({error})")
            conversation.give_up(database, question)
            return
        answers = [
            queue.Response(text, stages.policy_name(config, number), tuple(ids))
            for text, ids in zip(sampled.texts, sampled.tokens, strict=True)
        ]
        names = {"round": number, "sampling": vars(config.sampling)}
        conversation.answer(database, question, answers, **names)

    return reply


# --- shared ---------------------------------------------------------------------------------------


def prepare(config: FeedbackSampleConfig) -> None:
    """Memory and compiled programs, before the first computation."""
    stages.check_sft(config)
    run = config.ppo.run
    start(tune_malloc=run.tune_malloc, compile_cache=stages.programs(config, run))


def newest(database: Database) -> int:
    """Number of the newest published round."""
    rounds = figures.read_rounds(database)
    return rounds[-1]["round"] if rounds else 0
