"""Any checkpoint in EleutherAI's lm-evaluation-harness, without torch.

    python -m experiments.harness --init runs/quickstart/ppo --tasks lambada_openai piqa
    python -m experiments.harness --init gpt2/ --tasks my_task --include-path tasks/

In Python: ``lm_eval.simple_evaluate(model=HarnessModel(trained, ...), tasks=[...])``.
"""

import json
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.cli import main
from rlhf_jax.config import HarnessConfig
from rlhf_jax.data.files import check_writable, write_atomically
from rlhf_jax.errors import check
from rlhf_jax.inference.text_logprobs import BUCKET, make_logprob_scorer
from rlhf_jax.models.heads import make_language_model
from rlhf_jax.rollouts.generate import generate, row_keys
from rlhf_jax.runs.progress import say
from rlhf_jax.runs.trained import Trained, load_trained

try:
    from lm_eval import simple_evaluate, utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
except ImportError as error:  # before main, whose sentence this would be
    raise SystemExit(
        f"error: experiments.harness needs {error.name}: pip install -e '.[lm-eval]'"
    ) from None


def run(config: HarnessConfig) -> dict[str, Any]:
    """The harness's tasks on one model; its table is printed."""
    check(len(config.tasks) > 0, "tasks is empty: give --tasks NAME [NAME ...]")
    if config.out is not None:
        check_writable(config.out)
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
    if model.cut:
        say(f"{model.cut} requests over the context of {model.max_length} tokens kept their end")
    if config.out is not None:
        write_atomically(config.out, json.dumps(results["results"], indent=2, default=str) + "\n")
    return results["results"]


class HarnessModel(TemplateLM):
    """The three requests of the harness, answered by one language model.

    Log-likelihoods are in nats at temperature 1; a text begins after begin of text, or
    where the tokenizer has none after end of text, as in training.
    """

    def __init__(self, trained: Trained, *, batch_size: int, max_gen_toks: int, seed: int):
        super().__init__()
        self.trained, self.batch_size, self.max_gen_toks = trained, batch_size, max_gen_toks
        self.cut = 0
        """Requests that were over the context, which keep their end."""
        self._key = jax.random.key(seed)
        self._lm = make_language_model(trained.model, trained.vocab_size)
        self._score = make_logprob_scorer(trained, batch_size=batch_size)

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return self.trained.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text: begin of text, else end of text."""
        tokenizer = self.trained.tokenizer
        return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """The model's context."""
        return self.trained.model.context

    @property
    def tokenizer_name(self) -> str:
        """What tells tokenizers apart in the harness's cache."""
        return self.trained.tokenizer.digest

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Ids of a text, begin of text first unless it is refused."""
        tokenizer = self.trained.tokenizer
        ids = tokenizer.encode_beginning(string)
        return ids[len(tokenizer.bos_ids) :] if add_special_tokens is False else ids

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        """Refused: what is evaluated is the plain text."""
        raise NotImplementedError("chat templates are not supported here: evaluate the plain text")

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
        rows = [
            ([*context, *continuation], len(continuation)) for _, context, continuation in requests
        ]
        self.cut += sum(len(ids) > self.max_length + 1 for ids, _ in rows)
        return list(map(tuple, self._score(rows)))

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in windows of the context."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(("", ""), *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The answer to each prompt, up to the first of its stops."""
        return [self._generate(text, dict(options)) for text, options in (r.args for r in requests)]

    @lru_cache(maxsize=8)  # noqa: B019 (a model lives as long as the process)
    def _sampler(self, *, length: int, temperature: float, top_k: int, top_p: float):
        tokenizer = self.trained.tokenizer
        sample = partial(generate, self._lm, length=length, temperature=temperature)
        sample = partial(sample, top_k=top_k, top_p=top_p, at_once=1.0)
        return jax.jit(partial(sample, end_ids=tokenizer.end_ids, pad_id=tokenizer.pad_id))

    def _generate(self, text: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else until
        length = int(options.get("max_gen_toks", self.max_gen_toks))
        sampled = options.get("do_sample", False) and options.get("temperature", 1.0)
        room = self.max_length - length
        check(
            room > 0,
            f"answers of {length} tokens (max_gen_toks) leave no room for a prompt in the model's "
            f"context of {self.max_length}",
        )
        ids = self.tok_encode(text)
        self.cut += len(ids) > room
        tokenizer = self.trained.tokenizer
        ids = tokenizer.last_ids(ids, room)
        missing = -len(ids) % BUCKET
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
        answer_ids = np.asarray(generation.responses)[np.asarray(generation.mask)]
        answer = tokenizer.decode_answer(answer_ids, ids[-1] if ids else tokenizer.pad_id)
        for stop in until:
            answer = answer.split(stop)[0] if stop else answer
        return answer


if __name__ == "__main__":
    main(run, HarnessConfig)
