"""Any checkpoint in EleutherAI's lm-evaluation-harness, without torch.

    python -m experiments.harness --init runs/quickstart/ppo --tasks lambada_openai piqa
    python -m experiments.harness --init gpt2/ --tasks my_task --include-path tasks/

In Python: ``lm_eval.simple_evaluate(model=HarnessModel(trained, ...), tasks=[...])``.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval import simple_evaluate, utils
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from experiments.trained import Trained, load_trained
from rlhf_jax.cli import main
from rlhf_jax.config import HarnessConfig
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.objectives.logprobs import token_logprobs
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.training.runs import write_atomically

BUCKET = 64
"""Lengths are padded to multiples of this, so that few programs are compiled."""


def run(config: HarnessConfig) -> dict[str, Any]:
    model = HarnessModel(
        load_trained(config.init, flag="init"),
        batch_size=config.batch_size,
        max_gen_toks=config.max_gen_toks,
        seed=config.seed,
    )
    manager = TaskManager(include_path=str(config.include_path) if config.include_path else None)
    results = simple_evaluate(
        model=model,
        tasks=list(config.tasks),
        num_fewshot=config.num_fewshot,
        limit=config.limit or None,
        task_manager=manager,
        bootstrap_iters=1000,
    )
    print(utils.make_table(results))
    if config.out is not None:
        write_atomically(config.out, json.dumps(results["results"], indent=2, default=str) + "\n")
    return results["results"]


class HarnessModel(TemplateLM):
    """The three requests of the harness, answered by one language model.

    Log-likelihoods are in nats at temperature 1; a text begins after end of text, as in training.
    """

    def __init__(self, trained: Trained, *, batch_size: int, max_gen_toks: int, seed: int):
        super().__init__()
        self.trained, self.batch_size, self.max_gen_toks = trained, batch_size, max_gen_toks
        self._key = jax.random.key(seed)
        self._lm = make_language_model(trained.model, trained.vocab_size)

        @jax.jit
        def score(params, tokens, mask, targets):
            logits = self._lm.logits(params, tokens[:, :-1], mask[:, :-1], start=0)
            targets, wanted = targets[:, 1:], tokens[:, 1:]
            logprobs = jnp.where(targets, token_logprobs(logits, wanted), 0.0)
            greedy = (logits.argmax(axis=-1) == wanted) | ~targets
            return logprobs.sum(axis=1), greedy.all(axis=1)

        self._score = score

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        return self.trained.model.context

    @property
    def tokenizer_name(self) -> str:
        return self.trained.tokenizer.digest

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        return self.trained.tokenizer.encode(string)

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        raise NotImplementedError("chat templates are not supported here: evaluate the plain text")

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
        def encode(request):
            _, context, continuation = request
            ids = [*context, *continuation][-(self.max_length + 1) :]
            return ids, len(continuation)

        return self._in_batches(map(encode, requests), self._score_batch)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        totals = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(("", ""), *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        return [self._generate(text, dict(options)) for text, options in (r.args for r in requests)]

    def _score_batch(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        longest = max(len(ids) for ids, _ in rows)
        shape = (self.batch_size, -(-(longest - 1) // BUCKET) * BUCKET + 1)
        tokens = np.full(shape, self.trained.tokenizer.pad_id, np.int32)
        mask, targets = np.zeros(shape, bool), np.zeros(shape, bool)
        for row, (ids, counted) in enumerate(rows):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
            targets[row, len(ids) - min(counted, len(ids) - 1) : len(ids)] = True
        scored = self._score(self.trained.params, *map(jnp.asarray, (tokens, mask, targets)))
        logprobs, greedy = map(np.asarray, scored)
        return [(float(logprobs[i]), bool(greedy[i])) for i in range(len(rows))]

    def _in_batches(self, rows: Iterable, work: Callable) -> list:
        """``work`` on batches of rows of similar length; results in the order given."""
        rows = list(rows)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        results: list[Any] = [None] * len(rows)
        for start in range(0, len(rows), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for i, result in zip(chosen, work([rows[i] for i in chosen]), strict=True):
                results[i] = result
        return results

    @lru_cache(maxsize=8)  # noqa: B019 (a model lives as long as the process)
    def _sampler(self, **options: float):
        ids = {"eos_id": self.eot_token_id, "pad_id": self.trained.tokenizer.pad_id}
        return jax.jit(partial(generate, self._lm, **options, **ids))

    def _generate(self, text: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else until
        length = int(options.get("max_gen_toks", self.max_gen_toks))
        sampled = options.get("do_sample", False) and options.get("temperature", 1.0)
        ids = self.tok_encode(text)[-(self.max_length - length) :]
        missing = -len(ids) % BUCKET
        tokenizer = self.trained.tokenizer
        tokens = jnp.array([[tokenizer.pad_id] * missing + ids], jnp.int32)
        mask = jnp.arange(tokens.shape[1])[None] >= missing
        self._key, key = jax.random.split(self._key)
        sample = self._sampler(
            length=length,
            temperature=float(sampled or 0.0),
            top_k=int(options.get("top_k", 0)),
            top_p=float(options.get("top_p", 1.0)),
        )
        generation = sample(self.trained.params, tokens, mask, row_keys(key, 1))
        answer = tokenizer.decode(np.asarray(generation.responses)[np.asarray(generation.mask)])
        for stop in until:
            answer = answer.split(stop)[0] if stop else answer
        return answer


if __name__ == "__main__":
    main(run, HarnessConfig)
