"""The whole chain in seconds: made-up reviews, and presets shrunk to them.

``shrink`` changes sizes only. Every option of a preset (optimizers, schedules, dropout, precision,
scanned layers, coefficients, epochs, minibatches, K, ...) stays, so that a shrunken run takes the
preset's own paths through the code.
"""

import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from program_cache import CACHE

from experiments import compare, evaluate, ppo, pretrain, reward, sft
from rlhf_jax.cli import read_preset
from rlhf_jax.config import InstructGPTConfig, ModelConfig
from rlhf_jax.data.tokenizers import Tokenizer, train_bpe
from rlhf_jax.models.heads import make_language_model, make_scalar_model
from rlhf_jax.runs.checkpoints import Checkpoints, params_sha256
from rlhf_jax.runs.model_card import save_model_card
from rlhf_jax.tasks import sentiment
from rlhf_jax.types import Params, TrainState

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
PROMPT, RESPONSE = 20, 12
CONTEXT = PROMPT + RESPONSE
VOCABULARY = 320
TEXT_ROWS = 4
WIDTH = defaultdict(lambda: 32, instructgpt_6b=48)
"""Width of each shrunken preset: those that borrow the 6B reward model differ from it in shape."""
KINDS = ("war", "love", "space", "crime", "road", "ghost", "school")
WORDS = {"pos": ("good", "fine", "warm", "bright"), "neg": ("bad", "poor", "cold", "dull")}


class Task(NamedTuple):
    """Files that shrunken presets read."""

    source: Path
    """As the repository's data folder, with a few made-up rows in each place."""
    tokenizer: Path
    """Instead of GPT-2's vocabulary."""


def make_task(folder: Path) -> Task:
    source = folder / "data"
    for name in ("sft_sentence_polarity", "sft_movie_reviews", "text_gutenberg", "lexicons"):
        (source / name).mkdir(parents=True)
    sentences = [labelled(f"a{n} {kind(n)} film", n) for n in range(160)]
    write_rows(source / "sft_sentence_polarity" / "sentences.jsonl", sentences)
    reviews = []
    for n in range(60):
        lines = [labelled(f"m{n} {k} story", n)["text"] for k in KINDS]
        reviews.append({"text": "\n".join(lines), "label": labelled("", n)["label"]})
    write_rows(source / "sft_movie_reviews" / "reviews.jsonl", reviews)
    passages = [f"part {n}\n\nof a {kind(n)} book with few words" for n in range(80)]
    book = "\n<|endoftext|>\n".join(passages)
    (source / "text_gutenberg" / "book.txt").write_text(book)
    lexicons = source / "lexicons"
    (lexicons / "opinion_positive.txt").write_text("\n".join(WORDS["pos"]) + "\n")
    (lexicons / "opinion_negative.txt").write_text("\n".join(WORDS["neg"]) + "\n")
    (lexicons / "vader_lexicon.txt").write_text("good\t1.9\t0.5\t[1]\nbad\t-2.5\t1\t[2]\n")
    (lexicons / "afinn_111.txt").write_text("good\t3\nbad\t-3\n")
    tokenizer = train_bpe([row["text"] for row in sentences + reviews], vocab_size=VOCABULARY)
    tokenizer.save(folder / "tokenizer")
    return Task(source, folder / "tokenizer")


def part_of_the_data(folder: Path, lines: Mapping[str, int]) -> Path:
    """So many lines of each of these files of the repository's data, and its lexicons.

    Reading all of a task takes a stage as long as its work on it.
    """
    for name, count in lines.items():
        rows = (ROOT / "data" / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        some = rows[:: len(rows) // count][:count]
        (folder / name).write_text("".join(some), encoding="utf-8")
    (folder / "lexicons").symlink_to(ROOT / "data" / "lexicons")
    return folder


def kind(n: int) -> str:
    return KINDS[n % len(KINDS)]


def labelled(start: str, n: int) -> dict[str, str]:
    """A sentence that its label shows in."""
    label = "pos" if n % 2 else "neg"
    first, second = WORDS[label][n % 4], WORDS[label][n // 2 % 4]
    return {"text": f"{start} that is {first} and {second} .", "label": label}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def shrink(
    preset: InstructGPTConfig, folder: Path, task: Task, *, d_model: int = 32, packing: bool = False
) -> InstructGPTConfig:
    """``preset`` with one layer and two steps per stage; its ``reward_init`` lies beside it.

    Not sizes but changed all the same: PPO is forced, as a model of two steps passes no gate, rows
    may be cut, as a small vocabulary makes them long, and PPO does not pack its episodes unless
    ``packing`` says so: its programs take a third less to compile, and compute the same
    (test_packed_episodes.py).
    """
    p, rows, minibatch = preset, TEXT_ROWS, 2
    cache = folder.parent / "cache"
    lengths = dict(prompt_length=PROMPT, response_length=RESPONSE)
    cut = lengths | dict(allow_cut=True)
    # Sampled rows are as many in comparing as in evaluating, so that one program does for both.
    K = p.compare.responses_per_prompt
    sampled = math.lcm(K, *p.evaluate.best_of)
    # What layers do to each other is tested of the model; scanned ones are compiled once.
    layers = 2 if p.pretrain.model.scan_layers else 1

    def stage(config, **changes):
        run = replace(config.run, save_every=1, log_every=1, eval_every=1, tensorboard=False)
        return replace(config, run=run, **changes)

    def text(config):
        return replace(config, block_size=CONTEXT, cache=cache)

    tokenizer = replace(p.pretrain.tokenizer, vocab_size=VOCABULARY)
    if tokenizer.path is not None:
        tokenizer = replace(tokenizer, path=task.tokenizer)
    return replace(
        p,
        dir=folder,
        source=task.source,
        reward_init=p.reward_init and folder.parent.joinpath(*p.reward_init.parts[-2:]),
        pretrain=stage(
            p.pretrain,
            data=text(p.pretrain.data),
            tokenizer=tokenizer,
            model=replace(
                p.pretrain.model, n_layers=layers, d_model=d_model, n_heads=2, context=CONTEXT
            ),
            batch_size=rows,
            steps=2,
            eval_batches=1,
        ),
        sft=stage(
            p.sft,
            pretrain_data=text(p.sft.pretrain_data),
            cache=cache,
            block_size=CONTEXT,
            batch_size=20,
            heldout_fraction=0.9,
            **cut,
        ),
        compare=stage(
            p.compare,
            num_prompts=8,
            heldout_prompts=8,
            prompts_per_batch=sampled // K,
            **cut,
        ),
        reward=stage(p.reward, cache=cache, batch_size=4, normalise_rows=8, **cut),
        ppo=stage(
            p.ppo,
            cache=cache,
            iterations=2,
            batch_size=math.lcm(minibatch * p.ppo.num_minibatches, p.ppo.samples_per_prompt),
            ptx_batch_size=minibatch,
            ptx_data=text(p.ppo.ptx_data),
            force=True,
            packing=packing,
            **cut,
        ),
        evaluate=stage(
            p.evaluate,
            num_prompts=4,
            batch_size=sampled,
            text=text(p.evaluate.text),
            text_batches=1,
            **lengths,
        ),
    )


def save_model(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    kind: Literal["lm", "scalar"] = "lm",
    context: int = CONTEXT,
    accuracy: float = 0.9,
    model: ModelConfig | None = None,
    params: Params | None = None,
) -> Path:
    """What a finished stage leaves, for stages that only read it: random unless given."""
    model = model or ModelConfig(n_layers=1, d_model=16, n_heads=2, context=context)
    if params is None:
        params = make_language_model(model, tokenizer.vocab_size).init(jax.random.key(0))
    if kind == "scalar":
        scalar = make_scalar_model(model, tokenizer.vocab_size)
        params = scalar.init(jax.random.key(1), params["trunk"])
    save_model_card(folder, model, tokenizer.vocab_size, tokenizer, kind=kind)
    frame = dict(keep_latest=1, keep_best=0, best_metric=None, best_mode="max")
    with Checkpoints(folder / "final", **frame) as final:
        state = TrainState(jnp.int32(1), params, (), None)
        final.save(1, state, data={}, extra={}, metrics={})
    done = {"heldout": {"eval/accuracy": accuracy}, "params_sha256": params_sha256(params)}
    (folder / "DONE").write_text(json.dumps(done))
    return folder


def write_data(config: InstructGPTConfig) -> None:
    sentiment.write(sentiment.build(config.source), config.dir / "data")


def run_stages(config: InstructGPTConfig) -> None:
    """All stages in a row, as experiments.instructgpt runs them, without the report."""
    c = config.resolve()
    write_data(c)
    pretrain.run(c.pretrain)
    sft.run(c.sft)
    compare.run(c.compare)
    reward.run(c.reward)
    ppo.run(c.ppo)
    evaluate.run(c.evaluate)


def process_environment(**changes: str) -> dict[str, str]:
    """Of a process that runs tiny stages: it keeps the programs it compiles, and says where it
    crashed, if it does."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS}",
        "PYTHONFAULTHANDLER": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **changes,
    }


def main(folder: Path, presets: list[Path]) -> None:
    """Shrunken presets with the checks of conftest.py; test_presets.py runs them as processes."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_debug_key_reuse", True)
    task = Task(folder / "data", folder / "tokenizer")
    for path in presets:
        run_stages(
            shrink(read_preset(str(path)), folder / path.stem, task, d_model=WIDTH[path.stem])
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))


def write_own_task(folder: Path) -> Path:
    """rhymes.py, the task and preset that docs/tasks.md shows, as it stands there."""
    blocks = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split("```python\n")[1:]
    path = folder / "rhymes.py"
    path.write_text(next(block.split("```")[0] for block in blocks if "def build(" in block))
    return path
