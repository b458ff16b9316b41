"""Talk to any checkpoint in the terminal; the answer appears as it is sampled.

python -m experiments.sample --init runs/quickstart/ppo
echo "Write a positive review: this film is" | python -m experiments.sample --init RUN
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp

from experiments.trained import load_trained
from rlhf_jax.cli import main
from rlhf_jax.config import SampleConfig
from rlhf_jax.data.batches import query_batches
from rlhf_jax.data.formats import Prompt
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.rollouts.filters import draw, filter_logits, greedy


def run(config: SampleConfig) -> None:
    trained = load_trained(config.init, flag="init")
    tokenizer, model = trained.tokenizer, trained.model
    query_length = model.context - config.response_length
    lm = make_language_model(model, trained.vocab_size)
    prefill = jax.jit(partial(lm.prefill, length=config.response_length))
    decode = jax.jit(lm.decode, donate_argnums=2)

    @jax.jit
    def pick(logits, key, t):
        if config.sampling.temperature == 0:
            return greedy(logits)[0]
        options = vars(config.sampling)
        return draw(jax.random.fold_in(key, t)[None], filter_logits(logits, **options))[0]

    def answer(prompt: str, key):
        """Ids one by one, up to the end of text."""
        query = next(
            query_batches(
                [Prompt(prompt)], tokenizer, query_length=query_length, batch_size=1, seed=None
            )
        )
        logits, cache = prefill(trained.params, query.queries, query.query_mask)
        for t in range(config.response_length):
            token = pick(logits, key, jnp.int32(t))
            if int(token[0]) == tokenizer.eos_id:
                return
            yield int(token[0])
            logits, cache = decode(trained.params, token, cache)

    key = jax.random.key(config.seed)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{config.init}: type a prompt, Enter to send, Ctrl-D to leave")
    for number, prompt in enumerate(read_prompts(interactive)):
        for piece in stream_text(tokenizer, answer(prompt, jax.random.fold_in(key, number))):
            print(piece, end="", flush=True)
        print()


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
