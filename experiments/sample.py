"""Talk to any checkpoint in the terminal; the answer appears as it is sampled.

    python -m experiments.sample --init runs/quickstart/ppo
    echo "Write a positive review: this film is" | python -m experiments.sample --init RUN
    python -m experiments.sample --init SmolLM2-135M-Instruct.gguf --sampling.temperature 0

A model with a chat template is spoken to through it; typed lines are then one conversation, piped
ones each their own. ``/help`` lists what else can be typed (rlhf_jax/inference/session.py).
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp

from rlhf_jax.cli import main
from rlhf_jax.config import SampleConfig
from rlhf_jax.inference.session import Session, answer_lines, converse
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.rollouts.filters import draw, filter_logits, greedy
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.startup import start
from rlhf_jax.runs.trained import Trained, load_trained


def run(config: SampleConfig) -> None:
    """Answer what is typed or piped."""
    start(tune_malloc=False, compile_cache=config.compile_cache)
    trained = load_trained(config.init, flag="init")
    chat = config.chat and trained.tokenizer.chat_template is not None
    if config.system and not chat:
        say(f"note: --system has no effect: {config.init} is spoken to without a chat template")
    make = partial(make_streamed_answer, trained=trained)
    session = Session(config, trained.tokenizer, chat, make(config))
    if sys.stdin.isatty() and sys.stdout.isatty():
        converse(session, make)
    else:
        answer_lines(session, sys.stdin.buffer)


def make_streamed_answer(config: SampleConfig, trained: Trained):
    """``(ids, number) -> ids of the answer``, one by one, up to what ends it: Session.answer."""
    tokenizer, model = trained.tokenizer, trained.model
    model.check_context(prompt_length=1, response_length=config.response_length)
    lm = make_language_model(model, trained.vocab_size)
    prefill = jax.jit(partial(lm.prefill, length=config.response_length))
    decode = jax.jit(lm.decode, donate_argnums=2)

    @jax.jit
    def pick(logits, key, t):
        if config.sampling.temperature == 0:
            return greedy(logits)[0]
        s = config.sampling
        filtered = filter_logits(logits, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p)
        return draw(jax.random.fold_in(key, t)[None], filtered)[0]

    def answer(ids, number):
        # By the answer's number: the same session gives the same answers.
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        room = model.context - config.response_length
        if len(ids) > room:
            say(f"of {len(ids)} tokens the last {room} are read: the model's context is full")
        ids = tokenizer.last_ids(ids, room)
        # Lengths in steps of 32: a program is compiled for each, not for each prompt.
        missing = -len(ids) % 32
        query = jnp.array([[tokenizer.pad_id] * missing + ids], jnp.int32)
        mask = jnp.arange(query.shape[1])[None] >= missing
        logits, cache = prefill(trained.params, query, mask)
        for t in range(config.response_length):
            token = pick(logits, key, jnp.int32(t))
            if int(token[0]) in tokenizer.end_ids:
                return
            yield int(token[0])
            logits, cache = decode(trained.params, token, cache)

    return answer


if __name__ == "__main__":
    main(run, SampleConfig)
