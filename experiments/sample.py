"""Talk to any checkpoint in the terminal; the answer appears as it is sampled.

    python -m experiments.sample --init runs/quickstart/ppo
    echo "Write a positive review: this film is" | python -m experiments.sample --init RUN
    python -m experiments.sample --init SmolLM2-135M-Instruct.gguf --sampling.temperature 0

A model with a chat template is spoken to through it; typed lines are then one conversation, piped
ones each their own.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp

from experiments.trained import Trained, load_trained
from rlhf_jax.cli import main
from rlhf_jax.config import SampleConfig
from rlhf_jax.data.chat import Message
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.rollouts.filters import draw, filter_logits, greedy
from rlhf_jax.training.progress import say
from rlhf_jax.training.startup import start


def run(config: SampleConfig) -> None:
    start(tune_malloc=False, compile_cache=config.compile_cache)
    trained = load_trained(config.init, flag="init")
    answer = make_answer(config, trained)
    tokenizer = trained.tokenizer
    chat = config.chat and tokenizer.chat_template is not None
    opening = (Message("system", config.system),) if config.system else ()
    if opening and not chat:
        say(f"note: --system has no effect: {config.init} is spoken to without a chat template")
    key = jax.random.key(config.seed)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{config.init}: type a prompt, Enter to send, Ctrl-D to leave")
    messages = opening
    for number, prompt in enumerate(read_prompts(interactive)):
        if not interactive:
            messages = opening
        messages = (*messages, Message("user", prompt))
        encode = tokenizer.encode_chat if chat else tokenizer.encode_beginning
        ids = encode(messages if chat else prompt)
        text = ""
        for piece in stream_text(tokenizer, answer(ids, jax.random.fold_in(key, number))):
            print(piece, end="", flush=True)
            text += piece
        print()
        messages = (*messages, Message("assistant", text))


def make_answer(config: SampleConfig, trained: Trained):
    """``(ids, key) -> ids of the answer``, one by one, up to what ends it."""
    tokenizer, model = trained.tokenizer, trained.model
    model.check_context(prompt_length=1, response_length=config.response_length)
    lm = make_language_model(model, trained.vocab_size)
    prefill = jax.jit(partial(lm.prefill, length=config.response_length))
    decode = jax.jit(lm.decode, donate_argnums=2)

    @jax.jit
    def pick(logits, key, t):
        if config.sampling.temperature == 0:
            return greedy(logits)[0]
        options = vars(config.sampling)
        return draw(jax.random.fold_in(key, t)[None], filter_logits(logits, **options))[0]

    def answer(ids, key):
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


def read_prompts(interactive: bool):
    while True:
        try:
            line = input("> " if interactive else "")
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line


def stream_text(tokenizer, ids):
    """Text as it grows; bytes of a character that is not complete yet are held back."""
    held = b""
    for token in ids:
        held += tokenizer.decode_bytes([token])
        text = held.decode("utf-8", errors="ignore")
        if text.encode() == held:
            yield text
            held = b""
    yield held.decode("utf-8", errors="replace")


if __name__ == "__main__":
    main(run, SampleConfig)
